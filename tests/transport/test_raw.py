"""Plain sockets, and the pump that serves them from asyncio."""

from __future__ import annotations

import asyncio
import importlib.util
import selectors
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq

from meshmsg.errors import AddressUnavailable, ConfigurationError
from meshmsg.transport.filters import MAX_FILTER_BYTES, MAX_FRAME_BYTES, RECEIVE_BYTES, RECEIVE_HIGH_WATER
from meshmsg.transport.pump import Pump
from meshmsg.transport.raw import BINDING, COUNTERPARTS, RawSocket, kind_name
from meshmsg.transport.tuning import NO_COPY_BYTES
from meshmsg.transport.zmq import ZmqTransport

PAIRS = sorted((one, other) for one in COUNTERPARTS for other in COUNTERPARTS[one] if one in BINDING)


@contextmanager
def opened(*kinds: int, for_topics: bool = False) -> Iterator[list[RawSocket]]:
    transport = ZmqTransport()
    sockets = [transport.raw(kind, for_topics=for_topics) for kind in kinds]
    for raw in sockets:
        raw.socket.setsockopt(zmq.RCVTIMEO, 20_000)
    yield sockets
    transport.close()
    assert transport.wait_closed(10)
    assert all(raw.socket.closed for raw in sockets)


# --- which kinds go together --------------------------------------------------------------------------------


def test_counterparts_are_mutual_and_one_of_two_binds() -> None:
    for one, others in COUNTERPARTS.items():
        for other in others:
            assert one in COUNTERPARTS[other]
            if one != zmq.PAIR:
                assert (one in BINDING) != (other in BINDING), (kind_name(one), kind_name(other))


@pytest.mark.parametrize(("binding", "connecting"), PAIRS, ids=lambda kind: kind_name(kind))
def test_each_kind_reaches_its_counterparts(binding: int, connecting: int) -> None:
    """One message, from whichever side speaks first between these two."""
    with opened(binding, connecting) as (there, here):
        (endpoint,) = there.bind()
        if connecting == zmq.SUB:
            here.socket.setsockopt(zmq.SUBSCRIBE, b"")
        here.connect(endpoint)
        if connecting == zmq.XSUB:
            here.socket.send(b"\x01")  # subscribe to everything
        if binding == zmq.XPUB:
            assert there.socket.recv() == b"\x01"
        if binding in (zmq.PUB, zmq.XPUB):
            # PUB does not say when the subscription has arrived, so it speaks until it is heard.
            there.socket.send(b"hello")
            while not here.socket.poll(20):
                there.socket.send(b"hello")
            assert here.socket.recv() == b"hello"
        elif connecting == zmq.DEALER and binding == zmq.REP:
            here.socket.send_multipart([b"", b"hello"])
            assert there.socket.recv() == b"hello"
        else:
            here.socket.send(b"hello")
            assert there.socket.recv_multipart()[-1] == b"hello"


def test_a_pair_is_told_which_one_binds() -> None:
    with opened(zmq.PAIR, zmq.PAIR) as (there, here):
        here.connect(there.bind()[0])
        here.socket.send(b"hello")
        assert there.socket.recv() == b"hello"


def test_other_kinds_are_refused_by_name() -> None:
    transport = ZmqTransport()
    with pytest.raises(ConfigurationError, match=r"STREAM.* no kind .*choose one of PUSH, PULL"):
        transport.raw(zmq.STREAM)
    with pytest.raises(ConfigurationError, match="choose one of PUSH"):
        transport.raw(4711)
    transport.close()
    assert transport.wait_closed(10)


# --- those for topics ---------------------------------------------------------------------------------------


@pytest.mark.guarantee("G11")
def test_a_publisher_is_an_xpub_that_counts_its_filters_and_cuts_off() -> None:
    with opened(zmq.XPUB, zmq.SUB, for_topics=True) as (there, here):
        assert there.filters is None
        (endpoint,) = there.bind()
        assert there.filters is not None
        limits = [there.socket.getsockopt(option) for option in (zmq.RCVHWM, zmq.RCVBUF, zmq.MAXMSGSIZE)]
        assert limits == [RECEIVE_HIGH_WATER, RECEIVE_BYTES, MAX_FRAME_BYTES]
        here.socket.setsockopt(zmq.RECONNECT_IVL, -1)
        here.connect(endpoint)
        here.socket.subscribe(b"a")
        changes: list[tuple[bytes, bool]] = []
        while len(changes) < 1:
            assert there.socket.poll(20_000)
            changes += there.filters.read(there.socket, 10)[0]
        there.socket.send(b"a message")
        assert here.socket.recv() == b"a message"
        here.socket.subscribe(bytes(MAX_FILTER_BYTES + 1))
        while len(changes) < 3:
            assert there.socket.poll(20_000)
            changes += there.filters.read(there.socket, 10)[0]
        assert changes[:1] == [(b"a", True)]
        assert sorted(changes[1:]) == [(bytes(MAX_FILTER_BYTES + 1), False), (b"a", False)]
        assert len(there.filters.take_refusals()) == 1


def test_a_subscriber_loses_no_filter() -> None:
    """By default ZeroMQ drops filters beyond 1,000 without a word (libzmq#2258)."""
    with opened(zmq.XPUB, zmq.SUB, for_topics=True) as (there, here):
        (endpoint,) = there.bind()
        assert there.filters is not None
        for number in range(5000):
            here.socket.subscribe(b"%d" % number)
        here.connect(endpoint)
        told = set[bytes]()
        while len(told) < 5000:
            assert there.socket.poll(20_000)
            told |= {text for text, _ in there.filters.read(there.socket, 1000)[0]}


def test_both_do_without_heartbeats() -> None:
    """A publisher takes in a frame at a time; while its loop is held up, a heartbeat may wait behind one too long."""
    with opened(zmq.XPUB, zmq.SUB, for_topics=True) as sockets:
        for raw in sockets:
            for option in (zmq.HEARTBEAT_IVL, zmq.HEARTBEAT_TTL):
                assert raw.socket.getsockopt(option) == 0
            assert raw.socket.getsockopt(zmq.TCP_KEEPALIVE) == 1 and raw.socket.getsockopt(zmq.TCP_MAXRT) == 30_000


def test_an_xpub_that_is_handed_out_stays_what_zeromq_makes_of_it() -> None:
    with opened(zmq.XPUB, zmq.XSUB) as (there, here):
        here.connect(there.bind()[0])
        for frame in (b"\x01a", b"\x01a", b"\x01" + bytes(10_000), bytes([2]) * 1_000_000):
            here.socket.send(frame)
        assert there.socket.recv() == b"\x01a"  # told once
        assert there.socket.recv() == b"\x01" + bytes(10_000)
        assert there.socket.recv() == bytes([2]) * 1_000_000
        assert there.filters is None
        assert (there.socket.getsockopt(zmq.RCVHWM), there.socket.getsockopt(zmq.RCVBUF)) == (1000, -1)


# --- connecting ---------------------------------------------------------------------------------------------


def test_connecting_twice_makes_one_connection() -> None:
    with opened(zmq.PULL, zmq.PUSH) as (there, here):
        (endpoint,) = there.bind()
        monitor = there.socket.get_monitor_socket(zmq.EVENT_ACCEPTED)
        here.connect(endpoint)
        here.connect(endpoint)
        here.socket.send(b"x")
        assert there.socket.recv() == b"x"
        assert monitor.poll(20_000)
        monitor.recv_multipart()
        here.disconnect(endpoint)
        here.connect(endpoint)  # after a disconnect it is a new one
        here.socket.send(b"y")
        assert there.socket.recv() == b"y"
        monitor.recv_multipart()
        assert not monitor.poll(0)
        there.socket.disable_monitor()
        monitor.close()


def test_disconnecting_what_is_gone_is_no_error() -> None:
    with opened(zmq.PULL, zmq.PUSH) as (there, here):
        (endpoint,) = there.bind()
        here.disconnect(endpoint)
        here.connect(endpoint)
        here.socket.disconnect(endpoint)  # its owner did it
        here.disconnect(endpoint)
        here.connect(endpoint)
        here.socket.close()  # or closed it
        here.disconnect(endpoint)
        here.close()


def test_what_cannot_be_connected_is_refused() -> None:
    with opened(zmq.PUSH) as (here,):
        for endpoint in ("tcp://example.com:80", "nothing", "tcp://127.0.0.1:0"):
            with pytest.raises(AddressUnavailable, match=r"tcp://127\.0\.0\.1:5555"):
                here.connect(endpoint)
        assert here.connected == set()


def test_ipv6() -> None:
    with opened(zmq.PULL, zmq.PUSH) as (there, here):
        endpoints = there.bind(["127.0.0.1", "::1"])
        here.connect(endpoints[1])
        here.socket.send(b"hello")
        assert there.socket.recv() == b"hello"


def test_a_forgotten_message_does_not_keep_the_program_from_ending() -> None:
    with opened(zmq.PUSH) as (here,):
        here.connect("tcp://127.0.0.1:9")
        here.socket.send(b"to nobody")


# --- the pump -----------------------------------------------------------------------------------------------

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.SelectorEventLoop]
if importlib.util.find_spec("uvloop"):
    import uvloop

    LOOPS.append(uvloop.new_event_loop)


@pytest.fixture(params=LOOPS, ids=lambda factory: factory.__module__)
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return request.param


@contextmanager
def pumped(*kinds: int) -> Iterator[tuple[Pump, Pump]]:
    """Two connected sockets with small buffers, each with its pump."""
    with opened(*kinds) as (there, here):
        for raw in (there, here):
            raw.socket.setsockopt(zmq.SNDHWM, 10)
            raw.socket.setsockopt(zmq.RCVHWM, 10)
            raw.socket.setsockopt(zmq.SNDBUF, 4096)
            raw.socket.setsockopt(zmq.RCVBUF, 4096)
        here.connect(there.bind()[0])
        loop = asyncio.get_running_loop()
        pumps = Pump(there.socket, loop), Pump(here.socket, loop)
        yield pumps
        for pump in pumps:
            pump.close()
            pump.close()


async def send_all(pump: Pump, count: int) -> None:
    for number in range(count):
        while not pump.send([b"%d" % number, bytes(500)]):
            await pump.wait_writable()


async def receive_all(pump: Pump, count: int, limit: int = 7) -> list[int]:
    numbers: list[int] = []
    while len(numbers) < count:
        messages = pump.receive(limit)
        assert len(messages) <= limit
        numbers += [int(frames[0]) for frames in messages]
        if not messages:
            await pump.wait_readable()
    return numbers


async def test_a_pump_waits_for_room_and_for_messages(loop_factory: object) -> None:
    with pumped(zmq.PULL, zmq.PUSH) as (there, here):
        sending = asyncio.create_task(send_all(here, 3000))
        assert await receive_all(there, 3000) == list(range(3000))
        await sending


async def test_both_directions_of_one_socket_at_once(loop_factory: object) -> None:
    """Each operation takes in the news that whoever waits for the other direction needs (pyzmq#1203)."""
    with pumped(zmq.PAIR, zmq.PAIR) as (there, here):
        sending = [asyncio.create_task(send_all(pump, 2000)) for pump in (there, here)]
        received = await asyncio.gather(receive_all(there, 2000), receive_all(here, 2000))
        assert received == [list(range(2000))] * 2
        await asyncio.gather(*sending)


async def test_an_operation_does_not_swallow_what_a_wait_needs(loop_factory: object) -> None:
    """A send takes in the news of an arrival, and then the descriptor stays silent about it (pyzmq#1203)."""
    with pumped(zmq.PAIR, zmq.PAIR) as (there, here):
        waiting = asyncio.create_task(there.wait_readable())
        await asyncio.sleep(0)
        assert here.send([b"x"])
        with selectors.DefaultSelector() as selector:
            selector.register(there._descriptor, selectors.EVENT_READ)
            assert selector.select(20)
            while selector.select(0):
                there.send([b"y"])
        await waiting
        assert there.receive(1) == [[b"x"]]


async def test_a_cancelled_wait_loses_nothing_and_wakes_the_others(loop_factory: object) -> None:
    with pumped(zmq.PULL, zmq.PUSH) as (there, here):
        assert there.receive(1) == []
        waits = [asyncio.create_task(there.wait_readable()) for _ in range(3)]
        await asyncio.sleep(0)
        waits[0].cancel()
        await asyncio.gather(waits[0], return_exceptions=True)
        while not here.send([b"x"]):
            await here.wait_writable()
        await asyncio.gather(*waits[1:])
        assert there.receive(5) == [[b"x"]]


async def test_a_large_frame_is_copied_neither_out_nor_in() -> None:
    with opened(zmq.PULL, zmq.PUSH) as (there, here):
        (endpoint,) = there.bind()
        loop = asyncio.get_running_loop()
        reader, writer = Pump(there.socket, loop), Pump(here.socket, loop)
        small, large = b"s" * (NO_COPY_BYTES - 1), b"l" * NO_COPY_BYTES
        before = sys.getrefcount(small), sys.getrefcount(large)
        here.connect("tcp://127.0.0.1:9")  # where nobody is
        assert writer.send([large, small]) and writer.send([small, large])
        assert sys.getrefcount(small) == before[0] and sys.getrefcount(large) == before[1] + 2
        here.disconnect("tcp://127.0.0.1:9")
        here.connect(endpoint)
        assert writer.send([small, large])
        await reader.wait_readable()
        ((first, second),) = reader.receive(7)
        assert type(first) is bytes and type(second) is memoryview and (first, bytes(second)) == (small, large)
        for pump in (reader, writer):
            pump.close()


async def test_closing_a_pump_ends_the_waits(loop_factory: object) -> None:
    with pumped(zmq.PULL, zmq.PUSH) as (there, _):
        waiting = asyncio.create_task(there.wait_readable())
        await asyncio.sleep(0)
        there.close()
        await waiting
        await there.wait_readable()  # and no new one begins


async def test_a_socket_that_is_closed_under_its_pump_is_silent() -> None:
    """As when the process ends, and the loop still runs in another thread."""
    with pumped(zmq.PULL, zmq.PUSH) as (there, here):
        failures: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(context))
        waiting = asyncio.create_task(there.wait_readable())
        await asyncio.sleep(0)
        for pump in (there, here):
            pump._socket.close()
            pump._look()
        assert there.receive(1) == [] and not here.send([b"x"])
        later = asyncio.create_task(there.wait_readable())
        await asyncio.sleep(0)
        assert not waiting.done() and not later.done() and not failures
        there.close()
        await asyncio.gather(waiting, later)


async def test_an_idle_pump_does_not_keep_the_loop_busy() -> None:
    with pumped(zmq.PULL, zmq.PUSH) as (there, here):
        while not here.send([b"nobody reads this"]):
            await here.wait_writable()
        await there.wait_readable()
        looks = 0
        look = there._look

        def counted() -> None:
            nonlocal looks
            looks += 1
            look()

        loop = asyncio.get_running_loop()
        loop.add_reader(there._descriptor, counted)
        began = time.monotonic()
        while time.monotonic() < began + 0.05:
            await asyncio.sleep(0)
        assert looks <= 2
