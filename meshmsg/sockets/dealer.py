"""DEALER: requests to whoever offers a service, each with exactly one outcome (G8)."""

from __future__ import annotations

import asyncio
import reprlib
from _thread import get_ident
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import EllipsisType
from typing import Any

from meshmsg.checks import require_bool, require_items, require_name, require_number
from meshmsg.driver import Driver
from meshmsg.engine.calls import Call, Calls
from meshmsg.engine.providers import Provider
from meshmsg.engine.streams import InStream, OutStream
from meshmsg.errors import BodyTooLarge, ConfigurationError, DeadlineExceeded, EncodeError
from meshmsg.options import DealerOptions
from meshmsg.sockets.call_items import Items
from meshmsg.sockets.context import Context, current
from meshmsg.sockets.conversions import place_error
from meshmsg.sockets.files import FileInfo, fit_chunk
from meshmsg.sockets.item_stream import Answer, Incoming, ItemStream, Survey
from meshmsg.sockets.sending import freeze_headers
from meshmsg.sockets.shown import Shown, of_node
from meshmsg.sockets.transfers import Progress, Target, Upload, fetch, send_file
from meshmsg.sockets.under_way import UnderWay, about
from meshmsg.wire.codec import explain_encode_error, make_packer, renew_packer
from meshmsg.wire.frames import MAX_DETAILS_BYTES, measure_details
from meshmsg.wire.large import LARGE_BYTES

# Names of methods that are kept with what is known of them.
MAX_KNOWN_METHODS = 1000


def refuse(kind: str, kwargs: Mapping[str, Any], *names: str) -> None:
    """What ``stream`` and ``survey`` do not take from ``request`` is not meant for the method either."""
    for name in names:
        if name in kwargs:
            raise ConfigurationError(
                f"{kind}() has no {name}=, request() has it; a method's own argument of this name goes by position"
            )


def require_headers(headers: object, verb: str = "request") -> None:
    """Checks the names of headers; their values are checked when they are encoded."""
    if not isinstance(headers, Mapping) or not all(isinstance(name, str) for name in headers):
        raise ConfigurationError(f"{verb}(headers=) takes a dict with str keys, got {reprlib.repr(headers)}")


def require_method_name(dealer: object, name: str) -> None:
    """What a dealer does not have itself is a method of its service, unless it begins with an underscore."""
    service = dealer.__dict__.get("service")  # a copy that is being made has nothing yet
    if name.startswith("_") or service is None:
        raise AttributeError(f"dealer({service!r}) has no attribute {name!r}; request({name!r}) calls a method")


class Dealer(Shown):
    """The client's end of a service. ``node.dealer(service, ...)`` makes it.

    ``await math.add(2, 3)`` is short for ``await math.request("add", 2, 3)``, for methods that have no underscore in
    front and are not called like something of the dealer itself.

    Examples
    --------
    >>> from meshmsg import Node
    >>> async with Node("both") as node:
    ...     router = node.router("math")
    ...     @router.method
    ...     async def add(a: int, b: int) -> int:
    ...         return a + b
    ...     await node.wait_for(router="math", timeout=10)
    ...     math = node.dealer("math", timeout=5)
    ...     print(await math.request("add", 2, 3), await math.add(2, b=4))
    5 6
    """

    def __init__(
        self, driver: Driver, calls: Calls, service: str, options: DealerOptions, max_message_bytes: int
    ) -> None:
        self.service = service
        self.options = options
        self._driver = driver
        self._pack = make_packer()
        self._max_bytes = max_message_bytes
        self._small = min(max_message_bytes, LARGE_BYTES)  # bodies up to this are not looked at
        self._under_way = UnderWay(driver, calls, service, options.max_pending)
        self._repeatable: dict[str, bool] = {}  # by method
        self._loop: asyncio.AbstractEventLoop | None = None

    def _title(self) -> str:
        return of_node(self.service, self._driver)

    def _state(self) -> str:
        return f"{'closed, ' if self._under_way.closed else ''}{len(self._under_way)} under way"

    async def request(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | EllipsisType | None = ...,
        headers: Mapping[str, Any] | None = None,
        peer: str | None = None,
        key: str | None = None,
        idempotent: bool | None = None,
        items: Items | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls a method of the service, and returns its result (G8).

        Whoever is cancelled while it waits cancels the method, too.

        Parameters
        ----------
        method, args, kwargs:
            What is called, and with which arguments. They are encoded before this returns control, so later changes
            to them do not matter.
        timeout:
            Seconds until ``DeadlineExceeded``; the dealer's if not given, None for no limit. A request made while
            another one is served ends with that one's deadline at the latest.
        headers:
            Values beside the arguments, with str keys, at most 1 MiB together; ``Context.headers`` has them.
        peer:
            Name or id of the only node to ask; if several have the name, any of them.
        key:
            Requests of one key go to the same provider as long as the providers stay the same, and are not hedged.
        idempotent:
            Whether this request may run twice; the dealer's ``idempotent`` if not given.
        items:
            An iterable or async iterable, for a method that takes a stream.

        Raises ``EncodeError`` with the argument that cannot be sent, ``BodyTooLarge``, ``NodeClosed``; and the
        ``RequestError`` that is the outcome: ``NoResponders``, ``DeadlineExceeded``, ``PeerLost``, ``Cancelled``,
        ``Overloaded``, ``Unavailable``, ``BadRequest``, ``NoSuchMethod``, ``RemoteError``.
        """
        loop = self._require_here()
        future = loop.create_future()
        call = self._make_call(method, args, kwargs, timeout, headers, peer, key, idempotent, None, items, future)
        under_way = self._under_way
        if under_way.full:
            await under_way.wait_for_room(call)
        under_way.start(call)
        if items is not None:
            under_way.send_items(call, items, partial(self._encode_item, method))
        try:
            return await future
        except asyncio.CancelledError:
            under_way.give_up(call)
            raise
        finally:
            under_way.release(call)
            del future, call  # an error holds this frame, and they hold the error

    def stream(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        headers: Mapping[str, Any] | None = None,
        peer: str | None = None,
        key: str | None = None,
        items: Items | None = None,
        **kwargs: Any,
    ) -> Incoming[Any]:
        """The items that a method yields, as an async iterator; with ``items=`` in both directions.

        Takes the arguments of ``request``; ``timeout`` is for all of the stream, and the default is no limit. The call
        is made when the first item is asked for. Streams are never tried again: see ``ItemStream`` for how one ends.
        """
        self._require_here()
        refuse("stream", kwargs, "idempotent")
        down = InStream()
        call = self._make_call(method, args, kwargs, timeout, headers, peer, key, False, down, items, None)
        return ItemStream(self._under_way, call, items, partial(self._encode_item, method))

    def survey(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = 1.0,
        headers: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Incoming[Answer]:
        """Asks everybody who serves now, and gives an ``Answer`` of each as an async iterator.

        ``ping``, ``info`` and ``stats`` are also answered by those who do not serve just now.
        Who does not answer within ``timeout`` seconds gets ``DeadlineExceeded`` as its error. Raises ``NoResponders``
        when nobody is there to ask.
        """
        self._require_here()
        refuse("survey", kwargs, "peer", "key", "idempotent", "items")
        first = self._make_call(method, args, kwargs, timeout, headers, None, None, False, None, None, None)

        def make_call(provider: Provider) -> Call:
            call = Call(
                self.service, method, first.body, first.timeout, self.options, None,
                headers=first.headers, peer=provider.key,
            )  # fmt: skip
            call.deadline = first.deadline
            return call

        return Survey(self._under_way, self.service, method, make_call)

    async def fetch(
        self,
        name: str,
        target: Target,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
        peer: str | None = None,
    ) -> FileInfo:
        """Gets a file of a service that offers some (``Router.files``), and puts it at ``target`` once it is whole.

        Until then it grows beside it, as ``.name.meshmsg-part``. If the provider dies the transfer goes on at another
        one, or at the same when it is back; if this fails, the next ``fetch`` goes on with what has come. The SHA-256
        of the whole is compared in the end.

        Parameters
        ----------
        progress:
            Is called with the bytes that are there, and all, after each chunk.
        timeout:
            Seconds for all of it; None for no limit, as long as something comes every 30 s.
        peer:
            Name or id of the only node to ask.

        Raises ``NoResponders`` when nobody offers the service; ``RemoteError`` with the code ``"not_found"``,
        ``"changed"`` (while it was read, again and again), ``"corrupt"`` (what came is not what was sent; nothing of it
        is kept), ``"busy"`` (another ``fetch`` has this target) or ``"replaced"`` (somebody put another file where this
        one grew); what ``request`` raises; ``OSError`` for the target.
        """
        self._require_here()
        return await fetch(self, name, target, progress, timeout, peer)

    async def send_file(
        self,
        source: Target,
        name: str | None = None,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
        peer: str | None = None,
    ) -> FileInfo:
        """Puts a file into the directory of a service, under its own name or another; a file of that name is replaced.

        As ``fetch``, with the sides exchanged. Of several providers one gets it, for each name always the same as long
        as it is there; ``peer=`` says which. ``NoSuchMethod`` says that nobody's directory is writable.
        """
        self._require_here()
        return await send_file(self, Upload(source, name, fit_chunk(self._max_bytes)), progress, timeout, peer)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """``dealer.add(2, 3)`` is ``dealer.request("add", 2, 3)``."""
        require_method_name(self, name)
        return partial(self.request, name)

    async def close(self) -> None:
        """Gives up what is under way, with ``Cancelled``, and makes no further requests.

        What waits for room was never sent, and gets ``NodeClosed``, as requests after the end do. Generators of
        ``items=`` get up to a second to clean up.
        """
        closed = self._driver.closed
        if not closed:
            self._driver.require_usable()
        self._under_way.close()
        if not closed:  # else its node has waited for them
            await self._under_way.wait_for_endings()

    # -- inside ----------------------------------------------------------------------------------------------

    def _require_here(self) -> asyncio.AbstractEventLoop:
        """The loop, if requests can be made in it, and from here."""
        if get_ident() != self._driver.owner or self._under_way.closed:
            self._under_way.require_open()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._under_way.require_open()
            self._loop = loop
        return loop

    def _make_call(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | EllipsisType | None,
        headers: Mapping[str, Any] | None,
        peer: str | None,
        key: str | None,
        idempotent: bool | None,
        down: InStream | None,
        items: Items | None,
        sink: Any,
    ) -> Call:
        """Checks and encodes everything that a request is told."""
        repeatable = self._repeatable.get(method) if type(method) is str else None
        if repeatable is None:
            repeatable = self._learn(method)
        try:
            body = self._pack((args, kwargs))
        except Exception as error:
            raise self._explain(method, args, kwargs, error) from None
        if len(body) > self._small:
            self._require_size(method, "arguments", body)
        # Nobody but a request has somewhere to put its result already.
        verb = "stream" if down is not None else "survey" if sink is None else "request"
        if timeout is ...:
            timeout = self.options.timeout
        elif timeout is not None:
            require_number(f"{verb}(timeout=)", timeout, above=0)
        up = None
        if headers is not None or peer is not None or key is not None or idempotent is not None or items is not None:
            headers = self._check_details(verb, method, headers, peer, key, idempotent, items)
            repeatable = repeatable if idempotent is None else idempotent
            up = OutStream() if items is not None else None
        call = Call(
            self.service, method, body, timeout, self.options, sink,
            repeatable=repeatable, headers=headers, key=key, peer=peer, down=down, up=up,
        )  # fmt: skip
        context = current.get()
        if context is not None:
            self._inherit(call, context)
        return call

    def _learn(self, method: object) -> bool:
        """Checks a method's name, and remembers what is known of it."""
        name = require_name(f"dealer({self.service!r}).request(method)", method)
        if len(self._repeatable) >= MAX_KNOWN_METHODS:
            self._repeatable.clear()
        repeatable = self._repeatable[name] = self.options.may_repeat(name)
        return repeatable

    def _check_details(
        self,
        verb: str,
        method: str,
        headers: Mapping[str, Any] | None,
        peer: str | None,
        key: str | None,
        idempotent: bool | None,
        items: Items | None,
    ) -> dict[str, Any] | None:
        """Checks what few requests say; returns the headers as they are now."""
        for name, value, hint in (
            ("peer", peer, "the name or id of a node, as peer.id"),
            ("key", key, "key=str(...)"),
        ):
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigurationError(f"{verb}({name}=) takes a str, not {type(value).__name__} {value!r}: {hint}")
        if idempotent is not None:
            require_bool(f"{verb}(idempotent=)", idempotent)
        if items is not None and not isinstance(items, AsyncIterable):
            require_items(f"{verb}(items=)", items, "or an async iterable; one value is an argument")
            if not isinstance(items, Iterable):
                raise ConfigurationError(f"{verb}(items=) takes what can be iterated, not {type(items).__name__}")
        if headers is None:
            return None
        require_headers(headers, verb)
        frozen = freeze_headers(self._pack, headers)
        try:
            measure_details(None, frozen)  # they travel in a frame's header: one that cannot be read ends the link
        except BodyTooLarge:
            text = f"headers of more than {MAX_DETAILS_BYTES} bytes: make an argument of what is large"
            raise BodyTooLarge(f"{self.service}.{method}: {text}") from None
        return frozen or None

    @staticmethod
    def _inherit(call: Call, context: Context) -> None:
        """A request that is made while another is served gets no more time than that one has left."""
        remaining = context.remaining
        if remaining is None or (call.timeout is not None and call.timeout <= remaining):
            return
        if remaining <= 0:
            asking = f"{context.service}.{context.method}"
            raise about(
                call, DeadlineExceeded(f"{call.service}.{call.method}: {asking} asks for it, and has no time left")
            )
        # The deadline itself, and not what is left until it: requests of one turn with the same one leave together.
        call.deadline = context.deadline
        call.timeout = remaining

    def _encode_item(self, method: str, item: Any, place: int) -> bytes:
        try:
            body = self._pack(item)
        except Exception as error:
            explained = explain_encode_error(item, error)
            raise self._place(method, explained, f"items[{place}]") from None
        if len(body) > self._small:
            self._require_size(method, f"items[{place}]", body)
        return body

    def _explain(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> EncodeError:
        """Finds the argument that cannot be sent; positional ones count from 1, as people do."""
        named = [(f"argument {place}", value) for place, value in enumerate(args, 1)]
        for name, value in [*named, *((f"argument {name!r}", value) for name, value in kwargs.items())]:
            try:
                self._pack(value)
            except Exception as reason:
                return self._place(method, explain_encode_error(value, reason), name)
        return self._place(method, explain_encode_error((args, kwargs), error), "arguments")

    def _place(self, method: str, error: EncodeError, name: str) -> EncodeError:
        return place_error(f"{self.service}.{method}", error, name)

    def _require_size(self, method: str, what: str, body: bytes) -> None:
        self._pack = renew_packer(self._pack, len(body))
        if len(body) > self._max_bytes:
            raise BodyTooLarge(
                f"{self.service}.{method}: {what} of {len(body)} bytes; the limit is {self._max_bytes}, "
                "Node(max_message_bytes=): send parts as a stream with items=, or raise it on both sides"
            )
