"""What one subscription of this node holds: a bounded buffer over all publishers, in the order of arrival."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

from meshmsg.engine.binding import Where, fulfils
from meshmsg.engine.topic_log import Headers, headers_of
from meshmsg.wire.frames import MAX_SEQ

Replay = Literal["none", "latest", "history"]

BUFFER = 65_536
BUFFER_BYTES = 64 * 2**20
# A last will is no message of its publisher and has none of its numbers: behind this, where its topic stood.
FIRST_WILL = MAX_SEQ


class Delivery(NamedTuple):
    """Messages of one topic and publisher in order: ``bodies[i]`` has the number ``first_seq + i``.

    ``headers`` are by number; ``size`` is about what the bodies took on the wire.
    """

    topic: str
    publisher: str
    first_seq: int
    bodies: list[Any]
    headers: Headers
    size: int


@dataclass(slots=True)
class Gap:
    """Messages ``start`` to ``stop``, without the latter, that this subscription will never get."""

    topic: str
    publisher: str
    start: int
    stop: int

    @property
    def missed(self) -> int:
        """How many they are."""
        return self.stop - self.start


class Subscription:
    """One ``sub`` of the application: its pattern, its policy, and what it has not taken yet.

    With ``latest`` only the newest value of each topic and publisher waits: between publishers there is no order, and
    one's old value, replayed late, must not hide another's new one. Without, messages wait in order up to ``buffer``
    and ``buffer_bytes``; what does not fit stays with its publisher and is asked for later. Gaps are part of the
    order; a conflating subscription is told of them before its values.

    With ``where``, messages whose headers lack any of it are passed over as they come: they take no room.
    """

    def __init__(
        self,
        pattern: str,
        *,
        latest: bool = False,
        replay: Replay = "none",
        buffer: int = BUFFER,
        buffer_bytes: int = BUFFER_BYTES,
        where: Where = (),
    ) -> None:
        self.pattern = pattern
        self.latest = latest
        self.replay = replay
        self.buffer = buffer
        self.buffer_bytes = buffer_bytes
        self.where = where
        self.version = 0  # of this node's offers that brought it
        self.received = 0
        self.conflated = 0  # messages that a newer one made needless
        self.missed = 0
        self.waiting = 0  # messages in the buffer
        self.waiting_bytes = 0
        self.held = 0  # messages that wait for others before them, or for a start
        self.held_bytes = 0
        self.refused = False  # something did not fit since half of the buffer was free
        self.on_room: Callable[[], None] = lambda: None
        self.on_arrival: Callable[[Subscription], None] = lambda subscription: None
        self.name = pattern  # for whoever is told of arrivals
        self._told = False  # that something waits
        self._items: deque[Delivery | Gap] = deque()
        self._newest: dict[tuple[str, str], Delivery] = {}
        self._wills: set[tuple[str, str]] = set()  # that wait although the buffer was full
        self._gaps: dict[tuple[str, str], Gap] = {}  # the last thing in the buffer of a publisher's topic

    @property
    def room(self) -> int:
        """How many more messages fit."""
        return self.buffer - self.waiting if self.waiting_bytes < self.buffer_bytes else 0

    # -- filling ---------------------------------------------------------------------------------------------

    def put(
        self,
        topic: str,
        publisher: str,
        first_seq: int,
        bodies: list[Any],
        headers: Headers,
        size: int,
        *,
        wanted: bool = False,
    ) -> int:
        """Takes as many of the messages as fit, from the first on, and returns how many, those passed over included.

        ``wanted`` says that they are known to be what ``where`` asks for.
        """
        if self.where and not wanted:
            return self._put_wanted(topic, publisher, first_seq, bodies, headers, size)
        total = len(bodies)
        room = self.room
        if total > room:
            self.refused = True
            if room <= 0:
                return 0
            size = size * room // total
            total = room
            bodies = bodies[:room]
        if headers:
            headers = headers_of(headers, first_seq, first_seq + total)
        self._items.append(Delivery(topic, publisher, first_seq, bodies, headers, size))
        self._tell()
        self.received += total
        self.waiting += total
        self.waiting_bytes += size
        if self._gaps:
            self._gaps.pop((publisher, topic), None)
        return total

    def _put_wanted(
        self, topic: str, publisher: str, first_seq: int, bodies: list[Any], headers: Headers, size: int
    ) -> int:
        total = len(bodies)
        if not headers:
            return total
        seqs = range(first_seq, first_seq + total)
        for wanted, run in groupby(seqs, lambda seq: fulfils(headers.get(seq), self.where)):
            if wanted:
                start, *rest = run
                part = bodies[start - first_seq : start - first_seq + 1 + len(rest)]
                part_size = size * len(part) // total
                taken = self.put(topic, publisher, start, part, headers, part_size, wanted=True)
                if taken < len(part):
                    return start - first_seq + taken
        return total

    def put_latest(self, delivery: Delivery) -> bool:
        """Takes one message in place of an older one of its topic, unless it does not fit."""
        place = (delivery.publisher, delivery.topic)
        old = self._newest.get(place)
        if old is not None:
            self._drop_old(old)
        if self.waiting >= self.buffer or (self.waiting and self.waiting_bytes + delivery.size > self.buffer_bytes):
            self.refused = True
            self._newest.pop(place, None)
            return False
        self._newest[place] = delivery  # where the old one was: a busy topic does not starve
        self._tell()
        self.received += 1
        self.waiting += 1
        self.waiting_bytes += delivery.size
        return True

    def put_will(self, will: Delivery) -> None:
        """Takes a publisher's last will, although the buffer may be full: nobody is left who could repeat it."""
        place = (will.publisher, will.topic)
        if self.where and not fulfils((will.headers or {}).get(will.first_seq), self.where):
            return
        if self.room <= 0 and (not self.latest or place not in self._newest):
            if place in self._wills:
                return  # it went, came back and went again, and the application takes nothing
            self._wills.add(place)
        if self.latest:
            if place in self._newest:
                self._drop_old(self._newest[place])
            self._newest[place] = will
        else:
            self._gaps.pop(place, None)
            self._items.append(will)
        self.received += 1
        self.waiting += 1
        self.waiting_bytes += will.size
        self._tell()

    def _drop_old(self, old: Delivery) -> None:
        self.conflated += 1
        self.waiting -= 1
        self.waiting_bytes -= old.size

    def miss(self, topic: str, publisher: str, start: int, stop: int) -> None:
        """Notes messages that cannot be had any more; with those right before them they are one gap."""
        self.missed += stop - start
        gap = self._gaps.get((publisher, topic))
        if gap is not None and gap.stop == start:
            gap.stop = stop
            return
        gap = self._gaps[publisher, topic] = Gap(topic, publisher, start, stop)
        self._items.append(gap)
        self._tell()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self.on_arrival(self)

    # -- taking ----------------------------------------------------------------------------------------------

    def take(self, limit: int) -> list[Delivery | Gap]:
        """Hands out up to ``limit`` messages, with the gaps between and behind them; with a limit of 0, gaps only."""
        self._told = False
        taken: list[Delivery | Gap] = []
        items = self._items
        while items and (limit > 0 or isinstance(items[0], Gap)):
            item = items.popleft()
            if isinstance(item, Gap):
                if self._gaps.get((item.publisher, item.topic)) is item:
                    del self._gaps[item.publisher, item.topic]
                taken.append(item)
                continue
            total = len(item.bodies)
            if total > limit:
                first, rest = _split(item, limit)
                items.appendleft(rest)
                item, total = first, limit
            limit -= total
            self.waiting -= total
            self.waiting_bytes -= item.size
            taken.append(item)
        while self._newest and limit > 0:
            value = self._newest.pop(next(iter(self._newest)))
            limit -= 1
            self.waiting -= 1
            self.waiting_bytes -= value.size
            taken.append(value)
        if self._wills:
            self._wills -= {(item.publisher, item.topic) for item in taken if _is_will(item)}
        if self.refused and 2 * self.waiting <= self.buffer and 2 * self.waiting_bytes <= self.buffer_bytes:
            self.refused = False
            self.on_room()
        return taken

    def count_fitting(self, least: int, most: int, most_bytes: int) -> int:
        """How many messages to take at once: ``least``; up to ``most`` if they have no more than ``most_bytes``."""
        if self.waiting_bytes <= most_bytes:
            return max(least, most)
        count = 0
        for item in self._items:
            if most_bytes <= 0 or count >= most:
                break
            if isinstance(item, Delivery):
                total = len(item.bodies)
                count += total if item.size <= most_bytes else total * most_bytes // item.size
                most_bytes -= item.size
        return max(least, min(count, most))

    def __len__(self) -> int:
        """Messages and gaps that wait, batches counted as one."""
        return len(self._items) + len(self._newest)

    def check(self) -> None:
        """The buffer's own invariants, for the simulator."""
        deliveries = [item for item in self._items if isinstance(item, Delivery)] + list(self._newest.values())
        assert self.waiting == sum(len(item.bodies) for item in deliveries)
        assert self.waiting <= self.buffer + len(self._wills)
        assert self.waiting_bytes == sum(item.size for item in deliveries)
        assert self.held <= self.buffer
        for (publisher, topic), gap in self._gaps.items():
            last = next(item for item in reversed(self._items) if (item.publisher, item.topic) == (publisher, topic))
            assert last is gap, f"{topic}: something came behind its last gap"


def _is_will(item: Delivery | Gap) -> bool:
    return isinstance(item, Delivery) and item.first_seq >= FIRST_WILL


def _split(delivery: Delivery, count: int) -> tuple[Delivery, Delivery]:
    topic, publisher, first_seq, bodies, headers, size = delivery
    middle = first_seq + count
    first_size = size * count // len(bodies)
    return (
        Delivery(topic, publisher, first_seq, bodies[:count], headers_of(headers, first_seq, middle), first_size),
        Delivery(
            topic,
            publisher,
            middle,
            bodies[count:],
            headers_of(headers, middle, first_seq + len(bodies)),
            size - first_size,
        ),
    )
