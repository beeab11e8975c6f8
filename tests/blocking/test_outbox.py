"""The shared outbox by itself: numbers, room, and what the loop finds."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshmsg.blocking.outbox import NO_ROOM, SharedOutbox
from meshmsg.engine.lane import OutLane
from meshmsg.engine.outbox import SMALL, Outbox
from meshmsg.engine.run import Details, Run
from meshmsg.errors import NodeClosed
from meshmsg.message import Ledger
from meshmsg.options import PushOptions


def make(**options: Any) -> SharedOutbox:
    dead: list[Any] = []
    box = SharedOutbox("work", PushOptions(**options), random.Random(1), lambda *letter: dead.append(letter))
    box.now = lambda: 100.0
    return box


def test_numbers_are_the_ids_that_the_loop_gives() -> None:
    box = make()
    assert [box.put(b"a"), box.put(b"b", Details(key="k")), box.put(b"c")] == [0, 1, 2]
    assert box.put_many([b"d", b"e"]) == range(3, 5)
    assert box.push(b"f") == 5  # from the loop, as for dead letters of other queues
    assert box.put(b"g") == 6
    box.absorb(100.0)
    assert box.put(b"h") == 7
    assert box.push_many([b"i", b"j"], 2) == 8
    assert box.push_detailed(b"k", Details(), 100.0) == 10
    assert box.put(b"l") == 11
    assert box.ledger() == Ledger(accepted=12, pending=12, ready=12)
    box.check()
    assert sorted(box.held_ids()) == list(range(12))


def test_room_counts_what_the_loop_has_not_seen() -> None:
    box = make(max_pending=3)
    assert [box.put(b"a"), box.put(b"b"), box.put(b"c"), box.put(b"d")] == [0, 1, 2, NO_ROOM]
    assert (box.pending, box.room, box.fits(1)) == (3, 0, False)
    assert box.put_many([b"d"]) == range(0)
    box.absorb(100.0)
    assert box.put(b"d") == NO_ROOM


def test_what_the_loop_pushes_takes_room_from_threads() -> None:
    box = make(max_pending=3)
    assert box.put(b"a") == 0
    box.push_detailed(b"b", Details(), 100.0)
    assert [box.put(b"c"), box.put(b"d")] == [2, NO_ROOM]


def test_put_many_takes_what_fits() -> None:
    box = make(max_pending=3)
    assert box.put_many([b"a"] * 5) == range(3)
    box = make(max_pending_bytes=3 * SMALL)
    large = b"x" * (SMALL + 1)
    assert box.put_many([large] * 5) == range(1)
    assert box.put_many([large] * 5) == range(1, 2)
    assert box.put_many([large] * 5) == range(0)
    assert box.put(b"small") == 2
    assert box.pending_bytes <= 3 * SMALL


@pytest.mark.parametrize("size", [1, 10, SMALL, SMALL + 1])
def test_bytes_are_never_exceeded(size: int) -> None:
    box = make(max_pending_bytes=10 * SMALL + 5)
    while box.put(b"x" * size) != NO_ROOM:
        assert box.pending_bytes <= 10 * SMALL + 5
    assert box.room_bytes < size or not box.room
    assert box.pending_bytes <= 10 * SMALL + 5


def test_times_count_from_the_loops_clock() -> None:
    box = make()
    box.put(b"a", Details(expires_at=5.0))
    box.put(b"b", Details(due_at=7.0))
    box.absorb(100.0)
    assert box.wake_at() == 105.0
    box.tick(105.0)
    assert box.ledger() == Ledger(accepted=2, dead=1, pending=1, scheduled=1)


def test_dropping_the_oldest_happens_in_the_loop() -> None:
    box = make(max_pending=3, overflow="drop_oldest")
    assert [box.put(b"%d" % number) for number in range(3)] == [0, 1, 2]
    assert box.put(b"3") == NO_ROOM  # until the loop has caught up
    box.absorb(100.0)
    assert [box.put(b"%d" % number) for number in range(3, 5)] == [3, 4]
    assert box.ledger() == Ledger(accepted=5, dead=2, pending=3, ready=3)
    assert box.put_many([b"x"] * 9) == range(5, 8)
    assert box.ledger() == Ledger(accepted=8, dead=5, pending=3, ready=3)


@pytest.mark.guarantee("G1", "G5")
def test_what_cannot_be_dropped_turns_the_new_ones_away() -> None:
    box = make(max_pending=2, overflow="drop_oldest")
    lane = OutLane(1, "peer.1", "peer")
    lane.limit = 9
    box.open_lane(lane)
    assert box.put_many([b"a", b"b"]) == range(2)
    box.absorb(100.0)
    for _, runs in box.dispatch(100.0):
        for run in runs:
            lane.append(run)
    assert [box.put(b"c"), box.put(b"d", Details(key="k", due_at=5.0)), box.put(b"e")] == [2, 3, NO_ROOM]
    box.absorb(100.0)
    assert box.put(b"e") == 4
    assert box.ledger() == Ledger(accepted=5, dead=3, pending=2, in_flight=2)
    assert box.watched == {2, 3, 4}
    box.check()


@pytest.mark.guarantee("G1")
def test_a_dead_letter_takes_no_number_that_a_thread_was_given() -> None:
    """A queue may be its own ``dead_letter_to``."""

    def move(box: Outbox, run: Run, *_: Any) -> None:
        if run.bodies != [b"moved"] and box.fits(1):
            box.push_detailed(b"moved", Details(), 100.0)

    box = SharedOutbox("work", PushOptions(max_pending=2, overflow="drop_oldest"), random.Random(1), move)
    box.now = lambda: 100.0
    for first in (0, 2):
        assert [box.put(b"a"), box.put(b"b")] == [first, first + 1]
        box.absorb(100.0)
    assert sorted(box.held_ids()) == [2, 3]
    box.check()


def test_a_failure_while_it_takes_in_leaves_it_open() -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    box = SharedOutbox("work", PushOptions(max_pending=2, overflow="drop_oldest"), random.Random(1), fail)
    assert [box.put(b"a"), box.put(b"b")] == [0, 1]
    box.absorb(100.0)
    assert box.put(b"c") == 2
    with pytest.raises(RuntimeError, match="a bug"):
        box.absorb(100.0)
    assert box.fits(1)


def test_a_sealed_outbox_refuses() -> None:
    box = make()
    box.put(b"a")
    box.seal("closed, sorry")
    for use in (lambda: box.put(b"b"), lambda: box.put_many([b"b"])):
        with pytest.raises(NodeClosed, match="sorry"):
            use()
    assert box.ledger().accepted == 1
