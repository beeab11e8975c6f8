"""What the driver expects of a transport."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from typing import Protocol


class LinkEvent(enum.Enum):
    """What became of a dialled link: REFUSED, FAILED, or UP and later DOWN; and then nothing more."""

    UP = "up"
    """The connection stands and the other side speaks the transport's protocol."""
    REFUSED = "refused"
    """The host answered that nobody listens there: the process is gone."""
    FAILED = "failed"
    """It never came up: no way to the host, no answer in time, or something else listens there."""
    DOWN = "down"
    """It was up and has ended: the other process died, closed, froze, or the network between is cut."""


class Transport(Protocol):
    """A node's inbox and links. Call ``bind``, then ``start``, then the rest, from the loop's thread only."""

    def bind(self) -> tuple[str, ...]:
        """Open the inbox and return the endpoints that others can dial."""
        ...

    def start(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        """Have ``loop`` call ``wake`` when there may be something to read, or room after a refused send."""
        ...

    def dial(self, link: int, endpoint: str, identity: bytes) -> None:
        """Open a link. Never waits: a ``LinkEvent`` says what came of it, within a few seconds.

        ``link`` and ``identity`` (1 to 255 bytes, the first not zero) must not have been used before: the
        other side receives under ``identity`` as the route.
        """
        ...

    def hang_up(self, link: int, linger_ms: int = 0) -> None:
        """Close a link without an event; what was sent has ``linger_ms`` to leave. Unknown links are fine."""
        ...

    def send(self, link: int, frames: Sequence[bytes]) -> bool:
        """Hand over one message; false if the link has no room now, is gone or unknown. Never waits.

        May be called right after ``dial``: the message leaves when the link comes up. True means "on its
        way", not "arrived": what a link still held when it ended is lost.
        """
        ...

    def receive(self, limit: int) -> list[tuple[bytes, list[bytes]]]:
        """Up to ``limit`` messages that have arrived, as ``(route, frames)``, in order per route.

        No frames at all stand for a message that was refused, because it was too large or broke the framing.
        """
        ...

    def more(self) -> bool:
        """Whether the last ``receive`` stopped at its limit. Then call it again: no wake will come."""
        ...

    def link_events(self) -> list[tuple[int, LinkEvent]]:
        """What became of links since the last call. One that is not UP is closed and forgotten."""
        ...

    def close(self, linger_ms: int = 0) -> None:
        """Close everything, without waiting; what was sent has ``linger_ms`` to leave. Again is fine."""
        ...

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait in this thread until what ``close`` left to the background is done; whether it is."""
        ...
