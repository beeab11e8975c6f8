"""An event loop in a daemon thread, and calls into it that any thread can wait for."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from meshmsg.errors import NodeClosed, WrongThread
from meshmsg.sockets.handoff import acquire

END_S = 1.0  # what a loop that is ending may take for it

ResultT = TypeVar("ResultT")
# What the loop shall run: a coroutine, or what makes one there. Ctrl-C cannot leave the latter made and never run.
Work = Coroutine[Any, Any, ResultT] | Callable[[], Coroutine[Any, Any, ResultT]]
logger = logging.getLogger("meshmsg.blocking")


class Waiter(Protocol):
    """Somebody who waits for something that the loop does."""

    def abandon(self, error: BaseException) -> None:
        """The loop has ended without that."""


class Call:
    """A coroutine on its way through the loop, and a thread that may wait for what comes of it.

    As in ``Handoff``, the thread waits on a lock that nobody but the loop releases, so that Ctrl-C cannot leave one
    taken that the loop needs; ``concurrent.futures`` has a condition there.
    """

    def __init__(self, work: Work[Any], done: Callable[[], None]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False
        self.ticket = threading.Lock()
        self.ticket.acquire()
        self._done = done
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    def begin(self) -> None:
        """In the loop: runs it."""
        if self._cancelled or self.ended:
            _drop(self.work)
            self.finish(None, asyncio.CancelledError())
            return
        if not isinstance(self.work, Coroutine):
            self.work = self.work()
        self._task = asyncio.get_running_loop().create_task(self.work)
        self._task.add_done_callback(self._finished)

    def cancel(self) -> None:
        """In the loop: nobody waits any more."""
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def abandon(self, error: BaseException) -> None:
        """After the loop: it will not come to an end."""
        if self._task is None:
            _drop(self.work)
        self.finish(None, error)

    def finish(self, result: Any, error: BaseException | None) -> None:
        """Tells the thread, once."""
        if not self.ended:
            self.result, self.error, self.ended = result, error, True
            self.ticket.release()
            done, self._done = self._done, _nothing  # which refers to this: no cycle may keep the result
            done()

    def _finished(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self.finish(None, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.finish(None, error)
        else:
            self.finish(task.result(), None)


class LoopThread:
    """Runs a loop until ``stop``. Whoever waits for a call is told when the loop ends, however it ends."""

    def __init__(
        self,
        name: str,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
        require_process: Callable[[], None],
    ) -> None:
        self.name = name
        self.failure: BaseException | None = None  # what ended the loop, if it was not ``stop``
        self.ended = threading.Event()
        self.on_failure: Callable[[], None] = lambda: None
        self.loop: asyncio.AbstractEventLoop
        self._loop_factory = loop_factory
        self._require_process = require_process  # in a forked child there is no such thread: waiting would hang
        self._waiters: set[Waiter] = set()
        self._lock = threading.Lock()
        self._stop: asyncio.Event
        self._started = threading.Lock()
        self._started.acquire()
        self._thread = threading.Thread(target=self._run, name=f"meshmsg-{name}", daemon=True)
        self._thread.start()
        acquire(self._started, None)

    @property
    def is_current(self) -> bool:
        """Whether the caller is this thread."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[..., ResultT], *arguments: Any, **keywords: Any) -> ResultT:
        """Calls a function in the loop's thread and returns what it returns."""
        self._require_process()
        if self.is_current or self.ended.is_set():
            return function(*arguments, **keywords)

        async def run() -> ResultT:
            return function(*arguments, **keywords)

        return self.wait(run())

    def wait(self, work: Work[ResultT], timeout_s: float | None = None) -> ResultT:
        """Runs a coroutine in the loop and returns its result; Ctrl-C cancels it.

        Raises ``TimeoutError`` after ``timeout_s`` seconds and leaves it running.
        """
        if self.is_current:
            _drop(work)
            raise WrongThread(
                f"this runs in the thread of node {self.name!r}, where waiting would stop the node: "
                "call it from another thread"
            )
        call = self.submit(work)
        try:
            in_time = acquire(call.ticket, timeout_s)
        except BaseException:
            self.post(call.cancel)
            raise
        if not in_time:
            raise TimeoutError(f"node {self.name!r} did not answer within {timeout_s} s")
        if isinstance(call.error, asyncio.CancelledError):
            self.ended.wait(END_S)  # only its end cancels what somebody waits for; then it is known why
            raise self._explain_end() from None
        if call.error is not None:
            raise call.error
        result: ResultT = call.result
        return result

    def submit(self, work: Work[Any], done: Callable[[], None] = lambda: None) -> Call:
        """Begins a coroutine in the loop; ``done`` is called there when it has ended."""
        call = Call(work, lambda: self._forget(call, done))
        try:
            self._require_process()
            self.enter(call)
            if not self.post(call.begin):
                self.leave(call)
                raise self._explain_end()
        except BaseException:
            _drop(work)
            raise
        return call

    def enter(self, waiter: Waiter) -> None:
        """Has somebody told if the loop ends before ``leave``."""
        with self._lock:
            if self.ended.is_set():
                raise self._explain_end()
            self._waiters.add(waiter)

    def leave(self, waiter: Waiter) -> None:
        """That one waits no more."""
        self._waiters.discard(waiter)

    def stop(self, timeout_s: float) -> None:
        """Ends the loop and waits for that."""
        if not self.ended.is_set():
            self.post(lambda: self._stop.set())
        if not self.is_current:
            self._thread.join(timeout_s)

    def post(self, function: Callable[[], None]) -> bool:
        """Has a function called in the loop soon; False if there is no loop any more."""
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:  # it is closed, and about to say so
            return False
        return True

    def _forget(self, call: Call, done: Callable[[], None]) -> None:
        self._waiters.discard(call)
        done()

    def _explain_end(self) -> NodeClosed:
        if self.failure is not None:
            return NodeClosed(f"the loop of node {self.name!r} ended with {self.failure!r}: make a new Node")
        return NodeClosed(f"node {self.name!r} is closed: make a new Node")

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(self._main())
        except BaseException as error:
            self.failure = error
            # Not to the log alone, which may go nowhere: Python prints what ends a thread, unless it is SystemExit.
            logger.critical("the loop of node %r ended", self.name, exc_info=error)
            raise RuntimeError(f"the loop of node {self.name!r} ended") from error
        finally:
            with self._lock:
                self.ended.set()
                waiters = list(self._waiters)
            for waiter in waiters:  # the loop ended before it got to them
                waiter.abandon(self._explain_end())
            if self._started.locked():
                self._started.release()
            if self.failure is not None:
                self.on_failure()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._started.release()
        await self._stop.wait()


def _nothing() -> None:
    """Has been done."""


def _drop(work: Work[Any]) -> None:
    """A coroutine that will not be run."""
    if isinstance(work, Coroutine):
        work.close()
