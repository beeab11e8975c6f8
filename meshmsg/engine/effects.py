"""What the engine wants done: one batch of effects a drain.

The driver carries them out in the order of the fields: first what goes to others, then what the application is told.
"""

from __future__ import annotations

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


class Effects:
    """One batch of output, in the order in which it is carried out. Every list may be empty."""

    __slots__ = (
        "answered",
        "dead",
        "deliver",
        "dial",
        "events",
        "follow",
        "hang_up",
        "publish",
        "send",
        "settled",
        "unfollow",
        "wake_at",
    )

    def __init__(self) -> None:
        self.dial: list[Dial] = []
        self.send: list[tuple[int, list[bytes]]] = []  # (link, parts)
        self.hang_up: list[int] = []
        self.publish: list[list[bytes | memoryview]] = []  # parts
        self.unfollow: list[int] = []
        self.follow: list[Follow] = []
        self.answered: list[tuple[Any, Any, MeshError | None]] = []  # (call, value, error)
        self.settled: list[Outcome] = []
        self.dead: list[DeadLetter] = []
        self.events: list[Event] = []
        self.deliver: list[str] = []  # queues and subscriptions that got messages
        self.wake_at: float | None = None  # for the one timer
