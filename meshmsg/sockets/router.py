"""ROUTER: a service that other nodes ask; its methods are plain functions, coroutines and generators (G8)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from meshmsg.checks import require_bool, require_number, require_strings
from meshmsg.driver import Driver
from meshmsg.engine.providers import BUILT_IN
from meshmsg.engine.served import Service, Serving
from meshmsg.errors import ConfigurationError, NameClash, NodeClosed
from meshmsg.options import RouterOptions
from meshmsg.sockets.folder import Folder
from meshmsg.sockets.here import require_here
from meshmsg.sockets.methods import Method, list_public, name_method, require_interceptors
from meshmsg.sockets.serving import CallWorkers, Interceptor
from meshmsg.sockets.shown import Shown, counted, of_node

BUILT_IN_AT_A_TIME = 8
DRAIN_S = 5.0
UNKNOWN = "(no such method)"  # in the place of a method's name, where calls are counted

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
OfferedT = TypeVar("OfferedT")


class CountedWorkers(CallWorkers):
    """Workers that the engine can count."""

    def count_busy(self) -> int:
        """How many serve a call, those included whose call is over while its method goes on."""
        return self._busy


class Router(Shown):
    """A service of this node. ``node.router(service, ...)`` makes it; ``docs/requests.md`` is about it.

    Other nodes hear of it with its first method; what is offered in one turn they hear together. Besides its own
    methods each service has ``ping``, ``info`` and ``stats``, which are answered beside the queue.

    Examples
    --------
    >>> from meshmsg import Node
    >>> node = Node("server")
    >>> router = node.router("math")
    >>> @router.method
    ... async def add(a: int, b: int) -> int:
    ...     return a + b
    >>> router.methods
    ('ping', 'info', 'stats', 'add')
    """

    def __init__(
        self,
        driver: Driver,
        service: Service,
        serving: Serving,
        options: RouterOptions,
        interceptors: Iterable[Interceptor] = (),
        max_message_bytes: int = 64 * 2**20,
        forget: Callable[[Router], object] = lambda router: None,
    ) -> None:
        self.service = service.name
        self.options = options
        self._label = f"router({service.name!r})"
        self._driver = driver
        self._offer = service
        self._max_message_bytes = max_message_bytes
        self._forget = forget  # called once it is closed
        self._methods: dict[str, Method] = {}
        self._endless: set[str] = set()
        apart = service.set_apart(BUILT_IN, replace(options, concurrency=BUILT_IN_AT_A_TIME))
        between = require_interceptors(f"router({service.name!r}, interceptors=)", interceptors, "context")

        def employ(offer: Service) -> CountedWorkers:
            workers = CountedWorkers(driver, offer, serving, offer.options, self._methods, between, max_message_bytes)
            offer.count_busy = workers.count_busy
            return workers

        self._apart = apart
        self._workers = employ(service)
        self._all_workers = (self._workers, employ(apart))
        self._announced = False
        self._closing: asyncio.Future[None] | None = None
        self._started_at = 0.0
        for name, function in zip(BUILT_IN, (self._ping, self._info, self._stats), strict=True):
            self._methods[name] = Method(self.service, name, function)
        driver.on_arrival[self._arrivals] = self._wake_workers
        if driver.usable:
            self._start()

    # -- methods ---------------------------------------------------------------------------------------------

    @overload
    def method(self, function: FunctionT, *, name: str | None = None, endless: bool = False) -> FunctionT: ...
    @overload
    def method(
        self, function: None = None, *, name: str | None = None, endless: bool = False
    ) -> Callable[[FunctionT], FunctionT]: ...
    def method(self, function: Any = None, *, name: str | None = None, endless: bool = False) -> Any:
        """Offers a function under its name, or another one: ``@router.method``, ``@router.method(name="add")``.

        A coroutine function runs in the loop, a plain function in a thread; generators of both kinds stream their
        items. Arguments and results are checked by the annotations. A parameter annotated with ``Context`` gets the
        context of the request, one with ``AsyncIterator`` (``Iterator`` in a plain function) the caller's items.

        ``endless`` says that a call of it does not end by itself, such as a stream of all that happens: ``close`` does
        not wait for it, and its caller gets ``Unavailable`` at once, behind the items that were sent.

        Whatever it raises, its caller gets: a ``RequestError`` that it made itself as it is, anything else as a
        ``RemoteError``. Raises ``NameClash``, ``ConfigurationError``, ``MissingExtra``, ``NodeClosed``.
        """
        require_bool(f"{self._label}.method(endless=)", endless)
        if function is None:
            return lambda function: self.method(function, name=name, endless=endless)
        called = name_method(self._label, function, name)
        self._add({called: function}, (called,) if endless else ())
        return function

    def offer(self, offered: OfferedT, *, endless: Iterable[str] = ()) -> OfferedT:
        """Offers all public methods of an object; of a class, of an object that is made of it without arguments.

        ``endless`` has the names of those that are (see ``method``).

        >>> from meshmsg import Node
        >>> router = Node("server").router("words")
        >>> @router.offer
        ... class Words:
        ...     async def shout(self, text: str) -> str:
        ...         return text.upper()
        >>> router.methods
        ('ping', 'info', 'stats', 'shout')
        """
        require_strings(f"{self._label}.offer(endless=)", endless, 'write endless=["method"]')
        made = make_offered(self._label, offered)
        functions = list_public(made)
        if not functions:
            raise ConfigurationError(f"{self._label}.offer got {offered!r}, which has no public methods")
        self._add(functions, tuple(endless))
        return offered

    def files(self, directory: str | os.PathLike[str], *, writable: bool = False, max_bytes: int | None = None) -> None:
        """Offers the files of a directory: ``dealer.fetch`` gets one, and ``send_file`` puts one there if ``writable``.

        They are the methods ``list``, ``stat``, ``read`` and ``write``. Nothing outside the directory can be named, and
        nothing that is hidden by a leading dot. What is sent lies in ``.name.meshmsg-part`` until it is whole; such a
        file is removed by a later transfer if nobody has gone on with it for an hour.

        With ``max_bytes`` the directory never has more than that: whoever sends a file that is too large for the rest
        gets ``RemoteError`` with the code "full". Everything in it counts: files that were there before, hidden ones,
        those on their way with all of their bytes, and one that is to be replaced until it is.

        >>> import tempfile
        >>> from meshmsg import Node
        >>> router = Node("server").router("models")
        >>> router.files(tempfile.gettempdir())
        >>> router.methods
        ('ping', 'info', 'stats', 'list', 'stat', 'read')
        """
        self._add(Folder(self._label, directory, writable, self._max_message_bytes, max_bytes).methods)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods it has."""
        return tuple(self._methods)

    def _add(self, functions: Mapping[str, Callable[..., Any]], endless: Collection[str] = ()) -> None:
        """Offers functions by name: all of them, or none."""
        require_here(self._driver)
        self._require_open()
        for name in endless:
            if name not in functions:
                raise ConfigurationError(f"{self._label}.offer(endless=) names {name!r}, which is none of the methods")
        methods: list[Method] = []
        for name, function in functions.items():
            if name in BUILT_IN:
                raise NameClash(f"{self._label}: every service has {name!r} already: use another name")
            if name in self._methods:
                raise NameClash(f"{self._label} has a method {name!r} already: use another name, or another service")
            methods.append(Method(self.service, name, function))
        for each in methods:
            self._methods[each.name] = each
        self._endless.update(endless)
        if methods and not self._announced:
            self._announced = True
            self._announce()

    def _require_open(self) -> None:
        """Raises ``NodeClosed`` after the router's end, or its node's."""
        if self._driver.closed:
            self._driver.require_usable()
        if self._closing is not None:
            raise NodeClosed(f"{self._label} was closed: open another one, node.router({self.service!r})")

    def _announce(self) -> None:
        self._driver.engine.set_serving(self.service, self.serving)
        self._driver.wake()

    def _wake_workers(self) -> None:
        for workers in self._all_workers:
            workers.wake()

    # -- built in --------------------------------------------------------------------------------------------

    async def _ping(self) -> dict[str, Any]:
        """Says who serves this."""
        identity = self._driver.engine.identity
        return {"service": self.service, "node": identity.name, "id": identity.node_id}

    async def _info(self) -> dict[str, Any]:
        """Says who serves this, and what methods there are: signature and first words of the documentation."""
        methods = [each.signature.describe() for each in self._methods.values()]
        return {**await self._ping(), "serving": self.serving, "methods": methods}

    async def _stats(self) -> dict[str, Any]:
        """Counts of requests and errors since the start, and what time they took, in all and by method."""
        offer, apart, missing = self._offer, self._apart, self._workers.unknown
        unknown = {UNKNOWN: missing.stats()} if missing.requests else {}
        errors = missing.errors + sum(each.errors for each in self._methods.values())
        return {
            **await self._ping(),
            "up_s": round(self._driver.now() - self._started_at, 3),
            "running": offer.busy,
            "waiting": offer.waiting,
            "requests": offer.requests + apart.requests,
            "errors": errors,
            "overloaded": offer.overloaded + apart.overloaded,
            "cancelled": offer.cancelled + apart.cancelled,
            "expired": offer.expired + apart.expired,
            "last_error": offer.last_error,
            "methods": {**{each.name: each.stats() for each in self._methods.values()}, **unknown},
        }

    # -- life ------------------------------------------------------------------------------------------------

    @property
    def serving(self) -> bool:
        """Whether other nodes shall ask this one; set it to False for a while, and balancing goes elsewhere."""
        return self._offer.serving

    @serving.setter
    def serving(self, serving: bool) -> None:
        if not isinstance(serving, bool):
            raise ConfigurationError(f"{self._label}.serving takes True or False, got {serving!r}")
        require_here(self._driver)
        self._require_open()
        self._offer.serving = serving
        if self._announced:
            self._announce()

    def _start(self) -> None:
        """The node has started; called by it."""
        if self._closing is not None:
            return
        self._started_at = self._driver.now()
        for workers in self._all_workers:
            workers.start()

    async def close(self, drain: float = DRAIN_S) -> None:
        """Takes no more requests, lets those that run end within ``drain`` seconds, and stops the rest (G10).

        Those of ``endless`` methods are stopped at once. Callers of what had not begun, or is stopped, get
        ``Unavailable``; the former may ask another node. A second call waits for the first one, but no longer than its
        own ``drain``. A method that closes its own router does not wait: it would wait for its own end.
        """
        require_number("close(drain=)", drain, at_least=0)
        require_here(self._driver)
        is_first = self._closing is None
        if self._closing is None:
            self._driver.engine.close_router(self.service)
            self._driver.wake()
            self._closing = asyncio.ensure_future(self._end(drain))
        if any(workers.serve_this_task() for workers in self._all_workers):
            return
        if is_first:
            await asyncio.shield(self._closing)
            return
        await asyncio.wait({self._closing}, timeout=drain)
        if not self._closing.done():
            await self._stop_workers(0.0)

    async def _end(self, drain: float) -> None:
        try:
            await self._stop_workers(drain)
        finally:
            if self._driver.on_arrival.get(self._arrivals) == self._wake_workers:  # not another router's of this name
                del self._driver.on_arrival[self._arrivals]
            self._forget(self)
        self._driver.wake()

    async def _stop_workers(self, drain: float) -> None:
        await asyncio.gather(*(workers.stop(drain, self._endless) for workers in self._all_workers))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _title(self) -> str:
        return of_node(self.service, self._driver)

    def _state(self) -> str:
        state = "closed, " if self._closing is not None else "" if self.serving else "not serving, "
        own, offer = len(self._methods) - len(BUILT_IN), self._offer
        return f"{state}{counted(own, 'method')}, {offer.busy} running, {offer.waiting} waiting"

    @property
    def _arrivals(self) -> str:
        return f"router:{self.service}"


def make_offered(label: str, offered: Any) -> Any:
    """The object whose methods are offered: made now, if a class was given."""
    if not isinstance(offered, type):
        return offered
    try:
        return offered()
    except TypeError as error:
        raise ConfigurationError(
            f"{label}.offer cannot make a {offered.__name__} ({error}): offer an object"
        ) from error
