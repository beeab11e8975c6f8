"""The nodes that were reported, so that nothing is reported twice, nor more nodes than anybody could dial."""

from __future__ import annotations

import logging

from meshmsg.discovery.candidate import Candidate, Found, Lost

logger = logging.getLogger("meshmsg.discovery")

# A full mesh of links is meant for some hundreds of nodes. What an announcement costs us ends here, whoever
# sends it.
MAX_CANDIDATES = 1000


class KnownNodes:
    """Passes on what changed to ``found`` and ``lost``, and nothing once it is closed.

    At most ``limit`` nodes are known at a time. Newcomers beyond it are refused, not the old ones replaced:
    so a flood of invented nodes costs at most ``limit`` dials.
    """

    def __init__(self, found: Found, lost: Lost, limit: int | None = None) -> None:
        self._found = found
        self._lost = lost
        self._limit = MAX_CANDIDATES if limit is None else limit
        self._candidates: dict[str, Candidate] = {}
        self._closed = False
        self._complained = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing will be passed on any more."""
        return self._closed

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._candidates

    def __len__(self) -> int:
        return len(self._candidates)

    def has_room_for(self, node_id: str) -> bool:
        """Whether a report of this node would be passed on; a first refusal is logged."""
        if node_id in self._candidates or len(self._candidates) < self._limit:
            return True
        if not self._complained:
            self._complained = True
            logger.warning(
                "%d nodes are announced; further ones are ignored until some leave. "
                "If there are not that many, somebody announces invented ones",
                self._limit,
            )
        return False

    def report(self, candidate: Candidate) -> bool:
        """Pass on a candidate that is new or changed; says whether it was. A seed (no id) always is."""
        if self._closed:
            return False
        node_id = candidate.node_id
        if node_id is not None:
            if self._candidates.get(node_id) == candidate or not self.has_room_for(node_id):
                return False
            self._candidates[node_id] = candidate
        try:
            self._found(candidate)
        except Exception:
            logger.exception("found() failed for %s", candidate)
        return True

    def withdraw(self, node_id: str) -> None:
        """Pass on that a reported node is gone; nothing happens for one that never was reported."""
        if self._candidates.pop(node_id, None) is None:
            return
        self._complained = False
        try:
            self._lost(node_id)
        except Exception:
            logger.exception("lost() failed for node %s", node_id)

    def close(self) -> None:
        """Stay silent from now on."""
        self._closed = True
        self._candidates.clear()
