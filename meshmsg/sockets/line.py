"""Those who wait for room: first come, first served, and as many go on in a turn as have room."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

from meshmsg.driver import Driver
from meshmsg.errors import MeshError

Room: TypeAlias = tuple[int, int]  # messages, and bytes of bodies


class _Waiter:
    """One message that waits."""

    __slots__ = ("future", "room", "size")

    def __init__(self, size: int, room: Callable[[], Room], future: asyncio.Future[None]) -> None:
        self.size = size
        self.room = room
        self.future = future


class Line:
    """A line in front of bounded room. After each turn it lets the first ones on, and asks nothing of the others.

    A message in line costs the same however many there are. ``busy`` tells whether there are any: who comes then has
    to wait behind them, even if there is room. ``require_open`` raises what all of them are to hear of.
    """

    def __init__(self, driver: Driver, require_open: Callable[[], None]) -> None:
        self.busy = False
        self._driver = driver
        self._require_open = require_open
        self._waiting: OrderedDict[_Waiter, None] = OrderedDict()  # its first one is found at once, unlike a dict's
        self._let_on: OrderedDict[_Waiter, None] = OrderedDict()  # whose task has yet to run; all before the others
        self._let_on_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._let_on)

    async def wait(self, size: int, room: Callable[[], Room], take: Callable[[], bool]) -> None:
        """Until it is this message's turn; it must take its room before it awaits anything else.

        Parameters
        ----------
        size:
            Bytes of its body.
        room:
            How much there is, for this message and those behind it; asked when it is the first one.
        take:
            Whether there is room indeed, asked in its turn: who never waits may have been faster.
        """
        self._require_open()
        self._driver.require_loop()
        loop = asyncio.get_running_loop()
        waiter = _Waiter(size, room, loop.create_future())
        self._waiting[waiter] = None
        self.busy = True
        self._driver.after_turn[self] = self.advance
        self._driver.wake()
        try:
            while True:
                await waiter.future
                self._require_open()
                if waiter in self._let_on:
                    if take():
                        return
                    self._call_back()
                waiter.future = loop.create_future()
        finally:
            self._leave(waiter)

    def advance(self) -> None:
        """Lets on as many as there is room for, in order; all of them if this is over."""
        try:
            self._require_open()
        except MeshError:
            while self._waiting:
                self._let_first_on()
            return
        while self._waiting and next(iter(self._waiting)).future.cancelled():
            self._waiting.popitem(last=False)
        if not self._waiting:
            return
        count, size = next(iter(self._waiting)).room()
        count -= len(self._let_on)
        size -= self._let_on_bytes
        while self._waiting and count > 0:
            first = next(iter(self._waiting))
            if first.size > size:
                return
            if self._let_first_on():
                count -= 1
                size -= first.size

    def _let_first_on(self) -> bool:
        waiter, _ = self._waiting.popitem(last=False)
        if waiter.future.cancelled():  # it is leaving
            return False
        self._let_on[waiter] = None
        self._let_on_bytes += waiter.size
        if not waiter.future.done():  # else it was called back, and has yet to hear of it
            waiter.future.set_result(None)
        return True

    def _call_back(self) -> None:
        """The room is gone: those who were let on stand in line again, in the same order."""
        while self._let_on:
            waiter, _ = self._let_on.popitem()
            self._waiting[waiter] = None
            self._waiting.move_to_end(waiter, last=False)
        self._let_on_bytes = 0

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._let_on:
            del self._let_on[waiter]
            self._let_on_bytes -= waiter.size
        else:
            self._waiting.pop(waiter, None)
        if self._waiting or self._let_on:
            self._driver.wake()  # it may leave room for others
        else:
            self.busy = False
            self._driver.after_turn.pop(self, None)
