"""Who this node is to others, and where: what it announces through mDNS, checked before anything is sent."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from meshmsg.addresses import is_loopback
from meshmsg.discovery.announcement import MAX_ADDRESSES, Reach, check_mesh, check_node_id
from meshmsg.discovery.endpoint import split_endpoint
from meshmsg.discovery.interfaces import describe_interfaces
from meshmsg.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Presence:
    """One node as it is announced: itself, its addresses with their port, and the interfaces to use."""

    mesh: str
    node_id: str
    name: str
    addresses: tuple[str, ...]
    port: int
    interfaces: tuple[str, ...]

    @property
    def is_local(self) -> bool:
        """Whether it stays on this machine."""
        return all(map(is_loopback, self.interfaces))

    @property
    def reach(self) -> Reach:
        """The addresses of others that it dials."""
        return Reach(
            loopback=any(map(is_loopback, self.interfaces)),
            network=not self.is_local,
            ipv6=any(":" in address for address in self.addresses),
        )


def check_presence(
    *, mesh: str, node_id: str, name: str, endpoints: Sequence[str], interfaces: Sequence[str]
) -> Presence:
    """The presence of these; raises ``ConfigurationError`` for what cannot be announced."""
    checked_interfaces = _check_interfaces(interfaces)
    addresses, port = _check_endpoints(endpoints, local=all(map(is_loopback, checked_interfaces)))
    return Presence(check_mesh(mesh), check_node_id(node_id), name, addresses, port, checked_interfaces)


def _check_interfaces(interfaces: Sequence[str]) -> tuple[str, ...]:
    if isinstance(interfaces, str):
        raise ConfigurationError(f"interfaces must be a list of IP addresses, not one string: write [{interfaces!r}]")
    for address in interfaces:
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        except (OSError, TypeError):
            raise ConfigurationError(
                f"mDNS listens on IP addresses of this machine, not on {address!r}; there are {describe_interfaces()}"
            ) from None
        if address == "::1":
            raise ConfigurationError('mDNS does not work on ::1 (python-zeroconf); use "127.0.0.1"')
    if not interfaces:
        raise ConfigurationError('mDNS needs an interface to listen on, for example interfaces=["127.0.0.1"]')
    return tuple(interfaces)


def _check_endpoints(endpoints: Sequence[str], *, local: bool) -> tuple[tuple[str, ...], int]:
    if isinstance(endpoints, str):
        raise ConfigurationError(f"endpoints must be a list, not one string: write endpoints=[{endpoints!r}]")
    pairs = [split_endpoint(endpoint) for endpoint in endpoints]
    if not pairs:
        raise ConfigurationError("a node without an endpoint cannot be announced")
    ports = {port for _, port in pairs}
    if len(ports) > 1:
        raise ConfigurationError(f"the endpoints of a node share one port (SRV holds one), not {sorted(ports)}")
    everything = Reach(loopback=True, network=not local, ipv6=True)
    for host, _ in pairs:
        if not everything.admits(host):
            where = "on loopback only, as its interfaces are (G12)" if local else "that can be dialled"
            raise ConfigurationError(f"this node announces IP addresses {where}, not {host!r}")
    addresses = tuple(dict.fromkeys(host for host, _ in pairs))
    return addresses[:MAX_ADDRESSES], ports.pop()
