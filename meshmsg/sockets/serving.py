"""Running a router's methods: workers in the loop that take one call after another; no task and no timer a call."""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextvars import Context as Variables
from contextvars import copy_context
from functools import partial
from typing import Any

from meshmsg.driver import Driver
from meshmsg.engine.served import BY_CALLER, BY_DEADLINE, BY_LOSS, Served, Service, Serving
from meshmsg.errors import BadRequest, BodyTooLarge, Cancelled, DeadlineExceeded, NoSuchMethod, Unavailable
from meshmsg.options import RouterOptions
from meshmsg.sockets.call_threads import CallThreads, Feed, PlainInterceptor, run_in_loop
from meshmsg.sockets.context import Context, Place, current
from meshmsg.sockets.conversions import place_error
from meshmsg.sockets.failures import contain, describe, fail, say
from meshmsg.sockets.methods import Counts, Method
from meshmsg.sockets.signatures import refuse_unrun
from meshmsg.sockets.turns import yield_turn
from meshmsg.wire.codec import explain_encode_error, make_packer, renew_packer
from meshmsg.wire.items import SENDS_ITEMS, WANTS_ITEMS
from meshmsg.wire.large import LARGE_BYTES

Proceed = Callable[[], Awaitable[Any]]
Interceptor = Callable[[Context, Proceed], Awaitable[Any]]

# A worker whose methods never wait gives the loop a turn after this many calls or items.
BURST = 256
# What methods get to clean up when they are stopped.
CLEANUP_S = 0.5

logger = logging.getLogger("meshmsg.handlers")


class Worker:
    """One of ``concurrency``: what it serves, and whether it was told to stop that."""

    __slots__ = ("context", "expires_at", "in_thread", "proceeded", "served", "stopped", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.served: Served | None = None
        self.context: Context | None = None
        self.expires_at: float | None = None  # the end of the router's timeout, if that comes before the deadline
        self.in_thread = False
        self.proceeded = False  # interceptors let the call through to its method
        self.stopped = False

    def stop(self) -> None:
        """The call that it serves is wanted no more. A thread goes on; what it waits for ends, such as a request."""
        if self.in_thread:
            if self.context is not None:
                self.context._stop_inner()
        elif not self.stopped and self.task is not None:
            self.stopped = True
            self.task.cancel()


class CallWorkers:
    """Serves the calls of one service, ``concurrency`` at a time.

    The first worker gets up when calls come, and each that finds more of them wakes the next. So methods that never
    wait are all run by one worker, in a row, and those that wait run side by side.
    """

    def __init__(
        self,
        driver: Driver,
        service: Service,
        serving: Serving,
        options: RouterOptions,
        methods: Mapping[str, Method],
        interceptors: Sequence[Interceptor],
        max_message_bytes: int,
    ) -> None:
        self._driver = driver
        self._service = service
        self._serving = serving
        self._options = options
        self._methods = methods
        self.unknown = Counts()  # of calls of methods that it does not have
        self._interceptors = interceptors
        self._max_bytes = max_message_bytes
        self._small = min(max_message_bytes, LARGE_BYTES)  # every node takes bodies up to this
        self._pack = make_packer()
        self._place: Place | None = None
        self._threads: CallThreads | None = None
        self._variables: Variables | None = None
        self._workers: set[Worker] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._rising = False  # whether a worker was woken and has not begun yet
        self._busy = 0
        self._stopping = False
        self._watchdog: asyncio.TimerHandle | None = None

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The node runs, in this loop."""
        loop = asyncio.get_running_loop()
        self._place = Place(self._driver, self._serving, loop)
        self._threads = CallThreads(f"meshmsg-{self._service.name}", loop)
        # What every call begins with: not the variables of whatever happens to run when a worker is started.
        self._variables = copy_context()
        self._variables.run(current.set, None)
        self.wake()

    def wake(self) -> None:
        """Calls have come: one worker gets up, if one is left."""
        if self._rising or self._stopping or self._place is None or not self._service.queue:
            return
        while self._idle:
            future = self._idle.pop()  # the one that slept last: the others may stay where they are
            if not future.done():
                self._rising = True
                future.set_result(None)
                return
        if len(self._workers) < self._options.concurrency:
            assert self._variables is not None, "set together with the place"
            worker = Worker()
            self._workers.add(worker)
            self._rising = True
            name = f"meshmsg-{self._service.name}"
            worker.task = self._place.loop.create_task(self._work(worker), name=name, context=self._variables.copy())
            worker.task.add_done_callback(partial(self._ended, worker))

    def serve_this_task(self) -> bool:
        """Whether the task that asks serves one of the calls itself."""
        task = asyncio.current_task()
        return any(worker.task is task for worker in self._workers)

    async def stop(self, drain: float, endless: Collection[str] = ()) -> None:
        """Lets what runs end within ``drain`` seconds, and stops the rest: their callers get ``Unavailable``.

        Calls of ``endless`` methods are stopped at once.
        """
        self._stopping = True
        for future in self._idle:
            if not future.done():
                future.set_result(None)
        stopped = set[Worker]()
        for worker in list(self._workers):
            served = worker.served
            if served is not None and served.method in endless:
                stopped.add(worker)
                text = f"{served.service}.{served.method} was stopped: the service closes"
                self._give_up(worker, served, Unavailable.code, text)
        await self._wait(self._workers - stopped, drain)
        for worker in list(self._workers):
            served = worker.served
            if served is not None:
                text = f"{served.service}.{served.method} was stopped: the service closes, and it took too long"
                self._give_up(worker, served, Unavailable.code, text)
        await self._wait([worker for worker in self._workers if not worker.in_thread], CLEANUP_S)
        for worker in self._workers:
            if worker.task is not None:
                worker.task.cancel()  # such as one that waits for its thread
        await self._wait(self._workers, 0.0)
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._threads is not None:
            self._threads.stop()

    @staticmethod
    async def _wait(workers: Iterable[Worker], timeout: float) -> None:
        tasks = [worker.task for worker in workers if worker.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, timeout))

    def _give_up(self, worker: Worker, served: Served, code: str, text: str) -> None:
        """Answers in the place of a method, and stops it; what that says from now on is too late."""
        if served.state != "done":
            self._serving.fail(served, code, "", text)
            served.cancelled = text
            worker.stop()
            self._driver.wake()

    def _ended(self, worker: Worker, task: asyncio.Task[None]) -> None:
        """A worker's task is over: at the end, or because a method left it unfit for another call."""
        self._workers.discard(worker)
        worker.task = None  # which, if it was cancelled, holds its frames, and they the worker and the arguments
        self._rising = False
        if not task.cancelled() and task.exception() is not None:
            logger.error("a worker of %r ended", self._service.name, exc_info=task.exception())
        self.wake()

    # -- a worker --------------------------------------------------------------------------------------------

    async def _work(self, worker: Worker) -> None:
        now, service, variables = self._driver.now, self._service, self._variables
        self._rising = False
        count = 0
        while not self._stopping:
            started = now()
            served = service.take(started)
            if served is None:
                await self._rest()
                continue
            if service.queue and not self._rising:
                self.wake()
            self._busy += 1
            try:
                await self._serve(worker, served, started)
            finally:
                self._busy -= 1
            current.set(None)
            if worker.stopped or not is_same(copy_context(), variables):
                # A cancellation may still be on its way into this task; or what one call set, such as who is logged
                # in, would be seen by the next one. Another worker takes the place of this one.
                return
            count += 1
            if count % BURST == 0:
                await yield_turn()

    async def _rest(self) -> None:
        """Until there may be another call."""
        driver = self._driver
        if driver.scheduled and not self._busy:
            # The last answer of a burst: all of it leaves now, instead of when the loop gets to it.
            self._rising = True  # this worker looks itself for what comes meanwhile
            driver.turn()
            self._rising = False
            if self._service.queue:
                return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(future)
        try:
            await future
        finally:
            self._rising = False

    async def _serve(self, worker: Worker, served: Served, started: float) -> None:
        """One call, from its arguments to its answer."""
        assert self._place is not None, "a worker runs in a loop"
        method = self._methods.get(served.method)
        worker.served = served
        served.on_cancel = worker.stop
        deadline = served.deadline if self._options.timeout is None else self._limit(worker, served, started)
        worker.context = context = Context(served, self._place, deadline)
        current.set(context)
        failure = None
        try:
            if self._interceptors:
                worker.proceeded = False
                result = await self._intercept(worker, context, served, method, 0)
                if served.flags & WANTS_ITEMS:
                    require_proceeded(worker, served)
                elif result is None and method is not None and not method.streams:
                    require_returned(method)
            elif method is not None and method.kind == "coroutine" and not served.flags & (WANTS_ITEMS | SENDS_ITEMS):
                args, kwargs = method.signature.bind(served.args, served.kwargs, context)
                result = await method.function(*args, **kwargs)
                method.signature.check_result(result)
            else:
                result = await self._call(worker, context, served, method)
            self._answer(served, result)
            if served.cancelled is not None:
                failure = self._unheard(served, served.cancelled)
        except BaseException as error:
            failure = self._failed(served, context, error)
            if not isinstance(error, (Exception, SystemExit)):
                raise  # it may be meant for the worker: another one takes its place, if the loop goes on
        finally:
            worker.served = worker.context = worker.expires_at = None
            (method or self.unknown).note(self._driver.now() - started, failure)
            if not self._driver.scheduled:
                self._driver.wake()

    def _answer(self, served: Served, result: Any) -> None:
        """The call has ended well."""
        if served.flags & WANTS_ITEMS:
            self._serving.end(served)
        else:
            self._serving.reply(served, self._encode(served, self._pack, result, "result"))

    def _failed(self, served: Served, context: Context, error: BaseException) -> str | None:
        """The call has ended with an exception, which its caller gets as a fault; returns what the statistics say."""
        if served.cancelled is not None:
            return self._unheard(served, served.cancelled)
        label = f"{served.service}.{served.method}"
        if isinstance(error, SystemExit):
            error = contain(label, error)
        elif isinstance(error, asyncio.CancelledError):
            error = Cancelled(f"{label} was cancelled{f': {error}' if str(error) else ''}")
        elif isinstance(error, DeadlineExceeded) and context.remaining is not None and context.remaining < 0.001:
            error = DeadlineExceeded(f"{label}: {error}")  # of a request that it made: the time is its caller's
        elif isinstance(error, NoSuchMethod) and error.service is None and served.method not in self._methods:
            # The service's own word, and no answer of a method: another node may have it.
            self._serving.fail(served, error.code, "", say(error), never_ran=True)
            return describe(error)
        fail(self._serving, served, error, self._options.tracebacks)
        return describe(error)

    def _unheard(self, served: Served, why: str) -> str | None:
        """What the statistics say of a call that ended too late for an answer, well or not.

        Not to be through in time is an error of the method; that nobody wants to know any more is none.
        """
        if why == BY_DEADLINE:
            self._service.last_error = f"{served.method}: {why}"
        return None if why in (BY_CALLER, BY_LOSS) else why

    # -- a call ----------------------------------------------------------------------------------------------

    async def _intercept(
        self, worker: Worker, context: Context, served: Served, method: Method | None, position: int
    ) -> Any:
        """Goes through the interceptors, from the first one to the method."""
        if position == len(self._interceptors):
            worker.proceeded = True
            if served.cancelled is not None:
                raise Cancelled(f"{served.service}.{served.method}: {served.cancelled}")
            try:
                return await self._call(worker, context, served, method)
            except SystemExit as error:  # here already: an interceptor may await this in a task of its own
                raise contain(f"{served.service}.{served.method}", error) from error
        proceed = partial(self._intercept, worker, context, served, method, position + 1)
        intercept = self._interceptors[position]
        if isinstance(intercept, PlainInterceptor):
            assert self._place is not None, "a worker runs in a loop"
            proceed_there = partial(run_in_loop, self._place.loop, proceed)
            return await self._run_plain(worker, partial(intercept.function, context, proceed_there))
        return await intercept(context, proceed)

    async def _run_plain(self, worker: Worker, function: Callable[[], Any]) -> Any:
        """Runs a plain function in a thread, which cannot be stopped."""
        assert self._threads is not None, "a worker runs in a loop"
        before, worker.in_thread = worker.in_thread, True
        try:
            return await self._threads.run(function)
        finally:
            worker.in_thread = before

    async def _call(self, worker: Worker, context: Context, served: Served, method: Method | None) -> Any:
        """Runs the method, of whatever kind it is; returns its result, or None at the end of its items."""
        label = f"{served.service}.{served.method}"
        if method is None:
            raise NoSuchMethod(describe_methods(label, self._methods))
        if method.streams != bool(served.flags & WANTS_ITEMS):
            offered = "streams items: call stream()" if method.streams else "gives one result: call request()"
            raise BadRequest(f"{label} {offered} instead")
        if served.up is not None and not method.signature.wants_context:
            raise BadRequest(f"{label}: it takes no items: leave items= out; its arguments are {method.signature.text}")
        args, kwargs = method.signature.bind(served.args, served.kwargs, context)
        if method.kind == "async generator":
            return await self._stream(served, method, method.function(*args, **kwargs))
        if method.kind == "coroutine":
            result = await method.function(*args, **kwargs)
            method.signature.check_result(result)
            return result
        function = partial(method.function, *args, **kwargs)
        if method.kind == "generator":
            before, worker.in_thread = worker.in_thread, True
            try:
                return await self._feed(served, method, function)
            finally:
                worker.in_thread = before
        result = await self._run_plain(worker, function)
        method.signature.check_result(result)
        return result

    async def _stream(self, served: Served, method: Method, items: AsyncGenerator[Any, None]) -> None:
        """Sends what an async generator yields, as fast as its caller takes it."""
        out, check = served.out, method.signature.check_result
        assert out is not None, "the caller wants items"
        count = 0
        try:
            async for item in items:
                check(item)
                body = self._encode(served, self._pack, item, "item")
                while out.room < 1:
                    await self._wait_for_room(served)
                self._serving.send_items(served, [body])
                if not self._driver.scheduled:
                    self._driver.wake()
                count += 1
                if count % BURST == 0:
                    await yield_turn()
        finally:
            await items.aclose()

    async def _wait_for_room(self, served: Served) -> None:
        """Until the caller takes more, or nobody takes anything."""
        out = served.out
        assert out is not None, "the caller wants items"
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        out.wake = lambda: None if future.done() else future.set_result(None)
        try:
            if out.cut is not None:
                raise Cancelled(f"nobody takes the items of {served.service}.{served.method}: {out.cut}")
            if out.room < 1:
                await future
        finally:
            out.wake = None

    async def _feed(self, served: Served, method: Method, function: Callable[[], Any]) -> None:
        """Sends what a plain generator yields in its thread."""
        out, threads = served.out, self._threads
        assert out is not None and threads is not None, "the caller wants items"
        stir = asyncio.Event()
        feed = Feed(asyncio.get_running_loop(), stir.set)
        pack, check = make_packer(), method.signature.check_result

        def encode(item: Any) -> bytes:
            nonlocal pack
            check(item)
            body = self._encode(served, pack, item, "item")
            if len(body) >= LARGE_BYTES:
                pack = renew_packer(pack, len(body))
            return body

        out.wake = stir.set
        running = asyncio.ensure_future(threads.run(lambda: feed.run(function(), encode)))
        running.add_done_callback(lambda _: stir.set())
        try:
            while True:
                stir.clear()
                ended = running.done()
                bodies = feed.take()
                if served.cancelled is not None or out.cut is not None:
                    feed.cut()
                elif bodies:
                    together = sum(map(len, bodies)) < out.mark_bytes
                    for part in [bodies] if together else [[body] for body in bodies]:
                        self._serving.send_items(served, part)
                    self._driver.wake()
                if ended:
                    running.result()  # or what it raised
                    return
                feed.allow(out.room, out.room_bytes)
                await stir.wait()
        finally:
            out.wake = None
            feed.cut()
            running.cancel()  # if this task was; else it has ended

    def _encode(self, served: Served, pack: Callable[[Any], bytes], value: Any, what: str) -> bytes:
        try:
            body = pack(value)
        except Exception as error:
            raise explain_unsendable(f"{served.service}.{served.method}", value, error, what) from None
        if len(body) > self._small:
            if pack is self._pack:
                self._pack = renew_packer(pack, len(body))
            self._require_size(served, body, what)
        return body

    def _require_size(self, served: Served, body: bytes, what: str) -> None:
        """Raises ``BodyTooLarge`` for what this node may not send, or the caller's does not take."""
        peers = self._driver.engine.peers
        caller = peers.find(served.peer)
        theirs = peers.limit_of(caller) if caller is not None else None
        limit = self._max_bytes if theirs is None else min(theirs, self._max_bytes)
        if len(body) > limit:
            raise BodyTooLarge(
                f"{served.service}.{served.method}: {what} of {len(body)} bytes; the limit is {limit}: "
                "stream it in parts, or raise Node(max_message_bytes=) on both sides"
            )

    # -- the router's timeout --------------------------------------------------------------------------------

    def _limit(self, worker: Worker, served: Served, started: float) -> float:
        """When a call's time is over; the router's own timeout is watched here, deadlines by the engine."""
        assert self._options.timeout is not None, "only looked at with one"
        limit = started + self._options.timeout
        if served.deadline is not None and served.deadline <= limit:
            return served.deadline
        worker.expires_at = limit
        if self._watchdog is None:  # else one rings before: all calls have the same time, and this one began last
            self._watchdog = asyncio.get_running_loop().call_at(limit, self._expire)
        return limit

    def _expire(self) -> None:
        self._watchdog = None
        now = self._driver.now()
        for worker in self._workers:
            served, limit = worker.served, worker.expires_at
            if served is not None and limit is not None and limit <= now:
                worker.expires_at = None
                label = f"{served.service}.{served.method}"
                text = f"{label} ran longer than its service's timeout of {self._options.timeout} s"
                self._service.expired += 1
                self._give_up(worker, served, DeadlineExceeded.code, text)
        left = [worker.expires_at for worker in self._workers if worker.expires_at is not None]
        if left:
            self._watchdog = asyncio.get_running_loop().call_at(min(left), self._expire)


def explain_unsendable(label: str, value: Any, error: Exception, what: str) -> Exception:
    """Why a value cannot be sent; what would have been the work itself gets words of its own."""
    unrun = refuse_unrun(label, value, "returned" if what == "result" else "yielded")
    return unrun or place_error(label, explain_encode_error(value, error), what)


def require_returned(method: Method) -> None:
    """Refuses None, if that is what became of the method's result on its way through the interceptors."""
    try:
        method.signature.check_result(None)
    except TypeError as error:
        raise TypeError(f"{error} from its interceptors: write `return await proceed()`") from None


def require_proceeded(worker: Worker, served: Served) -> None:
    """Refuses a stream that its interceptors kept from its method: it would end well, and without an item."""
    if not worker.proceeded:
        text = "its interceptors did not call proceed(): write `return await proceed()`"
        raise RuntimeError(f"{served.service}.{served.method}: {text}")


def is_same(variables: Variables, others: Variables | None) -> bool:
    """Whether all context variables have the same values."""
    try:
        return variables == others
    except Exception:
        return False  # values that cannot be compared


def describe_methods(label: str, methods: Mapping[str, Method]) -> str:
    """That a service has no method of this name, and which it has."""
    wanted = label.rpartition(".")[2]
    close = difflib.get_close_matches(wanted, methods, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(methods)}"
    return f"{label}: no such method: {hint}"
