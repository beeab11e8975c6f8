"""A subscription's messages on their way to the application, in the shape that every consumer takes them in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from meshmsg.engine.buffer import Buffer, Clock
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.lane import InLane
from meshmsg.engine.subscription import FIRST_WILL, Delivery, Subscription
from meshmsg.engine.subscription import Gap as Missed
from meshmsg.message import Arrival, Batch, Gap, Message
from meshmsg.wire.codec import Undecodable
from meshmsg.wire.frames import NACKED, REJECTED

# Messages taken out of the subscription ahead of the asking, and their bytes, as nothing bounds what is out of it; what
# is still in it can be replaced by newer ones (``latest``).
REFILL = 256
REFILL_BYTES = 2**20


class Publication:
    """The ``Settler`` of messages that want no verdict: one publisher's topic, as one subscription gets it."""

    __slots__ = ("buffer", "publisher", "queue", "sender", "topic")

    # What a hand-off to threads asks of a lane.
    alive = True
    floor = 0
    done: frozenset[int] = frozenset()
    unsettled = 0

    def __init__(self, buffer: TopicBuffer, topic: str, publisher: str, sender: str) -> None:
        self.buffer = buffer
        self.topic = topic
        self.publisher = publisher
        self.sender = sender
        self.queue = buffer.subscription.pattern

    def message_id(self, number: int) -> str:
        """``publisher/topic/number``; of a last will ``publisher/topic/will.number``: where the topic stood."""
        if number >= FIRST_WILL:
            return f"{self.publisher[:12]}/{self.topic}/will.{number - FIRST_WILL}"
        return f"{self.publisher[:12]}/{self.topic}/{number}"

    def require_usable(self) -> None:
        """Raises the exception that tells why this is the wrong thread."""
        if self.buffer.guard is not None:
            self.buffer.guard()

    def ack(self, seq: int) -> None:
        """Nobody waits for it."""

    def ack_run(self, start: int, stop: int) -> None:
        """Nobody waits for it."""

    def nack(self, seq: int, delay: float | None, error: str) -> None:
        """There is no second attempt, so that somebody must hear of it here."""
        self.buffer.on_failed(self.message_id(seq), error)

    def reject(self, seq: int, reason: str) -> None:
        """There is no second attempt, so that somebody must hear of it here."""
        self.buffer.on_failed(self.message_id(seq), reason)

    def judge(self, seq: int, kind: int, delay: float | None, text: str) -> None:
        """What a thread says of it; a message that nobody started is just forgotten."""
        if kind in (NACKED, REJECTED):
            self.buffer.on_failed(self.message_id(seq), text)

    def extend(self, seq: int) -> None:
        """Restarts the handler's timeout, if there is one."""
        if self.buffer.extended is not None:
            self.buffer.extended(self, seq)


class TopicBuffer(Buffer):
    """What one ``sub`` received and nobody has taken yet.

    Gaps are told where they are, between the messages; those that a batch goes over, before it is handed out.
    """

    def __init__(self, subscription: Subscription, prefetch: int, name_of: Callable[[str], str]) -> None:
        super().__init__()
        self.queue = subscription.name
        self.prefetch = prefetch
        self.subscription = subscription
        self.decode: Callable[[Any], Any] | None = None  # into the consumer's own types; raises to refuse
        self.extended: Callable[[Any, int], None] | None = None
        self.guard: Callable[[], None] | None = None
        self.on_given_up: Callable[[InLane], None] = lambda lane: None
        self.on_gap: Callable[[Gap], None] = lambda gap: None
        self.on_failed: Callable[[str, str], None] = lambda message_id, error: None
        self.lent: Callable[[], int] = lambda: 0  # messages that threads were lent, and none of them has taken
        self.taken_bytes = 0  # of everything that was handed out or lent so far
        self.closing = False
        self.dirty = False
        self._name_of = name_of
        self._names: dict[str, str] = {}  # of publishers, which may be gone when their messages are read
        self._taken: deque[Delivery | Missed] = deque()

    @property
    def waiting(self) -> int:
        """Messages that nobody has taken yet."""
        taken = sum(len(item.bodies) for item in self._taken if isinstance(item, Delivery))
        return super().waiting + taken + self.subscription.waiting

    @property
    def unsettled(self) -> int:
        """Messages that came and that nobody has taken yet, those on loan included."""
        return self.waiting + self.lent()

    @property
    def has_more(self) -> bool:
        """Whether messages wait, or a gap that was not told."""
        return bool(self.opened or self.arrivals or self._taken or len(self.subscription))

    @property
    def has_room(self) -> bool:
        """Whether more can come before anything is taken."""
        return self.subscription.room > 0

    def tell_gaps(self) -> None:
        """A gap with no message before it is told at once."""
        if not self.opened and not self.lent():
            self._refill(0)

    def take_one(self, clock: Clock) -> Message | None:
        """Hands out one message; None if there is none."""
        if self.closing:
            return None
        if not self.opened and not self.arrivals:
            self._refill(1 if self.subscription.latest else self.subscription.count_fitting(1, REFILL, REFILL_BYTES))
        return super().take_one(clock)

    def take(self, limit: int, now: float) -> Batch:
        """Hands out up to ``limit`` messages at once."""
        taken: list[Arrival] = []
        while limit > 0 and not self.closing:
            if not self.opened and not self.arrivals:
                self._refill(limit)
            part = super().take(limit, now)
            if not part:
                break
            limit -= len(part)
            taken += part._arrivals
        return Batch(arrivals=taken)

    def lend(
        self, most: int, most_bytes: int = REFILL_BYTES, least: int = 0, *, over_gaps: bool = True
    ) -> deque[Arrival]:
        """Messages for threads, which ask again when they have too few: about ``least`` of them, whatever their size.

        More than that, up to ``most``, if all have no more than ``most_bytes``. Nobody is told of a gap before them
        without ``over_gaps``; then nothing from behind it is lent.
        """
        if self.closing or max(least, most) <= 0:
            return deque()
        if not self.opened and not self.arrivals:
            count = self.subscription.count_fitting(least, most, most_bytes)
            if count > 0:
                self._refill(count, over_gaps=over_gaps)
        return self.take_back()

    def return_unstarted(self) -> None:
        """Nobody takes any more."""
        self.closing = True
        self.take_back()

    def watch_extensions(self, extended: Callable[[Any, int], None]) -> None:
        """Has ``extended`` called for each ``message.extend()``."""
        self.extended = extended

    def _refill(self, limit: int, *, over_gaps: bool = True) -> None:
        """Goes on until there are messages in hand, telling gaps on the way; with a limit of 0, only gaps."""
        while not self.arrivals:
            if not self._taken:
                self._taken.extend(self.subscription.take(limit))
                if not self._taken:
                    return
            while self._taken:
                item = self._taken[0]
                if isinstance(item, Missed):
                    if self.arrivals or not over_gaps:
                        return
                    self._taken.popleft()
                    name = self._name(item.publisher)
                    node_id = item.publisher.partition(".")[0]
                    self.on_gap(Gap(item.topic, name, item.missed, item.start, item.stop, node_id))
                elif limit:
                    self._taken.popleft()
                    self.taken_bytes += item.size
                    self.arrivals.extend(self._as_arrivals(item))
                else:
                    return

    def _name(self, publisher: str) -> str:
        name = self._names.get(publisher)
        if name is None:
            name = self._names[publisher] = self._name_of(publisher)
        return name

    def _as_arrivals(self, delivery: Delivery) -> Iterator[Arrival]:
        topic, publisher, first_seq, bodies, headers, _ = delivery
        settler = Publication(self, topic, publisher, self._name(publisher))
        details = {"t": topic}
        if self.decode is None and not headers and Undecodable not in map(type, bodies):
            yield Arrival(settler, first_seq, first_seq, bodies, details)
            return
        for seq, body in enumerate(bodies, first_seq):
            try:
                if type(body) is Undecodable:
                    raise ValueError(f"the body cannot be decoded: {body.error}")
                converted = self.decode(body) if self.decode is not None else body
            except Exception as error:
                self.on_failed(settler.message_id(seq), f"{error}")
            else:
                special = {**details, "h": headers[seq]} if headers and seq in headers else details
                yield Arrival(settler, seq, seq, [converted], special)


Source: TypeAlias = Inbox | TopicBuffer
"""Where a consumer takes messages from."""
