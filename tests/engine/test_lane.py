"""Both halves of a lane: numbers, credit, verdicts, and their edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.engine.lane import MAX_IN_FLIGHT, MAX_TEXT, InLane, OutLane, Trial, TrialSeat
from meshmsg.engine.run import Details, Run
from meshmsg.errors import ProtocolError
from meshmsg.wire import frames


def run_of(first_id: int, count: int) -> Run:
    return Run(first_id, [b"%d" % (first_id + index) for index in range(count)], 0.0)


def out_lane(*counts: int) -> OutLane:
    lane = OutLane(1, "peer.1", "peer")
    lane.limit = 1000
    first_id = 0
    for count in counts:
        lane.append(run_of(first_id, count))
        first_id += count
    return lane


def in_lane(received: int = 0, limit: int = 100) -> InLane:
    lane = InLane(1, "0123456789abcdef.7", "peer", "q", lambda lane: None)
    lane.limit = limit
    assert lane.accept(0, received) == 0 if received else True
    return lane


def ids(runs: list[Run]) -> list[int]:
    return [number for run in runs for number in range(run.first_id, run.first_id + len(run))]


# --- the producer's half ------------------------------------------------------------------------------------


@given(edges=st.sets(st.integers(0, 40), max_size=12), counts=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_ranges_settle_together_as_they_do_one_by_one(edges: set[int], counts: list[int]) -> None:
    numbers = sorted(edges)
    ranges = [[start, stop] for start, stop in zip(numbers[::2], numbers[1::2], strict=False)]
    one_by_one, together = out_lane(*counts), out_lane(*counts)
    expected = [run for start, stop in ranges for run in one_by_one.settle(start, stop)]
    settled = together.settle_ranges(ranges)
    assert ids([run for _, run in settled]) == ids(expected)
    assert all(first == run.first_id for first, run in settled)  # in a lane's first life these are the same
    assert [(first, run.bodies) for first, run in together.records] == [
        (first, run.bodies) for first, run in one_by_one.records
    ]
    together.check()


@pytest.mark.guarantee("G11")
def test_many_ranges_cost_one_pass() -> None:
    looks = 0

    class Watched(Run):
        def __len__(self) -> int:
            nonlocal looks
            looks += 1
            return len(self.bodies)

    lane = out_lane()
    for number in range(1000):
        lane.append(Watched(number, [b"x"], 0.0))
    looks = 0
    ranges = [[number, number + 1] for number in range(1, 1000, 2)]
    assert len(lane.settle_ranges(ranges)) == 500
    assert lane.settle_ranges(ranges) == []
    assert looks < 5000


def test_settling_in_the_middle_of_a_run_splits_it() -> None:
    lane = out_lane(10)
    assert ids(lane.settle(3, 5)) == [3, 4]
    assert [(first, len(run)) for first, run in lane.records] == [(0, 3), (5, 5)]
    assert lane.in_flight == 8
    lane.check()


def test_settling_over_several_runs() -> None:
    lane = out_lane(3, 3, 3)
    assert ids(lane.settle(2, 7)) == [2, 3, 4, 5, 6]
    assert lane.floor == 0
    assert ids(lane.settle(0, 9)) == [0, 1, 7, 8]
    assert lane.floor == lane.next_seq == 9
    lane.check()


def test_settling_twice_finds_nothing_the_second_time() -> None:
    lane = out_lane(5)
    lane.settle(1, 3)
    assert lane.settle(1, 3) == []
    assert lane.settle(90, 95) == []
    lane.check()


@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    cuts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=12),
)
def test_every_message_is_settled_once(counts: list[int], cuts: list[tuple[int, int]]) -> None:
    lane = out_lane(*counts)
    settled: list[int] = []
    for start, length in cuts:
        settled += ids(lane.settle(start, start + length))
        lane.check()
    settled += ids(lane.settle(0, lane.next_seq))
    assert sorted(settled) == list(range(sum(counts)))
    assert lane.in_flight == 0


def test_credit_only_grows() -> None:
    lane = OutLane(1, "peer.1", "peer")
    assert lane.grant(5, 0)
    assert not lane.grant(5, 0) and not lane.grant(3, 0)
    assert lane.credit == 5


def test_credit_granted_before_the_last_return_is_void() -> None:
    lane = out_lane(2)
    lane.give_back()
    assert lane.credit == 0 and lane.returns == 1
    assert not lane.grant(50, 0)
    assert lane.grant(50, 1)
    assert lane.credit == 48


def test_no_peer_gets_more_in_flight_than_the_sockets_take() -> None:
    lane = OutLane(1, "peer.1", "peer")
    lane.grant(2**60, 0)
    assert lane.credit == MAX_IN_FLIGHT


def test_suspects_are_counted_over_all_lanes_of_a_peer() -> None:
    trial = Trial()
    lanes = [OutLane(number, "peer.1", "peer", trial) for number in (1, 2)]
    for lane in lanes:
        lane.limit = 9
        details = Details()
        details.losses = 1
        lane.append(Run(0, [b"x"], 0.0, details))
        lane.check()
    assert trial.suspects == 2
    lanes[0].settle(0, 1)
    assert trial.suspects == 1 and lanes[0].suspects == 0 and lanes[1].suspects == 1


# --- the consumer's half ------------------------------------------------------------------------------------


def test_a_repetition_is_passed_over_also_in_part() -> None:
    lane = in_lane(received=5)
    assert lane.accept(0, 5) == 5
    assert lane.accept(3, 4) == 2
    assert lane.received == 7


def test_a_gap_is_told_and_accepts_nothing() -> None:
    lane = in_lane(received=5)
    assert lane.accept(6, 2) == 2
    assert lane.received == 5
    assert lane.state().flags == frames.GAP


def test_a_peer_past_its_credit_breaks_the_protocol() -> None:
    lane = in_lane(limit=3)
    with pytest.raises(ProtocolError, match="limit 3"):
        lane.accept(0, 4)
    assert lane.received == 0


def test_acks_travel_as_floor_and_ranges() -> None:
    lane = in_lane(received=10)
    for seq in (4, 2, 5, 9, 0):
        lane.ack(seq)
    state = lane.state()
    assert (state.floor, state.ranges) == (1, [[2, 3], [4, 6], [9, 10]])
    lane.ack(1)
    assert lane.state().floor == 3
    lane.check()


def test_an_ack_without_anything_done_out_of_order_has_no_ranges() -> None:
    lane = in_lane(received=3)
    lane.ack(0)
    assert lane.state().ranges == []


def test_a_verdict_is_repeated_until_the_producer_knows_it() -> None:
    lane = in_lane(received=3)
    lane.nack(1, 0.5, "no good")
    assert lane.state().verdicts == [[1, frames.NACKED, 0.5, "no good"]]
    lane.heard(1)
    assert lane.state().verdicts != []
    lane.heard(2)
    assert lane.state().verdicts == []


def test_texts_are_cut_so_that_the_frame_stays_small() -> None:
    lane = in_lane(received=5000, limit=5000)
    for seq in range(5000):
        lane.nack(seq, None, "x" * 5000)
    assert len(lane.verdicts[0][2]) == MAX_TEXT
    header = frames.encode(lane.state())[0]
    assert len(header) < frames.MAX_HEADER_BYTES / 2
    decoded = frames.decode([header])
    assert isinstance(decoded, frames.Ack) and len(decoded.verdicts) == 5000


def test_ids_are_made_of_the_node_id_without_its_incarnation() -> None:
    assert in_lane().message_id(7) == "0123456789ab/q/7"
    assert InLane(1, "short.12", "peer", "q", lambda lane: None).message_id(7) == "short/q/7"


def test_what_is_outstanding_is_what_is_held_and_what_may_come() -> None:
    lane = in_lane(received=4, limit=10)
    lane.ack(2)
    assert (lane.unsettled, lane.settled, lane.outstanding) == (3, 1, 9)


def test_one_message_at_a_time_is_on_trial() -> None:
    seat, one, other = TrialSeat(), in_lane(received=3), in_lane(received=3)
    assert seat.take(one, 1)
    assert not seat.take(other, 0)
    one.nack(1, None, "")
    assert seat.take(other, 0)
    other.ack(0)
    assert seat.take(one, 2)
