"""The client's end of a service, for threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import EllipsisType, TracebackType
from typing import Any, Generic, Self, TypeVar

from meshmsg.blocking.calls import SharedDealer
from meshmsg.blocking.files import fetch, send_file
from meshmsg.blocking.loop import LoopThread
from meshmsg.checks import require_items
from meshmsg.driver import Driver
from meshmsg.errors import ConfigurationError
from meshmsg.sockets.context import current
from meshmsg.sockets.dealer import require_method_name
from meshmsg.sockets.files import FileInfo, fit_chunk
from meshmsg.sockets.interceptors import Outgoing, make_failure, make_given_up, make_outgoing
from meshmsg.sockets.item_stream import Answer, Called, ItemStream
from meshmsg.sockets.shown import Shown
from meshmsg.sockets.transfers import Progress, Target, Upload
from meshmsg.sockets.workers import is_async

BURST = 256  # answers or items that a thread takes at a time

T = TypeVar("T")


class Incoming(Iterator[T], Generic[T]):
    """What a call brings, as it comes. The call is made when the first is asked for, and given up with this.

    That is by ``close``, at the end of its ``with``, when nothing refers to it any more, and by Ctrl-C.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives up what is under way: the servers are told to stop, and what they sent is dropped."""
        raise NotImplementedError


class Fetched(Incoming[T]):
    """What comes from calls of this node, a burst at a time."""

    def __init__(self, source: Called[T], thread: LoopThread, driver: Driver) -> None:
        self._source = source
        self._thread = thread
        self._driver = driver
        self._context = current.get()  # of the request that is served by this thread
        self._here: deque[T] = deque()
        self._error: Exception | None = None  # comes behind these

    def __next__(self) -> T:
        if not self._driver.owner:
            self._driver.require_process()
        while True:
            try:
                return self._here.popleft()
            except IndexError:
                pass
            error, self._error = self._error, None
            try:
                if error is not None:
                    raise error
            finally:
                del error
            if not self._thread.wait(self._fetch) and not self._here:
                raise StopIteration

    def close(self) -> None:
        if not self._thread.ended.is_set():
            self._thread.wait(self._source.aclose)
        self._here.clear()

    def __repr__(self) -> str:
        return repr(self._source).replace(type(self._source).__name__, "Incoming", 1)

    async def _fetch(self) -> bool:
        """Adds what has come, at least one; False at the end. Other threads may take it before the one that asks."""
        source, context = self._source, self._context
        if context is None:
            return await self._take()
        context._hold(source._give_up)
        try:
            return await self._take()
        finally:
            context._release(source._give_up)

    async def _take(self) -> bool:
        source = self._source
        down = source._down if isinstance(source, ItemStream) else None
        if isinstance(source, ItemStream) and source._down.lent:
            source._down.lent = 0  # the thread has got what came before
            source._grant()
        try:
            items = [await anext(source)]
        except StopAsyncIteration:
            return False
        # Not all of a stream's window at once: then the producer would wait whenever a slow thread works on it.
        limit = max(1, down.window // 2) if down is not None else BURST
        try:
            while source._waiting and len(items) < limit:
                if down is not None:
                    down.lent = len(items)
                items.append(source._take())
        except Exception as error:
            self._error = error
        self._here += items
        return True


class Dealer(Shown):
    """The client's end of a service. ``node.dealer(service, ...)`` makes it; any number of threads may use it.

    ``math.add(2, 3)`` is short for ``math.request("add", 2, 3)``, for methods that have no underscore in front and
    are not called like something of the dealer itself.

    Examples
    --------
    >>> from meshmsg.blocking import Node
    >>> with Node("node") as node:
    ...     router = node.router("math")
    ...     @router.method
    ...     def add(a: int, b: int) -> int:
    ...         return a + b
    ...     math = node.dealer("math", timeout=5)
    ...     node.wait_for(router="math", timeout=5)
    ...     print(math.request("add", 2, 3), math.add(4, 5))
    5 9
    """

    def __init__(self, inner: SharedDealer, driver: Driver) -> None:
        self.service = inner.service
        self.options = inner.options
        self._inner = inner
        self._driver = driver

    def _title(self) -> str:
        return self._inner._title()

    def _state(self) -> str:
        return self._inner._state()

    def _connect(self, loop: LoopThread) -> None:
        """The node has started."""
        self._inner.connect(loop)

    def request(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | EllipsisType | None = ...,
        headers: Mapping[str, Any] | None = None,
        peer: str | None = None,
        key: str | None = None,
        idempotent: bool | None = None,
        items: Iterable[Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls a method of the service, waits, and returns its result (G8). Ctrl-C cancels the method.

        The parameters and what it raises are those of ``meshmsg.Dealer.request``; ``items`` is a plain iterable, which
        is taken from in a thread of its own. In a method of a router it gets no more time than its caller gave.
        """
        return self._inner.ask(method, args, kwargs, timeout, headers, peer, key, idempotent, items)

    def stream(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        headers: Mapping[str, Any] | None = None,
        peer: str | None = None,
        key: str | None = None,
        items: Iterable[Any] | None = None,
        **kwargs: Any,
    ) -> Incoming[Any]:
        """The items that a method yields, as an iterator; with ``items=`` in both directions.

        As ``meshmsg.Dealer.stream``; close it if you leave the loop early and keep the iterator.
        """
        source = self._inner.open_stream(method, args, kwargs, timeout, headers, peer, key, items)
        return Fetched(source, self._inner.require_thread(), self._driver)

    def survey(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = 1.0,
        headers: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Incoming[Answer]:
        """Asks everybody who serves now, and gives an ``Answer`` of each as an iterator.

        As ``meshmsg.Dealer.survey``.
        """
        source = self._inner.survey(method, *args, timeout=timeout, headers=headers, **kwargs)
        assert isinstance(source, Called), "what a dealer without interceptors makes"
        return Fetched(source, self._inner.require_thread(), self._driver)

    def fetch(
        self,
        name: str,
        target: Target,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
        peer: str | None = None,
    ) -> FileInfo:
        """Gets a file of a service that offers some; as ``meshmsg.Dealer.fetch``."""
        self._inner.require_thread()
        return fetch(self, name, target, progress, timeout, peer)

    def send_file(
        self,
        source: Target,
        name: str | None = None,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
        peer: str | None = None,
    ) -> FileInfo:
        """Puts a file into the directory of a service; as ``meshmsg.Dealer.send_file``.

        ``progress`` is called in a thread of its own.
        """
        self._inner.require_thread()
        return send_file(self, Upload(source, name, fit_chunk(self._inner._max_bytes)), progress, timeout, peer)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """``dealer.add(2, 3)`` is ``dealer.request("add", 2, 3)``."""
        require_method_name(self, name)
        return partial(self.request, name)

    def close(self) -> None:
        """Gives up what is under way, with ``Cancelled``, and makes no further requests."""
        self._driver.require_process()
        loop = self._inner.thread
        if loop is None:
            self._driver.require_running()
        else:
            loop.call(self._inner.end)


class InterceptedDealer(Dealer):
    """A dealer whose requests go through ``interceptors``, in the thread that makes them.

    Each is a plain function ``(outgoing, proceed)``: it calls ``proceed()``, which goes on and gives the result, and
    returns what its caller gets. For streams and surveys that is the iterator.
    """

    def __init__(self, inner: SharedDealer, driver: Driver, interceptors: tuple[Callable[..., Any], ...]) -> None:
        super().__init__(inner, driver)
        self._interceptors = interceptors

    def request(self, method: str, /, *args: Any, **given: Any) -> Any:
        """As ``Dealer.request``, through the interceptors."""
        return self._go(make_outgoing("request", self.service, method, args, given), super().request, 0)

    def stream(self, method: str, /, *args: Any, **given: Any) -> Incoming[Any]:
        """As ``Dealer.stream``; the interceptors run when the first item is asked for."""
        self._inner.require_thread()
        outgoing = make_outgoing("stream", self.service, method, args, given)
        return InterceptedIncoming(partial(self._go, outgoing, super().stream, 0), self.service, method)

    def survey(self, method: str, /, *args: Any, **given: Any) -> Incoming[Answer]:
        """As ``Dealer.survey``; the interceptors run once for all, when the first answer is asked for."""
        self._inner.require_thread()
        outgoing = make_outgoing("survey", self.service, method, args, given)
        return InterceptedIncoming(partial(self._go, outgoing, super().survey, 0), self.service, method)

    def _go(self, outgoing: Outgoing, perform: Callable[..., Any], position: int) -> Any:
        """Goes on from the interceptor at this position; behind the last one is the request itself."""
        if position < len(self._interceptors):
            return self._interceptors[position](outgoing, partial(self._go, outgoing, perform, position + 1))
        return perform(
            outgoing.method, *outgoing.args, headers=outgoing.headers or None, **outgoing.watch(), **outgoing.kwargs
        )


class InterceptedIncoming(Incoming[T]):
    """What a stream or survey brings, as its interceptors hand it on. They run once, in the first thread that asks."""

    def __init__(self, begin: Callable[[], Any], service: str, method: str) -> None:
        self._begin = begin
        self._service = service
        self._method = method
        self._source: Iterator[T] | None = None
        self._failure: Exception | None = None
        self._closed = False
        self._lock = threading.Lock()  # of what follows, and never held for long
        self._begun = False
        self._settled = threading.Event()  # other threads need not wait for the interceptors any more

    def __next__(self) -> T:
        source = self._source
        if source is None or self._closed:
            source = self._find()
        return next(source)

    def _find(self) -> Iterator[T]:
        with self._lock:
            first, self._begun = not self._begun, True
        if first and not self._closed:
            self._run()
        else:
            self._settled.wait()
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._closed or self._source is None:
            raise make_given_up(self._service, self._method)
        return self._source

    def _run(self) -> None:
        """Runs the interceptors; nobody can stop them, but what they make of it may be given up already."""
        try:
            source = iter(self._begin())
        except StopIteration as error:
            self._failure = make_failure(self._service, self._method, error)
            raise self._failure from error
        except Exception as error:
            self._failure = error
            raise
        except BaseException:  # such as Ctrl-C
            self._closed = True
            raise
        else:
            with self._lock:
                self._source = source
                closed = self._closed
            if closed:
                self._give_up(source)
        finally:
            self._settled.set()

    def close(self) -> None:
        """Gives up what is under way, through what the interceptors made of it."""
        with self._lock:
            self._closed = True
            source = self._source
        self._settled.set()
        self._give_up(source)

    @staticmethod
    def _give_up(source: Iterator[T] | None) -> None:
        close = getattr(source, "close", None)
        if close is not None:
            close()


def require_plain_interceptors(where: str, given: Iterable[Any], what: str) -> tuple[Callable[..., Any], ...]:
    """Checks that each of ``interceptors=`` is a plain function."""
    require_items(where, given, "write interceptors=[function]")
    interceptors = tuple(given)
    for each in interceptors:
        if not callable(each) or is_async(each):
            raise ConfigurationError(
                f"{where} takes a plain function ({what}, proceed) here, not {each!r}; meshmsg.Node runs coroutines"
            )
    return interceptors
