"""PUSH and PULL: work that is handed to one consumer at a time until one of them acks it (G1 to G5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from meshmsg.driver import Driver
from meshmsg.engine.effects import Outcome
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.outbox import Outbox
from meshmsg.engine.run import Details
from meshmsg.errors import (
    BodyTooLarge,
    ConfigurationError,
    DeadLettered,
    EncodeError,
    NodeClosed,
    OutboxFull,
    WaitTimeout,
)
from meshmsg.message import Batch, DeadLetter, Ledger, Message
from meshmsg.options import PullOptions, PushOptions, require_int, require_number
from meshmsg.sockets.turns import yield_turn
from meshmsg.sockets.workers import Handler, Workers
from meshmsg.wire.codec import make_encoder

# Messages accepted or handled in one turn of the loop at most, if the application itself never waits.
BURST = 256
MAX_PRIORITY = 255


class MessageIds(Sequence[str]):
    """The ids of many messages, made when somebody looks at them."""

    def __init__(self, prefix: str, numbers: list[range]) -> None:
        self._prefix = prefix
        self._numbers = numbers

    def __len__(self) -> int:
        return sum(map(len, self._numbers))

    def __iter__(self) -> Iterator[str]:
        return (f"{self._prefix}{number}" for numbers in self._numbers for number in numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return list(self)[index]


class Push:
    """The producer's end of a queue. ``node.push(queue, ...)`` makes it; ``docs/guarantees.md`` says what it promises.

    Examples
    --------
    >>> from meshmsg import Node
    >>> async with Node("producer") as node:
    ...     jobs = node.push("thumbnails")
    ...     message_id = await jobs.send({"path": "a.jpg"})
    ...     print(jobs.ledger().pending)
    ...     await node.close(drain=0)
    1
    Ledger(accepted=1, processed=0, dead=0, pending=1, ready=1, in_flight=0, scheduled=0, redelivered=0)
    """

    def __init__(self, driver: Driver, outbox: Outbox, options: PushOptions, max_message_bytes: int) -> None:
        self.queue = outbox.queue
        self.options = options
        self._driver = driver
        self._outbox = outbox
        self._encode = make_encoder()
        self._max_bytes = max_message_bytes
        self._prefix = f"{driver.engine.identity.node_id[:12]}/{self.queue}/"
        self._blocks = options.overflow == "wait"
        self._outcomes: dict[int, asyncio.Future[DeadLetter | None]] = {}
        self._on_dead_letter: list[Callable[[DeadLetter], Any]] = []

    # -- sending ---------------------------------------------------------------------------------------------

    async def send(
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

        Parameters
        ----------
        body:
            Anything MessagePack can carry, a dataclass, a msgspec Struct or a pydantic model. It is encoded
            before this returns, so later changes to it do not matter.
        key:
            Messages of one key are processed one after another, in order (G3).
        priority:
            0 to 255; higher ones leave first.
        ttl:
            Seconds after which an unprocessed message becomes a dead letter (``expired``).
        delay:
            Seconds before it may be handed to a consumer.
        headers:
            Small values beside the body, with str keys.

        Raises ``EncodeError`` with the path to a value that cannot be sent, ``BodyTooLarge``, ``NodeClosed``.
        """
        encoded = self._encode(body)
        outbox = self._outbox
        if outbox.full and self._blocks:
            await self._wait_for_room(len(encoded))
        if key is None and not priority and ttl is None and delay is None and headers is None:
            self._check(encoded)
            number = outbox.push(encoded)
            if len(outbox.staged) >= BURST:
                await yield_turn()
            else:
                self._driver.wake()
        else:
            number = self._push_detailed(encoded, key, priority, ttl, delay, headers)
            if outbox.waiting >= BURST:
                await yield_turn()
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
        outbox = self._outbox
        if outbox.full and self._blocks:
            self._driver.require_usable()
            raise OutboxFull(self._describe_full())
        if key is None and not priority and ttl is None and delay is None and headers is None:
            self._check(encoded)
            number = outbox.push(encoded)
            self._driver.wake()
        else:
            number = self._push_detailed(encoded, key, priority, ttl, delay, headers)
        return f"{self._prefix}{number}"

    async def send_many(self, bodies: Iterable[Any]) -> MessageIds:
        """Accepts many plain messages; faster than one ``send`` each. Waits while the outbox is full (G5).

        A body that cannot be sent raises ``EncodeError``; of a list or tuple nothing is accepted then, of an
        iterator what came more than a burst before it.
        """
        encoded_all = self._encode_all(bodies, 0) if isinstance(bodies, (list, tuple)) else None
        source = iter(bodies if encoded_all is None else ())
        numbers: list[range] = []
        accepted = 0
        outbox = self._outbox
        while True:
            if encoded_all is not None:
                part = encoded_all[accepted : accepted + BURST]
            else:
                part = self._encode_all([body for body, _ in zip(source, range(BURST), strict=False)], accepted)
            if not part:
                return MessageIds(self._prefix, numbers)
            if outbox.full and self._blocks:
                await self._wait_for_room(len(part[0]))
            self._check(max(part, key=len))
            first = outbox.push_many(part)
            if numbers and numbers[-1].stop == first:
                numbers[-1] = range(numbers[-1].start, first + len(part))
            else:
                numbers.append(range(first, first + len(part)))
            accepted += len(part)
            self._driver.wake()
            await yield_turn()

    async def deliver(self, body: Any, *, timeout: float | None = None, **options: Any) -> str:
        """Sends one message and waits until a consumer has processed it; returns its id (G1).

        Takes the options of ``send``. Raises ``DeadLettered`` with the letter, or ``WaitTimeout`` after
        ``timeout`` seconds; the message is still on its way then.
        """
        message_id = await self.send(body, **options)
        number = int(message_id.rpartition("/")[2])
        future: asyncio.Future[DeadLetter | None] = asyncio.get_running_loop().create_future()
        self._outcomes[number] = future
        self._outbox.watched.add(number)
        try:
            async with asyncio.timeout(timeout):
                letter = await future
        except TimeoutError:
            self._outbox.watched.discard(number)
            raise WaitTimeout(
                f"message {message_id} was not processed within {timeout} s and stays accepted; {self._describe_wait()}"
            ) from None
        finally:
            self._outcomes.pop(number, None)
        if letter is not None:
            raise DeadLettered(
                f"message {message_id} is a dead letter ({letter.reason}): {letter.error}; "
                "node.dead_letters() holds it, node.redrive(id) sends it again",
                letter,
            )
        return message_id

    async def flush(self, timeout: float | None = None) -> None:
        """Waits until nothing is pending: every message is processed or dead. Raises ``WaitTimeout``."""
        self._driver.require_usable()
        outbox = self._outbox
        if not await self._driver.until(lambda: not outbox.pending, timeout):
            raise WaitTimeout(f"{outbox.pending} messages are pending after {timeout} s; {self._describe_wait()}")
        if outbox.pending:
            self._driver.require_usable()

    # -- looking ---------------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """Where this queue's messages are: ``accepted = processed + dead + pending`` (G1)."""
        return self._outbox.ledger()

    def on_dead_letter(self, callback: Callable[[DeadLetter], Any]) -> Callable[[DeadLetter], Any]:
        """Registers a function or coroutine function that is called with each dead letter of this queue."""
        self._on_dead_letter.append(callback)
        return callback

    # -- inside ----------------------------------------------------------------------------------------------

    def _check(self, encoded: bytes) -> None:
        if not self._driver.may_use():
            self._driver.require_usable()
        if len(encoded) > self._max_bytes:
            raise BodyTooLarge(
                f"a body of {len(encoded)} bytes for {self.queue!r}; the node's max_message_bytes is "
                f"{self._max_bytes}: raise it on both sides, or send a reference instead"
            )

    def _encode_all(self, bodies: Sequence[Any], offset: int) -> list[bytes]:
        try:
            return list(map(self._encode, bodies))
        except EncodeError:
            for index, body in enumerate(bodies):
                try:
                    self._encode(body)
                except EncodeError as error:
                    path = f"bodies[{offset + index}]{error.path.removeprefix('body')}"
                    raise EncodeError(str(error).replace(error.path, path, 1), path) from None
            raise

    def _push_detailed(
        self,
        encoded: bytes,
        key: str | None,
        priority: int,
        ttl: float | None,
        delay: float | None,
        headers: Mapping[str, Any] | None,
    ) -> int:
        self._check(encoded)
        if key is not None and not isinstance(key, str):
            raise ConfigurationError(f"send(key=) takes a str, not {type(key).__name__} {key!r}: key=str(...)")
        require_int("send(priority=)", priority, at_least=0)
        if priority > MAX_PRIORITY:
            raise ConfigurationError(f"send(priority=) takes 0 to {MAX_PRIORITY}, got {priority}")
        for name, seconds in (("ttl", ttl), ("delay", delay)):
            if seconds is not None:
                require_number(f"send({name}=)", seconds, at_least=0)
        if headers is not None:
            if not isinstance(headers, Mapping) or not all(isinstance(name, str) for name in headers):
                raise ConfigurationError(f"send(headers=) takes a dict with str keys, got {headers!r}")
            self._check(self._encode(dict(headers)))
        now = self._driver.now()
        ttl = self.options.ttl if ttl is None else ttl
        details = Details(
            key,
            priority,
            dict(headers) if headers else None,
            None if ttl is None else now + ttl,
            None if delay is None else now + delay,
        )
        number = self._outbox.push_detailed(encoded, details, now)
        self._driver.wake()
        return number

    async def _wait_for_room(self, size: int) -> None:
        self._driver.require_usable()
        outbox = self._outbox
        while outbox.full:
            await self._driver.until(lambda: not outbox.full)
            self._driver.require_usable()

    def _describe_full(self) -> str:
        outbox = self._outbox
        return (
            f"the outbox of {self.queue!r} holds {outbox.pending} messages, {outbox.pending_bytes} bytes "
            f"(max_pending={self.options.max_pending}, max_pending_bytes={self.options.max_pending_bytes}): "
            f"await send(), or send less; {self._describe_wait()}"
        )

    def _describe_wait(self) -> str:
        """Why nothing moves, as far as this node can tell."""
        return self._driver.engine.describe_consumers(self.queue)

    def handle_outcome(self, outcome: Outcome) -> None:
        """The driver's word on a watched message."""
        future = self._outcomes.get(outcome.number)
        if future is not None and not future.done():
            future.set_result(outcome.letter)

    def handle_dead(self, letter: DeadLetter) -> list[Awaitable[Any]]:
        """Calls the hooks; returns what they want awaited."""
        results = [callback(letter) for callback in self._on_dead_letter]
        return [result for result in results if asyncio.iscoroutine(result)]

    def close(self) -> None:
        """Ends what waits for outcomes."""
        for future in self._outcomes.values():
            if not future.done():
                future.set_exception(NodeClosed(f"the node was closed before a message of {self.queue!r} was settled"))


class Pull:
    """The consumer's end of a queue. ``node.pull(queue, ...)`` makes it; iterate it, or decorate a handler with it.

    As an async iterator it ends when the pull or its node is closed.
    """

    def __init__(self, driver: Driver, inbox: Inbox, options: PullOptions) -> None:
        self.queue = inbox.queue
        self.options = options
        self._driver = driver
        self._inbox = inbox
        self._workers: Workers | None = None
        self._arrival: asyncio.Event | None = None
        self._closed = False
        driver.on_arrival[self.queue] = self._arrived

    def __call__(self, handler: Handler) -> Handler:
        """Registers the handler: acked when it returns, nacked when it raises, rejected on ``Reject``.

        A coroutine function runs in the loop, a plain function in a pool of ``concurrency`` threads.
        """
        if self._workers is not None:
            raise ConfigurationError(f"pull({self.queue!r}) already has a handler; use concurrency= for more of it")
        self._workers = Workers(self._driver, self._inbox, self.options, handler)
        if self._driver.usable:
            self._workers.start()
        return handler

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Messages one by one; each wants its verdict (``with message:``)."""
        self._require_iterable()
        inbox = self._inbox
        count = 0
        while not self._closed:
            message = inbox.take_one(self._driver)
            if message is None:
                await self._wait()
                continue
            yield message
            count += 1
            if count % BURST == 0:
                await yield_turn()

    async def batches(self, max_size: int = 500, max_wait: float = 0.01) -> AsyncIterator[Batch]:
        """Messages in batches of up to ``max_size``; waits up to ``max_wait`` seconds for a batch to fill.

        It does not wait for messages that the prefetch keeps from coming.
        """
        require_int("batches(max_size=)", max_size, at_least=1)
        require_number("batches(max_wait=)", max_wait, at_least=0)
        self._require_iterable()
        inbox = self._inbox
        while not self._closed:
            messages = inbox.take(max_size, self._driver.now())
            if not messages:
                await self._wait()
                continue
            if len(messages) < max_size and max_wait:
                await self._fill(messages, max_size, max_wait)
            yield Batch(messages)
            await yield_turn()

    async def _fill(self, messages: list[Message], max_size: int, max_wait: float) -> None:
        """Waits for more, while more can come."""
        inbox = self._inbox
        try:
            async with asyncio.timeout(max_wait):
                while len(messages) < max_size and inbox.has_room and not self._closed:
                    await self._wait()
                    messages += inbox.take(max_size - len(messages), self._driver.now())
        except TimeoutError:
            pass

    async def close(self, drain: float = 0.0) -> None:
        """Stops consuming: unstarted messages go back at no cost, handlers get ``drain`` seconds to end (G4, G10)."""
        if self._closed:
            return
        self._closed = True
        self._inbox.return_unstarted()
        self._arrived()
        if self._workers is not None:
            await self._workers.stop(drain)
        self._driver.on_arrival.pop(self.queue, None)
        self._driver.engine.close_pull(self.queue)
        self._driver.wake()

    def start(self) -> None:
        """The node has started."""
        if self._workers is not None:
            self._workers.start()

    def _arrived(self) -> None:
        if self._workers is not None:
            self._workers.wake()
        if self._arrival is not None:
            self._arrival.set()

    async def _wait(self) -> None:
        if self._arrival is None:
            self._arrival = asyncio.Event()
        self._arrival.clear()
        if not self._inbox.buffer and not self._closed:
            await self._arrival.wait()

    def _require_iterable(self) -> None:
        self._driver.require_usable()
        if self._workers is not None:
            raise ConfigurationError(f"pull({self.queue!r}) has a handler; open it without one to iterate")
