"""A stream of items within a call: both halves, and the credit between them. Items come in order and once (channel).

Credit is absolute ("items below this number") and given out in items, as many as make ``BYTES_UNDER_WAY``, if they are
as large as the largest of the last ones. Since credit cannot be taken back, a stream has to earn it: the window opens
by no more than the items that have come. So small ones, such as a header, open it little for large ones behind them.

Bytes have a bound of their own, since nobody knows how large the next item is: the producer, who alone knows sizes,
stops as soon as ``BYTES_UNDER_WAY`` are not known to be taken. So that it hears of it in time, and not of each small
item, it marks some items, and the consumer tells at once when these were taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from meshmsg.errors import ProtocolError

WINDOW_ITEMS = 16  # until the size of the items is known
MIN_WINDOW_ITEMS = 2  # so that one can be under way while the other is worked on
MAX_WINDOW_ITEMS = 256
BYTES_UNDER_WAY = 4 * 2**20
RECENT_ITEMS = 16  # a size is forgotten after so many items at least, and twice as many at most
MARKS = 4  # of so many parts of its bytes a producer awaits word
NO_LIMIT = 2**62  # in bytes, for consumers that name none: they do not tell what was taken either


class OutStream:
    """The producer's half: how many items may still leave.

    ``wake`` is called when there is more room, and when the stream is cut.
    """

    __slots__ = (
        "_cut",
        "_full_bytes",
        "_mark_bytes",
        "_marked_bytes",
        "_marks",
        "_unmarked_bytes",
        "allowed",
        "ended",
        "room",
        "sent",
        "wake",
    )

    def __init__(self, allowed: int = 0, limit_bytes: int = NO_LIMIT) -> None:
        self.allowed = allowed  # the other side takes items below this number
        self.sent = 0
        # How many items may be sent now, the last of them being the one that uses up ``room_bytes``; none after a cut.
        self.room = allowed
        self.ended = False  # no more will come, and whoever gets the call is still to be told
        self.wake: Callable[[], None] | None = None
        self._cut: str | None = None
        self._marks: deque[tuple[int, int]] = deque()  # (items up to the mark, bytes since the one before)
        self._marked_bytes = 0  # that these have together, and that are not known to be taken
        self._unmarked_bytes = 0  # since the last mark
        self._mark_bytes: int  # with so many there is the next one
        self._full_bytes: int  # with so many marked no item may leave; one mark's bytes before the limit
        self._limit(limit_bytes)

    def _limit(self, limit_bytes: int) -> None:
        self._mark_bytes = max(1, limit_bytes // MARKS)
        self._full_bytes = max(1, limit_bytes - self._mark_bytes)

    @property
    def room_bytes(self) -> int:
        """The item may leave with which these are used up, whatever its size, and none after it.

        With ``room`` for an item there is at least one, or who waits for room first and for bytes then is never told.
        """
        return max(1, self._full_bytes - self._marked_bytes - self._unmarked_bytes)

    @property
    def mark_bytes(self) -> int:
        """How many bytes may leave together; the last item may exceed it. Others behind it would be marked too late."""
        return self._mark_bytes - self._unmarked_bytes

    @property
    def cut(self) -> str | None:
        """Why nobody takes more items; None as long as somebody does. The first reason counts."""
        return self._cut

    @cut.setter
    def cut(self, why: str) -> None:
        if self._cut is None:
            self._cut = why
            self.room = 0
            self._tell()

    def grant(self, upto: int, taken: int = 0, limit_bytes: int | None = None) -> None:
        """The other side takes items below ``upto``, and took those below ``taken``; less than before is no news.

        It names ``limit_bytes`` once, if it does at all, before anything was sent.
        """
        if limit_bytes is not None and not self.sent:
            self._limit(limit_bytes)
        news = upto > self.allowed
        if news:
            self.allowed = upto
        marks = self._marks
        while marks and marks[0][0] <= taken:
            self._marked_bytes -= marks.popleft()[1]
            news = True
        if news and self._cut is None:
            if self._marked_bytes < self._full_bytes:
                self.room = self.allowed - self.sent
            self._tell()

    def take(self, count: int, size_bytes: int = 0) -> bool:
        """So many items are sent now, at most ``room``. Says whether the last one has to be marked."""
        assert 0 <= count <= self.room, f"{count} items sent, room for {self.room}"
        self.sent += count
        self.room -= count
        size_bytes += self._unmarked_bytes
        if size_bytes < self._mark_bytes:
            self._unmarked_bytes = size_bytes
            return False
        self._marks.append((self.sent, size_bytes))
        self._marked_bytes += size_bytes
        self._unmarked_bytes = 0
        if self._marked_bytes >= self._full_bytes:
            self.room = 0
        return True

    def forget_credit(self) -> None:
        """Somebody else gets the call, to whom nothing was sent, and says itself what it takes."""
        self.allowed = self.room = 0
        self._limit(NO_LIMIT)

    def _tell(self) -> None:
        if self.wake is not None:
            self.wake()

    def check(self) -> None:
        """Own invariants, for the simulator."""
        assert 0 <= self.sent <= self.allowed, f"sent {self.sent} items, allowed {self.allowed}"
        full = self._marked_bytes >= self._full_bytes
        assert self.room == (0 if full or self._cut is not None else self.allowed - self.sent), "wrong room"
        marked = sum(size for _, size in self._marks)
        assert self._marked_bytes == marked, f"{self._marked_bytes} bytes are marked, counted {marked}"
        assert self._unmarked_bytes < self._mark_bytes, f"{self._unmarked_bytes} bytes without a mark"


class InStream:
    """The consumer's half: items that wait for the application, and how many more may come.

    ``wake`` is called when items came, and at the end. ``limit`` is the credit that was announced: a caller announces
    the first window with its CALL, a server announces nothing before the method starts (``announced=0``).
    """

    __slots__ = (
        "_items",
        "_largest",
        "_largest_before",
        "_marks",
        "_measured",
        "_received",
        "_sized",
        "ended",
        "fault",
        "lent",
        "limit",
        "wake",
        "window",
    )

    def __init__(self, window_items: int = WINDOW_ITEMS, announced: int | None = None) -> None:
        self.window = window_items
        self.limit = window_items if announced is None else announced
        self.wake: Callable[[], None] | None = None
        self.ended = False  # no more will come
        self.fault: Any = None  # why, if that is not the producer's own end
        self.lent = 0  # items that were taken for the application, which has not got them yet
        self._items: deque[Any] = deque()
        self._received = 0
        self._marks: list[int] = []  # the producer waits for word that items below these were taken
        # Bytes of the largest of the last items: those that _measured counts, and the RECENT_ITEMS or more before them.
        self._largest = self._largest_before = 0.0
        self._measured = 0
        self._sized = 0  # items whose size is known and that the window has not grown for

    # -- from the producer -----------------------------------------------------------------------------------

    def put(self, items: Sequence[Any], size_bytes: int = 0, *, marked: bool = False) -> None:
        """Items came, so many encoded bytes together (0: unknown). Raises ``ProtocolError`` beyond the credit."""
        if self.ended:
            raise ProtocolError("an item after its stream's end")
        received = self._received + len(items)
        if received > self.limit:
            raise ProtocolError(f"{received} items of a stream, and credit for {self.limit}")
        self._received = received
        self._items.extend(items)
        if marked:
            self._marks.append(received)
        if size_bytes and items:
            self._fit(size_bytes / len(items), len(items))
        if self.wake is not None:
            self.wake()

    def end(self, fault: Any = None) -> None:
        """No more will come; ``fault`` says why, if the producer did not end it. The first end counts."""
        if self.ended:
            return
        self.ended = True
        self.fault = fault
        if self.wake is not None:
            self.wake()

    def _fit(self, item_bytes: float, count: int) -> None:
        """Fits the window to the size of the items: at once if they are larger, and step by step if smaller."""
        if self._measured >= RECENT_ITEMS:
            self._largest_before, self._largest, self._measured = self._largest, 0.0, 0
        self._measured += count
        self._largest = max(self._largest, item_bytes)
        largest = max(self._largest, self._largest_before)
        fitting = max(MIN_WINDOW_ITEMS, min(MAX_WINDOW_ITEMS, int(BYTES_UNDER_WAY / largest)))
        self._sized += count
        if fitting <= self.window:
            self.window, self._sized = fitting, 0
        elif self._sized >= self.window:  # doubles, at most
            self.window, self._sized = min(fitting, 2 * self.window), 0

    # -- for the application ---------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Items that can be taken now."""
        return len(self._items)

    def take(self) -> Any:
        """The next item; ``credit_due`` may be news after it. Raises ``IndexError`` if none waits."""
        return self._items.popleft()

    def take_all(self) -> list[Any]:
        """Every item that waits."""
        items = list(self._items)
        self._items.clear()
        return items

    @property
    def taken(self) -> int:
        """How many items the application has got."""
        return self._received - len(self._items) - self.lent

    def credit_due(self) -> int | None:
        """The credit to announce now, which counts as announced from here on; None if it is not worth a word yet.

        It is when half of the window was consumed, as usual for credit: often enough that the producer never waits for
        one who keeps up, and seldom enough to cost nothing. And when items were taken that the producer marked.
        """
        if self.ended:
            return None
        upto = self._received - len(self._items) + self.window
        if upto - self.limit < (self.window + 1) // 2 and not (self._marks and self._marks[0] <= self.taken):
            return None
        while self._marks and self._marks[0] <= self.taken:
            del self._marks[0]
        self.limit = max(upto, self.limit)
        return self.limit

    def check(self) -> None:
        """Own invariants, for the simulator."""
        assert self._received <= self.limit, f"received {self._received} items, credit for {self.limit}"
        assert len(self._items) + self.lent <= self._received
        assert self._marks == sorted(self._marks), f"marks at {self._marks}"
        assert MIN_WINDOW_ITEMS <= self.window <= MAX_WINDOW_ITEMS
