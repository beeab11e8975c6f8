"""What an operator is told, without telling it over and over."""

from __future__ import annotations

from meshmsg.message import Event

REPEAT_AFTER_S = 10.0  # the same event about the same peer is told once in this time
MAX_REMEMBERED = 10_000


class Notes:
    """Collects events until somebody takes them."""

    def __init__(self, wall_offset: float) -> None:
        self.wall_offset = wall_offset
        self.events: list[Event] = []
        self._told: dict[tuple[str, str], float] = {}

    def tell(self, kind: str, peer: str, node_id: str, text: str, now: float, *, always: bool = False) -> None:
        """Adds an event, unless it is a repetition; ``always`` for what cannot be told too often."""
        if not always:
            last = self._told.get((kind, node_id))
            if last is not None and now - last < REPEAT_AFTER_S:
                return
            if len(self._told) > MAX_REMEMBERED:
                self._told.clear()
            self._told[kind, node_id] = now
        self.events.append(Event(kind, now + self.wall_offset, peer, node_id, "", text))

    def take(self) -> list[Event]:
        """The events since the last time."""
        events, self.events = self.events, []
        return events
