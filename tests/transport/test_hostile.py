"""Strangers at the inbox's port: what they write costs their connection, and nobody else a thing (G11)."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmsg.transport.segments import SEGMENT_BYTES
from meshmsg.transport.zmq import ZmqTransport
from tests.transport.side import Side

pytestmark = pytest.mark.guarantee("G11")

# ZMTP 3.0: signature, version, mechanism, "as server", padding; then the READY command of a DEALER.
SIGNATURE = b"\xff" + b"\0" * 7 + b"\x01\x7f"
GREETING = SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + b"\0" * 31
PROPERTIES = b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER" + b"\x08Identity" + struct.pack(">I", 4) + b"evil"
READY = b"\x04" + bytes([6 + len(PROPERTIES)]) + b"\x05READY" + PROPERTIES
HUGE = b"\x02" + struct.pack(">Q", 2**40)
TOO_LARGE = b"\x02" + struct.pack(">Q", SEGMENT_BYTES + 1)


class Stranger:
    """A TCP client of a side's inbox."""

    def __init__(self, side: Side) -> None:
        self.port = int(side.endpoint.rpartition(":")[2])

    async def write(self, data: bytes) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(data)

    async def write_after_handshake(self, data: bytes) -> None:
        await self.write(GREETING + READY)
        # A message before the inbox's own READY would be refused for that alone.
        await self.reader.readuntil(b"\x05READY")
        self.writer.write(data)

    async def until_dropped(self) -> None:
        """Until the inbox has closed the connection; the test's deadline ends a connection that stays."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionResetError:
            pass
        self.hang_up()

    def hang_up(self) -> None:
        self.writer.transport.abort()


async def check_that_work_goes_on(side: Side, friend: Side, link: int = 1) -> None:
    """A link that was there before the stranger still works, and a new one comes up."""
    assert friend.transport.send(link, [b"work goes on"])
    await side.until(lambda: any(frames == [b"work goes on"] for _, frames in side.received))
    await friend.dial(link + 1, side, b"friend-%d" % (link + 1))


@pytest.mark.parametrize(
    "data",
    [
        b"",  # connects and says nothing
        SIGNATURE[:5],
        GREETING[:30],
        GREETING,
        GREETING + READY[:10],
        GREETING.replace(b"NULL", b"EVIL"),
        GREETING + b"\x04\x05\x04NOPE",
        GREETING + READY.replace(b"DEALER", b"HAMMER"),
    ],
)
async def test_half_or_wrong_a_handshake_is_dropped(data: bytes) -> None:
    with Side(ZmqTransport(dial_timeout_s=0.2)) as side, Side(ZmqTransport()) as friend:
        await friend.dial(1, side, b"friend")
        stranger = Stranger(side)
        await stranger.write(data)
        await stranger.until_dropped()
        await check_that_work_goes_on(side, friend)
        assert [route for route, _ in side.received] == [b"friend"]


@pytest.mark.parametrize(
    "data",
    [
        HUGE,
        HUGE + bytes(100_000),
        TOO_LARGE,
        b"\x01\x03abc" + HUGE,  # inside a message
        b"\x04" + bytes([255]) * 300,  # a command that is none
        b"\xff" * 9,
    ],
)
async def test_a_frame_that_cannot_be_costs_its_sender_the_connection(data: bytes) -> None:
    # Slow heartbeats: they are not what ends the connection.
    with Side(ZmqTransport(heartbeat_interval_s=600, heartbeat_timeout_s=600)) as side:
        with Side(ZmqTransport()) as friend:
            await friend.dial(1, side, b"friend")
            stranger = Stranger(side)
            await stranger.write_after_handshake(data)
            await stranger.until_dropped()
            await check_that_work_goes_on(side, friend)
            assert [route for route, _ in side.received] == [b"friend"]


async def test_what_a_stranger_sends_in_proper_form_arrives_under_its_own_name() -> None:
    with Side(ZmqTransport()) as side:
        stranger = Stranger(side)
        await stranger.write_after_handshake(b"\x01\x03abc" + b"\x00\x02de")
        await side.until_received(1)
        assert side.received == [(b"evil", [b"abc", b"de"])]
        stranger.hang_up()


async def test_a_stranger_cannot_take_over_a_route() -> None:
    with Side(ZmqTransport()) as side, Side(ZmqTransport()) as friend:
        await friend.dial(1, side, b"evil")
        stranger = Stranger(side)
        await stranger.write_after_handshake(b"\x00\x03bad")
        await check_that_work_goes_on(side, friend)
        assert all(frames == [b"work goes on"] for _, frames in side.received)
        stranger.hang_up()


async def test_segments_that_never_end_are_no_message() -> None:
    segment = b"\x02" + struct.pack(">Q", SEGMENT_BYTES) + bytes(SEGMENT_BYTES)
    with Side(ZmqTransport()) as side, Side(ZmqTransport()) as friend:
        await friend.dial(1, side, b"friend")
        stranger = Stranger(side)
        await stranger.write_after_handshake(segment)
        await side.until_received(1)
        assert side.received == [(b"evil", [])]
        stranger.hang_up()
        await check_that_work_goes_on(side, friend)


@settings(max_examples=10, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=100).map(lambda tail: GREETING + tail),
        st.binary(max_size=100).map(lambda tail: GREETING + READY + tail),
    )
)
async def test_garbage_costs_nobody_else_anything(data: bytes) -> None:
    """Some of it looks like messages of ZMTP 1.0, so strange ones may arrive; none under a friend's name."""
    with Side(ZmqTransport()) as side, Side(ZmqTransport()) as friend:
        await friend.dial(1, side, b"friend")
        stranger = Stranger(side)
        await stranger.write(data)
        await check_that_work_goes_on(side, friend)
        stranger.hang_up()
        assert [frames for route, frames in side.received if route == b"friend"] == [[b"work goes on"]]
