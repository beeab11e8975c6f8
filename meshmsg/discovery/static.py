"""Discovery by addresses that somebody wrote down: the seeds."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence

from meshmsg.addresses import is_address
from meshmsg.discovery.candidate import Candidate, Found, Lost
from meshmsg.discovery.endpoint import join_endpoint, split_endpoint
from meshmsg.discovery.known import KnownNodes
from meshmsg.errors import ConfigurationError, MeshError

FIRST_PAUSE_S = 0.5  # after a name that could not be looked up; doubles
MAX_PAUSE_S = 30.0

logger = logging.getLogger("meshmsg.discovery")


class StaticDiscovery:
    """Reports each seed once, at the start. Announces nothing and loses nothing.

    ``seeds`` are addresses like ``"tcp://host:port"`` or ``"host:port"``; the host may be a name, which is
    looked up first. A seed that is down is no error: whoever dials it keeps trying.
    Raises ``ConfigurationError`` for a seed that cannot be dialled, naming it and the right form.

    >>> StaticDiscovery(["sensors.example:41001"]).endpoints
    ('tcp://sensors.example:41001',)
    """

    def __init__(self, seeds: Sequence[str]) -> None:
        if isinstance(seeds, str | bytes):
            raise ConfigurationError(f"seeds must be a list of addresses, not one string: write seeds=[{seeds!r}]")
        self.endpoints = tuple(dict.fromkeys(join_endpoint(*split_endpoint(seed)) for seed in seeds))
        self._known: KnownNodes | None = None
        self._look_ups: list[asyncio.Future[None]] = []
        self._closed = False

    async def start(self, found: Found, lost: Lost) -> None:
        """Report every seed; see ``Discovery.start``."""
        if self._known is not None or self._closed:
            raise MeshError("this discovery was already started or closed; make a new one for each start")
        self._known = KnownNodes(found, lost)
        logger.debug("%d seeds to dial", len(self.endpoints))
        for endpoint in self.endpoints:
            host, port = split_endpoint(endpoint)
            if is_address(host):
                self._known.report(Candidate(None, (endpoint,)))
            else:
                self._look_ups.append(asyncio.ensure_future(self._look_up(host, port)))

    async def _look_up(self, host: str, port: int) -> None:
        """Turns a name into addresses, and tries until it succeeds: the name server may start later than we do."""
        assert self._known is not None, "look-ups begin in start()"
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError as error:
                logger.warning("seed %s:%d cannot be looked up (%s); trying again in %g s", host, port, error, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, MAX_PAUSE_S)
                continue
            addresses = dict.fromkeys(str(address[0]) for *_, address in found)
            self._known.report(Candidate(None, tuple(join_endpoint(address, port) for address in addresses)))
            return

    async def close(self) -> None:
        """Stop; see ``Discovery.close``."""
        self._closed = True
        for look_up in self._look_ups:
            look_up.cancel()
        if self._known is not None:
            self._known.close()
