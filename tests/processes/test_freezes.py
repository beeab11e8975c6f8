"""Processes that stand still: stopped by a signal, or with a handler that blocks the loop or never ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshmsg import Node
from tests.processes.books import accepted_ids, check_outcomes
from tests.processes.crew import DEADLINE_S, IMPATIENT, Crew, Member

QUICK_RETRY = {"retry": {"backoff": 0.02, "max_backoff": 0.2}}


def bodies(first: int, stop: int, **what: Any) -> list[dict[str, Any]]:
    """Numbered bodies; ``what`` is what their handler should do."""
    return [{"n": number, **what} for number in range(first, stop)]


def silence(member: Member, name: str) -> float:
    """For how many seconds a member has heard nothing of another one."""
    return max(float(silent_s) for peer, _, silent_s in member.ask("peers")["peers"] if peer == name)


@pytest.mark.guarantee("G1", "G2")
def test_a_frozen_consumer_loses_its_work_and_comes_back(crew: Crew) -> None:
    crew.settings = IMPATIENT
    producer = crew.producer(push=QUICK_RETRY)
    frozen = crew.consumer("frozen", pull={"prefetch": 32})
    held = producer.ask("send", bodies=bodies(0, 20, do="gate"))
    crew.until(lambda: bool(crew.journal.of("start", name="frozen")), "the start of some work")
    other = crew.consumer("other")
    other.ask("open_gate")
    frozen.freeze()
    producer.event("peer.down", peer="frozen")
    # What it held is done elsewhere, while it still stands still.
    ledger = producer.ask("flush")
    assert ledger["processed"] == 20
    assert crew.journal.ids("finish", name="other") == set(held["ids"])
    other.ask("close")
    frozen.thaw()
    producer.event("peer.up", 2, peer="frozen")
    more = producer.ask("send", bodies=bodies(20, 60))
    # Once it offers credit anew, it has been told that what it still held went elsewhere.
    crew.until(lambda: producer.ask("ledger")["in_flight"] > 0, "new work for the one that was frozen")
    frozen.ask("open_gate")
    producer.ask("flush")
    again = [entry.number for entry in crew.journal.of("start", name="frozen") if entry.id in held["ids"]]
    assert again == [0], "only what it had started went on"
    assert crew.journal.ids("finish", name="frozen") >= set(more["ids"])
    check_outcomes(crew.journal, {producer: accepted_ids(held, more)})


@pytest.mark.guarantee("G1", "G2")
def test_a_frozen_producer_goes_on_where_it_stood(crew: Crew) -> None:
    crew.settings = IMPATIENT
    producer = crew.producer(push=QUICK_RETRY)
    consumer = crew.consumer("consumer", pull={"prefetch": 8})
    first = producer.ask("send", bodies=bodies(0, 30, do="gate"))
    crew.until(lambda: bool(crew.journal.of("start")), "the start of some work")
    producer.freeze()
    consumer.event("peer.down", peer="producer")
    consumer.ask("open_gate")
    # Nobody else may have what it holds, so the consumer goes on with it.
    crew.until(lambda: len(crew.journal.ids("finish")) >= 8, "the end of what the consumer held")
    producer.thaw()
    producer.ask("flush")
    second = producer.ask("send", bodies=bodies(30, 60))
    producer.ask("flush")
    check_outcomes(crew.journal, {producer: accepted_ids(first, second)})


@pytest.mark.guarantee("G1")
def test_who_was_frozen_is_reached_with_the_first_dial(crew: Crew) -> None:
    """As it goes on, it often answers over a connection that the other side has given up, and the answer is lost."""
    name = crew.consumer("frozen").started()["id"]

    async def watch() -> None:
        async with Node("watch", mesh=crew.mesh, gone_after=30.0) as node:
            engine, until = node._engine, node._driver.until
            await node.wait_for(pull="work", timeout=DEADLINE_S)
            before = engine.peers._next_link
            for round_ in range(1, 4):
                crew.members[0].freeze()
                assert await until(lambda: engine.peers.by_id[name].link is None, DEADLINE_S)
                crew.members[0].thaw()
                assert await until(lambda: engine.peers.by_id[name].state == "alive", DEADLINE_S)
                assert engine.peers._next_link == before + round_

    asyncio.run(watch())


@pytest.mark.guarantee("G1", "G2")
def test_a_blocked_loop_keeps_what_it_holds_and_gets_no_more(crew: Crew) -> None:
    crew.settings = IMPATIENT
    release = crew.folder / "release"
    producer = crew.producer()
    crew.consumer("blocked", pull={"prefetch": 8})
    stuck = producer.ask("send", bodies=[{"n": 0, "do": "block", "until": str(release)}])
    kept = producer.ask("send", bodies=bodies(1, 8))
    crew.until(lambda: bool(crew.journal.of("start", name="blocked")), "a blocked loop")
    producer.event("peer.suspect", peer="blocked")
    other = crew.consumer("other")
    other.started()
    elsewhere = producer.ask("send", bodies=bodies(8, 60))
    crew.until(lambda: crew.journal.ids("finish") >= set(elsewhere["ids"]), "the work of the other consumer")
    assert crew.journal.ids("finish", name="other") == set(elsewhere["ids"])
    # Far longer than what a process without any sign of life would get (gone_after).
    crew.until(lambda: silence(producer, "blocked") > 1.5 * IMPATIENT["gone_after"], "a longer silence")
    assert producer.ask("ledger")["in_flight"] == 8
    release.touch()
    ledger = producer.ask("flush")
    assert ledger["redelivered"] == 0
    assert not producer.events("peer.down")
    assert crew.journal.ids("finish", name="blocked") == set(accepted_ids(stuck, kept))
    assert all(entry.attempt == 1 for entry in crew.journal.entries)
    check_outcomes(crew.journal, {producer: accepted_ids(stuck, kept, elsewhere)})


@pytest.mark.guarantee("G1")
def test_a_loop_that_stays_blocked_is_given_up(crew: Crew) -> None:
    crew.settings = IMPATIENT
    producer = crew.producer(push=QUICK_RETRY, stall_after=1.25)
    crew.consumer("blocked", pull={"prefetch": 8})
    never = str(crew.folder / "never")
    stuck = producer.ask("send", bodies=[{"n": 0, "do": "block", "until": never, "attempts": 1}])
    kept = producer.ask("send", bodies=bodies(1, 8))
    crew.until(lambda: bool(crew.journal.of("start", name="blocked")), "a blocked loop")
    crew.consumer("other")
    assert producer.event("peer.down", peer="blocked")["text"] == "stalled"
    producer.ask("flush")
    assert crew.journal.ids("finish", name="other") == set(accepted_ids(stuck, kept))
    check_outcomes(crew.journal, {producer: accepted_ids(stuck, kept)})


@pytest.mark.guarantee("G1", "G4")
def test_a_handler_that_never_ends_costs_nobody_else_anything(crew: Crew) -> None:
    producer = crew.producer(push=QUICK_RETRY)
    producer.ask("push", queue="other")
    hanging = crew.consumer("hanging", pull={"prefetch": 1})
    hanging.tell("pull", queue="other")
    hung = producer.ask("send", bodies=[{"n": 0, "do": "gate", "attempts": 1}])
    crew.until(lambda: bool(crew.journal.of("start", name="hanging")), "a handler that hangs")
    # Another queue of the same node, and the same queue of another node.
    producer.ask("send", queue="other", bodies=bodies(100, 200))
    assert producer.ask("flush", queue="other")["processed"] == 100
    crew.consumer("busy")
    rest = producer.ask("send", bodies=bodies(1, 100))
    crew.until(lambda: crew.journal.ids("finish", name="busy") >= set(rest["ids"]), "everything else")
    # What was finished is written down before it is acked.
    crew.until(lambda: producer.ask("ledger")["processed"] == 99, "the last ack")
    ledger = producer.ask("ledger")
    assert (ledger["processed"], ledger["pending"], ledger["in_flight"]) == (99, 1, 1)
    # The one message it holds is not lost either.
    hanging.kill()
    producer.ask("flush")
    assert crew.journal.ids("finish", name="busy") == set(accepted_ids(hung, rest))


@pytest.mark.guarantee("G4")
def test_a_timeout_ends_a_handler_that_never_ends(crew: Crew) -> None:
    producer = crew.producer(push={"retry": {"max_attempts": 2, "backoff": 0.02}})
    crew.consumer("consumer", pull={"timeout": 0.1})
    hung = producer.ask("send", bodies=[{"n": 0, "do": "gate"}])
    rest = producer.ask("send", bodies=bodies(1, 50))
    producer.ask("flush")
    (letter,) = producer.ask("dead")["letters"]
    assert (letter["id"], letter["reason"]) == (hung["ids"][0], "attempts")
    assert "timeout" in letter["error"]
    check_outcomes(crew.journal, {producer: accepted_ids(hung, rest)}, max_attempts=2)
