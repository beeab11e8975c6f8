"""How frames travel between nodes. Only this room imports zmq.

A node has one inbox that it only reads, and one link to each peer that it only writes to. What a peer answers
comes over the peer's own link. A link is one connection and is never mended: when it ends, the engine dials
again under a new number and a new identity, so nothing can arrive late, twice or under a name that was used
before.
"""

from __future__ import annotations

from meshmsg.transport.interface import LinkEvent, Transport

__all__ = ["LinkEvent", "Transport"]
