"""Discovery by multicast DNS: the life of one announcement. The network is ``responder``'s."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshmsg.discovery.candidate import Found, Lost
from meshmsg.discovery.known import KnownNodes
from meshmsg.discovery.presence import check_presence
from meshmsg.errors import MeshError

if TYPE_CHECKING:
    from meshmsg.discovery.responder import Responder


class MdnsDiscovery:
    """Announces one node on some interfaces, and finds the others of its mesh there.

    ``endpoints`` are the node's own, with IP addresses and all with one port; ``interfaces`` are IP addresses
    of this machine to announce and listen on (``local_addresses`` knows them). With loopback addresses only,
    the default, nothing leaves the machine and only loopback endpoints are believed (G12). IPv6 endpoints of
    others are reported if this node has one itself.

    Raises ``ConfigurationError`` for what cannot be announced.
    """

    def __init__(
        self,
        *,
        mesh: str,
        node_id: str,
        name: str,
        endpoints: Sequence[str],
        interfaces: Sequence[str] = ("127.0.0.1",),
    ) -> None:
        self._presence = check_presence(
            mesh=mesh, node_id=node_id, name=name, endpoints=endpoints, interfaces=interfaces
        )
        self._known: KnownNodes | None = None
        self._responder: Responder | None = None
        self._closing: asyncio.Task[None] | None = None

    async def start(self, found: Found, lost: Lost) -> None:
        """Listen, ask and announce, in a few milliseconds; see ``Discovery.start``."""
        if self._known is not None or self._closing is not None:
            raise MeshError("this discovery was already started or closed; make a new one for each start")
        # zeroconf takes 15 to 40 ms to import, which a program that never starts mDNS need not wait for.
        from meshmsg.discovery.responder import Responder

        self._known = KnownNodes(found, lost)
        self._responder = Responder(self._presence, self._known)
        try:
            await self._responder.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Say goodbye and stop; see ``Discovery.close``."""
        if self._closing is None:
            if self._known is not None:
                self._known.close()
            # A task of its own: a caller that is cancelled here must not leave sockets open, and a second
            # caller waits for the first one's work.
            self._closing = asyncio.ensure_future(self._shut_down())
        await asyncio.shield(self._closing)

    async def _shut_down(self) -> None:
        if self._responder is not None:
            await self._responder.close()
