"""A subscriber's end of the broadcast: what it follows at one publisher, over one SUB at a time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection

import zmq

from meshmsg.transport.endpoints import uses_ipv6
from meshmsg.transport.interface import LinkEvent, Published
from meshmsg.transport.publishing import watch_connection
from meshmsg.transport.tuning import (
    ENDED,
    NO_COPY_BYTES,
    POLLIN,
    WATCHED,
    Context,
    Socket,
    Tuning,
    descriptor_of,
    events_of,
    milliseconds,
)

PARTS = 3  # topic, header, bodies
# Per publisher and in messages. Small: beyond it TCP holds the publisher back, which keeps the rest for all
# subscribers together where every subscriber would keep its own.
RECEIVE_HIGH_WATER = 100
RETRY_MIN_S, RETRY_MAX_S = 0.1, 2.0
NEVER_MS = 2**30  # twelve days


class Following:
    """What is followed at one publisher, and the connection it is followed over, if there is one now."""

    __slots__ = ("connection", "endpoint", "filters", "marker", "retry_s", "timer")

    def __init__(self, endpoint: str, filters: Collection[bytes], marker: bytes) -> None:
        self.endpoint = endpoint
        self.filters = frozenset(filters)
        self.marker = marker
        self.connection: Connection | None = None
        self.retry_s = RETRY_MIN_S
        self.timer: asyncio.TimerHandle | None = None  # the end of a dial, or of the pause before the next one

    def refilter(self, filters: Collection[bytes], marker: bytes) -> None:
        """Change the filters, over the connection too: what is new, the marker, and then what goes."""
        if marker == self.marker:
            raise ValueError(f"the marker {marker!r} is in use; every change of filters takes a new one")
        new = frozenset(filters)
        if self.connection is not None:
            self.connection.subscribe([*sorted(new - self.filters), marker])
            self.connection.unsubscribe([*sorted(self.filters - new), self.marker])
        self.filters = new
        self.marker = marker

    def next_retry_s(self) -> float:
        """How long to wait before the next dial: longer from one to the next."""
        retry_s, self.retry_s = self.retry_s, min(2 * self.retry_s, RETRY_MAX_S)
        return retry_s


class Connection:
    """One SUB with one connection, and the monitor that says what becomes of it.

    libzmq must not connect it again: it would send the filters in another order, sorted, with the marker first. So the
    publisher would take the filters for complete while they are still on their way. (It would also send none of
    them before this process next uses the socket.) A new SUB sends them in the order in which they are set here.
    """

    __slots__ = ("descriptor", "ended", "monitor_descriptor", "up", "_monitor", "_subscriber")

    def __init__(self, context: Context, following: Following, tuning: Tuning) -> None:
        self.up = False
        self.ended = False
        self._subscriber = context.socket(zmq.SUB)
        self._monitor: Socket | None = None
        try:
            self._tune(following.endpoint, tuning)
            self.descriptor = descriptor_of(self._subscriber)
            self._monitor = self._subscriber.get_monitor_socket(WATCHED)
            self.monitor_descriptor = descriptor_of(self._monitor)
            # First, as what is set before goes out sorted. Over a connection everything arrives in order.
            self._subscriber.connect(following.endpoint)
            self.subscribe([*sorted(following.filters), following.marker])
        except BaseException:
            self.close()
            raise

    def _tune(self, endpoint: str, tuning: Tuning) -> None:
        subscriber = self._subscriber
        # Not -1: then libzmq would throw away what it has received when the connection ends.
        subscriber.setsockopt(zmq.RECONNECT_IVL, NEVER_MS)
        subscriber.setsockopt(zmq.CONNECT_TIMEOUT, milliseconds(tuning.dial_timeout_s))
        subscriber.setsockopt(zmq.LINGER, 0)
        # Without limit: filters beyond it are lost without a word (libzmq#2258), and there are as many as we set.
        subscriber.setsockopt(zmq.SNDHWM, 0)
        subscriber.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER)
        subscriber.setsockopt(zmq.MAXMSGSIZE, tuning.max_message_bytes)
        subscriber.setsockopt(zmq.IPV6, 1 if uses_ipv6(endpoint) else 0)
        watch_connection(subscriber)
        tuning.limit_handshake(subscriber)

    def subscribe(self, filters: Collection[bytes]) -> None:
        """Add filters, in this order."""
        for prefix in filters:
            self._subscriber.setsockopt(zmq.SUBSCRIBE, prefix)

    def unsubscribe(self, filters: Collection[bytes]) -> None:
        """Remove filters, in this order."""
        for prefix in filters:
            self._subscriber.setsockopt(zmq.UNSUBSCRIBE, prefix)

    def has_messages(self) -> bool:
        """Whether there is something to read. Asking takes in what the I/O thread has reported."""
        return bool(events_of(self._subscriber) & POLLIN)

    def read(self, limit_bytes: int) -> tuple[Published | None, int]:
        """One message and its size; None for one that does not have three parts or is larger than ``limit_bytes``.

        Raises ``zmq.Again`` when there is none. Large bodies are not copied: they are a view of libzmq's message.
        """
        receive = self._subscriber.recv
        # Frames, as they know whether more follow: asking the socket costs as much as a receive.
        parts = [receive(zmq.DONTWAIT, False)]
        part = parts[0]
        size = len(part)
        while part.more:
            part = receive(zmq.DONTWAIT, False)
            size += len(part)
            if len(parts) <= PARTS:  # one too many tells; more are read, and not kept
                parts.append(part)
        if len(parts) != PARTS or size > limit_bytes:
            return None, size
        topic, header, bodies = parts
        return (topic.bytes, header.bytes, bodies.bytes if len(bodies) < NO_COPY_BYTES else bodies.buffer), size

    def read_events(self) -> list[LinkEvent]:
        """UP, and DOWN or FAILED once it has ended; then nothing more."""
        events: list[LinkEvent] = []
        while self._monitor is not None and not self.ended:
            try:
                # Two frames, the first of which begins with the event's number.
                head = self._monitor.recv(zmq.DONTWAIT)
                self._monitor.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            number = int.from_bytes(head[:2], sys.byteorder)
            if number & ENDED:
                self.ended = True
                events.append(LinkEvent.DOWN if self.up else LinkEvent.FAILED)
            elif number & zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.up = True
                events.append(LinkEvent.UP)
        return events

    def close(self) -> None:
        """Close the sockets; what was not read is lost."""
        if self._monitor is not None:
            # In another order the monitor leaks, or the context hangs (pyzmq#1554, libzmq#3575).
            self._subscriber.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None
        self._subscriber.close(linger=0)
