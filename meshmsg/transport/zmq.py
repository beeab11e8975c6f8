"""The transport over ZeroMQ: a bound ROUTER that only receives, a DEALER per dialled link that only sends.

Sockets are read from the event loop with ``add_reader`` on their descriptors, not with zmq.asyncio, which
costs a future and two system calls a message. Such a descriptor is edge-triggered (pyzmq#1085, #1203): it may
stay silent although messages wait, so a read goes on until nothing is left, or ``more`` says that it did not.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence

import zmq

from meshmsg.addresses import is_loopback
from meshmsg.errors import ConfigurationError, ForkedProcess, NodeClosed, TooManyLinks
from meshmsg.transport import forks
from meshmsg.transport.broadcast import ZmqBroadcast
from meshmsg.transport.closing import remember, terminate
from meshmsg.transport.descriptors import require_room
from meshmsg.transport.endpoints import bind_all, is_diallable, stays_here
from meshmsg.transport.interface import LinkEvent
from meshmsg.transport.link import DialledLink
from meshmsg.transport.raw import RawSocket
from meshmsg.transport.segments import SEGMENT_BYTES, read_frames
from meshmsg.transport.tuning import (
    LAST,
    POLLIN,
    Context,
    Socket,
    Tuning,
    descriptor_of,
    events_of,
    explain,
    make_context,
)

logger = logging.getLogger("meshmsg.transport")

# Per peer, and in messages, each of which is a batch. Beyond it TCP holds the sender back, its heartbeats with it; and
# if the sender leaves then, libzmq does not read on to what it sent last. The engine's credit stays far below.
RECEIVE_HIGH_WATER = 10_000
# One receive stops here at the latest: so that the loop is not held up by large messages, and because what fits into
# the processor's cache is a quarter cheaper to read.
RECEIVE_BYTES = 512 * 1024
# Many nodes that start together dial all at once; the default is 100.
BACKLOG = 1024
# A read is skipped if the descriptor was silent; should it ever be silent wrongly, every so many are made anyway.
LOOK_EVERY = 16
# Time for the handshake after the connection took its time.
DIAL_GRACE = 1.5


class ZmqTransport:
    """A node's inbox and links over TCP; implements ``Transport``, whose methods are documented there.

    Parameters
    ----------
    addresses:
        IP addresses to bind, all on one port.
    port:
        The port; 0 for any free one.
    max_message_bytes:
        Limit for a message, all its frames together. A larger one is received as a message without frames.
    heartbeat_interval_s, heartbeat_timeout_s:
        How often a link is probed, and after how long without an answer it is DOWN. libzmq's I/O thread
        answers, so this tells a dead or frozen process from one that is busy.
    dial_timeout_s:
        Time for a connection, and again for its handshake; after one and a half times this a link has FAILED.
    """

    def __init__(
        self,
        *,
        addresses: Sequence[str] = ("127.0.0.1",),
        port: int = 0,
        max_message_bytes: int = 64 * 2**20,
        heartbeat_interval_s: float = 0.5,
        heartbeat_timeout_s: float = 1.5,
        dial_timeout_s: float = 2.0,
    ) -> None:
        self._addresses = tuple(addresses)
        self._port = port
        self._tuning = Tuning(max_message_bytes, heartbeat_interval_s, heartbeat_timeout_s, dial_timeout_s)
        self._process = os.getpid()
        self._forks = forks.count
        self._context: Context | None = None
        self._router: Socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: Callable[[], None] = _nobody_to_wake
        self._loopback_only = all(is_loopback(address) for address in addresses)
        self._links: dict[int, DialledLink] = {}
        self._deadlines: dict[int, asyncio.TimerHandle] = {}  # of links that are not up yet
        self._reported: set[int] = set()  # links whose monitor has something to read
        self._crowded: dict[int, int] = {}  # links that refused a message -> what becomes readable for room
        self._events: list[tuple[int, LinkEvent]] = []
        self._raw: list[RawSocket] = []
        self._broadcast: ZmqBroadcast | None = None
        self._readable = True  # whether the inbox's descriptor told of something, or a read was left unfinished
        self._passes = 0  # how often receive was called
        self._more = False
        self._closed = False
        self._ending: threading.Thread | None = None

    # --- opening --------------------------------------------------------------------------------------------

    def bind(self) -> tuple[str, ...]:
        """Open the inbox and return its endpoints, all on one port.

        Raises ``AddressUnavailable`` when that port or address cannot be had; then it may be tried again.
        """
        self._require_open()
        if self._router is not None:
            raise ConfigurationError("this transport is bound already; make another one for another inbox")
        context = self._open_context()
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER)
        router.setsockopt(zmq.BACKLOG, BACKLOG)
        # Nothing larger than a segment ever arrives in one frame, so a huge length is refused before any of
        # it is read.
        router.setsockopt(zmq.MAXMSGSIZE, SEGMENT_BYTES)
        self._tuning.keep_alive(router)
        self._tuning.limit_handshake(router)
        try:
            endpoints = bind_all(router, self._addresses, self._port)
        except BaseException:
            router.close()
            raise
        self._router = router
        return endpoints

    def start(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        """Have ``loop`` call ``wake`` when there may be something to read, or room after a refused send."""
        self._require_open()
        if self._router is None or self._loop is not None:
            raise ConfigurationError("a transport is started once, after bind()")
        try:
            loop.add_reader(descriptor_of(self._router), self._on_readable)
        except NotImplementedError:
            raise ConfigurationError(
                f"{type(loop).__name__} cannot watch ZeroMQ's sockets; "
                "run asyncio with loop_factory=asyncio.SelectorEventLoop, as node.run() does"
            ) from None
        self._loop = loop
        self._wake = wake
        loop.call_soon(wake)  # as with a link's monitor: the descriptor is silent until the first read

    def raw(self, kind: int, *, for_topics: bool = False) -> RawSocket:
        """A plain ZeroMQ socket, closed with this transport at the latest."""
        self._require_open()
        socket = RawSocket(self._open_context(), kind, self._tuning, for_topics=for_topics)
        self._raw = [other for other in self._raw if not other.socket.closed]
        self._raw.append(socket)
        return socket

    @property
    def broadcast(self) -> ZmqBroadcast:
        """What this node publishes and follows; made when it is first asked for, closed with this transport."""
        if self._broadcast is None:
            self._require_open()
            if self._loop is None:
                raise NodeClosed("broadcast before start(): nobody would read it")
            self._broadcast = ZmqBroadcast(
                self._open_context(),
                self._tuning,
                self._addresses,
                self.may_dial,
                self._require_process,
                self._loop,
                self._wake,
            )
        return self._broadcast

    def may_dial(self, endpoint: str) -> bool:
        """Whether an endpoint is numeric and within reach: a node on loopback never dials beyond (G12)."""
        return is_diallable(endpoint) and (not self._loopback_only or stays_here(endpoint))

    # --- links ----------------------------------------------------------------------------------------------

    def dial(self, link: int, endpoint: str, identity: bytes) -> None:
        """Open a link and have a ``LinkEvent`` say what comes of it; see ``Transport.dial``.

        An endpoint without a numeric address FAILED: libzmq would look its name up in the thread that serves
        all links.

        Raises ``TooManyLinks`` when the process has too few file descriptors left.
        """
        self._require_open()
        loop = self._loop
        if loop is None or self._context is None:
            raise NodeClosed("dial() before start(): the link's events would go nowhere")
        if link in self._links:
            raise ValueError(f"link {link} is open; every dial takes a new number")
        if not 1 <= len(identity) <= 255 or identity[0] == 0:
            raise ValueError(f"an identity is 1 to 255 bytes, the first not zero, not {identity!r}")
        if not self.may_dial(endpoint):
            logger.debug("link %d: %r is no numeric tcp:// endpoint within reach", link, endpoint)
            self._fail(link, loop)
            return
        require_room(len(self._links))
        try:
            dialled = DialledLink(self._context, link, endpoint, identity, self._tuning)
        except zmq.ZMQError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                reason = f"no room for another socket, with {len(self._links)} links open: {explain(error)}"
                raise TooManyLinks(error.errno, reason) from error
            logger.debug("link %d: cannot dial %s: %s", link, endpoint, explain(error))
            self._fail(link, loop)
            return
        self._links[link] = dialled
        loop.add_reader(dialled.monitor_descriptor, self._on_monitor, link)
        # The descriptor stays silent until the monitor was once read until it had nothing more.
        self._reported.add(link)
        loop.call_soon(self._wake)  # not now: this may be the middle of the driver's turn
        # The last net: libzmq has no timeout for a server that speaks ZMTP 1.0, nor an event when connect
        # itself fails.
        timeout_s = DIAL_GRACE * self._tuning.dial_timeout_s
        self._deadlines[link] = loop.call_later(timeout_s, self._on_deadline, link)

    def hang_up(self, link: int, linger_ms: int = 0) -> None:
        """Close a link without an event; what was sent has ``linger_ms`` to leave. Unknown links are fine."""
        self._require_process()
        dialled = self._links.pop(link, None)
        if dialled is None:
            return
        # Readers go before the sockets: a closed descriptor's number may belong to the next socket.
        self._forget_deadline(link)
        self._forget_crowded(link)
        self._reported.discard(link)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(dialled.monitor_descriptor)
        dialled.close(linger_ms)

    def link_events(self) -> list[tuple[int, LinkEvent]]:
        """What became of links since the last call. One that FAILED or went DOWN is closed and forgotten."""
        self._require_process()
        events, self._events = self._events, []
        if self._reported:
            reported, self._reported = sorted(self._reported), set()
            for link in reported:
                events += self._read_events(link)
        return events

    # --- messages -------------------------------------------------------------------------------------------

    def send(self, link: int, frames: Sequence[bytes]) -> bool:
        """Hand over one message; false if the link is gone or has no room. ``wake`` is called when it has."""
        self._require_process()
        dialled = self._links.get(link)
        if dialled is None:
            return False
        if dialled.send(frames):
            return True
        if self._loop is not None and link not in self._crowded:
            descriptor = self._crowded[link] = dialled.send_descriptor
            self._loop.add_reader(descriptor, self._on_room, link)
        return False

    def receive(self, limit: int) -> list[tuple[bytes, list[bytes]]]:
        """Up to ``limit`` messages as ``(route, frames)``; see ``Transport.receive``."""
        self._require_process()
        messages: list[tuple[bytes, list[bytes]]] = []
        self._more = False
        self._passes += 1
        if self._router is None or (not self._readable and self._passes % LOOK_EVERY):
            return messages
        self._readable = False
        router = self._router
        limit_bytes = self._tuning.max_message_bytes
        size = 0
        try:
            while len(messages) < limit and size < RECEIVE_BYTES:
                route = router.recv(LAST)
                frames, message_size = read_frames(router, limit_bytes)
                messages.append((route, frames))
                size += message_size
                # Asked, as an exception that tells the same costs three times as much. libzmq looks for news before
                # it answers: whatever comes from now on makes the descriptor readable.
                if not events_of(router) & POLLIN:
                    return messages
        except zmq.Again:
            return messages
        self._more = self._readable = True
        return messages

    def more(self) -> bool:
        """Whether the last ``receive`` stopped at its limit; the descriptor will not tell of what it left."""
        return self._more

    # --- closing --------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Where this is used and has to be closed, once it has started."""
        return self._loop

    def close(self, linger_ms: int = 0) -> None:
        """Close everything, without waiting. Does nothing in a forked child: the sockets are its parent's."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        self._more = False
        self._events.clear()
        for link in list(self._links):
            self.hang_up(link, linger_ms)
        for socket in self._raw:
            socket.close()
        self._raw.clear()
        if self._broadcast is not None:
            self._broadcast.close(linger_ms)
        if self._router is not None:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(descriptor_of(self._router))
            self._router.close()
            self._router = None
        if self._context is not None:
            self._ending = terminate(self._context, linger_ms)

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait in this thread until what ``close`` left to the background is done; whether it is."""
        if self._ending is None:
            return True
        self._ending.join(timeout_s)
        return not self._ending.is_alive()

    # --- what the loop calls --------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        self._readable = True
        self._wake()

    def _on_monitor(self, link: int) -> None:
        self._reported.add(link)
        self._wake()

    def _on_room(self, link: int) -> None:
        # Asking also empties the descriptor, or the loop would call again at once, and again.
        if self._links[link].has_room():
            self._forget_crowded(link)
            self._wake()

    def _on_deadline(self, link: int) -> None:
        del self._deadlines[link]
        # In a loop that was held up, the timer may come before the news that the link made it in time.
        self._events += self._read_events(link)
        dialled = self._links.get(link)
        if dialled is not None and not dialled.up:
            logger.debug("link %d: no handshake with %s in time", link, dialled.endpoint)
            self.hang_up(link)
            self._events.append((link, LinkEvent.FAILED))
        self._wake()

    # --- the rest -------------------------------------------------------------------------------------------

    def _read_events(self, link: int) -> list[tuple[int, LinkEvent]]:
        events = [(link, event) for event in self._links[link].read_events()]
        if events:
            self._forget_deadline(link)
            if events[-1][1] is not LinkEvent.UP:
                self.hang_up(link)
        return events

    def _fail(self, link: int, loop: asyncio.AbstractEventLoop) -> None:
        self._events.append((link, LinkEvent.FAILED))
        loop.call_soon(self._wake)

    def _forget_deadline(self, link: int) -> None:
        deadline = self._deadlines.pop(link, None)
        if deadline is not None:
            deadline.cancel()

    def _forget_crowded(self, link: int) -> None:
        descriptor = self._crowded.pop(link, None)
        if descriptor is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(descriptor)

    def _open_context(self) -> Context:
        require_room(len(self._links))
        if self._context is None:
            self._context = make_context()
            remember(self)
        return self._context

    def _require_open(self) -> None:
        self._require_process()
        if self._closed:
            raise NodeClosed("the transport is closed; make a new one")

    def _require_process(self) -> None:
        # libzmq aborts or hangs in a forked child (pyzmq#1504, libzmq#3223).
        if forks.count != self._forks:
            raise ForkedProcess(
                f"process {os.getpid()} is a fork of {self._process}, which owns these sockets; make a new "
                'node in the child, or start children with multiprocessing.get_context("spawn")'
            )


def _nobody_to_wake() -> None:
    """Before ``start``."""
