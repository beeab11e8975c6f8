"""The requesting half of the engine: what this node asks others and serves them, over one channel a peer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from meshmsg.engine.calls import Calls
from meshmsg.engine.channel import Channel
from meshmsg.engine.output import Output
from meshmsg.engine.peers import Peers, PeerState
from meshmsg.engine.served import Serving
from meshmsg.wire import frames, items
from meshmsg.wire.codec import decode_batch

ROUTER = "router"  # the kind of offer


class Conversations:
    """Calls and served calls of a node, tied to its peers. It tells them frames; the engine tells it of them."""

    def __init__(self, peers: Peers, output: Output, generator: random.Random) -> None:
        self.calls = Calls(generator, self._send, self._limit_of)
        self.calls.before_looking = self._sync_own
        self.serving = Serving()
        self._peers = peers
        self._own_version = 0  # of this node's offers, as its own calls know them
        self._output = output
        self._channels: dict[str, Channel] = {}  # by peer's key
        self._next_channel = 1
        self._dirty: dict[str, tuple[PeerState, Channel]] = {}  # what may have something to say, in order

    # -- what becomes of the peers ---------------------------------------------------------------------------

    def sync(self, peer: PeerState) -> None:
        """A peer's offers, or whether it can be asked, may be new."""
        alive = peer.state == "alive" and peer.link is not None
        identity = self._peers.identity
        # Its own offers reach a node as all others do, a turn late: what it offers now is known here.
        offers = identity.offers if peer.node_id == identity.node_id else peer.offers
        suspect = peer.state == "suspect"
        self.calls.on_peer(peer.key, peer.name, offers.get(ROUTER, {}), alive=alive, suspect=suspect)

    def _sync_own(self) -> None:
        """This node's services are known to itself at once."""
        identity = self._peers.identity
        myself = self._peers.by_id.get(identity.node_id)
        if self._own_version != identity.offers_version and myself is not None:
            self._own_version = identity.offers_version
            self.sync(myself)

    def resume(self, peer: PeerState) -> None:
        """A peer is there, or there again: both sides say where they are."""
        self.sync(peer)
        if peer.key in self._channels or self.serving.services or peer.offers.get(ROUTER):
            self._tell(peer, self._open(peer.key).resume())

    def pause(self, node_id: str) -> None:
        """A peer is suspect: it gets no new requests until that is decided."""
        peer = self._peers.by_id.get(node_id)
        if peer is not None:
            self.sync(peer)

    def end(self, peer: PeerState, why: str) -> None:
        """A peer is gone: nobody answers, and nobody waits for answers there."""
        self._forget(peer, why)

    def _forget(self, peer: PeerState, why: str) -> None:
        self._channels.pop(peer.key, None)
        self._dirty.pop(peer.key, None)
        self.serving.on_peer_gone(peer.key)
        self.calls.on_peer_gone(peer.key, peer.name, why, self._output.now)

    # -- frames ----------------------------------------------------------------------------------------------

    def on_frame(self, peer: PeerState, frame: frames.Talk | frames.Heard) -> None:
        """A peer talks, or says what it heard."""
        channel = self._open(peer.key)
        if channel.is_news(frame):
            self._forget(peer, "it had given this node up")
            self.sync(peer)
            channel = self._open(peer.key)
        if isinstance(frame, frames.Heard):
            again = channel.on_heard(frame, self._output.now)
            self._write(peer, again)
        elif channel.on_talk(frame):
            self._take(peer, frame)
        if channel.waiting:
            self._dirty[peer.key] = peer, channel  # it may leave now
        if channel.due:
            self._tell(peer, channel.state())

    def _take(self, peer: PeerState, talk: frames.Talk) -> None:
        total = items.count_bodies(talk.items)
        bodies = decode_batch(talk.payload, total)
        key, now = peer.key, self._output.now
        calls, serving = self.calls, self.serving
        at = 0
        for item in talk.items:
            op = item[0]
            length = items.bodies_of(item)
            part = bodies if length == total else bodies[at : at + length]
            at += length
            if op == items.RESULT:
                calls.on_results(key, item[1], part, now)
            elif op == items.CALL:
                serving.on_call(key, peer.name, item, part, now, len(talk.payload) * length // total)
            elif op == items.FAULT:
                calls.on_fault(key, item, now)
            elif op == items.CANCEL:
                serving.on_cancel(key, item[1])
            elif op == items.ITEMS:
                calls.on_items(key, item[1], part, len(talk.payload) * length // total, *item[3:4])
            elif op == items.END:
                calls.on_end(key, item[1], now)
            elif op == items.CREDIT:
                serving.on_credit(key, *item[1:4])
            elif op == items.UP_ITEMS:
                serving.on_up_items(key, item[1], part, len(talk.payload) * length // total, *item[3:4])
            elif op == items.UP_END:
                serving.on_up_end(key, item[1])
            elif op == items.UP_CREDIT:
                calls.on_up_credit(key, *item[1:5])

    # -- out -------------------------------------------------------------------------------------------------

    @property
    def stirred(self) -> bool:
        """Whether ``dispatch`` has something to do."""
        calls, serving = self.calls, self.serving
        return bool(
            calls.staged or calls.answered or calls.given_up or serving.outspoken or serving.arrived or self._dirty
        )

    def dispatch(self) -> None:
        """Everything that this turn brought leaves: one frame a peer, as a rule."""
        if self.calls.staged or self.calls.given_up:
            self._sync_own()
            self.calls.dispatch(self._output.now)
        if self.serving.outspoken:
            for key, (talked, bodies) in self.serving.take_output().items():
                self._send(key, talked, bodies)
        for peer, channel in self._dirty.values():
            self._write(peer, channel.flush())
            if channel.due:
                self._tell(peer, channel.state())
        self._dirty.clear()
        effects = self._output.effects
        if self.calls.answered:
            effects.answered += self.calls.answered
            self.calls.answered = []
        if self.serving.arrived:
            effects.deliver += [f"{ROUTER}:{name}" for name in self.serving.arrived]
            self.serving.arrived.clear()

    def _open(self, key: str) -> Channel:
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(self._next_channel)
            self._next_channel += 1
        return channel

    def _send(self, key: str, talked: list[list[Any]], bodies: Sequence[bytes]) -> None:
        peer = self._peers.find(key)
        if peer is not None:
            channel = self._open(key)
            channel.send(talked, bodies)
            self._dirty[key] = peer, channel

    def _write(self, peer: PeerState, talks: list[tuple[frames.Talk, list[bytes]]]) -> None:
        if peer.link is not None:
            for talk, bodies in talks:
                self._output.effects.send.append((peer.link, frames.encode(talk, bodies)))

    def _tell(self, peer: PeerState, heard: frames.Heard) -> None:
        if peer.link is not None:
            self._output.send(peer.link, heard)

    def _limit_of(self, key: str) -> int | None:
        peer = self._peers.find(key)
        return self._peers.limit_of(peer) if peer is not None else None

    # -- time ------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Says again where channels are that are not at rest, in case a frame was lost."""
        for key, channel in self._channels.items():
            if channel.restless:
                peer = self._peers.find(key)
                if peer is not None:
                    self._tell(peer, channel.state())

    def tick(self) -> None:
        """Time has passed."""
        self.calls.tick(self._output.now)
        self.serving.tick(self._output.now)

    def wake_at(self, soonest: float) -> float:
        """When ``tick`` may have something to do, if that is before ``soonest``."""
        soonest = self.calls.wake_at(soonest)
        due = self.serving.wake_at()
        return due if due is not None and due < soonest else soonest

    def close(self) -> None:
        """The node closes: calls are given up, and whoever waits for answers from here hears that none will come."""
        self.calls.close(self._output.now)
        self.serving.close_all()
        self.dispatch()

    def check(self) -> None:
        """Every machine checks itself."""
        self.calls.check()
        self.serving.check()
        for channel in self._channels.values():
            channel.check()
