"""The dead letters of a node: bounded, listed, redriven."""

from __future__ import annotations

from typing import Any, NamedTuple

from meshmsg.engine.run import Run
from meshmsg.message import DeadLetter, Reason
from meshmsg.wire.codec import decode_body

MAX_DEAD_LETTERS = 10_000
TOLD_ATTEMPTS = 20  # the newest of them
TOLD = "dead-letter"  # the header that tells what happened to a message


class Buried(NamedTuple):
    """A dead letter with the run that can be brought back to life."""

    letter: DeadLetter
    run: Run


def make_letter(
    node_id: str, queue: str, run: Run, reason: Reason, error: str, now: float, wall_offset: float
) -> DeadLetter:
    """What is left of a message that died now."""
    details = run.require_details()
    return DeadLetter(
        id=f"{node_id[:12]}/{queue}/{run.first_id}",
        queue=queue,
        body=decode_body(run.bodies[0]),
        headers=details.headers or {},
        key=details.key,
        reason=reason,
        error=error,
        attempts=tuple(details.history),
        accepted_at=run.accepted_at + wall_offset,
        died_at=now + wall_offset,
    )


def headers_of(letter: DeadLetter) -> dict[str, Any]:
    """The headers under which a letter moves to a queue of its own."""
    told = {
        "id": letter.id,
        "queue": letter.queue,
        "reason": letter.reason,
        "error": letter.error,
        "attempts": [list(attempt) for attempt in letter.attempts[-TOLD_ATTEMPTS:]],
    }
    return {**letter.headers, TOLD: told}


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
