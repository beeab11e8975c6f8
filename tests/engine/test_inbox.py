"""One consumer's buffer over several lanes, and how it deals out its credit."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg.engine.inbox import TRIAL_PAUSE_S, Inbox
from meshmsg.engine.lane import InLane, TrialSeat
from meshmsg.errors import ProtocolError
from meshmsg.message import Message
from meshmsg.wire import frames
from meshmsg.wire.codec import decode_batch, make_packer

pytestmark = pytest.mark.guarantee("G2", "G4", "G5")


class Desk:
    """An inbox, and its producers' words to it."""

    def __init__(self, prefetch: int = 10) -> None:
        self.flushes_asked = 0
        self.box = Inbox("q", prefetch, self._changed)
        self.now = 0.0

    def _changed(self, inbox: Inbox) -> None:
        self.flushes_asked += 1

    def open(self, peer: str = "a.1", number: int = 1, want: int = 0) -> InLane:
        lane = self.box.open_lane(number, peer, peer.partition(".")[0])
        assert lane is not None
        lane.want = want
        return lane

    def flush(self) -> dict[tuple[str, int], frames.Ack]:
        acks = {(lane.peer, lane.number): ack for lane, ack in self.box.flush()}
        self.box.check()
        return acks

    def send(self, lane: InLane, count: int, *, first: int | None = None, want: int = 0, details: Any = None) -> None:
        first = lane.received if first is None else first
        bodies = [f"{lane.peer[0]}{first + index}" for index in range(count)]
        runs = [[first, count, details]]
        data = frames.Data(lane.number, first, 0, want, count, runs, b"")
        self.box.accept(lane, data, bodies, self.now)

    def take(self, limit: int = 100) -> list[Message]:
        return self.box.take(limit, self.now).messages


def bodies(messages: list[Message]) -> list[Any]:
    return [message.body for message in messages]


# --- credit -------------------------------------------------------------------------------------------------


def test_one_producer_gets_all_credit_and_more_as_messages_settle() -> None:
    desk = Desk(prefetch=4)
    lane = desk.open()
    assert desk.flush()["a.1", 1].limit == 4
    desk.send(lane, 4)
    assert desk.flush() == {}
    taken = desk.take(3)
    taken[0].ack()
    taken[2].nack()
    ack = desk.flush()["a.1", 1]
    assert (ack.limit, ack.floor, ack.ranges) == (6, 1, [[2, 3]])


def test_credit_never_exceeds_the_prefetch_over_all_lanes() -> None:
    desk = Desk(prefetch=5)
    for number in range(8):
        desk.open(f"{number}.1")
    acks = desk.flush()
    assert sum(ack.limit for ack in acks.values()) == 5
    assert max(ack.limit for ack in acks.values()) == 1


def test_a_hungry_producer_has_the_idle_ones_asked_for_their_credit() -> None:
    desk = Desk(prefetch=1)
    idle, hungry = desk.open("a.1"), desk.open("b.1")
    assert desk.flush()["a.1", 1].limit == 1
    hungry.want = 3
    hungry.mark()
    acks = desk.flush()
    assert acks["a.1", 1].flags == frames.RECALL
    assert acks["b.1", 1].limit == 0
    desk.box.on_lane_state(idle, frames.LaneState(1, "q", 0, 0, 0, 0, 1))
    assert desk.flush()["b.1", 1].limit == 1


def test_an_old_word_of_wanting_does_not_keep_credit_for_ever() -> None:
    desk = Desk(prefetch=1)
    idle = desk.open("a.1", want=1)  # it was so once; what it said later was overtaken
    desk.flush()
    hungry = desk.open("b.1", want=3)
    hungry.mark()
    assert desk.flush()["a.1", 1].flags == frames.RECALL and idle.limit == 1


def test_a_flush_asks_for_no_flush() -> None:
    """Whatever granting marks is in the same answer; otherwise a turn would lead to a turn for ever."""
    desk = Desk(prefetch=1)
    desk.open("a.1")
    hungry = desk.open("b.1", want=3)
    desk.flush()
    hungry.mark()
    asked = desk.flushes_asked
    for _ in range(3):
        desk.flush()
    assert desk.flushes_asked == asked


def test_who_has_its_share_is_not_hungry() -> None:
    desk = Desk(prefetch=2)
    desk.open("a.1")
    busy = desk.open("b.1", want=9)
    desk.flush()
    desk.send(busy, 1, want=8)
    busy.mark()
    assert all(not ack.flags & frames.RECALL for ack in desk.flush().values())


def test_an_idle_producer_is_asked_as_soon_as_it_says_that_it_has_no_more() -> None:
    desk = Desk(prefetch=5)
    first = desk.open("a.1", want=1)
    desk.flush()
    desk.open("b.1", want=1)
    assert desk.flush()["b.1", 1].limit == 0
    desk.send(first, 1, want=0)
    assert desk.flush()["a.1", 1].flags == frames.RECALL


def test_a_return_that_makes_no_sense_is_ignored() -> None:
    desk = Desk(prefetch=5)
    lane = desk.open()
    desk.flush()
    desk.send(lane, 2)
    for limit in (1, 6):
        desk.box.on_lane_state(lane, frames.LaneState(1, "q", 2, 0, 0, limit, 1))
        assert (lane.limit, lane.returns) == (5, 0)
    desk.box.on_lane_state(lane, frames.LaneState(1, "q", 2, 0, 0, 2, 1))
    assert (lane.limit, lane.returns) == (2, 1)


def test_started_messages_of_a_lane_that_is_over_still_count() -> None:
    desk = Desk(prefetch=3)
    lane = desk.open()
    desk.flush()
    desk.send(lane, 3)
    started = desk.take(2)
    desk.box.close_lane(lane)
    assert not desk.box.waiting
    new = desk.open(number=2)
    assert desk.flush()["a.1", 2].limit == 1  # two are still in somebody's hands
    desk.send(new, 1, want=5)
    started[0].ack()
    started[1].nack()
    assert desk.flush()["a.1", 2].limit == 3
    assert list(desk.box.lanes) == [("a.1", 2)]


# --- lanes --------------------------------------------------------------------------------------------------


def test_a_newer_lane_ends_the_older_one_and_what_it_brought() -> None:
    desk = Desk()
    old = desk.open()
    desk.flush()
    desk.send(old, 3)
    new = desk.open(number=2)
    assert not desk.box.waiting and not old.alive
    desk.flush()
    desk.send(new, 1)
    assert bodies(desk.take()) == ["a0"]


def test_an_older_lane_cannot_be_opened_again() -> None:
    desk = Desk()
    desk.open(number=5)
    assert desk.box.open_lane(5, "a.1", "a") is None
    assert desk.box.open_lane(4, "a.1", "a") is None
    assert desk.box.open_lane(1, "a.2", "a") is not None  # another life


def test_work_of_a_producer_that_is_gone_is_still_done() -> None:
    desk = Desk()
    lane = desk.open()
    desk.flush()
    desk.send(lane, 2)
    desk.box.orphan_peer("a.1")
    messages = desk.take()
    assert bodies(messages) == ["a0", "a1"]
    for message in messages:
        message.ack()
    assert desk.flush() == {} and not desk.box.lanes


# --- arrival ------------------------------------------------------------------------------------------------


def test_a_repetition_adds_only_what_is_new() -> None:
    desk = Desk()
    lane = desk.open()
    desk.flush()
    desk.send(lane, 3)
    desk.send(lane, 3, first=0)
    desk.send(lane, 4, first=1)
    assert bodies(desk.take()) == ["a0", "a1", "a2", "a3", "a4"]
    assert lane.received == 5


def test_several_runs_with_a_seen_front() -> None:
    desk = Desk()
    lane = desk.open()
    desk.flush()
    desk.send(lane, 2)
    data = frames.Data(1, 1, 0, 0, 4, [[1, 2, None], [7, 1, {"k": "x"}], [9, 1, None]], b"")
    desk.box.accept(lane, data, ["a1", "a2", "x", "y"], 0.0)
    messages = desk.take()
    assert [(message.id, message.body, message.key) for message in messages] == [
        ("a/q/0", "a0", None),
        ("a/q/1", "a1", None),
        ("a/q/2", "a2", None),
        ("a/q/7", "x", "x"),
        ("a/q/9", "y", None),
    ]


def test_past_the_credit_nothing_is_taken() -> None:
    desk = Desk(prefetch=2)
    lane = desk.open()
    desk.flush()
    with pytest.raises(ProtocolError):
        desk.send(lane, 3)
    assert not desk.box.waiting and lane.received == 0


def test_a_body_that_cannot_be_decoded_costs_its_neighbours_nothing() -> None:
    desk = Desk()
    lane = desk.open()
    desk.flush()
    payload = b"\x93" + make_packer()("one") + b"\xc7\x00\xff" + make_packer()("three")  # a timestamp of no bytes
    desk.box.accept(lane, frames.Data(1, 0, 0, 0, 3, [[0, 3, None]], b""), decode_batch(payload, 3), 0.0)
    assert bodies(desk.take()) == ["one", "three"]
    (verdict,) = desk.flush()["a.1", 1].verdicts
    assert verdict[:2] == [1, frames.REJECTED] and "cannot be decoded" in verdict[3]


def test_a_body_that_does_not_fit_the_consumers_type_is_rejected() -> None:
    desk = Desk()

    def decode(body: Any) -> Any:
        if body == "a1":
            raise TypeError("wants a number")
        return body.upper()

    desk.box.decode = decode
    lane = desk.open()
    desk.flush()
    desk.send(lane, 3)
    assert bodies(desk.take()) == ["A0", "A2"]
    (verdict,) = desk.flush()["a.1", 1].verdicts
    assert "does not fit the type of 'q': wants a number" in verdict[3]


# --- expiry, leaving, trials --------------------------------------------------------------------------------


def test_a_message_that_expired_in_the_buffer_is_not_started() -> None:
    desk = Desk()
    lane = desk.open()
    desk.flush()
    desk.send(lane, 1, details={"x": 5.0})
    desk.send(lane, 1, details={"x": 50.0})
    desk.now = 5.0
    assert bodies(desk.take()) == ["a1"]
    assert desk.flush()["a.1", 1].verdicts[0][:2] == [0, frames.EXPIRED]


def test_leaving_returns_what_was_not_started_and_what_still_comes() -> None:
    desk = Desk()
    lane, other = desk.open(), desk.open("b.1")
    desk.flush()
    desk.send(lane, 3)
    (started,) = desk.take(1)
    desk.box.return_unstarted()
    desk.send(lane, 1)
    acks = desk.flush()
    ack = acks["a.1", 1]
    assert [verdict[:2] for verdict in ack.verdicts] == [[seq, frames.RETURNED] for seq in (1, 2, 3)]
    assert ack.received == 4 and ack.floor == 0
    assert all(each.flags & frames.CLOSING for each in acks.values()) and other.limit == 5
    started.ack()
    assert desk.flush()["a.1", 1].limit == ack.limit  # no new credit


def test_a_second_message_on_trial_goes_back_unstarted() -> None:
    seat = TrialSeat()
    desks = [Desk(), Desk()]
    lanes = []
    for desk in desks:
        desk.box.trial_seat = seat
        lanes.append(desk.open())
        desk.flush()
    desks[0].send(lanes[0], 1, details={"a": 3, "r": True, "s": True})
    desks[1].send(lanes[1], 1, details={"a": 3, "r": True, "s": True})
    (on_trial,) = desks[0].take()
    assert desks[1].take() == []
    assert desks[1].flush()["a.1", 1].verdicts[0][:3] == [0, frames.RETURNED, TRIAL_PAUSE_S]
    on_trial.ack()
    desks[1].send(lanes[1], 1, details={"a": 3, "r": True, "s": True})
    assert bodies(desks[1].take()) == ["a1"]
