"""A run: messages with consecutive ids that travel, wait and settle together."""

from __future__ import annotations

from typing import Any

from meshmsg.message import Attempt
from meshmsg.wire.frames import measure_details


class Details:
    """What makes a message more than its body; most messages never get one."""

    __slots__ = (
        "attempts",
        "due_at",
        "expires_at",
        "headers",
        "history",
        "in_flight",
        "key",
        "losses",
        "owns_key",
        "priority",
        "redelivered",
        "settled",
        "size",
        "trial",
    )

    def __init__(
        self,
        key: str | None = None,
        priority: int = 0,
        headers: dict[str, Any] | None = None,
        expires_at: float | None = None,
        due_at: float | None = None,
    ) -> None:
        self.size = measure_details(key, headers) if headers or key else 0  # in bytes; raises if it is too much
        self.key = key
        self.priority = priority
        self.headers = headers
        self.expires_at = expires_at
        self.due_at = due_at
        self.attempts = 0  # failed ones, of this life; a redrive starts a new life
        self.losses = 0  # attempts that ended with the loss of the consumer
        self.owns_key = False  # this one is under way, and later ones of its key wait for it
        self.redelivered = False
        self.trial = False  # travels alone, because it may kill its consumer
        self.history: list[Attempt] = []
        self.in_flight = False  # a lane holds it
        self.settled = False  # processed or dead; whoever still finds it in a queue or heap passes it over

    def on_wire(self, now: float) -> dict[str, Any] | None:
        """The map that a ``DATA`` frame carries; None when there is nothing to say."""
        said: dict[str, Any] = {}
        if self.attempts:
            said["a"] = self.attempts + 1
        if self.redelivered:
            said["r"] = True
        if self.trial:
            said["s"] = True
        if self.key is not None:
            said["k"] = self.key
        if self.priority:
            said["p"] = self.priority
        if self.headers:
            said["h"] = self.headers
        if self.expires_at is not None:
            said["x"] = max(0.0, self.expires_at - now)
        return said or None


class Run:
    """Consecutive messages: the id of ``bodies[i]`` is ``first_id + i``. One with details has one body."""

    __slots__ = ("accepted_at", "bodies", "bytes", "details", "first_id", "topic")

    def __init__(
        self,
        first_id: int,
        bodies: list[bytes],
        accepted_at: float,
        details: Details | None = None,
        size: int | None = None,
        topic: str | None = None,
    ) -> None:
        self.first_id = first_id
        self.topic = topic  # of messages that were published, and go to a group
        self.bodies = bodies
        self.bytes = sum(map(len, bodies)) if size is None else size  # of the bodies together
        self.accepted_at = accepted_at
        self.details = details

    def __len__(self) -> int:
        return len(self.bodies)

    def split(self, count: int) -> Run:
        """Takes the first ``count`` messages out of this run and returns them as one of their own."""
        head = Run(self.first_id, self.bodies[:count], self.accepted_at, topic=self.topic)
        del self.bodies[:count]
        self.bytes -= head.bytes
        self.first_id += count
        return head

    def count_fitting(self, max_body_bytes: int) -> int:
        """How many bodies from the first on are no larger than this."""
        if self.bytes <= max_body_bytes:
            return len(self.bodies)
        too_large = (index for index, body in enumerate(self.bodies) if len(body) > max_body_bytes)
        return next(too_large, len(self.bodies))

    def measure(self) -> int:
        """Bytes in a frame, about."""
        return self.bytes + (self.details.size if self.details is not None else 0)

    def on_wire(self, now: float) -> dict[str, Any] | None:
        """The map that a ``DATA`` frame carries beside it; None when there is nothing to say."""
        said = self.details.on_wire(now) if self.details is not None else None
        return {**(said or {}), "t": self.topic} if self.topic is not None else said

    def require_details(self) -> Details:
        """The details of a single message, made when it first needs some."""
        assert len(self.bodies) == 1, "details belong to a single message"
        if self.details is None:
            self.details = Details()
        return self.details
