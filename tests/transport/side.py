"""One end of a connection under test: a started transport, and what came out of it so far."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from types import TracebackType
from typing import Self

from meshmsg.transport import LinkEvent, Transport

UP, REFUSED, FAILED, DOWN = LinkEvent.UP, LinkEvent.REFUSED, LinkEvent.FAILED, LinkEvent.DOWN


class Side:
    """Reads its transport as the driver does: in turns, when it was woken."""

    def __init__(self, transport: Transport, limit: int = 100) -> None:
        self.transport = transport
        self.limit = limit
        self.received: list[tuple[bytes, list[bytes]]] = []
        self.bursts: list[int] = []  # how many messages each receive returned
        self.events: list[tuple[int, LinkEvent]] = []
        self._woken = asyncio.Event()
        self.endpoint = transport.bind()[0]
        self.wakes = 0
        transport.start(asyncio.get_running_loop(), self._wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.transport.close()
        assert self.transport.wait_closed(10), "the transport's context did not end"
        gc.collect()  # what was left open warns now, in this test, and a warning is a failure

    def _wake(self) -> None:
        self.wakes += 1
        self._woken.set()

    def turn(self) -> None:
        self.events += self.transport.link_events()
        self._receive()
        while self.transport.more():
            self._receive()

    def _receive(self) -> None:
        messages = self.transport.receive(self.limit)
        self.bursts.append(len(messages))
        self.received += messages

    async def until(self, condition: Callable[[], bool]) -> None:
        """Take turns whenever woken, until the condition holds; the test's own deadline ends it otherwise."""
        while True:
            self._woken.clear()
            self.turn()
            if condition():
                return
            await self._woken.wait()

    async def until_received(self, count: int) -> list[list[bytes]]:
        """The frames of all messages so far, once there are this many."""
        await self.until(lambda: len(self.received) >= count)
        return [frames for _, frames in self.received]

    async def until_event(self, link: int, event: LinkEvent) -> None:
        await self.until(lambda: (link, event) in self.events)

    async def dial(self, link: int, other: Side, identity: bytes) -> None:
        """Dial and wait until the link is up."""
        self.transport.dial(link, other.endpoint, identity)
        await self.until_event(link, UP)
