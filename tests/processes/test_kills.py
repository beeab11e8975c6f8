"""Consumers that are killed: at random moments under load, and by a message that kills whoever takes it."""

from __future__ import annotations

import random

import pytest

from tests.processes.books import accepted_ids, check_outcomes
from tests.processes.crew import Crew, Member

QUICK_RETRY = {"retry": {"backoff": 0.02, "max_backoff": 0.2}}


@pytest.mark.guarantee("G1", "G2", "G4")
@pytest.mark.parametrize("seed", [1, 2])
def test_consumers_are_killed_and_replaced_under_load(crew: Crew, seed: int) -> None:
    chance = random.Random(seed)
    pull = {"concurrency": 4, "prefetch": 64}
    producers = [crew.producer(f"producer-{index}", push=QUICK_RETRY) for index in range(2)]
    consumers = [crew.consumer(f"consumer-{index}", pull=pull) for index in range(3)]
    loads = [producer.tell("load", count=1500, seconds=0.008, pause=0.002) for producer in producers]
    for _ in range(5):
        wait_for_work(crew, chance.randrange(100, 700))
        consumers.pop(chance.randrange(len(consumers))).kill()
        consumers.append(crew.consumer(f"consumer-{len(crew.members)}", pull=pull))
    accepted = [producer.answer(load) for producer, load in zip(producers, loads, strict=True)]
    ledgers = [producer.ask("flush") for producer in producers]
    check_outcomes(crew.journal, {p: a["ids"] for p, a in zip(producers, accepted, strict=True)})
    # The kills hit work: otherwise this test tests nothing.
    assert sum(ledger["redelivered"] for ledger in ledgers) > 0
    print("ledgers", ledgers)


@pytest.mark.guarantee("G1", "G4")
def test_a_poison_message_dies_and_its_neighbours_live(crew: Crew) -> None:
    producer = crew.producer(push={"retry": {"max_attempts": 3, "backoff": 0.02, "max_backoff": 0.1}})
    before = producer.ask("send", bodies=[{"n": n} for n in range(100)])
    poison = producer.ask("send", bodies=[{"n": 100, "do": "kill"}])
    after = producer.ask("send", bodies=[{"n": n} for n in range(101, 200)])
    supervise(crew, producer)
    (letter,) = producer.ask("dead")["letters"]
    assert letter["id"] == poison["ids"][0]
    assert (letter["reason"], letter["verdicts"]) == ("attempts", ["crashed"] * 3)
    assert [entry.attempt for entry in crew.journal.of("start") if entry.number == 100] == [1, 2, 3]
    assert crew.journal.ids("finish") == set(accepted_ids(before, after))
    check_outcomes(crew.journal, {producer: accepted_ids(before, poison, after)}, max_attempts=3)


def supervise(crew: Crew, producer: Member) -> None:
    """Starts a consumer again whenever it died, until nothing is pending."""
    flushed = producer.tell("flush")
    while producer.answered(flushed) is None:
        assert len(crew.members) < 20, "it kills and kills"
        consumer = crew.consumer(f"consumer-{len(crew.members)}", pull={"concurrency": 4})
        wait_for_an_end(crew, consumer, producer, flushed)


def wait_for_an_end(crew: Crew, consumer: Member, producer: Member, flushed: int) -> None:
    """Of the consumer, or of all work."""
    crew.until(
        lambda: consumer.code is not None or producer.answered(flushed) is not None,
        "the death of a consumer, or the end of the work",
    )


def wait_for_work(crew: Crew, lines: int) -> None:
    """Until so many more lines are in the journal."""
    goal = len(crew.journal.entries) + lines
    crew.until(lambda: len(crew.journal.entries) >= goal, f"line {goal} of the journal")
