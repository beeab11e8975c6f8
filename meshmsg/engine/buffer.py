"""What a consumer has received and nobody has taken yet: whole arrivals, opened one by one when somebody asks."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from meshmsg.engine.lane import InLane
from meshmsg.message import Arrival, Batch, Message
from meshmsg.wire import frames


class Clock(Protocol):
    """Tells the engine's time; asked only where time matters."""

    def now(self) -> float: ...


class Buffer:
    """A line of messages, most of them still as they arrived."""

    def __init__(self) -> None:
        self.arrivals: deque[Arrival] = deque()
        self.opened: deque[Message] = deque()  # those before them, one by one; always the same deque

    @property
    def waiting(self) -> int:
        """Messages that nobody has taken yet."""
        return len(self.opened) + sum(map(len, self.arrivals))

    def take_one(self, clock: Clock) -> Message | None:
        """Hands out one message; from here on it is started and needs its verdict. None if there is none."""
        opened, arrivals = self.opened, self.arrivals
        while not opened:
            if not arrivals:
                return None
            arrival = arrivals.popleft()
            # Who has a time to live came alone, so nothing expires between the opening and the taking.
            if arrival.expires_at is None or not self._is_expired(arrival, clock.now()):
                opened.extend(arrival.open())
        return opened.popleft()

    def take(self, limit: int, now: float) -> Batch:
        """Hands out up to ``limit`` messages at once."""
        taken: list[Arrival] = []
        self._close_opened()
        arrivals = self.arrivals
        while arrivals and limit:
            arrival = arrivals.popleft()
            if arrival.expires_at is not None and self._is_expired(arrival, now):
                continue
            if len(arrival) > limit:
                arrivals.appendleft(arrival.part(limit, len(arrival)))
                arrival = arrival.part(0, limit)
            taken.append(arrival)
            limit -= len(arrival)
        return Batch(arrivals=taken)

    def _close_opened(self) -> None:
        """What was opened to be taken one by one waits like the rest again."""
        while self.opened:
            self.arrivals.appendleft(self.opened.pop()._alone())

    def take_back(self) -> deque[Arrival]:
        """Everything that waits, which waits no more."""
        self._close_opened()
        arrivals, self.arrivals = self.arrivals, deque()
        return arrivals

    @staticmethod
    def _is_expired(arrival: Arrival, now: float) -> bool:
        if arrival.expires_at is None or now < arrival.expires_at:
            return False
        lane = arrival.lane
        assert isinstance(lane, InLane)
        lane.judge(arrival.first_seq, frames.EXPIRED, None, "its time to live ended in the consumer's buffer")
        return True
