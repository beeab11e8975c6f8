"""Running a plain function as a handler: a fixed set of threads, fed and settled in bursts."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from meshmsg.driver import Driver
from meshmsg.engine.lane import InLane
from meshmsg.errors import AlreadySettled, Reject
from meshmsg.message import Event, Message, judge_by_error
from meshmsg.options import PullOptions
from meshmsg.sockets.handoff import Handoff, lane_behind
from meshmsg.sockets.workers import refuse_result
from meshmsg.wire import frames

logger = logging.getLogger("meshmsg.handlers")


class ThreadWorker:
    """One of ``concurrency``: what it runs, and since when (monotonic)."""

    __slots__ = ("message", "started_at")

    def __init__(self) -> None:
        self.message: Message | None = None
        self.started_at = 0.0


class ThreadWorkers:
    """Calls a function with each message, in ``concurrency`` threads.

    A thread cannot be stopped. A handler that runs past ``timeout`` has its message nacked, so that another
    consumer gets it at once, and its thread goes on when the handler returns. The threads are daemons: a handler
    that hangs does not keep the process from ending.
    """

    def __init__(self, driver: Driver, options: PullOptions, handler: Callable[[Message], Any], queue: str) -> None:
        self._driver = driver
        self._options = options
        self._handler = handler
        self._queue = queue
        self._handoff: Handoff | None = None
        self._workers: list[ThreadWorker] = []
        self._running = 0
        self._watchdog: asyncio.TimerHandle | None = None
        self._ended: asyncio.Event | None = None
        self._stuck = False  # whether every thread runs past its timeout

    def start(self, handoff: Handoff) -> None:
        """Starts the threads; called in the loop."""
        loop = asyncio.get_running_loop()
        self._handoff = handoff
        self._ended = asyncio.Event()
        for index in range(self._options.concurrency):
            worker = ThreadWorker()
            self._workers.append(worker)
            self._running += 1
            name = f"meshmsg-{self._queue}-{index}"
            threading.Thread(target=self._work, args=(worker, handoff, loop), name=name, daemon=True).start()
        if self._options.timeout is not None:
            self._watch()

    async def finish(self, drain: float) -> None:
        """Waits until everything in the inbox was handled, for ``drain`` seconds at most."""
        if self._handoff is not None:
            self._handoff.finish()
            await self._wait_for_end(drain)

    async def _wait_for_end(self, drain: float) -> None:
        assert self._ended is not None, "threads were started"
        try:
            async with asyncio.timeout(max(0.0, drain)):
                await self._ended.wait()
        except TimeoutError:
            pass

    async def stop(self, drain: float) -> None:
        """Lets handlers end within ``drain`` seconds; what the others hold is nacked (G10)."""
        if self._handoff is None:
            return
        await self._wait_for_end(drain)
        self._handoff.apply()
        for worker in self._workers:
            if worker.message is not None:
                self._give_up(worker.message, "the consumer was closed while the handler ran")
        if self._watchdog is not None:
            self._watchdog.cancel()

    # -- in a thread -----------------------------------------------------------------------------------------

    def _work(self, worker: ThreadWorker, handoff: Handoff, loop: asyncio.AbstractEventLoop) -> None:
        handler = self._handler
        for message in handoff:
            worker.started_at = time.monotonic()
            worker.message = message
            try:
                result = handler(message)
                if result is not None:
                    refuse_result(message, result)
            except BaseException as error:
                self._failed(message, error)
            else:
                if not message.settled:
                    try:
                        message.ack()
                    except AlreadySettled:
                        pass  # its time ran out just now
            worker.message = None
        try:
            loop.call_soon_threadsafe(self._note_end)
        except RuntimeError:
            pass  # the loop is closed already, and nobody waits

    def _failed(self, message: Message, error: BaseException) -> None:
        if not isinstance(error, Reject):
            # Nobody sees a thread end, so one goes on even after SystemExit; but not quietly.
            level = logging.DEBUG if isinstance(error, Exception) else logging.ERROR
            logger.log(level, "handler of %r failed on %s", self._queue, message.id, exc_info=error)
        if message.settled:
            return
        try:
            judge_by_error(message, error)
        except AlreadySettled:
            pass  # its time ran out just now

    # -- in the loop -----------------------------------------------------------------------------------------

    def extended(self, lane: InLane, seq: int) -> None:
        """A message asked for more time."""
        for worker in self._workers:
            message = worker.message
            if message is not None and message._seq == seq and lane_behind(message._lane) is lane:
                worker.started_at = time.monotonic()

    def _note_end(self) -> None:
        self._running -= 1
        if not self._running and self._ended is not None:
            self._ended.set()

    def _watch(self) -> None:
        """Looks again at the earliest deadline; whatever starts from now on has a later one."""
        timeout = self._options.timeout
        assert timeout is not None and self._handoff is not None
        self._handoff.apply()
        now = earliest = time.monotonic()
        overdue = 0
        for worker in self._workers:
            message, started_at = worker.message, worker.started_at
            overdue += message is not None and now >= started_at + timeout
            if message is None or message.settled:
                continue
            if now >= started_at + timeout:
                self._give_up(message, f"the handler ran longer than its timeout of {timeout} s")
                logger.warning("a handler of %r runs past its timeout, and keeps its thread", self._queue)
            else:
                earliest = min(earliest, started_at)
        self._note_stuck(overdue == len(self._workers))
        self._driver.wake()
        self._watchdog = asyncio.get_running_loop().call_later(earliest + timeout - now, self._watch)

    def _note_stuck(self, stuck: bool) -> None:
        """With no thread left, what waits goes to other consumers; with one again, more may come."""
        if stuck == self._stuck or self._handoff is None:
            return
        self._stuck = stuck
        self._handoff.pause(stuck)
        if stuck:
            text = f"all {len(self._workers)} threads run past the timeout of {self._options.timeout} s"
            self._driver.on_events([Event("consumer.stuck", time.time(), queue=self._queue, text=text)])

    def _give_up(self, message: Message, error: str) -> None:
        """Nacks in the place of a handler; what that says from now on is too late."""
        if not message.settled and self._handoff is not None:
            message.settled = True
            self._handoff.settle(lane_behind(message._lane), message._seq, frames.NACKED, None, error)
            self._handoff.apply()
