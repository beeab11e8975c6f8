"""What every kind of discovery reports, and the protocol that each of them follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that might exist. Discovery hints; only the node's own HELLO and heartbeats say who lives.

    ``node_id`` is None for a seed, whose id is unknown until its HELLO. ``endpoints`` are ZeroMQ addresses
    such as ``"tcp://127.0.0.1:41001"``, all of one node, to be dialled side by side. ``name`` comes from a
    stranger: show it, never decide by it.
    """

    node_id: str | None
    endpoints: tuple[str, ...]
    name: str = ""


Found = Callable[[Candidate], None]
Lost = Callable[[str], None]


class Discovery(Protocol):
    """Finds candidates and, where the kind allows it, announces this node to others."""

    async def start(self, found: Found, lost: Lost) -> None:
        """Begin. Call once.

        ``found(candidate)`` is called on the event loop, possibly before ``start`` returns: once for each
        node, and again when its endpoints or name changed, but never repeated for an unchanged one.
        ``lost(node_id)`` is called when a node withdrew its announcement or the announcement ran out; a node
        that crashed, or whose withdrawal got lost, stays announced for minutes. Exceptions they raise are
        logged.

        Raises ``DiscoveryUnavailable`` if this kind of discovery cannot run here, and ``MeshError`` if it was
        started or closed before. If ``close`` is called meanwhile, it returns and nothing is reported.
        """
        ...

    async def close(self) -> None:
        """Withdraw what was announced and stop: no callback comes after this call began.

        Takes about a second at most. May be called at any time and any number of times.
        """
        ...
