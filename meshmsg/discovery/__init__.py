"""Finding nodes: ``MdnsDiscovery`` by multicast DNS, ``StaticDiscovery`` by given addresses.

Each reports ``Candidate`` objects and follows the ``Discovery`` protocol. What is reported is a hint: a node
that might exist, under an address that a stranger may have invented. zeroconf is imported (15 to 40 ms) only
when ``MdnsDiscovery`` is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshmsg.discovery.candidate import Candidate, Discovery, Found, Lost
from meshmsg.discovery.interfaces import local_addresses
from meshmsg.discovery.static import StaticDiscovery

if TYPE_CHECKING:
    from meshmsg.discovery.mdns import MdnsDiscovery

__all__ = ["Candidate", "Discovery", "Found", "Lost", "MdnsDiscovery", "StaticDiscovery", "local_addresses"]


def __getattr__(name: str) -> object:
    if name == "MdnsDiscovery":
        from meshmsg.discovery.mdns import MdnsDiscovery

        return MdnsDiscovery
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
