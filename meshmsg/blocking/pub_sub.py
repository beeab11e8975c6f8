"""Topics, for threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Never, TypeVar

from meshmsg.blocking.consumer import Consumer
from meshmsg.blocking.face import Face
from meshmsg.blocking.loop import LoopThread
from meshmsg.blocking.packing import ThreadPacker
from meshmsg.checks import require_items
from meshmsg.driver import Driver
from meshmsg.engine.run import Details
from meshmsg.errors import ConfigurationError, NodeClosed, OutboxFull
from meshmsg.sockets import pub_sub
from meshmsg.sockets.bare_pub_sub import BarePub, BareSub
from meshmsg.sockets.group_sub import GroupSub
from meshmsg.sockets.handoff import Bell
from meshmsg.sockets.sending import encode, encode_parts, make_details, require_size
from meshmsg.wire.large import LARGE_BYTES

logger = logging.getLogger("meshmsg.blocking")

PART = 1024  # messages encoded and put down at a time
# What threads may have put down that the loop has not published yet.
MAX_PUT = 4096
MAX_PUT_BYTES = 8 * 2**20

ResultT = TypeVar("ResultT")
Put = tuple[str, list[bytes], Details | None]  # a topic and what goes there; with details, one body


class Pub(Face[pub_sub.Pub]):
    """A topic, or a pattern of topics, to publish to. ``node.pub(pattern, ...)`` makes it; any thread may use it.

    ``send`` encodes in the caller's thread and puts the message down for the loop, which takes along whatever has
    come together by its next turn. With ``block=True`` up to ``window`` messages, or ``window_bytes``, more than the
    window can lie there before ``send`` waits, but no more than a few thousand, or 8 MiB.

    Examples
    --------
    >>> from meshmsg.blocking import Node
    >>> with Node("kitchen") as node:
    ...     temperature = node.pub("sensors.kitchen.temperature", retain=True)
    ...     temperature.send(21.5)
    ...     message = node.sub("sensors.*.temperature", replay="latest").get(timeout=5)
    ...     print(message.topic, message.body)
    sensors.kitchen.temperature 21.5
    """

    def __init__(self, asynchronous: pub_sub.Pub, driver: Driver) -> None:
        super().__init__(asynchronous, driver)
        self.pattern = asynchronous.pattern
        self.options = asynchronous.options
        self._packer = ThreadPacker()
        self._lock = threading.Lock()  # of what is put down and its counts
        self._put: deque[Put] = deque()
        self._count = 0
        self._bytes = 0
        self._sealed = ""  # why nothing more may be put down
        self._limit, self._limit_bytes = MAX_PUT, MAX_PUT_BYTES
        if self.options.block:
            self._limit = min(MAX_PUT, self.options.window)
            self._limit_bytes = min(MAX_PUT_BYTES, self.options.window_bytes)
        self._waiting: asyncio.Future[None] | None = None  # for a slow subscriber, with what was put down
        self._bell: Bell

    def _connect(self, loop: LoopThread) -> None:
        self._bell = Bell(loop.loop, self._take_in)
        super()._connect(loop)

    # -- sending ---------------------------------------------------------------------------------------------

    def send(
        self,
        body: Any,
        topic: str | None = None,
        headers: Mapping[str, Any] | None = None,
        key: str | None = None,
        priority: int = 0,
    ) -> None:
        """Publishes one message to everybody who subscribes now; waits for slow subscribers if ``block=True`` (G6).

        The parameters and what it raises are those of ``meshmsg.Pub.send``.
        """
        name, encoded, details = self._prepare(body, topic, headers, key, priority)
        while not self._put_down(name, [encoded], len(encoded), details):
            self._wait_for_room(1, len(encoded))

    def send_nowait(
        self,
        body: Any,
        topic: str | None = None,
        headers: Mapping[str, Any] | None = None,
        key: str | None = None,
        priority: int = 0,
    ) -> None:
        """Like ``send``; raises ``OutboxFull`` where that would wait for a slow subscriber or group."""
        name, encoded, details = self._prepare(body, topic, headers, key, priority)
        self._running_loop().call(self._send_now, name, encoded, details)

    def send_many(self, bodies: Iterable[Any], topic: str | None = None) -> None:
        """Publishes many messages to one topic; faster than one ``send`` each.

        A body that cannot be sent raises ``EncodeError``; of a list or tuple nothing is published then, of an
        iterator what came more than a burst before it.
        """
        self._require_open()
        require_items("send_many(bodies)", bodies, "send() takes a single body")
        name = self._choose_topic(topic)
        for part in encode_parts(self._packer.pack, bodies, PART):
            self._put_many(name, part)

    def delete_retained(self, topic: str | None = None) -> bool:
        """Takes a topic's retained value back: late joiners get none. Says whether there was one."""
        delete = partial(self._async.delete_retained, topic)
        return self._running_loop().call(lambda: self._after_others(delete))

    def lag(self) -> dict[str, dict[str, int]]:
        """By subscribing node and topic, how many messages it has yet to receive, as far as it said."""
        return self._running_loop().call(lambda: self._after_others(self._async.lag))

    def close(self) -> None:
        """Publishes no more to these topics. What was published can still be repaired while the node is open."""
        self._call(self._close)

    # -- inside ----------------------------------------------------------------------------------------------

    def _prepare(
        self, body: Any, topic: str | None, headers: Mapping[str, Any] | None, key: str | None, priority: int
    ) -> tuple[str, bytes, Details | None]:
        pack = self._packer.pack
        encoded = encode(pack, body)
        if len(encoded) > LARGE_BYTES:
            self._packer.renew(len(encoded))
        name = self._choose_topic(topic)
        self._require_open()
        require_size(encoded, self.pattern, self._async._max_bytes)
        if headers is None and key is None and not priority:
            return name, encoded, None
        return name, encoded, make_details(pack, key, priority, None, None, headers, 0.0)

    def _choose_topic(self, topic: str | None) -> str:
        name = self._async._require_fitting(topic)
        self._async._publisher.require_place(name)
        return name

    def _require_open(self) -> None:
        if not self._driver.owner:
            self._driver.require_running()
        if self._async._closed:
            raise NodeClosed(f"pub({self.pattern!r}) is closed: open another one")

    def _put_down(self, name: str, bodies: list[bytes], size: int, details: Details | None) -> bool:
        """Whether there was room for them."""
        with self._lock:
            if self._sealed:
                raise NodeClosed(self._sealed)
            if not self._fits(len(bodies), size):
                return False
            self._count += len(bodies)
            self._bytes += size
            self._put.append((name, bodies, details))
        if not self._bell.rung:
            self._bell.ring()
        return True

    def _put_many(self, name: str, encoded: list[bytes]) -> None:
        largest = max(encoded, key=len, default=b"")
        self._packer.renew(len(largest))
        require_size(largest, self.pattern, self._async._max_bytes)
        for stretch in pub_sub.cut(encoded, min(PART, self._limit)):
            part = encoded[stretch]
            self._require_open()
            size = sum(map(len, part))
            while not self._put_down(name, part, size, None):
                self._wait_for_room(len(part), size)

    def _fits(self, count: int, size: int) -> bool:
        """Whether these may be put down; into what is empty any may."""
        return not self._count or (self._count + count <= self._limit and self._bytes + size <= self._limit_bytes)

    def _wait_for_room(self, count: int, size: int) -> None:
        self._running_loop().wait(self._until_room(count, size))
        self._require_open()

    async def _until_room(self, count: int, size: int) -> None:
        # Half of it at least: what is gained by waiting is fewer and larger bursts.
        most, most_bytes = max(count, self._limit // 2), max(size, self._limit_bytes // 2)
        await self._driver.until(lambda: self._async._closed or self._fits(most, most_bytes))

    # -- in the loop -----------------------------------------------------------------------------------------

    def _take_in(self) -> None:
        if not self._async._closed:
            self._publish()
            self._driver.turn()

    def _after_others(self, function: Callable[[], ResultT]) -> ResultT:
        """Does something after what threads put down before, as far as that can be published."""
        self._publish()
        return function()

    def _close(self) -> None:
        if self._driver.usable:
            self._seal(f"pub({self.pattern!r}) is closed: open another one")
        self._async._end()

    def _hand_over(self) -> None:
        """Publishes whatever was put down, whoever is slow."""
        self._publish(heedless=True)

    def _seal(self, why: str) -> None:
        """Publishes whatever was put down; threads may put down nothing more, as nobody would take it in."""
        with self._lock:
            self._sealed = why
        self._hand_over()

    def _send_now(self, name: str, encoded: bytes, details: Details | None) -> None:
        held_up = self._publish()
        if held_up is not None:
            with self._lock:  # threads go on putting down
                held_up = held_up if any(topic == name for topic, _, _ in self._put) else None
        if held_up is None and self._async._pass_on(name, [encoded], details):
            return
        why = self._async._describe_no_room(held_up or name)
        raise OutboxFull(why if held_up in (None, name) else f"messages to {name!r} wait behind others: {why}")

    def _publish(self, *, heedless: bool = False) -> str | None:
        """Passes on what threads put down; what a slow subscriber or group holds up waits, and all behind it.

        Returns the topic that is held up, if one is.
        """
        taken = size = 0
        try:
            while self._put:
                name, bodies, details = self._put[0]
                try:
                    count = self._async._pass_on(name, bodies, details, heedless=heedless)
                except ConfigurationError:  # two threads had the last topic that there is a place for
                    logger.exception("%d messages to %r are lost", len(bodies), name)
                    count = len(bodies)
                taken += count
                size += sum(map(len, bodies[:count]))
                if count < len(bodies):
                    self._put[0] = name, bodies[count:], details
                    self._wait_for_subscribers(name, len(bodies[count]), details)
                    return name
                self._put.popleft()
            return None
        finally:
            with self._lock:
                self._count -= taken
                self._bytes -= size

    def _wait_for_subscribers(self, name: str, size: int, details: Details | None) -> None:
        if self._waiting is None or self._waiting.done():
            headers = details.headers if details is not None else None
            self._waiting = asyncio.ensure_future(self._async._wait_for_room(name, size, headers))
            self._waiting.add_done_callback(self._go_on)

    def _go_on(self, waiting: asyncio.Future[None]) -> None:
        self._waiting = None
        if self._driver.usable:
            self._take_in()


class UnreliablePub(Face[BarePub]):
    """``node.pub(pattern, reliable=False)``: hands topics and bodies to ZeroMQ, and that is all; any thread may."""

    def __init__(self, asynchronous: BarePub, driver: Driver) -> None:
        super().__init__(asynchronous, driver)
        self.pattern = asynchronous.pattern

    def send(self, body: Any, topic: str | None = None, **options: Never) -> None:
        """Hands one message to ZeroMQ, which drops it for whoever has no room."""
        self._running_loop().call(self._async.send_nowait, body, topic, **options)

    def send_nowait(self, body: Any, topic: str | None = None, **options: Never) -> None:
        """The same: it never waits."""
        self.send(body, topic, **options)

    def send_many(self, bodies: Iterable[Any], topic: str | None = None) -> None:
        """``send`` for each, with one hand-over."""
        require_items("send_many(bodies)", bodies, "send() takes a single body")
        self._running_loop().wait(self._async.send_many(list(bodies), topic))

    def close(self) -> None:
        """Publishes no more."""
        self._call(self._async._end)


class Sub(Consumer[pub_sub.Sub]):
    """The messages of a topic, or of a pattern of topics. ``node.sub(pattern, ...)`` makes it.

    Iterate it, take ``batches()``, or decorate a handler with it; any number of threads may, and each message goes to
    one of them. Its messages want no verdict. ``on_gap`` is called in a thread of its own, once the messages before the
    gap were handed out (of a batch that goes over it, just before); those behind it may be handed out meanwhile.
    """

    def __init__(self, asynchronous: pub_sub.Sub, driver: Driver) -> None:
        super().__init__(asynchronous, driver)
        self.pattern = asynchronous.pattern
        self.options = asynchronous.options

    @property
    def gaps(self) -> int:
        """Messages that were lost, each told by a ``Gap``."""
        return self._async.gaps

    @property
    def conflated(self) -> int:
        """Messages that a newer value of their topic made needless (``latest=True``)."""
        return self._async.conflated

    @property
    def dropped(self) -> int:
        """Messages that had no room, with ``reliable=False``; 0 without."""
        return self._async.dropped if isinstance(self._async, BareSub) else 0

    @property
    def discarded(self) -> int:
        """Messages that had come, and that nobody took before the close."""
        return self._async.discarded


class GroupMember(Consumer[GroupSub]):
    """A member of a group. ``node.sub(pattern, group=...)`` makes it; use it as a ``Pull`` (G7).

    Any number of threads may iterate it, each message goes to one of them. Closing gives unstarted messages back.
    """

    def __init__(self, asynchronous: GroupSub, driver: Driver) -> None:
        super().__init__(asynchronous, driver)
        self.queue = asynchronous.queue
        self.pattern = asynchronous.pattern
        self.group = asynchronous.group
        self.options = asynchronous.options
