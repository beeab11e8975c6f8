"""Every accepted message is in one place, and the books agree at every step."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshmsg.engine.lane import OutLane, Trial
from meshmsg.engine.outbox import MAX_FRAME_BYTES, MAX_RUN, Outbox
from meshmsg.engine.run import Details, Run
from meshmsg.engine.sending import cut_frames
from meshmsg.errors import ProtocolError
from meshmsg.options import PushOptions, Retry
from meshmsg.wire import frames

pytestmark = pytest.mark.guarantee("G1", "G3", "G4", "G5")


class Desk:
    """An outbox and what it buried, with a hand for everything around it."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("retry", Retry(3, 1.0, jitter="none"))
        self.buried: list[tuple[Run, str, str]] = []
        self.now = 0.0
        self.box = Outbox(
            "q",
            PushOptions(**options),
            random.Random(1),
            lambda box, run, why, text: self.buried.append((run, why, text)),
        )

    def lane(self, number: int = 1, limit: int = 100, trial: Trial | None = None) -> OutLane:
        lane = OutLane(number, f"peer{number}.1", f"peer{number}", trial)
        lane.limit = limit
        self.box.open_lane(lane)
        return lane

    def push(self, *bodies: str) -> None:
        encoded = [body.encode() for body in bodies]
        self.box.push_many(encoded, sum(map(len, encoded)))

    def detailed(self, body: str = "x", **details: Any) -> int:
        return self.box.push_detailed(body.encode(), Details(**details), self.now)

    def dispatch(self) -> dict[int, list[int]]:
        """What goes to which lane now, as the engine does it."""
        self.box.absorb(self.now)
        sent: dict[int, list[int]] = {}
        for lane, runs in self.box.dispatch(self.now):
            for run in runs:
                sent.setdefault(lane.number, []).extend(range(run.first_id, run.first_id + len(run)))
                lane.append(run)
        self.box.check()
        return sent

    def ack(self, lane: OutLane, *verdicts: list[Any], floor: int = 0, ranges: Any = (), received: int = 0) -> None:
        state = frames.Ack(lane.number, received, 0, 0, floor, [list(each) for each in ranges], list(verdicts), 0)
        self.box.on_ack(lane, state, self.now)
        self.box.check()

    def tick(self, now: float) -> None:
        self.now = now
        self.box.tick(now)
        self.box.check()

    @property
    def reasons(self) -> dict[int, str]:
        return {run.first_id: reason for run, reason, _ in self.buried}


NACK, REJECT, EXPIRED, RETURNED = frames.NACKED, frames.REJECTED, frames.EXPIRED, frames.RETURNED


# --- accepting ----------------------------------------------------------------------------------------------


def test_numbers_go_on_over_both_ways_to_send() -> None:
    desk = Desk()
    assert [desk.box.push(b"a"), desk.box.push(b"b")] == [0, 1]
    assert desk.detailed() == 2
    assert desk.box.push_many([b"c", b"d"], 2) == 3
    assert desk.box.ledger().accepted == 5
    desk.box.check()


def test_room_counts_messages_and_bytes() -> None:
    desk = Desk(max_pending=3, max_pending_bytes=10)
    desk.push("1234")
    assert desk.box.fits(6) and not desk.box.fits(7)
    desk.push("1", "2")
    assert not desk.box.fits(1)
    lane = desk.lane()
    desk.dispatch()
    desk.ack(lane, floor=1)
    assert desk.box.fits(8) and not desk.box.fits(9)


def test_dropping_the_oldest_takes_the_lowest_priority_first_and_nothing_in_flight() -> None:
    desk = Desk(max_pending=4, overflow="drop_oldest")
    lane = desk.lane(limit=1)
    desk.push("0")
    desk.dispatch()
    desk.detailed(priority=5)
    desk.push("2", "3")
    assert not desk.box.fits(1)
    desk.box.drop_for(1, desk.now)
    desk.box.check()
    assert desk.reasons == {2: "overflow"}
    lane.limit = 9
    assert desk.dispatch() == {1: [1, 3]}


def test_an_outbox_has_few_attributes() -> None:
    """CPython finds those of an object with more than 30 a little slower, and ``send`` reads six of them."""
    assert len(vars(Desk().box)) <= 30


def test_a_long_backlog_is_cut_into_runs() -> None:
    desk = Desk(max_pending=10_000)
    desk.push(*map(str, range(2 * MAX_RUN + 1)))
    lane = desk.lane(limit=10_000)
    assert len(desk.dispatch()[1]) == 2 * MAX_RUN + 1
    assert [len(run) for _, run in lane.records] == [MAX_RUN, MAX_RUN, 1]


# --- dispatch -----------------------------------------------------------------------------------------------


def test_credit_is_never_overdrawn_with_suspects_and_fresh_work_together() -> None:
    desk = Desk()
    lost = desk.lane(1)
    desk.push("a", "b", "c")
    desk.dispatch()
    desk.box.close_lane(lost.number, "crashed", desk.now)
    desk.push("d", "e", "f")
    lane = desk.lane(2, limit=4)
    assert desk.dispatch() == {2: [0, 1, 2]}  # suspects first, and no fresh work beside them
    assert lane.credit == 1
    desk.ack(lane, floor=3)
    assert desk.dispatch() == {2: [3]}


def test_higher_priorities_go_first_and_one_priority_in_order() -> None:
    desk = Desk()
    desk.push("0", "1")
    desk.detailed(priority=2)
    desk.detailed(priority=9)
    desk.push("4")
    desk.detailed(priority=2)
    desk.lane()
    assert desk.dispatch()[1] == [3, 2, 5, 0, 1, 4]


def test_a_closed_lane_gets_nothing() -> None:
    desk = Desk()
    desk.lane().open = False
    desk.push("a")
    assert desk.dispatch() == {}


# --- verdicts -----------------------------------------------------------------------------------------------


def test_a_nack_in_the_middle_of_a_batch_waits_its_backoff() -> None:
    desk = Desk()
    lane = desk.lane()
    desk.push("a", "b", "c")
    desk.dispatch()
    desk.ack(lane, [1, NACK, None, "no"], floor=3)
    assert desk.box.processed == 2 and desk.box.ledger().scheduled == 1
    desk.tick(0.99)
    assert desk.dispatch() == {}
    desk.tick(1.0)
    assert desk.dispatch() == {1: [1]}
    assert desk.box.redelivered == 1


def test_the_consumers_own_delay_goes_before_the_backoff() -> None:
    desk = Desk()
    lane = desk.lane()
    desk.push("a")
    desk.dispatch()
    desk.ack(lane, [0, NACK, 7.0, "later"], floor=1)
    assert desk.box.wake_at() == 7.0


def test_a_verdict_heard_twice_counts_once() -> None:
    desk = Desk()
    lane = desk.lane()
    desk.push("a", "b")
    desk.dispatch()
    for _ in range(3):
        desk.ack(lane, [0, NACK, None, "no"], [1, REJECT, None, "never"], floor=2)
    assert desk.box.redelivered == 1 and desk.box.dead == 1


def test_the_last_attempt_ends_as_a_dead_letter_with_every_attempt() -> None:
    desk = Desk(retry=Retry(2, 0.0))
    lane = desk.lane()
    desk.push("a")
    for seq in (0, 1):
        assert desk.dispatch() == {1: [0]}
        desk.ack(lane, [seq, NACK, None, f"no {seq}"], floor=seq + 1)
        desk.tick(desk.now)
    assert desk.reasons == {0: "attempts"}
    history = desk.buried[0][0].require_details().history
    assert [(each.consumer, each.verdict, each.error) for each in history] == [
        ("peer1", "nacked", "no 0"),
        ("peer1", "nacked", "no 1"),
    ]


def test_returned_unstarted_costs_no_attempt_and_keeps_its_place() -> None:
    desk = Desk(retry=Retry(1))
    lane = desk.lane(limit=3)
    desk.push("a", "b", "c", "d")
    desk.dispatch()
    desk.ack(lane, [1, RETURNED, None, ""], [2, RETURNED, None, ""], floor=3)
    assert desk.box.processed == 1 and not desk.buried
    lane.limit = 9
    assert desk.dispatch() == {1: [1, 2, 3]}


def test_returned_with_a_delay_waits_so_long() -> None:
    desk = Desk()
    lane = desk.lane()
    desk.detailed(key="k")
    desk.dispatch()
    desk.ack(lane, [0, RETURNED, 0.25, "on trial"], floor=1)
    assert desk.dispatch() == {}
    desk.tick(0.25)
    assert desk.dispatch() == {1: [0]}


def test_an_ack_of_what_was_never_sent_breaks_the_protocol() -> None:
    desk = Desk()
    lane = desk.lane()
    desk.push("a")
    desk.dispatch()
    with pytest.raises(ProtocolError):
        desk.ack(lane, floor=2)
    with pytest.raises(ProtocolError):
        desk.ack(lane, received=2)
    desk.ack(lane, [5, NACK, None, "what"], ranges=[[1, 2**60]])
    assert desk.box.pending == 1


# --- losses -------------------------------------------------------------------------------------------------


def test_a_lost_consumer_costs_an_attempt_and_the_first_time_no_delay() -> None:
    desk = Desk()
    lane = desk.lane()
    desk.push("a", "b")
    desk.dispatch()
    desk.box.close_lane(lane.number, "crashed", desk.now)
    desk.lane(2)
    assert desk.dispatch() == {2: [0, 1]}
    assert desk.box.redelivered == 2


def test_suspects_go_in_windows_and_alone_after_two_losses() -> None:
    desk = Desk(retry=Retry(5, 0.0))
    desk.push(*map(str, range(40)))
    desk.lane(1)
    desk.dispatch()
    desk.box.close_lane(1, "crashed", desk.now)
    lane = desk.lane(2)
    assert len(desk.dispatch()[2]) == 16
    desk.box.close_lane(lane.number, "crashed", desk.now)
    desk.tick(desk.now)
    lane = desk.lane(3)
    first = desk.dispatch()[3]
    assert len(first) == 16  # those that were lost once still go together
    desk.ack(lane, floor=16)
    assert len(desk.dispatch()[3]) == 8
    desk.ack(lane, floor=24)
    alone = desk.dispatch()[3]
    assert len(alone) == 1
    details = [run.details.on_wire(0.0) for _, run in lane.records if run.details]
    assert details == [{"a": 3, "r": True, "s": True}]


def test_a_consumer_with_suspects_of_one_queue_gets_nothing_of_another() -> None:
    trial = Trial()
    one, other = Desk(), Desk()
    for desk in (one, other):
        desk.lane(1)
        desk.push("a")
        desk.dispatch()
        desk.box.close_lane(1, "crashed", desk.now)
        desk.lane(2, trial=trial)
    one.box._suspects[0].require_details().losses = 2
    other.box._suspects[0].require_details().losses = 2
    assert one.dispatch() == {2: [0]}
    assert other.dispatch() == {}
    one.ack(one.box.lanes[2], floor=1)
    assert other.dispatch() == {2: [0]}


def test_a_nack_clears_a_suspect() -> None:
    desk = Desk(retry=Retry(5, 0.0))
    desk.push("a")
    desk.lane(1)
    desk.dispatch()
    desk.box.close_lane(1, "crashed", desk.now)
    lane = desk.lane(2)
    desk.dispatch()
    assert lane.suspects == 1
    desk.ack(lane, [0, NACK, None, "alive to say so"], floor=1)
    desk.tick(desk.now)
    desk.dispatch()
    assert lane.suspects == 0 and lane.in_flight == 1


def test_a_goodbye_charges_only_what_the_consumer_had_received() -> None:
    desk = Desk(retry=Retry(1))
    lane = desk.lane()
    desk.push("a", "b", "c")
    desk.dispatch()
    desk.ack(lane, received=1)
    desk.box.close_lane(lane.number, "left", desk.now, said_all=True)
    desk.box.check()
    assert desk.reasons == {0: "attempts"}
    desk.lane(2)
    assert desk.dispatch() == {2: [1, 2]}


# --- time ---------------------------------------------------------------------------------------------------


def test_a_processed_message_does_not_expire_later() -> None:
    desk = Desk()
    lane = desk.lane()
    desk.detailed(expires_at=5.0)
    desk.dispatch()
    desk.ack(lane, floor=1)
    desk.tick(6.0)
    assert desk.box.processed == 1 and not desk.buried


def test_in_flight_a_message_does_not_expire_but_when_it_comes_back_late() -> None:
    desk = Desk()
    lane = desk.lane()
    for _ in range(3):
        desk.detailed(expires_at=5.0)
    desk.dispatch()
    desk.tick(6.0)
    assert not desk.buried
    desk.ack(lane, [0, NACK, None, "no"], [1, RETURNED, None, ""], [2, EXPIRED, None, "late"], floor=3)
    assert desk.reasons == {0: "expired", 1: "expired", 2: "expired"}


def test_a_queues_ttl_holds_for_plain_messages() -> None:
    desk = Desk(ttl=2.0)
    desk.push("a", "b")
    desk.box.absorb(0.0)
    assert desk.box.wake_at() == 2.0
    desk.tick(2.0)
    assert desk.reasons == {0: "expired", 1: "expired"}


def test_expired_messages_in_a_queue_are_passed_over() -> None:
    desk = Desk()
    desk.detailed(expires_at=1.0)
    desk.push("b")
    desk.tick(1.0)
    desk.lane(limit=5)
    assert desk.dispatch() == {1: [1]}
    assert desk.box.waiting == 0


def test_delayed_messages_wait_outside_of_the_ready_ones() -> None:
    desk = Desk()
    desk.detailed(due_at=3.0)
    desk.push("b")
    desk.lane()
    assert desk.dispatch() == {1: [1]}
    assert desk.box.ledger().scheduled == 1 and desk.box.wake_at() == 3.0
    desk.tick(3.0)
    assert desk.dispatch() == {1: [0]}


def test_unroutable_after_a_time_without_consumers() -> None:
    desk = Desk(unroutable_after=2.0)
    desk.push("a")
    desk.detailed(key="k", priority=3)
    desk.detailed(key="k", priority=7)  # becomes ready, in a line of its own, while the others are buried
    desk.box.absorb(0.0)
    assert desk.box.wake_at() == 2.0
    desk.tick(1.9)
    assert not desk.buried
    desk.tick(2.0)
    desk.tick(2.0)
    assert desk.reasons == {0: "unroutable", 1: "unroutable", 2: "unroutable"}


def test_suspects_are_unroutable_too_and_patience_starts_when_the_last_consumer_left() -> None:
    desk = Desk(unroutable_after=2.0)
    desk.push("a")
    desk.lane()
    desk.dispatch()
    desk.now = 10.0
    desk.box.close_lane(1, "crashed", 10.0)
    assert desk.box.wake_at() == 12.0
    desk.tick(12.0)
    assert desk.reasons == {0: "unroutable"}


# --- keys ---------------------------------------------------------------------------------------------------


def test_one_message_of_a_key_is_under_way_at_a_time() -> None:
    desk = Desk()
    lane = desk.lane()
    for key in ("x", "x", "y", "x"):
        desk.detailed(key=key)
    assert desk.dispatch() == {1: [0, 2]}
    desk.ack(lane, floor=2)
    assert desk.dispatch() == {1: [1]}
    desk.ack(lane, [2, NACK, None, "no"], floor=3)
    assert desk.dispatch() == {}  # the next of the key waits for the retry
    desk.tick(1.0)
    assert desk.dispatch() == {1: [1]}
    desk.ack(lane, [3, REJECT, None, "never"], floor=4)
    assert desk.dispatch() == {1: [3]}
    desk.ack(lane, floor=5)
    assert desk.box.pending == 0 and not desk.box._aside.keys.lines


def test_the_next_of_a_key_goes_when_the_one_before_expires() -> None:
    desk = Desk()
    desk.detailed(key="x", expires_at=1.0)
    desk.detailed(key="x", expires_at=1.0)
    desk.detailed(key="x")
    desk.tick(1.0)
    desk.lane()
    assert desk.dispatch() == {1: [2]}


# --- redrive ------------------------------------------------------------------------------------------------


def test_a_redrive_is_a_new_life_under_the_old_id() -> None:
    desk = Desk(retry=Retry(1))
    lane = desk.lane()
    desk.push("a")
    desk.dispatch()
    desk.ack(lane, [0, NACK, None, "no"], floor=1)
    desk.box.revive(desk.buried[0][0], desk.now)
    desk.box.check()
    assert desk.box.ledger().pending == 1 and desk.box.dead == 0
    assert desk.dispatch() == {1: [0]}
    details = lane.records[0][1].require_details()
    assert details.attempts == 0 and details.redelivered and len(details.history) == 1


@pytest.mark.parametrize("how", ["in the queue", "in the schedule", "in the line of its key"])
def test_what_died_while_it_waited_comes_back_once(how: str) -> None:
    desk = Desk()
    if how == "in the line of its key":
        desk.detailed(key="k")
    number = desk.detailed(key="k", expires_at=1.0, due_at=5.0 if how == "in the schedule" else None)
    desk.tick(1.0)
    assert desk.reasons == {number: "expired"}
    desk.box.revive(desk.buried[0][0], desk.now)
    desk.tick(6.0)
    lane = desk.lane()
    sent = desk.dispatch()[1]
    if how == "in the line of its key":
        desk.ack(lane, floor=1)
        sent += desk.dispatch()[1]
    assert sent.count(number) == 1
    desk.ack(lane, floor=len(sent))
    assert desk.box.pending == 0


def test_what_was_never_sent_is_not_redelivered_after_a_redrive() -> None:
    desk = Desk()
    desk.detailed(expires_at=1.0)
    desk.tick(1.0)
    desk.box.revive(desk.buried[0][0], desk.now)
    lane = desk.lane()
    desk.dispatch()
    assert lane.records[0][1].require_details().redelivered is False


# --- watching and frames ------------------------------------------------------------------------------------


def test_watched_messages_are_told_when_they_are_processed() -> None:
    desk = Desk()
    lane = desk.lane()
    desk.push("a", "b", "c")
    desk.box.watched |= {0, 2}
    desk.dispatch()
    desk.ack(lane, floor=2)
    assert desk.box.outcomes == [0] and desk.box.watched == {2}


def sizes(*lengths: int) -> list[list[int]]:
    runs, number = [], 0
    for length in lengths:
        runs.append(Run(number, [b"x" * 1000] * length, 0.0))
        number += length
    return [[run.first_id for run in frame for _ in run.bodies] for frame in cut_frames(runs)]


def test_frames_are_bounded_and_complete() -> None:
    cut = sizes(500, 3, 200)
    assert all(len(frame) * 1000 <= MAX_FRAME_BYTES for frame in cut)
    assert sum(map(len, cut)) == 703
    assert [number for frame in cut for number in frame] == sorted(number for frame in cut for number in frame)


def test_a_large_body_travels_alone() -> None:
    runs = [Run(0, [b"a"], 0.0), Run(1, [b"b" * (2 * MAX_FRAME_BYTES)], 0.0), Run(2, [b"c"], 0.0)]
    assert [[run.first_id for run in frame] for frame in cut_frames(runs)] == [[0], [1], [2]]


def test_headers_count_when_frames_are_cut() -> None:
    headers = {"blob": b"x" * (MAX_FRAME_BYTES // 2)}
    runs = [Run(number, [b"a"], 0.0, Details(headers=headers)) for number in range(4)]
    assert len(list(cut_frames(runs))) == 4
