"""What a dealer has under way: at most ``max_pending`` calls, those who wait for room, and who sends their items."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import partial
from typing import Any, Protocol

from meshmsg.driver import Driver
from meshmsg.engine.calls import Call, Calls
from meshmsg.errors import Cancelled, DeadlineExceeded, MeshError, NodeClosed, RequestError
from meshmsg.sockets.call_items import Encode, Items, send_items

SHARED_SHARE = 0.001  # of its time that a call may get on top, to have its deadline in common with others
CLEANUP_S = 1.0  # what items of calls that are over get to clean up, before who closes the dealer waits no more


class Sink(Protocol):
    """Where the one outcome of a call goes; a future is one."""

    def done(self) -> bool: ...
    def set_result(self, value: Any, /) -> None: ...
    def set_exception(self, error: Any, /) -> None: ...


class UnderWay:
    """The calls of one dealer that have no outcome yet."""

    def __init__(self, driver: Driver, calls: Calls, service: str, max_pending: int) -> None:
        self.driver = driver
        self.calls = calls
        self.closed = False
        self._service = service
        self._limit = max_pending
        self._open: set[object] = set()  # calls, and those in line whose turn it is
        self._line: OrderedDict[asyncio.Future[None], None] = OrderedDict()  # who waits
        self._last_deadline = 0.0
        self._senders: dict[Call, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def full(self) -> bool:
        """Whether a further call has to wait; with others in line it does, as room is theirs first."""
        return len(self._open) >= self._limit

    def require_open(self) -> None:
        """Raises the exception that tells why no call can be made here and now."""
        self.driver.require_usable()
        self.driver.require_loop()
        if self.closed:
            raise NodeClosed(f"dealer({self._service!r}) was closed: open another one")

    # -- room ------------------------------------------------------------------------------------------------

    async def wait_for_room(self, call: Call) -> None:
        """Waits in line until one more may be under way, no longer than the call may take."""
        if not self.full:  # it was when this was asked for, by a task that had yet to begin
            return
        if call.deadline is None and call.timeout is not None:
            call.deadline = self._find_deadline(call.timeout)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line[future] = None
        if call.deadline is not None:
            self.driver.deadlines.put(future, call.deadline)
        try:
            await future
            self.require_open()
            self._open.discard(future)  # for the call, which is started next
        except BaseException as error:
            self._open.discard(future)
            self._line.pop(future, None)
            self._advance()
            if not isinstance(error, TimeoutError):
                raise
            text = (
                f"found no room in time: max_pending={self._limit} requests were under way: make fewer at a time, "
                "or add providers"
            )
            raise about(call, DeadlineExceeded(f"{call.service}.{call.method} {text}")) from None
        finally:
            self.driver.deadlines.discard(future)

    def _find_deadline(self, timeout: float) -> float:
        """When a call's time is over. Of those that come together it is the same: they can leave as one run."""
        deadline = self.driver.now() + timeout
        if not 0 <= self._last_deadline - deadline <= timeout * SHARED_SHARE:
            self._last_deadline = deadline + timeout * SHARED_SHARE
        return self._last_deadline

    def _advance(self) -> None:
        """Lets those in line have the room that there is, the first one first."""
        while self._line and len(self._open) < self._limit:
            future, _ = self._line.popitem(last=False)
            if not future.done():
                self._open.add(future)
                future.set_result(None)

    # -- calls -----------------------------------------------------------------------------------------------

    def start(self, call: Call) -> None:
        """Makes a call, now that there is room; ``release`` says that it is over."""
        self._open.add(call)
        self.calls.start(call)
        if not self.driver.scheduled:
            self.driver.wake()

    def send_items(self, call: Call, items: Items, encode: Encode) -> None:
        """Has the caller's items sent, by a task of their own."""
        sender = asyncio.ensure_future(send_items(self.driver, self.calls, call, items, encode))
        self._senders[call] = sender
        sender.add_done_callback(partial(self._sent, call))

    def _sent(self, call: Call, sender: asyncio.Task[None]) -> None:
        """The caller's items have ended: all are sent, or the application failed to bring them."""
        self._senders.pop(call, None)
        if self.driver.endings.pop(sender, None) is not None:
            self.driver.wake()  # who closes the node may wait for this
        if sender.cancelled():
            self.abort(call, Cancelled(f"{call.service}.{call.method}: its items= were cancelled"))
        else:
            error = sender.exception()
            if error is not None:
                self.abort(call, error)

    def release(self, call: Call) -> None:
        """A call is over."""
        self._open.discard(call)
        call.sink = None  # which may refer to the call, and both to large values
        if self._line:
            self._advance()
        if self._senders:
            sender = self._senders.pop(call, None)
            if sender is not None:
                sender.cancel()
                self.driver.endings[sender] = self

    def give_up(self, call: Call) -> None:
        """Nobody waits for a call any more: its server is told to stop."""
        if not call.done:
            self.calls.cancel(call)
            self.driver.wake()
        self.release(call)

    def abort(self, call: Call, error: BaseException) -> None:
        """Ends a call from here, with an outcome."""
        if call.done:
            return
        sink: Sink = call.sink
        self.give_up(call)
        if isinstance(error, RequestError):
            about(call, error)
        if not sink.done():
            sink.set_exception(error)

    def close(self) -> None:
        """Ends all of them; who is in line hears of it when their room is given to it."""
        self.closed = True
        for call in list(self._open):
            if isinstance(call, Call):
                self.abort(call, Cancelled(f"{call.service}.{call.method}: the dealer was closed"))

    async def wait_for_endings(self) -> None:
        """Until the items of calls that are over have cleaned up; for a second at most, and never for itself."""
        asking = asyncio.current_task()
        endings = [task for task, owner in self.driver.endings.items() if owner is self and task is not asking]
        if endings:
            await asyncio.wait(endings, timeout=CLEANUP_S)


def about(call: Call, error: RequestError) -> RequestError:
    """The error, with what it is about."""
    error.service, error.method = call.service, call.method
    return error


def settle(answers: list[tuple[Call, Any, MeshError | None]]) -> None:
    """The driver's word on calls that have their outcome: hands it to who waits for it."""
    for call, value, error in answers:
        sink: Sink | None = call.sink
        if sink is not None and not sink.done():  # else it was over before it heard of this
            if error is None:
                sink.set_result(value)
            else:
                sink.set_exception(error)
