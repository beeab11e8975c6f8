"""The message in pieces that is on its way from one publisher; there is one at a time."""

from __future__ import annotations

from typing import Any

from meshmsg.wire.frames import Published

# Without another piece for so long, the rest is taken for lost. On a line of 1.4 Mbit/s a piece takes as long.
STALLED_S = 1.5
# A buffer up to this is kept for the next message.
SPARE_BYTES = 16 * 2**20


class Spare:
    """A buffer that a node's assemblies leave to one another: pages that are new each time cost more than the copy."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = memoryview(b"")

    def take(self, size: int) -> memoryview:
        """A buffer of at least this size."""
        buffer, self._buffer = self._buffer, memoryview(b"")
        return buffer if len(buffer) >= size else memoryview(bytearray(size))

    def give(self, buffer: memoryview) -> None:
        """Nobody reads this one any more."""
        if len(self._buffer) < len(buffer) <= SPARE_BYTES:
            self._buffer = buffer


class Assembly:
    """Collects the pieces of one message, in order: with one missing, the message is, and is repaired as any other.

    A piece is copied as it comes, and so ZeroMQ can use its memory for the next. ``decode_published`` has seen to it
    that no message has more pieces than this node takes.
    """

    __slots__ = ("_buffer", "_count", "_due", "_first_seq", "_headers", "_next", "_size", "_spare", "topic")

    def __init__(self, spare: Spare) -> None:
        self.topic: str | None = None  # None while nothing is on its way
        self._spare = spare
        self._first_seq = 0
        self._count = 0
        self._next = 0  # piece
        self._headers: dict[int, dict[str, Any]] | None = None
        self._buffer = memoryview(b"")
        self._size = 0  # of what is in it
        self._due = 0.0

    def add(self, piece: Published, now: float) -> Published | None:
        """Takes a piece, and returns the whole message with the last one. What fits nowhere ends what was on its way.

        The payload of the whole is good until another piece is added, to this assembly or one with the same spare.
        """
        assert piece.part is not None
        index, count = piece.part
        if not index:
            self._begin(piece, count)
        elif (self.topic, self._first_seq, self._count) != (piece.topic, piece.first_seq, count):
            self.drop()
            return None
        elif index != self._next:
            self.drop()
            return None
        end = self._size + len(piece.payload)
        self._buffer[self._size : end] = piece.payload
        self._next, self._size = index + 1, end
        self._due = now + STALLED_S
        if index < count - 1:
            return None
        payload: Any = self._buffer[:end]
        whole = piece._replace(headers=self._headers, payload=payload, part=None)
        self.drop()
        return whole

    def _begin(self, first: Published, count: int) -> None:
        self.drop()
        self.topic, self._first_seq, self._count = first.topic, first.first_seq, count
        self._headers = first.headers
        self._buffer = self._spare.take(count * len(first.payload))  # all but the last are as long

    def drop(self) -> None:
        """What was collected is of no use."""
        if self.topic is not None:
            self._spare.give(self._buffer)
            self.topic = self._headers = None
            self._buffer = memoryview(b"")
            self._next = self._size = 0

    def drop_within(self, topic: str, start: int, stop: int) -> None:
        """Drops a message of this topic from ``start`` to ``stop``, without the latter: it came another way."""
        if self.topic == topic and start <= self._first_seq < stop:
            self.drop()

    def arriving(self, topic: str, now: float) -> int | None:
        """The number from which on a topic's messages are on their way; None without a sign of it."""
        return self._first_seq if self.topic == topic and now < self._due else None
