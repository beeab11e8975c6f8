"""Events for whoever listens: each listener has its own bounded queue, and is told what it missed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable

from meshmsg.message import Event

MAX_WAITING = 1000  # events a listener may leave unread

logger = logging.getLogger("meshmsg.events")

# What an operator should see without asking.
_WARNINGS = {
    "dead_letter",
    "dead_letter.dropped",
    "frame.refused",
    "mesh.other",
    "name.shared",
    "node.id_clash",
    "peer.suspect",
    "peers.full",
}


class EventStream:
    """An async iterator over events from now on; ``close`` or the node's end ends it."""

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub
        self._waiting: deque[Event] = deque()
        self._missed = 0
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def offer(self, event: Event) -> None:
        """Adds an event; when too many wait, the oldest goes and is counted."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(event)
        self._wake()

    def close(self) -> None:
        """Ends the iteration after what still waits."""
        self._closed = True
        self._hub.streams.discard(self)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while True:
            if self._missed:
                missed, self._missed = self._missed, 0
                return Event("events.missed", time.time(), text=f"{missed} events came faster than they were read")
            if self._waiting:
                return self._waiting.popleft()
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class EventHub:
    """Spreads events to every stream and to the log."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.streams: set[EventStream] = set()

    def open(self) -> EventStream:
        """A new listener."""
        stream = EventStream(self)
        self.streams.add(stream)
        return stream

    def publish(self, events: Iterable[Event]) -> None:
        """Tells every listener."""
        for event in events:
            level = logging.WARNING if event.kind in _WARNINGS else logging.INFO
            if logger.isEnabledFor(level):
                words = " ".join(filter(None, (event.queue and f"queue {event.queue!r}", event.peer, event.text)))
                logger.log(level, "node %r: %s: %s", self.node, event.kind, words, extra={"event": event})
            for stream in tuple(self.streams):
                stream.offer(event)

    def close(self) -> None:
        """Ends every stream."""
        for stream in tuple(self.streams):
            stream.close()
