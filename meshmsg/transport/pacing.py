"""Large published messages leave piece by piece, so that small ones of other topics find their way between them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

Part: TypeAlias = bytes | memoryview

WHOLE = 3  # parts of a message that is not in pieces
# Of what waits, so much is sent in one turn.
TURN_BYTES = 2**20
# An application that publishes faster gets no more room: then the oldest leaves at once, whatever is behind it. Who
# cannot take so much misses some of it then.
WAITING_BYTES = 64 * 2**20


class Pacing:
    """What a publisher has yet to send: a line for each topic that has a message in pieces, and the first has its turn.

    One message in pieces is under way at a time. The turn passes on behind it, and behind the whole ones that follow
    it in its line; so topics share fairly, and each keeps its order.
    """

    __slots__ = ("_bytes", "_lines", "_next", "_send", "_turn_bytes", "_waiting_bytes")

    def __init__(
        self,
        send: Callable[[Sequence[Part]], bool],
        turn_bytes: int = TURN_BYTES,
        waiting_bytes: int = WAITING_BYTES,
    ) -> None:
        self._send = send
        self._turn_bytes = turn_bytes
        self._waiting_bytes = waiting_bytes
        # By topic. Not a dict: one that loses its first would look past all that went before.
        self._lines: OrderedDict[Part, deque[Sequence[Part]]] = OrderedDict()
        self._next = 1  # of the parts that are under way
        self._bytes = 0  # of all that waits

    def publish(self, parts: Sequence[Part]) -> bool:
        """Sends ``[topic, header, bodies]`` at once, unless messages of its topic wait; more parts wait for a turn.

        Returns what ``send`` did; True for what waits.
        """
        topic = parts[0]
        if len(parts) == WHOLE and not (self._lines and topic in self._lines):
            return self._send(parts)
        line = self._lines.get(topic)
        if line is None:
            line = self._lines[topic] = deque()
        line.append(parts)
        self._bytes += sum(map(len, parts))
        while self._bytes > self._waiting_bytes:
            self._step()
        return True

    def advance(self) -> None:
        """Sends what is due in one turn."""
        left = self._bytes - self._turn_bytes
        while self._lines and self._bytes > left:
            self._step()

    def flush(self) -> None:
        """Sends everything."""
        while self._lines:
            self._step()

    def _step(self) -> None:
        topic, line = next(iter(self._lines.items()))
        parts = line[0]
        begin, self._next = self._next, self._next + 2
        message = parts if len(parts) == WHOLE else (topic, parts[begin], parts[begin + 1])
        self._bytes -= len(parts[begin]) + len(parts[begin + 1])
        if self._next >= len(parts):
            self._next = 1
            self._bytes -= len(topic)
            line.popleft()
            if not line:
                del self._lines[topic]
            elif len(line[0]) > WHOLE:
                self._lines.move_to_end(topic)
        self._send(message)

    def __bool__(self) -> bool:
        """Whether something waits."""
        return bool(self._lines)
