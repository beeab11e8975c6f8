"""What the driver expects of a transport."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeAlias


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

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, perhaps because the process ends and nobody had."""
        ...

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


Published: TypeAlias = tuple[bytes, bytes, bytes | memoryview]
"""A published message: topic, header, bodies. Large bodies are a view, which keeps them in memory while it lives."""


class Broadcast(Protocol):
    """A node's publishing and following. From the loop's thread only, after ``Transport.start``.

    ``wake`` is called when one of ``subscriptions``, ``follow_events`` and ``receive_published`` may have news.
    """

    def open_broadcast(self) -> tuple[str, ...]:
        """Open the publisher's end, once, and return the endpoints that others can follow."""
        ...

    def publish(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Send ``[topic, header, bodies]`` to everybody with a filter that the topic begins with. Never waits.

        With more parts, ``[topic, header, piece, header, piece, ...]``, it leaves as several messages, each with the
        topic, a header and a piece. They wait here for ``advance``, and with them what follows in their topic; other
        topics' messages go first. Who has no room for a message misses it, the others don't. False if somebody began
        to miss messages with this one.
        """
        ...

    def advance(self) -> None:
        """Send some of what waits; call it at the end of a turn, and again while ``more``."""
        ...

    def subscriptions(self) -> list[tuple[bytes, bool]]:
        """Filters since the last call: added (true), by anybody, or removed (false), by the last who had it.

        In order for each subscriber: when its marker shows up, its filters up to there are in force, and what is
        published from now on reaches it. Call again while ``more``.
        """
        ...

    def refusals(self) -> list[str]:
        """Subscribers that lost their connections since the last call as they asked for too much, in words."""
        ...

    def follow(self, number: int, endpoint: str, filters: Collection[bytes], marker: bytes) -> None:
        """Receive what a publisher publishes to topics that begin with one of the filters. Never waits.

        ``marker`` is a filter that is set last, unique, and the beginning of no topic. A connection that ends or
        does not come up is made anew, with the filters and marker of that time, until ``unfollow``.
        An endpoint that must not be dialled is FAILED, and not followed.
        """
        ...

    def refilter(self, number: int, filters: Collection[bytes], marker: bytes) -> None:
        """Replace the filters: new ones are set, then the new marker, then old ones and the old marker removed.

        What both have goes on without a gap. Unknown numbers are fine.
        """
        ...

    def unfollow(self, number: int) -> None:
        """Stop following, without an event; what was not received is lost. Unknown numbers are fine."""
        ...

    def follow_events(self) -> list[tuple[int, LinkEvent]]:
        """UP for a connection that stands, DOWN when it has ended, again and again; or once FAILED.

        After DOWN, messages from before may still be received.
        """
        ...

    def receive_published(self, limit: int) -> list[tuple[int, Published]]:
        """Up to ``limit`` messages that have arrived, as ``(number, parts)``, in order per number.

        Their sizes are bounded too, except that one message is always read. Call again while ``more``.
        """
        ...

    def more(self) -> bool:
        """Whether ``receive_published``, ``subscriptions`` or ``advance`` may have more, of which no wake tells."""
        ...
