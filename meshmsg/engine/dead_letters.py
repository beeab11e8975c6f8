"""The dead letters of a node: bounded, listed, redriven."""

from __future__ import annotations

from typing import NamedTuple

from meshmsg.engine.run import Run
from meshmsg.message import DeadLetter

MAX_DEAD_LETTERS = 10_000


class Buried(NamedTuple):
    """A dead letter with the run that can be brought back to life."""

    letter: DeadLetter
    run: Run


class DeadLetterBox:
    """Keeps the newest ``capacity`` dead letters by id; what falls out is counted."""

    def __init__(self, capacity: int = MAX_DEAD_LETTERS) -> None:
        self.capacity = capacity
        self.overflowed = 0
        self._buried: dict[str, Buried] = {}

    def add(self, letter: DeadLetter, run: Run) -> DeadLetter | None:
        """Keeps a letter; returns the oldest one if that had to go for it."""
        self._buried[letter.id] = Buried(letter, run)
        if len(self._buried) <= self.capacity:
            return None
        self.overflowed += 1
        return self._buried.pop(next(iter(self._buried))).letter

    def letters(self, queue: str | None = None) -> list[DeadLetter]:
        """The letters, oldest first."""
        return [each.letter for each in self._buried.values() if queue in (None, each.letter.queue)]

    def find(self, letter_id: str) -> Buried | None:
        """The letter with an id, if it is kept."""
        return self._buried.get(letter_id)

    def remove(self, letter_id: str) -> None:
        """Takes a letter out."""
        del self._buried[letter_id]
