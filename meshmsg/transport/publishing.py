"""The publisher's end of the broadcast: an XPUB that sends to whoever asked, and hears what they ask for."""

from __future__ import annotations

import time
from collections.abc import Sequence

import zmq

from meshmsg.transport.endpoints import bind_all
from meshmsg.transport.filters import Filters, limit_filters
from meshmsg.transport.pacing import Part
from meshmsg.transport.tuning import (
    LAST,
    MORE,
    NO_COPY_BYTES,
    POLLIN,
    Context,
    Socket,
    Tuning,
    descriptor_of,
    events_of,
    milliseconds,
)

# Per subscriber and in messages, each of which is a batch or a piece of 256 KiB at most; libzmq can count nothing else.
# What one subscriber has not taken is held once for all of them, so this bounds what the slowest can cost.
SEND_HIGH_WATER = 1000
# When a queue is full, it may be that libzmq's I/O thread had no turn, on a busy machine, and no subscriber is slow. So
# it gets this long, this often, before anybody misses anything.
NAP_S, NAPS = 0.0005, 2
# Nodes that start together all follow at once; the default is 100.
BACKLOG = 1024
# A subscriber that has taken nothing for this long, although something waits for it, loses its connection, and what
# waits for it is let go. Only the kernel can tell: ZeroMQ's heartbeats queue behind what the subscriber does not take.
STUCK_S = 30.0
# How soon a host that vanished while nothing was published is noticed; in seconds.
KEEP_ALIVE_IDLE, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_COUNT = 10, 5, 4


class PublishingSocket:
    """An XPUB bound to every address on one port. Any ZeroMQ SUB may connect to it.

    **Who is full misses messages, the others don't.** libzmq knows two ways: drop silently for the subscriber whose
    queue is full (also when it only has not looked yet that there is room again), or refuse the message for all. A
    publisher must not wait for its slowest subscriber unless it chose to, and gaps are repaired above. So the second
    is tried first, because it makes libzmq look and tells that somebody is full, and then the first.

    **Large bodies are not copied.** libzmq sends the memory that the publisher keeps for repairs, to all subscribers.

    Attributes
    ----------
    endpoints:
        Where subscribers connect.
    crowded:
        How often a subscriber began to miss messages because its queue was full.
    filters:
        What subscribers asked for, which is bounded.
    """

    __slots__ = ("endpoints", "crowded", "filters", "_socket")

    def __init__(self, context: Context, addresses: Sequence[str], tuning: Tuning) -> None:
        self.crowded = 0
        self._socket = context.socket(zmq.XPUB)
        try:
            self._tune(tuning)
            self.endpoints = bind_all(self._socket, addresses)
        except BaseException:
            self._socket.close(linger=0)
            raise
        self.filters = Filters(self.endpoints)

    def _tune(self, tuning: Tuning) -> None:
        socket = self._socket
        limit_filters(socket)
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.BACKLOG, BACKLOG)
        watch_connection(socket)
        tuning.limit_handshake(socket)

    @property
    def descriptor(self) -> int:
        """Becomes readable when ``has_subscriptions`` may have changed."""
        return descriptor_of(self._socket)

    def send(self, parts: Sequence[Part]) -> bool:
        """Send to all whose filters match and who have room; false if somebody began to miss messages with this one.

        Nothing says who. It is told once: from then on until there is room again, libzmq does not count it.
        """
        # The answer cannot change in the middle of a message: only whole ones count, and nobody joins it.
        if self._try_send(parts):
            return True
        for nap_s in (0.0, *[NAP_S] * NAPS):
            if nap_s:
                time.sleep(nap_s)
            # A send alone looks for news of the I/O thread at most once a millisecond; asking looks now.
            events_of(self._socket)
            if self._try_send(parts):
                return True
        self.crowded += 1
        self._socket.setsockopt(zmq.XPUB_NODROP, 0)
        try:
            self._try_send(parts)
        finally:
            self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        return False

    def has_subscriptions(self) -> bool:
        """Whether ``read`` would return something. Asking takes in what the I/O thread has reported."""
        return bool(events_of(self._socket) & POLLIN)

    def read(self, limit: int) -> tuple[list[tuple[bytes, bool]], bool]:
        """Up to ``limit`` changes of filters, as ``Filters.read`` says, and whether that was all."""
        return self.filters.read(self._socket, limit)

    def close(self, linger_ms: int = 0) -> None:
        """Close; what was sent has ``linger_ms`` to leave."""
        self._socket.close(linger=linger_ms)

    def _try_send(self, parts: Sequence[Part]) -> bool:
        send = self._socket.send
        try:
            for part in parts[:-1]:
                send(part, MORE)
            send(parts[-1], LAST, len(parts[-1]) < NO_COPY_BYTES)
        except zmq.Again:
            return False
        return True


def watch_connection(socket: Socket) -> None:
    """Have the kernel tell when the other side's host vanished, or takes nothing any more.

    Not ZeroMQ's heartbeats: for them only a complete frame is a sign of life, so on a slow line a large one of another
    program would end its connection, at every attempt (see ``segments.py``). Whether the process on the other side
    works is for the link between the nodes to know.
    """
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEP_ALIVE_IDLE)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEP_ALIVE_INTERVAL)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEP_ALIVE_COUNT)
    socket.setsockopt(zmq.TCP_MAXRT, milliseconds(STUCK_S))  # counts a window that stays closed, too
