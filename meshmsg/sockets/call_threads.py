"""Running plain methods of a router in threads: results come back a turn at a time, items as far as there is room."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import closing
from queue import SimpleQueue
from typing import Any, NamedTuple

from meshmsg.errors import Cancelled
from meshmsg.message import describe_error


class Job(NamedTuple):
    """What a thread shall call, and who waits for it."""

    future: asyncio.Future[Ended]
    function: Callable[[], Any]
    context: contextvars.Context


class Ended(NamedTuple):
    """How it went. A future of its own kind would not take every exception (``StopIteration``)."""

    result: Any
    error: Exception | None


class CallThreads:
    """Threads that are started when they are needed, one for each call that runs.

    They are daemons, unlike those of ``concurrent.futures``: a method that hangs does not keep the process from
    ending. A thread cannot be stopped; who waits for one that is wanted no more lets it run, and counts it as running.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._name = name
        self._loop = loop
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._done: deque[tuple[Job, Ended]] = deque()
        self._told = False  # whether the loop knows that there is something in it
        self._threads = 0
        self._busy = 0

    async def run(self, function: Callable[[], Any]) -> Any:
        """Calls it in a thread, with this task's context variables; returns or raises what it does."""
        future: asyncio.Future[Ended] = self._loop.create_future()
        self._busy += 1
        self._jobs.put(Job(future, function, contextvars.copy_context()))
        if self._busy > self._threads:
            name = f"{self._name}-{self._threads}"
            self._threads += 1
            threading.Thread(target=self._work, name=name, daemon=True).start()
        result, error = await future
        if error is None:
            return result
        try:
            raise error
        finally:
            del error, future  # or they would hold this frame, which holds them

    def stop(self) -> None:
        """Threads end as soon as they have nothing to do."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                ended = Ended(job.context.run(job.function), None)
            except Exception as error:
                ended = Ended(None, error)
            except BaseException as error:  # such as SystemExit, which would end the loop when it is raised there
                failure = RuntimeError(f"a plain method raised {describe_error(error)}")
                failure.__cause__ = error
                ended = Ended(None, failure)
                del failure
            self._done.append((job, ended))
            del job, ended  # an idle thread holds nothing
            if not self._told:
                self._told = True
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                except RuntimeError:
                    return  # the loop is closed, and nobody waits

    def _collect(self) -> None:
        self._told = False  # first: what is added from here on may be told twice, and is never missed
        while self._done:
            job, ended = self._done.popleft()
            self._busy -= 1
            if not job.future.done():
                job.future.set_result(ended)


class PlainInterceptor:
    """An interceptor that is a plain function ``(context, proceed)``; the workers run it in a thread."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    async def __call__(self, context: object, proceed: object) -> Any:
        """Is never called: the workers know its kind."""
        raise TypeError(f"{self.function!r} runs in a thread")


def run_in_loop(loop: asyncio.AbstractEventLoop, begin: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Runs a coroutine in the loop from a thread, with the thread's context variables; waits for its result."""
    ended: SimpleQueue[Ended] = SimpleQueue()

    async def run() -> None:
        try:
            ended.put(Ended(await begin(), None))
        except Exception as error:
            ended.put(Ended(None, error))
        except BaseException as error:
            ended.put(Ended(None, Cancelled(f"it was stopped: {describe_error(error)}")))
            raise

    tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them but weakly
    loop.call_soon_threadsafe(lambda: tasks.add(loop.create_task(run())))  # which passes the variables on
    result, error = ended.get()
    if error is None:
        return result
    try:
        raise error
    finally:
        del error  # or it would hold this frame, which holds it


class Feed:
    """Items of a plain generator on their way from its thread to the loop; the thread waits while there is no room."""

    def __init__(self, loop: asyncio.AbstractEventLoop, came: Callable[[], None]) -> None:
        self._loop = loop
        self._came = came  # called in the loop when there is something to take
        self._condition = threading.Condition()
        self._bodies: list[bytes] = []
        self._room = 0  # for so many, and as long as there are bytes left
        self._room_bytes = 0
        self._cut = False

    # -- in the thread ---------------------------------------------------------------------------------------

    def run(self, items: Generator[Any, Any, Any], encode: Callable[[Any], bytes]) -> None:
        """Passes on what the generator yields, until it ends or nobody wants more."""
        with closing(items):
            for item in items:
                if not self._put(encode(item)):
                    break

    def wait(self) -> bool:
        """Waits for room; False when nobody wants more. Generators that must not run ahead begin with it."""
        with self._condition:
            while not self._has_room and not self._cut:
                self._condition.wait()
            return not self._cut

    @property
    def _has_room(self) -> bool:
        return self._room > 0 and self._room_bytes > 0

    def _put(self, body: bytes) -> bool:
        with self._condition:
            while not self._has_room and not self._cut:
                self._condition.wait()
            if self._cut:
                return False
            self._room -= 1
            self._room_bytes -= len(body)
            self._bodies.append(body)
            if len(self._bodies) > 1:
                return True
        try:
            self._loop.call_soon_threadsafe(self._came)
        except RuntimeError:
            return False  # the loop is closed
        return True

    # -- in the loop -----------------------------------------------------------------------------------------

    def take(self) -> list[bytes]:
        """What has come since the last time."""
        with self._condition:
            bodies, self._bodies = self._bodies, []
        return bodies

    def allow(self, room: int, room_bytes: int) -> None:
        """So many items may come, as long as there are bytes left; those that were not taken yet count."""
        with self._condition:
            self._room = room - len(self._bodies)
            self._room_bytes = room_bytes - sum(map(len, self._bodies))
            if self._has_room:
                self._condition.notify()

    def cut(self) -> None:
        """Nobody wants more: the generator is closed when it yields the next time."""
        with self._condition:
            self._cut = True
            self._condition.notify()
