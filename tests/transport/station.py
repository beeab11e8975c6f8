"""One node's publishing and following under test, and what came out of it so far."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from meshmsg.transport import LinkEvent
from meshmsg.transport.interface import Published
from meshmsg.transport.publishing import PublishingSocket
from meshmsg.transport.zmq import ZmqTransport
from tests.transport.side import UP, Side


class Station(Side):
    """Takes turns as the driver does: reads everything there is when it was woken."""

    def __init__(self, transport: ZmqTransport | None = None, limit: int = 100) -> None:
        transport = transport or ZmqTransport()
        self.changes: list[tuple[bytes, bool]] = []
        self.follow_events: list[tuple[int, LinkEvent]] = []
        self.published: list[tuple[int, Published]] = []
        self.shares: list[int] = []  # bytes of each receive_published
        super().__init__(transport, limit)
        self.broadcast = transport.broadcast

    def turn(self) -> None:
        super().turn()
        self.read()
        self.broadcast.advance()
        while self.broadcast.more():
            self.read()
            self.broadcast.advance()

    def read(self) -> None:
        self.changes += self.broadcast.subscriptions()
        self.follow_events += self.broadcast.follow_events()
        published = self.broadcast.receive_published(self.limit)
        self.shares.append(sum(len(part) for _, parts in published for part in parts))
        self.published += published

    async def open_quietly(self) -> PublishingSocket:
        """Opens the publisher's end, and waits until what comes of binding is over."""
        self.broadcast.open_broadcast()
        for _ in range(5):
            await asyncio.sleep(0)
            self.turn()
        publishing = self.broadcast._publishing
        assert publishing is not None
        return publishing

    def publish(self, topic: bytes, bodies: bytes = b"", header: bytes = b"header") -> bool:
        return self.broadcast.publish([topic, header, bodies])

    def publish_pieces(self, topic: bytes, *pieces: bytes | memoryview) -> bool:
        """A message in pieces; each header says which of them it is."""
        parts: list[bytes | memoryview] = [topic]
        for index, piece in enumerate(pieces):
            parts += (b"%d" % index, piece)
        return self.broadcast.publish(parts)

    def bodies(self, number: int | None = None) -> list[bytes]:
        """The bodies so far, of all publishers or one."""
        return [bytes(parts[2]) for source, parts in self.published if number is None or source == number]

    async def until_published(self, count: int) -> None:
        """Until there are this many messages, of all publishers."""
        await self.until(lambda: len(self.published) >= count)

    async def until_asked(self, marker: bytes, added: bool = True) -> None:
        await self.until(lambda: (marker, added) in self.changes)

    async def follow(
        self, number: int, publisher: Station, filters: Collection[bytes] = (b"",), marker: bytes = b"\0m"
    ) -> None:
        """Follow, and wait until the publisher knows."""
        (endpoint,) = publisher.broadcast.open_broadcast()
        self.broadcast.follow(number, endpoint, filters, marker)
        await publisher.until_asked(marker)
        await self.until(lambda: (number, UP) in self.follow_events)
