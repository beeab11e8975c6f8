"""What a dealer iterates: the items of one method (``stream``), or the answers of all providers (``survey``)."""

from __future__ import annotations

import asyncio
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

from meshmsg.engine.calls import Call
from meshmsg.engine.providers import Provider
from meshmsg.errors import Cancelled, MeshError, NoResponders, RequestError
from meshmsg.sockets.call_items import Encode, Items
from meshmsg.sockets.here import require_here
from meshmsg.sockets.under_way import UnderWay, about
from meshmsg.wire.codec import Undecodable

T = TypeVar("T")


class Incoming(Generic[T]):
    """An async iterator over what a call brings. The call is made when it is first asked, and given up with it.

    It is given up by ``aclose``, at the end of its ``async with``, when nothing refers to it any more, and when who
    waits for it is cancelled.
    """

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __anext__(self) -> T:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Gives up what is under way: the servers are told to stop, and what they sent is dropped."""
        raise NotImplementedError


class Called(Incoming[T]):
    """What comes from calls of this node itself."""

    def __init__(self, under_way: UnderWay, service: str, method: str) -> None:
        self._under_way = under_way
        self._service = service
        self._method = method
        self._begun = False
        self._failure: Exception | None = None  # of the beginning
        self._closed = False
        self._calls: list[Call] = []
        self._stir = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def aclose(self) -> None:
        require_here(self._under_way.driver)
        self._give_up()

    async def __anext__(self) -> T:
        if not self._begun:
            self._begun = True
            try:
                self._under_way.require_open()
                self._loop = asyncio.get_running_loop()
                await self._keep(self._begin())
            except Exception as error:
                self._failure = error
                self._stir.set()  # others may read this, too
                raise
        elif self._failure is not None:
            raise self._failure.with_traceback(None)
        elif get_ident() != self._under_way.driver.owner and not self._ended:
            self._under_way.driver.require_usable()
        while not self._waiting:
            if self._closed:
                raise self._about(Cancelled(f"{self._label}: given up"))
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            if self._ended:
                self._raise_end()
            self._stir.clear()
            await self._keep(self._stir.wait())
        return self._take()

    def __repr__(self) -> str:
        state = "given up" if self._closed else f"{self._waiting} waiting" if self._begun else "not begun"
        return f"<{type(self).__name__} of {self._label}: {state}>"

    @property
    def _label(self) -> str:
        return f"{self._service}.{self._method}"

    def _about(self, error: RequestError) -> RequestError:
        error.service, error.method = self._service, self._method
        return error

    async def _keep(self, waiting: Any) -> None:
        """Waits; who is cancelled meanwhile gives everything up."""
        try:
            await waiting
        except asyncio.CancelledError:
            self._give_up()
            raise

    def _give_up(self) -> None:
        self._begun = self._closed = True
        for call in self._calls:
            self._under_way.give_up(call)
        self._drop()
        self._stir.set()

    def __del__(self) -> None:
        if self._loop is None or self._closed or all(call.done for call in self._calls):
            return
        under_way, calls, loop = self._under_way, self._calls, self._loop

        def give_up() -> None:
            for call in calls:
                under_way.give_up(call)

        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(give_up)  # whichever thread collects garbage

    # -- what is iterated ------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        raise NotImplementedError

    @property
    def _waiting(self) -> int:
        """How much can be taken now."""
        raise NotImplementedError

    @property
    def _ended(self) -> bool:
        """Whether no more will come."""
        raise NotImplementedError

    def _take(self) -> T:
        raise NotImplementedError

    def _drop(self) -> None:
        """Nobody takes what waits."""
        raise NotImplementedError

    def _raise_end(self) -> None:
        raise StopAsyncIteration


class ItemStream(Called[Any]):
    """The items that a method yields, in order. ``dealer.stream(...)`` makes it; iterate it once.

    A slow reader stops the method: not more than 4 MiB and one item are under way (G5). It ends as the method ends:
    with its error, or with the one that explains why nothing comes any more.
    """

    def __init__(self, under_way: UnderWay, call: Call, items: Items | None, encode: Encode) -> None:
        super().__init__(under_way, call.service, call.method)
        assert call.down is not None, "the caller wants items"
        self._call = call
        self._calls.append(call)
        self._down = call.down
        self._items = items
        self._encode = encode
        call.sink = _StreamEnd(under_way, call)
        call.down.wake = self._stir.set  # not a method of this: a stream that nobody reads must be seen as garbage

    async def _begin(self) -> None:
        under_way, call = self._under_way, self._call
        if under_way.full:
            await under_way.wait_for_room(call)
            if self._closed:  # given up meanwhile: the room is for others
                under_way.release(call)
                return
        under_way.start(call)
        if self._items is not None:
            items, self._items = self._items, None
            under_way.send_items(call, items, self._encode)

    @property
    def _waiting(self) -> int:
        return 0 if self._closed else self._down.waiting

    @property
    def _ended(self) -> bool:
        return self._down.ended

    def _take(self) -> Any:
        down = self._down
        item = down.take()
        if not down.ended and self._under_way.calls.grant(self._call):
            self._under_way.driver.wake()
        if type(item) is Undecodable:
            raise self._about(RequestError(f"{self._label}: an item cannot be read: {item.error}"))
        return item

    def _grant(self) -> None:
        """Tells the method what was taken, if that is worth a word."""
        if self._under_way.calls.grant(self._call):
            self._under_way.driver.wake()

    def _drop(self) -> None:
        self._down.take_all()

    def _raise_end(self) -> None:
        fault = self._down.fault
        if fault is not None:
            raise fault.with_traceback(None)
        raise StopAsyncIteration


class _StreamEnd:
    """Where the outcome of a stream goes; what it was is in ``call.down`` by then."""

    def __init__(self, under_way: UnderWay, call: Call) -> None:
        self._under_way = under_way
        self._call = call

    def done(self) -> bool:
        return False

    def set_result(self, value: Any, /) -> None:
        self._under_way.release(self._call)

    def set_exception(self, error: BaseException, /) -> None:
        assert self._call.down is not None, "the caller wants items"
        self._call.down.end(error)
        self._under_way.release(self._call)


class Answer(NamedTuple):
    """What one provider made of a survey: its ``value``, or the ``error`` that a request to it would have raised."""

    peer: str
    value: Any
    error: MeshError | None
    peer_id: str


class Survey(Called[Answer]):
    """The answers of all who serve, as they come. ``dealer.survey(...)`` makes it; iterate it once.

    Each provider gives one ``Answer``; one that is not heard of in time gives ``DeadlineExceeded``. One that is suspect
    is asked when it is back.
    """

    def __init__(self, under_way: UnderWay, service: str, method: str, make_call: Callable[[Provider], Call]) -> None:
        super().__init__(under_way, service, method)
        self._make_call = make_call
        self._answers: deque[Answer] = deque()

    async def _begin(self) -> None:
        under_way = self._under_way
        for provider in under_way.calls.whom_to_survey(self._service, self._method):
            call = self._make_call(provider)
            call.sink = _SurveyEnd(under_way, call, provider, self._answers, self._stir)
            self._calls.append(call)
            under_way.start(call)
        if not self._calls:
            text = (
                f"nobody serves {self._service!r} now: start a node with router({self._service!r}), "
                f"or wait for one with wait_for(router={self._service!r})"
            )
            raise self._about(NoResponders(text))

    @property
    def _waiting(self) -> int:
        return len(self._answers)

    @property
    def _ended(self) -> bool:
        calls = self._calls
        while calls and calls[-1].done:
            calls.pop()
        return not calls

    def _take(self) -> Answer:
        return self._answers.popleft()

    def _drop(self) -> None:
        self._answers.clear()


class _SurveyEnd:
    """Where the outcome of one call of a survey goes."""

    def __init__(
        self, under_way: UnderWay, call: Call, provider: Provider, answers: deque[Answer], stir: asyncio.Event
    ) -> None:
        self._under_way = under_way
        self._call = call
        self._provider = provider
        self._answers = answers
        self._stir = stir

    def done(self) -> bool:
        return False

    def set_result(self, value: Any, /) -> None:
        self._add(value, None)

    def set_exception(self, error: MeshError, /) -> None:
        if isinstance(error, NoResponders) and error.peer is None:  # which would speak of its id
            call, name = self._call, self._provider.name
            text = f"{call.service}.{call.method} was not sent: {name!r} was suspect, and does not serve any more"
            error = about(call, NoResponders(text))
        self._add(None, error)

    def _add(self, value: Any, error: MeshError | None) -> None:
        provider = self._provider
        self._answers.append(Answer(provider.name, value, error, provider.key.partition(".")[0]))
        self._under_way.release(self._call)
        self._stir.set()
