"""Plain ZeroMQ sockets that discovery keeps connected: the matchmaking, with nothing on top."""

from __future__ import annotations

from typing import Any

from meshmsg.driver import Driver
from meshmsg.errors import ConfigurationError, NameClash
from meshmsg.transport.raw import BINDING, COUNTERPARTS, RawSocket, kind_name
from meshmsg.transport.zmq import ZmqTransport

OFFER = "raw"


class RawSockets:
    """A node's raw sockets: those that bind are offered to the mesh, the others connect to what is offered."""

    def __init__(self, driver: Driver, transport: ZmqTransport, addresses: tuple[str, ...]) -> None:
        self._driver = driver
        self._transport = transport
        self._addresses = addresses
        self._open: dict[str, RawSocket] = {}  # by "KIND name"
        driver.on_topology.append(self.match)

    def open(self, kind: int, name: str) -> RawSocket:
        """A socket of a kind under a name. Raises ``ConfigurationError``, ``NameClash``."""
        if not isinstance(kind, int) or kind not in COUNTERPARTS:
            known = ", ".join(f"zmq.{kind_name(each)}" for each in COUNTERPARTS)
            raise ConfigurationError(f"raw(kind) takes one of {known}, not {kind!r}")
        key = f"{kind_name(kind)} {name}"
        if key in self._open and not self._open[key].socket.closed:
            raise NameClash(f"this node already has a raw {key!r}: use that socket, or another name")
        raw = self._open[key] = self._transport.raw(kind)
        if kind in BINDING:
            endpoints = raw.bind(self._addresses)
            self._driver.engine.offer(OFFER, key, {"endpoints": list(endpoints)})
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


def _first_endpoint(offer: dict[str, Any]) -> list[str]:
    """One way to a socket is enough; a second connection to it would double its share."""
    endpoints = offer.get("endpoints")
    return [str(endpoints[0])] if isinstance(endpoints, list) and endpoints else []
