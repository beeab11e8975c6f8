"""A router's surroundings without a node: a driver, the engine's table, and callers that say what they want."""

from __future__ import annotations

import asyncio
import reprlib
from _thread import get_ident
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, cast

from meshmsg.driver import Driver
from meshmsg.engine.faults import make_error
from meshmsg.engine.peers import Identity
from meshmsg.engine.served import Serving
from meshmsg.errors import NoSuchMethod, RequestError
from meshmsg.options import RouterOptions
from meshmsg.sockets.router import Router
from meshmsg.wire import items
from meshmsg.wire.codec import decode_body

PEER = "f00d.1"


class Asked:
    """A call as its caller sees it."""

    def __init__(self, desk: Desk, number: int) -> None:
        self.desk = desk
        self.number = number
        self.items: list[Any] = []
        self.allowed = 0  # items of the caller that the server takes
        self.sent = 0
        self.fault: list[Any] | None = None
        self.outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._stir = asyncio.Event()

    def __await__(self) -> Any:
        return self.outcome.__await__()

    def cancel(self) -> None:
        """The caller gives up."""
        self.desk.serving.on_cancel(PEER, [self.number])
        self.desk.wake()

    def credit(self, upto: int) -> None:
        """The caller takes items below this."""
        self.desk.serving.on_credit(PEER, self.number, upto)
        self.desk.wake()

    def send(self, *bodies: Any) -> None:
        """Items of the caller."""
        self.sent += len(bodies)
        self.desk.serving.on_up_items(PEER, self.number, list(bodies))
        self.desk.wake()

    def end(self) -> None:
        """The caller's stream is complete."""
        self.desk.serving.on_up_end(PEER, self.number)
        self.desk.wake()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until something is true of what came back."""
        while not condition():
            self._stir.clear()
            await self._stir.wait()

    async def until_items(self, count: int) -> None:
        """Waits until so many items came back."""
        await self.until(lambda: len(self.items) >= count)

    async def until_room(self) -> None:
        """Waits until the server takes another item."""
        await self.until(lambda: self.allowed > self.sent)

    def stir(self) -> None:
        """Something came back."""
        self._stir.set()


class Desk:
    """Stands where a router has its driver and its engine."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.serving = Serving()
        self.engine = self
        self.identity = Identity("beef", 1, "server", "default")
        self.peers = self
        self.limit: int | None = None
        self.closed = False
        self.told: bool | None = None  # whether the services serve, as others hear it
        self.usable = True
        self.owner = get_ident()
        self.scheduled = False
        self.turns = 0
        self.on_arrival: dict[str, Callable[[], None]] = {}
        self.asked: dict[int, Asked] = {}
        self.answers: list[list[int]] = []  # numbers of each RESULT
        self._next = 0

    def router(
        self, name: str = "math", *, interceptors: Any = (), max_message_bytes: int = 2**20, **options: Any
    ) -> Router:
        """A router as the node makes it."""
        chosen = RouterOptions(**options)
        service = self.serving.open(name, chosen)
        return Router(cast(Driver, self), service, self.serving, chosen, interceptors, max_message_bytes)

    def ask(
        self,
        method: str,
        *args: Any,
        service: str = "math",
        remaining: float | None = None,
        headers: dict[str, Any] | None = None,
        window: int = 0,
        flags: int = 0,
        **kwargs: Any,
    ) -> Asked:
        """One call."""
        return self.ask_many(method, [(list(args), kwargs)], service, remaining, headers, window, flags)[0]

    def ask_many(
        self,
        method: str,
        bodies: list[tuple[list[Any], Mapping[str, Any]]],
        service: str = "math",
        remaining: float | None = None,
        headers: dict[str, Any] | None = None,
        window: int = 0,
        flags: int = 0,
    ) -> list[Asked]:
        """Calls that come together."""
        first = self._next
        self._next += len(bodies)
        asked = [Asked(self, number) for number in range(first, self._next)]
        self.asked.update((each.number, each) for each in asked)
        item = [items.CALL, first, len(bodies), service, method, remaining, flags, window, headers]
        self.serving.on_call(PEER, "client", item, [list(body) for body in bodies], self.now())
        self.wake()
        return asked

    def stream(self, method: str, *args: Any, window: int = 2, **kwargs: Any) -> Asked:
        """One call for items."""
        return self.ask(method, *args, window=window, flags=items.WANTS_ITEMS, **kwargs)

    # -- what a driver and an engine are to a router ---------------------------------------------------------

    def now(self) -> float:
        return self.loop.time()

    def wake(self) -> None:
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        if self.scheduled:
            self.turn()

    def turn(self) -> None:
        self.scheduled = False
        self.turns += 1
        self.serving.tick(self.now())
        for talked, bodies in self.serving.take_output().values():
            self._hear(talked, bodies)
        arrived = list(self.serving.arrived)
        self.serving.arrived.clear()
        for name in arrived:
            self.on_arrival.get(f"router:{name}", lambda: None)()
        self.serving.check()
        due = self.serving.wake_at()
        if due is not None:
            self.loop.call_at(due, self.wake)

    def _hear(self, talked: list[list[Any]], bodies: list[bytes]) -> None:
        left = iter(bodies)
        for item in talked:
            if item[0] == items.RESULT:
                self.answers.append(item[1])
                for number in item[1]:
                    self.asked[number].outcome.set_result(decode_body(next(left)))
                continue
            asked = self.asked[item[1]]
            if item[0] == items.FAULT:
                asked.fault = item
                asked.outcome.set_exception(make_error(*item[2:7]))
                asked.outcome.exception()  # somebody has looked
            elif item[0] == items.ITEMS:
                asked.items += [decode_body(next(left)) for _ in range(item[2])]
            elif item[0] == items.UP_CREDIT:
                asked.allowed = item[2]
            elif item[0] == items.END:
                asked.outcome.set_result(None)
            asked.stir()

    def require_usable(self) -> None:
        pass

    def require_process(self) -> None:
        pass

    def close_router(self, name: str) -> None:
        self.serving.close(name)

    def set_serving(self, name: str, serving: bool) -> None:
        self.told = serving

    def find(self, key: str) -> Any:
        return key

    def limit_of(self, peer: Any) -> int | None:
        return self.limit


async def refused(asked: Asked) -> RequestError:
    """The error that a call ends with."""
    try:
        value = await asked
    except RequestError as error:
        return error
    raise AssertionError(f"call {asked.number} was answered with {reprlib.repr(value)}")


async def until_free(desk: Desk) -> None:
    """Waits until a worker took another call."""
    assert isinstance(await refused(desk.ask("nothing")), NoSuchMethod)


def offer_counts(router: Router, yielded: list[int], closed: list[str]) -> None:
    """Two methods that count and tell how far they came: ``count`` in the loop, ``count_plainly`` in a thread."""

    @router.method
    async def count(to: int) -> AsyncIterator[int]:
        try:
            for number in range(to):
                yielded.append(number)
                yield number
        finally:
            closed.append("count")

    @router.method
    def count_plainly(to: int) -> Iterator[int]:
        try:
            for number in range(to):
                yielded.append(number)
                yield number
        finally:
            closed.append("count_plainly")
