"""Taking messages, wherever they come from: a handler in the loop or in threads, iteration, batches."""

from __future__ import annotations

import asyncio
from _thread import get_ident
from collections.abc import AsyncIterator

from meshmsg.checks import require_int, require_number
from meshmsg.driver import Driver
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.topic_buffer import Source
from meshmsg.errors import ConfigurationError, NodeClosed, WaitTimeout
from meshmsg.message import Batch, Message
from meshmsg.options import PullOptions
from meshmsg.sockets.conversions import make_converter
from meshmsg.sockets.handoff import Hand, Handoff
from meshmsg.sockets.held import Held
from meshmsg.sockets.here import require_here, require_loop_here
from meshmsg.sockets.shown import Shown, of_node
from meshmsg.sockets.threads import ThreadWorkers
from meshmsg.sockets.turns import yield_turn
from meshmsg.sockets.workers import Handler, Workers, is_async, require_handler

# Messages handed out in one turn of the loop at most, if the application itself never waits.
BURST = 256
# The same of messages handed out in batches, which cost the application less.
BATCHES_BURST = 1000


class Consumer(Shown):
    """What ``Pull`` and ``Sub`` have in common. ``_label`` names it in errors: ``pull('work')``."""

    _gives_back = True  # whether what was taken and not settled goes somewhere at the close

    def __init__(self, driver: Driver, inbox: Source, options: PullOptions, label: str) -> None:
        self.queue = inbox.queue
        self._name = inbox.queue  # as the application calls it
        self._label = label
        self.options = options
        self._driver = driver
        self._inbox = inbox
        self._workers: Workers | ThreadWorkers | None = None
        self._handoff: Handoff | None = None
        self._arrival: asyncio.Event | None = None
        self._closed = False
        self._closing: asyncio.Future[None] | None = None
        self._hands: set[Hand] = set()  # of iterations
        self._held: Held | None = None
        if isinstance(inbox, Inbox):
            if options.concurrency > options.prefetch:
                raise ConfigurationError(
                    f"{label}: concurrency={options.concurrency} handlers cannot run with prefetch={options.prefetch}, "
                    f"the messages held at a time: prefetch={options.concurrency} or more"
                )
            self._held = Held(driver, inbox, lambda: self._label, self._has_none)
        if options.type is not None:
            inbox.decode = make_converter(options.type, label)
        inbox.guard = self._require_owner
        driver.on_arrival[self.queue] = self._arrived

    def __call__(self, handler: Handler) -> Handler:
        """Registers the handler: acked when it returns, nacked when it raises, rejected on ``Reject``.

        A coroutine function runs in the loop, a plain function in ``concurrency`` threads.
        """
        require_handler(self._label, handler)
        require_loop_here(self._driver)
        if self._workers is not None:
            raise ConfigurationError(f"{self._label} already has a handler; use concurrency= for more of it")
        if is_async(handler):
            self._workers = Workers(self._driver, self._inbox, self.options, handler)
        else:
            self._workers = ThreadWorkers(self._driver, self.options, handler, self.queue)
            self._inbox.watch_extensions(self._workers.extended)
        if self._driver.usable:
            self._start()
        return handler

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Messages one by one; each wants its verdict (``with message:``)."""
        self._require_iterable()
        inbox = self._inbox
        hand = self._open_hand()
        count = 0
        try:
            while not self._closed:
                message = inbox.take_one(self._driver)
                if message is None:
                    await self._wait()
                    continue
                hand.item = message
                yield message
                count += 1
                if count % BURST == 0:
                    await yield_turn()
        finally:
            self._close_hand(hand)

    async def get(self, timeout: float | None = None) -> Message:
        """One message; raises ``WaitTimeout`` when none came within ``timeout`` seconds, ``NodeClosed`` at the end.

        A timeout around the iterator would end it, because that is what cancelling a generator does.
        """
        if timeout is not None:
            require_number("get(timeout=)", timeout, at_least=0)
        self._require_iterable()
        message = self._inbox.take_one(self._driver)
        try:
            async with asyncio.timeout(timeout):
                while message is None and not self._closed:
                    await self._wait()
                    message = self._inbox.take_one(self._driver)
        except TimeoutError:
            raise WaitTimeout(f"no message of {self._name!r} came within {timeout} s{self._explain_wait()}") from None
        if message is None:
            self._driver.require_usable()
            raise NodeClosed(f"{self._label} was closed: open another one, or make a new Node if this one closes")
        return message

    async def batches(self, max_size: int = 500, max_wait: float = 0.01) -> AsyncIterator[Batch]:
        """Messages in batches of up to ``max_size``; waits up to ``max_wait`` seconds for a batch to fill.

        It does not wait for messages that the prefetch keeps from coming.
        """
        require_int("batches(max_size=)", max_size, at_least=1)
        require_number("batches(max_wait=)", max_wait, at_least=0)
        self._require_iterable()
        inbox = self._inbox
        # Verdicts leave, and credit comes back, before the prefetch is used up.
        burst = min(BATCHES_BURST, inbox.prefetch // 2)
        hand = self._open_hand()
        count = 0
        try:
            while not self._closed:
                if not inbox.waiting:
                    await self._wait()
                    continue
                if max_wait and inbox.waiting < max_size:
                    await self._fill(max_size, max_wait)
                batch = inbox.take(max_size, self._driver.now())
                if batch:
                    hand.item = batch
                    yield batch
                    count += len(batch)
                if count >= burst or not batch:
                    count = 0
                    await yield_turn()
        finally:
            self._close_hand(hand)

    async def _fill(self, max_size: int, max_wait: float) -> None:
        """Waits for more, while more can come. Nothing is taken out yet, so that who is cancelled here holds none."""
        inbox = self._inbox
        try:
            async with asyncio.timeout(max_wait):
                while 0 < inbox.waiting < max_size and inbox.has_room and not self._closed:
                    await self._wait(inbox.waiting)
        except TimeoutError:
            pass

    @property
    def unsettled(self) -> int:
        """Messages this consumer holds without a verdict, started or not; never more than ``prefetch`` (G5).

        Of a ``sub`` without a group, which wants no verdicts: messages that came and that nobody has taken yet.
        """
        return self._inbox.unsettled

    async def close(self, drain: float = 0.0) -> None:
        """Stops consuming: unstarted messages go back at no cost, handlers get ``drain`` seconds to end (G4, G10).

        What was taken without a handler and has no verdict when they are over is nacked, and a later verdict raises
        ``NodeClosed``; but an iteration may settle what it is at. What a ``sub`` without a group has received cannot go
        back: its handlers go on with it for these seconds.

        Who is cancelled here, such as a handler that closes its own pull, does not undo it. A second call waits for the
        first, but no longer than its own ``drain``.
        """
        require_number("close(drain=)", drain, at_least=0)
        require_here(self._driver)
        if self._closing is None:
            if not (drain and self._finishes):
                self._hand_out_no_more()
            self._withdraw()
            self._closing = asyncio.ensure_future(self._end(drain))
            await asyncio.shield(self._closing)
            return
        await asyncio.wait({self._closing}, timeout=drain)
        if not self._closing.done() and self._workers is not None:
            self._hand_out_no_more()
            await self._workers.stop(0.0)
        elif self._held is not None:
            self._held.hurry()
            await asyncio.wait({self._closing})

    @property
    def _finishes(self) -> bool:
        """Whether handlers still get what has been received, if there is time."""
        return False

    def _hand_out_no_more(self) -> None:
        self._closed = True
        if self._handoff is not None:
            self._handoff.close()

    async def _end(self, drain: float) -> None:
        """Hands out nothing any more, and gives handlers ``drain`` seconds."""
        if not self._closed and self._workers is not None:
            loop = asyncio.get_running_loop()
            until = loop.time() + drain
            await self._workers.finish(drain)
            self._hand_out_no_more()
            drain = max(0.0, until - loop.time())
        self._note_unstarted()
        self._inbox.return_unstarted()
        self._arrived()
        if self._workers is not None:
            await self._workers.stop(drain)
        elif self._held is not None and self._gives_back:
            await self._held.wait(drain)
            hands = self._hands
            if self._handoff is not None:
                self._handoff.apply()
                self._handoff.over = True
                hands = hands | self._handoff.hands
            self._held.give_back(hands)
        self._driver.on_arrival.pop(self.queue, None)
        self._leave()
        self._driver.wake()

    def _withdraw(self) -> None:
        """Whoever sends here is told that this consumer takes no more."""

    def _note_unstarted(self) -> None:
        """What waits now is not handed out here any more."""

    def _leave(self) -> None:
        """No handler runs any more."""
        raise NotImplementedError

    def _start(self) -> None:
        """The node has started."""
        if isinstance(self._workers, ThreadWorkers):
            self._workers.start(self._lend())
        elif self._workers is not None:
            self._workers.start()

    def _open_handoff(self) -> Handoff:
        """Has messages handed to threads that ask for them, from now on; called in the loop."""
        self._require_iterable()
        return self._lend()

    def _abandon(self) -> None:
        """The loop is gone: threads that wait for messages wait no more."""
        if self._handoff is not None:
            self._handoff.close()

    def _lend(self) -> Handoff:
        if self._handoff is None:
            self._handoff = Handoff(self._driver, self._inbox, asyncio.get_running_loop())
            if self._held is not None and self._workers is None:
                self._handoff.on_starved = self._held.watch
            if self._closed:
                self._handoff.close()
            self._handoff.lend()
        return self._handoff

    def _arrived(self) -> None:
        if self._handoff is not None:
            self._handoff.lend()
        if isinstance(self._workers, Workers):
            self._workers.wake()
        if self._arrival is not None:
            self._arrival.set()

    async def _wait(self, have: int = 0) -> None:
        """Until there are more messages than ``have``, or something else has changed."""
        self._driver.require_loop()
        if self._arrival is None:
            self._arrival = asyncio.Event()
        self._arrival.clear()
        if self._inbox.waiting <= have and not self._closed:
            if self._held is not None:
                self._held.watch()
            await self._arrival.wait()

    def _explain_wait(self) -> str:
        """What to add to the news that no message came; called in the loop."""
        why = self._held.describe() if self._held is not None else ""
        return f"; {why}" if why else ""

    def _title(self) -> str:
        return of_node(self._name, self._driver)

    def _state(self) -> str:
        return f"{'closed, ' if self._closed else ''}{self._inbox.unsettled} of {self.options.prefetch} unsettled"

    def _has_none(self) -> bool:
        return not self._inbox.waiting and (self._handoff is None or not self._handoff.waiting)

    def _open_hand(self) -> Hand:
        hand = Hand()
        self._hands.add(hand)
        return hand

    def _close_hand(self, hand: Hand) -> None:
        self._hands.discard(hand)
        if self._held is not None and self._held.over and self._driver.usable:
            hand.drop()

    def _require_owner(self) -> None:
        if get_ident() != self._driver.owner:
            self._driver.require_usable()
        if self._held is None:
            return
        if not self._driver.scheduled:  # else nothing is asked for that would fail half way in another loop
            self._driver.require_loop()
        if self._held.over:
            raise NodeClosed(
                f"{self._label} was closed, and nacked what was not settled: settle before, or close(drain=)"
            )

    def _require_iterable(self) -> None:
        self._driver.require_usable()
        self._driver.require_loop()
        if self._workers is not None:
            raise ConfigurationError(f"{self._label} has a handler; open it without one to iterate")
