"""When something is due for the calls of a table: deadlines, retries, hedges, and the end of waiting for a suspect."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from heapq import heapify, heappop, heappush
from itertools import count

from meshmsg.engine.call import Call

RETRY, WAIT = -1, -2  # in the place of an attempt's number; WAIT and below each for one time of waiting
MAX_STALE = 64  # deadlines and timers that lead nowhere, before it is worth taking them out


class CallTimers:
    """Deadlines and timers of calls. Those of an attempt count while it is in ``table``, under its number."""

    def __init__(self, table: Mapping[int, Call]) -> None:
        self.resting: set[Call] = set()  # those whose retry is to come
        self.waiting: dict[Call, int] = {}  # for what becomes of a provider that is suspect
        self._table = table
        self._deadlines: list[tuple[float, int, int]] = []  # (when, first number, count): one a run
        # Hedges, retries, ends of waiting: (when, tie, the attempt's number, RETRY or that in waiting, call).
        self._timers: list[tuple[float, int, int, Call]] = []
        self._tie = count()
        self._most = (MAX_STALE, MAX_STALE)  # deadlines and timers that were allowed after the last turn

    @property
    def deadlines(self) -> int:
        """How many are kept, also of calls that were answered."""
        return len(self._deadlines)

    @property
    def timers(self) -> int:
        """How many are kept, also those that have nothing to do any more."""
        return len(self._timers)

    def put_deadline(self, when: float, first: int, length: int) -> None:
        """A run of attempts was made, with one deadline."""
        heappush(self._deadlines, (when, first, length))

    def put_hedge(self, when: float, call: Call) -> None:
        """The newest attempt of a call may be hedged then."""
        heappush(self._timers, (when, next(self._tie), call.number, call))

    def rest(self, call: Call, until: float) -> None:
        """No attempt of a call is under way until its retry."""
        self.resting.add(call)
        heappush(self._timers, (until, next(self._tie), RETRY, call))

    def wait(self, call: Call) -> None:
        """Who is to be asked is suspect: nobody has the call until ``let_on``, or until its time is over."""
        mark = self.waiting[call] = WAIT - next(self._tie)
        if call.deadline is not None:
            heappush(self._timers, (call.deadline, next(self._tie), mark, call))

    def let_on(self, services: Collection[str]) -> list[Call]:
        """Who offers these has changed: returns what waited for one of them, and waits no more."""
        again = [call for call in self.waiting if call.service in services]
        for call in again:
            del self.waiting[call]
        return again

    def forget(self, call: Call) -> None:
        """Nothing is to come of a call that rests or waits."""
        self.resting.discard(call)
        self.waiting.pop(call, None)

    def forget_stale(self) -> None:
        """Takes out deadlines and timers of calls that were answered long before, once they are more than the others.

        A run in ``_deadlines`` that still leads to a call has one of its own in the table, and so has each hedge.
        """
        table = self._table
        most = 2 * len(table) + MAX_STALE
        if len(self._deadlines) > most:
            self._deadlines = [
                each for each in self._deadlines if any(number in table for number in range(each[1], each[1] + each[2]))
            ]
            heapify(self._deadlines)
        most_timers = most + 2 * (len(self.resting) + len(self.waiting))
        if len(self._timers) > most_timers:
            self._timers = [each for each in self._timers if self._is_awaited(each[2], each[3])]
            heapify(self._timers)
        self._most = (most, most_timers)

    def _is_awaited(self, number: int, call: Call) -> bool:
        """Whether a timer still has something to do."""
        if number == RETRY:
            return call in self.resting
        if number <= WAIT:
            return not call.done and self.waiting.get(call) == number
        return not call.done and number == call.number and number in self._table

    def late(self, now: float) -> Iterator[Call]:
        """Calls whose deadline has passed, each when it is its turn."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, first, length = heappop(self._deadlines)
            for number in range(first, first + length):
                call = self._table.get(number)
                if call is not None and not call.done:
                    yield call

    def due(self, now: float) -> Iterator[tuple[int, Call]]:
        """Calls with something else to do: those that rest (``RETRY``) or wait (``WAIT``) no more, or may be hedged."""
        while self._timers and self._timers[0][0] <= now:
            _, _, number, call = heappop(self._timers)
            if not self._is_awaited(number, call):
                continue
            self.forget(call)
            yield max(number, WAIT), call

    def wake_at(self, soonest: float) -> float:
        """When something may be due, if that is before ``soonest``."""
        deadlines, table = self._deadlines, self._table
        while deadlines and deadlines[0][2] == 1 and deadlines[0][1] not in table:
            heappop(deadlines)  # single calls mostly, answered long before; a run is looked at when it is due
        if deadlines and deadlines[0][0] < soonest:
            soonest = deadlines[0][0]
        timers = self._timers
        while timers and not self._is_awaited(timers[0][2], timers[0][3]):
            heappop(timers)
        if timers and timers[0][0] < soonest:
            soonest = timers[0][0]
        return soonest

    def check(self) -> None:
        """Raises AssertionError where this contradicts itself."""
        retries = [call for _, _, number, call in self._timers if number == RETRY and call in self.resting]
        assert len(retries) == len(self.resting), f"{len(self.resting)} calls wait for {len(retries)} retries"
        assert len(self._deadlines) <= self._most[0], f"{len(self._deadlines)} deadlines of {len(self._table)} calls"
        most = self._most[1] + len(retries) + len(self.waiting)
        assert len(self._timers) <= most, f"{len(self._timers)} timers"
