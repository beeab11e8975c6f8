"""One topic at its publisher: its numbering, and what is kept of it for repairs and late joiners."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from meshmsg.options import PubOptions
from meshmsg.wire.frames import MAX_SEQ, PIECE_BYTES, measure_details

Headers = dict[int, dict[str, Any]] | None  # by sequence number

# Bytes of bodies in one frame: large enough to be cheap, small enough not to stall other topics behind it. With what
# an array begins with, they are a payload that leaves in one piece.
MAX_FRAME_BYTES = PIECE_BYTES - 5
MAX_FRAME_MESSAGES = 4096
# What a topic keeps for repairs when no history was asked for; it closes the gap of a full buffer or a short cut.
REPAIR_MESSAGES = 1000
REPAIR_BYTES = 2**20
OVERHEAD_BYTES = 64  # of one message, about: with tiny bodies it is what counts


@dataclass(frozen=True, slots=True)
class TopicOptions:
    """How a publisher treats the topics of one pattern.

    Parameters
    ----------
    retain:
        Keep each topic's last message for whoever joins later.
    history:
        Messages of each topic that late joiners may ask for; 0 for none.
    history_bytes:
        Bytes of bodies and headers that the history of one topic takes at most. What left together is let go
        together, so that a little more is held than late joiners get.
    history_s:
        Age in seconds at which a message leaves the history; None for never.
    window, window_bytes:
        Messages, and bytes of bodies, that the slowest subscriber may be behind before sending waits; a window of 0 to
        never wait.
    """

    retain: bool = False
    history: int = 0
    history_bytes: int = 64 * 2**20
    history_s: float | None = None
    window: int = 0
    window_bytes: int = 64 * 2**20

    @classmethod
    def of(cls, chosen: PubOptions) -> TopicOptions:
        """What a ``pub`` was opened with; only one that blocks has a window."""
        windows = (chosen.window, chosen.window_bytes) if chosen.block else ()
        return cls(chosen.retain, chosen.history, chosen.history_bytes, chosen.history_s, *windows)

    def offer(self) -> dict[str, Any]:
        """What subscribers hear of them: how far behind they may be decides how often they say how far they are."""
        return {"window": self.window, "window_bytes": self.window_bytes} if self.window else {}


class Entry(NamedTuple):
    """Messages that left together. ``bytes_before`` counts the topic's bytes from its beginning."""

    first_seq: int
    bodies: list[bytes]
    headers: Headers
    at: float
    size: int
    bytes_before: int

    @property
    def stop(self) -> int:
        """The number behind the last message."""
        return self.first_seq + len(self.bodies)


class TopicLog:
    """The messages of one topic: staged, then numbered, then kept as long as the bounds say.

    Kept is what lies within the repair window or within the history; both reach back from the newest message, which
    is always kept; and where sending waits for the slowest subscriber, what that one does not have yet. A batch goes
    when none of it is within any.
    """

    __slots__ = (
        "behind_limit",
        "behind_size",
        "cost",
        "entries",
        "followers",
        "followers_of",
        "next_seq",
        "options",
        "retain_from",
        "retained",
        "size",
        "staged",
        "staged_bytes",
        "staged_headers",
        "topic",
    )

    def __init__(self, topic: str, options: TopicOptions) -> None:
        self.topic = topic
        self.options = options
        self.next_seq = 0
        self.size = 0  # bytes of everything that was ever published
        self.cost = 0  # bytes that the entries hold, overhead included
        self.entries: deque[Entry] = deque()
        self.retained: tuple[int, bytes, dict[str, Any] | None] | None = None
        self.retain_from = 0  # older messages are not retained: that was taken back
        self.staged: list[bytes] = []
        self.staged_bytes = 0  # headers included; right where there is a window
        self.staged_headers: dict[int, tuple[dict[str, Any], int]] | None = None  # with their size
        self.followers: tuple[Any, ...] = ()  # whoever subscribed to it
        self.followers_of = -1  # the generation of subscriptions that these are of
        self.behind_limit = MAX_SEQ  # the sequence number at which sending waits for the slowest subscriber
        self.behind_size = MAX_SEQ  # the same in bytes of everything that was ever published

    # -- publishing ------------------------------------------------------------------------------------------

    def stage(self, body: bytes, headers: dict[str, Any] | None, headers_size: int) -> int:
        """Takes a message for this turn and returns its number."""
        seq = self.next_seq + len(self.staged)
        self.staged.append(body)
        self.staged_bytes += len(body) + headers_size
        if headers:
            if self.staged_headers is None:
                self.staged_headers = {}
            self.staged_headers[seq] = (headers, headers_size)
        return seq

    def absorb(self, now: float) -> list[Entry]:
        """Numbers what was staged and cuts it into batches; a body over the cut goes alone."""
        staged, self.staged, self.staged_bytes = self.staged, [], 0
        given, self.staged_headers = self.staged_headers, None
        made: list[Entry] = []
        size = sum(map(len, staged))
        if given is None and size <= MAX_FRAME_BYTES and len(staged) <= MAX_FRAME_MESSAGES:
            made.append(self._append(staged, None, size, now))
        else:
            for bodies, headers, size in _cut(staged, given or {}, self.next_seq):
                made.append(self._append(bodies, headers, size, now))
        seq = self.next_seq - 1
        if self.options.retain and seq >= self.retain_from:
            self.retained = (seq, staged[-1], given[seq][0] if given and seq in given else None)
        self.trim(now)
        return made

    def _append(self, bodies: list[bytes], headers: Headers, size: int, now: float) -> Entry:
        entry = Entry(self.next_seq, bodies, headers, now, size, self.size)
        self.next_seq += len(bodies)
        self.size += size
        self.cost += size + OVERHEAD_BYTES * len(bodies)
        self.entries.append(entry)
        return entry

    def delete_retained(self) -> bool:
        """Forgets the last value, also one that has not left yet; says whether there was one."""
        found = self.retained is not None
        if self.options.retain and self.staged:
            found = found or self.next_seq + len(self.staged) > self.retain_from
        self.retained = None
        self.retain_from = self.next_seq + len(self.staged)
        return found

    # -- waiting for the slowest -----------------------------------------------------------------------------

    @property
    def room(self) -> tuple[int, int]:
        """How many messages, and bytes, may follow until sending has to wait."""
        return self.behind_limit - self.next_seq - len(self.staged), self.behind_size - self.size - self.staged_bytes

    def count_fitting(self, bodies: list[bytes]) -> int:
        """How many of these may follow until then; the last may go beyond the bytes."""
        count, size = self.room
        most = max(0, min(count, len(bodies)))
        for index in range(most):
            if size <= 0:
                return index
            size -= len(bodies[index])
        return most

    @property
    def blocked(self) -> bool:
        """Whether sending has to wait."""
        return min(self.room) <= 0

    def describe_block(self) -> str:
        """How far the slowest subscriber is behind, where sending has to wait for it, and which option says so."""
        options = self.options
        count, size = self.room
        if count <= 0:
            return f"{options.window} messages behind (window={options.window})"
        return f"{options.window_bytes - size} bytes behind (window_bytes={options.window_bytes})"

    def limit(self, slowest: int | None) -> None:
        """Says which number the slowest subscriber expects next; None if nobody has to be waited for."""
        self.behind_limit = self.behind_size = MAX_SEQ
        if slowest is not None:
            self.behind_limit = slowest + self.options.window
            self.behind_size = self._size_before(slowest) + self.options.window_bytes

    def _size_before(self, number: int) -> int:
        """Bytes that were published before a message, or before the batch that it left in."""
        index = bisect.bisect_right(self.entries, number, key=lambda entry: entry.stop)
        return self.entries[index].bytes_before if index < len(self.entries) else self.size

    # -- keeping ---------------------------------------------------------------------------------------------

    def trim(self, now: float) -> None:
        """Lets go of what is outside of both windows."""
        entries = self.entries
        while len(entries) > 1 and not self._repairs(entries[0]) and not self._remembers(entries[0], now):
            self._drop_oldest()

    def shed(self, keep: int) -> int:
        """Drops the oldest batches except ``keep`` of them, when memory over all topics runs out; returns the bytes.

        None that sending waits for.
        """
        before = self.cost
        while len(self.entries) > keep and not self._is_awaited(self.entries[0]):
            self._drop_oldest()
        return before - self.cost

    def _drop_oldest(self) -> None:
        entry = self.entries.popleft()
        self.cost -= entry.size + OVERHEAD_BYTES * len(entry.bodies)

    def _repairs(self, entry: Entry) -> bool:
        if self._is_awaited(entry):
            return True
        return self.next_seq - entry.stop < REPAIR_MESSAGES and self.size - entry.bytes_before <= REPAIR_BYTES

    def _is_awaited(self, entry: Entry) -> bool:
        """Whether a subscriber has yet to get it and sending waits for that; so nothing may be lost meanwhile."""
        return bool(self.options.window) and entry.stop > self.behind_limit - self.options.window

    def _remembers(self, entry: Entry, now: float) -> bool:
        """Whether the history reaches back to the last message of a batch, whose headers don't count here."""
        options = self.options
        behind = self.size - entry.bytes_before - entry.size
        return (
            self.next_seq - entry.stop < options.history
            and behind + len(entry.bodies[-1]) <= options.history_bytes
            and (options.history_s is None or now - entry.at <= options.history_s)
        )

    @property
    def kept_from(self) -> int:
        """The oldest number that a repair can have; of the retained message there may be one older."""
        return self.entries[0].first_seq if self.entries else self.next_seq

    def history_from(self, now: float) -> int:
        """The oldest number that a late joiner gets, by the history's own bounds."""
        if not self.options.history or not self.entries:
            return self.next_seq
        # All bounds reach back from the end, so what is remembered is one stretch of the entries.
        index = bisect.bisect_left(self.entries, True, key=lambda entry: self._remembers(entry, now))
        if index == len(self.entries):
            return self.next_seq
        return max(self._fits_from(self.entries[index]), self.next_seq - self.options.history)

    def _fits_from(self, entry: Entry) -> int:
        """The oldest number of a batch that is within the history's bytes, together with all behind it."""
        room = self.options.history_bytes - (self.size - entry.bytes_before)
        seq = entry.first_seq
        if room >= 0:
            return seq
        headers = entry.headers or {}
        for body in entry.bodies:
            room += len(body)
            if seq in headers:
                room += measure_details(None, headers[seq])
            seq += 1
            if room >= 0:
                break
        return seq

    # -- answering -------------------------------------------------------------------------------------------

    def forgotten_up_to(self, start: int, stop: int) -> int:
        """Below which number nothing from ``start`` on is kept, also if that is beyond ``stop``; else ``start``."""
        kept_from = self.kept_from
        if self.retained is not None and start <= self.retained[0] < kept_from:
            kept_from = self.retained[0]
        return max(start, kept_from) if start < stop else start

    def read(self, start: int, stop: int) -> Iterator[Entry]:
        """The kept messages of ``[start, stop)``, in the batches that they left in."""
        entries = self.entries
        if self.retained is not None and start <= self.retained[0] < min(stop, self.kept_from):
            seq, body, headers = self.retained
            yield Entry(seq, [body], {seq: headers} if headers else None, 0.0, len(body), 0)
        index = bisect.bisect_right(entries, start, key=lambda entry: entry.stop)
        for position in range(index, len(entries)):
            entry = entries[position]
            if entry.first_seq >= stop:
                return
            yield part_of(entry, max(start, entry.first_seq), min(stop, entry.stop))

    def check(self) -> None:
        """The log's own invariants, for the simulator."""
        expected = self.entries[0].first_seq if self.entries else self.next_seq
        cost = 0
        for entry in self.entries:
            assert entry.first_seq == expected and entry.bodies, f"{self.topic}: a hole in the log at {expected}"
            expected = entry.stop
            cost += entry.size + OVERHEAD_BYTES * len(entry.bodies)
        assert expected == self.next_seq and cost == self.cost, f"{self.topic}: {expected} of {self.next_seq}"
        assert self.retained is None or self.retained[0] < self.next_seq


def part_of(entry: Entry, start: int, stop: int) -> Entry:
    """The messages ``[start, stop)`` of a batch; the whole of it without a copy."""
    if start == entry.first_seq and stop == entry.stop:
        return entry
    bodies = entry.bodies[start - entry.first_seq : stop - entry.first_seq]
    headers = headers_of(entry.headers, start, stop)
    return Entry(start, bodies, headers, entry.at, sum(map(len, bodies)), entry.bytes_before)


def headers_of(headers: Headers, start: int, stop: int) -> Headers:
    """Those of ``[start, stop)``; None if there are none."""
    if not headers:
        return None
    return {seq: each for seq, each in headers.items() if start <= seq < stop} or None


def _cut(
    staged: list[bytes], given: dict[int, tuple[dict[str, Any], int]], first_seq: int
) -> Iterator[tuple[list[bytes], Headers, int]]:
    """Batches within the limits of a frame; headers count like bodies."""
    bodies: list[bytes] = []
    headers: dict[int, dict[str, Any]] = {}
    size = 0
    for seq, body in enumerate(staged, first_seq):
        more = len(body)
        if seq in given:
            more += given[seq][1]
        if bodies and (size + more > MAX_FRAME_BYTES or len(bodies) == MAX_FRAME_MESSAGES):
            yield bodies, headers or None, size
            bodies, headers, size = [], {}, 0
        bodies.append(body)
        size += more
        if seq in given:
            headers[seq] = given[seq][0]
    if bodies:
        yield bodies, headers or None, size
