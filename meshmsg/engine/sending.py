"""The producer's half of the engine: an outbox each queue, and a lane to each consumer of it.

A turn looks only at the outboxes that something happened to, or that are due: a node may have thousands.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from meshmsg.checks import GROUP_PREFIX
from meshmsg.engine.agenda import Agenda
from meshmsg.engine.dead_letters import TOLD, DeadLetterBox, headers_of, make_letter
from meshmsg.engine.effects import Outcome
from meshmsg.engine.group_outbox import GroupOutbox
from meshmsg.engine.lane import OutLane, Trial
from meshmsg.engine.outbox import MAX_FRAME_BYTES, Outbox
from meshmsg.engine.output import Output
from meshmsg.engine.peers import LEFT, Peers, PeerState
from meshmsg.engine.run import Details, Run
from meshmsg.errors import ConfigurationError
from meshmsg.message import DeadLetter, Reason
from meshmsg.options import PushOptions
from meshmsg.wire import frames

RESEND_AFTER_S = 0.5  # a gap at the same place is answered again after this


class Sender:
    """Outboxes and their lanes, dead letters. It looks peers up and tells them frames; the engine tells it of them."""

    def __init__(
        self,
        peers: Peers,
        output: Output,
        generator: random.Random,
        dead_letters: DeadLetterBox,
        offer: Callable[[str], None],
    ) -> None:
        self.outboxes: dict[str, Outbox] = {}
        self.dead_letters = dead_letters
        self.make_outbox: type[Outbox] = Outbox
        self.lane_losses = 0
        self._peers = peers
        self._output = output
        self._generator = generator
        self._offer = offer  # tells every peer of a queue that work is pushed to
        self.on_over: Callable[[str], None] = lambda queue: None  # told of closed queues when they are forgotten
        self._ownerless: set[str] = set()  # queues that only dead letters have opened so far
        self._closed: set[str] = set()  # queues that are forgotten when they hold nothing
        self._ended: list[tuple[PeerState, int]] = []  # their lanes, told since the last heartbeat
        self._over: list[str] = []  # of these, what held nothing when it was last looked at
        self._next_id = 0  # of an outbox to be made; no id of a forgotten one is used again
        self._trials: dict[str, Trial] = {}  # by peer and life
        self._lanes: dict[str, dict[int, tuple[Outbox, OutLane]]] = {}  # by peer and life, and number
        self._next_lane = 1
        self.stirred: deque[Outbox] = deque()  # something happened to them since the last dispatch
        self._agenda = Agenda[Outbox]()

    # -- commands --------------------------------------------------------------------------------------------

    def set_wall_offset(self, seconds: float) -> None:
        """What the wall clock is ahead of the engine's; for times that people read."""
        self._output.wall_offset = seconds
        for outbox in self.outboxes.values():
            outbox.wall_offset = seconds

    def open(self, queue: str, options: PushOptions) -> Outbox:
        """A queue to send work to; the same queue again is the same outbox."""
        outbox = self.outboxes.get(queue)
        if outbox is None:
            self._offer(queue)
            outbox = self._make(queue, options)
        elif queue in self._closed:
            self._offer(queue)
            outbox.adopt(options)
        elif queue in self._ownerless:
            outbox.adopt(options)
        self._ownerless.discard(queue)
        self._closed.discard(queue)
        return outbox

    def _make(self, queue: str, options: PushOptions) -> Outbox:
        outbox = self.make_outbox(queue, options, self._generator, self._bury, self._output.wall_offset)
        outbox.first_id = outbox.next_id = self._next_id
        self._add(outbox)
        return outbox

    def close(self, queue: str) -> None:
        """Nobody sends to a queue any more. What it holds finds its end, and then the queue is forgotten."""
        self._ownerless.discard(queue)
        self._closed.add(queue)
        self.outboxes[queue].mark()

    def forget_over(self) -> None:
        """Forgets closed queues that hold nothing. Not in the turn that emptied them: it still tells their outcomes."""
        over, self._over = self._over, []
        for queue in over:
            outbox = self.outboxes.get(queue)
            if outbox is not None and queue in self._closed and not outbox.pending and not outbox.dirty:
                self._forget(outbox)

    def _forget(self, outbox: Outbox) -> None:
        del self.outboxes[outbox.queue]
        self._closed.discard(outbox.queue)
        self._next_id = max(self._next_id, outbox.next_id)
        outbox.changed = lambda outbox: None  # it is dispatched no more
        for lane in list(outbox.lanes.values()):
            peer = self._peers.find(lane.peer)
            self._close_lane(outbox, lane, "closed")
            if peer is not None and peer.link is not None:  # otherwise it asks when there is a link again
                self._output.send(peer.link, frames.Close(lane.number))
                self._ended.append((peer, lane.number))
        if self._agenda.time_of(outbox) is not None:
            self._agenda.put(outbox, self._output.now)  # instead of when what is settled would have been due
        self.on_over(outbox.queue)

    def open_group(self, queue: str, group: str, options: PushOptions, first_id: int) -> GroupOutbox:
        """The queue of a group that subscribes here; it is no offer, and only its members get anything from it."""
        offset = self._output.wall_offset
        outbox = GroupOutbox(queue, options, self._generator, self._bury, offset, group=group, first_id=first_id)
        self._add(outbox)
        return outbox

    def _add(self, outbox: Outbox) -> None:
        self.outboxes[outbox.queue] = outbox
        outbox.changed = self.stirred.append
        for peer in self._peers.by_id.values():
            if peer.link is not None and _consumes(peer, outbox.queue):
                self._open_lane(peer, peer.link, outbox)

    def close_group(self, queue: str) -> int:
        """Forgets the queue of a group that is over; returns the first id that it never used."""
        return self.outboxes.pop(queue).next_id

    def redrive(self, ids: Iterable[str]) -> list[str]:
        """Sends dead letters again, as far as their outboxes have room (G5); returns the ids of those that went."""
        moved: list[str] = []
        for each in ids:
            buried = self.dead_letters.find(each)
            if buried is None:
                continue
            queue = buried.letter.queue
            if queue not in self.outboxes:  # it was closed, and is so again when it holds nothing
                self._make(queue, PushOptions())
                self.close(queue)
            if self.outboxes[queue].fits(len(buried.run.bodies[0])):
                self.dead_letters.remove(each)
                self.outboxes[queue].revive(buried.run, self._output.now)
                moved.append(each)
        return moved

    # -- what the consumers say ------------------------------------------------------------------------------

    def on_ack(self, peer: PeerState, ack: frames.Ack) -> None:
        """Where a consumer is with one lane: verdicts, credit, a gap."""
        found = self._find_lane(peer, ack.lane)
        if found is None:
            if peer.link is not None:
                self._output.send(peer.link, frames.Close(ack.lane))
            return
        outbox, lane = found
        suspects = lane.suspects
        news = outbox.on_ack(lane, ack, self._output.now)
        if lane.suspects < suspects:
            self._mark_all_of(peer)
        if ack.flags & frames.CLOSING and not lane.leaving:
            lane.leaving, lane.open = True, False
            self.sync_lanes(peer)  # it may consume again, through another lane
        self._end_if_empty(peer, outbox, lane)
        if ack.flags & frames.GAP:
            self._resend(peer, lane, ack.received)
        if ack.flags & frames.RECALL and lane.credit > 0 and not outbox.waiting and not outbox.staged:
            lane.give_back()
            if peer.link is not None:
                self._state_lane(peer.link, outbox, lane)
        elif peer.link is not None and (news or any(verdict[0] < lane.floor for verdict in ack.verdicts)):
            # The verdicts were heard and need not be repeated. To old ones from the floor on this must not answer:
            # something below holds it up, and both sides would go on like this for ever.
            self._state_lane(peer.link, outbox, lane)

    def on_lost(self, peer: PeerState, number: int) -> None:
        """A consumer forgot a lane: whatever it held is sent again, through a new one."""
        found = self._find_lane(peer, number)
        if found is not None:
            self.lane_losses += 1
            self._close_lane(*found, "forgotten")
            self._mark_all_of(peer)
            self.sync_lanes(peer)

    # -- what becomes of the consumers -----------------------------------------------------------------------

    def sync_lanes(self, peer: PeerState) -> None:
        """A lane to every consumer of a queue of ours; those who stopped consuming get no more."""
        if peer.link is None:
            return
        found = list(self._lanes.get(peer.key, {}).values())
        served = {outbox.queue for outbox, lane in found if not lane.leaving}
        for queue in {**peer.offers.get("pull", {}), **peer.offers.get("group", {})}:
            outbox = self.outboxes.get(queue)
            if outbox is not None and queue not in served and _consumes(peer, queue):
                self._open_lane(peer, peer.link, outbox)
        for outbox, lane in found:
            if not lane.leaving and not _consumes(peer, outbox.queue):
                lane.leaving, lane.open = True, False
                self._end_if_empty(peer, outbox, lane)

    def _open_lane(self, peer: PeerState, link: int, outbox: Outbox) -> None:
        trial = self._trials.setdefault(peer.key, Trial())
        lane = OutLane(self._next_lane, peer.key, peer.name, trial)
        lane.max_body_bytes = self._peers.limit_of(peer)
        self._next_lane += 1
        lane.open = peer.state == "alive"
        self._lanes.setdefault(peer.key, {})[lane.number] = outbox, lane
        outbox.open_lane(lane)
        self._state_lane(link, outbox, lane)

    def _close_lane(self, outbox: Outbox, lane: OutLane, why: str) -> None:
        lanes = self._lanes[lane.peer]
        del lanes[lane.number]
        if not lanes:
            del self._lanes[lane.peer]
        outbox.close_lane(lane.number, why, self._output.now, said_all=why == LEFT)

    def pause_lanes(self, node_id: str) -> None:
        """A consumer is suspect: it gets no new work."""
        for key, lanes in self._lanes.items():
            if key.partition(".")[0] == node_id:
                for _, lane in lanes.values():
                    lane.open = False

    def resume_lanes(self, peer: PeerState) -> None:
        """A consumer is there, or there again: it is told where every lane is, and gets what it misses."""
        self.sync_lanes(peer)
        for outbox, lane in self._lanes.get(peer.key, {}).values():
            if peer.link is not None:
                lane.open = not lane.leaving
                outbox.mark()
                lane.resent = (-1, 0.0)
                self._state_lane(peer.link, outbox, lane)

    def end_lanes(self, peer: PeerState, why: str) -> None:
        """A consumer is gone: what it held goes elsewhere."""
        self._trials.pop(peer.key, None)
        for outbox, lane in list(self._lanes.get(peer.key, {}).values()):
            self._close_lane(outbox, lane, why)

    # -- time ------------------------------------------------------------------------------------------------

    def repeat_states(self, links: dict[str, int], unheard: set[str]) -> None:
        """Says again where every lane is that is not at rest, or whose consumer may have missed it; by peer's key."""
        for outbox in self.outboxes.values():
            for lane in outbox.lanes.values():
                hungry = outbox.waiting and lane.credit <= 0
                unrest = lane.in_flight or hungry or lane.stated_want != outbox.waiting or lane.peer in unheard
                if unrest and lane.peer in links:
                    self._state_lane(links[lane.peer], outbox, lane)
        self._ended = [(peer, number) for peer, number in self._ended if peer.key in unheard]
        for peer, number in self._ended:
            self._output.send(links[peer.key], frames.Close(number))

    def tick(self) -> None:
        """Time has passed: what was delayed is due, what lived too long expires."""
        for outbox in self._agenda.take(self._output.now):
            outbox.tick(self._output.now)
            outbox.mark()  # it is due at another time now

    def wake_at(self, soonest: float) -> float:
        """When ``tick`` may have something to do, if that is before ``soonest``."""
        due = self._agenda.soonest
        return soonest if due is None else min(due, soonest)

    # -- work ------------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Hands out whatever has a consumer that can take it."""
        if self._over:
            self.forget_over()
        while self.stirred:  # dead letters may add to it
            outbox = self.stirred.popleft()
            self._dispatch(outbox, self._output.now)
            due = outbox.wake_at()
            if due is not None:
                self._agenda.put(outbox, due)
            if outbox.queue in self._closed and not outbox.pending:
                self._over.append(outbox.queue)

    def _dispatch(self, outbox: Outbox, now: float) -> None:
        outbox.absorb(now)
        sent = outbox.dispatch(now)
        want = outbox.waiting
        for lane, runs in sent:
            peer = self._peers.find(lane.peer)
            assert peer is not None and peer.link is not None, "an open lane has a link"
            for part in cut_frames(runs):
                self._send_data(peer.link, lane, part, want, now)
        if want:
            self._ask_for_credit(outbox)
        if outbox.outcomes:
            self._output.effects.settled += [Outcome(outbox.queue, number, None) for number in outbox.outcomes]
            outbox.outcomes = []

    def _send_data(self, link: int, lane: OutLane, runs: list[Run], want: int, now: float) -> None:
        described = _describe(runs, now)
        first_seq = lane.next_seq
        for run in runs:
            lane.append(run)
        lane.stated_want = want
        data = frames.Data(lane.number, first_seq, lane.floor, want, lane.next_seq - first_seq, described, b"")
        bodies = runs[0].bodies if len(runs) == 1 else [body for run in runs for body in run.bodies]
        self._output.effects.send.append((link, frames.encode(data, bodies)))

    def _ask_for_credit(self, outbox: Outbox) -> None:
        for lane in outbox.lanes.values():
            if lane.stated_want == 0 and lane.credit <= 0 and lane.open:
                peer = self._peers.find(lane.peer)
                if peer is not None and peer.link is not None:
                    self._state_lane(peer.link, outbox, lane)

    def _resend(self, peer: PeerState, lane: OutLane, received: int) -> None:
        """The consumer misses messages that a broken link took: the same frames again, on the same lane."""
        now = self._output.now
        before, when = lane.resent
        if peer.link is None or (before == received and now - when < RESEND_AFTER_S):
            return
        lane.resent = (received, now)
        for first_seq, run in list(lane.records):
            # A consumer that got part of a run passes over what it has (G2).
            if first_seq + len(run) > received:
                data = frames.Data(
                    lane.number, first_seq, lane.floor, lane.stated_want, len(run), _describe([run], now), b""
                )
                self._output.effects.send.append((peer.link, frames.encode(data, run.bodies)))

    def _mark_all_of(self, peer: PeerState) -> None:
        """A consumer has fewer of our suspects, which other queues may have waited for."""
        for outbox, _ in self._lanes.get(peer.key, {}).values():
            outbox.mark()

    def _end_if_empty(self, peer: PeerState, outbox: Outbox, lane: OutLane) -> None:
        """The consumer stopped, and everything it held has come back or is done."""
        if lane.leaving and not lane.in_flight:
            self._close_lane(outbox, lane, "closed")
            if peer.link is not None:
                self._output.send(peer.link, frames.Close(lane.number))

    def _state_lane(self, link: int, outbox: Outbox, lane: OutLane) -> None:
        lane.stated_want = outbox.waiting + len(outbox.staged)
        state = frames.LaneState(
            lane.number, outbox.queue, lane.next_seq, lane.floor, lane.stated_want, lane.limit, lane.returns
        )
        self._output.send(link, state)

    def _find_lane(self, peer: PeerState, number: int) -> tuple[Outbox, OutLane] | None:
        return self._lanes.get(peer.key, {}).get(number)

    # -- dead letters ----------------------------------------------------------------------------------------

    def _bury(self, outbox: Outbox, run: Run, reason: Reason, error: str) -> None:
        output = self._output
        node_id = self._peers.identity.node_id
        letter = make_letter(node_id, outbox.queue, run, reason, error, output.now, output.wall_offset)
        output.effects.dead.append(letter)
        if run.first_id in outbox.watched:
            outbox.watched.discard(run.first_id)
            output.effects.settled.append(Outcome(outbox.queue, run.first_id, letter))
        target = outbox.options.dead_letter_to
        if target is not None and self._forward(letter, run, target):
            return
        box = self.dead_letters
        fallen = box.add(letter, run)
        if fallen:
            others = f" and {len(fallen) - 1} more are" if len(fallen) > 1 else " is"
            text = f"over {box.capacity} dead letters or {box.capacity_bytes} bytes: {fallen[0].id}{others} not kept"
            output.notes.tell("dead_letter.dropped", "", "", text, output.now)

    def _forward(self, letter: DeadLetter, run: Run, target: str) -> bool:
        """Moves a dead letter to a queue of its own, unless it has been through one or that one is full."""
        if target not in self.outboxes:
            try:
                self.open(target, PushOptions())
            except ConfigurationError:  # this node offers so much that it can offer no more
                return False
            self._ownerless.add(target)
        outbox = self.outboxes[target]
        if TOLD in letter.headers or not outbox.fits(len(run.bodies[0])):
            return False
        try:
            details = Details(headers=headers_of(letter))
        except ValueError:  # with what happened to it, its headers are too large
            return False
        outbox.push_detailed(run.bodies[0], details, self._output.now)
        return True

    # -- looking ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Own invariants, for the simulator."""
        self.dead_letters.check()
        suspects = dict.fromkeys(self._trials, 0)
        found = 0
        for outbox in self.outboxes.values():
            outbox.check()
            found += len(outbox.lanes)
            for lane in outbox.lanes.values():
                home = self._lanes.get(lane.peer, {}).get(lane.number)
                there = home is not None and home[0] is outbox and home[1] is lane
                assert there, f"lane {lane.number} is not where it should be"
                if lane.suspects and lane.peer in suspects:
                    suspects[lane.peer] += lane.suspects
            assert outbox.dirty is (outbox in self.stirred), f"{outbox.queue}: {outbox.dirty=}"
            if not outbox.dirty:
                assert not outbox.staged and not outbox.outcomes, f"{outbox.queue} waits for nothing"
                due, noted = outbox.wake_at(), self._agenda.time_of(outbox)
                assert due is None or (noted is not None and noted <= due), f"{outbox.queue}: {due=}, {noted=}"
        for queue in self._closed:
            outbox = self.outboxes[queue]
            assert outbox.pending or outbox.dirty or queue in self._over, f"{queue} is over, and stays"
        assert found == sum(map(len, self._lanes.values())), f"{found} lanes, and more are listed"
        for key, trial in self._trials.items():
            assert trial.suspects == suspects[key], f"{key}: counts {trial.suspects} suspects, holds {suspects[key]}"


def _consumes(peer: PeerState, queue: str) -> bool:
    """Whether a peer says that it takes part in a queue, or a group, over lanes."""
    if queue.startswith(GROUP_PREFIX):
        return queue in peer.offers.get("group", ())
    offer = peer.offers.get("pull", {}).get(queue)
    # Who pulls with reliable=False speaks bare ZeroMQ and knows no lanes.
    return offer is not None and bool(offer.get("reliable", True))


def cut_frames(runs: list[Run]) -> Iterator[list[Run]]:
    """Splits what goes to one lane into frames of bounded size; a large body travels alone."""
    frame: list[Run] = []
    size = 0
    for run in runs:
        run_bytes = run.measure()
        while size + run_bytes > MAX_FRAME_BYTES and len(run) > 1:
            head = run.split(max(1, len(run) // 2))
            yield from cut_frames([*frame, head])
            frame, size, run_bytes = [], 0, run.measure()
        if frame and size + run_bytes > MAX_FRAME_BYTES:
            yield frame
            frame, size = [], 0
        frame.append(run)
        size += run_bytes
    if frame:
        yield frame


def _describe(runs: list[Run], now: float) -> list[list[Any]]:
    """The runs as a ``DATA`` frame lists them."""
    return [[run.first_id, len(run), run.on_wire(now)] for run in runs]
