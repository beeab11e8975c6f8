"""PUSH and PULL with ``reliable=False``: bare ZeroMQ, MessagePack bodies, no acks, no retries, no ledger.

A message is lost when its consumer dies, or leaves, before it was handled; PUSH deals messages out in turn,
whatever the consumers are busy with. What remains is ZeroMQ's speed, its high-water mark, and discovery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from meshmsg.driver import Driver
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.lane import InLane
from meshmsg.errors import OutboxFull
from meshmsg.options import PullOptions
from meshmsg.sockets.push_pull import Pull
from meshmsg.sockets.raw import RawSockets
from meshmsg.sockets.turns import yield_turn
from meshmsg.transport.pump import Pump
from meshmsg.transport.raw import PULL, PUSH, RawSocket
from meshmsg.wire import frames
from meshmsg.wire.codec import decode_batch, encode_batch, explain_encode_error, make_packer

BURST = 256


class BarePush:
    """``node.push(queue, reliable=False)``: hands bodies to ZeroMQ, and that is all."""

    def __init__(self, driver: Driver, queue: str) -> None:
        self.queue = queue
        self._driver = driver
        self._pack = make_packer()
        self._pump: Pump | None = None
        self._raws: RawSockets | None = None
        self._raw: RawSocket | None = None
        self._count = 0

    def connect(self, raws: RawSockets) -> None:
        """The node has started: opens the ZeroMQ socket."""
        self._raws, self._raw = raws, raws.open(PUSH, self.queue)
        self._pump = Pump(self._raw.socket, asyncio.get_running_loop())

    async def send(self, body: Any) -> None:
        """Hands one body to ZeroMQ; waits while no consumer is connected or all of them are at their limit."""
        encoded, pump = self._prepare(body)
        while not pump.send([encoded]):
            await pump.wait_writable()
            self._driver.require_usable()
        self._count += 1
        if not self._count % BURST:
            await yield_turn()

    def send_nowait(self, body: Any) -> None:
        """Like ``send``; raises ``OutboxFull`` where that would wait."""
        encoded, pump = self._prepare(body)
        if not pump.send([encoded]):
            consumers = self._driver.engine.describe_consumers(self.queue)
            raise OutboxFull(f"ZeroMQ takes no message of {self.queue!r} now: await send(); {consumers}")

    async def send_many(self, bodies: Iterable[Any]) -> int:
        """``send`` for each; returns how many."""
        count = 0
        for body in bodies:
            await self.send(body)
            count += 1
        return count

    def _prepare(self, body: Any) -> tuple[bytes, Pump]:
        self._driver.require_usable()
        assert self._pump is not None, "a usable node has started its sockets"
        try:
            return self._pack(body), self._pump
        except Exception as error:
            raise explain_encode_error(body, error) from None

    async def close(self, drain: float = 0.0) -> None:
        """Closes the socket; ZeroMQ gets a moment for what it holds."""
        if self._pump is not None and self._raws is not None and self._raw is not None:
            self._pump.close()
            self._raws.close(self._raw)


class BarePull(Pull):
    """``node.pull(queue, reliable=False)``: the same handlers and iteration, but a verdict changes nothing."""

    def __init__(self, driver: Driver, queue: str, options: PullOptions) -> None:
        self._bare = Inbox(queue, options.prefetch, self._settled)
        self._pump: Pump | None = None
        self._raws: RawSockets | None = None
        self._raw: RawSocket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        super().__init__(driver, self._bare, options)

    def connect(self, raws: RawSockets) -> None:
        """The node has started: opens the ZeroMQ socket."""
        self._raws, self._raw = raws, raws.open(PULL, self.queue)
        self._pump = Pump(self._raw.socket, asyncio.get_running_loop())
        self._driver.engine.offer("pull", self.queue, {"reliable": False})
        self._reader = asyncio.ensure_future(self._read(self._pump))

    async def _read(self, pump: Pump) -> None:
        lane = self._bare.open_lane(1, "bare", "")
        assert isinstance(lane, InLane)
        while not self._closed:
            wanted = self.options.prefetch - lane.unsettled
            if wanted <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            arrived = pump.receive(wanted)
            if not arrived:
                await pump.wait_readable()
                continue
            lane.limit = lane.received + len(arrived)
            count = len(arrived)
            data = frames.Data(1, lane.received, lane.floor, 0, count, [[lane.received, count, None]], b"")
            bodies = decode_batch(encode_batch([parts[0] for parts in arrived]), count)
            self._bare.accept(lane, data, bodies, self._driver.now())
            self._arrived()

    def _settled(self, inbox: Inbox) -> None:
        asyncio.get_running_loop().call_soon(self._forget_verdicts)

    def _forget_verdicts(self) -> None:
        """Nobody waits for them; but there is room for more messages now."""
        self._bare.flush()
        for lane in self._bare.lanes.values():
            lane.heard(lane.floor)
        self._room.set()

    async def close(self, drain: float = 0.0) -> None:
        """Stops consuming; what ZeroMQ or this socket still holds is lost, as that is what bare means."""
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        if self._pump is not None and self._raws is not None and self._raw is not None:
            self._pump.close()
            self._raws.close(self._raw)
            self._driver.engine.withdraw("pull", self.queue)
        await super().close(drain)
