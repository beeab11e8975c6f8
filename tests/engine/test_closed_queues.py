"""A queue that is closed: what it holds finds its end, then nothing is left of it at either end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmsg.engine.engine import Engine
from meshmsg.engine.run import Details
from meshmsg.options import PushOptions, Retry
from meshmsg.wire import frames
from tests.engine.test_engine import Pair


def over(pair: Pair) -> bool:
    """Whether nothing of the queue is left: outbox, lanes at both ends, a time on the agenda."""
    for seconds in (0.0, 0.5, 0.0):
        pair.carry()
        pair.beat(seconds)
    pair.carry()
    sender = pair.a._sender
    left = ("q" in pair.a.outboxes, sender._lanes, sender._closed, sender._over, pair.inbox.lanes)
    return not any(left) and sender._agenda.time_of(pair.box) is None


def letters(engine: Engine) -> list[str]:
    return [letter.id for letter in engine.dead_letters.letters()]


@pytest.mark.guarantee("G1")
def test_what_was_accepted_is_processed_and_then_nothing_is_left() -> None:
    pair = Pair()
    forgotten: list[str] = []
    pair.a.on_queue_over = forgotten.append
    pair.box.push_many([b"\x01", b"\x02"], 2)
    pair.a.close_push("q")
    pair.carry()
    assert "q" not in pair.a.identity.offers["push"] and not over(pair)
    for message in pair.inbox.take(10, 0.0):
        message.ack()
    assert over(pair) and forgotten == ["q"]
    assert pair.box.ledger()[:4] == (2, 2, 0, 0)
    assert pair.inbox.check() is None and not pair.a.ledger()


def test_a_queue_that_holds_nothing_is_forgotten_at_once() -> None:
    pair = Pair()
    pair.a.close_push("q")
    pair.carry()
    pair.beat()
    assert over(pair)


@pytest.mark.guarantee("G1")
def test_outcomes_are_told_before_the_queue_is_forgotten() -> None:
    pair = Pair()
    told: list[object] = []
    pair.a.on_queue_over = told.append
    number = pair.box.push(b"\x01")
    pair.box.watched.add(number)
    pair.a.close_push("q")
    pair.carry()
    pair.inbox.take(1, 0.0)[0].ack()
    for parts in [parts for link, parts in pair.b.drain(0.0).send if link]:
        pair.a.handle_parts(b"from-b", parts, 0.0)
    told += pair.a.drain(0.0).settled
    pair.beat()
    assert told == [("q", number, None), "q"]


def test_a_long_time_to_live_keeps_nothing_of_it() -> None:
    pair = Pair()
    pair.box.push_detailed(b"\x01", Details(expires_at=10_000.0), 0.0)
    pair.a.close_push("q")
    pair.carry()
    pair.inbox.take(1, 0.0)[0].ack()
    for _ in range(3):
        pair.carry()
        pair.beat()
    assert over(pair) and len(pair.a._sender._agenda) == 0


def test_opened_again_it_goes_on_with_what_it_holds_and_other_options() -> None:
    pair = Pair(max_pending=5)
    pair.box.push(b"\x01")
    pair.a.close_push("q")
    pair.carry()
    assert pair.a.open_push("q", PushOptions(max_pending=9)) is pair.box
    assert pair.box.room == 8 and "q" in pair.a.identity.offers["push"]
    pair.inbox.take(1, 0.0)[0].ack()
    pair.carry()
    pair.beat()
    assert not over(pair) and pair.box.ledger()[:4] == (1, 1, 0, 0)


@pytest.mark.guarantee("G1", "G2")
def test_opened_again_after_it_was_forgotten_it_has_other_ids_and_lanes() -> None:
    pair = Pair()
    pair.box.push(b"\x01")
    pair.a.close_push("q")
    pair.carry()
    pair.inbox.take(1, 0.0)[0].ack()
    assert over(pair)
    box = pair.a.open_push("q", PushOptions())
    assert box is not pair.box and box.push(b"\x02") == 1
    for _ in range(3):
        pair.carry()
    (message,) = pair.inbox.take(9, 0.0)
    message.ack()
    for _ in range(3):
        pair.carry()
    assert message.id == "a/q/1" and message.body == 2
    assert box.ledger()[:4] == (1, 1, 0, 0)


@pytest.mark.guarantee("G1")
def test_dead_letters_of_a_forgotten_queue_are_redriven() -> None:
    pair = Pair()
    pair.box.push_many([b"\x01", b"\x02"], 2)
    pair.a.close_push("q")
    pair.carry()
    for message in pair.inbox.take(9, 0.0):
        message.reject("no")
    assert over(pair) and letters(pair.a) == ["a/q/0", "a/q/1"]
    assert pair.a.redrive(["a/q/1"]) == ["a/q/1"]
    assert pair.a.ledger()["q"][:4] == (1, 0, 0, 1)
    for again in range(2):  # it may die and be redriven again
        for _ in range(3):
            pair.carry()
        (message,) = pair.inbox.take(9, 0.0)
        assert (message.id, message.body) == ("a/q/1", 2)
        if again:
            message.ack()
        else:
            message.reject("still no")
            pair.carry()
            assert pair.a.ledger()["q"][:4] == (1, 0, 1, 0)
            pair.a.redrive(["a/q/1"])
            assert pair.a.ledger()["q"][:4] == (1, 0, 0, 1)
    assert over(pair) and letters(pair.a) == ["a/q/0"]
    assert "q" not in pair.a.identity.offers["push"]


def test_a_redriven_queue_gets_its_owner_back() -> None:
    pair = Pair(retry=Retry(max_attempts=1))
    pair.box.push(b"\x01")
    pair.a.close_push("q")
    pair.carry()
    pair.inbox.take(1, 0.0)[0].nack()
    assert over(pair)
    pair.a.redrive(letters(pair.a))
    box = pair.a.open_push("q", PushOptions(max_pending=3))
    assert (box.pending, box.room, box.push(b"\x02")) == (1, 2, 1)
    for _ in range(3):
        pair.carry()
    for message in pair.inbox.take(9, 0.0):
        message.ack()
    pair.carry()
    pair.carry()
    assert box.ledger()[:4] == (2, 2, 0, 0) and pair.a.outboxes["q"] is box


def link_of(engine: Engine) -> int:
    return next(link for link, _ in engine.peers.linked() if link)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_consumer_hears_through_the_next_link_that_a_lane_is_over(when: str) -> None:
    pair = Pair()
    if when == "before":
        pair.a.handle_link(link_of(pair.a), "down", 0.0)
    pair.a.close_push("q")
    for _ in range(2):
        pair.turn("a")
        pair.a.handle_time(0.5)
    pair.turn("a")
    assert "q" not in pair.a.outboxes and pair.inbox.lanes
    if when == "after":
        pair.a.handle_link(link_of(pair.a), "down", 0.0)
        pair.out["a"].clear()
    pair.routes["a"] = b"from-a-again"
    for _ in range(6):
        pair.carry()
    assert over(pair)


def test_a_consumer_hears_with_the_next_beat_what_its_link_had_no_room_for() -> None:
    pair = Pair()
    pair.a.close_push("q")
    pair.carry()
    for _ in range(2):
        pair.beat()
        said = pair.turn("a")
        assert any(isinstance(frame, frames.Close) for frame in said)
        pair.out["a"] = [parts for parts in pair.out["a"] if not isinstance(frames.decode(parts), frames.Close)]
        pair.a.handle_unsent(link_of(pair.a))
        pair.carry()
    assert "q" not in pair.a.outboxes and pair.inbox.lanes
    assert over(pair)
    pair.beat()
    assert not pair.a._sender._ended


def test_a_closed_queue_may_still_be_one_of_dead_letters() -> None:
    pair = Pair(dead_letter_to="graves")
    graves = pair.a.open_push("graves", PushOptions())
    pair.a.close_push("graves")
    pair.carry()
    pair.beat()
    pair.carry()
    assert "graves" not in pair.a.outboxes
    pair.box.push(b"\x01")
    pair.carry()
    pair.inbox.take(1, 0.0)[0].reject("no")
    pair.carry()
    assert pair.a.outboxes["graves"] is not graves and pair.a.outboxes["graves"].pending == 1


@pytest.mark.guarantee("G1", "G2")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["push", "close", "open", "carry", "ack", "reject", "redrive", "break", "beat"])))
def test_whatever_happens_every_message_has_one_end_and_an_id_of_its_own(steps: list[str]) -> None:
    pair = Pair()
    box, accepted = pair.a.open_push("q", PushOptions()), 0
    ids: set[int] = set()
    is_open = True
    acked: set[str] = set()
    for step in steps:
        if step == "push" and is_open:
            ids.add(box.push(b"\x01"))
            accepted += 1
            assert len(ids) == accepted
        elif step == "close" and is_open:
            pair.a.close_push("q")
            is_open = False
        elif step == "open" and not is_open:
            box, is_open = pair.a.open_push("q", PushOptions()), True
        elif step == "carry":
            pair.carry()
        elif step == "break":
            pair.break_links()
        elif step == "beat":
            pair.beat(0.1)
            pair.carry()
        elif step == "redrive":
            pair.a.redrive(letters(pair.a)[:1])
        elif step in ("ack", "reject"):
            for message in pair.inbox.take(1, pair.now):
                if step == "reject":
                    message.reject("no")
                else:
                    assert message.id not in acked
                    acked.add(message.id)
                    message.ack()
    if is_open:
        pair.a.close_push("q")
    for _ in range(2 * len(ids) + 4):
        pair.beat()
        pair.carry()
        for message in pair.inbox.take(99, pair.now):
            acked.add(message.id)
            message.ack()
    assert over(pair)
    assert acked | set(letters(pair.a)) == {f"a/q/{number}" for number in ids}
    assert not acked & set(letters(pair.a))


# --- pulls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["idle", "working", "unknown"])
def test_of_a_closed_pull_nothing_is_left_once_its_lanes_are_over(when: str) -> None:
    pair = Pair()
    if when == "unknown":  # to any producer
        pair.b.open_pull("other", 5)
        pair.b.close_pull("other")
    pair.box.push(b"\x01")
    pair.carry()
    messages = pair.inbox.take(1, 0.0) if when == "working" else []
    pair.b.close_pull("q")
    for _ in range(3):
        pair.carry()
    assert len(pair.b._receiver._leaving) == len(messages)
    for message in messages:
        message.ack()
    for _ in range(3):
        pair.carry()
    assert not pair.b._receiver._leaving and not pair.b._receiver._homes
    assert pair.box.ledger()[:4] == (1, 1, 0, 0) if messages else (1, 0, 0, 1)


def test_of_a_closed_pull_nothing_is_left_once_its_producers_are_gone() -> None:
    pair = Pair()
    pair.box.push(b"\x01")
    pair.carry()
    (message,) = pair.inbox.take(1, 0.0)
    pair.b.close_pull("q")
    pair.carry()
    pair.a.close()
    pair.carry()
    assert not pair.b._receiver._leaving and not pair.b._receiver._homes
    message.ack()  # it leads nowhere
    pair.carry()
    assert not pair.b._receiver._homes
