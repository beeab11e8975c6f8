"""Functions around every request of a dealer, for signing, logging, tracing. Without them a dealer is a plain one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from inspect import isawaitable
from typing import Any, Generic, Literal, TypeVar

from meshmsg.errors import Cancelled, ConfigurationError
from meshmsg.message import describe_error
from meshmsg.sockets.dealer import Dealer, require_headers
from meshmsg.sockets.item_stream import Answer, Incoming
from meshmsg.sockets.methods import require_interceptors

T = TypeVar("T")
Kind = Literal["request", "stream", "survey"]
OPTIONS = ("timeout", "peer", "key", "idempotent", "items")  # with ``headers``, all that is no argument of the method


@dataclass(slots=True)
class Outgoing:
    """A request before it is made, as the dealer's interceptors see it; what they change is what is sent.

    ``options`` holds what was given of ``timeout``, ``peer``, ``key``, ``idempotent`` and ``items``.
    """

    kind: Kind
    service: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    headers: dict[str, Any]
    options: dict[str, Any]
    _watched: Once | AsyncOnce | None = field(default=None, init=False, repr=False, compare=False)

    def watch(self) -> dict[str, Any]:
        """The options for a request that is made now. Raises ``ConfigurationError`` if one before used up the items.

        A list goes out as often as it is asked for; what can be iterated once would be an empty stream the next time.
        """
        items = self.options.get("items")
        if not isinstance(items, (AsyncIterator, Iterator)):
            return self.options
        if self._watched is None or self._watched.items is not items:
            kind = AsyncOnce if isinstance(items, AsyncIterator) else Once
            self._watched = kind(items, f"{self.service}.{self.method}")
        self._watched.require_unused()
        return {**self.options, "items": self._watched}


class Once:
    """Items that can be iterated once, and whether a request has begun to take them."""

    def __init__(self, items: Any, label: str) -> None:
        self.items = items
        self._label = label
        self._used = False

    def require_unused(self) -> None:
        """Raises ``ConfigurationError`` if they would not be all of them."""
        if self._used:
            raise ConfigurationError(
                f"{self._label}: items= were used up by the first proceed(): give a list, "
                "or set outgoing.options['items'] before the next one"
            )

    def use(self) -> None:
        """They are taken from here on."""
        self.require_unused()
        self._used = True

    def __iter__(self) -> Iterator[Any]:
        self.use()
        for item in self.items:  # noqa: UP028, as `yield from` would close a generator that is left early
            yield item


class AsyncOnce(Once):
    """The same for an async iterator, which is closed by the request that used it."""

    __iter__ = None  # type: ignore[assignment]

    async def __aiter__(self) -> AsyncIterator[Any]:
        self.use()
        try:
            async for item in self.items:
                yield item
        finally:
            close = getattr(self.items, "aclose", None)
            if close is not None:
                await close()


def make_outgoing(kind: Kind, service: str, method: str, args: tuple[Any, ...], given: dict[str, Any]) -> Outgoing:
    """Takes what was given to ``request`` beside the arguments apart: options, headers, and arguments by name."""
    options = {name: given.pop(name) for name in OPTIONS if name in given}
    headers = given.pop("headers", None) or {}
    require_headers(headers)
    return Outgoing(kind, service, method, args, given, dict(headers), options)


Proceed = Callable[[], Awaitable[Any]]
Interceptor = Callable[[Outgoing, Proceed], Awaitable[Any]]


class InterceptedDealer(Dealer):
    """A dealer whose requests go through ``interceptors``, from the first one to the last.

    Each is a coroutine function ``(outgoing, proceed)``: it awaits ``proceed()``, which goes on and gives the result,
    and returns what its caller gets. For streams and surveys that is the async iterator.

    >>> from meshmsg import Node
    >>> async def sign(outgoing, proceed):
    ...     outgoing.headers["token"] = "secret"
    ...     return await proceed()
    >>> dealer = Node("client").dealer("math", interceptors=[sign])
    """

    def __init__(self, *args: Any, interceptors: Iterable[Interceptor]) -> None:
        super().__init__(*args)
        self._interceptors = require_interceptors(f"dealer({self.service!r}, interceptors=)", interceptors, "outgoing")

    async def request(self, method: str, /, *args: Any, **given: Any) -> Any:
        """As ``Dealer.request``, through the interceptors."""
        outgoing = make_outgoing("request", self.service, method, args, given)
        return await self._go(outgoing, super().request, 0)

    def stream(self, method: str, /, *args: Any, **given: Any) -> Incoming[Any]:
        """As ``Dealer.stream``; the interceptors run when the first item is asked for."""
        self._require_here()
        outgoing = make_outgoing("stream", self.service, method, args, given)
        return InterceptedIncoming(partial(self._go, outgoing, super().stream, 0), self.service, method)

    def survey(self, method: str, /, *args: Any, **given: Any) -> Incoming[Answer]:
        """As ``Dealer.survey``; the interceptors run once for all, when the first answer is asked for."""
        self._require_here()
        outgoing = make_outgoing("survey", self.service, method, args, given)
        return InterceptedIncoming(partial(self._go, outgoing, super().survey, 0), self.service, method)

    async def _go(self, outgoing: Outgoing, perform: Callable[..., Any], position: int) -> Any:
        """Goes on from the interceptor at this position; behind the last one is the request itself."""
        if position < len(self._interceptors):
            return await self._interceptors[position](outgoing, partial(self._go, outgoing, perform, position + 1))
        result = perform(
            outgoing.method, *outgoing.args, headers=outgoing.headers or None, **outgoing.watch(), **outgoing.kwargs
        )
        return await result if isawaitable(result) else result


class InterceptedIncoming(Incoming[T], Generic[T]):
    """What a stream or survey brings, as its interceptors hand it on. They run once, whoever asks first and again."""

    def __init__(self, begin: Proceed, service: str, method: str) -> None:
        self._begin = begin
        self._service = service
        self._method = method
        self._beginning: asyncio.Task[AsyncIterator[T]] | None = None  # of its own, as a close has to end it
        self._closed = False

    async def __anext__(self) -> T:
        if self._closed:
            raise make_given_up(self._service, self._method)
        if self._beginning is None:
            self._beginning = asyncio.ensure_future(self._find())
        beginning = self._beginning
        if not beginning.done():
            try:
                await asyncio.wait({beginning})
            except asyncio.CancelledError:
                await self.aclose()
                raise
            if self._closed:
                raise make_given_up(self._service, self._method)
        return await anext(beginning.result())

    async def _find(self) -> AsyncIterator[T]:
        try:
            return aiter(await self._begin())
        except StopAsyncIteration as error:
            raise make_failure(self._service, self._method, error) from error

    async def aclose(self) -> None:
        """Gives up what is under way, through what the interceptors made of it."""
        self._closed = True
        beginning = self._beginning
        if beginning is None:
            return
        if not beginning.done():
            beginning.cancel()
            await asyncio.wait({beginning})
        if not beginning.cancelled() and beginning.exception() is None:
            close = getattr(beginning.result(), "aclose", None)
            if close is not None:
                await close()


def make_given_up(service: str, method: str) -> Cancelled:
    """The error of a stream or survey that was closed."""
    error = Cancelled(f"{service}.{method}: given up")
    error.service, error.method = service, method
    return error


def make_failure(service: str, method: str, error: Exception) -> RuntimeError:
    """What becomes of an interceptor's ``StopIteration``: raised as it is, it would be a good end of the stream."""
    return RuntimeError(f"{service}.{method}: its interceptors raised {describe_error(error)}")
