"""The consumer's half of the engine: an inbox each queue, and the lanes that end in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from meshmsg.engine.inbox import Inbox
from meshmsg.engine.lane import InLane, TrialSeat
from meshmsg.engine.output import Output
from meshmsg.engine.peers import SELF_LINK, Peers, PeerState
from meshmsg.wire import frames
from meshmsg.wire.codec import decode_batch

# After this process stood still, its links get this to show that their other ends have given it up, and what was sent
# before gets it to arrive.
DISTRUST_S = 0.2


class Receiver:
    """Inboxes and their lanes. It looks peers up and tells them frames; the engine tells it of them."""

    def __init__(self, peers: Peers, output: Output, wake: Callable[[], None]) -> None:
        self.inboxes: dict[str, Inbox] = {}
        self._peers = peers
        self._output = output
        self._wake = wake  # an inbox has something to say
        self.stirred: list[Inbox] = []
        self._leaving: dict[Inbox, None] = {}  # closed, but their producers still have to hear of it
        self._homes: dict[tuple[str, int], Inbox] = {}  # where each lane ends, by its producer and number
        self._trial_seat = TrialSeat()
        self._links: dict[str, int | None] | None = None  # of all peers when this process had stood still, for a while

    # -- commands --------------------------------------------------------------------------------------------

    def open(self, queue: str, prefetch: int) -> Inbox:
        """A queue to take work from."""
        inbox = self.inboxes[queue] = Inbox(queue, prefetch, self._on_change)
        inbox.trial_seat = self._trial_seat
        inbox.on_forgotten = self._on_forgotten
        return inbox

    def close(self, queue: str) -> bool:
        """Returns what was not started, and what still arrives; verdicts go on being heard. False if it is not open."""
        inbox = self.inboxes.pop(queue, None)
        if inbox is None:
            return False
        inbox.return_unstarted()
        self._send_acks(inbox)
        self._leaving[inbox] = None
        self._forget_if_left(inbox)
        return True

    @property
    def leaving(self) -> bool:
        """Whether a producer that is there still has to let go of a closed inbox.

        Not counting who waits for the verdict on something started: nobody knows when that comes, or whether.
        """
        return any(lane.alive and not lane.unsettled for inbox in self._leaving for lane in inbox.lanes.values())

    # -- what the producers say ------------------------------------------------------------------------------

    def on_data(self, peer: PeerState, data: frames.Data) -> None:
        """Messages, or some of them again."""
        inbox, lane = self._find_lane(peer, data.lane)
        if inbox is None or lane is None or not lane.alive:
            if peer.link is not None:
                self._output.send(peer.link, frames.Lost(data.lane))
            return
        now = self._output.now
        if data.first_seq > lane.received or data.first_seq + data.total <= lane.received:
            inbox.accept(lane, data, [], now)  # a gap, or a repetition: nothing to decode
            return
        inbox.accept(lane, data, decode_batch(data.payload, data.total), now)
        if inbox.arrivals:
            self._output.effects.deliver.append(inbox.queue)

    def on_lane_state(self, peer: PeerState, state: frames.LaneState) -> None:
        """Where a producer is with one lane, which may be new."""
        inbox, lane = self._find_lane(peer, state.lane)
        # A new lane; one that ever carried something or had credit must be known.
        if inbox is None and not (state.next_seq or state.limit or state.returns):
            inbox = self.inboxes.get(state.queue)
            if inbox is None:
                return  # it will learn from our offers
            lane = inbox.open_lane(state.lane, peer.key, peer.name)
            if lane is not None:
                self._homes[peer.key, state.lane] = inbox
        if inbox is None or lane is None or not lane.alive:
            if peer.link is not None:
                self._output.send(peer.link, frames.Lost(state.lane))
            return
        inbox.on_lane_state(lane, state)

    def on_close(self, peer: PeerState, number: int) -> None:
        """A producer ends a lane."""
        inbox, lane = self._find_lane(peer, number)
        if inbox is not None and lane is not None:
            inbox.close_lane(lane)
            self._forget_if_left(inbox)

    def _forget_if_left(self, inbox: Inbox) -> None:
        """What has no verdict yet in a closed inbox keeps it only while there is somebody who would hear that."""
        if inbox in self._leaving and not any(lane.alive for lane in inbox.lanes.values()):
            del self._leaving[inbox]
            for lane in inbox.lanes.values():
                self._on_forgotten(lane)

    # -- what becomes of the producers -----------------------------------------------------------------------

    def resume_lanes(self, peer: PeerState) -> None:
        """A producer is there, or there again: it is told where every lane is."""
        for lane in self._lanes():
            if lane.peer == peer.key:
                lane.mark()

    def end_lanes(self, peer: PeerState) -> None:
        """A producer is gone."""
        for inbox in [*self._all()]:
            inbox.orphan_peer(peer.key)
            self._forget_if_left(inbox)

    def distrust(self, stood_still: bool) -> None:
        """With each beat: whether this process stood still before it, so that producers may have given it up.

        Others may have started what it had received, or still receives from before. So nothing is started until the
        next beat. Who had given it up had hung up; what came over a link that did not last goes back unstarted, in case
        it had not. What is this process's own is not touched.
        """
        if stood_still:
            if self._links is None:
                self._links = {peer.key: peer.link for peer in self._peers.by_id.values()}
            for inbox in self.inboxes.values():
                if any(self._links.get(lane.peer) != SELF_LINK for lane in inbox.lanes.values()):
                    inbox.hold()
        elif self._links is not None:
            for inbox in self.inboxes.values():
                if inbox.release(self._trusts):
                    self._output.effects.deliver.append(inbox.queue)
            self._links = None

    def _trusts(self, lane: InLane) -> bool:
        """Whether nobody else can have what came on a lane: its link lasted, or its producer is gone for good."""
        peer = self._peers.find(lane.peer)
        if peer is None or not lane.alive:
            return True
        return peer.link is not None and self._links is not None and self._links.get(lane.peer) == peer.link

    def repeat_states(self, unheard: set[str]) -> None:
        """Says again where every lane is that is not at rest, or whose producer may have missed it; by peer's key."""
        for lane in self._lanes():
            if lane.unsettled or lane.verdicts or lane.peer in unheard:
                lane.mark()

    # -- output ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Sends what the inboxes have to say."""
        for inbox in self.stirred:
            self._send_acks(inbox)
        self.stirred.clear()

    def _send_acks(self, inbox: Inbox) -> None:
        for lane, ack in inbox.flush():
            peer = self._peers.find(lane.peer)
            if peer is not None and peer.link is not None:
                self._output.send(peer.link, ack)

    def _on_forgotten(self, lane: InLane) -> None:
        self._homes.pop((lane.peer, lane.number), None)

    def _on_change(self, inbox: Inbox) -> None:
        self.stirred.append(inbox)
        self._wake()

    # -- looking ---------------------------------------------------------------------------------------------

    def _all(self) -> Iterator[Inbox]:
        yield from self.inboxes.values()
        yield from self._leaving

    def _lanes(self) -> Iterator[InLane]:
        for inbox in self._all():
            yield from inbox.lanes.values()

    def _find_lane(self, peer: PeerState, number: int) -> tuple[Inbox | None, InLane | None]:
        key = (peer.key, number)
        inbox = self._homes.get(key)
        lane = inbox.lanes.get(key) if inbox is not None else None
        return (None, None) if lane is None else (inbox, lane)

    def check(self) -> None:
        """Own invariants, for the simulator."""
        for inbox in self.inboxes.values():
            inbox.check()
        found = 0
        for inbox in (*self.inboxes.values(), *self._leaving):
            found += len(inbox.lanes)
            for key in inbox.lanes:
                assert self._homes.get(key) is inbox, f"lane {key} is not where it should be"
        assert found == len(self._homes), f"{found} lanes, and {len(self._homes)} are listed"
