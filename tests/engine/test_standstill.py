"""A consumer that stood still may have been given up: it starts nothing of what it was sent before (G2, G3)."""

from __future__ import annotations

import pytest

from meshmsg.engine.receiving import DISTRUST_S
from tests.engine.test_engine import Pair

LONG_S = 3.2  # a process that is stopped for so long is given up


def bodies_of(pair: Pair) -> list[object]:
    return [message.body for message in pair.inbox.take(99, pair.now)]


def loaded(count: int = 4) -> Pair:
    """The consumer has got so many messages, and begun with none."""
    pair = Pair(prefetch=10)
    pair.beat()
    pair.carry()
    for number in range(count):
        pair.box.push(bytes([number]))
    pair.carry()
    assert pair.inbox.waiting == count
    return pair


@pytest.mark.guarantee("G2")
@pytest.mark.parametrize("by", ["its timer", "a frame"])
def test_it_starts_nothing_before_its_links_could_break_and_goes_on_if_they_last(by: str) -> None:
    pair = loaded()
    (first,) = pair.inbox.take(1, pair.now)
    pair.now += LONG_S
    if by == "its timer":
        pair.b.handle_time(pair.now)
    pair.turn("b")
    assert bodies_of(pair) == []
    pair.box.push(b"\x04")
    first.ack()
    for _ in range(2):
        pair.carry()
    assert bodies_of(pair) == [] and pair.box.ledger()[:4] == (5, 1, 0, 4)
    pair.now += DISTRUST_S
    pair.b.handle_time(pair.now)
    assert pair.b.drain(pair.now).deliver == ["q"]
    again = pair.inbox.take(9, pair.now)
    assert [(each.body, each.attempt, each.redelivered) for each in again] == [(n, 1, False) for n in (1, 2, 3, 4)]


@pytest.mark.guarantee("G2", "G4")
def test_what_came_over_a_link_that_broke_goes_back() -> None:
    pair = loaded()
    (first,) = pair.inbox.take(1, pair.now)
    pair.now += LONG_S
    pair.b.handle_time(pair.now)
    pair.break_links()
    pair.now += DISTRUST_S
    pair.b.handle_time(pair.now)
    assert bodies_of(pair) == []
    for _ in range(2):
        pair.carry()
    again = pair.inbox.take(9, pair.now)
    assert [(each.body, each.attempt, each.redelivered) for each in again] == [(n, 1, True) for n in (1, 2, 3)]
    for message in (first, *again):
        message.ack()
    pair.carry()
    assert pair.box.ledger()[:4] == (4, 4, 0, 0)


@pytest.mark.guarantee("G2", "G3")
def test_what_was_on_its_way_meanwhile_is_held_as_well_and_forgotten_with_its_lane() -> None:
    pair = Pair(prefetch=10)
    pair.beat()
    pair.carry()
    pair.box.push_many([b"\x01", b"\x02"], 2)
    pair.turn("a")
    pair.now += LONG_S
    pair.b.handle_time(pair.now)
    pair.turn("b")
    pair.carry()
    assert bodies_of(pair) == [] and pair.inbox.unsettled == 2
    (lane,) = pair.inbox.lanes.values()
    pair.inbox.close_lane(lane)
    assert pair.inbox.unsettled == 0 and bodies_of(pair) == []


@pytest.mark.guarantee("G1")
def test_what_nobody_else_may_have_is_started_after_all() -> None:
    pair = loaded(1)
    pair.a.close("left")
    pair.carry()
    assert pair.inbox.waiting == 1 and pair.box.ledger().accepted == 1
    pair.now += LONG_S
    pair.b.handle_time(pair.now)
    assert bodies_of(pair) == []
    pair.now += DISTRUST_S
    pair.b.handle_time(pair.now)
    assert bodies_of(pair) == [0]


@pytest.mark.guarantee("G4")
def test_a_pull_that_closes_meanwhile_gives_everything_back() -> None:
    pair = loaded()
    pair.now += LONG_S
    pair.b.handle_time(pair.now)
    pair.b.close_pull("q")
    for _ in range(2):
        pair.carry()
    assert pair.box.ledger()[:4] == (4, 0, 0, 4) and pair.box.ledger().ready == 4


def test_a_node_takes_its_own_work_as_before() -> None:
    pair = Pair()
    box = pair.b.open_push("own", pair.box.options)
    inbox = pair.b.open_pull("own", 10)
    pair.beat()
    for _ in range(3):
        for link, parts in pair.b.drain(pair.now).send:
            if not link:
                pair.b.handle_parts(b"\0self", parts, pair.now)
    box.push(b"\x01")
    for _ in range(3):
        for link, parts in pair.b.drain(pair.now).send:
            if not link:
                pair.b.handle_parts(b"\0self", parts, pair.now)
    pair.b.handle_time(pair.now + LONG_S)
    pair.b.drain(pair.now + LONG_S)
    assert [message.body for message in inbox.take(9, pair.now)] == [1]
