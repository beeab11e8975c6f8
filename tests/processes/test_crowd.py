"""Twenty nodes that start at once, and what they do when they have found each other."""

from __future__ import annotations

import pytest

from tests.processes.books import check_outcomes
from tests.processes.crew import Crew

PRODUCERS, CONSUMERS = 4, 16


@pytest.mark.guarantee("G1")
def test_twenty_nodes_start_at_once_and_share_the_work(crew: Crew) -> None:
    producers = [crew.producer(f"producer-{index}") for index in range(PRODUCERS)]
    consumers = [crew.consumer(f"consumer-{index}", pull={"prefetch": 16}) for index in range(CONSUMERS)]
    everybody = [*producers, *consumers]
    for member, number in [(member, member.tell("see", count=len(everybody) - 1)) for member in everybody]:
        seen = {peer_id for _, peer_id, _ in member.answer(number)["peers"]}
        assert seen == {other.started()["id"] for other in everybody} - {member.started()["id"]}
    waits = [(producer, producer.tell("wait_for", pull="work", count=CONSUMERS)) for producer in producers]
    for producer, number in waits:
        producer.answer(number)
    loads = [(producer, producer.tell("load", count=300, seconds=0.005)) for producer in producers]
    accepted = {producer: producer.answer(number)["ids"] for producer, number in loads}
    for producer in producers:
        producer.ask("flush")
    handled = {consumer.name: len(crew.journal.of("finish", name=consumer.name)) for consumer in consumers}
    print("handled", handled)
    assert all(handled.values()), f"some had nothing to do: {handled}"
    check_outcomes(crew.journal, accepted)
    for member, number in [(member, member.tell("close")) for member in everybody]:
        assert all(not books["pending"] for books in member.answer(number)["ledgers"].values())
        assert member.exit_code() == 0
