"""What a method may know about the request that it serves: ``Context``, and ``current`` for what it calls in turn."""

from __future__ import annotations

import asyncio
import threading
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from copy import deepcopy
from typing import Any, NamedTuple

from meshmsg.driver import Driver
from meshmsg.engine.served import Served, Serving
from meshmsg.errors import BadRequest, Cancelled, WrongThread
from meshmsg.wire.codec import Undecodable


class Place(NamedTuple):
    """Where requests are served: what all contexts of a router share."""

    driver: Driver
    serving: Serving
    loop: asyncio.AbstractEventLoop


class Caller(NamedTuple):
    """Who made a request: the node's name, and the id that tells it apart from others of this name."""

    name: str
    id: str


class Context:
    """One request, as the method that serves it sees it. A parameter annotated with ``Context`` gets it (G8).

    >>> from meshmsg import Node
    >>> router = Node("server").router("greeter")
    >>> @router.method
    ... async def greet(name: str, context: Context) -> str:
    ...     return f"Hello {name}, says {context.service} to {context.caller.name}"
    """

    __slots__ = ("_headers", "_inner", "_items", "_place", "_served", "_told", "deadline")

    def __init__(self, served: Served, place: Place, deadline: float | None) -> None:
        self._served = served
        self._place = place
        self._inner: set[Callable[[], None]] | None = None
        self._items: Items | None = None
        self._headers: dict[str, Any] | None = None
        self._told = False  # whether a plain function got to know that it is wanted no more
        self.deadline = deadline
        """When it has to be answered, in seconds of the loop's clock (``loop.time()``); None for no limit."""

    def __repr__(self) -> str:
        return f"<Context of {self.service}.{self.method} for {self.caller.name!r}>"

    @property
    def service(self) -> str:
        """Name of the service that was asked."""
        return self._served.service

    @property
    def method(self) -> str:
        """Name of the method that was asked for."""
        return self._served.method

    @property
    def caller(self) -> Caller:
        """Name and id of the node that asked."""
        return Caller(self._served.peer_name, self._served.peer.partition(".")[0])

    @property
    def headers(self) -> Mapping[str, Any]:
        """What the caller gave beside the arguments; this call's own, whatever came with it."""
        if self._headers is None:
            self._headers = deepcopy(self._served.headers) if self._served.headers else {}
        return self._headers

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, 0 when it has passed; None for no limit.

        What goes on after the answer has no limit either: nobody waits for it.
        """
        if self.deadline is None or self.answered:
            return None
        return max(0.0, self.deadline - self._place.driver.now())

    @property
    def answered(self) -> bool:
        """Whether the caller has its result or error."""
        return self._served.state == "done" and self._served.cancelled is None

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the result any more. A coroutine is cancelled then; a plain function has to look."""
        return self._served.cancelled is not None

    def _hold(self, stop: Callable[[], None]) -> None:
        """In the loop: has this called when a plain function that serves this is wanted no more, until ``_release``.

        As with a coroutine that is cancelled, that is once: what it asks for afterwards, to clean up, goes on.
        """
        if self.cancelled and not self._told:
            self._told = True
            stop()
            return
        if self._inner is None:
            self._inner = set()
        self._inner.add(stop)

    def _release(self, stop: Callable[[], None]) -> None:
        """That has ended by itself."""
        if self._inner is not None:
            self._inner.discard(stop)

    def _stop_inner(self) -> None:
        """Stops what a plain function waits for, as it cannot be stopped itself."""
        for stop in list(self._inner or ()):
            self._told = True
            stop()

    def items(self) -> Items:
        """What the caller streams to this method, one by one as it comes; a slow reader stops the caller.

        ``async for`` and ``anext`` in a coroutine, ``for`` and ``next`` in a plain function. It is the same iterator
        each time, so who stops and comes back goes on with the next item. Raises ``BadRequest`` for a caller that sends
        no items, ``Cancelled`` when it gives up.
        """
        if self._served.up is None:
            raise BadRequest(
                f"{self.service}.{self.method} takes a stream: request(..., items=...) or stream(..., items=...)"
            )
        if self._items is None:
            self._items = Items(self._served, self._place)
        return self._items


class Items:
    """The caller's items: one iterator for the whole call, so that each item is given out once, and none is lost."""

    def __init__(self, served: Served, place: Place) -> None:
        assert served.up is not None, "checked by who made this"
        self._served = served
        self._place = place
        self._up = served.up
        self._fetched: deque[Any] = deque()  # came to the thread of a plain function together with another one
        self._lock = threading.Lock()  # a method may have threads of its own, and only one can wait for items

    def __repr__(self) -> str:
        return f"<Items of {self._label}>"

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> Any:
        if self._fetched:
            return self._readable(self._fetched.popleft())
        up = self._up
        if up.lent:
            self._settle()
        while not up.waiting:
            self._require_whole()
            if up.ended:
                raise StopAsyncIteration
            await self._wait()
        item = up.take()
        self._grant()
        return self._readable(item)

    def __iter__(self) -> Items:
        """For plain functions, which run in a thread of their own."""
        return self

    def __next__(self) -> Any:
        with self._lock:
            if not self._fetched:
                self._fetch()
            if not self._fetched:
                raise StopIteration
            item = self._fetched.popleft()
        return self._readable(item)

    def _fetch(self) -> None:
        """Waits in a thread for the items that come next, all at once; none at the end."""
        driver, _, loop = self._place
        if get_ident() == driver.owner:
            raise WrongThread(f"{self._label}: write `async for item in context.items()` in a coroutine")
        self._fetched.extend(asyncio.run_coroutine_threadsafe(self._take_all(), loop).result())

    async def _take_all(self) -> list[Any]:
        """All that wait, at least one; none at the end."""
        up = self._up
        self._settle()
        while not up.waiting:
            self._require_whole()
            if up.ended:
                return []
            await self._wait()
        items = up.take_all()
        up.lent = len(items) - 1
        self._grant()
        return items

    async def _wait(self) -> None:
        """Until something has changed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._up.wake = lambda: None if future.done() else future.set_result(None)
        try:
            await future
        finally:
            self._up.wake = None

    def _settle(self) -> None:
        """The method has got all that a thread had fetched for it."""
        self._up.lent = 0
        self._grant()

    def _grant(self) -> None:
        """Tells the caller that it may send more, once that is worth a word."""
        if self._place.serving.grant(self._served):
            self._place.driver.wake()

    def _require_whole(self) -> None:
        """Raises if the stream will not go on."""
        if self._up.fault is not None:
            raise Cancelled(f"{self._label}: the caller's items end: {self._up.fault}")

    def _readable(self, item: Any) -> Any:
        if type(item) is Undecodable:
            raise BadRequest(f"{self._label}: an item of the stream cannot be read: {item.error}")
        return item

    @property
    def _label(self) -> str:
        return f"{self._served.service}.{self._served.method}"


current: ContextVar[Context | None] = ContextVar("meshmsg_context", default=None)
"""The context of the request that is served here and now: requests made meanwhile get no more time than it has left."""
