"""What subscribers ask for is bounded: who asks for too much is cut off, and costs nobody else a message (G11)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import zmq

from meshmsg.transport import filters as filters_module
from meshmsg.transport.filters import MAX_COST_EACH, MAX_FILTER_BYTES, Filters
from tests.transport.station import Station
from tests.transport.test_broadcast import plain_socket, read_plain
from tests.transport.test_broadcast_hostile import READY, check_that_work_goes_on
from tests.transport.test_filter_rules import MIB, many
from tests.transport.test_hostile import GREETING

pytestmark = pytest.mark.guarantee("G11")

GREETING_2 = b"\xff" + bytes(8) + b"\x7f\x01\x02" + bytes(2)  # of ZeroMQ 3, and an empty identity


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def filters_of(station: Station) -> Filters:
    publishing = station.broadcast._publishing
    assert publishing is not None
    return publishing.filters


def ask(texts: Iterable[bytes]) -> bytes:
    """Subscriptions as they are on the wire."""
    return b"".join(b"\x00" + bytes([len(text) + 1]) + b"\x01" + text for text in texts)


def port_of(station: Station) -> int:
    return int(station.broadcast.open_broadcast()[0].rpartition(":")[2])


@contextlib.asynccontextmanager
async def blast(port: int, data: bytes, greeting: bytes = GREETING + READY) -> AsyncIterator[None]:
    """A subscriber says that again and again; if it loses its connection, over another one."""

    async def speak() -> None:
        while True:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(greeting)
                while True:
                    for start in range(0, len(data), 100_000):
                        writer.write(data[start : start + 100_000])
                        await writer.drain()
            except ConnectionError:
                pass
            finally:
                writer.transport.abort()

    speaking = asyncio.create_task(speak())
    try:
        yield
    finally:
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("size", [180, 400])
async def test_an_abuser_costs_less_than_50_mb(size: int) -> None:
    if size > 255:
        frames = [b"\x02" + (len(text) + 1).to_bytes(8, "big") + b"\x01" + text for text in many(20_000, size)]
        data = b"".join(frames)
    else:
        data = ask(many(100_000, size))
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera)
        before = resident_bytes()
        for attempt in range(1, 4):
            async with blast(port_of(camera), data):
                await until_refused(camera, attempt)
            assert resident_bytes() - before < 50_000_000
            await check_that_work_goes_on_again(camera, screen, attempt)
        await camera.until(lambda: filters_of(camera).cost < MIB)  # its filters went with it
        (*_, told) = camera.broadcast.refusals()
        assert "127.0.0.1 asked for too much" in told and ("a filter of" in told) == (size > MAX_FILTER_BYTES)


async def until_refused(station: Station, count: int) -> None:
    await station.until(lambda: filters_of(station).refused >= count)


async def check_that_work_goes_on_again(camera: Station, screen: Station, attempt: int) -> None:
    before = len(screen.published)
    assert camera.publish(b"topic", b"work goes on")
    await screen.until(lambda: len(screen.published) > before)
    marker = b"\0again %d" % attempt
    screen.broadcast.refilter(1, [b""], marker)
    await camera.until_asked(marker)


async def test_a_subscriber_of_20_000_topics_is_no_abuser() -> None:
    with Station() as camera, plain_socket(zmq.SUB) as reader:
        (endpoint,) = camera.broadcast.open_broadcast()
        reader.setsockopt(zmq.SNDHWM, 0)
        reader.connect(endpoint)
        for number in range(20_000):
            reader.subscribe(b"sensors.hall.%05d.value" % number)
        reader.subscribe(b"the end")
        await camera.until_asked(b"the end")
        camera.publish(b"sensors.hall.19999.value", b"12.5")
        assert await read_plain(reader, 3) == [b"sensors.hall.19999.value", b"header", b"12.5"]
        assert filters_of(camera).refused == 0 and filters_of(camera).cost < MAX_COST_EACH


async def test_when_all_have_too_many_who_has_most_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters_module, "MAX_COST_IN_ALL", MIB)
    monkeypatch.setattr(filters_module, "MARGIN", MIB // 4)
    with Station() as camera, Station() as screen, plain_socket(zmq.SUB) as much, plain_socket(zmq.SUB) as little:
        (endpoint,) = camera.broadcast.open_broadcast()
        filters_of(camera)._allowed = MIB
        await screen.follow(1, camera)
        for reader, name, count in ((much, b"much", 450), (little, b"little", 300)):
            reader.setsockopt(zmq.RECONNECT_IVL, -1)
            reader.connect(endpoint)
            for text in (*many(count, 20, name), name + b" end"):
                reader.subscribe(text)
            if reader is much:
                await camera.until_asked(b"much end")
                assert not filters_of(camera).refused
        await camera.until(lambda: (b"much end", False) in camera.changes)
        await camera.until_asked(b"little end")
        assert filters_of(camera).refused == 1 and filters_of(camera).cost <= MIB
        assert "the most filters, 451," in camera.broadcast.refusals()[0]
        await check_that_work_goes_on(camera, screen)
        camera.publish(b"little end", b"still here")
        assert await read_plain(little, 3) == [b"little end", b"header", b"still here"]


async def test_an_old_zeromq_is_bounded_though_its_connections_have_no_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filters_module, "MAX_COST_EACH", MIB)
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera)
        async with blast(port_of(camera), ask(many(10_000, 180)), GREETING_2):
            await until_refused(camera, 1)
        await camera.until(lambda: filters_of(camera).cost < MIB)
        assert "before 4.0" in camera.broadcast.refusals()[0]
        await check_that_work_goes_on(camera, screen)


async def test_changing_filters_without_end_costs_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters_module, "FLOOD_CHANGES", 10_000)
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera)
        async with blast(port_of(camera), ask([b"again"] * 10_000)):
            await until_refused(camera, 1)
        assert "10000 changes" in camera.broadcast.refusals()[0]
        await check_that_work_goes_on(camera, screen)


async def test_filters_that_others_have_too_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq does not tell that one of several takes a filter back; when it matters, nothing is held against it."""
    with Station() as camera, plain_socket(zmq.SUB) as many_rooms, plain_socket(zmq.SUB) as guest:
        (endpoint,) = camera.broadcast.open_broadcast()
        for reader in (many_rooms, guest):
            reader.connect(endpoint)
        rooms = [b"room.%d" % number for number in range(100)]
        for room in (*rooms, b"all"):
            many_rooms.subscribe(room)
        await camera.until_asked(b"all")
        for _ in range(3):
            for room in rooms:
                guest.subscribe(room)
                guest.unsubscribe(room)
        guest.subscribe(b"guest")
        await camera.until_asked(b"guest")
        filters = filters_of(camera)
        costs = [asker.cost for asker in filters._askers.values()]
        assert len(costs) == 2 and max(costs) <= filters.cost
        many_rooms.close(linger=0)
        await camera.until(lambda: (b"all", False) in camera.changes)
        assert [asker.filters for asker in filters._askers.values()] != []
        monkeypatch.setattr(filters_module, "MAX_COST_EACH", 1500)
        guest.subscribe(b"one more")
        await camera.until_asked(b"one more")
        assert filters.refused == 0 and filters.cost < 1500


async def test_who_leaves_is_forgotten() -> None:
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera)
        with plain_socket(zmq.SUB, camera.broadcast.open_broadcast()[0]) as reader:
            reader.subscribe(b"a")
            await camera.until_asked(b"a")
            assert len(filters_of(camera)._askers) == 2
        await camera.until_asked(b"a", added=False)
        await camera.until(lambda: len(filters_of(camera)._askers) == 1)
