"""What is particular to the transport over ZeroMQ: addresses, limits, deadlines, forks, descriptors."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from meshmsg.errors import AddressUnavailable, ConfigurationError, ForkedProcess, NodeClosed, TooManyLinks
from meshmsg.transport import Transport
from meshmsg.transport import link as link_module
from meshmsg.transport import zmq as zmq_module
from meshmsg.transport.descriptors import count_open
from meshmsg.transport.zmq import RECEIVE_BYTES, ZmqTransport
from tests.transport.side import DOWN, FAILED, UP, Side


def satisfies_the_interface(transport: ZmqTransport) -> Transport:
    return transport  # checked by the type checker


# --- binding ------------------------------------------------------------------------------------------------


async def test_several_addresses_share_one_port() -> None:
    transport = ZmqTransport(addresses=["127.0.0.1", "::1"])
    with Side(transport) as theirs, Side(ZmqTransport()) as ours:
        port = int(theirs.endpoint.rpartition(":")[2])
        assert theirs.endpoint == f"tcp://127.0.0.1:{port}"
        for link, endpoint in enumerate([f"tcp://127.0.0.1:{port}", f"tcp://[::1]:{port}"]):
            ours.transport.dial(link, endpoint, b"%d-th" % (link + 1))
            await ours.until_event(link, UP)
            assert ours.transport.send(link, [b"to %d" % link])
        assert sorted(await theirs.until_received(2)) == [[b"to 0"], [b"to 1"]]


def test_bind_returns_every_endpoint() -> None:
    transport = ZmqTransport(addresses=["127.0.0.1", "127.0.0.2", "::1"])
    first, second, third = transport.bind()
    port = first.rpartition(":")[2]
    assert (second, third) == (f"tcp://127.0.0.2:{port}", f"tcp://[::1]:{port}")
    transport.close()
    assert transport.wait_closed(10)


@contextmanager
def closing(transport: ZmqTransport) -> Iterator[ZmqTransport]:
    try:
        yield transport
    finally:
        transport.close()
        assert transport.wait_closed(10)


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    with closing(ZmqTransport()) as first:
        port = int(first.bind()[0].rpartition(":")[2])
        with closing(ZmqTransport(port=port)) as second:
            with pytest.raises(AddressUnavailable, match=rf"port {port} of 127\.0\.0\.1 is in use; .*port 0"):
                second.bind()
            first.close()
            assert first.wait_closed(10)
            assert second.bind() == (f"tcp://127.0.0.1:{port}",)  # and it may be tried again


def test_an_address_of_another_machine_is_named() -> None:
    with closing(ZmqTransport(addresses=["192.0.2.1"])) as transport:
        with pytest.raises(AddressUnavailable, match=r"no interface of this machine has the address 192\.0\.2\.1"):
            transport.bind()


@pytest.mark.parametrize("addresses", [[], ["localhost"], ["eth0"], ["*"], ["127.0.0.1:80"], [""]])
def test_what_is_no_address_is_refused(addresses: list[str]) -> None:
    with closing(ZmqTransport(addresses=addresses)) as transport:
        with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1"):
            transport.bind()


def test_the_order_of_calls_is_checked() -> None:
    with closing(ZmqTransport()) as transport:
        loop = asyncio.new_event_loop()
        with pytest.raises(ConfigurationError, match=r"after bind\(\)"):
            transport.start(loop, lambda: None)
        transport.bind()
        with pytest.raises(ConfigurationError, match="bound already"):
            transport.bind()
        with pytest.raises(NodeClosed, match=r"before start\(\)"):
            transport.dial(1, "tcp://127.0.0.1:1", b"a")
        loop.close()


def test_a_loop_without_readers_is_refused_with_advice() -> None:
    class ProactorEventLoop(asyncio.SelectorEventLoop):
        def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
            raise NotImplementedError

    loop = ProactorEventLoop()
    with closing(ZmqTransport()) as transport:
        transport.bind()
        with pytest.raises(ConfigurationError, match=r"ProactorEventLoop cannot watch .*loop_factory"):
            transport.start(loop, lambda: None)
    loop.close()


async def test_a_transport_may_be_closed_after_its_loop() -> None:
    def run() -> None:
        loop = asyncio.new_event_loop()
        transport = ZmqTransport()
        endpoint = transport.bind()[0]
        transport.start(loop, lambda: None)
        transport.dial(1, endpoint, b"a")
        loop.close()
        transport.close()
        assert transport.wait_closed(10)

    await asyncio.to_thread(run)


# --- dialling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://localhost:5555",  # a name would be looked up in libzmq's I/O thread
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1",
        "tcp://999.0.0.1:5555",
        "tcp://[::1:5555",
        "tcp://::1:5555",
        "tcp://127.0.0.1:5555 ",
        "ipc:///tmp/x",
        "inproc://x",
        "udp://127.0.0.1:5555",
        "tcp://127.0.0.1:५५५५",
        "",
    ],
)
async def test_an_endpoint_that_cannot_be_dialled_fails(endpoint: str) -> None:
    with Side(ZmqTransport()) as ours:
        ours.transport.dial(1, endpoint, b"a")
        await ours.until(lambda: bool(ours.events))
        assert ours.events == [(1, FAILED)]


async def test_a_name_is_never_looked_up() -> None:
    with Side(ZmqTransport()) as ours:
        ours.transport.dial(1, ours.endpoint.replace("127.0.0.1", "localhost"), b"a")
        await ours.until(lambda: bool(ours.events))
        assert ours.events == [(1, FAILED)]


async def test_a_node_on_loopback_never_dials_beyond() -> None:
    transport = ZmqTransport()
    with Side(transport) as ours:
        assert not transport.may_dial("tcp://192.0.2.1:5555")
        ours.transport.dial(1, "tcp://192.0.2.1:5555", b"a")
        ours.turn()
        assert ours.events == [(1, FAILED)]
    transport = ZmqTransport(addresses=["127.0.0.1", "192.0.2.7"])
    assert transport.may_dial("tcp://192.0.2.1:5555")


async def test_link_numbers_and_identities_are_checked() -> None:
    with Side(ZmqTransport()) as ours:
        ours.transport.dial(1, ours.endpoint, b"a")
        with pytest.raises(ValueError, match="link 1 is open"):
            ours.transport.dial(1, ours.endpoint, b"b")
        for identity in (b"", b"\0a", b"x" * 256):
            with pytest.raises(ValueError, match="1 to 255 bytes"):
                ours.transport.dial(2, ours.endpoint, identity)
        await ours.dial(3, ours, b"x" * 255)


async def test_a_server_that_accepts_and_is_silent_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with Side(ZmqTransport(dial_timeout_s=0.2)) as ours:
            ours.transport.dial(1, f"tcp://127.0.0.1:{server.getsockname()[1]}", b"a")
            await ours.until_event(1, FAILED)
            assert ours.events == [(1, FAILED)]


@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x01\x00",
        b"\xff" + b"\0" * 8 + b"\x7f\x03",
        b"\xff" * 64,
        b"\0" * 64,
    ],
)
async def test_a_server_of_another_protocol_fails(greeting: bytes) -> None:
    """Some of these look like ZMTP 1.0, for which libzmq has neither a timeout nor an event."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        try:
            await reader.read()
        except ConnectionResetError:
            pass
        writer.close()
        dropped.set()

    dropped = asyncio.Event()
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    with Side(ZmqTransport(dial_timeout_s=0.2)) as ours:
        ours.transport.dial(1, f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}", b"a")
        await ours.until_event(1, FAILED)
        assert ours.events == [(1, FAILED)]
        assert not ours.transport.send(1, [b"x"])
        await dropped.wait()
    server.close()
    await server.wait_closed()


async def test_a_loop_that_was_held_up_is_no_reason_to_fail() -> None:
    with Side(ZmqTransport(dial_timeout_s=0.1)) as ours, Side(ZmqTransport()) as theirs:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        ours.transport.dial(1, theirs.endpoint, b"a")
        ours.transport.send(1, [b"made it"])
        deadline = loop.time() + 0.3
        # Nothing here gives way to the loop, until the deadline is over and the link is known to be up.
        while loop.time() < deadline or not theirs.received:
            theirs.turn()
        # Now the loop sees both at once: the time is over, and the link has been up for long.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await ours.until(lambda: bool(ours.events))
        assert ours.events == [(1, UP)]
        assert ours.transport.send(1, [b"and stays"])
        await theirs.until_received(2)


async def test_a_link_never_reconnects_by_itself() -> None:
    with Side(ZmqTransport()) as ours:
        with Side(ZmqTransport()) as before:
            await ours.dial(1, before, b"a")
            port = int(before.endpoint.rpartition(":")[2])
            # This side does not look when it happens, and still believes in its link.
        with Side(ZmqTransport(port=port)) as after, socket.create_server(("127.0.0.1", 0)) as silent:
            ours.transport.send(1, [b"for the one before"])
            # Something else takes its time: longer than libzmq would take to reconnect.
            after.transport.dial(1, f"tcp://127.0.0.1:{silent.getsockname()[1]}", b"x")
            await after.until_event(1, FAILED)
            assert after.received == []
            await ours.dial(2, after, b"b")
            assert ours.events == [(1, UP), (1, DOWN), (2, UP)]
            ours.transport.send(2, [b"for the one after"])
            assert await after.until_received(1) == [[b"for the one after"]]


# --- high water ---------------------------------------------------------------------------------------------


async def test_a_full_link_says_so_and_wakes_when_it_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    # Few and large messages, so that those between the two queues, in TCP's buffers, are no more than half a queue:
    # libzmq tells of room when half of one was read.
    monkeypatch.setattr(link_module, "SEND_HIGH_WATER", 100)
    monkeypatch.setattr(zmq_module, "RECEIVE_HIGH_WATER", 10)
    message = bytes(500_000)
    with Side(ZmqTransport()) as ours, Side(ZmqTransport()) as theirs:
        await ours.dial(1, theirs, b"a")
        sent = 0
        while ours.transport.send(1, [message]):
            sent += 1
        assert sent >= 100
        ours.turn()
        refused = ours.wakes
        reading = asyncio.create_task(theirs.until_received(sent + 1))
        # Nothing arrives here, so only news of room wakes this side.
        await ours.until(lambda: ours.wakes > refused and ours.transport.send(1, [b"last"]))
        await reading
        assert theirs.received[-1] == (b"a", [b"last"])


async def test_a_full_link_that_is_hung_up_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "SEND_HIGH_WATER", 10)
    monkeypatch.setattr(zmq_module, "RECEIVE_HIGH_WATER", 10)
    with Side(ZmqTransport()) as ours, Side(ZmqTransport()) as theirs:
        await ours.dial(1, theirs, b"a")
        while ours.transport.send(1, [bytes(500_000)]):
            pass
        ours.transport.hang_up(1)
        assert not ours.transport.send(1, [b"x"])
        await ours.dial(2, theirs, b"b")


async def test_a_message_over_the_limit_arrives_without_frames() -> None:
    with Side(ZmqTransport()) as ours, Side(ZmqTransport(max_message_bytes=1_000_000)) as theirs:
        await ours.dial(1, theirs, b"a")
        for frames in (
            [bytes(1_000_000)],
            [bytes(1_000_001)],
            [bytes(10_000)] * 101,
            [bytes(3_000_000)],
            [b"x"],
        ):
            ours.transport.send(1, frames)
        assert await theirs.until_received(5) == [[bytes(1_000_000)], [], [], [], [b"x"]]


async def test_a_receive_of_large_messages_stops_early_and_says_so() -> None:
    with Side(ZmqTransport()) as ours, Side(ZmqTransport(), limit=1000) as theirs:
        await ours.dial(1, theirs, b"a")
        for _ in range(100):
            assert ours.transport.send(1, [bytes(100_000)])
        await theirs.until_received(100)
        assert max(theirs.bursts) <= RECEIVE_BYTES // 100_000 + 1


# --- resources ----------------------------------------------------------------------------------------------


async def test_links_give_back_their_descriptors() -> None:
    with Side(ZmqTransport()) as ours, Side(ZmqTransport()) as theirs:
        await ours.dial(0, theirs, b"warm up")
        before = count_open(0)
        for link in range(1, 21):
            await ours.dial(link, theirs, b"link-%d" % link)
        assert count_open(0) > before + 60
        for link in range(1, 21):
            ours.transport.hang_up(link)
        # libzmq closes in the background, and both ends are in this process.
        deadline = asyncio.get_running_loop().time() + 20
        while count_open(0) > before and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0)
        assert count_open(0) <= before


async def test_too_few_descriptors_are_an_error_and_no_abort() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Side(ZmqTransport()) as ours:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count_open(0) + 60, hard))
        try:
            with pytest.raises(TooManyLinks, match=r"links open: .*ulimit -n"):
                for link in range(60):
                    ours.transport.dial(link, ours.endpoint, b"link-%d" % link)
            await ours.until_event(0, UP)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        # With the limit raised again it goes on.
        await ours.dial(100, ours, b"hundredth")


async def test_a_forked_child_gets_an_error_and_the_parent_goes_on() -> None:
    with Side(ZmqTransport()) as ours, Side(ZmqTransport()) as theirs:
        await ours.dial(1, theirs, b"a")
        child = os.fork()
        if child == 0:
            os._exit(try_everything(ours.transport, theirs.endpoint))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        ours.transport.send(1, [b"still here"])
        assert await theirs.until_received(1) == [[b"still here"]]


def try_everything(transport: Transport, endpoint: str) -> int:
    """In the child: 0 if each method raises ForkedProcess, and close does nothing."""
    attempts: list[Callable[[], object]] = [
        lambda: transport.send(1, [b"x"]),
        lambda: transport.receive(1),
        lambda: transport.link_events(),
        lambda: transport.hang_up(1),
        lambda: transport.dial(2, endpoint, b"b"),
        lambda: transport.bind(),
    ]
    for number, attempt in enumerate(attempts, 1):
        try:
            attempt()
        except ForkedProcess as error:
            if "spawn" in str(error):
                continue
        return number
    transport.close()
    return 0 if transport.wait_closed(1) else 100
