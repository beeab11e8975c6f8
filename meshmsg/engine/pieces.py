"""The message in pieces that is on its way from one publisher; there is one at a time."""

from __future__ import annotations

from typing import Any

from meshmsg.wire.frames import Published
from meshmsg.wire.reading import read_payload

# Without another piece for so long, the rest is taken for lost. On a line of 1.4 Mbit/s a piece takes as long.
STALLED_S = 1.5


class Assembly:
    """Collects the pieces of one message, in order: with one missing, the message is, and is repaired as any other.

    They stay in ZeroMQ's memory until the last one has come: then each large byte string in them is copied to where it
    stays. ``decode_published`` has seen to it that no message has more pieces than this node takes.
    """

    __slots__ = ("_count", "_due", "_first_seq", "_headers", "_pieces", "topic")

    def __init__(self) -> None:
        self.topic: str | None = None  # None while nothing is on its way
        self._first_seq = 0
        self._count = 0
        self._headers: dict[int, dict[str, Any]] | None = None
        self._pieces: list[bytes] = []
        self._due = 0.0

    def add(self, piece: Published, now: float) -> Published | None:
        """Takes a piece; returns the whole message with the last one. What fits nowhere ends what was on its way."""
        assert piece.part is not None
        index, count = piece.part
        if not index:
            self._begin(piece, count)
        elif (self.topic, self._first_seq, self._count) != (piece.topic, piece.first_seq, count):
            self.drop()
            return None
        elif index != len(self._pieces):
            self.drop()
            return None
        self._pieces.append(piece.payload)
        self._due = now + STALLED_S
        if index < count - 1:
            return None
        payload: Any = read_payload(self._pieces)
        whole = piece._replace(headers=self._headers, payload=payload, part=None)
        self.drop()
        return whole

    def _begin(self, first: Published, count: int) -> None:
        self.drop()
        self.topic, self._first_seq, self._count = first.topic, first.first_seq, count
        self._headers = first.headers

    def drop(self) -> None:
        """What was collected is of no use."""
        if self.topic is not None:
            self.topic = self._headers = None
            self._pieces = []

    def drop_within(self, topic: str, start: int, stop: int) -> None:
        """Drops a message of this topic from ``start`` to ``stop``, without the latter: it came another way."""
        if self.topic == topic and start <= self._first_seq < stop:
            self.drop()

    def arriving(self, topic: str, now: float) -> int | None:
        """The number from which on a topic's messages are on their way; None without a sign of it."""
        return self._first_seq if self.topic == topic and now < self._due else None
