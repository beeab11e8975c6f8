"""How far a node reaches: its own machine, unless somebody insists (G12)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from meshmsg.addresses import is_address, is_loopback
from meshmsg.checks import require_strings
from meshmsg.discovery import local_addresses
from meshmsg.discovery.endpoint import split_endpoint
from meshmsg.errors import ConfigurationError

logger = logging.getLogger("meshmsg.node")


def choose_addresses(interfaces: Sequence[str] | None, unencrypted: bool) -> tuple[str, ...]:
    """Loopback unless somebody insists: without a key nothing leaves the machine (G12)."""
    if interfaces is None:
        return ("127.0.0.1",)
    require_strings("Node(interfaces=)", interfaces, 'write interfaces=["eth0"]')
    if not interfaces:
        raise ConfigurationError("Node(interfaces=) takes at least one name or address; None is loopback")
    addresses = tuple(local_addresses(loopback=False, only=interfaces))
    beyond = [address for address in addresses if not is_loopback(address)]
    if beyond and not unencrypted:
        raise ConfigurationError(
            f"interfaces={list(interfaces)} reach beyond this machine ({', '.join(beyond)}), and this version of "
            "meshmsg cannot encrypt yet: stay on loopback, or say unencrypted=True on a test network"
        )
    if beyond:
        logger.warning("traffic on %s is neither encrypted nor authenticated", ", ".join(beyond))
    return addresses


def require_reach(seeds: Sequence[str], addresses: Sequence[str]) -> None:
    """A node on loopback dials nobody beyond (G12); a name in a seed is judged when it has been looked up."""
    for seed in seeds:
        host, _ = split_endpoint(seed)
        if is_address(host) and not is_loopback(host) and all(map(is_loopback, addresses)):
            raise ConfigurationError(
                f"seed {seed} is beyond this machine, and without a key a node stays on loopback: use a loopback "
                "address, or interfaces=[...] with unencrypted=True on a test network"
            )
