"""When the waits of an application are over: one timer for all of them.

``asyncio.timeout`` makes a timer for each wait and takes it back, which costs more than what happens in a short one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from meshmsg.engine.agenda import Agenda


class TimerHandle(Protocol):
    """What ``call_at`` returns."""

    def cancel(self) -> None: ...


class TimedLoop(Protocol):
    """The part of an event loop that is needed here."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], Any], /) -> TimerHandle: ...


class Deadlines:
    """Futures that end with ``TimeoutError`` if nothing else ends them before."""

    def __init__(self, loop: TimedLoop) -> None:
        self._loop = loop
        self._agenda: Agenda[asyncio.Future[Any]] = Agenda()
        self._timer: TimerHandle | None = None
        self._rings_at = float("inf")

    def __len__(self) -> int:
        return len(self._agenda)

    def put(self, future: asyncio.Future[Any], at: float) -> None:
        """Ends a wait at this time of the loop's clock; ``discard`` says that it is over."""
        self._agenda.put(future, at)
        if at < self._rings_at:
            self._arm(at)

    def discard(self, future: asyncio.Future[Any]) -> None:
        """A wait is over, and has no deadline any more; it need not have had one."""
        self._agenda.discard(future)

    def stop(self) -> None:
        """Ends no more waits."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._rings_at = float("inf")

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = at
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        # Waits that ended were taken off without touching the timer, so it may ring for none; and some loops ring a
        # moment early (uvloop counts milliseconds): then it rings again.
        self._timer = None
        self._rings_at = float("inf")
        for future in self._agenda.take(self._loop.time()):
            if not future.done():
                future.set_exception(TimeoutError())
        soonest = self._agenda.soonest
        if soonest is not None:
            self._arm(soonest)
