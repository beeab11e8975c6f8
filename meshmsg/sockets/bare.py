"""PUSH and PULL with ``reliable=False``: bare ZeroMQ, MessagePack bodies, no acks, no retries, no ledger.

A message is lost when its consumer dies, or leaves, before it was handled; PUSH deals messages out in turn,
whatever the consumers are busy with. What remains is ZeroMQ's speed, its high-water mark, and discovery.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from meshmsg.checks import require_items
from meshmsg.driver import Driver
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.lane import InLane
from meshmsg.engine.notes import REPEAT_AFTER_S
from meshmsg.errors import NodeClosed, OutboxFull, ProtocolError
from meshmsg.message import Event
from meshmsg.options import PullOptions
from meshmsg.sockets.here import require_here
from meshmsg.sockets.push_pull import Pull
from meshmsg.sockets.raw import RawSockets
from meshmsg.sockets.shown import Shown, of_node
from meshmsg.sockets.turns import yield_turn
from meshmsg.transport.pump import Pump
from meshmsg.transport.raw import PULL, PUSH, RawSocket
from meshmsg.wire import frames
from meshmsg.wire.codec import Undecodable, decode_body, explain_encode_error, make_packer
from meshmsg.wire.large import LARGE_BYTES

BURST = 256

logger = logging.getLogger("meshmsg.sockets")


class BarePush(Shown):
    """``node.push(queue, reliable=False)``: hands bodies to ZeroMQ, and that is all."""

    def __init__(self, driver: Driver, queue: str, forget: Callable[[], object] = lambda: None) -> None:
        self.queue = queue
        self._driver = driver
        self._forget = forget  # called at the close: the name is free again
        self._closed = False
        self._pack = make_packer()
        self._pump: Pump | None = None
        self._raws: RawSockets | None = None
        self._raw: RawSocket | None = None
        self._count = 0

    def _connect(self, raws: RawSockets) -> None:
        """The node has started: opens the ZeroMQ socket."""
        self._raws, self._raw = raws, raws.open(PUSH, self.queue)
        self._pump = Pump(self._raw.socket, asyncio.get_running_loop())

    async def send(self, body: Any) -> None:
        """Hands one body to ZeroMQ; waits while no consumer is connected or all of them are at their limit."""
        encoded, pump = self._prepare(body)
        while not pump.send([encoded]):
            await pump.wait_writable()
            self._require_open()
        self._count += 1
        if not self._count % BURST:
            await yield_turn()

    def send_nowait(self, body: Any) -> None:
        """Like ``send``; raises ``OutboxFull`` where that would wait."""
        encoded, pump = self._prepare(body)
        if not pump.send([encoded]):
            consumers = self._driver.engine.peers.describe_consumers(self.queue, reliable=False)
            raise OutboxFull(f"ZeroMQ takes no message of {self.queue!r} now: await send(); {consumers}")

    async def send_many(self, bodies: Iterable[Any]) -> int:
        """``send`` for each; returns how many."""
        require_items("send_many(bodies)", bodies, "send() takes a single body")
        count = 0
        for body in bodies:
            await self.send(body)
            count += 1
        return count

    def _prepare(self, body: Any) -> tuple[bytes, Pump]:
        self._require_open()
        assert self._pump is not None, "a usable node has started its sockets"
        try:
            encoded = self._pack(body)
        except Exception as error:
            raise explain_encode_error(body, error) from None
        if len(encoded) > LARGE_BYTES:
            self._pack = make_packer()  # one keeps its buffer
        return encoded, self._pump

    def _title(self) -> str:
        return of_node(self.queue, self._driver)

    def _state(self) -> str:
        return "closed" if self._closed else ""

    def _require_open(self) -> None:
        self._driver.require_usable()
        if self._closed:
            raise NodeClosed(f"this push of {self.queue!r} was closed: open another one")

    async def close(self) -> None:
        """Sends no more; ZeroMQ gets a moment for what it holds."""
        self._end()

    def _end(self) -> None:
        """``close``, which waits for nothing."""
        if self._closed:
            return
        require_here(self._driver)
        self._closed = True
        self._forget()
        if self._pump is not None and self._raws is not None and self._raw is not None:
            self._pump.close()
            self._raws.close(self._raw)


class BarePull(Pull):
    """``node.pull(queue, reliable=False)``: the same handlers and iteration, but there is no second attempt.

    So what a handler raises, or a nack or reject says, is logged and an event (``message.failed``).
    ``refused`` counts what arrived and was no message: not one MessagePack body, or not of the wanted type.
    """

    _gives_back = False  # there is nobody to give it to

    def __init__(
        self, driver: Driver, queue: str, options: PullOptions, forget: Callable[[], object] = lambda: None
    ) -> None:
        self.refused = 0
        self._untold = 0  # refused since the last event about it
        self._why_refused = ""
        self._told_at: float | None = None
        self._forget = forget  # called at the close: the name is free again
        self._bare = Inbox(queue, options.prefetch, self._settled)
        self._pump: Pump | None = None
        self._raws: RawSockets | None = None
        self._raw: RawSocket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        super().__init__(driver, self._bare, options)
        # Here, because the inbox would reject what does not fit, and nobody hears a bare verdict.
        self._convert, self._bare.decode = self._bare.decode, None

    def _connect(self, raws: RawSockets) -> None:
        """The node has started: opens the ZeroMQ socket."""
        self._raws, self._raw = raws, raws.open(PULL, self.queue)
        self._pump = Pump(self._raw.socket, asyncio.get_running_loop())
        self._driver.engine.offer("pull", self.queue, {"reliable": False})
        self._reader = asyncio.ensure_future(self._read(self._pump))
        self._reader.add_done_callback(self._reader_done)

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
            bodies = self._decode(arrived)
            if bodies:
                count = len(bodies)
                lane.limit = lane.received + count
                data = frames.Data(1, lane.received, lane.floor, 0, count, [[lane.received, count, None]], b"")
                self._bare.accept(lane, data, bodies, self._driver.now())
                self._arrived()
            if self._untold:
                self._tell_refused()
                await yield_turn()  # what is refused fills no prefetch: a flood of it would never wait

    def _decode(self, arrived: list[list[Any]]) -> list[Any]:
        """The bodies that are some. Each is decoded alone: joined, two broken ones can swallow what is between."""
        bodies = []
        for parts in arrived:
            try:
                if len(parts) != 1:
                    raise ProtocolError(f"a message of {len(parts)} frames, not one")
                body = decode_body(parts[0])
                if type(body) is Undecodable:
                    raise ProtocolError(f"the body cannot be decoded: {body.error}")
            except ProtocolError as error:
                self._refuse(str(error))
                continue
            if self._convert is not None:
                try:
                    body = self._convert(body)
                except Exception as error:  # whatever the type's own code raises
                    self._refuse(f"the body does not fit the type of {self.queue!r}: {error}")
                    continue
            bodies.append(body)
        return bodies

    def _refuse(self, why: str) -> None:
        assert self._raws is not None, "what arrived came over a socket"
        self._raws.refused += 1
        self.refused += 1
        self._untold += 1
        self._why_refused = why

    def _tell_refused(self, *, at_once: bool = False) -> None:
        """An event for the first one, then one for all in some seconds: a flood must not become one of events."""
        now = self._driver.now()
        if not at_once and self._told_at is not None and now - self._told_at < REPEAT_AFTER_S:
            return
        count, self._untold, self._told_at = self._untold, 0, now
        text = f"{count} {'message' if count == 1 else 'messages'} refused; the last: {self._why_refused[:400]}"
        self._driver.on_events([Event("frame.refused", time.time(), queue=self.queue, text=text)])

    def _reader_done(self, reader: asyncio.Future[None]) -> None:
        if not reader.cancelled() and reader.exception() is not None:
            logger.error("pull(%r, reliable=False) reads no more", self.queue, exc_info=reader.exception())

    def _settled(self, inbox: Inbox) -> None:
        asyncio.get_running_loop().call_soon(self._forget_verdicts)

    def _forget_verdicts(self) -> None:
        """Their sender does not wait for them, so failures are told here; and there is room for more messages now."""
        self._bare.flush()
        for lane in self._bare.lanes.values():
            verdicts, lane.verdicts = lane.verdicts, {}
            for seq, (kind, _, text) in verdicts.items():
                if kind in (frames.NACKED, frames.REJECTED):
                    self._tell_failed(lane.message_id(seq), text)
        self._room.set()

    def _tell_failed(self, message_id: str, error: str) -> None:
        logger.error("%s: message %s failed: %s", self._label, message_id, error)
        text = f"{message_id}: {error}"
        self._driver.on_events([Event("message.failed", time.time(), queue=self.queue, text=text)])

    def _withdraw(self) -> None:
        """What ZeroMQ or this socket still holds is lost, as that is what bare means."""
        if self._untold:
            self._tell_refused(at_once=True)
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        if self._pump is not None and self._raws is not None and self._raw is not None:
            self._pump.close()
            self._raws.close(self._raw)
            self._driver.engine.withdraw("pull", self.queue)

    def _leave(self) -> None:
        super()._leave()
        self._forget_verdicts()
        self._forget()
