"""A dealer's calls with a scripted other end: what was sent is looked at, and answered, by the test."""

from __future__ import annotations

import asyncio
import random
from _thread import get_ident
from collections.abc import Sequence
from typing import Any

from meshmsg import MeshError
from meshmsg.deadlines import Deadlines
from meshmsg.driver import Driver
from meshmsg.engine.calls import Calls
from meshmsg.engine.engine import Engine
from meshmsg.engine.peers import Identity
from meshmsg.options import DealerOptions
from meshmsg.sockets.dealer import Dealer
from meshmsg.sockets.interceptors import InterceptedDealer
from meshmsg.sockets.under_way import settle
from meshmsg.wire import items
from meshmsg.wire.codec import decode_body, make_packer

PATIENCE = 200  # turns of the loop


class FarDriver(Driver):
    """Turns like a driver, in a clock of its own; behind it is only the callers' table."""

    def __init__(self, far: FarEnd) -> None:
        super().__init__(Engine(Identity("c" * 32, 1, "caller", "test"), generator=random.Random(0)))
        self.far = far
        self.clock = asyncio.get_running_loop().time  # the real one: it is what timeouts in the loop go by
        self.deadlines = Deadlines(asyncio.get_running_loop())
        self.owner = get_ident()

    def now(self) -> float:
        return self.clock()

    def wake(self) -> None:
        if not self.scheduled:
            self.scheduled = True
            asyncio.get_running_loop().call_soon(self.turn)

    def turn(self) -> None:
        self.scheduled = False
        self.far.calls.dispatch(self.now())
        answered, self.far.calls.answered = self.far.calls.answered, []
        self.far.flush()
        settle(answered)


class FarEnd:
    """Some providers of a service, and what they were sent: ``sent`` has (provider, item, bodies)."""

    def __init__(self, *providers: str) -> None:
        self.calls = Calls(random.Random(0), self._send, lambda key: None)
        self.driver = FarDriver(self)
        self.sent: list[tuple[str, list[Any], list[Any]]] = []
        self._staged: list[tuple[str, list[Any], list[Any]]] = []
        self.pack = make_packer()
        for name in providers or ("b1",):
            self.calls.on_peer(f"{name}-id.1", name, {"math": {}}, alive=True)

    def dealer(self, *, max_message_bytes: int = 2**20, interceptors: Sequence[Any] = (), **options: Any) -> Dealer:
        chosen = DealerOptions(**options)
        if interceptors:
            return InterceptedDealer(
                self.driver, self.calls, "math", chosen, max_message_bytes, interceptors=interceptors
            )
        return Dealer(self.driver, self.calls, "math", chosen, max_message_bytes)

    def _send(self, key: str, talked: list[list[Any]], bodies: Sequence[bytes]) -> None:
        left = [decode_body(body) for body in bodies]
        for item in talked:
            count = items.bodies_of(item)
            self._staged.append((key.removesuffix("-id.1"), item, left[:count]))
            del left[:count]

    def flush(self) -> None:
        """What was told until now leaves, with the turn."""
        self.sent += self._staged
        self._staged.clear()

    async def next(self, op: int) -> tuple[str, list[Any], list[Any]]:
        """Waits for the next item of this kind; others before it are dropped."""
        for _ in range(PATIENCE):
            while self.sent:
                entry = self.sent.pop(0)
                if entry[1][0] == op:
                    return entry
            await asyncio.sleep(0)
        raise AssertionError(f"no item {op} was sent")

    def count(self, op: int) -> int:
        """How many items of this kind were sent and not looked at."""
        return sum(entry[1][0] == op for entry in self.sent)

    async def rest(self) -> None:
        """Lets everything happen that can happen by itself."""
        for _ in range(20):
            await asyncio.sleep(0)

    # -- answers ---------------------------------------------------------------------------------------------

    def reply(self, number: int, value: Any, name: str = "b1") -> None:
        self.calls.on_results(f"{name}-id.1", [number], [value], self.driver.now())
        self.driver.wake()

    def fault(self, number: int, code: str, message: str = "", name: str = "b1", flags: int = 0) -> None:
        fault = [items.FAULT, number, code, "", message, None, None, flags]
        self.calls.on_fault(f"{name}-id.1", fault, self.driver.now())
        self.driver.wake()

    def yields(self, number: int, *values: Any, name: str = "b1") -> None:
        self.calls.on_items(f"{name}-id.1", number, list(values), 0)

    def end(self, number: int, name: str = "b1") -> None:
        self.calls.on_end(f"{name}-id.1", number, self.driver.now())
        self.driver.wake()

    def takes(self, number: int, upto: int, name: str = "b1") -> None:
        self.calls.on_up_credit(f"{name}-id.1", number, upto)

    def lose(self, name: str = "b1") -> None:
        self.calls.on_peer_gone(f"{name}-id.1", name, "silent", self.driver.now())
        self.driver.wake()

    def pass_time(self, seconds: float) -> None:
        """Has the engine believe that it is later."""
        self.calls.tick(self.driver.now() + seconds)
        self.driver.wake()

    def close(self) -> None:
        """The node closes."""
        self.calls.close(self.driver.now())
        self.driver.turn()
        self.driver.owner, self.driver.closed = 0, True

    def require_idle(self, *dealers: Dealer) -> None:
        """Nothing is left of any call."""
        self.calls.check()
        assert self.calls.pending == 0
        for dealer in dealers:
            assert len(dealer._under_way) == 0
            assert not dealer._under_way._line
            assert not dealer._under_way._senders


async def outcome(waiting: Any) -> MeshError | Any:
    """What became of a request: its result, or the error itself."""
    try:
        return await waiting
    except MeshError as error:
        return error
