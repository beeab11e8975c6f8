"""An agenda: when each of many things is to be looked at again, found without looking at the others."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_VOID = 64  # entries that count no more and may wait for their time; more only if as many count


class Agenda(Generic[T]):
    """At most one time for each thing. A thing may be looked at too early, and says then when it is due again."""

    def __init__(self) -> None:
        self._times: dict[T, float] = {}
        self._heap: list[tuple[float, int, T]] = []  # an entry counts while ``_times`` says the same
        self._entries = 0

    def __len__(self) -> int:
        return len(self._times)

    def put(self, thing: T, at: float) -> None:
        """Notes that something is due at this time. An earlier time that is noted stays."""
        known = self._times.get(thing)
        if known is not None and known <= at:
            return
        self._times[thing] = at
        self._push(thing, at)
        if len(self._heap) > MAX_VOID + 2 * len(self._times):
            self._heap = []
            for each, its in self._times.items():
                self._push(each, its)

    def _push(self, thing: T, at: float) -> None:
        self._entries += 1  # among equal times the first comes first, and things need no order
        heapq.heappush(self._heap, (at, self._entries, thing))

    def discard(self, thing: T) -> None:
        """Notes no time for this any more."""
        self._times.pop(thing, None)

    def take(self, now: float) -> list[T]:
        """What is due by now, soonest first. It is noted no more."""
        taken: list[T] = []
        while self._heap and self._heap[0][0] <= now:
            at, _, thing = heapq.heappop(self._heap)
            if self._times.get(thing) == at:
                del self._times[thing]
                taken.append(thing)
        return taken

    def time_of(self, thing: T) -> float | None:
        """When this is due; None if it is not."""
        return self._times.get(thing)

    @property
    def soonest(self) -> float | None:
        """When something is due next."""
        heap = self._heap
        while heap and self._times.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None
