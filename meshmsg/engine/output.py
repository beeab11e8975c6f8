"""What the parts of the engine have in common: the time, and where to put what they want done."""

from __future__ import annotations

from collections.abc import Iterable

from meshmsg.engine.effects import Effects
from meshmsg.engine.notes import Notes
from meshmsg.wire import frames


class Output:
    """Collects one batch of effects. ``now`` is the time of the input that is being handled.

    ``wall_offset`` is what the wall clock is ahead of ``now``, for times that people read.
    """

    def __init__(self, wall_offset: float) -> None:
        self.now = 0.0
        self.effects = Effects()
        self.notes = Notes(wall_offset)

    @property
    def wall_offset(self) -> float:
        """In seconds."""
        return self.notes.wall_offset

    @wall_offset.setter
    def wall_offset(self, seconds: float) -> None:
        self.notes.wall_offset = seconds

    def send(self, link: int, frame: frames.Frame) -> None:
        """One frame is to leave on a link."""
        self.effects.send.append((link, frames.encode(frame)))

    def send_all(self, links: Iterable[int], frame: frames.Frame) -> None:
        """One frame is to leave on each of these links; it is encoded once."""
        parts: list[bytes] | None = None
        for link in links:
            parts = parts or frames.encode(frame)
            self.effects.send.append((link, parts))

    def take(self) -> Effects:
        """Everything since the last time."""
        effects, self.effects = self.effects, Effects()
        if self.notes.events:
            effects.events = self.notes.take()
        return effects
