"""Plain ZeroMQ sockets that discovery keeps connected: the matchmaking, with nothing on top."""

from __future__ import annotations

from typing import Any

from meshmsg.driver import Driver
from meshmsg.errors import ConfigurationError, NameClash
from meshmsg.transport.raw import BINDING, COUNTERPARTS, RawSocket, kind_name
from meshmsg.transport.zmq import ZmqTransport

OFFER = "raw"
# Those that find each other: of every two that talk, one binds.
KINDS = tuple(kind for kind, others in COUNTERPARTS.items() if kind in BINDING or others & BINDING)


class RawSockets:
    """A node's raw sockets: those that bind are offered to the mesh, the others connect to what is offered.

    One that its owner closes is offered until the next turn of the node, which is a second later at most.

    Attributes
    ----------
    dropped, refused:
        What bare sockets lost here, counted for the whole node: messages without room at a subscription, and those
        that were none.
    """

    def __init__(self, driver: Driver, transport: ZmqTransport, addresses: tuple[str, ...]) -> None:
        self.dropped = 0
        self.refused = 0
        self._driver = driver
        self._transport = transport
        self._addresses = addresses
        self._open: dict[str, RawSocket] = {}  # by "KIND name"
        driver.on_topology.append(self.match)

    def open(self, kind: int, name: str, *, for_topics: bool = False) -> RawSocket:
        """A socket of a kind under a name; ``RawSocket`` has more. Raises ``ConfigurationError``, ``NameClash``."""
        if not isinstance(kind, int) or kind not in KINDS:
            known = ", ".join(f"zmq.{kind_name(each)}" for each in KINDS)
            why = "; of two PAIRs none is offered, so they would not meet" if kind in COUNTERPARTS else ""
            raise ConfigurationError(f"raw(kind) takes one of {known}, not {kind!r}{why}")
        key = f"{kind_name(kind)} {name}"
        if key in self._open and not self._open[key].socket.closed:
            raise NameClash(f"this node already has a raw {key!r}: use that socket, or another name")
        raw = self._transport.raw(kind, for_topics=for_topics)
        if kind in BINDING:
            try:
                endpoints = raw.bind(self._addresses)
            except BaseException:
                raw.close()
                raise
            self._driver.engine.offer(OFFER, key, {"endpoints": list(endpoints)})
        self._open[key] = raw
        self._driver.after_turn[self] = self._look
        self.match()
        self._driver.wake()
        return raw

    def close(self, raw: RawSocket) -> None:
        """Closes a socket, and tells the mesh if it was offered."""
        for key, other in list(self._open.items()):
            if other is raw:
                del self._open[key]
                if raw.kind in BINDING:
                    self._driver.engine.withdraw(OFFER, key)
                    self._driver.wake()
        raw.close()
        if not self._open:
            self._driver.after_turn.pop(self, None)

    def match(self) -> None:
        """Connects every connecting socket to exactly what living nodes offer for it, this one included."""
        for key, raw in list(self._open.items()):
            if raw.socket.closed:
                self.close(raw)  # its owner closed it
            elif raw.kind not in BINDING:
                name = key.partition(" ")[2]
                wanted = {
                    endpoint
                    for other in COUNTERPARTS[raw.kind]
                    for offer in self._driver.engine.offered(OFFER, f"{kind_name(other)} {name}")
                    for endpoint in _first_endpoint(offer)
                    if self._transport.may_dial(endpoint)
                }
                for endpoint in raw.connected - wanted:
                    raw.disconnect(endpoint)
                for endpoint in wanted - raw.connected:
                    raw.connect(endpoint)

    def _look(self) -> None:
        """After each turn: nothing tells that an owner closed a socket, and peers go on feeding it until they hear."""
        if self._driver.usable and any(raw.socket.closed for raw in self._open.values()):
            self.match()


def count_losses(raws: RawSockets | None) -> dict[str, int]:
    """For ``node.counters()``; before the start there are no sockets."""
    return {
        "dropped_bare_messages": raws.dropped if raws is not None else 0,
        "refused_bare_messages": raws.refused if raws is not None else 0,
    }


def _first_endpoint(offer: dict[str, Any]) -> list[str]:
    """One way to a socket is enough; a second connection to it would double its share."""
    endpoints = offer.get("endpoints")
    return [str(endpoints[0])] if isinstance(endpoints, list) and endpoints else []
