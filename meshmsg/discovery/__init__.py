"""Finding nodes: ``MdnsDiscovery`` by multicast DNS, ``StaticDiscovery`` by given addresses.

Each reports ``Candidate`` objects and follows the ``Discovery`` protocol. What is reported is a hint: a node
that might exist, under an address that a stranger may have invented.
"""

from __future__ import annotations

from meshmsg.discovery.candidate import Candidate, Discovery, Found, Lost
from meshmsg.discovery.interfaces import local_addresses
from meshmsg.discovery.mdns import MdnsDiscovery
from meshmsg.discovery.static import StaticDiscovery

__all__ = ["Candidate", "Discovery", "Found", "Lost", "MdnsDiscovery", "StaticDiscovery", "local_addresses"]
