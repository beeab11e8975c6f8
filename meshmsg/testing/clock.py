"""Virtual time: what runs in it takes no time at all, and happens in the same order every time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any


class VirtualTimer:
    """A callback that waits for its time; ``cancel`` takes it back."""

    __slots__ = ("callback", "due", "order", "owner", "when")

    def __init__(self, callback: Callable[[], Any], owner: ProcessLoop | None) -> None:
        self.callback: Callable[[], Any] | None = callback
        self.owner = owner
        self.when = 0.0
        self.due = 0.0  # the same by its owner's clock
        self.order = 0  # of its entry in the clock's heap; an entry of another order is out of date

    def cancel(self) -> None:
        """It will not ring. Again is fine."""
        self.callback = None
        if self.owner is not None:
            self.owner.forget(self)


class VirtualClock:
    """A clock that jumps from one event to the next.

    It has the three methods of an event loop that meshmsg's driver needs, ``time``, ``call_soon`` and ``call_at``,
    and ``run_until`` to let time pass.

    Examples
    --------
    >>> clock = VirtualClock()
    >>> timer = clock.call_at(60.0, lambda: print("a minute later, it is", clock.time()))
    >>> clock.run_until(3600.0)
    a minute later, it is 60.0
    >>> clock.time()
    3600.0
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0  # callbacks that ran so far
        self.max_steps = 10_000_000  # beyond it something goes round in circles
        self._ready: deque[VirtualTimer] = deque()
        self._waiting: list[tuple[float, int, VirtualTimer]] = []
        self._order = 0

    def time(self) -> float:
        """Seconds since the beginning."""
        return self.now

    def call_soon(self, callback: Callable[[], Any], /, owner: ProcessLoop | None = None) -> VirtualTimer:
        """Calls ``callback`` before time passes, after everything that was asked for earlier."""
        timer = VirtualTimer(callback, owner)
        self._ready.append(timer)
        return timer

    def call_at(self, when: float, callback: Callable[[], Any], /, owner: ProcessLoop | None = None) -> VirtualTimer:
        """Calls ``callback`` at ``when``, or at once if that is over."""
        timer = VirtualTimer(callback, owner)
        self.set(timer, when)
        return timer

    def call_later(self, seconds: float, callback: Callable[[], Any], /) -> VirtualTimer:
        """Calls ``callback`` in so many seconds."""
        return self.call_at(self.now + seconds, callback)

    def set(self, timer: VirtualTimer, when: float) -> None:
        """Has a timer ring at another time than it was set to before."""
        self._order += 1
        timer.order = self._order
        timer.when = when
        heapq.heappush(self._waiting, (when, self._order, timer))

    def ready(self, timer: VirtualTimer) -> None:
        """Has a timer that was due ring now."""
        timer.order = 0
        self._ready.append(timer)

    def step(self, until: float, most: int = 1) -> bool:
        """Runs the next callbacks that are due by ``until``, so many at most; False when there are no more."""
        ready, waiting = self._ready, self._waiting
        last = self.steps + most
        while self.steps < last:
            if ready:
                timer = ready.popleft()
            elif waiting and waiting[0][0] <= until:
                when, order, timer = heapq.heappop(waiting)
                if timer.order != order:
                    continue
                if timer.callback is not None and when > self.now:
                    self.now = when
            else:
                return False
            callback, owner = timer.callback, timer.owner
            if callback is None or (owner is not None and not owner.let_through(timer)):
                continue
            self.steps += 1
            if self.steps > self.max_steps:
                raise RuntimeError(f"{self.steps} steps until {self.now:.4f} s: something goes round in circles")
            timer.callback = None
            callback()
        return True

    def run_until(self, when: float) -> None:
        """Lets time pass until ``when``."""
        while self.step(when, self.max_steps):
            pass
        self.now = max(self.now, when)


class ProcessLoop:
    """The event loop of one simulated process: it can be held, released and ended, and its clock can jump.

    Whatever it should run while it is held waits, as callbacks do behind a handler that blocks.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.turns = 0  # callbacks that ran here so far
        self.offset = 0.0  # what this process's clock is ahead of the true time
        self.ended = False
        self._holds: set[str] = set()
        self._parked: list[VirtualTimer] = []
        self._timers: dict[VirtualTimer, None] = {}  # an ordered set: one seed, one order
        self._reached = 0.0  # no timer rings before its time, whatever the rounding
        self._soon = clock._ready.append

    def time(self) -> float:
        """The process's own clock."""
        now = self.clock.now + self.offset
        return now if now > self._reached else self._reached

    def call_soon(self, callback: Callable[[], Any], /) -> VirtualTimer:
        """Calls ``callback`` in the process's next turn."""
        timer = VirtualTimer(callback, self)
        self._soon(timer)
        return timer

    def call_at(self, when: float, callback: Callable[[], Any], /) -> VirtualTimer:
        """Calls ``callback`` at ``when`` by the process's own clock."""
        timer = self.clock.call_at(when - self.offset, callback, self)
        timer.due = when
        self._timers[timer] = None
        return timer

    @property
    def held(self) -> bool:
        """Whether nothing runs here at the moment."""
        return bool(self._holds) or self.ended

    def hold(self, reason: str) -> None:
        """Nothing runs until ``release``; one hold a reason."""
        self._holds.add(reason)

    def release(self, reason: str | None = None) -> None:
        """Ends a hold, or all of them; after the last one, what waited runs in its order."""
        self._holds -= {reason} if reason is not None else self._holds.copy()
        if not self._holds:
            parked, self._parked = self._parked, []
            for timer in parked:
                self.clock.ready(timer)

    def end(self) -> None:
        """The process is dead: nothing runs here any more."""
        self.ended = True
        self._parked.clear()
        self._timers.clear()

    def jump(self, seconds: float) -> None:
        """The process's clock leaps ahead; timers that are due by it ring at once."""
        self.offset += seconds
        for timer in self._timers:
            self.clock.set(timer, timer.when - seconds)

    def let_through(self, timer: VirtualTimer) -> bool:
        """Whether a callback may run now; one that may not is kept."""
        if timer.order and self._timers.pop(timer, timer) is None:  # one that never had to wait is not listed
            self._reached = max(self._reached, timer.due)
        if self.ended:
            return False
        if self._holds:
            self._parked.append(timer)
            return False
        self.turns += 1
        return True

    def forget(self, timer: VirtualTimer) -> None:
        """A timer was cancelled."""
        self._timers.pop(timer, None)
