"""What a node knows of services as their client: by service, who offers it and how it did."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from meshmsg.engine.providers import Clients


class Directory(dict[str, Clients]):
    """Services that somebody offers, or that this node has asked."""

    def __init__(self, generator: random.Random) -> None:
        super().__init__()
        self._generator = generator

    def of(self, service: str) -> Clients:
        """What is known of a service; from now on something is."""
        known = self.get(service)
        if known is None:
            known = self[service] = Clients(self._generator)
        return known

    def update_peer(
        self, key: str, name: str, services: Mapping[str, Mapping[str, Any]], *, alive: bool, suspect: bool
    ) -> set[str]:
        """Takes what a peer offers, complete; returns the services of which that changes whom to ask."""
        for service in services:
            self.of(service)
        changed: set[str] = set()
        for service, known in self.items():
            offer = services.get(service)
            if offer is None:
                news = known.providers.remove(key)
            else:
                serving = offer.get("serving", True) is not False
                news = known.providers.update(key, name, serving=serving, alive=alive, suspect=suspect)
            if news:
                changed.add(service)
        return changed

    def remove_peer(self, key: str) -> set[str]:
        """A peer's life ended; returns the services of which it was one to ask."""
        return {service for service, known in self.items() if known.providers.remove(key)}

    def forget_unused(self) -> None:
        """Keeps nothing of services that nobody offers any more and this node never asked."""
        for service in [service for service, known in self.items() if known.unused]:
            del self[service]

    def check(self, asked: Mapping[int, int]) -> None:
        """Raises AssertionError unless each provider is counted to owe what it was asked, by its ``id``."""
        for service, clients in self.items():
            clients.providers.check()
            for each in clients.providers.everybody():
                counted, found = each.pending, asked.get(id(each), 0)
                assert counted == found, f"{each.name} owes {found} answers of {service}, counted are {counted}"
