"""The dead letters of a node: bounded, listed, redriven."""

from __future__ import annotations

from typing import Any, NamedTuple

from meshmsg.engine.run import Run
from meshmsg.message import DeadLetter, Reason
from meshmsg.wire.codec import decode_body

MAX_DEAD_LETTERS = 10_000
MAX_DEAD_LETTER_BYTES = 64 * 2**20
TOLD_ATTEMPTS = 20  # the newest of them
TOLD = "dead-letter"  # the header that tells what happened to a message


class Buried(NamedTuple):
    """A dead letter with the run that can be brought back to life."""

    letter: DeadLetter
    run: Run
    size: int


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
        topic=run.topic,
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
    if letter.topic is not None:
        told["topic"] = letter.topic
    return {**letter.headers, TOLD: told}


def measure(letter: DeadLetter, run: Run) -> int:
    """The bytes that a letter counts for: its encoded body, key and headers, and what was said of its attempts."""
    texts = sum(len(attempt.consumer) + len(attempt.error) for attempt in letter.attempts)
    return len(run.bodies[0]) + run.require_details().size + texts


class DeadLetterBox:
    """Keeps the newest ``capacity`` dead letters by id, as far as ``capacity_bytes`` allow; the last one always."""

    def __init__(self, capacity: int = MAX_DEAD_LETTERS, capacity_bytes: int = MAX_DEAD_LETTER_BYTES) -> None:
        self.capacity = capacity
        self.capacity_bytes = capacity_bytes
        self.overflowed = 0  # letters that fell out
        self.size = 0  # bytes
        self._buried: dict[str, Buried] = {}

    def add(self, letter: DeadLetter, run: Run) -> list[DeadLetter]:
        """Keeps a letter; returns the oldest ones, which had to go for it."""
        buried = Buried(letter, run, measure(letter, run))
        self._buried[letter.id] = buried
        self.size += buried.size
        fallen: list[DeadLetter] = []
        while len(self._buried) > self.capacity or (self.size > self.capacity_bytes and len(self._buried) > 1):
            oldest = next(iter(self._buried))
            fallen.append(self._buried[oldest].letter)
            self.remove(oldest)
        self.overflowed += len(fallen)
        return fallen

    def letters(self, queue: str | None = None) -> list[DeadLetter]:
        """The letters, oldest first."""
        return [each.letter for each in self._buried.values() if queue in (None, each.letter.queue)]

    def find(self, letter_id: str) -> Buried | None:
        """The letter with an id, if it is kept."""
        return self._buried.get(letter_id)

    def remove(self, letter_id: str) -> None:
        """Takes a letter out."""
        self.size -= self._buried.pop(letter_id).size

    def check(self) -> None:
        """Own invariants, for the simulator."""
        assert len(self._buried) <= self.capacity
        assert self.size == sum([size for _, _, size in self._buried.values()]), f"counts {self.size} bytes"
        assert self.size <= self.capacity_bytes or len(self._buried) == 1, f"{self.size} bytes are too many"
