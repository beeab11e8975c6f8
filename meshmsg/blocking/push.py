"""The producer's end of a queue, for threads."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Unpack

from meshmsg.blocking.face import Face
from meshmsg.blocking.hooks import Hooks
from meshmsg.blocking.loop import LoopThread
from meshmsg.blocking.outbox import NO_ROOM, SharedOutbox
from meshmsg.blocking.packing import ThreadPacker
from meshmsg.checks import require_items, require_known
from meshmsg.driver import Driver
from meshmsg.engine.run import Details
from meshmsg.errors import ConfigurationError, NodeClosed, OutboxFull
from meshmsg.message import DeadLetter, Ledger
from meshmsg.options import SendKeywords
from meshmsg.sockets import push_pull
from meshmsg.sockets.bare import BarePush
from meshmsg.sockets.handoff import Bell
from meshmsg.sockets.sending import MessageIds, encode, encode_all, make_details, note_accepted, require_size
from meshmsg.wire.codec import explain_encode_error
from meshmsg.wire.large import LARGE_BYTES

BURST = 256  # bodies of an iterator encoded at a time
GATHER_S = 0.001  # what a sender that waited for room waits on, for more of it
PART = 4096  # bodies put down at a time


class Push(Face[push_pull.Push]):
    """The producer's end of a queue. ``node.push(queue, ...)`` makes it; any number of threads may use it.

    ``send`` encodes in the caller's thread and puts the message down for the loop, which takes along whatever has
    come together by its next turn.

    Examples
    --------
    >>> from meshmsg.blocking import Node
    >>> with Node("producer") as node:
    ...     jobs = node.push("thumbnails")
    ...     message_id = jobs.send({"path": "a.jpg"})
    ...     books = node.close(drain=0)
    >>> books["thumbnails"].pending
    1
    """

    def __init__(
        self,
        asynchronous: push_pull.Push,
        outbox: SharedOutbox,
        driver: Driver,
        hooks: Hooks,
        forget: Callable[[Push], object] = lambda push: None,
    ) -> None:
        super().__init__(asynchronous, driver)
        self.queue = asynchronous.queue
        self.options = asynchronous.options
        self._outbox = outbox
        self._hooks = hooks
        self._callbacks: list[Callable[[DeadLetter], Any]] = []
        self._packer = ThreadPacker()
        self._forget = forget  # called at the close
        self._max_bytes = asynchronous._max_bytes  # negative once it is closed
        self._small = min(self._max_bytes, LARGE_BYTES)  # the same: so nothing passes unlooked at
        self._prefix = asynchronous._prefix
        self._bell: Bell

    def _connect(self, loop: LoopThread) -> None:
        self._bell = Bell(loop.loop, self._take_in)
        super()._connect(loop)

    # -- sending ---------------------------------------------------------------------------------------------

    def send(
        self,
        body: Any,
        *,
        key: str | None = None,
        priority: int = 0,
        ttl: float | None = None,
        delay: float | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """Accepts one message and returns its id; waits while the outbox is full (G1, G5).

        The parameters and what it raises are those of ``meshmsg.Push.send``.
        """
        try:
            encoded = self._packer.pack(body)
        except Exception as error:
            raise explain_encode_error(body, error) from None
        if not self._driver.owner or len(encoded) > self._small:
            self._require(encoded)
        details = None
        if headers is not None or key is not None or ttl is not None or delay is not None or priority:
            details = self._make_details(key, priority, ttl, delay, headers)
        while (number := self._outbox.put(encoded, details)) == NO_ROOM:
            self._wait_for_room(len(encoded))
        if not self._bell.rung:
            self._bell.ring()
        return f"{self._prefix}{number}"

    def send_nowait(
        self,
        body: Any,
        *,
        key: str | None = None,
        priority: int = 0,
        ttl: float | None = None,
        delay: float | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """Like ``send``, but raises ``OutboxFull`` instead of waiting (G5)."""
        encoded = self._encode(body)
        details = None
        if headers is not None or key is not None or ttl is not None or delay is not None or priority:
            details = self._make_details(key, priority, ttl, delay, headers)
        while (number := self._outbox.put(encoded, details)) == NO_ROOM:
            if self.options.overflow == "wait":
                raise OutboxFull(self._running_loop().call(self._async._describe_full))
            self._wait_for_room(len(encoded))  # that drops the oldest, and no more
        if not self._bell.rung:
            self._bell.ring()
        return f"{self._prefix}{number}"

    def send_many(self, bodies: Iterable[Any]) -> MessageIds:
        """Accepts many plain messages; faster than one ``send`` each. Waits while the outbox is full (G5).

        A body that cannot be sent raises ``EncodeError``; of a list or tuple nothing is accepted then, of an
        iterator what came more than a burst before it. Whatever ends this early, a close too, has the ids of what was
        accepted in its attribute ``accepted``.
        """
        require_items("send_many(bodies)", bodies, "send() takes a single body")
        ids = MessageIds(self._prefix, [])
        try:
            if isinstance(bodies, (list, tuple)):
                self._put_many(encode_all(self._packer.pack, bodies, 0), ids)
                return ids
            source = iter(bodies)
            while part := list(islice(source, BURST)):
                self._put_many(encode_all(self._packer.pack, part, len(ids)), ids)
        except BaseException as error:
            note_accepted(error, ids)
            raise
        return ids

    def deliver(self, body: Any, *, timeout: float | None = None, **options: Unpack[SendKeywords]) -> str:
        """Sends one message and waits until a consumer has processed it; returns its id (G1).

        Takes the options of ``send``. Raises ``DeadLettered`` with the letter, or ``WaitTimeout`` after
        ``timeout`` seconds; a message that was accepted by then is still on its way.
        """
        require_known("deliver()", options, push_pull.DELIVER_OPTIONS)
        encoded = self._encode(body)
        details = self._make_details(**options) if options else None
        put = functools.partial(self._put_from_loop, encoded, details)
        wait_for_room = functools.partial(self._make_room, len(encoded))
        return self._running_loop().wait(self._async._deliver(put, wait_for_room, timeout))

    def flush(self, timeout: float | None = None) -> None:
        """Waits until nothing is pending: every message is processed or dead. Raises ``WaitTimeout``."""
        self._running_loop().wait(self._async.flush(timeout))

    def close(self) -> None:
        """Sends no more; see ``meshmsg.Push.close``. What any thread was given an id for goes on to be processed."""
        self._call(self._end)
        self._forget(self)

    # -- looking ---------------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """Where this queue's messages are: ``accepted = processed + dead + pending`` (G1)."""
        return self._call(self._outbox.ledger)

    def on_dead_letter(self, callback: Callable[[DeadLetter], Any]) -> Callable[[DeadLetter], Any]:
        """Registers a function that is called with each dead letter of this queue, once, in a thread of its own."""
        if not callable(callback) or inspect.iscoroutinefunction(callback):
            raise ConfigurationError(f"on_dead_letter of {self.queue!r} takes a plain function, not {callback!r}")
        self._call(self._register, callback)
        return callback

    # -- inside ----------------------------------------------------------------------------------------------

    def _end(self) -> None:
        if not self._async._closed:
            self._max_bytes = self._small = -1
            self._outbox.seal(self._describe_closed())  # no thread is between a look at this and its message now
            self._async._end()

    def _describe_closed(self) -> str:
        return f"push({self.queue!r}) was closed: open another one"

    def _require_open(self) -> None:
        self._driver.require_running()
        if self._async._closed:
            raise NodeClosed(self._describe_closed())

    def _register(self, callback: Callable[[DeadLetter], Any]) -> None:
        self._async.on_dead_letter(self._tell)
        if callback not in self._callbacks:
            self._callbacks.append(callback)

    def _tell(self, letter: DeadLetter) -> None:
        for callback in self._callbacks:
            self._hooks.put(callback, letter)

    def _encode(self, body: Any) -> bytes:
        encoded = encode(self._packer.pack, body)
        self._require(encoded)
        return encoded

    def _require(self, encoded: bytes) -> None:
        self._packer.renew(len(encoded))
        require_size(encoded, self.queue, self._require_limit(), "push(max_pending_bytes=)")

    def _require_limit(self) -> int:
        """The size of the largest body that it takes; raises ``NodeClosed`` once it is closed, or about to be."""
        limit = self._max_bytes
        self._require_open()
        if limit < 0:
            raise NodeClosed(self._describe_closed())
        return limit

    def _make_details(
        self,
        key: str | None = None,
        priority: int = 0,
        ttl: float | None = None,
        delay: float | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> Details:
        ttl = self.options.ttl if ttl is None else ttl
        return make_details(self._packer.pack, key, priority, ttl, delay, headers, 0.0)

    def _put_many(self, encoded: list[bytes], ids: MessageIds) -> None:
        self._require(max(encoded, key=len, default=b""))
        start = 0
        while start < len(encoded):
            numbers = self._outbox.put_many(encoded[start : start + PART])
            if numbers:
                ids.append(numbers)
                start += len(numbers)
                self._bell.ring()
            else:
                self._wait_for_room(len(encoded[start]))

    def _put_from_loop(self, encoded: bytes, details: Details | None) -> int | None:
        """As ``send``, but where nothing can happen between the number and what its caller does next."""
        number = self._outbox.put(encoded, details)
        if number == NO_ROOM:
            return None
        self._outbox.absorb(self._driver.now())
        return number

    def _wait_for_room(self, size: int) -> None:
        self._running_loop().wait(self._make_room(size))

    async def _make_room(self, size: int) -> None:
        await self._async._wait_for_room(size)
        # Room for a few only: what is gained by waiting is fewer and larger bursts.
        enough = self.options.max_pending // 4
        if self._outbox.room < enough and self.options.overflow == "wait":
            await self._driver.until(lambda: self._outbox.room >= enough, GATHER_S)

    def _take_in(self) -> None:
        self._outbox.absorb(self._driver.now())
        self._driver.turn()


class UnreliablePush(Face[BarePush]):
    """``node.push(queue, reliable=False)``: hands bodies to ZeroMQ, and that is all; any thread may."""

    def __init__(self, asynchronous: BarePush, driver: Driver) -> None:
        super().__init__(asynchronous, driver)
        self.queue = asynchronous.queue

    def send(self, body: Any) -> None:
        """Hands one body to ZeroMQ; waits while no consumer is connected or all of them are at their limit."""
        self._running_loop().wait(self._async.send(body))

    def send_nowait(self, body: Any) -> None:
        """Like ``send``; raises ``OutboxFull`` where that would wait."""
        self._running_loop().call(self._async.send_nowait, body)

    def send_many(self, bodies: Iterable[Any]) -> int:
        """``send`` for each, with one hand-over; returns how many."""
        require_items("send_many(bodies)", bodies, "send() takes a single body")
        return self._running_loop().wait(self._async.send_many(list(bodies)))

    def close(self) -> None:
        """Sends no more; ZeroMQ gets a moment for what it holds."""
        self._call(self._async._end)
