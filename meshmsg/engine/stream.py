"""One publisher's topic as one subscription sees it: in order, each message once, what is missing known."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from meshmsg.engine.subscription import Delivery, Subscription
from meshmsg.engine.topic_log import Headers, headers_of


class _Held(NamedTuple):
    first_seq: int
    bodies: list[Any]
    headers: Headers
    size: int

    @property
    def stop(self) -> int:
        return self.first_seq + len(self.bodies)


class Stream:
    """Numbers from ``expected`` on are wanted; below ``known`` they exist. Without a start yet, messages are held.

    A replay is nothing but a start that lies in the past: what is missing from there on is asked for.
    """

    __slots__ = ("began", "expected", "held", "known", "live_from", "publisher", "subscription", "topic")

    def __init__(self, topic: str, publisher: str, subscription: Subscription) -> None:
        self.topic = topic
        self.publisher = publisher
        self.subscription = subscription
        self.expected: int | None = None
        self.known = 0
        self.live_from = 0  # older messages were published before this subscription was live
        self.began = False
        self.held: deque[_Held] = deque()  # in order, with holes between them

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be missing, or nothing can be said yet."""
        return self.expected is None or self.expected >= self.known

    def begin(self, next_seq: int, history_from: int, retained: bool) -> None:
        """The publisher confirmed the subscription when its topic stood at ``next_seq``.

        What arrived before is not thrown away: the filters worked already, or this is not the first confirmation.
        """
        assert self.expected is None
        subscription = self.subscription
        expected = next_seq
        if subscription.replay == "history":
            expected = history_from
        elif subscription.replay == "latest" and retained:
            expected = next_seq - 1
        if self.held:
            expected = min(expected, self.held[0].first_seq)
        if subscription.latest:
            expected = max(expected, next_seq - 1)  # the rest of a history would not be shown
        self.expected = expected
        self.live_from = next_seq
        self.learn(next_seq)
        self._release()

    def learn(self, next_seq: int) -> None:
        """The publisher said how far the topic is."""
        self.known = max(self.known, next_seq)

    def needs(self, first_seq: int, total: int) -> bool:
        """Whether there is anything new in a batch; without, it need not be decoded."""
        return self.expected is None or first_seq + total > self.expected

    def accept(self, first_seq: int, bodies: list[Any], headers: Headers, size: int) -> None:
        """Takes a batch that arrived, live or asked for."""
        stop = first_seq + len(bodies)
        self.known = max(self.known, stop)
        expected = self.expected
        if expected is None or (first_seq > expected and not self.subscription.latest):
            self._hold(_Held(first_seq, bodies, headers, size))
        elif stop > expected:
            self._pass_on(_Held(first_seq, bodies, headers, size))
            if self.held:
                self._release()

    def _pass_on(self, batch: _Held) -> bool:
        """Gives the subscription what it has not had of a batch that connects; False if not all of that fitted."""
        assert self.expected is not None
        if self.subscription.latest:
            return self._conflate(batch)
        if batch.first_seq < self.expected:
            batch = _behind(batch, self.expected)
        taken = self.subscription.put(self.topic, self.publisher, *batch)
        self.expected += taken
        self.began = self.began or taken > 0
        return taken == len(batch.bodies)

    def _conflate(self, batch: _Held) -> bool:
        """Only the last message counts; everything before it is skipped, arrived or not."""
        assert self.expected is not None
        seq = batch.stop - 1
        size = batch.size // len(batch.bodies)
        headers = headers_of(batch.headers, seq, batch.stop)
        if not self.subscription.put_latest(
            Delivery(self.topic, self.publisher, seq, batch.bodies[-1:], headers, size)
        ):
            return False
        self.subscription.conflated += max(0, seq - self.expected)
        self.expected = batch.stop
        self.began = True
        return True

    def _hold(self, batch: _Held) -> None:
        """Keeps a batch for later, if it lies behind all others: whatever else is missing is asked for in order."""
        subscription = self.subscription
        if self.held and batch.first_seq < self.held[-1].stop:
            if batch.stop <= self.held[-1].stop:
                return
            batch = _behind(batch, self.held[-1].stop)
        count = len(batch.bodies)
        if subscription.held + count <= subscription.buffer and subscription.held_bytes < subscription.buffer_bytes:
            self.held.append(batch)
            subscription.held += count
            subscription.held_bytes += batch.size

    def _unhold(self) -> _Held:
        batch = self.held.popleft()
        self.subscription.held -= len(batch.bodies)
        self.subscription.held_bytes -= batch.size
        return batch

    def _release(self) -> bool:
        """Passes on what is held and connects now; False if the subscription is full."""
        assert self.expected is not None
        while self.held and (self.held[0].first_seq <= self.expected or self.subscription.latest):
            batch = self._unhold()
            if batch.stop > self.expected and not self._pass_on(batch):
                return False  # what did not fit is asked for when there is room
        return True

    def forget(self, up_to: int) -> None:
        """The publisher has nothing below ``up_to`` any more: what did not arrive is a gap.

        That may reach beyond what this subscription had room to ask for. What it does not know of yet is no gap: it may
        be on its way.
        """
        if self.expected is None:
            return
        up_to = min(up_to, self.known)
        while self.expected < up_to:
            self._miss(min(up_to, self.held[0].first_seq) if self.held else up_to)
            if not self._release():
                return

    def _miss(self, stop: int) -> None:
        assert self.expected is not None
        start = self.expected
        if not self.began and start < self.live_from:
            start = min(stop, self.live_from)  # the replay begins later than it was said; that is no gap
        if start < stop:
            self.subscription.miss(self.topic, self.publisher, start, stop)
            self.began = True
        self.expected = max(self.expected, stop)

    @property
    def overdue(self) -> bool:
        """Whether what is missing is certainly not on its way: later messages came, or it is a replay."""
        return bool(self.held) or (self.expected is not None and self.expected < self.live_from)

    def want(self) -> tuple[int, int] | None:
        """The first stretch to ask for, as far as there is room for it; without room, the subscription tells of it."""
        if self.complete or self.subscription.refused:
            return None
        assert self.expected is not None
        if self.subscription.room <= 0:
            self.subscription.refused = True
            return None
        if self.subscription.latest:
            return self.known - 1, self.known
        stop = self.held[0].first_seq if self.held else self.known
        stop = min(stop, self.expected + self.subscription.room)
        return (self.expected, stop) if stop > self.expected else None

    def finish(self) -> None:
        """The publisher is gone for good: what is held is passed on, and what is missing is a gap."""
        if self.expected is None:
            if not self.held:
                return
            self.expected = self.held[0].first_seq
            self.live_from = self.expected
        while self.expected < self.known:
            if self._release():
                if self.expected < self.known:
                    self._miss(self.held[0].first_seq if self.held else self.known)
            else:
                self._miss(self.held[0].first_seq if self.held else self.known)

    def drop(self) -> None:
        """The subscription is gone."""
        while self.held:
            self._unhold()

    def check(self) -> None:
        """The stream's own invariants, for the simulator."""
        end = self.expected
        for batch in self.held:
            assert end is None or batch.first_seq >= end, f"{self.topic}: held messages out of order"
            end = batch.stop
        assert end is None or end <= max(self.known, self.expected or 0)
        if self.held and self.expected is not None:
            assert self.held[0].first_seq > self.expected, f"{self.topic}: holds what is wanted"


def _behind(batch: _Held, start: int) -> _Held:
    """What a batch has from ``start`` on."""
    skip = start - batch.first_seq
    size = batch.size * (len(batch.bodies) - skip) // len(batch.bodies)
    return _Held(start, batch.bodies[skip:], headers_of(batch.headers, start, batch.stop), size)
