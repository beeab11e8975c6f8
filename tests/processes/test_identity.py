"""Who is who: a port that another process takes over, a restart under the same name, two nodes with one name."""

from __future__ import annotations

import pytest

from tests.processes.books import accepted_ids, check_outcomes
from tests.processes.crew import Crew

QUICK_RETRY = {"retry": {"backoff": 0.02, "max_backoff": 0.2}}


@pytest.mark.guarantee("G1", "G2")
def test_a_port_is_taken_over_by_a_node_of_another_mesh(crew: Crew) -> None:
    producer = crew.producer(push=QUICK_RETRY)
    consumer = crew.consumer("consumer", pull={"prefetch": 10})
    first = producer.ask("send", bodies=[{"n": n, "do": "gate"} for n in range(20)])
    crew.until(lambda: bool(crew.journal.of("start", name="consumer")), "the start of some work")
    port = int(consumer.started()["endpoint"].rpartition(":")[2])
    consumer.kill()
    stranger = crew.consumer("stranger", mesh=f"{crew.mesh}-other", port=port)
    assert stranger.started()["endpoint"].endswith(f":{port}")
    # The producer dials it, taking it for the consumer, and is told apart by what it says of itself.
    stranger.event("mesh.other", peer="producer")
    second = producer.ask("send", bodies=[{"n": n} for n in range(20, 40)])
    assert producer.ask("ledger")["pending"] == 40
    crew.consumer("heir").ask("open_gate")
    producer.ask("flush")
    assert not crew.journal.of("start", name="stranger")
    assert stranger.ask("peers")["peers"] == []
    check_outcomes(crew.journal, {producer: accepted_ids(first, second)})


@pytest.mark.guarantee("G1", "G2")
def test_a_port_is_taken_over_by_another_node_of_the_mesh(crew: Crew) -> None:
    producer = crew.producer(push=QUICK_RETRY)
    consumer = crew.consumer("consumer", pull={"prefetch": 10})
    first = producer.ask("send", bodies=[{"n": n, "do": "gate"} for n in range(20)])
    crew.until(lambda: bool(crew.journal.of("start", name="consumer")), "the start of some work")
    port = int(consumer.started()["endpoint"].rpartition(":")[2])
    consumer.kill()
    heir = crew.consumer("heir", pull={"queue": "other"}, port=port)
    assert heir.started()["endpoint"].endswith(f":{port}")
    heir.event("node.misdirected", peer="producer")
    # It is known as itself, and gets what it asks for itself.
    up = producer.event("peer.up", peer="heir")
    assert up["peer_id"] == heir.started()["id"] != consumer.started()["id"]
    producer.ask("push", queue="other")
    producer.ask("send", queue="other", bodies=[{"n": 100}])
    assert producer.ask("flush", queue="other")["processed"] == 1
    assert {entry.number for entry in crew.journal.of("start", name="heir")} == {100}
    assert producer.ask("ledger")["pending"] == 20
    heir.ask("open_gate")
    heir.ask("pull", queue="work")
    producer.ask("flush")
    assert crew.journal.ids("finish", name="heir") > set(first["ids"])


@pytest.mark.guarantee("G1", "G2")
def test_a_restart_under_the_same_name_is_another_node(crew: Crew) -> None:
    producer = crew.producer(push=QUICK_RETRY)
    first_life = crew.consumer("consumer", pull={"prefetch": 10})
    held = producer.ask("send", bodies=[{"n": n, "do": "gate"} for n in range(20)])
    crew.until(lambda: bool(crew.journal.of("start")), "the start of some work")
    first_life.kill()
    second_life = crew.consumer("consumer", pull={"prefetch": 10})
    second_life.ask("open_gate")
    rest = producer.ask("send", bodies=[{"n": n} for n in range(20, 100)])
    producer.ask("flush")
    down = producer.event("peer.down", peer="consumer")
    up = producer.event("peer.up", 2, peer="consumer")
    assert (down["peer_id"], up["peer_id"]) == (first_life.started()["id"], second_life.started()["id"])
    assert {entry.id for entry in crew.journal.of("finish", pid=second_life.pid)} == set(accepted_ids(held, rest))
    check_outcomes(crew.journal, {producer: accepted_ids(held, rest)})


@pytest.mark.guarantee("G1")
def test_two_nodes_with_one_name_are_told_apart(crew: Crew) -> None:
    producer = crew.producer()
    twins = [crew.consumer("twin", pull={"prefetch": 4}) for _ in range(2)]
    ids = {twin.started()["id"] for twin in twins}
    assert {twin.event("name.shared")["peer_id"] for twin in twins} <= ids
    assert producer.event("name.shared", peer="twin")["peer_id"] in ids
    producer.ask("wait_for", pull="work", count=2)
    load = producer.ask("load", count=100, seconds=0.002)
    producer.ask("flush")
    assert {peer_id for _, peer_id, _ in producer.ask("peers")["peers"]} == ids
    assert all(crew.journal.of("finish", pid=twin.pid) for twin in twins)
    check_outcomes(crew.journal, {producer: load["ids"]})
