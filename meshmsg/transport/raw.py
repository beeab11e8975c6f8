"""Plain ZeroMQ sockets that discovery keeps connected, with none of meshmsg's promises on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import zmq

from meshmsg.errors import AddressUnavailable, ConfigurationError
from meshmsg.transport.endpoints import bind_all, is_diallable, uses_ipv6
from meshmsg.transport.filters import Filters, limit_filters
from meshmsg.transport.publishing import watch_connection
from meshmsg.transport.tuning import Context, Socket, Tuning, explain

PUSH, PULL, XPUB, SUB = zmq.PUSH, zmq.PULL, zmq.XPUB, zmq.SUB  # for rooms that don't know zmq

LINGER_MS = 100  # libzmq's own default is for ever, the usual reason for programs that do not end (pyzmq#102)
RECONNECT_MAX_MS = 5000  # libzmq's own default is every 100 ms without growth

COUNTERPARTS: Mapping[int, frozenset[int]] = MappingProxyType(
    {
        zmq.PUSH: frozenset({zmq.PULL}),
        zmq.PULL: frozenset({zmq.PUSH}),
        zmq.PUB: frozenset({zmq.SUB, zmq.XSUB}),
        zmq.XPUB: frozenset({zmq.SUB, zmq.XSUB}),
        zmq.SUB: frozenset({zmq.PUB, zmq.XPUB}),
        zmq.XSUB: frozenset({zmq.PUB, zmq.XPUB}),
        zmq.DEALER: frozenset({zmq.ROUTER, zmq.REP}),
        zmq.REQ: frozenset({zmq.ROUTER, zmq.REP}),
        zmq.ROUTER: frozenset({zmq.DEALER, zmq.REQ}),
        zmq.REP: frozenset({zmq.DEALER, zmq.REQ}),
        zmq.PAIR: frozenset({zmq.PAIR}),
    }
)
"""Which kinds of socket talk to a kind."""

BINDING: frozenset[int] = frozenset({zmq.PULL, zmq.PUB, zmq.XPUB, zmq.ROUTER, zmq.REP})
"""The kinds that bind unless told otherwise; the others connect. One of two PAIRs has to be told to bind, so
discovery does not match them."""


class RawSocket:
    """A ``zmq.Socket`` with sane options, and forgiving ways to connect and disconnect it.

    ``socket`` is the real one, for whoever asked for it; it must be used by one thread at a time, and may be
    closed there. ``BINDING`` says which kinds are to ``bind`` and which to ``connect``; both work.

    What subscribers ask of a PUB or an XPUB is not bounded: only whoever reads an XPUB hears of it, and the options
    that hold a flood back would also hold back what else an XSUB may send. ``for_topics``, nobody is handed it out:
    then an XPUB's filters are bounded, if its ``filters`` read it, and of a SUB's own filters none is lost.

    Attributes
    ----------
    filters:
        Of an XPUB for topics that is bound.
    """

    def __init__(self, context: Context, kind: int, tuning: Tuning, *, for_topics: bool = False) -> None:
        if kind not in COUNTERPARTS:
            names = ", ".join(kind_name(known) for known in COUNTERPARTS)
            raise ConfigurationError(f"{kind!r} is no kind of socket that can be raw; choose one of {names}")
        self.kind = kind
        self.socket: Socket = context.socket(kind)
        self.connected: set[str] = set()
        self.filters: Filters | None = None
        self._is_bounded = for_topics and kind == XPUB
        self.socket.setsockopt(zmq.LINGER, LINGER_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self.socket.setsockopt(zmq.MAXMSGSIZE, tuning.max_message_bytes)
        tuning.limit_handshake(self.socket)
        if for_topics:
            # No heartbeats: they wait behind filters, of which a publisher takes in one at a time, and none while its
            # loop is held up.
            watch_connection(self.socket)
            if self._is_bounded:
                limit_filters(self.socket)
            else:
                self.socket.setsockopt(zmq.SNDHWM, 0)  # filters beyond it are lost without a word (libzmq#2258)
        else:
            tuning.keep_alive(self.socket)

    def bind(self, addresses: Sequence[str] = ("127.0.0.1",), port: int = 0) -> tuple[str, ...]:
        """Bind every address on one port (0: any free one) and return the endpoints.

        Raises ``AddressUnavailable`` with nothing bound.
        """
        endpoints = bind_all(self.socket, addresses, port)
        if self._is_bounded:
            self.filters = Filters(endpoints)
        return endpoints

    def connect(self, endpoint: str) -> None:
        """Connect, and stay connected until ``disconnect``; libzmq reconnects as often as it takes.

        Connecting twice to one endpoint makes one connection. Raises ``AddressUnavailable`` for what is no
        endpoint.
        """
        if endpoint in self.connected:
            return
        if not is_diallable(endpoint):
            raise AddressUnavailable(
                f'cannot connect to {endpoint!r}; write "tcp://ADDRESS:PORT" with an IP address, for example '
                '"tcp://127.0.0.1:5555"'
            )
        self.socket.setsockopt(zmq.IPV6, 1 if uses_ipv6(endpoint) else 0)
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            reason = f"cannot connect to {endpoint}: {explain(error)}"
            raise AddressUnavailable(error.errno, reason) from error
        self.connected.add(endpoint)

    def disconnect(self, endpoint: str) -> None:
        """Give up a connection; one that does not exist is fine, as is a closed socket."""
        if endpoint not in self.connected:
            return
        self.connected.discard(endpoint)
        try:
            self.socket.disconnect(endpoint)
        except zmq.ZMQError:
            return  # its owner has disconnected or closed it

    def close(self) -> None:
        """Close the socket; what was sent has ``LINGER_MS`` to leave, unless its owner chose otherwise."""
        self.socket.close()


def kind_name(kind: int) -> str:
    """The name of a kind of socket as ZeroMQ writes it.

    >>> kind_name(zmq.PUSH)
    'PUSH'
    """
    return zmq.SocketType(kind).name
