"""A queue's inbox: one consumer's buffer over the lanes of all its producers, and the credit they share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from meshmsg.engine.buffer import Buffer
from meshmsg.engine.lane import InLane, TrialSeat
from meshmsg.message import Arrival
from meshmsg.wire import frames
from meshmsg.wire.codec import PartialBatch, Undecodable

TRIAL_PAUSE_S = 0.25  # after this a message that found another one on trial may come again


class Inbox(Buffer):
    """What one consumer received and has not started yet, and what it may still receive (G2, G5)."""

    def __init__(self, queue: str, prefetch: int, changed: Callable[[Inbox], None]) -> None:
        super().__init__()
        self.queue = queue
        self.prefetch = prefetch
        self.lanes: dict[tuple[str, int], InLane] = {}
        self.decode: Callable[[Any], Any] | None = None  # into the consumer's own types; raises to reject
        self.extended: Callable[[InLane, int], None] | None = None
        self.guard: Callable[[], None] | None = None  # of applications' verdicts; raises where there can be none
        self.on_given_up: Callable[[InLane], None] = lambda lane: None  # for who has taken messages out unstarted
        self.on_forgotten: Callable[[InLane], None] = lambda lane: None  # a lane is not among ``lanes`` any more
        self.closing = False
        self.on_recall: Callable[[], None] = lambda: None  # has who has taken messages out unstarted put them back
        self.paused = False
        self._held: deque[Arrival] | None = None  # what must not be started for the moment, while there is such a one
        self.received = 0
        self.dirty = False
        self.trial_seat = TrialSeat()  # the engine gives all inboxes of a process the same
        self._changed = changed
        self._dirty_lanes: list[InLane] = []
        self._grants = 0
        self._starving = False  # some lane wants credit, and others hold it
        self._newest: dict[str, int] = {}  # by producer: numbers are never reused, so an older lane is over

    # -- lanes -----------------------------------------------------------------------------------------------

    def open_lane(self, number: int, peer: str, sender: str) -> InLane | None:
        """A producer starts a stream. An older one of the same producer is over: its messages went elsewhere."""
        if number <= self._newest.get(peer, 0):
            return None
        self._newest[peer] = number
        for lane in [lane for lane in self.lanes.values() if lane.peer == peer and lane.number < number]:
            self.close_lane(lane)
        lane = InLane(number, peer, sender, self.queue, self._lane_changed)
        lane.extended = self.extended
        lane.guard = self.guard
        self.lanes[peer, number] = lane
        lane.mark()
        return lane

    def close_lane(self, lane: InLane) -> None:
        """The producer gave the lane up and will send its messages elsewhere: what has not started must not.

        What has started is still held, and counts against the prefetch until its handler is through (G5).
        """
        lane.alive = False
        lane.limit = lane.received
        self.on_given_up(lane)
        arrivals = self._take_all()
        waiting = self.arrivals if self._held is None else self._held
        for arrival in arrivals:
            if arrival.lane is not lane:
                waiting.append(arrival)
            else:  # settled, as far as this side is concerned; nobody will hear it
                lane.ack_run(arrival.first_seq, arrival.first_seq + len(arrival))
        self._forget_if_settled(lane)
        self._regrant()

    def orphan_peer(self, peer: str) -> None:
        """A producer is gone: what it sent is still processed, since nobody else may have it.

        If it comes back, it is told that its lanes are lost, and opens new ones.
        """
        self._newest.pop(peer, None)
        for lane in [lane for lane in self.lanes.values() if lane.peer == peer]:
            lane.alive = False
            lane.limit = lane.received
            self._forget_if_settled(lane)
        self._regrant()

    def _forget_if_settled(self, lane: InLane) -> None:
        if not lane.unsettled and self.lanes.pop((lane.peer, lane.number), None) is not None:
            self.on_forgotten(lane)

    # -- messages --------------------------------------------------------------------------------------------

    def accept(self, lane: InLane, data: frames.Data, bodies: list[Any], now: float) -> None:
        """Puts an arriving batch into the buffer, without what this lane has brought before (G2)."""
        lane.want = data.want
        if self._starving and not data.want:
            lane.mark()  # it may have credit to give back
        lane.heard(data.floor)
        seen = lane.accept(data.first_seq, data.total)
        if seen == data.total:
            return
        self.received += data.total - seen
        seq, index = data.first_seq, 0
        for first_id, count, details in data.runs:
            skip = min(max(0, seen - index), count)
            if skip < count:
                # One run is the rule; its bodies need no copy.
                part = bodies if count - skip == len(bodies) else bodies[index + skip : index + count]
                if type(bodies) is PartialBatch or self.decode is not None:
                    part = self._convert(lane, seq + skip, part)
                self._buffer_run(lane, seq + skip, first_id + skip, part, details, now)
            seq += count
            index += count
        if self.closing:
            self.return_unstarted()
        elif self.paused:
            self._give_back("every handler of this consumer hangs")
        elif self._held is not None:
            self._held = self._take_all()

    def _buffer_run(
        self, lane: InLane, seq: int, number: int, bodies: list[Any], details: dict[str, Any] | None, now: float
    ) -> None:
        if details and details.get("s") and not self.trial_seat.take(lane, seq):
            lane.judge(seq, frames.RETURNED, TRIAL_PAUSE_S, "another message is on trial here")
            return
        expires_at = now + details["x"] if details and details.get("x") is not None else None
        arrival = Arrival(lane, seq, number, bodies, details, expires_at)
        if type(bodies) is PartialBatch:
            self.arrivals.extend(_readable_parts(arrival))
        else:
            self.arrivals.append(arrival)

    def _convert(self, lane: InLane, seq: int, bodies: list[Any]) -> PartialBatch:
        """Bodies in the consumer's own type; those that don't fit are rejected on the spot."""
        converted = PartialBatch(bodies)
        for index, body in enumerate(converted):
            if type(body) is Undecodable:
                lane.reject(seq + index, f"the body cannot be decoded: {body.error}")
            elif self.decode is not None:
                try:
                    converted[index] = self.decode(body)
                except Exception as error:
                    lane.reject(seq + index, f"the body does not fit the type of {self.queue!r}: {error}")
                    converted[index] = Undecodable(str(error))
        return converted

    def watch_extensions(self, extended: Callable[[InLane, int], None]) -> None:
        """Has ``extended`` called for each ``message.extend()``."""
        self.extended = extended
        for lane in self.lanes.values():
            lane.extended = extended

    @property
    def has_room(self) -> bool:
        """Whether producers have credit left, so that more can come before anything is settled."""
        return any(lane.alive and lane.limit > lane.received for lane in self.lanes.values())

    def return_unstarted(self) -> None:
        """Gives everything in the buffer back; it costs no attempt (G4)."""
        self.closing = True
        for each in self.lanes.values():
            each.mark()  # what a goodbye follows must say how much was received
        self._give_back("the consumer left")

    def pause(self, paused: bool) -> None:
        """Takes no more while nobody can start it; what waits goes to other consumers, at no attempt (G4)."""
        self.paused = paused
        if paused:
            self._give_back("every handler of this consumer hangs")
        else:
            self._regrant()

    def hold(self) -> None:
        """Lets nobody start anything until ``release``."""
        self.on_recall()
        self._held = self._take_all()

    def release(self, trusts: Callable[[InLane], bool]) -> bool:
        """After ``hold``: what came on a lane that is not trusted goes back, at no attempt (G4). Was anything held?"""
        if self._held is None:
            return False
        arrivals, self._held = self._take_all(), None
        for arrival in arrivals:
            lane = arrival.lane
            assert isinstance(lane, InLane)
            if trusts(lane):
                self.arrivals.append(arrival)
            else:
                self._return(arrival, "this consumer stood still")
        return bool(arrivals)

    def _take_all(self) -> deque[Arrival]:
        """Everything that waits or is held."""
        arrivals = self.take_back()
        if self._held:
            arrivals, self._held = self._held + arrivals, deque()
        return arrivals

    def _give_back(self, why: str) -> None:
        for arrival in self._take_all():
            self._return(arrival, why)

    @staticmethod
    def _return(arrival: Arrival, why: str) -> None:
        lane = arrival.lane
        assert isinstance(lane, InLane)
        for seq in range(arrival.first_seq, arrival.first_seq + len(arrival)):
            lane.judge(seq, frames.RETURNED, None, why)

    # -- credit ----------------------------------------------------------------------------------------------

    @property
    def unsettled(self) -> int:
        """Messages held, started or not."""
        return sum(lane.unsettled for lane in self.lanes.values())

    def on_lane_state(self, lane: InLane, state: frames.LaneState) -> None:
        """Takes a producer's view: its backlog, its end of the stream, credit that it gave back."""
        lane.heard(state.floor)
        if state.returns > lane.returns and lane.received <= state.limit <= lane.limit:
            lane.returns = state.returns
            lane.limit = state.limit
            lane.flags &= ~frames.RECALL
            self._regrant()
        if state.next_seq > lane.received:
            lane.flags |= frames.GAP
        lane.want = state.want
        lane.mark()

    def flush(self) -> list[tuple[InLane, frames.Ack]]:
        """The state of every lane that has news, with fresh credit in it."""
        dirty, self._dirty_lanes = self._dirty_lanes, []
        if not self.closing and not self.paused:
            self._grant(dirty)
        out: list[tuple[InLane, frames.Ack]] = []
        for lane in (*dirty, *self._dirty_lanes):  # granting may add lanes
            if lane.dirty:
                lane.dirty = False
                if lane.alive:
                    # A producer may never have seen that this queue was not offered for a moment.
                    lane.flags |= frames.CLOSING if self.closing else 0
                    out.append((lane, lane.state()))
                    lane.flags = 0
                else:
                    self._forget_if_settled(lane)
        self._dirty_lanes = []
        self.dirty = False  # only now: what granting marks is said already, and must not ask for another flush
        return out

    def _grant(self, dirty: list[InLane]) -> None:
        """Tops up the lanes with news, to an equal share of the prefetch; the hungry and long waiting first."""
        lanes = [lane for lane in self.lanes.values() if lane.alive]
        free = self.prefetch - sum(lane.outstanding for lane in self.lanes.values())
        share = max(1, self.prefetch // max(1, len(lanes)))
        # Who holds its share is not hungry, or the credit taken back for it would go round and round.
        hungry = [lane for lane in lanes if lane.want and lane.limit == lane.received and lane.outstanding < share]
        if len(self.lanes) > 1:  # one that is over counts, too: its last verdict frees credit for the others
            dirty = sorted({*dirty, *hungry}, key=lambda lane: (not lane.want, lane.granted_at, lane.peer, lane.number))
        for lane in dirty:
            grant = min(share - lane.outstanding, free)
            if grant > 0 and lane.alive:
                lane.limit += grant
                free -= grant
                self._grants += 1
                lane.granted_at = self._grants
                lane.mark()
        self._starving = any(lane.limit == lane.received for lane in hungry)
        if free <= 0 and self._starving:
            # Ask those back who don't use theirs. Who still says that it wants some may have said so before; it knows.
            for lane in lanes:
                if lane.limit > lane.received:
                    lane.flags |= frames.RECALL
                    lane.mark()

    def _regrant(self) -> None:
        """Credit came free: every lane below its share is looked at again."""
        for lane in self.lanes.values():
            lane.mark()

    def _lane_changed(self, lane: InLane) -> None:
        self._dirty_lanes.append(lane)
        if not self.dirty:
            self.dirty = True
            self._changed(self)

    def check(self) -> None:
        """The inbox's own invariants, for the simulator."""
        held = 0
        for lane in self.lanes.values():
            lane.check()
            held += lane.unsettled
        assert held <= self.prefetch, f"{self.queue}: holds {held} of {self.prefetch}"


def _readable_parts(arrival: Arrival) -> Iterator[Arrival]:
    """What an arrival holds between the bodies that could not be read."""
    start = 0
    for index, body in enumerate((*arrival.bodies, Undecodable(""))):
        if type(body) is Undecodable:
            if index > start:
                yield arrival.part(start, index)
            start = index + 1
