"""Strangers at both ends of the broadcast: they cost their connection at most, and nobody else a thing (G11)."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import pytest
import zmq

from meshmsg.transport.filters import MAX_FRAME_BYTES
from meshmsg.transport.zmq import ZmqTransport
from tests.transport.side import DOWN, UP
from tests.transport.station import Station
from tests.transport.test_broadcast import endpoint_of, plain_socket, read_plain
from tests.transport.test_hostile import GREETING, HUGE, SIGNATURE

pytestmark = pytest.mark.guarantee("G11")

PROPERTIES = b"\x0bSocket-Type" + struct.pack(">I", 3) + b"SUB"
READY = b"\x04" + bytes([6 + len(PROPERTIES)]) + b"\x05READY" + PROPERTIES
SUBSCRIBE_TOO_LONG = b"\x02" + struct.pack(">Q", MAX_FRAME_BYTES + 1)


async def check_that_work_goes_on(camera: Station, screen: Station) -> None:
    """What was followed before the stranger still arrives, and a new subscription is seen."""
    before = len(screen.published)
    assert camera.publish(b"topic", b"work goes on")
    await screen.until(lambda: len(screen.published) > before)
    assert screen.bodies()[-1] == b"work goes on"
    screen.broadcast.refilter(1, [b""], b"\0again")
    await camera.until_asked(b"\0again")


# --- at the publisher's port --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",  # connects and says nothing
        SIGNATURE[:5],
        GREETING,
        GREETING.replace(b"NULL", b"EVIL"),
        GREETING + READY.replace(b"SUB", b"HUB"),
        GREETING + READY + HUGE,
        GREETING + READY + HUGE + bytes(100_000),
        GREETING + READY + SUBSCRIBE_TOO_LONG,
        GREETING + READY + b"\x04" + bytes([255]) * 300,
        b"\xff" * 64,
    ],
)
async def test_garbage_is_dropped(data: bytes) -> None:
    with Station(ZmqTransport(dial_timeout_s=0.2)) as camera, Station() as screen:
        await screen.follow(1, camera)
        port = int(camera.broadcast.open_broadcast()[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        try:
            while await reader.read(65536):
                pass
        except ConnectionResetError:
            pass
        writer.transport.abort()
        await check_that_work_goes_on(camera, screen)


async def test_what_is_no_subscription_is_counted_and_dropped() -> None:
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera)
        camera.changes.clear()
        with plain_socket(zmq.XSUB, camera.broadcast.open_broadcast()[0]) as stranger:
            for parts in ([b""], [b"hello"], [b"\1a", b"\1b", b"c"], [b"x", b"\0y"], [b"\2\1"]):
                stranger.send_multipart(parts)
            stranger.send(b"\1proper")
            await camera.until_asked(b"proper")
            publishing = camera.broadcast._publishing
            assert publishing is not None
            assert camera.changes == [(b"a", True), (b"b", True), (b"proper", True)]
            assert publishing.filters.strays == 5
            await check_that_work_goes_on(camera, screen)


# --- at an endpoint that is followed ------------------------------------------------------------------------


async def test_only_three_parts_are_a_message() -> None:
    with Station(ZmqTransport(max_message_bytes=100_000)) as screen, plain_socket(zmq.XPUB) as stranger:
        screen.broadcast.follow(1, endpoint_of(stranger), [b""], b"\0m")
        await read_plain(stranger, 2)
        for parts in ([b"topic"], [b"a", b"b"], [b"a", b"b", b"c", b"d"], [b""] * 5000, [b"t", b"", bytes(100_000)]):
            stranger.send_multipart(parts)
        stranger.send_multipart([b"topic", b"", b"proper"])
        await screen.until(lambda: screen.bodies() == [b"proper"])
        assert screen.broadcast.refused == 5


async def test_a_flood_of_what_is_no_message_does_not_hold_up_the_loop() -> None:
    with Station(limit=10) as screen, plain_socket(zmq.XPUB, SNDHWM=0) as stranger:
        screen.broadcast.follow(1, endpoint_of(stranger), [b""], b"\0m")
        await read_plain(stranger, 2)
        for _ in range(1000):
            stranger.send(b"")
        stranger.send_multipart([b"topic", b"", b"proper"])
        steps: list[int] = []
        while not screen.published:
            before = screen.broadcast.refused
            screen.published += screen.broadcast.receive_published(10)
            steps.append(screen.broadcast.refused - before)
            if not screen.broadcast.more():
                await asyncio.sleep(0)
        assert max(steps) <= 10


async def test_a_frame_over_the_limit_ends_the_connection_and_it_is_made_anew() -> None:
    station = Station(ZmqTransport(max_message_bytes=100_000))
    with station as screen, plain_socket(zmq.XPUB, XPUB_VERBOSE=1) as stranger:
        screen.broadcast.follow(1, endpoint_of(stranger), [b""], b"\0m")
        await read_plain(stranger, 2)
        stranger.send_multipart([b"topic", b"", bytes(1_000_000)])
        await screen.until(lambda: screen.follow_events == [(1, UP), (1, DOWN), (1, UP)])
        asked: list[bytes] = []
        while asked[-1:] != [b"\1\0m"]:
            asked += await read_plain(stranger, 1)
        assert asked[-2:] == [b"\1", b"\1\0m"]
        stranger.send_multipart([b"topic", b"", b"proper"])
        await screen.until(lambda: screen.bodies() == [b"proper"])


def nothing(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "answer",
    [nothing, lambda data: b"HTTP/1.1 400 Bad Request\r\n\r\n", lambda data: b"\xff" * 64, lambda data: data[::-1]],
    ids=["silence", "HTTP", "ones", "echo"],
)
async def test_what_is_no_publisher_is_never_up_and_tried_again(answer: Callable[[bytes], bytes]) -> None:
    tries: list[asyncio.StreamWriter] = []
    again = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(writer)
        if len(tries) == 2:
            again.set()
        try:
            while data := await reader.read(65536):
                writer.write(answer(data))
        except ConnectionResetError:
            pass
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    with Station(ZmqTransport(dial_timeout_s=0.1)) as screen, Station() as camera:
        screen.broadcast.follow(2, f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}", [b""], b"\0m")
        await screen.follow(1, camera)
        reading = asyncio.create_task(screen.until(again.is_set))
        await again.wait()
        screen._wake()
        await reading
        assert {number for number, _ in screen.follow_events} == {1}
        await check_that_work_goes_on(camera, screen)
    for writer in tries:
        writer.transport.abort()
    server.close()
    await server.wait_closed()


async def test_a_socket_of_another_kind_is_never_up() -> None:
    with Station() as screen, Station() as camera, plain_socket(zmq.ROUTER) as stranger:
        screen.broadcast.follow(2, endpoint_of(stranger), [b""], b"\0m")
        await screen.follow(1, camera)
        connection = screen.broadcast._followings[2].connection
        assert connection is not None
        await screen.until(lambda: connection.ended)
        await check_that_work_goes_on(camera, screen)
        assert {number for number, _ in screen.follow_events} == {1}
