"""What an outbox holds, and for whom: bodies that a consumer does not take, memory after messages are settled."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshmsg.engine.lane import OutLane
from meshmsg.engine.outbox import MAX_SETTLED, Outbox
from meshmsg.engine.run import Details, Run
from meshmsg.options import PushOptions, Retry
from meshmsg.wire import frames

pytestmark = pytest.mark.guarantee("G1", "G4", "G11")


class Desk:
    """An outbox whose first consumer takes bodies of up to ten bytes, and the second any."""

    def __init__(self) -> None:
        options = PushOptions(retry=Retry(3, 0.0, jitter="none"))
        self.box = Outbox("q", options, random.Random(1), lambda box, run, why, text: None)
        self.small = self.lane(1, 10)
        self.now = 0.0

    def lane(self, number: int, max_body_bytes: int | None) -> OutLane:
        lane = OutLane(number, f"peer{number}.1", f"peer{number}")
        lane.limit, lane.max_body_bytes = 100, max_body_bytes
        self.box.open_lane(lane)
        return lane

    def push(self, *sizes: int) -> None:
        self.box.push_many([bytes(size) for size in sizes], sum(sizes))

    def dispatch(self) -> dict[int, list[int]]:
        self.box.absorb(self.now)
        sent: dict[int, list[int]] = {}
        for lane, runs in self.box.dispatch(self.now):
            for run in runs:
                sent.setdefault(lane.number, []).extend(range(run.first_id, run.first_id + len(run)))
                lane.append(run)
        self.box.check()
        return sent

    def nack(self, lane: OutLane, seq: int) -> None:
        verdicts = [[seq, frames.NACKED, None, "no"]]
        self.box.on_ack(lane, frames.Ack(lane.number, lane.next_seq, 0, 0, 0, [], verdicts, 0), self.now)


def test_a_body_that_is_too_large_waits_and_holds_up_nobody() -> None:
    desk = Desk()
    desk.push(1, 99, 2, 98, 97, 10, 11)
    assert desk.dispatch() == {1: [0, 2, 5]}
    assert desk.box.waiting == 4
    desk.lane(2, None)
    assert desk.dispatch() == {2: [1, 3, 4, 6]}


def test_who_takes_all_gets_what_the_other_one_could_not_take_of_its_share() -> None:
    desk = Desk()
    desk.lane(2, None)
    desk.push(*[99] * 10)
    assert desk.dispatch() == {2: list(range(10))}
    assert not desk.box.waiting


def test_credit_is_not_exceeded_by_what_was_passed_over() -> None:
    desk = Desk()
    desk.lane(2, None).limit = 3
    desk.push(*[99] * 10)
    assert desk.dispatch() == {2: [0, 1, 2]}
    assert desk.box.waiting == 7


def test_a_message_alone_is_passed_over_too() -> None:
    """As after a nack, with a history of its own."""
    desk = Desk()
    large = desk.lane(2, None)
    desk.push(99)
    assert desk.dispatch() == {2: [0]}
    large.open = False
    desk.nack(large, 0)
    desk.push(1)
    assert desk.dispatch() == {1: [1]}
    large.open = True
    desk.box.dirty = True
    assert desk.dispatch() == {2: [0]}


def test_suspects_are_passed_over_too() -> None:
    desk = Desk()
    large = desk.lane(2, None)
    desk.push(99, 98)
    desk.dispatch()
    desk.box.close_lane(large.number, "crashed", 0.0)
    desk.push(1)
    assert desk.dispatch() == {1: [2]}
    desk.lane(3, None)
    assert desk.dispatch() == {3: [0, 1]}


def test_a_run_counts_what_fits_from_its_beginning() -> None:
    run = Run(0, [bytes(3), bytes(9), bytes(4)], 0.0)
    assert [run.count_fitting(limit) for limit in (2, 3, 8, 9, 100)] == [0, 1, 1, 3, 3]


@pytest.mark.guarantee("G5")
@pytest.mark.parametrize("times", [{"expires_at": 3600.0}, {"due_at": 3600.0, "expires_at": 0.5}])
def test_a_settled_message_is_not_kept_until_it_is_due(times: Any) -> None:
    desk = Desk()
    desk.small.max_body_bytes = None
    for number in range(5000):
        desk.box.push_detailed(b"x", Details(**times), desk.now)
        desk.box.tick(1.0)  # what was to wait for an hour has expired by now
        desk.small.limit = number + 100
        desk.dispatch()
        seq = desk.small.next_seq
        desk.box.on_ack(desk.small, frames.Ack(1, seq, 0, 0, seq, [], [], 0), desk.now)
    assert len(desk.box._aside.expiring) + len(desk.box._aside.scheduled) <= 2 * MAX_SETTLED
    assert desk.box.pending == 0
