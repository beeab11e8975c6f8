"""Requests on their way from threads to the loop, and their outcomes back: in bursts, without a task a request."""

from __future__ import annotations

import asyncio
import threading
from _thread import get_ident
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Mapping
from contextvars import copy_context
from functools import partial
from itertools import count
from types import EllipsisType
from typing import Any

from meshmsg.blocking.loop import LoopThread
from meshmsg.blocking.packing import ThreadPacker
from meshmsg.engine.calls import Call
from meshmsg.engine.streams import InStream, OutStream
from meshmsg.errors import Cancelled, ConfigurationError, MeshError, NodeClosed, WrongThread
from meshmsg.message import describe_error
from meshmsg.sockets.call_items import Encode
from meshmsg.sockets.call_threads import Feed
from meshmsg.sockets.context import Context, current
from meshmsg.sockets.dealer import Dealer
from meshmsg.sockets.handoff import Bell, acquire
from meshmsg.sockets.item_stream import ItemStream


class Ticket:
    """One request: a thread waits for its lock, which nobody but the loop releases (as in ``Handoff``)."""

    __slots__ = ("call", "context", "ended", "error", "items", "late", "lock", "on_end", "started", "stop", "value")

    def __init__(self, on_end: Callable[[Ticket], None]) -> None:
        self.call: Call
        self.context: Context | None = current.get()  # of the request that is served by this thread
        self.items: AsyncIterable[bytes] | None = None
        self.late: asyncio.Task[None] | None = None  # waits for room
        self.stop: Callable[[], None] | None = None  # what the context calls
        self.started = False
        self.ended = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.on_end = on_end
        self.lock = threading.Lock()
        self.lock.acquire()

    def done(self) -> bool:
        """Whether it has its outcome."""
        return self.ended

    def set_result(self, value: Any, /) -> None:
        """The outcome, in the loop."""
        self._end(value, None)

    def set_exception(self, error: BaseException, /) -> None:
        """The outcome, in the loop."""
        self._end(None, error)

    def abandon(self, error: BaseException) -> None:
        """The loop has ended."""
        if not self.ended:
            self.value, self.error, self.ended = None, error, True
            self.lock.release()

    def _end(self, value: Any, error: BaseException | None) -> None:
        if not self.ended:
            self.value, self.error, self.ended = value, error, True
            self.on_end(self)
            self.lock.release()


class FedItems:
    """A plain iterable, taken from in a thread of its own, as the encoded items that the loop sends.

    The thread waits while there is no room. What the iterable raises is raised here.
    """

    def __init__(self, items: Iterable[Any], encode: Encode, up: OutStream, name: str) -> None:
        self._items = items
        self._encode = encode
        self._up = up
        self._name = name
        self._variables = copy_context()
        self._error: BaseException | None = None
        self._ended = False

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        return self._run()

    async def _run(self) -> AsyncGenerator[bytes, None]:
        loop, stir = asyncio.get_running_loop(), asyncio.Event()
        feed = Feed(loop, stir.set)
        work = partial(self._variables.run, self._iterate, feed, loop, stir)
        threading.Thread(target=work, name=self._name, daemon=True).start()
        try:
            while True:
                stir.clear()
                ended = self._ended
                for body in feed.take():
                    yield body
                if ended:
                    break
                feed.allow(self._up.room, self._up.room_bytes)
                await stir.wait()
        finally:
            feed.cut()
        if self._error is not None:
            raise self._error

    def _iterate(self, feed: Feed, loop: asyncio.AbstractEventLoop, stir: asyncio.Event) -> None:
        places = count()
        try:
            feed.run(_each(self._items, feed), lambda item: self._encode(item, next(places)))
        except StopAsyncIteration as error:  # which no generator of the loop can pass on
            self._error = RuntimeError(f"items= raised {describe_error(error)}")
        except Exception as error:
            self._error = error
        except BaseException as error:  # such as SystemExit, which would end the loop when it is raised there
            self._error = RuntimeError(f"items= raised {describe_error(error)}")
        self._ended = True
        try:
            loop.call_soon_threadsafe(stir.set)
        except RuntimeError:
            pass  # the loop is closed, and nobody waits


def _each(items: Iterable[Any], feed: Feed) -> Generator[Any, None, None]:
    """Takes nothing before there is room; its own end leaves what it takes from as it is."""
    source = iter(items)
    while feed.wait():
        try:
            item = next(source)
        except StopIteration:
            return
        yield item


def as_it_is(body: Any, place: int) -> bytes:
    """Items of ``FedItems`` are encoded already."""
    encoded: bytes = body
    return encoded


class SharedDealer(Dealer):
    """The dealer inside: any thread but the loop's own may make its requests, and waits for them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._pack = ThreadPacker()
        self._put: deque[Ticket] = deque()  # by threads, not yet begun by the loop
        self._thread: LoopThread | None = None
        self._bell: Bell

    def connect(self, thread: LoopThread) -> None:
        """The node has started."""
        self._bell = Bell(thread.loop, self._take_in)
        self._thread = thread

    # -- in any thread ---------------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | EllipsisType | None,
        headers: Mapping[str, Any] | None,
        peer: str | None,
        key: str | None,
        idempotent: bool | None,
        items: Iterable[Any] | None,
    ) -> Any:
        """Makes a request, and waits for its outcome; Ctrl-C cancels it."""
        thread = self.require_thread()
        require_plain("request", items)
        ticket = Ticket(self._ended)
        call = self._make_call(method, args, kwargs, timeout, headers, peer, key, idempotent, None, items, ticket)
        ticket.call = call
        if items is not None:
            ticket.items = self._feed(call, items)
        thread.enter(ticket)
        try:
            self._put.append(ticket)
            if not self._bell.rung:
                self._bell.ring()
            acquire(ticket.lock, None)
        except BaseException:
            thread.post(partial(self._interrupt, ticket))
            raise
        error = ticket.error
        if error is None:
            return ticket.value
        try:
            raise error
        finally:
            del error, ticket, call  # an error holds this frame, and they hold the error

    def open_stream(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        headers: Mapping[str, Any] | None,
        peer: str | None,
        key: str | None,
        items: Iterable[Any] | None,
    ) -> ItemStream:
        """As ``stream``, with a plain iterable of items."""
        self.require_thread()
        require_plain("stream", items)
        call = self._make_call(method, args, kwargs, timeout, headers, peer, key, False, InStream(), items, None)
        fed = None if items is None else self._feed(call, items)
        return ItemStream(self._under_way, call, fed, as_it_is)

    @property
    def thread(self) -> LoopThread | None:
        """The loop's thread, once there is one."""
        return self._thread

    def require_thread(self) -> LoopThread:
        """The loop's thread, if requests can be made now, and from here."""
        self._require_here()
        assert self._thread is not None, "a running node has a loop"
        return self._thread

    def _require_here(self) -> asyncio.AbstractEventLoop:
        owner, thread = self._driver.owner, self._thread
        if not owner or thread is None or self._under_way.closed:
            self._driver.require_running()
            if self._under_way.closed:
                raise NodeClosed(f"dealer({self.service!r}) was closed: open another one")
        assert thread is not None, "a running node has a loop"
        if get_ident() == owner:
            raise WrongThread(
                f"dealer({self.service!r}) is used in the thread of its node, where waiting would stop the node: "
                "call it from another thread"
            )
        return thread.loop

    def _feed(self, call: Call, items: Iterable[Any]) -> FedItems:
        assert call.up is not None, "the caller sends items"
        return FedItems(items, partial(self._encode_item, call.method), call.up, f"meshmsg-{self.service}-items")

    # -- in the loop -----------------------------------------------------------------------------------------

    def end(self) -> None:
        """Gives up what is under way, and makes no further requests."""
        self._under_way.close()
        self._take_in()

    def _take_in(self) -> None:
        """Begins what threads have put down."""
        under_way = self._under_way
        while self._put:
            ticket = self._put.popleft()
            if ticket.ended:
                continue
            if ticket.context is not None:
                ticket.stop = partial(self._stop, ticket, ticket.context)
                ticket.context._hold(ticket.stop)
                if ticket.ended:
                    continue
            try:
                under_way.require_open()
            except MeshError as error:
                ticket.set_exception(error)
                continue
            if under_way.full:
                ticket.late = asyncio.ensure_future(self._begin_late(ticket))
            else:
                self._begin(ticket)
        self._driver.turn()

    async def _begin_late(self, ticket: Ticket) -> None:
        try:
            await self._under_way.wait_for_room(ticket.call)
        except Exception as error:
            ticket.set_exception(error)
        else:
            self._begin(ticket)

    def _begin(self, ticket: Ticket) -> None:
        ticket.started = True
        self._under_way.start(ticket.call)
        if ticket.items is not None:
            self._under_way.send_items(ticket.call, ticket.items, as_it_is)

    def _ended(self, ticket: Ticket) -> None:
        """A ticket has its outcome."""
        self._under_way.release(ticket.call)
        if ticket.context is not None and ticket.stop is not None:
            ticket.context._release(ticket.stop)
        if self._thread is not None:
            self._thread.leave(ticket)

    def _interrupt(self, ticket: Ticket) -> None:
        """Nobody waits any more."""
        self._give_up(ticket, Cancelled("interrupted"))

    def _stop(self, ticket: Ticket, context: Context) -> None:
        """The request that it was made for is wanted no more."""
        asking = f"{context.service}.{context.method}"
        label = f"{self.service}.{ticket.call.method}"
        self._give_up(ticket, Cancelled(f"{label}: {asking} asked for it, and is wanted no more"))

    def _give_up(self, ticket: Ticket, error: Cancelled) -> None:
        if ticket.late is not None:
            ticket.late.cancel()
        if not ticket.ended:
            if ticket.started:
                self._under_way.give_up(ticket.call)
            error.service, error.method = self.service, ticket.call.method
            ticket.set_exception(error)


def require_plain(verb: str, items: object) -> None:
    """Refuses what can only be iterated in a loop."""
    if isinstance(items, AsyncIterable):
        raise ConfigurationError(f"{verb}(items=) takes a plain iterable here; meshmsg.Node takes async ones")
