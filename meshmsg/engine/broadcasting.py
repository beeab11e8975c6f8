"""The publishing and subscribing half of the engine: who follows whom, and through which socket."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from meshmsg.engine.effects import Follow
from meshmsg.engine.output import Output
from meshmsg.engine.peers import LEFT, SELF_LINK, Identity, Peers, PeerState
from meshmsg.engine.publisher import MAX_ENTRIES, Broadcast, Publisher
from meshmsg.engine.subscriber import Reception, Subscriptions
from meshmsg.engine.subscription import FIRST_WILL, Delivery, Subscription
from meshmsg.engine.topic_log import headers_of
from meshmsg.engine.topics import find_fault, matches, overlaps
from meshmsg.errors import ProtocolError
from meshmsg.wire import frames
from meshmsg.wire.codec import decode_body, encode_batch

KEEP_S = 120.0  # a publisher that fell silent is waited for; then what is known to be missing becomes gaps
# What a publisher that is gone sent last is on its way through another connection than its goodbye.
LINGER_S = 0.5
MAX_COMPARISONS = 10_000  # of patterns; with more, a publisher is followed unseen, and its filters decide

WILL = "will"  # the kind of offer
WILL_HEADER = "will"  # a header of messages that a publisher's last will is: nobody sent them
MAX_WILL_BYTES = 4096  # every peer keeps all wills of all others
MAX_WILL_TEXT = 200

# Why a peer is gone, when it is certain that this life of it does not come back.
FINAL = (LEFT, "crashed", "restarted")


class Broadcaster:
    """Publisher and subscriptions of a node, tied to its peers. It tells them frames; the engine tells it of them.

    A node is a peer of its own: what it publishes reaches its own subscriptions by the same frames, but no socket.
    """

    def __init__(self, identity: Identity, peers: Peers, output: Output) -> None:
        self.publisher = Publisher()
        self.subscriptions = Subscriptions(identity.node_id, identity.incarnation)
        self.refused = 0  # broadcast messages that could not be read
        self.on_collected: Callable[[list[Broadcast]], None] = lambda broadcasts: None
        self._max_bytes = identity.max_body_bytes or frames.MAX_PAYLOAD_BYTES
        self._identity = identity
        self._myself = f"{identity.node_id}.{identity.incarnation}"
        self._peers = peers
        self._output = output
        self._numbers: dict[str, int] = {}  # by peer that is followed
        self._followed: dict[int, str] = {}
        self._published: dict[str, set[str]] = {}  # by peer that is followed: what it published to at any time
        self._reasons: dict[str, set[str]] = {}  # by the same: those of our patterns that overlap these
        self._next_number = 1
        self._away: dict[str, float] = {}  # publishers that fell silent, and when
        self._ending: dict[str, tuple[float, PeerState, str]] = {}  # publishers that are gone, and why
        self._executed: set[str] = set()  # publishers whose last wills were carried out since they were last up
        self._leaving = False
        self._missed: set[str] = set()  # subscribers that fell silent before they had all, while this node leaves
        self._changed = False  # whether filters may have to
        self._subscribed = False  # whether it may be others that are to be followed

    # -- commands --------------------------------------------------------------------------------------------

    def subscribe(self, subscription: Subscription, version: int) -> None:
        """A subscription that the offers of this version hold."""
        subscription.on_arrival = self._on_arrival
        self.subscriptions.add(subscription, version)
        self._subscribed = True

    def unsubscribe(self, subscription: Subscription, version: int) -> None:
        """The application is done with it; the offers of this version don't hold it any more."""
        self.subscriptions.remove(subscription, version)
        self._subscribed = True

    def sync_all(self) -> None:
        """This node's offers are being told: once, however many subscriptions came or went."""
        if not self._subscribed:
            return
        self._subscribed = False
        self._changed = True
        for peer in self._peers.by_id.values():
            self._follow_or_not(peer)

    def _on_arrival(self, subscription: Subscription) -> None:
        self._output.effects.deliver.append(subscription.name)

    # -- what becomes of the peers ---------------------------------------------------------------------------

    def sync(self, peer: PeerState) -> None:
        """A peer's offers are new."""
        self.publisher.on_offers(peer.key, peer.offers_version, peer.offers.get("sub", {}), self._output.now)
        self._follow_or_not(peer)

    def resume(self, peer: PeerState) -> None:
        """A peer is there, or there again: what was on its old link is lost."""
        self.publisher.pause(peer.key, False)
        self._executed.discard(peer.key)
        self._away.pop(peer.key, None)
        self._ending.pop(peer.key, None)
        self._missed.discard(peer.key)
        for key in [key for key in self.subscriptions.receptions if key != peer.key]:
            if key.partition(".")[0] == peer.node_id:
                self._end(key)  # a former life
        reception = self.subscriptions.receptions.get(peer.key)
        if reception is not None:
            reception.up()
        self.sync(peer)

    def pause(self, node_id: str) -> None:
        """A peer is suspect: it holds up nobody."""
        peer = self._peers.by_id.get(node_id)
        if peer is not None:
            self.publisher.pause(peer.key, True)

    def end(self, peer: PeerState, why: str) -> None:
        """A peer is gone. Unless it is certain that it does not come back, it gets some time to."""
        if self._leaving and why not in FINAL and self.publisher.awaits(peer.key):
            self._missed.add(peer.key)
        self.publisher.on_down(peer.key)
        if peer.key not in self.subscriptions.receptions:
            self._unfollow(peer.key)
        elif why in FINAL:
            self._ending[peer.key] = self._output.now, peer, why
        else:
            self._unfollow(peer.key)
            self._away[peer.key] = self._output.now
            self._execute_wills(peer, self._positions_of_wills(peer))

    def _positions_of_wills(self, peer: PeerState) -> dict[str, int]:
        topics = self.subscriptions.receptions[peer.key].topics
        return {topic: (topics[topic].position or 0) if topic in topics else 0 for topic in peer.offers.get(WILL, ())}

    def _execute_wills(self, peer: PeerState, positions: dict[str, int]) -> None:
        if peer.key in self._executed:  # it tried to come back, and went again before it was up
            return
        self._executed.add(peer.key)
        for topic, seq in positions.items():
            self._execute(peer, topic, peer.offers[WILL][topic], seq)

    def _execute(self, peer: PeerState, topic: str, details: dict[str, Any], seq: int) -> None:
        """The last will of a publisher that is gone without a goodbye: every subscriber publishes it to itself."""
        try:
            encoded = unwrap_will(details)
            decode_body(encoded)
            if find_fault(topic) is not None:
                raise ProtocolError("a last will for what is no topic")
        except (ProtocolError, ValueError):
            self.refused += 1
            return
        for subscription in self.subscriptions.match(topic):
            body = decode_body(encoded)  # to each its own
            number = FIRST_WILL + seq
            headers = {number: {WILL_HEADER: True}}
            subscription.put_will(Delivery(topic, peer.key, number, [body], headers, len(encoded)))

    def _end(self, key: str) -> None:
        ending = self._ending.pop(key, None)
        positions: dict[str, int] = {}
        if ending is not None and ending[2] != LEFT and key in self.subscriptions.receptions:
            positions = self._positions_of_wills(ending[1])
        self._unfollow(key)
        self._away.pop(key, None)
        self._reasons.pop(key, None)
        self._published.pop(key, None)
        self.subscriptions.end(key)
        if ending is not None:
            self._execute_wills(ending[1], positions)
        self._executed.discard(key)

    def say_last(self) -> None:
        """This node leaves: its subscribers hear how far each topic went, and miss nothing unnoticed."""
        self._leaving = True
        self.dispatch()
        topics = self.publisher.topics()
        for key in self.publisher.followers:
            stated = [[topic, topics[topic]] for topic in self.publisher.lags(key)]
            for start in range(0, len(stated), MAX_ENTRIES):
                self._send(key, frames.Beacon(stated[start : start + MAX_ENTRIES]), [])

    def _follow_or_not(self, peer: PeerState) -> None:
        if peer.link is None:
            return
        reasons = self._find_reasons(peer)
        if not reasons:
            if peer.key in self._numbers:
                self._end(peer.key)
        elif peer.key not in self._numbers:
            endpoint = self._choose_endpoint(peer)
            if endpoint is not None:
                self._follow(peer, endpoint)
        else:
            self.subscriptions.receptions[peer.key].report_each(*self._report_steps(peer))

    def _find_reasons(self, peer: PeerState) -> set[str]:
        """Patterns for which a peer is followed, also when it publishes no more to them: what it did is on its way."""
        wanted = self.subscriptions.offers().keys()
        published = {*peer.offers.get("pub", ()), *self._published.get(peer.key, ())}
        reasons = self._reasons.get(peer.key, set()) & wanted
        if len(published) * len(wanted) > MAX_COMPARISONS:
            reasons |= wanted
        else:
            reasons |= {ours for ours in wanted - reasons if any(overlaps(theirs, ours) for theirs in published)}
        if reasons:
            self._reasons[peer.key], self._published[peer.key] = reasons, published
        else:
            self._reasons.pop(peer.key, None)
            self._published.pop(peer.key, None)
        return reasons

    def _choose_endpoint(self, peer: PeerState) -> str | None:
        """Where its XPUB is: at the address that its link reached, if it says so."""
        if peer.link == SELF_LINK:
            return ""
        endpoints = peer.offers.get("broadcast", {}).get("xpub", {}).get("endpoints", ())
        known = [each for each in endpoints if type(each) is str] if type(endpoints) is list else []
        reached = self._peers.reached_at(peer)
        host = reached.rpartition(":")[0] if reached else None
        return next((each for each in known if each.rpartition(":")[0] == host), known[0] if known else None)

    def _follow(self, peer: PeerState, endpoint: str) -> None:
        number = self._numbers[peer.key] = self._next_number
        self._next_number += 1
        self._followed[number] = peer.key
        reception = self.subscriptions.follow(peer.key)
        reception.report_each(*self._report_steps(peer))
        reception.forget_filters()
        reception.change_filters()
        if peer.link == SELF_LINK:
            self._filter_myself(reception.filters, [])
        else:
            *filters, marker = reception.filters
            self._output.effects.follow.append(Follow(number, endpoint, filters, marker))

    def _report_steps(self, peer: PeerState) -> tuple[int | None, int | None]:
        """A publisher that waits for the slowest subscriber hears four times a window how far this one is."""
        steps: list[int | None] = []
        for name in ("window", "window_bytes"):
            windows = [offer.get(name) for offer in peer.offers.get("pub", {}).values()]
            smallest = min((each for each in windows if type(each) is int and each > 0), default=None)
            steps.append(None if smallest is None else max(1, smallest // 4))
        return steps[0], steps[1]

    def _unfollow(self, key: str) -> None:
        number = self._numbers.pop(key, None)
        if number is None:
            return
        del self._followed[number]
        reception = self.subscriptions.receptions.get(key)
        if key == self._myself:
            self._filter_myself([], reception.filters if reception is not None else [])
        else:
            self._output.effects.unfollow.append(number)
        if reception is not None:
            reception.forget_filters()

    def _change_filters(self, key: str, reception: Reception) -> None:
        new, old = reception.change_filters()
        if not new and not old:
            return
        if key == self._myself:
            self._filter_myself(new, old)
        elif reception.filters:
            *filters, marker = reception.filters
            self._output.effects.follow.append(Follow(self._numbers[key], None, filters, marker))

    def _filter_myself(self, new: list[bytes], old: list[bytes]) -> None:
        for each in new:
            self.publisher.on_filter(each, True, self._output.now)
        for each in old:
            self.publisher.on_filter(each, False, self._output.now)

    # -- inputs ----------------------------------------------------------------------------------------------

    def on_published(self, number: int, parts: Sequence[Any]) -> None:
        """Messages came through the SUB of a publisher. What cannot be read costs itself and nothing else (G11)."""
        key = self._followed.get(number)
        reception = self.subscriptions.receptions.get(key) if key is not None else None
        if reception is None:
            return
        try:
            published = frames.decode_published(parts, self.publisher.piece_bytes, self._max_bytes)
            reception.on_published(published, self._output.now)
        except ProtocolError as error:
            self.refused += 1
            self._output.notes.tell("frame.refused", reception.node_id, reception.node_id, f"{error}", self._output.now)

    def on_failed(self, number: int, why: str) -> None:
        """A publisher's broadcast is out of reach. A connection that breaks is no news: it is made again."""
        key = self._followed.get(number)
        peer = self._peers.by_id.get(key.partition(".")[0]) if key is not None else None
        if peer is not None:
            text = f"its broadcast cannot be followed ({why})"
            self._output.notes.tell("publisher.unreachable", peer.name, peer.node_id, text, self._output.now)

    def on_frame(self, peer: PeerState, frame: frames.PubSubFrame) -> None:
        """What a publisher says to this subscriber, or a subscriber to this publisher."""
        now = self._output.now
        if isinstance(frame, frames.Want):
            self.publisher.on_want(peer.key, frame)
            return
        if isinstance(frame, frames.Lag):
            self.publisher.on_lag(peer.key, frame)
            return
        reception = self.subscriptions.receptions.get(peer.key)
        if reception is None:
            return
        if isinstance(frame, frames.Past):
            reception.on_past(frame, now)
        elif isinstance(frame, frames.Forgotten):
            reception.on_forgotten(frame, now)
        elif isinstance(frame, frames.Beacon):
            reception.on_beacon(frame, now)
        else:
            reception.on_start(frame, now)
            self._changed = True  # a next marker may have waited for it

    # -- time and output -------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Once a heartbeat: where topics stand, and what arrived."""
        for answer in self.publisher.heartbeat(self._output.now):
            self._send(answer.peer, answer.frame, answer.bodies)
        self.subscriptions.heartbeat()

    @property
    def awaited(self) -> bool:
        """Whether another node has yet to say that it got everything that was published here."""
        subscribers = (key for key in self.publisher.followers if key != self._myself)
        return bool(self._missed) or any(map(self.publisher.awaits, subscribers))

    def tick(self) -> None:
        """Gives up publishers that are gone, or have been silent for long."""
        for key in [key for key, ending in self._ending.items() if self._output.now >= ending[0] + LINGER_S]:
            self._end(key)
        for key in [key for key, since in self._away.items() if self._output.now >= since + KEEP_S]:
            self._end(key)

    @property
    def stirred(self) -> bool:
        """Whether ``dispatch`` has something to do."""
        publisher, subscriptions = self.publisher, self.subscriptions
        return bool(
            publisher.staged
            or subscriptions.stirred
            or publisher.owed
            or subscriptions.room_made
            or publisher.unblocked
            or self._changed
        )

    def dispatch(self) -> None:
        """Everything that was published, asked for, or arrived since the last time."""
        now = self._output.now
        publisher, subscriptions = self.publisher, self.subscriptions
        own = subscriptions.receptions.get(self._myself) if self._myself in self._numbers else None
        broadcasts = publisher.collect(now)
        self.on_collected(broadcasts)
        for topic, first_seq, bodies, headers in broadcasts:
            node_id, incarnation = self._identity.node_id, self._identity.incarnation
            payload = encode_batch(bodies)
            published = frames.Published(topic, node_id, incarnation, first_seq, len(bodies), headers, payload)
            self._output.effects.publish.append(frames.encode_published(published, publisher.piece_bytes))
            if own is not None:
                own.on_published(published, now)
        publisher.unblocked.clear()  # who waits looks for itself
        if self._changed:
            self._changed = False
            for key in self._numbers:
                self._change_filters(key, subscriptions.receptions[key])
        for answer in publisher.answers(now):
            self._send(answer.peer, answer.frame, answer.bodies)
        for key, frame in subscriptions.collect(now):
            self._send(key, frame, [])

    def _send(self, key: str, frame: frames.PubSubFrame, bodies: list[bytes]) -> None:
        peer = self._peers.find(key)
        if peer is None or peer.link is None:
            return
        limit = self._peers.limit_of(peer)
        if limit is not None and isinstance(frame, frames.Past):
            for part, its_bodies in _leave_out(frame, bodies, limit):
                self._output.effects.send.append((peer.link, frames.encode(part, its_bodies)))
        else:
            self._output.effects.send.append((peer.link, frames.encode(frame, bodies)))

    def wake_at(self, soonest: float) -> float:
        """When there is something to do again, if that is sooner."""
        now, publisher, subscriptions = self._output.now, self.publisher, self.subscriptions
        if publisher.owed:
            due = publisher.wake_at(now)
            if due is not None and due < soonest:
                soonest = due
        if subscriptions.stirred or subscriptions.room_made:
            due = subscriptions.wake_at(now)
            if due is not None and due < soonest:
                soonest = due
        if self._away or self._ending:
            soonest = min([soonest, *(since + KEEP_S for since in self._away.values())])
            soonest = min([soonest, *(ending[0] + LINGER_S for ending in self._ending.values())])
        return soonest

    def count_publishers(self, topic: str) -> int:
        """Living publishers of a topic that have confirmed every subscription of this node which gets it."""
        subscriptions = self.subscriptions.match(topic)
        if not subscriptions:
            return 0
        receptions = self.subscriptions.receptions
        return sum(
            all(map(receptions[peer.key].is_live, subscriptions))
            for peer in self._peers.living()
            if peer.key in receptions and any(matches(pattern, topic) for pattern in peer.offers.get("pub", ()))
        )

    # -- looking ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """The machines' own invariants, for the simulator."""
        self.publisher.check()
        self.subscriptions.check()
        for key, number in self._numbers.items():
            assert self._followed[number] == key
            assert key in self.subscriptions.receptions


def wrap_will(encoded: bytes) -> dict[str, Any]:
    """An encoded body as details of an offer, which are texts."""
    text = base64.b64encode(encoded).decode()
    return {"body": [text[start : start + MAX_WILL_TEXT] for start in range(0, len(text), MAX_WILL_TEXT)]}


def unwrap_will(details: dict[str, Any]) -> bytes:
    """The encoded body again; raises ``ValueError`` if that is not what a peer offered (G11)."""
    parts = details.get("body")
    if type(parts) is not list or not all(type(part) is str for part in parts):
        raise ValueError("a last will is a list of texts")
    encoded = base64.b64decode("".join(parts), validate=True)
    if len(encoded) > MAX_WILL_BYTES:
        raise ValueError(f"a last will of {len(encoded)} bytes")
    return encoded


def _leave_out(past: frames.Past, bodies: list[bytes], limit: int) -> Iterator[tuple[frames.PubSubFrame, list[bytes]]]:
    """A repair for a subscriber that takes no bodies over ``limit``: for it they are as good as forgotten."""
    start = 0
    for index in [index for index, body in enumerate(bodies) if len(body) > limit]:
        if index > start:
            yield _part(past, start, index, more=True), bodies[start:index]
        start = index + 1
        yield frames.Forgotten(past.topic, past.first_seq + start, past.more or start < len(bodies)), []
    if start < len(bodies):
        yield _part(past, start, len(bodies), more=past.more), bodies[start:]


def _part(past: frames.Past, start: int, stop: int, *, more: bool) -> frames.Past:
    headers = headers_of(past.headers, past.first_seq + start, past.first_seq + stop)
    return past._replace(first_seq=past.first_seq + start, total=stop - start, headers=headers, more=more)
