"""Discovery by addresses that somebody wrote down: the seeds."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from meshmsg.discovery.candidate import Candidate, Found, Lost
from meshmsg.discovery.endpoint import join_endpoint, split_endpoint
from meshmsg.discovery.known import KnownNodes
from meshmsg.errors import ConfigurationError, MeshError

logger = logging.getLogger("meshmsg.discovery")


class StaticDiscovery:
    """Reports each seed once, at the start. Announces nothing and loses nothing.

    ``seeds`` are addresses like ``"tcp://host:port"`` or ``"host:port"``; the host may be a name, which is
    looked up when it is dialled. A seed that is down is no error: whoever dials it keeps trying.
    Raises ``ConfigurationError`` for a seed that cannot be dialled, naming it and the right form.

    >>> StaticDiscovery(["sensors.example:41001"]).endpoints
    ('tcp://sensors.example:41001',)
    """

    def __init__(self, seeds: Sequence[str]) -> None:
        if isinstance(seeds, str | bytes):
            raise ConfigurationError(f"seeds must be a list of addresses, not one string: write seeds=[{seeds!r}]")
        self.endpoints = tuple(dict.fromkeys(join_endpoint(*split_endpoint(seed)) for seed in seeds))
        self._known: KnownNodes | None = None
        self._closed = False

    async def start(self, found: Found, lost: Lost) -> None:
        """Report every seed; see ``Discovery.start``."""
        if self._known is not None or self._closed:
            raise MeshError("this discovery was already started or closed; make a new one for each start")
        self._known = KnownNodes(found, lost)
        logger.debug("%d seeds to dial", len(self.endpoints))
        for endpoint in self.endpoints:
            self._known.report(Candidate(None, (endpoint,)))

    async def close(self) -> None:
        """Stop; see ``Discovery.close``."""
        self._closed = True
        if self._known is not None:
            self._known.close()
