"""PUSH and PULL: work that is handed to one consumer at a time until one of them acks it (G1 to G5)."""

from __future__ import annotations

import asyncio
import logging
from _thread import get_ident
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Unpack

from meshmsg.checks import require_items, require_known, require_number
from meshmsg.driver import Driver
from meshmsg.engine.effects import Outcome
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.outbox import SMALL, Outbox
from meshmsg.errors import (
    ConfigurationError,
    DeadLettered,
    NodeClosed,
    OutboxFull,
    WaitTimeout,
)
from meshmsg.message import DeadLetter, Ledger
from meshmsg.options import PullOptions, PushOptions, SendKeywords
from meshmsg.sockets.consumer import Consumer
from meshmsg.sockets.here import require_here
from meshmsg.sockets.line import Line
from meshmsg.sockets.sending import MessageIds, encode, encode_parts, make_details, note_accepted, require_size
from meshmsg.sockets.shown import Shown, of_node
from meshmsg.sockets.turns import yield_turn
from meshmsg.wire.codec import explain_encode_error, make_packer, renew_packer
from meshmsg.wire.large import LARGE_BYTES

logger = logging.getLogger("meshmsg.sockets")

# Messages accepted in one turn of the loop at most, if the application itself never waits.
SEND_BURST = 1024
DELIVER_OPTIONS = [*SendKeywords.__annotations__, "timeout"]


class Push(Shown):
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
    {'thumbnails': Ledger(accepted=1, processed=0, dead=0, pending=1, ready=1, in_flight=0, scheduled=0, redelivered=0)}
    """

    def __init__(
        self,
        driver: Driver,
        outbox: Outbox,
        options: PushOptions,
        max_message_bytes: int,
        forget: Callable[[Push], object] = lambda push: None,
    ) -> None:
        self.queue = outbox.queue
        self.options = options
        self._driver = driver
        self._outbox = outbox
        self._pack = make_packer()
        self._max_bytes = min(max_message_bytes, options.max_pending_bytes)
        self._prefix = f"{driver.engine.identity.node_id[:12]}/{self.queue}/"
        # Bodies up to this many bytes are let in by count; none once this is closed.
        self._small = min(SMALL, self._max_bytes)
        self._closed = False
        self._forget = forget  # called at the close
        self._line = Line(driver, self._require_open)  # of those who wait for room
        self._blocks = options.overflow == "wait"
        self._outcomes: dict[int, asyncio.Future[DeadLetter | None]] = {}
        self._on_dead_letter: list[Callable[[DeadLetter], Any]] = []

    # -- sending ---------------------------------------------------------------------------------------------

    # The options are not keyword-only because Python fills such defaults in by a slow path: a tenth of a send.
    async def send(
        self,
        body: Any,
        key: str | None = None,
        priority: int = 0,
        ttl: float | None = None,
        delay: float | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """Accepts one message and returns its id; waits while the outbox is full (G1, G5).

        With ``overflow="drop_oldest"`` it does not wait: something is dropped, or it becomes a dead letter itself.
        Accepted is not processed: until then the message lives in this process. A handler that passes work on
        uses ``deliver`` before it acks its own, so that a crash loses neither.

        Parameters
        ----------
        body:
            Anything MessagePack can carry, a dataclass, a msgspec Struct or a pydantic model. It is encoded
            before this returns, so later changes to it do not matter.
        key:
            Messages of one key are processed one after another, in order (G3); a delayed one holds up those after it.
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
        try:
            encoded = self._pack(body)
        except Exception as error:
            raise explain_encode_error(body, error) from None
        # The hot path: room is looked up once a burst, and a turn asked for once a turn.
        size = len(encoded)
        outbox = self._outbox
        if not outbox.burst or size > self._small or get_ident() != self._driver.owner:
            has_room = await self._make_room(encoded)
            if not has_room:
                number = self._push_detailed(encoded, key, priority, ttl, delay, headers, has_room=False)
                return f"{self._prefix}{number}"
        if headers is None and key is None and ttl is None and delay is None and not priority:
            staged = outbox.staged  # what ``push`` does, without a call
            if not staged:
                outbox.mark()
                self._driver.wake()
            staged.append(encoded)
            outbox.staged_bytes += size
            outbox.burst -= 1
            return f"{self._prefix}{outbox.next_id + len(staged) - 1}"
        return f"{self._prefix}{self._push_detailed(encoded, key, priority, ttl, delay, headers)}"

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
        encoded = encode(self._pack, body)
        self._check(encoded)
        self._driver.wake()  # before it is accepted: in another loop this raises
        number = self._put(encoded, key, priority, ttl, delay, headers)
        if number is None:
            raise OutboxFull(self._describe_full())
        return f"{self._prefix}{number}"

    def _put(
        self,
        encoded: bytes,
        key: str | None = None,
        priority: int = 0,
        ttl: float | None = None,
        delay: float | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> int | None:
        """Accepts a message and returns its number; None if it has to wait for room (G5)."""
        outbox = self._outbox
        if not outbox.fits(len(encoded)):
            if self._blocks:
                return None
            if not outbox.drop_for(len(encoded), self._driver.now()):
                return self._push_detailed(encoded, key, priority, ttl, delay, headers, has_room=False)
        if headers is None and key is None and ttl is None and delay is None and not priority:
            return outbox.push(encoded)
        return self._push_detailed(encoded, key, priority, ttl, delay, headers)

    async def send_many(self, bodies: Iterable[Any]) -> MessageIds:
        """Accepts many plain messages; faster than one ``send`` each. Waits while the outbox is full (G5).

        A body that cannot be sent raises ``EncodeError``; of a list or tuple nothing is accepted then, of an
        iterator what came more than a burst before it. Whatever ends this early, a close or a cancellation too, has the
        ids of what was accepted in its attribute ``accepted``.
        """
        self._require_open()
        self._driver.require_loop()
        require_items("send_many(bodies)", bodies, "send() takes a single body")
        ids = MessageIds(self._prefix, [])
        try:
            for part in encode_parts(self._pack, bodies, SEND_BURST):
                if self._outbox.burst < len(part):
                    await yield_turn()
                    self._outbox.burst = self._count_room()
                await self._push_part(part, ids)
        except BaseException as error:
            note_accepted(error, ids)
            raise
        return ids

    async def _push_part(self, part: list[bytes], ids: MessageIds) -> None:
        """Accepts encoded bodies as they find room: all at once, as a rule."""
        outbox = self._outbox
        size = sum(map(len, part))
        if size > min(self._max_bytes, LARGE_BYTES):
            self._check(max(part, key=len))
        self._require_open()
        while part:
            if outbox.room >= len(part) and outbox.room_bytes >= size and not self._line.busy:
                fitting, part, taken = part, [], size
            elif not await self._wait_for_room(len(part[0])):
                number = outbox.turn_away(part[0], None, self._driver.now())
                ids.append(range(number, number + 1))
                size -= len(part[0])
                part = part[1:]
                self._driver.wake()
                continue
            else:
                fitting = part[: max(1, outbox.room)]
                if outbox.room_bytes < sum(map(len, fitting)):
                    fitting = fitting[:1]
                part = part[len(fitting) :]
                taken = sum(map(len, fitting))
                size -= taken
            first = outbox.push_many(fitting, taken)
            ids.append(range(first, first + len(fitting)))
            self._driver.wake()

    async def deliver(self, body: Any, *, timeout: float | None = None, **options: Unpack[SendKeywords]) -> str:
        """Sends one message and waits until a consumer has processed it; returns its id (G1).

        Takes the options of ``send``. Raises ``DeadLettered`` with the letter, or ``WaitTimeout`` after
        ``timeout`` seconds; a message that was accepted by then is still on its way.
        """
        require_known("deliver()", options, DELIVER_OPTIONS)
        encoded = encode(self._pack, body)
        self._check(encoded)
        return await self._deliver(
            lambda: self._put(encoded, **options), lambda: self._wait_for_room(len(encoded)), timeout
        )

    async def _deliver(
        self, put: Callable[[], int | None], wait_for_room: Callable[[], Awaitable[Any]], timeout: float | None
    ) -> str:
        """Waits until a message is accepted and settled; what ``deliver`` of either face does."""
        driver = self._driver
        if timeout is not None:
            require_number("deliver(timeout=)", timeout, at_least=0)
        driver.require_loop()
        deadline = None if timeout is None else driver.now() + timeout
        number = None if self._line.busy else put()
        if number is None:
            number = await self._put_within(put, wait_for_room, deadline, timeout)
        message_id = f"{self._prefix}{number}"
        future: asyncio.Future[DeadLetter | None] = asyncio.get_running_loop().create_future()
        self._outcomes[number] = future
        self._outbox.watched.add(number)
        if deadline is not None:
            driver.deadlines.put(future, deadline)
        driver.wake()
        try:
            letter = await future
        except TimeoutError:
            raise WaitTimeout(
                f"message {message_id} was not processed within {timeout} s and stays accepted; {self._describe_wait()}"
            ) from None
        finally:
            driver.deadlines.discard(future)
            self._outbox.watched.discard(number)
            self._outcomes.pop(number, None)
        if letter is not None:
            raise DeadLettered(
                f"message {message_id} is a dead letter ({letter.reason}): {letter.error}; "
                "node.dead_letters() holds it, node.redrive(id) sends it again",
                letter,
            )
        return message_id

    async def _put_within(
        self,
        put: Callable[[], int | None],
        wait_for_room: Callable[[], Awaitable[Any]],
        deadline: float | None,
        timeout: float | None,
    ) -> int:
        """Accepts a message once there is room for it, and returns its number."""
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    await wait_for_room()
                    number = put()
                    if number is not None:
                        return number
        except TimeoutError:
            raise WaitTimeout(f"found no room within {timeout} s: {self._describe_full()}") from None

    async def flush(self, timeout: float | None = None) -> None:
        """Waits until nothing is pending: every message is processed or dead. Raises ``WaitTimeout``."""
        self._driver.require_usable()
        outbox = self._outbox
        if not await self._driver.until(lambda: not outbox.pending, timeout):
            raise WaitTimeout(f"{outbox.pending} messages are pending after {timeout} s; {self._describe_wait()}")
        if outbox.pending:
            self._driver.require_usable()

    async def close(self) -> None:
        """Sends no more. What was accepted goes on to be processed, and ``deliver`` and ``flush`` go on waiting for it.

        ``node.push`` opens the queue again, with options of its own. Once nothing is pending, a closed queue costs
        nothing, and ``node.ledger()`` does not list it: a program may have any number of queues, one after another.
        """
        self._end()

    # -- looking ---------------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """Where this queue's messages are: ``accepted = processed + dead + pending`` (G1)."""
        require_here(self._driver)
        return self._outbox.ledger()

    def on_dead_letter(self, callback: Callable[[DeadLetter], Any]) -> Callable[[DeadLetter], Any]:
        """Registers a function or coroutine function that is called with each dead letter of this queue, once."""
        if not callable(callback):
            raise ConfigurationError(f"on_dead_letter of {self.queue!r} takes a function, not {callback!r}")
        require_here(self._driver)
        if self._driver.closed:
            self._driver.require_usable()
        if callback not in self._on_dead_letter:  # the same node.push in two places is one socket, and one hook
            self._on_dead_letter.append(callback)
        return callback

    # -- inside ----------------------------------------------------------------------------------------------

    def _title(self) -> str:
        return of_node(self.queue, self._driver)

    def _state(self) -> str:
        outbox = self._outbox
        in_flight = sum(lane.in_flight for lane in outbox.lanes.values())
        return f"{'closed, ' if self._closed else ''}{outbox.pending} pending, {in_flight} in flight"

    def _require_open(self) -> None:
        self._driver.require_usable()
        if self._closed:
            raise NodeClosed(f"push({self.queue!r}) was closed: open another one")

    def _check(self, encoded: bytes) -> None:
        if len(encoded) <= self._small and get_ident() == self._driver.owner:
            return  # as for most; the rest finds out why not
        self._pack = renew_packer(self._pack, len(encoded))
        self._require_open()
        require_size(encoded, self.queue, self._max_bytes, "push(max_pending_bytes=)")

    def _push_detailed(
        self,
        encoded: bytes,
        key: str | None,
        priority: int,
        ttl: float | None,
        delay: float | None,
        headers: Mapping[str, Any] | None,
        *,
        has_room: bool = True,
    ) -> int:
        """Accepts a message with all that it is told; as a dead letter if nothing can be dropped for it (G5)."""
        now = self._driver.now()
        ttl = self.options.ttl if ttl is None else ttl
        details = make_details(self._pack, key, priority, ttl, delay, headers, now)
        accept = self._outbox.push_detailed if has_room else self._outbox.turn_away
        self._driver.wake()  # before it is accepted: in another loop this raises
        return accept(encoded, details, now)

    async def _make_room(self, encoded: bytes) -> bool:
        """Makes sure that a body fits, and finds out how many small ones after it will do so unasked.

        False if nothing could be dropped for it.
        """
        self._check(encoded)
        self._driver.require_loop()
        await yield_turn()
        if not await self._wait_for_room(len(encoded)):
            return False
        self._outbox.burst = self._count_room(encoded)
        return True

    def _count_room(self, first: bytes = b"") -> int:
        """How many small bodies fit into one burst, after a first one of any size and with it."""
        outbox = self._outbox
        if self._line.busy:  # the room is theirs
            return int(bool(first))
        return min(SEND_BURST, outbox.room, (outbox.room_bytes - len(first)) // SMALL + bool(first))

    async def _wait_for_room(self, size: int) -> bool:
        """Waits until a body fits, or drops the oldest for it (G5); False if nothing could be dropped."""
        self._require_open()
        outbox = self._outbox
        outbox.burst = 0
        if not self._blocks:
            return outbox.fits(size) or outbox.drop_for(size, self._driver.now())
        if self._line.busy or not outbox.fits(size):
            await self._line.wait(size, lambda: (outbox.room, outbox.room_bytes), lambda: outbox.fits(size))
            outbox.burst = 0
        return True

    def _describe_full(self) -> str:
        """Why a message has no room, and what to do."""
        outbox = self._outbox
        return (
            f"the outbox of {self.queue!r} holds {outbox.pending} messages, {outbox.pending_bytes} bytes "
            f"(max_pending={self.options.max_pending}, max_pending_bytes={self.options.max_pending_bytes}): "
            f"await send(), or send less; {self._describe_wait()}"
        )

    def _describe_wait(self) -> str:
        """Why nothing moves, as far as this node can tell."""
        return self._driver.engine.peers.describe_consumers(self.queue)

    def _handle_outcome(self, outcome: Outcome) -> None:
        """The driver's word on a watched message."""
        future = self._outcomes.get(outcome.number)
        if future is not None and not future.done():
            future.set_result(outcome.letter)

    def _handle_dead(self, letter: DeadLetter) -> list[Awaitable[Any]]:
        """Calls the hooks; returns what they want awaited. One that fails does not keep the others from it."""
        results = []
        for callback in self._on_dead_letter:
            try:
                results.append(callback(letter))
            except Exception:
                logger.exception("on_dead_letter of %r failed on %s", self.queue, letter.id)
        return [result for result in results if asyncio.iscoroutine(result)]

    # -- for the node, and another face ----------------------------------------------------------------------

    def _end(self) -> None:
        """``close``, which waits for nothing."""
        require_here(self._driver)
        if self._closed:
            return
        self._closed = True
        self._small = -1
        self._forget(self)
        if not self._driver.closed:
            self._driver.engine.close_push(self.queue)
            self._driver.wake()  # whoever waits for room hears of it

    def _succeed(self, closed: Push) -> None:
        """Takes over from a closed push of the same outbox, which still holds messages that somebody waits for."""
        self._outcomes = closed._outcomes

    def _abandon(self) -> None:
        """The node is closed: ends what waits for outcomes."""
        for future in self._outcomes.values():
            if not future.done():
                future.set_exception(NodeClosed(f"the node was closed before a message of {self.queue!r} was settled"))


class Pull(Consumer):
    """The consumer's end of a queue. ``node.pull(queue, ...)`` makes it; iterate it, or decorate a handler with it.

    As an async iterator it ends when the pull or its node is closed.
    """

    def __init__(self, driver: Driver, inbox: Inbox, options: PullOptions) -> None:
        super().__init__(driver, inbox, options, f"pull({inbox.queue!r})")
        self._on_left: Callable[[], object] = lambda: None  # called at the end of the close

    def _withdraw(self) -> None:
        # First, or a producer that hears of the end of its lane opens another one, and gives this one up.
        self._driver.engine.withdraw_pull(self.queue)

    def _leave(self) -> None:
        self._driver.engine.close_pull(self.queue)
        self._on_left()
