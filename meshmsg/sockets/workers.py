"""Running a coroutine function as a handler: a fixed set of workers; no task and no timer a message."""

from __future__ import annotations

import asyncio
import inspect
import logging
import types
from collections import deque
from collections.abc import Callable
from typing import Any

from meshmsg.driver import Driver
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.lane import InLane
from meshmsg.engine.topic_buffer import Source
from meshmsg.errors import ConfigurationError, NodeClosed, Reject
from meshmsg.message import Message, judge_by_error
from meshmsg.options import PullOptions
from meshmsg.sockets.signatures import read_signature
from meshmsg.sockets.turns import yield_turn

Handler = Callable[[Message], Any]

# A worker whose handler never waits gives the loop a turn after this many messages.
BURST = 256

logger = logging.getLogger("meshmsg.handlers")


class Worker:
    """One of ``concurrency``: what it runs, and since when."""

    __slots__ = ("message", "started_at", "task", "timed_out")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.message: Message | None = None
        self.started_at = 0.0
        self.timed_out = False


def is_async(handler: Handler) -> bool:
    """Whether calling it makes a coroutine; otherwise it is a plain function, for ``ThreadWorkers``."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 -- an object with an async __call__
    )


def require_handler(label: str, handler: Handler) -> None:
    """Refuses what can be called and yet would run nothing, so that no message is acked for it."""
    if not callable(handler):
        raise ConfigurationError(f"the handler of {label} is not callable: {handler!r}")
    for function in (handler, getattr(handler, "__call__", None)):  # noqa: B004 -- an object whose __call__ yields
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                f"the handler of {label} is a generator function, and calling it runs nothing: write it without yield"
            )
    try:
        signature = read_signature(handler)
    except (TypeError, ValueError):  # of a function in C that tells nothing
        return
    try:
        signature.bind(None)
    except TypeError as error:
        name = getattr(handler, "__qualname__", None) or type(handler).__qualname__
        raise ConfigurationError(
            f"the handler of {label} is called with the message alone, and {name}{signature} cannot be: {error}"
        ) from None


def refuse_result(message: Message, result: object) -> None:
    """What a handler returns means nothing, unless it is the work itself, which nobody would ever do."""
    if isinstance(result, (types.GeneratorType, types.AsyncGeneratorType)):
        what = "a generator: write it without yield"
    elif inspect.isawaitable(result):
        what = "a coroutine: register the coroutine function itself, or make the wrapper async"
    else:
        return
    if isinstance(result, (types.GeneratorType, types.CoroutineType)):
        result.close()  # or Python warns that it was never awaited
    text = f"the handler returned {what}"
    logger.error("message %s of %r: %s", message.id, message.queue, text)
    if not message.settled:
        message.reject(text)


class Workers:
    """Feeds a handler from an inbox, ``concurrency`` at a time, each within ``timeout`` seconds."""

    def __init__(self, driver: Driver, inbox: Source, options: PullOptions, handler: Handler) -> None:
        self._driver = driver
        self._inbox = inbox
        self._options = options
        self._handler = handler
        self._workers: list[Worker] = []
        self._idle: deque[asyncio.Future[None]] = deque()
        self._watchdog: asyncio.TimerHandle | None = None
        self._stopping = False
        self._finishing = False
        if options.timeout is not None:
            inbox.watch_extensions(self._extended)

    def start(self) -> None:
        """Starts the workers in the running loop."""
        loop = asyncio.get_running_loop()
        for index in range(self._options.concurrency):
            worker = Worker()
            worker.task = loop.create_task(self._work(worker), name=f"meshmsg-{self._inbox.queue}-{index}")
            self._workers.append(worker)

    def wake(self) -> None:
        """Messages have come: as many idle workers as there are messages get up."""
        count = len(self._idle)
        for _ in range(min(count, self._inbox.waiting) if count > 1 else count):
            future = self._idle.popleft()
            if not future.done():
                future.set_result(None)

    async def finish(self, drain: float) -> None:
        """Waits until everything in the inbox was handled, for ``drain`` seconds at most."""
        self._finishing = True
        self._wake_all()
        tasks = [worker.task for worker in self._workers if worker.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=drain)

    async def stop(self, drain: float) -> None:
        """Lets handlers end within ``drain`` seconds, cancels the rest; what they held is nacked (G10)."""
        self._stopping = True
        self._wake_all()
        tasks = [worker.task for worker in self._workers if worker.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=max(0.0, drain))
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=0.5)
        if self._watchdog is not None:
            self._watchdog.cancel()

    def _wake_all(self) -> None:
        for future in self._idle:
            if not future.done():
                future.set_result(None)

    async def _work(self, worker: Worker) -> None:
        inbox, driver, handler = self._inbox, self._driver, self._handler
        opened = inbox.opened
        acks = isinstance(inbox, Inbox)  # nobody waits for verdicts on what was just published
        timed = self._options.timeout is not None
        # Acks leave, and credit comes back, before the prefetch is used up.
        burst = max(1, min(BURST, inbox.prefetch // 2))
        count = 0
        while not self._stopping:
            message = opened.popleft() if opened else inbox.take_one(driver)
            if message is None:
                if inbox.dirty:
                    driver.turn()  # the verdicts leave now; a turn of their own would only come later
                    if inbox.arrivals:
                        continue
                if self._finishing:
                    return
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(future)
                await future
                continue
            if timed:
                await self._run_guarded(worker, message)
            else:
                try:
                    result = await handler(message)
                    if result is not None:
                        refuse_result(message, result)
                except BaseException as error:
                    self._failed(worker, message, error)
                else:
                    if not message.settled:
                        message.settled = True
                        if acks:
                            arrival = message._arrival
                            lane: Any = arrival.lane
                            seq = arrival.first_seq + message._index
                            if seq == lane.floor and lane.dirty and not lane.done:
                                lane.floor = seq + 1  # what ``ack`` does, without a call
                            else:
                                lane.ack(seq)
            count += 1
            if count % burst == 0:
                await yield_turn()

    async def _run_guarded(self, worker: Worker, message: Message) -> None:
        """With a timeout: the path that costs more."""
        worker.message, worker.started_at, worker.timed_out = message, self._driver.now(), False
        if self._options.timeout is not None:
            self._watch()
        try:
            refuse_result(message, await self._handler(message))
        except BaseException as error:
            self._failed(worker, message, error)
        else:
            if not message.settled:
                message.settled = True
                message._lane.ack(message._seq)
        finally:
            worker.message = None
            if worker.timed_out and worker.task is not None:
                worker.task.uncancel()  # whatever the handler made of it, it is over

    def _failed(self, worker: Worker, message: Message, error: BaseException) -> None:
        timed_out = isinstance(error, asyncio.CancelledError) and worker.timed_out
        ends = not timed_out and self._ends(worker, error)
        if not message.settled:
            try:
                if timed_out:
                    message.nack(error=f"the handler ran longer than its timeout of {self._options.timeout} s")
                elif ends and isinstance(error, asyncio.CancelledError):
                    message.nack(error="the consumer was closed while the handler ran")
                else:
                    judge_by_error(message, error)
            except NodeClosed:
                pass  # a handler that outlived its node: the sender has taken the message back
        if ends:
            raise error
        if not timed_out and not isinstance(error, Reject):
            logger.debug("handler of %r failed on %s", self._inbox.queue, message.id, exc_info=error)

    @staticmethod
    def _ends(worker: Worker, error: BaseException) -> bool:
        """Whether an exception is meant for the worker itself, and not only for the handler's message."""
        if isinstance(error, asyncio.CancelledError):
            # One that nobody asked this task for came out of something that the handler awaited.
            return worker.task is None or worker.task.cancelling() > 0
        if isinstance(error, GeneratorExit):
            try:
                return asyncio.current_task() is not worker.task
            except RuntimeError:
                return True  # no loop runs: Python takes down what was left of it
        return isinstance(error, (KeyboardInterrupt, SystemExit))

    # -- the timeout -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """One timer for all workers, at the earliest deadline."""
        if self._watchdog is None and self._options.timeout is not None:
            # One whose time ran out is cancelled already, however long its handler takes to clean up.
            running = [each.started_at for each in self._workers if each.message is not None and not each.timed_out]
            if running:
                when = min(running) + self._options.timeout
                self._watchdog = asyncio.get_running_loop().call_at(when, self._expire)

    def _expire(self) -> None:
        self._watchdog = None
        timeout = self._options.timeout
        assert timeout is not None
        now = self._driver.now()
        for worker in self._workers:
            late = worker.message is not None and now >= worker.started_at + timeout
            if late and not worker.timed_out and worker.task is not None:
                worker.timed_out = True
                worker.task.cancel()
        self._watch()

    def _extended(self, lane: InLane, seq: int) -> None:
        for worker in self._workers:
            message = worker.message
            if message is not None and message._lane is lane and message._seq == seq:
                worker.started_at = self._driver.now()
