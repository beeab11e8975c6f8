"""What the engine wants done: one batch of effects a drain, in the order of the fields.

The driver commits ``persist`` before it sends ``send`` (G9), sends before it hands out ``deliver``, and arms one
timer for ``wake_at``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from meshmsg.errors import MeshError
from meshmsg.message import DeadLetter, Event


class Dial(NamedTuple):
    """Open a link: one connection to an endpoint, under a routing id of its own."""

    link: int
    endpoint: str
    identity: bytes


class Follow(NamedTuple):
    """Receive what a publisher broadcasts; without an endpoint, change the filters of one that is followed.

    The marker is a filter that is set last.
    """

    number: int
    endpoint: str | None
    filters: list[bytes]
    marker: bytes


class Outcome(NamedTuple):
    """The end of a message somebody watches; ``letter`` is None when it was processed."""

    queue: str
    number: int
    letter: DeadLetter | None


@dataclass(slots=True)
class Effects:
    """One batch of output. Every list may be empty."""

    persist: list[Any] = field(default_factory=list)
    dial: list[Dial] = field(default_factory=list)
    send: list[tuple[int, list[bytes]]] = field(default_factory=list)  # (link, parts)
    hang_up: list[int] = field(default_factory=list)
    publish: list[list[bytes]] = field(default_factory=list)  # parts
    follow: list[Follow] = field(default_factory=list)
    unfollow: list[int] = field(default_factory=list)
    deliver: list[str] = field(default_factory=list)  # queues and subscriptions that got messages
    answered: list[tuple[Any, Any, MeshError | None]] = field(default_factory=list)  # (call, value, error)
    settled: list[Outcome] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    wake_at: float | None = None
