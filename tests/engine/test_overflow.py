"""Room in an outbox: what is dropped for what, who counts, and what is left in memory of it (G5)."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmsg.engine.outbox import MAX_SETTLED, SMALL, Outbox
from meshmsg.engine.run import Details
from meshmsg.options import PushOptions, Retry
from meshmsg.wire import frames
from tests.engine.test_outbox import Desk

pytestmark = pytest.mark.guarantee("G1", "G3", "G5")


def drop(desk: Desk, size: int = 1) -> bool:
    made_room = desk.box.drop_for(size, desk.now)
    desk.box.check()
    return made_room


# --- what is dropped ----------------------------------------------------------------------------------------


def test_the_oldest_goes_wherever_it_waits() -> None:
    desk = Desk(max_pending=6, overflow="drop_oldest")
    lane = desk.lane(limit=2)
    desk.push("tried", "with a consumer")
    desk.dispatch()
    desk.ack(lane, [0, frames.NACKED, 60.0, "no"])
    desk.detailed(due_at=60.0)
    desk.detailed(key="x", due_at=60.0)
    desk.detailed(key="x")
    desk.push("ready")
    for number in (0, 2, 3, 4, 5):
        assert drop(desk)
        assert list(desk.reasons) == [*sorted(set(desk.reasons) - {number}), number]
        desk.push("another")
    assert drop(desk) and list(desk.reasons)[-1] == 6
    assert set(desk.reasons.values()) == {"overflow"} and lane.in_flight == 1


def test_the_least_urgent_goes_before_the_oldest() -> None:
    desk = Desk(max_pending=4, overflow="drop_oldest")
    for priority in (5, 1, 5, 3):
        desk.detailed(priority=priority, due_at=60.0 if priority == 1 else None)
    for number in (1, 3, 0, 2):
        assert drop(desk) and list(desk.reasons)[-1] == number
        desk.detailed(priority=9)


def test_a_dropped_message_hands_its_key_on() -> None:
    desk = Desk(max_pending=2, overflow="drop_oldest")
    desk.detailed(key="x", due_at=60.0)
    desk.detailed(key="x")
    assert drop(desk) and desk.reasons == {0: "overflow"}
    lane = desk.lane()
    assert desk.dispatch() == {1: [1]}
    desk.detailed(key="x")
    assert drop(desk) and list(desk.reasons) == [0, 2]
    desk.ack(lane, floor=1)
    assert desk.box.pending == 0 and not desk.box._aside.keys.lines


def test_one_that_became_ready_in_the_meantime_is_dropped_once() -> None:
    desk = Desk(max_pending=3, overflow="drop_oldest")
    desk.detailed(due_at=1.0)
    desk.detailed(due_at=1.0)
    desk.push("a")
    assert drop(desk) and desk.reasons == {0: "overflow"}
    desk.push("b")
    desk.tick(1.0)
    assert drop(desk) and list(desk.reasons) == [0, 1]
    desk.lane()
    assert desk.dispatch() == {1: [2, 3]}


def test_where_nothing_can_be_dropped_the_new_one_is() -> None:
    desk = Desk(max_pending=2, overflow="drop_oldest")
    lane = desk.lane()
    desk.push("a", "b")
    desk.dispatch()
    assert not drop(desk)
    assert desk.box.turn_away(b"c", None, desk.now) == 2
    assert desk.box.turn_away(b"d", Details(key="x", expires_at=9.0, due_at=5.0), desk.now) == 3
    desk.box.check()
    assert desk.reasons == {2: "overflow", 3: "overflow"} and {2, 3} <= desk.box.watched
    assert desk.box.ledger().balanced and desk.box.pending == 2 and not desk.box._aside.keys.lines
    desk.ack(lane, floor=2)
    assert desk.detailed(key="x") == 4
    desk.tick(60.0)
    assert desk.dispatch() == {1: [4]}


def test_nothing_is_dropped_in_vain_for_a_large_body() -> None:
    desk = Desk(max_pending_bytes=10, overflow="drop_oldest")
    desk.lane(limit=1)
    desk.push("123456")
    desk.dispatch()
    desk.push("1", "2")
    assert not drop(desk, 5) and not desk.reasons
    assert drop(desk, 4) and list(desk.reasons) == [1, 2]


@pytest.mark.parametrize("where", ["schedule", "line", "ready"])
def test_what_was_dropped_is_forgotten(where: str) -> None:
    desk = Desk(max_pending=5, overflow="drop_oldest")
    lane = desk.lane(limit=1)
    desk.detailed(key="x")
    desk.dispatch()
    urgent = desk.detailed(priority=9) if where == "ready" else None
    for _ in range(20 * MAX_SETTLED):
        assert desk.box.fits(1) or desk.box.drop_for(1, desk.now)
        if where == "schedule":
            desk.detailed(due_at=3600.0, expires_at=3600.0)
        elif where == "line":
            desk.detailed(key="x")
        else:
            desk.detailed(priority=9, expires_at=desk.now + 1.0)
            desk.tick(desk.now + 1.0)
    box = desk.box
    lines: list[Any] = [
        box._aside.scheduled,
        box._aside.expiring,
        [*box._aside.keys],
        *box._ready.values(),
        box._aside._by_priority or (),
    ]
    assert sum(map(len, lines)) < 4 * MAX_SETTLED and box.waiting <= 2 * MAX_SETTLED
    assert urgent not in desk.reasons and lane.in_flight == 1


def test_what_is_tried_again_and_again_is_listed_a_few_times_only() -> None:
    desk = Desk(max_pending=1, overflow="drop_oldest", retry=Retry(100_000, 1.0))
    lane = desk.lane(limit=10_000)
    desk.detailed(due_at=60.0)
    assert drop(desk)
    desk.push("a")
    for seq in range(10 * MAX_SETTLED):
        desk.dispatch()
        desk.ack(lane, [seq, frames.NACKED, 1.0, "no"], floor=seq + 1)
        assert len(desk.box._aside._by_priority or ()) <= 2 * MAX_SETTLED
        desk.tick(desk.now + 1.0)


# --- who counts room down -----------------------------------------------------------------------------------


def take_room(desk: Desk, how: str, size: int) -> None:
    if how == "push":
        desk.box.push(b"x" * size)
    elif how == "detailed":
        desk.box.push_detailed(b"x" * size, Details(), desk.now)
    elif how == "revive":
        desk.box.turn_away(b"x" * size, None, desk.now)
        desk.box.revive(desk.buried.pop()[0], desk.now)
    else:
        pending, size_pending = desk.box.options.max_pending - 1, desk.box.options.max_pending_bytes - size
        desk.box.adopt(PushOptions(max_pending=pending, max_pending_bytes=size_pending))


@pytest.mark.parametrize("how", ["push", "detailed", "revive", "adopt"])
@pytest.mark.parametrize("size", [1, SMALL, SMALL + 1, 7 * SMALL])
def test_whoever_takes_room_shortens_the_burst(how: str, size: int) -> None:
    desk = Desk(max_pending=20, max_pending_bytes=20 * SMALL)
    desk.box.burst = 20
    for _ in range(2):
        take_room(desk, how, size)
        assert 0 <= desk.box.burst <= desk.box.room and desk.box.burst * SMALL <= desk.box.room_bytes


# --- keys and delays ----------------------------------------------------------------------------------------


def test_a_delayed_message_holds_its_key_from_the_start() -> None:
    desk = Desk()
    lane = desk.lane()
    desk.detailed(key="x", due_at=3.0)
    desk.detailed(key="x")
    desk.detailed(key="x", due_at=2.0)
    desk.detailed(key="x", due_at=9.0)
    desk.detailed(key="y")
    assert desk.dispatch() == {1: [4]}
    desk.tick(2.0)
    assert desk.dispatch() == {}
    desk.tick(3.0)
    assert desk.dispatch() == {1: [0]}
    desk.ack(lane, floor=2)
    assert desk.dispatch() == {1: [1]}
    desk.ack(lane, floor=3)
    assert desk.dispatch() == {1: [2]}  # it was due long ago
    desk.ack(lane, floor=4)
    assert desk.dispatch() == {} and desk.box.wake_at() == 9.0
    desk.tick(9.0)
    assert desk.dispatch() == {1: [3]}


def test_a_delayed_message_that_expires_hands_its_key_on() -> None:
    desk = Desk()
    desk.detailed(key="x", due_at=5.0, expires_at=1.0)
    desk.detailed(key="x", due_at=2.0)
    desk.tick(1.0)
    assert desk.reasons == {0: "expired"} and desk.box.wake_at() == 2.0
    desk.lane()
    assert desk.dispatch() == {}
    desk.tick(2.0)
    assert desk.dispatch() == {1: [1]}


# --- anything at all ----------------------------------------------------------------------------------------


class Counter(Desk):
    """A desk that knows what is under way, and holds the outbox to its promises after every step."""

    def __init__(self, max_pending: int, max_bytes: int) -> None:
        super().__init__(
            max_pending=max_pending,
            max_pending_bytes=max_bytes,
            overflow="drop_oldest",
            retry=Retry(3, 1.0, jitter="none"),
        )
        self.keys: dict[int, str] = {}
        self.number = 1
        self.lane(1, limit=0)

    def send(self, size: int, details: dict[str, Any] | None) -> None:
        body = b"x" * size
        accept = self.box.fits(size) or self.box.drop_for(size, self.now)
        if details is None:
            number = self.box.push(body) if accept else self.box.turn_away(body, None, self.now)
        else:
            chosen = Details(**details)
            put = self.box.push_detailed if accept else self.box.turn_away
            number = put(body, chosen, self.now)
            if chosen.key is not None and accept:
                self.keys[number] = chosen.key
        assert number == self.box.ledger().accepted - 1

    def step(self, what: str, amount: int) -> None:
        box, lane = self.box, self.box.lanes[self.number]
        if what == "dispatch":
            lane.limit = lane.next_seq + amount
            self.dispatch()
        elif what == "tick":
            self.tick(self.now + amount / 4)
        elif what == "ack":
            self.ack(lane, floor=min(lane.next_seq, lane.floor + amount))
        elif what == "lose":
            box.close_lane(self.number, "crashed", self.now, said_all=amount > 2)
            self.number += 1
            self.lane(self.number, limit=0)
        elif what == "redrive":
            if self.buried and box.fits(len(self.buried[-1][0].bodies[0])):
                self.keys.pop(self.buried[-1][0].first_id, None)
                box.revive(self.buried.pop()[0], self.now)
        elif lane.in_flight:
            kind = {"nack": frames.NACKED, "reject": frames.REJECTED, "return": frames.RETURNED}[what]
            self.ack(lane, [lane.floor, kind, amount / 4, ""])

    def require_promises(self) -> None:
        box = self.box
        box.check()
        assert box.pending <= box.options.max_pending and box.pending_bytes <= box.options.max_pending_bytes
        under_way = defaultdict(list)
        for lane in box.lanes.values():
            for _, run in lane.records:
                if run.details is not None and run.details.key is not None:
                    under_way[run.details.key].append(run.first_id)
        held = set(box.held_ids())
        for key, numbers in under_way.items():
            assert len(numbers) == 1, f"{numbers} of {key} are under way"
            older = [number for number in held if self.keys.get(number) == key and number < numbers[0]]
            assert not older or numbers[0] not in self.keys, f"{numbers[0]} goes before {older}"


SENDS = st.tuples(
    st.just("send"),
    st.sampled_from([1, 1, 1, 3]),
    st.none()
    | st.fixed_dictionaries(
        {},
        optional={
            "key": st.sampled_from("xy"),
            "priority": st.sampled_from([1, 2]),
            "due_at": st.sampled_from([0.5, 1.0, 5.0]),
            "expires_at": st.sampled_from([1.0, 3.0]),
        },
    ),
)
STEPS = st.tuples(
    st.sampled_from(["dispatch", "dispatch", "ack", "nack", "reject", "return", "tick", "lose", "redrive"]),
    st.integers(0, 5),
    st.none(),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 5), st.integers(4, 12), st.lists(SENDS | SENDS | STEPS, max_size=60))
def test_an_outbox_that_drops_keeps_its_books_and_its_limits(
    max_pending: int, max_bytes: int, steps: list[Any]
) -> None:
    desk = Counter(max_pending, max_bytes)
    for what, amount, details in steps:
        if what == "send":
            late = {name: desk.now + details[name] for name in ("due_at", "expires_at") if name in (details or {})}
            desk.send(amount, None if details is None else {**details, **late})
        else:
            desk.step(what, amount)
        desk.require_promises()
    for _ in range(200):
        desk.step("dispatch", 5)
        desk.step("ack", 5)
        desk.step("tick", 20)
    ledger = desk.box.ledger()
    assert ledger.pending == 0 and ledger.balanced and ledger.dead == len(desk.buried)
    assert not desk.box._aside.keys.lines and desk.box.waiting == 0 and desk.box.pending_bytes == 0


def test_an_outbox_of_its_own_as_dead_letter_queue_ends() -> None:
    """What is dropped comes back as a dead letter that is not moved again: no endless circle."""
    made: list[int] = []

    def bury(box: Outbox, run: Any, reason: str, text: str) -> None:
        if run.require_details().headers is None and box.fits(1):
            made.append(box.push_detailed(run.bodies[0], Details(headers={"moved": 1}), 0.0))

    box = Outbox("q", PushOptions(max_pending=3, overflow="drop_oldest"), random.Random(1), bury)
    for _ in range(10):
        assert box.fits(1) or box.drop_for(1, 0.0)
        box.push(b"x")
        box.check()
        assert box.pending <= 3
    assert made
