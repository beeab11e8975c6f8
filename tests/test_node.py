"""The node: what it takes, how it starts and ends, and what two of them make of each other."""

from __future__ import annotations

import asyncio
import inspect
import signal
import socket
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from meshmsg import (
    AddressUnavailable,
    ConfigurationError,
    Ledger,
    Message,
    MissingExtra,
    NameClash,
    Node,
    NodeClosed,
    WrongThread,
)
from meshmsg.loops import choose_loop
from tests.blocking.program import Program

PATIENCE_S = 10.0


def mesh() -> str:
    return f"node-{uuid.uuid4().hex[:12]}"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"name": ""}, r"Node\(name\) takes a name"),
        ({"name": "a b"}, "without white space"),
        ({"name": 7}, "takes a name"),
        ({"mesh": "a\nb"}, r"Node\(mesh=\)"),
        ({"port": -1}, r"Node\(port=\) takes 0 or more"),
        ({"port": "7000"}, r"Node\(port=\) takes a whole number"),
        ({"drain": -1}, r"Node\(drain=\)"),
        ({"max_message_bytes": 10}, r"Node\(max_message_bytes=\) takes 1024 or more"),
        ({"max_message_bytes": 2**64}, r"Node\(max_message_bytes=\) takes"),
        ({"max_dead_letters": 0}, r"Node\(max_dead_letters=\)"),
        ({"heartbeat": 5}, "heartbeat < suspect_after"),
        ({"interfaces": "eth0"}, "takes a list, not str 'eth0'"),
        ({"interfaces": []}, "takes at least one name or address"),
        ({"seeds": ["nowhere"]}, "nowhere"),
        ({"seeds": ["tcp://127.0.0.1:port"]}, "port"),
    ],
)
def test_parameters_that_cannot_work(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Node(**{"name": "node", **options})


@pytest.mark.guarantee("G12")
def test_a_node_stays_on_its_machine_without_a_key() -> None:
    node = Node("node")
    assert node._interfaces == ("127.0.0.1",)
    with pytest.raises(ConfigurationError, match="is beyond this machine"):
        Node("node", seeds=["tcp://192.0.2.7:7000"])


async def test_a_node_has_an_id_a_name_and_endpoints() -> None:
    shared = mesh()
    async with Node("same", mesh=shared, mdns=False) as one, Node("same", mesh=shared, mdns=False) as two:
        assert one.name == two.name == "same"
        assert one.id != two.id
        assert one.endpoints != two.endpoints
        assert all(endpoint.startswith("tcp://127.0.0.1:") for endpoint in (*one.endpoints, *two.endpoints))


async def test_nodes_of_different_meshes_do_not_meet() -> None:
    async with Node("one", mesh=mesh(), mdns=False) as one:
        events = one.events()
        async with Node("two", mesh=mesh(), mdns=False, seeds=one.endpoints) as two:
            event = await events.get(timeout=PATIENCE_S)
            assert (event.kind, event.peer_id) == ("mesh.other", two.id)
            assert one.peers() == two.peers() == []


async def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        node = Node("node", mesh=mesh(), mdns=False, port=taken.getsockname()[1])
        with pytest.raises(AddressUnavailable):
            await node.start()
    assert await node.close() == {}


async def test_a_port_of_ones_own_choice() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with Node("node", mesh=mesh(), mdns=False, port=port) as node:
        assert node.endpoints == (f"tcp://127.0.0.1:{port}",)


@pytest.mark.guarantee("G10")
async def test_many_closes_are_one() -> None:
    node = await Node("node", mesh=mesh(), mdns=False).start()
    await node.push("nobody").send(1)
    books = await asyncio.gather(*(node.close(drain=0.01) for _ in range(5)))
    assert all(each == {"nobody": Ledger(accepted=1, pending=1, ready=1)} for each in books)
    with pytest.raises(NodeClosed):
        async with node:
            pass


@pytest.mark.guarantee("G10")
async def test_a_close_that_is_cancelled_goes_on() -> None:
    node = await Node("node", mesh=mesh(), mdns=False).start()
    await node.push("nobody").send(1)
    closing = asyncio.ensure_future(node.close(drain=PATIENCE_S))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    while node._draining is None:
        await asyncio.sleep(0)
    node._hurry()
    assert (await node.close())["nobody"].pending == 1


async def test_a_push_and_a_pull_of_one_queue_may_live_in_one_node() -> None:
    async with Node("node", mesh=mesh(), mdns=False) as node:
        pull = node.pull("work")
        message_id = await node.push("work").send(1)
        message = await pull.get(timeout=PATIENCE_S)
        assert message.id == message_id
        message.ack()
        await pull.close()
        again = node.pull("work")
        await node.push("work").send(2)
        (await again.get(timeout=PATIENCE_S)).ack()


def test_a_queue_is_reliable_or_not() -> None:
    node = Node("node", mesh=mesh(), mdns=False)
    node.push("work")
    with pytest.raises(NameClash, match="already pushes to 'work' reliably"):
        node.push("work", reliable=False)
    with pytest.raises(ConfigurationError, match="is bare ZeroMQ and has no max_pending"):
        mixed: Any = {"reliable": False, "max_pending": 3}
        node.push("bare", **mixed)


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent like this on Windows")
@pytest.mark.guarantee("G10")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_serves_until_a_signal_and_drains(number: signal.Signals, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    program = Program(
        f"""
import asyncio
node = meshmsg.Node("service", mesh="m-{uuid.uuid4().hex[:12]}", mdns=False, drain=10)
jobs = node.push("work")
@node.pull("start")
async def begin(message): ...
@node.pull("work", concurrency=2)
async def handle(message):
    global running
    running += 1
    if running == 2:
        say("working")
    while node._closing is None:
        await asyncio.sleep(0)
running = 0
async def feed():
    while not node._driver.usable:
        await asyncio.sleep(0)
    await jobs.send_many([1, 2])
start = node.start
async def serve_and_feed():
    global feeding
    await start()
    feeding = asyncio.ensure_future(feed())
node.start = serve_and_feed
say(node.run(uvloop={loop == "uvloop"})["work"].processed)
"""
    )
    assert program.line() == "working"
    program.signal(number)
    assert program.finish() == (0, "2", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent like this on Windows")
@pytest.mark.guarantee("G10")
def test_a_second_signal_ends_the_drain() -> None:
    program = Program(
        """
import asyncio
node = meshmsg.Node("service", mesh="m", mdns=False, drain=1000)
jobs = node.push("nobody")
async def watch():
    while not node._driver.usable:
        await asyncio.sleep(0)
    await jobs.send(1)
    say("ready")
    while node._draining is None:
        await asyncio.sleep(0)
    say("draining")
start = node.start
async def serve_and_watch():
    global watching
    await start()
    watching = asyncio.ensure_future(watch())
node.start = serve_and_watch
say(node.run()["nobody"].pending)
"""
    )
    assert program.line() == "ready"
    program.signal(signal.SIGINT)
    assert program.line() == "draining"
    program.signal(signal.SIGINT)
    code, output, _ = program.finish()
    assert (code, output) == (0, "1")


def test_the_choice_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_loop(False) is None or sys.platform == "win32"
    mistaken: Any = "yes"
    with pytest.raises(ConfigurationError, match=r"^uvloop= takes True or False, got 'yes'"):
        choose_loop(mistaken)
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert choose_loop(None) is None or sys.platform == "win32"
    if sys.platform != "win32":
        with pytest.raises(MissingExtra, match=r'pip install "meshmsg\[speed\]"'):
            choose_loop(True)


async def test_a_background_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with Node("node", mesh=mesh(), mdns=False) as node:
        jobs = node.push("work", unroutable_after=0)
        told = asyncio.Event()

        @jobs.on_dead_letter
        async def fail(letter: Any) -> None:
            told.set()
            raise RuntimeError("a hook's own bug")

        await jobs.send(1)
        async with asyncio.timeout(PATIENCE_S):
            await told.wait()
    assert "a hook's own bug" in caplog.text


async def test_a_handler_registered_after_the_start_runs() -> None:
    async with Node("node", mesh=mesh(), mdns=False) as node:
        seen: list[Any] = []

        @node.pull("work")
        async def handle(message: Message) -> None:
            seen.append(message.body)

        await node.push("work").deliver("now", timeout=PATIENCE_S)
        assert seen == ["now"]


async def test_run_is_refused_inside_a_loop_and_outside_the_main_thread() -> None:
    node = Node("node", mesh=mesh(), mdns=False)
    with pytest.raises(ConfigurationError, match="makes a loop of its own"):
        node.run()
    with pytest.raises(ConfigurationError, match="needs the main thread"):
        await asyncio.to_thread(node.run)


@pytest.mark.parametrize("timeout", ["soon", float("nan"), -1])
async def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    async with Node("node", mesh=mesh(), mdns=False, drain=0) as node:
        with pytest.raises(ConfigurationError, match="timeout="):
            await node.wait_for(pull="work", timeout=timeout)
        with pytest.raises(ConfigurationError, match="timeout="):
            await node.push("work").flush(timeout=timeout)


def elsewhere(use: Callable[[], Any]) -> None:
    """Runs something in another thread, which has a loop of its own, and expects to be told that it must not."""

    async def run() -> None:
        result = use()
        if inspect.isawaitable(result):
            await result

    with pytest.raises(WrongThread, match="belongs to the thread of its event loop"):
        asyncio.run(run())


async def test_another_thread_is_told_so() -> None:
    async with Node("node", mesh=mesh(), mdns=False, drain=0) as node:
        jobs, pull, other, events = node.push("work"), node.pull("work"), node.pull("other"), node.events()

        async def handler(message: Message) -> None: ...

        uses: list[Callable[[], Any]] = [
            node.ledger,
            node.peers,
            node.events,
            node.dead_letters,
            node.redrive,
            node._hurry,
            node.close,
            jobs.ledger,
            pull.close,
            events.get,
            events.__anext__,
            events.close,
            lambda: other(handler),
            lambda: other(print),
            lambda: jobs.on_dead_letter(print),
            lambda: node.push("work", on_dead_letter=print),
        ]
        for use in uses:
            await asyncio.to_thread(elsewhere, use)
        await jobs.send(1)
        (await pull.get(timeout=PATIENCE_S)).ack()  # nothing of that has closed or broken anything
        await jobs.flush(timeout=PATIENCE_S)
    # No thread is at work in a closed node: any may look what is left.
    assert await asyncio.to_thread(node.ledger) == node.ledger() == {"work": Ledger(accepted=1, processed=1)}
    assert await asyncio.to_thread(jobs.ledger) == jobs.ledger() == Ledger(accepted=1, processed=1)
    assert (node.peers(), node.dead_letters(), [each async for each in events]) == ([], [], [])


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent like this on Windows")
@pytest.mark.guarantee("G4", "G10")
@pytest.mark.parametrize("moment", ["in hand", "idle"])
def test_a_program_that_iterates_can_leave_at_a_signal(moment: str) -> None:
    """What docs/quickstart.md tells such programs to do."""
    program = Program(
        f"""
import asyncio
async def main():
    async with meshmsg.Node("worker", mesh="m-{uuid.uuid4().hex[:12]}", mdns=False, drain=0) as node:
        jobs, pull = node.push("jobs"), node.pull("jobs", prefetch=2)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(pull.close()))
        if {moment == "in hand"}:
            await jobs.send_many(range(3))
        else:
            loop.call_soon(say, "idle")
        async for message in pull:
            with message:
                say("in hand")
                while not pull._closed:
                    await asyncio.sleep(0)
        await jobs._driver.until(lambda: jobs.ledger().in_flight == 0, {PATIENCE_S})
        say(*node.ledger()["jobs"])
asyncio.run(main())
say("left")
"""
    )
    assert program.line() == moment
    program.signal(signal.SIGTERM)
    accepted, processed = (3, 1) if moment == "in hand" else (0, 0)
    left = accepted - processed  # given back unstarted: no attempt, no redelivery to a handler
    assert program.finish() == (0, f"{accepted} {processed} 0 {left} {left} 0 0 0\nleft", "")
