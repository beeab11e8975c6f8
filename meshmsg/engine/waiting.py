"""How messages of an outbox wait: by a number such as a time, or for the one before them with the same key."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator

from meshmsg.engine.run import Details, Run


class RunHeap:
    """Single messages by rank, and by id where it is the same.

    One that is settled meanwhile stays until it is passed over, or until ``sweep``.
    """

    __slots__ = ("_entries", "_serial")

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, int, Run]] = []
        self._serial = 0  # so that two entries of one id do not compare their runs

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Run]:
        return (run for _, _, _, run in self._entries)

    @property
    def soonest(self) -> float | None:
        """The lowest rank, be it of a settled one."""
        return self._entries[0][0] if self._entries else None

    def push(self, rank: float, run: Run) -> None:
        """Puts a message in."""
        self._serial += 1
        heapq.heappush(self._entries, (rank, run.first_id, self._serial, run))

    def pop_until(self, rank: float) -> Iterator[Run]:
        """Takes out everything up to a rank, and yields what is not settled."""
        while self._entries and self._entries[0][0] <= rank:
            run = heapq.heappop(self._entries)[3]
            if not run.require_details().settled:
                yield run

    def peek_waiting(self) -> Run | None:
        """The first one that is neither settled nor with a consumer; forgets those before it."""
        while self._entries:
            run = self._entries[0][3]
            details = run.require_details()
            if not (details.settled or details.in_flight):
                return run
            heapq.heappop(self._entries)
        return None

    def sweep(self) -> None:
        """Forgets what is settled."""
        self._entries[:] = [entry for entry in self._entries if not entry[3].require_details().settled]
        heapq.heapify(self._entries)


class KeyLines:
    """Who waits for a key: one message owns it, from its acceptance to its end, and is in no line (G3)."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines: dict[str, deque[Run]] = {}  # a key is here while somebody owns it

    def __iter__(self) -> Iterator[Run]:
        return (run for line in self.lines.values() for run in line)

    def enter(self, run: Run, key: str) -> bool:
        """Gives a message its key, or a place in the line for it; says which."""
        line = self.lines.get(key)
        if line is not None:
            line.append(run)
            return False
        self.lines[key] = deque()
        run.require_details().owns_key = True
        return True

    def release(self, owner: Details) -> Run | None:
        """The owner of a key has its end: who owns the key from now on."""
        key = owner.key
        assert key is not None, "who owns a key has one"
        owner.owns_key = False
        line = self.lines[key]
        while line:
            run = line.popleft()
            heir = run.require_details()
            if not heir.settled:
                heir.owns_key = True
                return run
        del self.lines[key]
        return None

    def sweep(self) -> None:
        """Forgets what is settled."""
        for line in self.lines.values():
            sweep_line(line)


class Aside:
    """What an outbox holds beside its lines of ready messages, and which of it would be dropped first.

    ``settled`` counts single messages that are settled since the last ``sweep``, and may still be somewhere.
    """

    __slots__ = ("_by_priority", "expiring", "keys", "scheduled", "settled")

    def __init__(self) -> None:
        self.scheduled = RunHeap()  # by when they are due
        self.expiring = RunHeap()  # by when their time to live ends, wherever they wait
        self.keys = KeyLines()
        self.settled = 0
        self._by_priority: RunHeap | None = None  # what is scheduled or in line, once one is to be dropped

    def note(self, run: Run, most: int) -> None:
        """A message was scheduled or put in line; one that is tried again and again, often."""
        if self._by_priority is None:
            return
        if len(self._by_priority) > most:
            self._by_priority = None
        else:
            self._by_priority.push(run.require_details().priority, run)

    def find_oldest(self) -> Run | None:
        """The oldest of the least urgent ones. It may be ready by now, but is with no consumer."""
        if self._by_priority is None:
            self._by_priority = RunHeap()
            for run in (*self.scheduled, *self.keys):
                self._by_priority.push(run.require_details().priority, run)
        return self._by_priority.peek_waiting()

    def sweep(self) -> None:
        """Forgets what is settled."""
        self.settled = 0
        self._by_priority = None
        self.scheduled.sweep()
        self.expiring.sweep()
        self.keys.sweep()


def sweep_line(line: deque[Run]) -> int:
    """Takes what is settled out of a line of runs; returns how many messages that were."""
    kept = [run for run in line if run.details is None or not run.details.settled]
    gone = len(line) - len(kept)  # a run with details is a single message
    if gone:
        line.clear()
        line.extend(kept)
    return gone


def skim(line: deque[Run]) -> int:
    """Takes settled messages off the head of a line of runs; returns how many."""
    gone = 0
    while line and (details := line[0].details) is not None and details.settled:
        line.popleft()
        gone += 1
    return gone


def rank_of(run: Run) -> tuple[int, int]:
    """By what the oldest and least urgent of several is found."""
    return run.details.priority if run.details is not None else 0, run.first_id


def take_ready(ready: dict[int, deque[Run]], count: int, max_body_bytes: int | None) -> tuple[list[Run], int]:
    """Takes up to ``count`` messages out of lines by priority, highest first, in the order they became ready.

    Larger ones than ``max_body_bytes`` stay where they are. Returns also how many messages the lines have less.
    """
    runs: list[Run] = []
    gone = 0
    for priority in sorted(ready, reverse=True):
        line = ready[priority]
        passed: list[Run] = []
        while line and count:
            run = line[0]
            if run.details is not None and run.details.settled:
                line.popleft()
                gone += 1
                continue
            fitting = len(run) if max_body_bytes is None else run.count_fitting(max_body_bytes)
            if not fitting:
                passed.append(line.popleft() if len(run) == 1 else run.split(1))
                continue
            if len(run) <= min(fitting, count):
                line.popleft()
            else:
                run = run.split(min(fitting, count))
            count -= len(run)
            gone += len(run)
            runs.append(run)
        line.extendleft(reversed(passed))
        if not line and priority:
            del ready[priority]
    return runs, gone


def singles(runs: Iterable[Run]) -> Iterator[Run]:
    """The messages of runs, each as a run of its own."""
    for run in runs:
        while len(run) > 1:
            yield run.split(1)
        yield run


def count_live(runs: Iterable[Run]) -> int:
    """How many messages of runs are not settled."""
    return sum([len(run) for run in runs if not (run.details and run.details.settled)])
