"""The engine: composes the machines, routes frames and time to them, and collects what they want done.

Call any command or ``handle_*``, then ``drain(now)`` once, and carry out the effects in their order. Nothing here
knows a socket, a loop, a thread or a clock. The machines never call one another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from meshmsg.engine.dead_letters import TOLD, DeadLetterBox, headers_of, make_letter
from meshmsg.engine.effects import Effects, Outcome
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.lane import InLane, OutLane, Trial, TrialSeat
from meshmsg.engine.notes import Notes
from meshmsg.engine.outbox import Outbox, cut_frames, describe_runs
from meshmsg.engine.peers import LEFT, SELF_LINK, Identity, LinkNews, Peers, PeerState
from meshmsg.engine.run import Details, Run
from meshmsg.errors import ProtocolError
from meshmsg.message import DeadLetter, Ledger, Peer, Reason
from meshmsg.options import LivenessOptions, PushOptions
from meshmsg.wire import frames
from meshmsg.wire.codec import decode_batch

RESEND_AFTER_S = 0.5  # a gap at the same place is answered again after this


class Engine:
    """One node's protocol. ``generator`` is the only source of chance, ``now`` the only clock."""

    def __init__(
        self,
        identity: Identity,
        *,
        generator: random.Random,
        liveness: LivenessOptions | None = None,
        max_dead_letters: int = 10_000,
        wall_offset: float = 0.0,
    ) -> None:
        self.identity = identity
        self.liveness = liveness or LivenessOptions()
        self.wall_offset = wall_offset
        self.peers = Peers(identity, self.liveness, generator)
        self.outboxes: dict[str, Outbox] = {}
        self.inboxes: dict[str, Inbox] = {}
        self._ownerless: set[str] = set()  # queues that only dead letters have opened so far
        self.dead_letters = DeadLetterBox(max_dead_letters)
        self.refused_frames = 0
        self.unknown_kinds = 0
        self.lane_losses = 0
        self.topology = 0  # changes whenever a peer comes, goes, or offers something else
        self.wake: Callable[[], None] = lambda: None  # asks the driver for a turn
        self.make_outbox: type[Outbox] = Outbox  # a face with threads has one of its own
        self._generator = generator
        self._effects = Effects()
        self._notes = Notes(wall_offset)
        self._dirty_inboxes: list[Inbox] = []
        self._next_lane = 1
        self._next_beat = 0.0
        self._now = 0.0
        self._closed = False
        self._leaving: list[Inbox] = []  # closed, but their producers still have to hear of it
        self._peers_wake_at: float | None = None  # None: to be worked out anew
        self._trials: dict[str, Trial] = {}  # by peer and life
        self._trial_seat = TrialSeat()
        self._unheard: set[int] = set()  # links that refused a frame since the last beat

    # -- commands --------------------------------------------------------------------------------------------

    def set_wall_offset(self, seconds: float) -> None:
        """What the wall clock is ahead of ``now``; for times that people read."""
        self.wall_offset = self._notes.wall_offset = seconds
        for outbox in self.outboxes.values():
            outbox.wall_offset = seconds

    def open_push(self, queue: str, options: PushOptions) -> Outbox:
        """A queue to send work to; the same queue again is the same outbox."""
        outbox = self.outboxes.get(queue)
        if outbox is None:
            outbox = self.make_outbox(queue, options, self._generator, self._bury, self.wall_offset)
            self.outboxes[queue] = outbox
            self.offer("push", queue, {})
            for peer in self.peers.by_id.values():
                self._sync_lanes(peer)
        elif queue in self._ownerless:
            outbox.adopt(options)
        self._ownerless.discard(queue)
        return outbox

    def open_pull(self, queue: str, prefetch: int) -> Inbox:
        """A queue to take work from."""
        inbox = self.inboxes[queue] = Inbox(queue, prefetch, self._inbox_changed)
        inbox.trial_seat = self._trial_seat
        self.offer("pull", queue, {})
        return inbox

    def close_pull(self, queue: str) -> None:
        """Stops consuming: returns what was not started, and what still arrives; verdicts go on being heard."""
        inbox = self.inboxes.pop(queue, None)
        if inbox is None:
            return
        inbox.return_unstarted()
        self._send_acks(inbox)
        self._leaving.append(inbox)
        self.withdraw("pull", queue)

    @property
    def leaving(self) -> bool:
        """Whether a producer that is there still has to let go of a closed inbox."""
        self._leaving = [inbox for inbox in self._leaving if any(lane.alive for lane in inbox.lanes.values())]
        return bool(self._leaving)

    def offer(self, kind: str, name: str, details: dict[str, Any]) -> None:
        """Tells every peer what this node has."""
        offers = {**self.identity.offers, kind: {**self.identity.offers.get(kind, {}), name: details}}
        self._set_offers(offers)

    def withdraw(self, kind: str, name: str) -> None:
        """Takes an offer back."""
        left = {key: value for key, value in self.identity.offers.get(kind, {}).items() if key != name}
        self._set_offers({**self.identity.offers, kind: left})

    def _set_offers(self, offers: dict[str, Any]) -> None:
        self.identity.offers = offers
        self.identity.offers_version += 1
        update = frames.Offers(self.identity.offers_version, offers)
        for link, _ in self.peers.linked():
            self._send(link, update)

    def redrive(self, ids: Iterable[str]) -> list[str]:
        """Sends dead letters again, as far as their outboxes have room (G5); returns the ids of those that went."""
        moved: list[str] = []
        for each in ids:
            buried = self.dead_letters.find(each)
            if buried is not None and self.outboxes[buried.letter.queue].fits(len(buried.run.bodies[0])):
                self.dead_letters.remove(each)
                self.outboxes[buried.letter.queue].revive(buried.run, self._now)
                moved.append(each)
        return moved

    def close(self, reason: str = LEFT) -> None:
        """Says goodbye to everybody, after returning what was not started."""
        for queue in list(self.inboxes):
            self.close_pull(queue)
        self._flush_inboxes()  # after a goodbye nobody listens any more
        self._closed = True
        for link, _ in self.peers.linked():
            if link != SELF_LINK:
                self._send(link, frames.Bye(reason))

    # -- inputs ----------------------------------------------------------------------------------------------

    def handle_discovered(self, node_id: str | None, endpoints: tuple[str, ...], now: float) -> None:
        """Discovery found somebody who might exist."""
        self.peers.discovered(node_id, endpoints, now)
        self._peers_wake_at = None

    def handle_withdrawn(self, node_id: str) -> None:
        """Discovery lost sight of somebody."""
        self.peers.withdrawn(node_id)

    def handle_link(self, link: int, news: LinkNews, now: float) -> None:
        """The transport has news of a link."""
        self._now = now
        self.peers.on_link(link, news, now)
        self._apply_peer_news(now)

    def handle_dial_refused(self, link: int, endpoint: str, why: str, now: float) -> None:
        """The transport cannot even try this endpoint."""
        self._notes.tell("dial.refused", endpoint, endpoint, why, now)
        self.handle_link(link, "failed", now)

    def handle_unsent(self, link: int) -> None:
        """A link had no room for a frame, so its peer may not know what we believe it knows."""
        self._unheard.add(link)

    def handle_parts(self, route: bytes, parts: list[bytes], now: float) -> None:
        """A frame arrived. Whatever is wrong with it costs its sender's link and nothing else (G11)."""
        self._now = now
        peer = self.peers.by_route.get(route)
        try:
            frame = frames.decode(parts)
            if frame is None:
                self.unknown_kinds += 1
            elif type(frame) is frames.Hello:
                self.peers.on_hello(route, frame, now)
                peer = self.peers.by_route.get(route)
                if peer is not None:
                    self.topology += 1  # it may bring newer offers than the frame that is on its way
                    self._sync_lanes(peer)
            elif peer is None:
                # Before HELLO nothing is believed: a former life, or a stranger at a reused port.
                self.refused_frames += 1
            else:
                self.peers.on_heard(peer, now)
                self._handle_frame(peer, frame, now)
        except ProtocolError as error:
            self._refuse(peer, route, error, now)
        self._apply_peer_news(now)

    def _refuse(self, peer: PeerState | None, route: bytes, error: ProtocolError, now: float) -> None:
        self.refused_frames += 1
        name = peer.name if peer else repr(route[:64])
        self._notes.tell("frame.refused", name, peer.node_id if peer else "", f"{error}", now)
        if peer is not None:
            if peer.link is not None:
                self._send(peer.link, frames.Bye(f"refused: {error}"[:400]))
            self.peers.expel(peer, "protocol error", now)

    def _handle_frame(self, peer: PeerState, frame: frames.Frame, now: float) -> None:
        if isinstance(frame, frames.Data):
            self._on_data(peer, frame, now)
        elif isinstance(frame, frames.Ack):
            self._on_ack(peer, frame, now)
        elif isinstance(frame, frames.LaneState):
            self._on_lane_state(peer, frame)
        elif isinstance(frame, frames.Offers):
            if frame.version > peer.offers_version:
                peer.offers, peer.offers_version = frame.offers, frame.version
                self.topology += 1
                self._sync_lanes(peer)
        elif isinstance(frame, frames.Close):
            inbox, in_lane = self._in_lane(peer, frame.lane)
            if inbox is not None and in_lane is not None:
                inbox.close_lane(in_lane)
        elif isinstance(frame, frames.Lost):
            self._on_lost(peer, frame.lane, now)
        elif isinstance(frame, frames.Bye):
            self.peers.on_bye(peer, frame.reason, now)

    # -- lanes, producer's side ------------------------------------------------------------------------------

    def _sync_lanes(self, peer: PeerState) -> None:
        """A lane to every consumer of a queue of ours; those who stopped consuming get no more."""
        if peer.link is None:
            return
        # Who pulls with reliable=False speaks bare ZeroMQ and knows no lanes.
        pulls = {name for name, offer in peer.offers.get("pull", {}).items() if offer.get("reliable", True)}
        for queue, outbox in list(self.outboxes.items()):
            lanes = (lane for lane in outbox.lanes.values() if lane.peer == peer.key and not lane.leaving)
            lane = next(lanes, None)
            if queue in pulls and lane is None:
                trial = self._trials.setdefault(peer.key, Trial())
                lane = OutLane(self._next_lane, peer.key, peer.name, trial)
                self._next_lane += 1
                lane.open = peer.state == "alive"
                outbox.open_lane(lane)
                self._state_lane(peer.link, outbox, lane)
            elif queue not in pulls and lane is not None:
                lane.leaving, lane.open = True, False
                self._end_if_empty(peer, outbox, lane)

    def _end_if_empty(self, peer: PeerState, outbox: Outbox, lane: OutLane) -> None:
        """The consumer stopped, and everything it held has come back or is done."""
        if lane.leaving and not lane.in_flight:
            outbox.close_lane(lane.number, "closed", self._now)
            if peer.link is not None:
                self._send(peer.link, frames.Close(lane.number))

    def _state_lane(self, link: int, outbox: Outbox, lane: OutLane) -> None:
        lane.stated_want = outbox.waiting + len(outbox.staged)
        state = frames.LaneState(
            lane.number, outbox.queue, lane.next_seq, lane.floor, lane.stated_want, lane.limit, lane.returns
        )
        self._send(link, state)

    def _out_lane(self, peer: PeerState, number: int) -> tuple[Outbox, OutLane] | None:
        for outbox in self.outboxes.values():
            lane = outbox.lanes.get(number)
            if lane is not None and lane.peer == peer.key:
                return outbox, lane
        return None

    def _on_ack(self, peer: PeerState, ack: frames.Ack, now: float) -> None:
        found = self._out_lane(peer, ack.lane)
        if found is None:
            if peer.link is not None:
                self._send(peer.link, frames.Close(ack.lane))
            return
        outbox, lane = found
        suspects = lane.suspects
        news = outbox.on_ack(lane, ack, now)
        if lane.suspects < suspects:
            self._dispatch_all_again()
        if ack.flags & frames.CLOSING and not lane.leaving:
            lane.leaving, lane.open = True, False
            self._sync_lanes(peer)  # it may consume again, through another lane
        self._end_if_empty(peer, outbox, lane)
        if ack.flags & frames.GAP:
            self._resend(peer, lane, ack.received, now)
        if ack.flags & frames.RECALL and lane.credit > 0 and not outbox.waiting and not outbox.staged:
            lane.give_back()
            if peer.link is not None:
                self._state_lane(peer.link, outbox, lane)
        elif news and peer.link is not None:
            # The verdicts were heard and need not be repeated. To old ones this must not answer: the floor may be
            # held up below them, and both sides would go on like this for ever.
            self._state_lane(peer.link, outbox, lane)

    def _resend(self, peer: PeerState, lane: OutLane, received: int, now: float) -> None:
        """The consumer misses messages that a broken link took: the same frames again, on the same lane."""
        before, when = lane.resent
        if peer.link is None or (before == received and now - when < RESEND_AFTER_S):
            return
        lane.resent = (received, now)
        for first_seq, run in list(lane.records):
            # A consumer that got part of a run passes over what it has (G2).
            if first_seq + len(run) > received:
                data = frames.Data(
                    lane.number, first_seq, lane.floor, lane.stated_want, len(run), describe_runs([run], now), b""
                )
                self._effects.send.append((peer.link, frames.encode(data, run.bodies)))

    def _on_lost(self, peer: PeerState, number: int, now: float) -> None:
        """The consumer forgot a lane: whatever it held is sent again, through a new one."""
        found = self._out_lane(peer, number)
        if found is not None:
            self.lane_losses += 1
            found[0].close_lane(number, "forgotten", now)
            self._dispatch_all_again()
            self._sync_lanes(peer)

    def _dispatch_all_again(self) -> None:
        """A consumer has fewer of our suspects, which other queues may have waited for."""
        for outbox in self.outboxes.values():
            outbox.dirty = True

    def _dispatch(self, outbox: Outbox, now: float) -> None:
        outbox.absorb(now)
        if outbox.dirty and outbox.lanes:
            sent = outbox.dispatch(now)
            want = outbox.waiting
            for lane, runs in sent:
                peer = self._peer_of(lane.peer)
                assert peer is not None and peer.link is not None, "an open lane has a link"
                for part in cut_frames(runs):
                    self._send_data(peer.link, lane, part, want, now)
            if want:
                self._ask_for_credit(outbox, want)
        if outbox.outcomes:
            self._effects.settled += [Outcome(outbox.queue, number, None) for number in outbox.outcomes]
            outbox.outcomes = []

    def _send_data(self, link: int, lane: OutLane, runs: list[Run], want: int, now: float) -> None:
        described = describe_runs(runs, now)
        first_seq = lane.next_seq
        for run in runs:
            lane.append(run)
        lane.stated_want = want
        data = frames.Data(lane.number, first_seq, lane.floor, want, lane.next_seq - first_seq, described, b"")
        bodies = runs[0].bodies if len(runs) == 1 else [body for run in runs for body in run.bodies]
        self._effects.send.append((link, frames.encode(data, bodies)))

    def _ask_for_credit(self, outbox: Outbox, want: int) -> None:
        for lane in outbox.lanes.values():
            if lane.stated_want == 0 and lane.credit <= 0 and lane.open:
                peer = self._peer_of(lane.peer)
                if peer is not None and peer.link is not None:
                    self._state_lane(peer.link, outbox, lane)

    def _bury(self, outbox: Outbox, run: Run, reason: Reason, error: str) -> None:
        letter = make_letter(self.identity.node_id, outbox.queue, run, reason, error, self._now, self.wall_offset)
        self._effects.dead.append(letter)
        if run.first_id in outbox.watched:
            outbox.watched.discard(run.first_id)
            self._effects.settled.append(Outcome(outbox.queue, run.first_id, letter))
        target = outbox.options.dead_letter_to
        if target is not None and self._forward(letter, run, target):
            return
        fallen = self.dead_letters.add(letter, run)
        if fallen is not None:
            text = f"more than {self.dead_letters.capacity} dead letters: {fallen.id} is no longer kept"
            self._notes.tell("dead_letter.dropped", "", "", text, self._now)

    def _forward(self, letter: DeadLetter, run: Run, target: str) -> bool:
        """Moves a dead letter to a queue of its own, unless it has been through one or that one is full."""
        if target not in self.outboxes:
            self.open_push(target, PushOptions())
            self._ownerless.add(target)
        outbox = self.outboxes[target]
        if TOLD in letter.headers or not outbox.fits(len(run.bodies[0])):
            return False
        try:
            details = Details(headers=headers_of(letter))
        except ValueError:  # with what happened to it, its headers are too large
            return False
        outbox.push_detailed(run.bodies[0], details, self._now)
        return True

    # -- lanes, consumer's side ------------------------------------------------------------------------------

    def _in_lane(self, peer: PeerState, number: int) -> tuple[Inbox | None, InLane | None]:
        for inbox in (*self.inboxes.values(), *self._leaving):
            lane = inbox.lanes.get((peer.key, number))
            if lane is not None:
                return inbox, lane
        return None, None

    def _on_data(self, peer: PeerState, data: frames.Data, now: float) -> None:
        inbox, lane = self._in_lane(peer, data.lane)
        if inbox is None or lane is None or not lane.alive:
            if peer.link is not None:
                self._send(peer.link, frames.Lost(data.lane))
            return
        if data.first_seq > lane.received or data.first_seq + data.total <= lane.received:
            inbox.accept(lane, data, [], now)  # a gap, or a repetition: nothing to decode
            return
        inbox.accept(lane, data, decode_batch(data.payload, data.total), now)
        if inbox.arrivals:
            self._effects.deliver.append(inbox.queue)

    def _on_lane_state(self, peer: PeerState, state: frames.LaneState) -> None:
        inbox, lane = self._in_lane(peer, state.lane)
        # A new lane; one that ever carried something or had credit must be known.
        if inbox is None and not (state.next_seq or state.limit or state.returns):
            inbox = self.inboxes.get(state.queue)
            if inbox is None:
                return  # it will learn from our offers
            lane = inbox.open_lane(state.lane, peer.key, peer.name)
        if inbox is None or lane is None or not lane.alive:
            if peer.link is not None:
                self._send(peer.link, frames.Lost(state.lane))
            return
        inbox.on_lane_state(lane, state)

    def _inbox_changed(self, inbox: Inbox) -> None:
        self._dirty_inboxes.append(inbox)
        self.wake()

    def _flush_inboxes(self) -> None:
        for inbox in self._dirty_inboxes:
            self._send_acks(inbox)
        self._dirty_inboxes.clear()

    def _send_acks(self, inbox: Inbox) -> None:
        for lane, ack in inbox.flush():
            peer = self._peer_of(lane.peer)
            if peer is not None and peer.link is not None:
                self._send(peer.link, ack)

    # -- peers -----------------------------------------------------------------------------------------------

    def _peer_of(self, key: str) -> PeerState | None:
        peer = self.peers.by_id.get(key.partition(".")[0])
        return peer if peer is not None and peer.key == key else None

    def _apply_peer_news(self, now: float) -> None:
        """Carries what the peers machine found out to the lanes."""
        peers = self.peers
        if not (peers.hello or peers.notes or peers.downs or peers.ups or peers.dial or peers.hang_up):
            return
        self._peers_wake_at = None
        if peers.ups or peers.downs:
            self.topology += 1
        for link, hello in peers.hello:
            self._effects.send.append((link, frames.encode(hello)))
        peers.hello.clear()
        for kind, name, node_id, text in peers.notes:
            self._notes.tell(kind, name, node_id, text, now)
            if kind == "peer.suspect":
                self._pause_lanes(node_id)
        peers.notes.clear()
        for peer, why in peers.downs:
            self._notes.tell("peer.down", peer.name, peer.node_id, why, now, always=True)
            self._trials.pop(peer.key, None)
            for outbox in list(self.outboxes.values()):
                for lane in [lane for lane in outbox.lanes.values() if lane.peer == peer.key]:
                    outbox.close_lane(lane.number, why, now, said_all=why == LEFT)
            for inbox in (*self.inboxes.values(), *self._leaving):
                inbox.orphan_peer(peer.key)
        peers.downs.clear()
        for peer, new in peers.ups:
            if peers.by_id.get(peer.node_id) is peer:
                self._notes.tell("peer.up" if new else "peer.back", peer.name, peer.node_id, "", now, always=True)
                self._resume_lanes(peer)
        peers.ups.clear()

    def _pause_lanes(self, node_id: str) -> None:
        for outbox in self.outboxes.values():
            for lane in outbox.lanes.values():
                if lane.peer.partition(".")[0] == node_id:
                    lane.open = False

    def _resume_lanes(self, peer: PeerState) -> None:
        """Both sides of every lane tell where they are; what a broken link lost is found out by comparing."""
        if peer.link is not None:  # what changed since our HELLO left was told to linked peers only
            self._send(peer.link, frames.Offers(self.identity.offers_version, self.identity.offers))
        self._sync_lanes(peer)
        for outbox in self.outboxes.values():
            for lane in outbox.lanes.values():
                if lane.peer == peer.key and peer.link is not None:
                    lane.open = not lane.leaving
                    outbox.dirty = True
                    lane.resent = (-1, 0.0)
                    self._state_lane(peer.link, outbox, lane)
        for inbox in (*self.inboxes.values(), *self._leaving):
            for in_lane in inbox.lanes.values():
                if in_lane.peer == peer.key:
                    in_lane.mark()

    def _beat(self) -> None:
        """To everybody: I make progress. And the state of every lane that is not at rest, in case a frame was lost."""
        links = {peer.key: link for link, peer in self.peers.linked()}
        unheard = {key for key, link in links.items() if link in self._unheard}
        self._unheard.clear()
        for key, link in links.items():
            self._send(link, frames.Beat())
            if key in unheard:
                self._send(link, frames.Offers(self.identity.offers_version, self.identity.offers))
        for outbox in self.outboxes.values():
            for lane in outbox.lanes.values():
                hungry = outbox.waiting and lane.credit <= 0
                unrest = lane.in_flight or hungry or lane.stated_want != outbox.waiting or lane.peer in unheard
                if unrest and lane.peer in links:
                    self._state_lane(links[lane.peer], outbox, lane)
        for inbox in (*self.inboxes.values(), *self._leaving):
            for in_lane in inbox.lanes.values():
                if in_lane.unsettled or in_lane.verdicts or in_lane.peer in unheard:
                    in_lane.mark()

    # -- time and output -------------------------------------------------------------------------------------

    def handle_time(self, now: float) -> None:
        """Time has passed: heartbeats, timeouts, retries."""
        self._now = now
        late = now - self._next_beat
        if late > self.liveness.heartbeat and self._next_beat:
            # This process was stopped, its loop was blocked, or its machine slept: nobody else is to blame.
            self.peers.forgive(late, now)
        if late >= 0:
            self._next_beat = now + self.liveness.heartbeat
            self._beat()
        self.peers.tick(now)
        self._apply_peer_news(now)
        self._peers_wake_at = None
        for outbox in list(self.outboxes.values()):
            outbox.tick(now)

    def drain(self, now: float) -> Effects:
        """One batch of effects for everything that happened since the last one."""
        self._now = now
        self._apply_peer_news(now)
        if not self._closed:
            for outbox in list(self.outboxes.values()):
                if outbox.staged or outbox.dirty or outbox.outcomes:
                    self._dispatch(outbox, now)
        self._flush_inboxes()
        effects, self._effects = self._effects, Effects()
        effects.events = self._notes.take()
        peers = self.peers
        if peers.dial:
            effects.dial, peers.dial = peers.dial, []
        if peers.hang_up:
            effects.hang_up, peers.hang_up = peers.hang_up, []
        effects.wake_at = self._wake_at()
        return effects

    def _wake_at(self) -> float:
        # Hearing from a peer only moves its deadlines back, so an old answer is never too late.
        if self._peers_wake_at is None:
            self._peers_wake_at = min(self.peers.wake_at(), default=self._next_beat)
        soonest = self._peers_wake_at
        for outbox in self.outboxes.values():
            due = outbox.wake_at()
            if due is not None and due < soonest:
                soonest = due
        return min(soonest, self._next_beat)

    def _send(self, link: int, frame: frames.Frame) -> None:
        self._effects.send.append((link, frames.encode(frame)))

    # -- looking ---------------------------------------------------------------------------------------------

    def ledger(self) -> dict[str, Ledger]:
        """The books of every queue this node sends to."""
        return {queue: outbox.ledger() for queue, outbox in self.outboxes.items()}

    def offered(self, kind: str, name: str) -> list[dict[str, Any]]:
        """What living nodes, this one included, say about an offer."""
        return self.peers.offered(kind, name)

    def list_peers(self, now: float) -> list[Peer]:
        """Everybody whose both directions are proven."""
        return self.peers.listed(now)

    def check(self) -> None:
        """Every machine checks itself, for the simulator."""
        self.peers.check()
        for key, trial in self._trials.items():
            lanes = (lane for outbox in self.outboxes.values() for lane in outbox.lanes.values())
            suspects = sum(lane.suspects for lane in lanes if lane.peer == key)
            assert trial.suspects == suspects, f"{key}: counts {trial.suspects} suspects, holds {suspects}"
        for outbox in self.outboxes.values():
            outbox.check()
        for inbox in self.inboxes.values():
            inbox.check()
