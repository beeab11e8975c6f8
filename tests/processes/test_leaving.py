"""Nodes that leave: with and without drain, from peers that answer and peers that don't, in the middle of work."""

from __future__ import annotations

import pytest

from tests.processes.books import accepted_ids, check_deliveries, check_outcomes
from tests.processes.crew import Crew

QUICK_RETRY = {"retry": {"backoff": 0.02, "max_backoff": 0.2}}


@pytest.mark.guarantee("G1", "G10")
def test_a_producer_drains_before_it_leaves(crew: Crew) -> None:
    producer = crew.producer()
    consumer = crew.consumer("consumer", pull={"prefetch": 16, "concurrency": 4})
    load = producer.ask("load", count=300, seconds=0.004)
    assert producer.ask("ledger")["pending"] > 0
    closed = producer.ask("close", drain=30)
    assert (closed["ledgers"]["work"]["processed"], closed["ledgers"]["work"]["pending"]) == (300, 0)
    assert crew.journal.ids("finish") == set(load["ids"])
    assert producer.exit_code() == 0
    assert consumer.event("peer.down", peer="producer")["text"] == "left"
    assert not consumer.events("peer.suspect")
    check_deliveries(crew.journal)


@pytest.mark.guarantee("G10")
@pytest.mark.parametrize("consumer_is", ["busy", "frozen", "killed", "absent"])
@pytest.mark.parametrize("drain", [0, 0.5])
def test_a_producer_leaves_in_time_and_says_what_is_left(crew: Crew, consumer_is: str, drain: float) -> None:
    producer = crew.producer()
    if consumer_is == "absent":
        producer.started()
    else:
        consumer = crew.consumer("consumer", pull={"prefetch": 10})
        producer.ask("wait_for", pull="work")
    producer.ask("send", bodies=[{"n": number, "do": "gate"} for number in range(50)])
    if consumer_is != "absent":
        crew.until(lambda: bool(crew.journal.of("start")), "the start of some work")
    if consumer_is == "frozen":
        consumer.freeze()
    elif consumer_is == "killed":
        consumer.kill()
    closed = producer.ask("close", drain=drain)
    ledger = closed["ledgers"]["work"]
    assert (ledger["accepted"], ledger["pending"], ledger["processed"]) == (50, 50, 0)
    if consumer_is in ("busy", "frozen"):
        assert (ledger["in_flight"], ledger["ready"]) == (10, 40)
    assert producer.exit_code() == 0
    print(f"consumer {consumer_is}, drain {drain} s: closed in {closed['took_s']:.2f} s")


@pytest.mark.guarantee("G4", "G10")
def test_a_consumer_leaves_in_the_middle_of_work_at_no_cost(crew: Crew) -> None:
    producer = crew.producer()
    leaving, *others = [crew.consumer(f"consumer-{i}", pull={"concurrency": 2}) for i in range(3)]
    producer.ask("wait_for", pull="work", count=3)
    load = producer.tell("load", count=1000, seconds=0.004, pause=0.002, burst=20)
    crew.until(lambda: len(crew.journal.of("finish", name="consumer-0")) > 20, "work on every consumer")
    closed = leaving.ask("close", drain=10)
    assert leaving.exit_code() == 0
    producer.event("peer.down", peer="consumer-0", text="left")
    assert not producer.events("peer.suspect", peer="consumer-0"), "its links broke ahead of its goodbye"
    accepted = producer.answer(load)
    producer.ask("flush")
    # Its handlers had the time to end, and the rest was never started: nobody made a second attempt.
    assert not crew.journal.of("cancelled")
    assert {entry.attempt for entry in crew.journal.entries} == {1}
    assert any(entry.redelivered for entry in crew.journal.entries), "it held nothing: this tests nothing"
    starts = [entry.id for entry in crew.journal.of("start")]
    assert len(starts) == len(set(starts)) == 1000
    check_outcomes(crew.journal, {producer: accepted["ids"]})
    print(f"closed in {closed['took_s']:.2f} s; {len(others)} others went on")


@pytest.mark.guarantee("G4", "G10")
def test_a_consumer_that_leaves_at_once_is_charged_for_what_it_had_started(crew: Crew) -> None:
    producer = crew.producer(push=QUICK_RETRY)
    leaving = crew.consumer("leaving", pull={"concurrency": 3})
    first = producer.ask("send", bodies=[{"n": n, "do": "gate", "attempts": 1} for n in range(3)])
    rest = producer.ask("send", bodies=[{"n": n} for n in range(3, 100)])
    crew.until(lambda: len(crew.journal.of("start")) == 3, "three handlers at work")
    crew.consumer("staying").started()
    leaving.ask("close", drain=0)
    producer.ask("flush")
    second_attempts = {entry.id for entry in crew.journal.entries if entry.attempt > 1}
    assert second_attempts == crew.journal.ids("cancelled") == set(first["ids"])
    check_outcomes(crew.journal, {producer: accepted_ids(first, rest)})
