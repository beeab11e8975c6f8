"""An event loop in a daemon thread, and calls into it that any thread can wait for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from meshmsg.errors import NodeClosed, WrongThread
from meshmsg.sockets.handoff import interruptible

END_S = 1.0  # what a loop that is ending may take for it

ResultT = TypeVar("ResultT")
logger = logging.getLogger("meshmsg.blocking")


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
        self._calls: dict[concurrent.futures.Future[Any], Coroutine[Any, Any, Any]] = {}
        self._lock = threading.Lock()
        self._stop: asyncio.Event
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"meshmsg-{name}", daemon=True)
        self._thread.start()
        while not self._started.wait(interruptible(None)):
            pass

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

    def wait(self, coroutine: Coroutine[Any, Any, ResultT], timeout_s: float | None = None) -> ResultT:
        """Runs a coroutine in the loop and returns its result; Ctrl-C cancels it.

        Raises ``TimeoutError`` after ``timeout_s`` seconds and leaves it running.
        """
        if self.is_current:
            coroutine.close()
            raise WrongThread(
                f"this runs in the thread of node {self.name!r}, where waiting would stop the node: "
                "call it from another thread"
            )
        future = self.submit(coroutine)
        try:
            while True:
                try:
                    return future.result(interruptible(timeout_s))
                except concurrent.futures.TimeoutError:
                    if future.done() or timeout_s is not None:
                        raise
        except concurrent.futures.CancelledError:
            self.ended.wait(END_S)  # only its end cancels what somebody waits for; then it is known why
            raise self._explain_end() from None
        except BaseException:
            if timeout_s is None:
                future.cancel()
            raise

    def submit(self, coroutine: Coroutine[Any, Any, ResultT]) -> concurrent.futures.Future[ResultT]:
        """Begins a coroutine in the loop."""
        try:
            self._require_process()
        except BaseException:
            coroutine.close()
            raise
        with self._lock:
            if self.ended.is_set():
                coroutine.close()
                raise self._explain_end()
            try:
                future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
            except RuntimeError:  # it is closed, and about to say so
                coroutine.close()
                raise self._explain_end() from None
            self._calls[future] = coroutine
        future.add_done_callback(self._forget)
        return future

    def stop(self, timeout_s: float) -> None:
        """Ends the loop and waits for that."""
        if not self.ended.is_set():
            try:
                self.loop.call_soon_threadsafe(self._stop.set)
            except RuntimeError:
                pass  # it has just ended by itself
        if not self.is_current:
            self._thread.join(timeout_s)

    def _forget(self, future: concurrent.futures.Future[Any]) -> None:
        with self._lock:
            self._calls.pop(future, None)

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
                calls = dict(self._calls)
            for future, coroutine in calls.items():
                if not future.done():  # the loop ended before it got to it
                    coroutine.close()
                    future.set_exception(self._explain_end())
            self._started.set()
            if self.failure is not None:
                self.on_failure()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._started.set()
        await self._stop.wait()
