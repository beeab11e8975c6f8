"""One dialled link: a DEALER that only sends, and the monitor that says what becomes of its connection."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import zmq

from meshmsg.transport.endpoints import has_route, uses_ipv6
from meshmsg.transport.interface import LinkEvent
from meshmsg.transport.segments import SEGMENT_BYTES, split_frame
from meshmsg.transport.tuning import (
    ENDED,
    LAST,
    MORE,
    NO_COPY_BYTES,
    POLLOUT,
    WATCHED,
    Context,
    Socket,
    Tuning,
    descriptor_of,
    events_of,
    milliseconds,
)

# The engine's credit keeps a link far below this many messages; reaching it means the peer takes nothing at
# all.
SEND_HIGH_WATER = 10_000
# Nobody has to send anything to a DEALER of ours; heartbeats and handshakes are small.
MAX_UNWANTED_BYTES = 4096


class DialledLink:
    """A link's sockets. Call ``read_events`` when the monitor's descriptor is readable, ``close`` once."""

    __slots__ = (
        "number",
        "endpoint",
        "up",
        "monitor_descriptor",
        "_dealer",
        "_dialled_at",
        "_monitor",
        "_patience_s",
    )

    def __init__(self, context: Context, number: int, endpoint: str, identity: bytes, tuning: Tuning) -> None:
        self.number = number
        self.endpoint = endpoint
        self.up = False
        self._dialled_at = time.monotonic()
        self._patience_s = tuning.dial_timeout_s / 2
        self._dealer = context.socket(zmq.DEALER)
        self._monitor: Socket | None = None
        try:
            self._tune(identity, tuning)
            self._monitor = self._dealer.get_monitor_socket(WATCHED)
            self.monitor_descriptor = descriptor_of(self._monitor)
            self._dealer.connect(endpoint)
        except BaseException:
            self.close()
            raise

    def _tune(self, identity: bytes, tuning: Tuning) -> None:
        dealer = self._dealer
        dealer.setsockopt(zmq.ROUTING_ID, identity)
        # Never again over a second connection: that would lose what was in flight without telling, and meet
        # its own routing id, still held by a half-open first one (libzmq#4503, #2892).
        dealer.setsockopt(zmq.RECONNECT_IVL, -1)
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, milliseconds(tuning.dial_timeout_s))
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER)
        dealer.setsockopt(zmq.RCVHWM, 1)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_UNWANTED_BYTES)
        dealer.setsockopt(zmq.IPV6, 1 if uses_ipv6(self.endpoint) else 0)
        tuning.keep_alive(dealer)
        tuning.limit_handshake(dealer)

    @property
    def send_descriptor(self) -> int:
        """Becomes readable when ``has_room`` may have changed."""
        return descriptor_of(self._dealer)

    def send(self, frames: Sequence[bytes]) -> bool:
        """Hand one message to libzmq; false if it would block, or the connection is gone."""
        # The second try, because a send alone looks for news of the I/O thread at most once a millisecond.
        return self._try_send(frames) or (self.has_room() and self._try_send(frames))

    def has_room(self) -> bool:
        """Whether ``send`` could succeed. Asking takes in what the I/O thread has reported."""
        return bool(events_of(self._dealer) & POLLOUT)

    def read_events(self) -> list[LinkEvent]:
        """What happened since the last call. After anything but UP nothing more will."""
        assert self._monitor is not None
        events: list[LinkEvent] = []
        while True:
            try:
                # Two frames, the first of which begins with the event's number.
                head = self._monitor.recv(zmq.DONTWAIT)
                self._monitor.recv(zmq.DONTWAIT)
            except zmq.Again:
                return events
            number = int.from_bytes(head[:2], sys.byteorder)
            if number & ENDED:
                events.append(LinkEvent.DOWN if self.up else self._explain_failure(number))
                self.up = False
                return events
            if number & zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.up = True
                events.append(LinkEvent.UP)

    def _explain_failure(self, number: int) -> LinkEvent:
        """libzmq does not say why a connection could not be made; but a refusal comes soon, and over a route."""
        soon = time.monotonic() - self._dialled_at < self._patience_s
        if number & zmq.EVENT_CLOSED and soon and has_route(self.endpoint):
            return LinkEvent.REFUSED
        return LinkEvent.FAILED

    def close(self, linger_ms: int = 0) -> None:
        """Close the sockets; what was sent has ``linger_ms`` left to leave."""
        if self._monitor is not None:
            # In another order the monitor leaks, or the context hangs (pyzmq#1554, libzmq#3575).
            self._dealer.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None
        self._dealer.close(linger=linger_ms)

    def _try_send(self, frames: Sequence[bytes]) -> bool:
        send = self._dealer.send
        left = len(frames)
        try:
            for frame in frames:
                left -= 1
                flags = MORE if left else LAST
                if len(frame) < SEGMENT_BYTES:
                    send(frame, flags, len(frame) < NO_COPY_BYTES)
                    continue
                *segments, last = split_frame(frame)
                for segment in segments:
                    send(segment, MORE, False)
                send(last, flags, len(last) < NO_COPY_BYTES)
        except zmq.Again:
            return False
        return True
