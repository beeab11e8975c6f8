"""Functions around every request of a dealer, for signing, logging, tracing. Without them a dealer is a plain one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from typing import Any, Generic, Literal, TypeVar

from meshmsg.errors import Cancelled
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
        return InterceptedIncoming(partial(self._go, outgoing, super().stream, 0), f"{self.service}.{method}")

    def survey(self, method: str, /, *args: Any, **given: Any) -> Incoming[Answer]:
        """As ``Dealer.survey``; the interceptors run once for all, when the first answer is asked for."""
        self._require_here()
        outgoing = make_outgoing("survey", self.service, method, args, given)
        return InterceptedIncoming(partial(self._go, outgoing, super().survey, 0), f"{self.service}.{method}")

    async def _go(self, outgoing: Outgoing, perform: Callable[..., Any], position: int) -> Any:
        """Goes on from the interceptor at this position; behind the last one is the request itself."""
        if position < len(self._interceptors):
            return await self._interceptors[position](outgoing, partial(self._go, outgoing, perform, position + 1))
        result = perform(
            outgoing.method, *outgoing.args, headers=outgoing.headers or None, **outgoing.options, **outgoing.kwargs
        )
        return await result if isawaitable(result) else result


class InterceptedIncoming(Incoming[T], Generic[T]):
    """What a stream or survey brings, as its interceptors hand it on."""

    def __init__(self, begin: Proceed, label: str) -> None:
        self._begin = begin
        self._label = label
        self._source: AsyncIterator[T] | None = None
        self._closed = False

    async def __anext__(self) -> T:
        if self._closed:
            raise Cancelled(f"{self._label}: given up")
        if self._source is None:
            self._source = aiter(await self._begin())
        return await anext(self._source)

    async def aclose(self) -> None:
        """Gives up what is under way, through what the interceptors made of it."""
        self._closed = True
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()
