"""Events for whoever listens: each listener has its own bounded queue, and is told what it missed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from meshmsg.checks import require_number
from meshmsg.errors import NodeClosed, WaitTimeout
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
    "peers.full",
}


class EventStream:
    """An async iterator over events from now on; ``close`` or the node's end ends it.

    Several tasks may read one stream: each event goes to one of them. Who wants to hear all has a stream of its own.
    """

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub
        self._waiting: deque[Event] = deque()
        self._missed = 0
        self._changed = asyncio.Event()
        self._closed = False

    def _offer(self, event: Event) -> None:
        """Adds an event; when too many wait, the oldest goes and is counted."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(event)
        self._changed.set()

    def poll(self) -> Event | None:
        """The next event if there is one already."""
        if self._missed:
            missed, self._missed = self._missed, 0
            return Event("events.missed", time.time(), text=f"{missed} events came faster than they were read")
        return self._waiting.popleft() if self._waiting else None

    def close(self) -> None:
        """Ends the iteration after what still waits."""
        self._hub.guard()
        self._closed = True
        self._hub.streams.discard(self)
        self._changed.set()

    def __repr__(self) -> str:
        closed = "closed, " if self._closed else ""
        return f"<EventStream of node {self._hub.node!r}: {closed}{len(self._waiting)} waiting>"

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        self._hub.guard()
        while (event := self.poll()) is None:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return event

    async def get(self, timeout: float | None = None) -> Event:
        """The next event; raises ``WaitTimeout`` after ``timeout`` seconds, ``NodeClosed`` at the end."""
        if timeout is not None:
            require_number("get(timeout=)", timeout, at_least=0)
        self._hub.guard()
        try:
            async with asyncio.timeout(timeout):
                return await anext(self)
        except StopAsyncIteration:
            raise NodeClosed("there are no more events: their node, or this stream, was closed") from None
        except TimeoutError:
            raise WaitTimeout(f"nothing happened within {timeout} s") from None


class EventHub:
    """Spreads events to every stream and to the log; ``guard`` raises where its streams must not be read."""

    def __init__(self, node: str, guard: Callable[[], None] = lambda: None) -> None:
        self.node = node
        self.guard = guard
        self.streams: set[EventStream] = set()
        self._closed = False

    def open(self) -> EventStream:
        """A new listener; after the close, one whose iteration ends at once."""
        stream = EventStream(self)
        self.streams.add(stream)
        if self._closed:
            stream.close()
        return stream

    def publish(self, events: Iterable[Event]) -> None:
        """Tells every listener."""
        for event in events:
            level = logging.WARNING if event.kind in _WARNINGS else logging.INFO
            if logger.isEnabledFor(level):
                words = " ".join(filter(None, (event.queue and f"queue {event.queue!r}", event.peer, event.text)))
                logger.log(level, "node %r: %s: %s", self.node, event.kind, words, extra={"event": event})
            for stream in tuple(self.streams):
                stream._offer(event)

    def close(self) -> None:
        """Ends every stream, and those that are yet to be opened."""
        self._closed = True
        for stream in tuple(self.streams):
            stream.close()
