"""The engine: composes the machines, routes frames and time to them, and collects what they want done.

Call any command or ``handle_*``, then ``drain(now)`` once, and carry out the fields of its ``Effects`` in their order.
Nothing here knows a socket, a loop, a thread or a clock. The machines never call one another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from meshmsg.checks import GROUP_PREFIX
from meshmsg.engine.binding import Binding
from meshmsg.engine.broadcasting import Broadcaster
from meshmsg.engine.calls import Calls
from meshmsg.engine.conversing import ROUTER, Conversations
from meshmsg.engine.dead_letters import MAX_DEAD_LETTER_BYTES, MAX_DEAD_LETTERS, DeadLetterBox
from meshmsg.engine.effects import Effects
from meshmsg.engine.groups import Groups
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.outbox import Outbox
from meshmsg.engine.output import Output
from meshmsg.engine.peers import HEARD, LEFT, SELF_LINK, Identity, LinkNews, OfferRoom, Peers, PeerState
from meshmsg.engine.publisher import Publisher
from meshmsg.engine.receiving import DISTRUST_S, Receiver
from meshmsg.engine.sending import Sender
from meshmsg.engine.served import Service, Serving
from meshmsg.engine.subscriber import Subscriptions
from meshmsg.engine.subscription import Subscription
from meshmsg.engine.topic_log import TopicOptions
from meshmsg.errors import ProtocolError
from meshmsg.message import Ledger, Peer
from meshmsg.options import LivenessOptions, PushOptions, RouterOptions
from meshmsg.wire import frames

# What offers cost at every peer; changes of many are told so seldom that this takes part of a peer's time only.
OFFER_PAUSE_S = 20e-6  # for each
MANY_OFFERS = 100
PAUSED = {"serving": False}  # what a router says that wants no requests


class Engine:
    """One node's protocol. ``generator`` is the only source of chance, ``now`` the only clock."""

    def __init__(
        self,
        identity: Identity,
        *,
        generator: random.Random,
        liveness: LivenessOptions | None = None,
        max_dead_letters: int = MAX_DEAD_LETTERS,
        max_dead_letter_bytes: int = MAX_DEAD_LETTER_BYTES,
        wall_offset: float = 0.0,
    ) -> None:
        self.identity = identity
        self.liveness = liveness or LivenessOptions()
        self.refused_frames = 0
        self.unknown_kinds = 0
        self.topology = 0  # changes whenever a peer comes, goes, or offers something else
        self.wake: Callable[[], None] = lambda: None  # asks the driver for a turn
        self.on_queue_over: Callable[[str], None] = lambda queue: None  # told of a closed push that holds nothing more
        self.peers = Peers(identity, self.liveness, generator)
        self.dead_letters = DeadLetterBox(max_dead_letters, max_dead_letter_bytes)
        self._output = output = Output(wall_offset)
        self._notes = output.notes
        self._sender = Sender(
            self.peers, output, generator, self.dead_letters, lambda queue: self.offer("push", queue, {})
        )
        self._sender.on_over = lambda queue: self.on_queue_over(queue)
        self._broadcaster = Broadcaster(identity, self.peers, output)
        self.groups = Groups(self.peers, self._sender, output)
        self._broadcaster.on_collected = self.groups.take
        self.subscriptions.wake = lambda: self.wake()
        self._conversations = Conversations(self.peers, output, generator)
        self._receiver = Receiver(self.peers, output, lambda: self.wake())
        self.outboxes = self._sender.outboxes
        self.inboxes = self._receiver.inboxes
        self._next_beat = 0.0
        self._standstill_s = max(self.liveness.gone_after - self.liveness.heartbeat, self.liveness.heartbeat)
        self._closed = False
        self._offer_room = OfferRoom()
        self._offers_changed = False  # since they were last told
        self._offers_due = 0.0  # when they may be told again
        self._unanswered: set[int] = set()  # links a goodbye went out on, until it is answered
        self._unheard: set[int] = set()  # links that refused a frame since the last beat
        self._handlers = self._make_handlers()
        self._peers_wake_at: float | None = None  # None: to be worked out anew

    # -- commands --------------------------------------------------------------------------------------------

    @property
    def make_outbox(self) -> type[Outbox]:
        """What an outbox is made of; a face with threads has a kind of its own."""
        return self._sender.make_outbox

    @make_outbox.setter
    def make_outbox(self, kind: type[Outbox]) -> None:
        self._sender.make_outbox = kind

    def set_wall_offset(self, seconds: float) -> None:
        """What the wall clock is ahead of ``now``; for times that people read."""
        self._sender.set_wall_offset(seconds)

    def open_push(self, queue: str, options: PushOptions) -> Outbox:
        """A queue to send work to; the same queue again is the same outbox."""
        return self._sender.open(queue, options)

    def close_push(self, queue: str) -> None:
        """Nobody sends to a queue any more. What it holds finds its end, and then it is forgotten."""
        self._sender.close(queue)
        self.withdraw("push", queue)

    def open_pull(self, queue: str, prefetch: int) -> Inbox:
        """A queue to take work from."""
        self.offer("pull", queue, {})
        return self._receiver.open(queue, prefetch)

    def close_pull(self, queue: str) -> None:
        """Stops consuming: returns what was not started, and what still arrives; verdicts go on being heard."""
        if self._receiver.close(queue):
            self.withdraw_pull(queue)

    def withdraw_pull(self, queue: str) -> None:
        """Tells every peer that this queue gets no more work here."""
        self.withdraw("group" if queue.startswith(GROUP_PREFIX) else "pull", queue)

    def open_group(self, binding: Binding, prefetch: int, *, durable: bool = False) -> Inbox:
        """This node is a member of a group from now on; ``close_pull`` ends that."""
        self.offer("group", binding.queue, binding.describe(durable=durable))
        return self._receiver.open(binding.queue, prefetch)

    def open_pub(self, pattern: str, options: TopicOptions, group_options: PushOptions | None = None) -> None:
        """Topics to publish to; raises ``NameClash`` for ones that have other options already."""
        self.declare_pub(pattern, options, group_options)
        self.offer_pub(pattern)

    def declare_pub(self, pattern: str, options: TopicOptions, group_options: PushOptions | None = None) -> None:
        """As ``open_pub``, but tells nobody yet."""
        with self.reserving_offer("pub", pattern, options.offer()):
            self.publisher.declare(pattern, options)
        self.groups.declare(pattern, group_options or PushOptions())

    def offer_pub(self, pattern: str) -> None:
        """Tells every peer of topics that are declared already; not before there is an endpoint to follow."""
        self.offer("pub", pattern, self.publisher.offers()[pattern])

    def close_pub(self, pattern: str) -> None:
        """Publishes no more to these topics; what was published can still be had."""
        self.publisher.withdraw(pattern)
        self.groups.withdraw(pattern)
        if pattern not in self.publisher.offers():
            self.withdraw("pub", pattern)

    def open_sub(self, subscription: Subscription) -> None:
        """Topics to hear of, each with a buffer of its own for the application to take from."""
        version = self.identity.offers_version + 1
        with self.reserving_offer("sub", subscription.pattern, {"since": version}):
            self._broadcaster.subscribe(subscription, version)
        self.offer("sub", subscription.pattern, self.subscriptions.offers()[subscription.pattern])

    def close_sub(self, subscription: Subscription) -> None:
        """Hears of them no more."""
        self._broadcaster.unsubscribe(subscription, self.identity.offers_version + 1)
        if subscription.pattern in self.subscriptions.offers():  # another one is open
            self.offer("sub", subscription.pattern, self.subscriptions.offers()[subscription.pattern])
        else:
            self.withdraw("sub", subscription.pattern)

    def open_router(self, name: str, options: RouterOptions) -> Service:
        """A service that others may request; raises ``NameClash`` if it is open."""
        with self.reserving_offer(ROUTER, name, PAUSED):
            service = self.serving.open(name, options)
        self.offer(ROUTER, name, {})
        return service

    def set_serving(self, name: str, serving: bool) -> None:
        """Tells every peer whether a service takes requests now."""
        if name in self.serving.services:
            self.offer(ROUTER, name, {} if serving else PAUSED)

    def close_router(self, name: str) -> None:
        """Serves no more: what was not started goes elsewhere, what runs may end."""
        self.serving.close(name)
        self.withdraw(ROUTER, name)

    @property
    def calls(self) -> Calls:
        """What this node requests."""
        return self._conversations.calls

    @property
    def serving(self) -> Serving:
        """What others request here."""
        return self._conversations.serving

    @property
    def publisher(self) -> Publisher:
        """What this node publishes."""
        return self._broadcaster.publisher

    @property
    def subscriptions(self) -> Subscriptions:
        """What this node hears of."""
        return self._broadcaster.subscriptions

    @property
    def leaving(self) -> bool:
        """Whether a producer that is there still has to let go of a closed inbox."""
        return self._receiver.leaving

    def offer(self, kind: str, name: str, details: dict[str, Any]) -> None:
        """Tells every peer what this node has; once, if much is opened in one turn.

        Raises ``ConfigurationError``, and changes nothing, if all of it would be more than a peer reads.
        """
        self._offer_room.take(kind, name, details)
        self.identity.offers.setdefault(kind, {})[name] = details
        self._change_offers()

    def withdraw(self, kind: str, name: str) -> None:
        """Takes an offer back."""
        self._offer_room.give_back(kind, name)
        self.identity.offers.setdefault(kind, {}).pop(name, None)
        self._change_offers()

    @contextmanager
    def reserving_offer(self, kind: str, name: str, details: dict[str, Any]) -> Iterator[None]:
        """While something is opened that is offered later: so ``offer`` won't fail then. Until it is withdrawn.

        Raises ``ConfigurationError`` as ``offer``; nothing is reserved if the block raises.
        """
        first = self._offer_room.take(kind, name, details)
        try:
            yield
        except BaseException:
            if first:
                self._offer_room.give_back(kind, name)
            raise

    def _change_offers(self) -> None:
        self.identity.offers_version += 1
        self._offers_changed = True

    def _tell_offers(self) -> None:
        """They are complete each time. So the last of a turn do, and who has many does not tell each change of them."""
        count = sum(map(len, self.identity.offers.values()))
        self._offers_changed = False
        self._offers_due = self._output.now + (count * OFFER_PAUSE_S if count >= MANY_OFFERS else 0.0)
        self._output.send_all(
            (link for link, _ in self.peers.linked()),
            frames.Offers(self.identity.offers_version, self.identity.offers),
        )
        self._broadcaster.sync_all()

    def redrive(self, ids: Iterable[str]) -> list[str]:
        """Sends dead letters again, as far as their outboxes have room (G5); returns the ids of those that went."""
        return self._sender.redrive(ids)

    def close(self, reason: str = LEFT) -> None:
        """Says goodbye to everybody, after returning what was not started; from then on only answers to that count."""
        for queue in list(self.inboxes):
            self.close_pull(queue)
        if self._offers_changed:
            self._tell_offers()
        self._receiver.flush()  # after a goodbye nobody listens any more
        self._broadcaster.say_last()
        self._conversations.close()
        self._closed = True
        for link, _ in self.peers.linked():
            if link != SELF_LINK:
                self._output.send(link, frames.Bye(reason))
                self._unanswered.add(link)

    def finish_publishing(self) -> None:
        """Has subscribers say what they got; ``published`` tells when they have."""
        self._broadcaster.say_last()

    @property
    def published(self) -> bool:
        """Whether every other subscriber got everything (G6)."""
        return not self._broadcaster.awaited

    @property
    def parted(self) -> bool:
        """After ``close``: whether nobody is left who may learn of it from a broken link, ahead of the goodbye."""
        return not self._unanswered

    # -- inputs ----------------------------------------------------------------------------------------------

    def handle_discovered(self, node_id: str | None, endpoints: tuple[str, ...], now: float) -> None:
        """Discovery found somebody who might exist."""
        if self._closed:
            return
        self.peers.discovered(node_id, endpoints, now)
        self._peers_wake_at = None

    def handle_withdrawn(self, node_id: str) -> None:
        """Discovery lost sight of somebody."""
        self.peers.withdrawn(node_id)

    def handle_link(self, link: int, news: LinkNews, now: float) -> None:
        """The transport has news of a link."""
        self._output.now = now
        if self._closed:
            if news != "up":
                self._unanswered.discard(link)
            return
        self.peers.on_link(link, news, now)
        self._apply_peer_news(now)

    def handle_filter(self, text: bytes, subscribed: bool, now: float) -> None:
        """A filter appeared at this node's XPUB, or nobody has it any more."""
        self._output.now = now
        self.publisher.on_filter(text, subscribed, now)

    def handle_refusals(self, refusals: Sequence[str], now: float) -> None:
        """The transport cut off subscribers that asked for too much, each for a reason (G11)."""
        self.refused_frames += len(refusals)
        self._notes.tell("frame.refused", "", "", f"{refusals[-1]} ({self.refused_frames} refused so far)", now)

    def handle_published(self, number: int, parts: Sequence[Any], now: float) -> None:
        """Messages came from a publisher that is followed."""
        self._output.now = now
        if not self._closed:
            self._broadcaster.on_published(number, parts)

    def handle_follow(self, number: int, news: str, now: float) -> None:
        """What became of the connection to a publisher that is followed: ``up``, ``down`` or that it ``failed``."""
        self._output.now = now
        if not self._closed and news.startswith("failed"):
            self._broadcaster.on_failed(number, news)

    def handle_dial_refused(self, link: int, endpoint: str, why: str, now: float) -> None:
        """The transport cannot even try this endpoint."""
        self._notes.tell("dial.refused", endpoint, endpoint, why, now)
        self.handle_link(link, "failed", now)

    def handle_unsent(self, link: int) -> None:
        """A link had no room for a frame, so its peer may not know what we believe it knows."""
        self._unheard.add(link)

    def handle_parts(self, route: bytes, parts: list[bytes], now: float) -> None:
        """A frame arrived. Whatever is wrong with it costs its sender's link and nothing else (G11)."""
        self._output.now = now
        peer = self.peers.by_route.get(route)
        try:
            frame = frames.decode(parts)
            if frame is None:
                self.unknown_kinds += 1
            elif self._closed:
                if peer is not None and type(frame) is frames.Bye and peer.link is not None:
                    self._unanswered.discard(peer.link)
            elif type(frame) is frames.Hello:
                self.peers.on_hello(route, frame, now)
                new_link = peer is None
                peer = self.peers.by_route.get(route)
                if peer is not None:
                    if new_link:  # with the one before, the news may be lost that a lane is over
                        self._receiver.resume_lanes(peer)
                    self.topology += 1  # it may bring newer offers than the frame that is on its way
                    self._sync(peer)
            elif peer is None:
                # Before HELLO nothing is believed: a former life, or a stranger at a reused port.
                self.refused_frames += 1
            else:
                self.peers.on_heard(peer, now)
                self._handlers[type(frame)](peer, frame)
        except ProtocolError as error:
            self._refuse(peer, route, error, now)
        self._apply_peer_news(now)

    def _refuse(self, peer: PeerState | None, route: bytes, error: ProtocolError, now: float) -> None:
        self.refused_frames += 1
        name = peer.name if peer else repr(route[:64])
        if peer is not None and peer.link == SELF_LINK:  # a bug, and no reason to do without this node
            text = f"a frame of this node to itself, which is a bug of meshmsg: {error}"
            self._notes.tell("frame.refused", name, peer.node_id, text, now)
            return
        self._notes.tell("frame.refused", name, peer.node_id if peer else "", f"{error}", now)
        if peer is not None and not self._closed:
            if peer.link is not None:
                self._output.send(peer.link, frames.Bye(f"refused: {error}"[:400]))
            self.peers.expel(peer, "protocol error", now)

    def _make_handlers(self) -> dict[type[frames.Frame], Callable[[PeerState, Any], None]]:
        """Who gets a frame of each kind."""
        talk, publish = self._conversations.on_frame, self._broadcaster.on_frame
        return {
            frames.Data: self._receiver.on_data,
            frames.Ack: self._sender.on_ack,
            frames.Talk: talk,
            frames.Heard: talk,
            frames.LaneState: self._receiver.on_lane_state,
            frames.Close: lambda peer, close: self._receiver.on_close(peer, close.lane),
            frames.Lost: lambda peer, lost: self._sender.on_lost(peer, lost.lane),
            frames.Beat: lambda peer, beat: None,
            frames.Offers: self._on_offers,
            frames.Bye: self._on_bye,
            **dict.fromkeys(frames.PUB_SUB_FRAMES, publish),
        }

    def _on_offers(self, peer: PeerState, told: frames.Offers) -> None:
        if told.version > peer.offers_version:
            peer.offers, peer.offers_version = told.offers, told.version
            self.topology += 1
            self._sync(peer)

    def _on_bye(self, peer: PeerState, bye: frames.Bye) -> None:
        if bye.reason == LEFT:  # it stays until it hears this, so that our link to it cannot break before
            for link in self.peers.links_to(peer):
                self._output.send(link, frames.Bye(HEARD))
        self.peers.on_bye(peer, bye.reason, self._output.now)

    def _sync(self, peer: PeerState) -> None:
        """A peer's offers may be new."""
        self.groups.sync(peer)
        self._sender.sync_lanes(peer)
        self._broadcaster.sync(peer)
        self._conversations.sync(peer)

    # -- peers -----------------------------------------------------------------------------------------------

    def _apply_peer_news(self, now: float) -> None:
        """Carries what the peers machine found out to the lanes."""
        peers = self.peers
        if not (peers.hello or peers.notes or peers.downs or peers.ups or peers.dial or peers.hang_up):
            return
        self._peers_wake_at = None
        if peers.ups or peers.downs:
            self.topology += 1
        for link, hello in peers.hello:
            # The offers may have changed since it was written, and with them their version.
            newest = hello._replace(offers_version=self.identity.offers_version)
            self._output.effects.send.append((link, frames.encode(newest)))
        peers.hello.clear()
        for kind, name, node_id, text in peers.notes:
            self._notes.tell(kind, name, node_id, text, now)
            if kind == "peer.suspect":
                self._sender.pause_lanes(node_id)
                self._broadcaster.pause(node_id)
                self._conversations.pause(node_id)
        peers.notes.clear()
        for peer, why in peers.downs:
            if peer.state != "new" or why != "silent":  # who never was up, and is heard no more, is not worth telling
                self._notes.tell("peer.down", peer.name, peer.node_id, why, now, always=True)
            self._sender.end_lanes(peer, why)
            self._receiver.end_lanes(peer)
            self._broadcaster.end(peer, why)
            self._conversations.end(peer, why)
            self.groups.end(peer, why)
        peers.downs.clear()
        for peer, new in peers.ups:
            if peers.by_id.get(peer.node_id) is peer:
                self._notes.tell("peer.up" if new else "peer.back", peer.name, peer.node_id, "", now, always=True)
                self._resume_lanes(peer)
        peers.ups.clear()

    def _resume_lanes(self, peer: PeerState) -> None:
        """Both sides of every lane tell where they are; what a broken link lost is found out by comparing."""
        if peer.link is not None:  # what changed since our HELLO left was told to linked peers only
            self._output.send(peer.link, frames.Offers(self.identity.offers_version, self.identity.offers))
        self.groups.sync(peer)
        self._sender.resume_lanes(peer)
        self._receiver.resume_lanes(peer)
        self._broadcaster.resume(peer)
        self._conversations.resume(peer)

    def _beat(self) -> None:
        """To everybody: I make progress. And the state of every lane that is not at rest, in case a frame was lost."""
        links = {peer.key: link for link, peer in self.peers.linked()}
        unheard = {key for key, link in links.items() if link in self._unheard}
        self._unheard.clear()
        for key, link in links.items():
            self._output.send(link, frames.Beat())
            if key in unheard:
                self.peers.introduce_again((link,))  # with the offers, and the answer to the HELLO of another link
                self._apply_peer_news(self._output.now)
        self._sender.repeat_states(links, unheard)
        self._sender.forget_over()
        self._receiver.repeat_states(unheard)
        self._broadcaster.beat()
        self._conversations.beat()

    # -- time and output -------------------------------------------------------------------------------------

    def handle_time(self, now: float) -> None:
        """Time has passed: heartbeats, timeouts, retries."""
        self._output.now = now
        if self._closed:
            return
        late = now - self._next_beat
        if late > self.liveness.heartbeat and self._next_beat:
            # This process was stopped, its loop was blocked, or its machine slept: nobody else is to blame.
            self.peers.forgive(late, now)
        if late >= 0:
            stood_still = self._next_beat > 0 and late >= self._standstill_s
            self._next_beat = now + (DISTRUST_S if stood_still else self.liveness.heartbeat)
            self._receiver.distrust(stood_still)
            self._beat()
        self.peers.tick(now)
        self._apply_peer_news(now)
        self._peers_wake_at = None
        self.groups.tick()
        self._sender.tick()
        self._broadcaster.tick()
        self._conversations.tick()

    def drain(self, now: float) -> Effects:
        """One batch of effects for everything that happened since the last one."""
        if self._next_beat and now - self._next_beat >= self._standstill_s:
            self.handle_time(now)  # first: what has come meanwhile may run elsewhere
        self._output.now = now
        self._apply_peer_news(now)
        if not self._closed:
            if self._offers_changed and now >= self._offers_due:
                self._tell_offers()
            if self._broadcaster.stirred or self.groups.promising:
                self._broadcaster.dispatch()  # first, because it fills the outboxes of groups
            if self._sender.stirred:
                self._sender.dispatch()
            if self._receiver.stirred:
                self._receiver.flush()
            if self._conversations.stirred:
                self._conversations.dispatch()
        effects = self._output.take()
        peers = self.peers
        if peers.dial:
            effects.dial, peers.dial = peers.dial, []
        if peers.hang_up:
            effects.hang_up, peers.hang_up = peers.hang_up, []
        effects.wake_at = None if self._closed else self._wake_at()
        return effects

    def _wake_at(self) -> float:
        # Hearing from a peer only moves its deadlines back, so an old answer is never too late.
        if self._peers_wake_at is None:
            self._peers_wake_at = min(self.peers.wake_at(), default=self._next_beat)
        soonest = self._sender.wake_at(min(self._peers_wake_at, self._next_beat))
        if self._offers_changed:
            soonest = min(soonest, self._offers_due)
        return self._conversations.wake_at(self._broadcaster.wake_at(soonest))

    # -- looking ---------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """What happened since the start that nobody had to be told of one by one."""
        calls, serving = self.calls, self.serving
        return {
            "refused_frames": self.refused_frames,
            "unknown_kinds": self.unknown_kinds,
            "lane_losses": self._sender.lane_losses,
            "request_retries": calls.retries,
            "request_hedges": calls.hedged,
            "late_replies": calls.late_replies,
            "late_items": serving.late_items,
            "published_messages": self.publisher.published,
            "repaired_messages": self.publisher.repaired,
            "late_repairs": self.publisher.forgotten,
            "repeated_messages": self.subscriptions.repeated,
            "unwanted_messages": self.subscriptions.unwanted,
            "dropped_dead_letters": self.dead_letters.overflowed,
        }

    def ledger(self) -> dict[str, Ledger]:
        """The books of every queue this node sends to."""
        return {queue: outbox.ledger() for queue, outbox in self.outboxes.items()}

    def offered(self, kind: str, name: str) -> list[dict[str, Any]]:
        """What living nodes, this one included, say about an offer."""
        return self.peers.offered(kind, name)

    def count(self, kind: str, name: str) -> int:
        """How many living nodes pull or push a queue, get what is published here as ``sub`` or ``group``, or serve.

        With ``pub``: how many of those that publish to a topic have confirmed this node's subscriptions to it.
        """
        if kind == "sub":
            return len(self.publisher.confirmed(name))
        if kind == "pub":
            return self._broadcaster.count_publishers(name)
        if kind == "group":
            return self.groups.count_members(name)
        if kind == ROUTER:
            return len(self.calls.responders(name))
        return len(self.offered(kind, name))

    def list_peers(self, now: float) -> list[Peer]:
        """Everybody whose both directions are proven."""
        return self.peers.listed(now)

    def check(self) -> None:
        """Every machine checks itself, for the simulator."""
        self.peers.check()
        self._sender.check()
        self._receiver.check()
        self._broadcaster.check()
        self._conversations.check()
        self.groups.check()
