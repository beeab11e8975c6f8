"""The socket options that all sockets here share, and the numbers behind them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeAlias

import zmq

from meshmsg.transport.descriptors import soft_limit

Socket: TypeAlias = zmq.Socket[bytes]
Context: TypeAlias = zmq.Context[zmq.Socket[bytes]]

# What a monitor watches: the connection stands; it has ended.
ENDED = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED  # how a refused connection ends when libzmq may not reconnect
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | ENDED
# Flags of a message's last part and of those before it. Computed once: enum flags' operators take as long as a send.
LAST, MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
POLLIN, POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)
_EVENTS = int(zmq.EVENTS)
# From this size on messages are not copied, neither into libzmq nor out of it. For smaller ones a copy costs less than
# pyzmq's thread that hears when libzmq needs the memory no longer, or the frame that lives as long as a view of it.
NO_COPY_BYTES = zmq.COPY_THRESHOLD
MAX_SOCKETS = 8192  # a link takes three; libzmq's own default is 1023


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a node's sockets are set to; times in seconds."""

    max_message_bytes: int
    heartbeat_interval_s: float
    heartbeat_timeout_s: float
    dial_timeout_s: float

    def keep_alive(self, socket: Socket) -> None:
        """Turn heartbeats on; without them a peer that vanishes is never noticed (libzmq#1421)."""
        socket.setsockopt(zmq.HEARTBEAT_IVL, milliseconds(self.heartbeat_interval_s))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, milliseconds(self.heartbeat_timeout_s))
        # The same for the other side: it drops us when it has heard nothing for this long.
        socket.setsockopt(zmq.HEARTBEAT_TTL, milliseconds(self.heartbeat_timeout_s))

    def limit_handshake(self, socket: Socket) -> None:
        """Drop who connects and then says nothing; libzmq's own default is to wait 30 s."""
        socket.setsockopt(zmq.HANDSHAKE_IVL, milliseconds(self.dial_timeout_s))


def make_context() -> Context:
    """A context for one transport, with room for as many sockets as the process has descriptors for."""
    context: Context = zmq.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, min(MAX_SOCKETS, soft_limit() or MAX_SOCKETS))
    return context


def descriptor_of(socket: Socket) -> int:
    """What the loop watches: readable means that reading ``events_of`` may give something new."""
    descriptor = socket.getsockopt(zmq.FD)
    assert isinstance(descriptor, int)
    return descriptor


def events_of(socket: Socket) -> int:
    """Which of ``POLLIN`` and ``POLLOUT`` are possible now. Asking takes in the I/O thread's news."""
    events = socket.getsockopt(_EVENTS)
    assert isinstance(events, int)
    return events


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, at least one: libzmq takes zero for "off"."""
    return max(1, round(seconds * 1000))


def explain(error: zmq.ZMQError) -> str:
    """The error's text, without the number."""
    return os.strerror(error.errno or 0)
