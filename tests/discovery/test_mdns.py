"""MdnsDiscovery among honest nodes: finding, leaving, staying on loopback, failing clearly."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from zeroconf import RecordUpdate, RecordUpdateListener, ServiceInfo, Zeroconf
from zeroconf.asyncio import AsyncZeroconf

from meshmsg.discovery import Candidate, MdnsDiscovery, responder
from meshmsg.errors import ConfigurationError, DiscoveryUnavailable
from tests.discovery.sightings import (
    PTR,
    TYPE,
    Sightings,
    Stranger,
    announced,
    encode_name,
    good_txt,
    new_id,
    new_mdns,
    pointer,
)

ONE_NODE = """
import asyncio, sys
from meshmsg.discovery import MdnsDiscovery

async def main(mesh, node_id):
    discovery = MdnsDiscovery(mesh=mesh, node_id=node_id, name="child", endpoints=["tcp://127.0.0.1:41002"])
    found = asyncio.Event()
    await discovery.start(lambda candidate: found.set(), lambda node_id: None)
    await found.wait()
    await asyncio.to_thread(sys.stdin.read)
    await discovery.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_nodes_find_each_other() -> None:
    mesh, first_id, second_id = new_id(), new_id(), new_id()
    async with announced(new_mdns(mesh, node_id=first_id, port=41001, name="Küche")) as first:
        async with announced(new_mdns(mesh, node_id=second_id, port=41002)) as second:
            await first.until(lambda seen: bool(seen.candidates))
            await second.until(lambda seen: bool(seen.candidates))
    assert first.candidates == [Candidate(second_id, ("tcp://127.0.0.1:41002",))]
    assert second.candidates == [Candidate(first_id, ("tcp://127.0.0.1:41001",), "Küche")]


async def test_a_leaving_node_is_lost_and_may_come_back() -> None:
    mesh, node_id = new_id(), new_id()
    async with announced(new_mdns(mesh)) as observer:
        for _ in range(2):
            async with announced(new_mdns(mesh, node_id=node_id)):
                await observer.until(lambda seen: len(seen.candidates) > len(seen.gone))
            await observer.until(lambda seen: len(seen.candidates) == len(seen.gone))
    assert observer.gone == [node_id, node_id]


async def test_twenty_nodes_that_start_at_once_find_each_other() -> None:
    mesh, ids = new_id(), [new_id() for _ in range(20)]
    discoveries = [new_mdns(mesh, node_id=node_id) for node_id in ids]
    sightings = [Sightings() for _ in ids]
    started = zip(discoveries, sightings, strict=True)
    await asyncio.gather(*(discovery.start(seen.found, seen.lost) for discovery, seen in started))
    for node_id, seen in zip(ids, sightings, strict=True):
        await seen.until(lambda seen: len(seen.candidates) >= 19)
        assert seen.ids == {*ids} - {node_id}
    await asyncio.gather(*(discovery.close() for discovery in discoveries))
    assert all(len(seen.candidates) == 19 for seen in sightings), "each is reported once"


async def test_processes_find_each_other() -> None:
    mesh, child_id = new_id(), new_id()
    async with announced(new_mdns(mesh)) as observer:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ONE_NODE, mesh, child_id, stdin=subprocess.PIPE
        )
        try:
            await observer.until(lambda seen: bool(seen.candidates))
            assert observer.candidates == [Candidate(child_id, ("tcp://127.0.0.1:41002",), "child")]
            await child.communicate(b"")  # ends once the child found this process and its input ended
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        assert child.returncode == 0
        await observer.until(lambda seen: seen.gone == [child_id])


async def test_other_meshes_and_the_own_announcement_are_not_reported() -> None:
    mesh, friend = new_id(), new_id()
    async with AsyncExitStack() as stack:
        observer = await stack.enter_async_context(announced(new_mdns(mesh)))
        await stack.enter_async_context(announced(new_mdns(new_id())))
        await stack.enter_async_context(announced(new_mdns(mesh, node_id=friend)))
        await observer.until(lambda seen: bool(seen.candidates))
    assert observer.ids == {friend}


async def test_a_restart_under_the_same_id_is_reported_with_its_new_endpoint() -> None:
    mesh, node_id = new_id(), new_id()
    async with announced(new_mdns(mesh)) as observer:
        with Stranger() as crashed:  # leaves without a goodbye
            await observer.until(
                lambda seen: bool(seen.candidates),
                lambda: crashed.announce(node_id, good_txt(mesh, node_id), port=41001),
            )
        async with announced(new_mdns(mesh, node_id=node_id, port=41002)):
            await observer.until(lambda seen: len(seen.candidates) == 2)
    assert observer.candidates[-1] == Candidate(node_id, ("tcp://127.0.0.1:41002",))


async def test_an_address_that_runs_out_disappears() -> None:
    # A replaced address stays valid for a second, and no packet says when that is over.
    mesh, node_id = new_id(), new_id()
    text = good_txt(mesh, node_id)
    async with announced(new_mdns(mesh)) as observer:
        with Stranger() as stranger:
            await observer.until(
                lambda seen: len(seen.candidates) == 1,
                lambda: stranger.announce(node_id, text, addresses=["127.0.0.7"], address_ttl=1),
            )
            await observer.until(
                lambda seen: seen.candidates[-1].endpoints == ("tcp://127.0.0.8:41001",),
                lambda: stranger.announce(node_id, text, addresses=["127.0.0.8"]),
            )
    assert observer.candidates[0].endpoints == ("tcp://127.0.0.7:41001",)


async def test_an_announcement_without_its_other_records_is_asked_for_them() -> None:
    mesh, node_id = new_id(), new_id()
    zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"])
    await zeroconf.zeroconf.async_wait_for_start()
    async with announced(new_mdns(mesh)) as observer:
        name = f"{node_id}.{TYPE}"
        service = ServiceInfo(
            TYPE, name, 41001, properties=good_txt(mesh, node_id), server=name, parsed_addresses=["127.0.0.1"]
        )
        zeroconf.zeroconf.registry.async_add(service)  # answers questions, announces nothing
        with Stranger() as stranger:
            stranger.send_records(pointer(node_id))
        await observer.until(lambda seen: bool(seen.candidates))
    await zeroconf.async_close()
    assert observer.ids == {node_id}


async def test_two_starts_never_send_equal_packets() -> None:
    # Listeners drop a packet that they heard less than 0.8 s ago.
    mesh, node_id = new_id(), new_id()
    announcements = set()
    for _ in range(2):
        discovery = new_mdns(mesh, node_id=node_id)
        async with announced(discovery):
            assert discovery._responder is not None
            announcements.add(discovery._responder._service.text)
    assert len(announcements) == 2


async def test_questions_ask_for_answers_by_multicast() -> None:
    # Port 5353 is shared by all processes of a machine, so an answer to one address reaches any one of them.
    question = encode_name(TYPE) + struct.pack(">H", PTR)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ears:
        ears.setblocking(False)
        ears.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            ears.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ears.bind(("", 5353))
        group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
        ears.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        async with announced(new_mdns(new_id())):
            packet = b""
            while not (packet[2:3] == b"\0" and question in packet):
                packet = await asyncio.get_running_loop().sock_recv(ears, 9000)
    class_ = packet[packet.index(question) + len(question) :][:2]
    assert class_ == b"\0\1", "the top bit would ask for an answer to this socket only"


async def test_a_newcomer_is_greeted_without_asking() -> None:
    mesh, node_id = new_id(), new_id()
    greeted = asyncio.Event()

    class Ears(RecordUpdateListener):
        def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
            if any(record.new.name.startswith(node_id) for record in records):
                greeted.set()

    established = new_mdns(mesh, node_id=node_id)
    async with announced(established):
        assert established._responder is not None
        await asyncio.wait(established._responder._tasks)  # from here on it announces nothing by itself
        newcomer = AsyncZeroconf(interfaces=["127.0.0.1"])
        await newcomer.zeroconf.async_wait_for_start()
        newcomer.zeroconf.async_add_listener(Ears(), None)
        with Stranger() as stranger:
            stranger.announce(newcomer_id := new_id(), good_txt(mesh, newcomer_id))
        await greeted.wait()
        await newcomer.async_close()


# --- staying on this machine (G12) --------------------------------------------------------------------------


def mdns_memberships() -> dict[str, int]:
    """How many sockets of this machine are in the mDNS group (224.0.0.251), by interface."""
    users: dict[str, int] = {}
    interface = ""
    for line in Path("/proc/net/igmp").read_text().splitlines()[1:]:
        fields = line.split()
        if not line.startswith("\t"):
            interface = fields[1]
        elif fields[0] == "FB0000E0":
            users[interface] = int(fields[1])
    return users


@pytest.mark.guarantee("G12")
@pytest.mark.skipif(sys.platform != "linux", reason="/proc and SO_BINDTODEVICE are Linux's")
async def test_no_interface_but_loopback_is_touched() -> None:
    def elsewhere() -> dict[str, int]:
        return {interface: users for interface, users in mdns_memberships().items() if interface != "lo"}

    before = elsewhere()
    discovery = new_mdns(new_id())
    async with announced(discovery):
        assert mdns_memberships()["lo"] >= 1
        assert elsewhere() == before
        assert discovery._responder is not None and discovery._responder._zeroconf is not None
        engine = discovery._responder._zeroconf.zeroconf.engine
        assert engine.readers and engine.senders
        for reader in engine.readers:
            assert reader.sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b"lo\0"
        for sender in engine.senders:
            assert sender.sock_name[0] == "127.0.0.1"
            interface = sender.sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 4)
            assert interface == socket.inet_aton("127.0.0.1")


@pytest.mark.guarantee("G12")
@pytest.mark.parametrize("endpoint", ["tcp://192.0.2.7:41001", "tcp://0.0.0.0:41001", "tcp://[2001:db8::1]:41001"])
def test_on_loopback_only_loopback_is_announced(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match=r"loopback|not dialled"):
        MdnsDiscovery(mesh="m", node_id=new_id(), name="", endpoints=["tcp://127.0.0.1:41001", endpoint])


async def test_a_burst_of_answers_has_more_room_than_usual() -> None:
    def receive_buffer(sock: socket.socket) -> int:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    discovery = new_mdns(new_id())
    async with announced(discovery):
        assert discovery._responder is not None and discovery._responder._zeroconf is not None
        readers = discovery._responder._zeroconf.zeroconf.engine.readers
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
            assert all(receive_buffer(reader.sock) > receive_buffer(plain) for reader in readers)


# --- configuration and failures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"node_id": "Not An Id"}, "node_id must be"),
        ({"node_id": "a" * 64}, "node_id must be"),
        ({"mesh": ""}, "mesh name has 1 to 200"),
        ({"mesh": "m" * 201}, "mesh name has 1 to 200"),
        ({"endpoints": []}, "without an endpoint"),
        ({"endpoints": "tcp://127.0.0.1:1"}, "must be a list"),
        ({"endpoints": ["tcp://127.0.0.1:1", "tcp://127.0.0.1:2"]}, r"share one port .* \[1, 2\]"),
        ({"endpoints": ["tcp://localhost:41001"]}, r"IP addresses on loopback.*'localhost'"),
        ({"interfaces": "127.0.0.1"}, r"write \['127.0.0.1'\]"),
        ({"interfaces": []}, "needs an interface"),
        ({"interfaces": ["eth7"]}, r"not on 'eth7'; there are .*127\.0\.0\.1"),
        ({"interfaces": ["::1"]}, "does not work on ::1"),
    ],
)
def test_what_cannot_be_announced_is_refused(change: dict[str, object], complaint: str) -> None:
    good = {"mesh": "m", "node_id": new_id(), "name": "n", "endpoints": ["tcp://127.0.0.1:41001"]}
    with pytest.raises(ConfigurationError, match=complaint):
        MdnsDiscovery(**{**good, **change})  # type: ignore[arg-type]  # wrong types are the point


async def test_a_long_name_is_cut_but_not_refused() -> None:
    mesh = new_id()
    async with announced(new_mdns(mesh)) as observer, announced(new_mdns(mesh, name="ü" * 500)):
        await observer.until(lambda seen: bool(seen.candidates))
    assert observer.candidates[0].name == "ü" * 64


async def test_a_taken_port_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> AsyncZeroconf:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(responder, "AsyncZeroconf", refuse)
    discovery = new_mdns(new_id())
    with pytest.raises(DiscoveryUnavailable, match=r"127\.0\.0\.1.*in use.*5353.*seeds="):
        await discovery.start(lambda _: None, lambda _: None)
    await discovery.close()


async def test_an_absent_interface_is_explained() -> None:
    address = "203.0.113.9"  # set aside for documentation (RFC 5737)
    discovery = MdnsDiscovery(
        mesh=new_id(), node_id=new_id(), name="", endpoints=[f"tcp://{address}:41001"], interfaces=[address]
    )
    with pytest.raises(DiscoveryUnavailable, match=r"203\.0\.113\.9: none of these .*127\.0\.0\.1"):
        await discovery.start(lambda _: None, lambda _: None)


async def test_an_interface_without_multicast_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeroconf._utils.net.add_multicast_member", lambda *_: False)
    with pytest.raises(DiscoveryUnavailable, match="no interface took part in multicast"):
        await new_mdns(new_id()).start(lambda _: None, lambda _: None)


async def test_working_multicast_is_not_complained_about() -> None:
    mesh, later = new_id(), new_id()
    discovery = new_mdns(mesh)
    async with announced(discovery) as observer, announced(new_mdns(mesh, node_id=later)):
        await observer.until(lambda seen: later in seen.ids)  # the own announcement was earlier
        assert discovery._responder is not None and discovery._responder._deaf_timer is not None
        assert discovery._responder._deaf_timer.cancelled()


async def test_blocked_multicast_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    reported = asyncio.Event()

    class Ears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reported.set()

    monkeypatch.setattr(responder, "DEAF_AFTER_S", 0.01)
    monkeypatch.setattr(Zeroconf, "async_send", lambda *_, **__: None)  # as a firewall does
    ears = Ears(level=logging.WARNING)
    responder.logger.addHandler(ears)
    try:
        async with announced(new_mdns(new_id())):
            await reported.wait()
    finally:
        responder.logger.removeHandler(ears)
    assert "127.0.0.1 does not even hear this node's own announcement" in caplog.text


async def test_a_node_closed_while_it_starts_is_never_announced() -> None:
    mesh, late = new_id(), new_id()
    async with announced(new_mdns(mesh)) as observer:
        discovery = new_mdns(mesh)
        starting = asyncio.ensure_future(discovery.start(lambda _: None, lambda _: None))
        await asyncio.sleep(0)  # it runs up to its first wait
        await discovery.close()
        await starting
        async with announced(new_mdns(mesh, node_id=late)):
            await observer.until(lambda seen: late in seen.ids)
    assert observer.ids == {late}


async def test_closing_stops_every_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responder, "SETTLE_S", 1e3)
    monkeypatch.setattr(responder.random, "uniform", lambda *_: 1e3)  # neither fires by itself here
    mesh, node_id = new_id(), new_id()
    discovery = new_mdns(mesh)
    with Stranger() as stranger:
        async with announced(discovery) as observer:
            await observer.until(
                lambda seen: len(seen.candidates) == 1,
                lambda: stranger.announce(node_id, good_txt(mesh, node_id), port=41001),
            )
            await observer.until(
                lambda seen: len(seen.candidates) == 2,
                lambda: stranger.announce(node_id, good_txt(mesh, node_id), port=41002),
            )
            assert discovery._responder is not None
            timers = [discovery._responder._greeting, *discovery._responder._settling.values()]
    assert len(timers) == 2
    assert all(timer is not None and timer.cancelled() for timer in timers)


async def test_a_lost_node_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responder, "SETTLE_S", 1e3)
    mesh, node_id = new_id(), new_id()
    discovery = new_mdns(mesh)
    with Stranger() as stranger:
        async with announced(discovery) as observer:
            await observer.until(
                lambda seen: len(seen.candidates) == 1,
                lambda: stranger.announce(node_id, good_txt(mesh, node_id), port=41001),
            )
            await observer.until(
                lambda seen: len(seen.candidates) == 2,
                lambda: stranger.announce(node_id, good_txt(mesh, node_id), port=41002),
            )
            assert discovery._responder is not None
            second_look = discovery._responder._settling[node_id]
            await observer.until(
                lambda seen: seen.gone == [node_id],
                lambda: stranger.announce(node_id, good_txt(mesh, node_id), port=41002, ttl=0, address_ttl=0),
            )
            assert second_look.cancelled()


async def test_a_cancelled_start_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    discovery = new_mdns(new_id())
    starting = asyncio.ensure_future(discovery.start(lambda _: None, lambda _: None))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert asyncio.all_tasks() <= before


async def test_close_does_not_wait_for_a_zeroconf_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    really_close = AsyncZeroconf.async_close

    async def hang(self: AsyncZeroconf) -> None:
        await really_close(self)
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(responder, "CLOSE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(AsyncZeroconf, "async_close", hang)
    async with announced(new_mdns(new_id())):
        pass
    assert "did not close within 0.05 s" in caplog.text


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
async def test_closing_gives_back_every_descriptor() -> None:
    async with announced(new_mdns(new_id())):
        pass  # the first one may open things that stay
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with announced(new_mdns(new_id())):
            pass
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_zeroconf_is_imported_only_when_it_is_needed() -> None:
    code = "import meshmsg.discovery, sys; assert 'zeroconf' not in sys.modules; meshmsg.discovery.MdnsDiscovery"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
