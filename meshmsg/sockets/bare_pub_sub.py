"""PUB and SUB with ``reliable=False``: bare ZeroMQ, two frames a message (topic, MessagePack body), nothing repeated.

What a slow subscriber has no room for is lost, and nobody hears of it; there is no past, no confirmation, no headers
and no ``Gap``. What remains is ZeroMQ's speed, discovery, patterns, and bounded buffers. Such subscribers hear such
publishers only.

A publisher knows who would hear it, as each subscriber adds a filter of its own behind that of a pattern: the marker's
byte, its node's id, a space, the pattern. No topic begins so; and ZeroMQ, which sends filters in the order of their
bytes when it connects, sends it behind the others then, too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Never

from meshmsg.checks import require_items
from meshmsg.driver import Driver
from meshmsg.engine.notes import REPEAT_AFTER_S
from meshmsg.engine.publisher import MARKER
from meshmsg.engine.subscription import Delivery, Subscription
from meshmsg.engine.topics import MAX_TOPIC_BYTES, PatternIndex, choose_topic, find_fault, matches, prefix_of
from meshmsg.errors import ConfigurationError, NodeClosed, ProtocolError, UnknownOption
from meshmsg.message import Event
from meshmsg.options import SubOptions
from meshmsg.sockets.here import require_here
from meshmsg.sockets.pub_sub import Sub
from meshmsg.sockets.raw import RawSockets
from meshmsg.sockets.sending import encode, require_size
from meshmsg.sockets.shown import Shown, of_node
from meshmsg.sockets.turns import yield_turn
from meshmsg.transport.filters import BYTE_COST, FILTER_COST, MAX_COST_EACH
from meshmsg.transport.pump import Pump
from meshmsg.transport.raw import SUB, XPUB, RawSocket
from meshmsg.wire.codec import Undecodable, decode_body, make_packer
from meshmsg.wire.large import LARGE_BYTES

NAME = "meshmsg.topics"  # of the raw sockets, one of each kind a node
BARE_PUB, BARE_SUB = "bare_pub", "bare_sub"  # what peers are told, beside "pub" and "sub"
MAX_MARKERS = 100_000  # of subscribers, at one publisher
BURST = 256

logger = logging.getLogger("meshmsg.sockets")


class BareTopics:
    """What all bare publishers and subscribers of a node share: one XPUB and one SUB."""

    def __init__(self, driver: Driver) -> None:
        self.refused = 0  # messages that are none: not of two frames, or not MessagePack
        self._driver = driver
        self._raws: RawSockets | None = None
        self._subs = PatternIndex[BareSub]()
        self._early: list[BareSub] = []  # before the start
        self._out: Pump | None = None
        self._in: Pump | None = None
        self._socket: Any = None
        self._readers: list[asyncio.Task[None]] = []
        self._markers: set[tuple[str, str]] = set()  # node id and pattern of subscribers
        self._numbers: dict[BareSub, int] = {}
        self._filters = Counter[bytes]()  # of this node's subscriptions, as ZeroMQ counts them
        self._cost = 0  # of these filters to a publisher, as it counts them
        self._told_at: float | None = None

    def connect(self, raws: RawSockets) -> None:
        """The node has started."""
        self._raws = raws
        for sub in self._early:
            self._listen(sub.pattern)
        self._early.clear()

    @property
    def out(self) -> Pump:
        """Where to publish."""
        assert self._out is not None, "a usable node that publishes has opened it"
        return self._out

    def listen(self) -> None:
        """Something will be published: whoever wants it may connect."""
        if self._out is None:
            assert self._raws is not None, "a started node has sockets"
            raw = self._raws.open(XPUB, NAME, for_topics=True)
            self._out = Pump(raw.socket, asyncio.get_running_loop())
            self._start(self._hear(raw, self._out))

    def subscribers(self, topic: str) -> set[str]:
        """Ids of the nodes that get what is published here to a topic, unless they have no room."""
        return {node_id for node_id, pattern in self._markers if matches(pattern, topic)}

    def require_room(self, pattern: str) -> None:
        """Raises ``ConfigurationError`` for the pattern whose filters would have publishers cut off this node."""
        cost = self._cost + sum(_cost_of(each) for each in self._filters_of(pattern) if each not in self._filters)
        if cost > MAX_COST_EACH:
            raise ConfigurationError(
                f"sub({pattern!r}, reliable=False) is one too many for this node, after {len(self._numbers)}: each "
                f"sets filters at the publishers, which cut off a node beyond {MAX_COST_EACH >> 20} MiB of them; "
                "subscribe to fewer patterns that match more, or reliably"
            )

    def add(self, sub: BareSub) -> None:
        """A new subscription, for which there is room."""
        for text in self._filters_of(sub.pattern):
            self._filters[text] += 1
            if self._filters[text] == 1:
                self._cost += _cost_of(text)
        self._subs.add(sub.pattern, sub)
        self._numbers[sub] = 0
        self._driver.engine.offer(BARE_SUB, sub.pattern, {})
        self._driver.wake()
        if self._raws is None:
            self._early.append(sub)
        else:
            self._listen(sub.pattern)

    def remove(self, sub: BareSub) -> None:
        """It hears no more."""
        self._subs.remove(sub.pattern, sub)
        del self._numbers[sub]
        prefix, marker = self._filters_of(sub.pattern)
        if self._socket is not None:
            self._socket.unsubscribe(marker)  # ZeroMQ counts them
            self._socket.unsubscribe(prefix)
        elif sub in self._early:
            self._early.remove(sub)
        for text in (prefix, marker):
            self._filters[text] -= 1
            if not self._filters[text]:
                del self._filters[text]
                self._cost -= _cost_of(text)
        if marker not in self._filters:  # no other has this pattern
            self._driver.engine.withdraw(BARE_SUB, sub.pattern)
            self._driver.wake()

    def close(self) -> None:
        """The node is closed, and its sockets will be."""
        for pump in (self._out, self._in):
            if pump is not None:
                pump.close()
        for reader in self._readers:
            reader.cancel()

    def _listen(self, pattern: str) -> None:
        if self._in is None:
            assert self._raws is not None
            self._socket = self._raws.open(SUB, NAME, for_topics=True).socket
            self._in = Pump(self._socket, asyncio.get_running_loop())
            self._start(self._read(self._in))
        for text in self._filters_of(pattern):
            self._socket.subscribe(text)

    def _filters_of(self, pattern: str) -> tuple[bytes, bytes]:
        """The prefix of a pattern, and the marker that comes behind it."""
        marker = MARKER + f"{self._driver.engine.identity.node_id} {pattern}".encode()
        return prefix_of(pattern).encode(), marker

    def _start(self, reading: Coroutine[Any, Any, None]) -> None:
        reader = asyncio.ensure_future(reading)
        reader.add_done_callback(self._reader_done)
        self._readers.append(reader)

    async def _hear(self, raw: RawSocket, pump: Pump) -> None:
        """Who subscribes, for whoever waits for that; and who asks for too much."""
        filters = raw.filters
        assert filters is not None, "a publisher's socket is bound"
        while True:
            changes, complete = filters.read(raw.socket, BURST)
            for text, added in changes:
                self._note_filter(text, added)
            refusals = filters.take_refusals()
            if refusals:
                self._driver.engine.handle_refusals(refusals, self._driver.now())
            if changes or refusals:
                self._driver.wake()
            if complete:
                await pump.wait_readable()
            else:
                await yield_turn()

    def _note_filter(self, text: bytes, added: bool) -> None:
        if text[:1] != MARKER:
            return
        node_id, _, pattern = text[1:].decode("utf-8", "replace").partition(" ")
        if not added:
            self._markers.discard((node_id, pattern))
        elif len(self._markers) < MAX_MARKERS:
            self._markers.add((node_id, pattern))

    async def _read(self, pump: Pump) -> None:
        while True:
            arrived = pump.receive(BURST)
            if not arrived:
                await pump.wait_readable()
                continue
            for parts in arrived:
                try:
                    self._deliver(parts)
                except ProtocolError as error:
                    self._refuse(str(error))
            await yield_turn()

    def _deliver(self, parts: list[Any]) -> None:
        raws = self._raws
        assert raws is not None, "what arrived came over a socket"
        if len(parts) != 2:
            raise ProtocolError(f"a message of {len(parts)} frames; a topic and a body make two")
        topic = parts[0].decode("utf-8", "replace") if len(parts[0]) <= MAX_TOPIC_BYTES else ""
        if find_fault(topic) is not None:
            raise ProtocolError("a message with a topic that is none")
        for sub in self._subs.match(topic):
            body = decode_body(parts[1])  # to each its own
            if type(body) is Undecodable:
                raise ProtocolError(f"the body cannot be decoded: {body.error}")
            number = self._numbers[sub]
            self._numbers[sub] = number + 1
            if not sub._put(topic, number, body, len(parts[1])):
                raws.dropped += 1

    def _refuse(self, why: str) -> None:
        """An event for the first, then one in some seconds at most: a flood must not become one of events."""
        assert self._raws is not None, "what arrived came over a socket"
        self._raws.refused += 1
        self.refused += 1
        now = self._driver.now()
        if self._told_at is None or now - self._told_at >= REPEAT_AFTER_S:
            self._told_at = now
            text = f"{self.refused} bare published messages refused so far; the last: {why[:400]}"
            self._driver.on_events([Event("frame.refused", time.time(), text=text)])

    @staticmethod
    def _reader_done(reader: asyncio.Future[None]) -> None:
        if not reader.cancelled() and reader.exception() is not None:
            logger.error("pub or sub with reliable=False hears no more", exc_info=reader.exception())


def require_no_options(pattern: str, given: Iterable[str]) -> None:
    """Raises ``UnknownOption`` for what ``send`` takes, and does not with ``reliable=False``."""
    for name in given:
        raise UnknownOption(
            f"pub({pattern!r}, reliable=False) is bare ZeroMQ and sends no {name}: a topic and a body are all; "
            "put it into the body, or leave out reliable=False at both ends"
        )


class BarePub(Shown):
    """``node.pub(pattern, reliable=False)``: hands topics and bodies to ZeroMQ, and that is all."""

    def __init__(
        self, driver: Driver, pattern: str, topics: BareTopics, max_message_bytes: int, forget: Callable[[], object]
    ) -> None:
        self.pattern = pattern
        self._driver = driver
        self._topics = topics
        self._max_bytes = max_message_bytes
        self._forget = forget
        self._pack = make_packer()
        self._closed = False
        self._count = 0
        driver.engine.offer(BARE_PUB, pattern, {})
        driver.wake()

    async def send(self, body: Any, topic: str | None = None, **options: Never) -> None:
        """Hands one message to ZeroMQ, which drops it for whoever has no room."""
        self.send_nowait(body, topic, **options)
        self._count += 1
        if not self._count % BURST:
            await yield_turn()

    def send_nowait(self, body: Any, topic: str | None = None, **options: Never) -> None:
        """As ``send``, which never waits either, but gives the loop a turn now and then."""
        if options:
            require_no_options(self.pattern, options)
        self._driver.require_usable()
        if self._closed:
            raise NodeClosed(f"pub({self.pattern!r}) is closed: open another one")
        name = choose_topic(self.pattern, topic)
        encoded = encode(self._pack, body)
        if len(encoded) > LARGE_BYTES:
            self._pack = make_packer()  # one keeps its buffer
        require_size(encoded, self.pattern, self._max_bytes)
        self._topics.out.send([name.encode(), encoded])

    async def send_many(self, bodies: Iterable[Any], topic: str | None = None) -> None:
        """``send`` for each."""
        require_items("send_many(bodies)", bodies, "send() takes a single body")
        for body in bodies:
            await self.send(body, topic)

    def _title(self) -> str:
        return of_node(self.pattern, self._driver)

    def _state(self) -> str:
        return "closed" if self._closed else ""

    async def close(self) -> None:
        """Publishes no more."""
        self._end()

    def _end(self) -> None:
        """``close``, which waits for nothing."""
        require_here(self._driver)
        if not self._closed:
            self._closed = True
            self._forget()
            self._driver.engine.withdraw(BARE_PUB, self.pattern)
            self._driver.wake()


class BareSub(Sub):
    """``node.sub(pattern, reliable=False)``: the same handlers and iteration; ``dropped`` counts what had no room."""

    def __init__(
        self,
        driver: Driver,
        subscription: Subscription,
        options: SubOptions,
        topics: BareTopics,
        forget: Callable[[Sub], object],
    ) -> None:
        super().__init__(driver, subscription, options, None, forget)
        self.dropped = 0
        self._bare = topics

    def _put(self, topic: str, number: int, body: Any, size: int) -> bool:
        """One message came; whether there was room."""
        subscription = self._subscription
        if subscription.latest:
            fits = subscription.put_latest(Delivery(topic, "", number, [body], None, size))
        else:
            fits = bool(subscription.put(topic, "", number, [body], None, size))
        if not fits:
            self.dropped += 1
        else:
            self._arrived()
        return fits

    def _state(self) -> str:
        return f"{super()._state()}{f', {self.dropped} dropped' if self.dropped else ''}"

    def _withdraw(self) -> None:
        self._bare.remove(self)


def open_bare_sub(
    driver: Driver,
    pattern: str,
    options: SubOptions,
    number: int,
    topics: BareTopics,
    forget: Callable[[Sub], object],
) -> BareSub:
    """A subscription to bare publishers; raises ``ConfigurationError`` for what they cannot give."""
    lacking = [name for name, given in (("replay", options.replay != "none"), ("where", options.where)) if given]
    if lacking:
        raise ConfigurationError(
            f"sub({pattern!r}, reliable=False) is bare ZeroMQ and has no {', no '.join(lacking)}: "
            "leave that out, or reliable=False at both ends"
        )
    topics.require_room(pattern)
    subscription = Subscription(pattern, latest=options.latest, buffer=options.buffer)
    subscription.name = f"sub:{pattern}#{number}"
    sub = BareSub(driver, subscription, options, topics, forget)
    topics.add(sub)
    return sub


def _cost_of(text: bytes) -> int:
    """As ``Filters`` of a publisher counts it."""
    return FILTER_COST + BYTE_COST * len(text)
