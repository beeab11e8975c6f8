"""What a node knows of services as their client: by service, who offers it and how it did."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from meshmsg.engine.providers import Clients


class Directory(dict[str, Clients]):
    """Services that somebody offers. Of others nothing is kept, whoever asks; calls under way have what was known."""

    def __init__(self, generator: random.Random) -> None:
        super().__init__()
        self._generator = generator
        self._nobody = Clients(generator)  # has no providers, and never gets any

    def of(self, service: str) -> Clients:
        """What is known of a service; of all that nobody offers the same."""
        return self.get(service, self._nobody)

    def update_peer(
        self, key: str, name: str, services: Mapping[str, Mapping[str, Any]], *, alive: bool, suspect: bool
    ) -> set[str]:
        """Takes what a peer offers, complete; returns the services of which that changes whom to ask."""
        for service in services:
            if service not in self:
                self[service] = Clients(self._generator)
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
        self._forget_unoffered()
        return changed

    def remove_peer(self, key: str) -> set[str]:
        """A peer's life ended; returns the services of which it was one to ask."""
        changed = {service for service, known in self.items() if known.providers.remove(key)}
        self._forget_unoffered()
        return changed

    def _forget_unoffered(self) -> None:
        for service in [service for service, known in self.items() if not known.providers.everybody()]:
            del self[service]

    def check(self, asked: Mapping[int, int]) -> None:
        """Raises AssertionError unless each provider is counted to owe what it was asked, by its ``id``."""
        assert not self._nobody.providers.everybody(), "somebody offers what nobody offers"
        for service, clients in self.items():
            assert clients.providers.everybody(), f"nobody offers {service}, and it is kept"
            clients.providers.check()
            for each in clients.providers.everybody():
                counted, found = each.pending, asked.get(id(each), 0)
                assert counted == found, f"{each.name} owes {found} answers of {service}, counted are {counted}"
