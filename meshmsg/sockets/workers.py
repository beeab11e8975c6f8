"""Running a coroutine function as a handler: a fixed set of workers; no task and no timer a message."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
import types
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from meshmsg.driver import Driver
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.lane import InLane
from meshmsg.engine.topic_buffer import Source
from meshmsg.errors import ConfigurationError, NodeClosed, Reject
from meshmsg.message import Event, Message, judge_by_error
from meshmsg.options import PullOptions
from meshmsg.sockets.signatures import read_signature
from meshmsg.sockets.turns import yield_turn

Handler = Callable[[Message], Any]

# A worker whose handler never waits gives the loop a turn after this many messages.
BURST = 256
# What a handler gets to clean up after its timeout, before it counts as one that does not end.
CLEANUP_S = 0.5
# Before another worker takes the place of one that was cancelled: a loop that ends cancels all its tasks, and is gone
# by then.
REPLACE_S = 0.01

logger = logging.getLogger("meshmsg.handlers")


class Worker:
    """One of ``concurrency``: what it runs, and how long it may."""

    __slots__ = ("message", "task", "timed_out", "until")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.message: Message | None = None
        self.until = math.inf  # the end of its timeout, then of its time to clean up; infinite once that is over, too
        self.timed_out = False

    @property
    def stuck(self) -> bool:
        """Whether what it runs was cancelled, and does not end."""
        return self.timed_out and self.until == math.inf


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
    """Feeds a handler from an inbox, ``concurrency`` at a time, each within ``timeout`` seconds.

    A handler that runs past its timeout is cancelled, and its message nacked, so that another consumer gets it at once.
    One that does not end then keeps its worker until it does. A worker that is cancelled itself, be it by its own
    handler, is replaced.
    """

    def __init__(self, driver: Driver, inbox: Source, options: PullOptions, handler: Handler) -> None:
        self._driver = driver
        self._inbox = inbox
        self._options = options
        self._handler = handler
        self._workers: list[Worker] = []
        self._idle: deque[asyncio.Future[None]] = deque()
        self._watchdog: asyncio.TimerHandle | None = None
        self._stuck = False  # whether no worker is left
        self._stopping = False
        self._finishing = False
        if options.timeout is not None:
            inbox.watch_extensions(self._extended)

    def start(self) -> None:
        """Starts the workers in the running loop."""
        for index in range(self._options.concurrency):
            self._start_worker(index)

    def _start_worker(self, index: int) -> None:
        worker = Worker()
        name = f"meshmsg-{self._inbox.queue}-{index}"
        worker.task = asyncio.get_running_loop().create_task(self._work(worker), name=name)
        worker.task.add_done_callback(partial(self._ended, worker, index))
        self._workers.append(worker)

    def _ended(self, worker: Worker, index: int, task: asyncio.Task[None]) -> None:
        """A worker's task is over: at the end, or because it was cancelled."""
        self._workers.remove(worker)
        worker.task = None  # which holds its frames, and they the worker
        if not task.cancelled() and isinstance(task.exception(), Exception):
            logger.error("a worker of %r ended", self._inbox.queue, exc_info=task.exception())
        if self._finishing:
            self._replace(index)  # what is left has no other time
        elif not self._stopping:
            task.get_loop().call_later(REPLACE_S, self._replace, index)

    def _replace(self, index: int) -> None:
        if self._stopping or (self._finishing and not self._inbox.waiting):
            return
        logger.warning("a handler of %r was cancelled, and its worker with it: another one goes on", self._inbox.queue)
        self._start_worker(index)

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
        until = self._driver.now() + drain
        while (tasks := self._tasks) and (left := until - self._driver.now()) > 0:
            await asyncio.wait(tasks, timeout=left)

    async def stop(self, drain: float) -> None:
        """Lets handlers end within ``drain`` seconds, cancels the rest; what they held is nacked (G10)."""
        self._stopping = True
        self._wake_all()
        if tasks := self._tasks:
            _, late = await asyncio.wait(tasks, timeout=max(0.0, drain))
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=0.5)
        if self._watchdog is not None:
            self._watchdog.cancel()

    @property
    def _tasks(self) -> list[asyncio.Task[None]]:
        return [worker.task for worker in self._workers if worker.task is not None]

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
        task = asyncio.current_task()
        assert task is not None, "a worker is a task"
        cancelling = task.cancelling  # a cancellation on its way must not meet the next message
        count = 0
        while not self._stopping and not cancelling():
            message = opened.popleft() if opened else inbox.take_one(driver)
            if message is None:
                if inbox.dirty:
                    driver.turn()  # the verdicts leave now; a turn of their own would only come later
                    if inbox.arrivals:
                        continue
                if self._finishing:
                    return
                await self._rest()
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

    async def _rest(self) -> None:
        """Until there may be a message."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future in self._idle:  # or it would be woken in the place of another one
                self._idle.remove(future)
            raise

    async def _run_guarded(self, worker: Worker, message: Message) -> None:
        """With a timeout: the path that costs more."""
        assert self._options.timeout is not None
        worker.message, worker.until, worker.timed_out = message, self._driver.now() + self._options.timeout, False
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
                if self._stuck:
                    self._note_stuck()

    def _failed(self, worker: Worker, message: Message, error: BaseException) -> None:
        ends = self._ends(worker, error)
        if not message.settled:
            try:
                if ends and isinstance(error, asyncio.CancelledError):
                    closed = "the consumer was closed while the handler ran"
                    message.nack(error=closed if self._stopping else "the task of the handler was cancelled")
                else:
                    judge_by_error(message, error)
            except NodeClosed:
                pass  # a handler that outlived its node: the sender has taken the message back
        if ends:
            raise error
        if not worker.timed_out and not isinstance(error, Reject):
            logger.debug("handler of %r failed on %s", self._inbox.queue, message.id, exc_info=error)

    @staticmethod
    def _ends(worker: Worker, error: BaseException) -> bool:
        """Whether an exception is meant for the worker itself, and not only for the handler's message."""
        if isinstance(error, asyncio.CancelledError):
            # One that nobody asked this task for came out of something that the handler awaited; the timeout asks once.
            return worker.task is None or worker.task.cancelling() > worker.timed_out
        if isinstance(error, GeneratorExit):
            try:
                return asyncio.current_task() is not worker.task
            except RuntimeError:
                return True  # no loop runs: Python takes down what was left of it
        return isinstance(error, (KeyboardInterrupt, SystemExit))

    # -- the timeout -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """One timer for all workers, at the earliest deadline."""
        if self._watchdog is None:
            when = min((worker.until for worker in self._workers if worker.message is not None), default=math.inf)
            if when < math.inf:
                self._watchdog = asyncio.get_running_loop().call_at(when, self._expire)

    def _expire(self) -> None:
        self._watchdog = None
        now = self._driver.now()
        for worker in self._workers:
            message = worker.message
            if message is None or worker.task is None or now < worker.until:
                continue
            if worker.timed_out:
                worker.until = math.inf
                logger.warning("a handler of %r was cancelled at its timeout, and does not end", self._inbox.queue)
                continue
            worker.timed_out, worker.until = True, now + CLEANUP_S
            if not message.settled:  # whatever the handler says from now on is too late
                message.nack(error=f"the handler ran longer than its timeout of {self._options.timeout} s")
            worker.task.cancel()
        self._note_stuck()
        self._watch()

    def _note_stuck(self) -> None:
        """With no worker left, what waits goes to other consumers; with one again, more may come."""
        running = sum(worker.stuck and worker.message is not None for worker in self._workers)
        stuck = running == self._options.concurrency
        if stuck == self._stuck:
            return
        self._stuck = stuck
        if isinstance(self._inbox, Inbox):
            self._inbox.pause(stuck)
        if stuck:
            text = f"all {running} handlers were cancelled at the timeout of {self._options.timeout} s, and do not end"
            self._driver.on_events([Event("consumer.stuck", time.time(), queue=self._inbox.queue, text=text)])

    def _extended(self, lane: InLane, seq: int) -> None:
        assert self._options.timeout is not None
        for worker in self._workers:
            message = worker.message
            if message is not None and message._lane is lane and message._seq == seq and not worker.timed_out:
                worker.until = self._driver.now() + self._options.timeout
