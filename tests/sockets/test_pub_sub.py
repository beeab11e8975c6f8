"""Pub and Sub by themselves: what needs no other process and no other face."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
import zmq
import zmq.asyncio

import meshmsg
from meshmsg import BodyTooLarge, Gap, Message, Node, OutboxFull
from meshmsg.engine.broadcasting import unwrap_will, wrap_will
from meshmsg.sockets import handoff
from meshmsg.sockets.pub_sub import SEND_BURST
from meshmsg.wire.codec import make_packer


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Node]:
    async with Node("node", mesh=uuid.uuid4().hex, mdns=False, drain=0, **options) as node:
        yield node


async def test_what_one_turn_publishes_leaves_together() -> None:
    async with running() as node:
        out, sub = node.pub("numbers"), node.sub("numbers")
        await node.wait_for(sub="numbers", timeout=5)
        for number in range(100):
            await out.send(number)
        await sub.get(timeout=5)
        batches = [batch async for batch in _first(sub.batches(max_wait=0), 1)]
        assert len(batches[0]) == 99


async def _first(source: Any, count: int) -> AsyncIterator[Any]:
    async for each in source:
        yield each
        count -= 1
        if not count:
            return


@pytest.mark.parametrize(("body", "burst"), [(1, SEND_BURST), (bytes(100_000), 11), (bytes(2**20), 2)])
async def test_sending_without_an_end_lets_others_run(body: Any, burst: int) -> None:
    """After about a thousand messages, or a mebibyte."""
    async with running() as node:
        out = node.pub("numbers")
        turns = 0

        def count() -> None:
            nonlocal turns
            turns += 1
            asyncio.get_running_loop().call_soon(count)

        count()
        for _ in range(burst * 3 + 1):
            await out.send(body)
        assert turns >= 3


async def test_a_plain_subscriber_joins_the_pieces_of_a_large_message() -> None:
    """As any program does that has ZeroMQ, MessagePack and docs/pub-sub.md."""
    large = os.urandom(10_000_000)
    async with running() as node:
        out = node.pub("camera.*")
        (endpoint, *_) = node._engine.identity.offers["broadcast"]["xpub"]["endpoints"]
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as plain:
            plain.subscribe(b"camera.")
            plain.connect(endpoint)
            while not await plain.poll(10):  # nobody confirms a plain subscriber
                await out.send("hello", topic="camera.hello")
            for topic, body in (("camera.image", large), ("camera.time", "now"), ("camera.image", "the end")):
                await out.send(body, topic=topic)
            pieces: list[bytes] = []
            got: list[tuple[bytes, Any]] = []
            while not got or got[-1][1] != "the end":
                topic, packed, payload = await plain.recv_multipart()
                header = msgpack.unpackb(packed)
                if len(header) > 6:
                    index, count = header[6]
                    assert index == len(pieces) and (index == count - 1 or len(payload) == 256 * 1024)
                    pieces.append(payload)
                    if index < count - 1:
                        continue
                    payload, pieces = b"".join(pieces), []
                body = msgpack.unpackb(payload)
                got += [(topic, each) for each in (body if header[4] > 1 else [body])]
    assert [each for each in got if each[0] != b"camera.hello"] == [
        (b"camera.time", "now"),
        (b"camera.image", large),
        (b"camera.image", "the end"),
    ]


async def test_large_bodies_are_looked_at_one_by_one() -> None:
    async with running(max_message_bytes=4096) as node:
        out = node.pub("large")
        await out.send("x" * 4000)
        with pytest.raises(BodyTooLarge):
            await out.send("x" * 5000)


async def test_who_waits_in_send_is_woken_by_room_and_by_nothing_else() -> None:
    async with running() as node:
        out, sub = node.pub("steady", block=True, window=3), node.sub("steady", buffer=1)
        await node.wait_for(sub="steady", timeout=5)
        sending = asyncio.ensure_future(_send(out, range(20)))
        while not out.lag().get("node", {}).get("steady") == 3:
            await asyncio.sleep(0)
        with pytest.raises(OutboxFull, match=r"^a subscriber of 'steady' is 3 messages behind \(window=3\): await"):
            out.send_nowait("no")
        assert [(await sub.get(timeout=5)).body for _ in range(20)] == list(range(20))
        await asyncio.wait_for(sending, 5)


@pytest.mark.guarantee("G6")
async def test_who_never_waits_does_not_pass_those_in_line_for_a_window() -> None:
    async with running() as node:
        out, sub = node.pub("steady.*", block=True, window=3), node.sub("steady.a", buffer=1)
        await node.wait_for(sub="steady.a", timeout=5)
        sending = asyncio.ensure_future(_send(out, range(20), topic="steady.a"))
        refused = 0
        got: list[int] = []
        while len(got) < 20:
            if out._lines and not out._publisher.blocked("steady.a"):  # there is room, and it is somebody's
                refused += 1
                with pytest.raises(OutboxFull, match=r"^other messages wait to be sent to 'steady\.a', and go first"):
                    out.send_nowait("too early", topic="steady.a")
                out.send_nowait("another topic", topic="steady.b")
            while sub.unsettled:
                got.append((await sub.get(timeout=5)).body)
            await asyncio.sleep(0)
        await asyncio.wait_for(sending, 5)
        assert got == list(range(20)) and refused
        out.send_nowait("the line is gone", topic="steady.a")
        assert (await sub.get(timeout=5)).body == "the line is gone"


@pytest.mark.guarantee("G5", "G7")
async def test_who_never_waits_does_not_pass_those_in_line_for_a_group() -> None:
    async with running() as node:
        out = node.pub("orders", max_pending_bytes=100_000)
        member = node.sub("orders", group="billing", prefetch=1)
        await node.wait_for(group="billing", timeout=5)
        await out.send("a" * 60_000)
        sending = asyncio.ensure_future(out.send("b" * 50_000))
        while not out._line.busy:
            await asyncio.sleep(0)
        with pytest.raises(OutboxFull, match=r"^other messages wait to be sent to 'orders', and go first: await send"):
            out.send_nowait("small enough for the room that there is")
        with await member.get(timeout=5) as message:
            assert message.body[0] == "a"
        await asyncio.wait_for(sending, 5)
        out.send_nowait("c")
        for letter in "bc":
            with await member.get(timeout=5) as message:
                assert message.body[0] == letter


@pytest.mark.parametrize("window", [{"window_bytes": 5000}, {"window": 5}])
@pytest.mark.parametrize("how", ["send", "send_many", "gather"])
async def test_what_waits_for_the_turn_counts_for_the_window(window: dict[str, Any], how: str) -> None:
    async with running() as node:
        out, sub = node.pub("steady", block=True, **window), node.sub("steady")
        await node.wait_for(sub="steady", timeout=5)
        bodies = [bytes(1000)] * 20
        ways = {"send": _send(out, bodies), "send_many": out.send_many(bodies), "gather": _send_at_once(out, bodies)}
        sending = asyncio.ensure_future(ways.pop(how))
        for other in ways.values():
            other.close()
        publisher = node._engine.publisher
        while not publisher.blocked("steady"):
            await asyncio.sleep(0)
        log = publisher.logs["steady"]
        assert log.next_seq + len(log.staged) <= 6
        assert len([await sub.get(timeout=5) for _ in range(20)]) == 20
        await asyncio.wait_for(sending, 5)


async def test_a_body_larger_than_the_window_goes_alone() -> None:
    async with running() as node:
        out, sub = node.pub("steady", block=True, window_bytes=1000), node.sub("steady")
        await node.wait_for(sub="steady", timeout=5)
        sending = asyncio.ensure_future(_send(out, [bytes(5000)] * 5))
        assert len([await sub.get(timeout=5) for _ in range(5)]) == 5
        await asyncio.wait_for(sending, 5)


@pytest.mark.parametrize(
    ("window", "taken"), [({"window": 5}, 5), ({"window_bytes": 5}, 5), ({"window_bytes": 99}, 20)]
)
async def test_what_threads_put_down_is_passed_on_as_far_as_the_window_goes(window: dict[str, Any], taken: int) -> None:
    async with running() as node:
        out, _ = node.pub("steady", block=True, **window), node.sub("steady")
        await node.wait_for(sub="steady", timeout=5)
        assert out._pass_on("steady", [b"\x01"] * 20, None) == taken


async def _send_at_once(out: Any, bodies: Iterable[Any]) -> None:
    await asyncio.gather(*map(out.send, bodies))


async def test_who_sends_at_once_shares_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as node:
        out, publisher = node.pub("large"), node._engine.publisher
        collect, counts = publisher.collect, list[int]()

        def count(now: float) -> Any:
            counts.append(sum(len(log.staged) for log in publisher.staged))
            return collect(now)

        monkeypatch.setattr(publisher, "collect", count)
        await _send_at_once(out, [bytes(2**19)] * 20)
        assert sum(counts) >= 18 and max(counts) <= 3


async def _send(out: Any, bodies: Iterable[Any], **options: Any) -> None:
    for body in bodies:
        await out.send(body, **options)


async def test_threads_are_lent_only_what_they_take_soon() -> None:
    async with running() as node:
        out, sub = node.pub("numbers"), node.sub("numbers")
        await node.wait_for(sub="numbers", timeout=5)
        go_on, done = threading.Event(), asyncio.Event()
        loop, got = asyncio.get_running_loop(), list[int]()

        @sub
        def handle(message: Message) -> None:
            go_on.wait(10)
            got.append(message.body)
            if len(got) == 5000:
                loop.call_soon_threadsafe(done.set)

        await out.send_many(range(5000))
        while sub.unsettled < 5000 - handoff.AHEAD - 1:
            await asyncio.sleep(0)
        assert sub._handoff is not None and len(sub._handoff._lent) <= handoff.AHEAD
        go_on.set()
        await asyncio.wait_for(done.wait(), 10)
        assert got == list(range(5000))


@pytest.mark.guarantee("G6")
async def test_a_small_buffer_holds_a_publisher_to_the_pace_of_threads() -> None:
    async with running() as node:
        out, sub = node.pub("steady", block=True, window=2), node.sub("steady", buffer=1)
        await node.wait_for(sub="steady", timeout=5)
        started, go_on, got = asyncio.Event(), threading.Event(), list[int]()
        loop = asyncio.get_running_loop()

        @sub
        def handle(message: Message) -> None:
            loop.call_soon_threadsafe(started.set)
            go_on.wait(10)
            got.append(message.body)

        sending = asyncio.ensure_future(_send(out, range(8)))
        await asyncio.wait_for(started.wait(), 5)
        async with asyncio.timeout(5):
            while out.lag() != {"node": {"steady": 2}}:
                await asyncio.sleep(0)
        assert sub._handoff is not None and sub._handoff.waiting <= 1
        assert 1 <= sub.unsettled <= 2  # one in the buffer, and one on loan if the first was taken before it came
        assert not sending.done()
        go_on.set()
        async with asyncio.timeout(5):
            while len(got) < 8:
                await asyncio.sleep(0)
        assert got == list(range(8)) and not sub.unsettled
        await sending


@pytest.mark.guarantee("G6")
@pytest.mark.parametrize("closes_at_once", [False, True])
async def test_what_a_filling_batch_left_behind_is_discarded_and_not_delivered(closes_at_once: bool) -> None:
    async with running() as node:
        out, sub = node.pub("numbers"), node.sub("numbers")
        await node.wait_for(sub="numbers", timeout=5)
        got = list[int]()

        async def read() -> None:
            async for batch in sub.batches(max_wait=10.0):
                got.extend(batch.bodies)

        reading = asyncio.ensure_future(read())
        await out.send_many([1, 2, 3])
        while sub.unsettled < 3:
            await asyncio.sleep(0)
        if not closes_at_once:
            await asyncio.sleep(0)  # the batch begins to fill
        await sub.close()
        await asyncio.wait_for(reading, 5)
        assert (len(got), sub.discarded) in {(0, 3), (3, 0)}


async def test_a_thread_gets_the_newest_value_and_not_one_that_lay_there() -> None:
    async with running() as node:
        out, sub = node.pub("price"), node.sub("price", latest=True)
        await node.wait_for(sub="price", timeout=5)
        started, go_on, done = asyncio.Event(), threading.Event(), asyncio.Event()
        loop, got = asyncio.get_running_loop(), list[int]()

        @sub
        def handle(message: Message) -> None:
            got.append(message.body)
            loop.call_soon_threadsafe(started.set)
            go_on.wait(10)
            if message.body == 99:
                loop.call_soon_threadsafe(done.set)

        await out.send(0)
        await asyncio.wait_for(started.wait(), 5)
        for number in range(1, 100):
            await out.send(number)
            while out.lag():
                await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait_for(done.wait(), 5)
        assert got == [0, 99]
        assert sub.conflated == 98


async def test_an_on_gap_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as node:

        def on_gap(gap: Any) -> None:
            raise ValueError("a mistake")

        out, sub = node.pub("flood"), node.sub("flood", buffer=1, on_gap=on_gap)
        await node.wait_for(sub="flood", timeout=5)
        for _ in range(5):
            await out.send_many(range(1000))
        await out.send("end")
        while (await sub.get(timeout=5)).body != "end":
            pass
        assert sub.gaps > 0
    assert "on_gap of sub('flood') failed" in caplog.text


def test_a_last_will_travels_as_texts() -> None:
    encoded = make_packer()({"state": "gone", "why": "x" * 1000, "raw": b"\xff\x00"})
    details = wrap_will(encoded)
    assert all(len(text) <= 200 for text in details["body"])
    assert unwrap_will(details) == encoded


@pytest.mark.parametrize("details", [{}, {"body": "text"}, {"body": [1]}, {"body": ["=?"]}, {"body": ["AAAA"] * 5000}])
def test_a_last_will_that_is_none_is_refused(details: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        unwrap_will(details)


async def test_a_window_that_is_opened_later_counts_as_well() -> None:
    mesh = uuid.uuid4().hex
    async with (
        Node("publisher", mesh=mesh, mdns=False, drain=0) as publisher,
        Node("subscriber", mesh=mesh, mdns=False, drain=0, seeds=publisher.endpoints) as subscriber,
    ):
        publisher.pub("first")
        subscriber.sub("*")
        await publisher.wait_for(sub="first", timeout=5)
        (reception,) = subscriber._engine.subscriptions.receptions.values()
        assert (reception.report_every, reception.report_every_bytes) == (None, None)
        out = publisher.pub("second", block=True, window=400, window_bytes=8000)
        await out.send("and the offer has come before it")
        while (reception.report_every, reception.report_every_bytes) != (100, 2000):
            await asyncio.sleep(0)


@pytest.mark.guarantee("G6", "G10")
async def test_a_publisher_that_leaves_waits_until_its_subscribers_have_everything() -> None:
    mesh = uuid.uuid4().hex
    async with Node("publisher", mesh=mesh, mdns=False) as publisher:
        seeds = [publisher.endpoints[0]]
        async with Node("subscriber", mesh=mesh, mdns=False, seeds=seeds) as subscriber:
            out, sub = publisher.pub("numbers"), subscriber.sub("numbers")
            await publisher.wait_for(sub="numbers", timeout=10)
            await out.send_many(range(3000))
            await publisher.close(drain=10)
            assert sub.unsettled == 3000
            assert [(await sub.get(timeout=10)).body for _ in range(3000)] == list(range(3000))
            assert sub.gaps == 0


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError()])
async def test_an_on_gap_that_fails_costs_no_messages(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    def fail(gap: Gap) -> None:
        raise error

    async with running() as node:
        out, sub = node.pub("flood"), node.sub("flood", buffer=10, on_gap=fail)
        await node.wait_for(sub="flood", timeout=5)
        await out.send_many(range(5000))
        received = [(await sub.get(timeout=5)).body]
        while received[-1] != 4999:
            received.append((await sub.get(timeout=5)).body)
        assert len(received) + sub.gaps == 5000 and sub.gaps > 0
    assert "on_gap of sub('flood') failed" in caplog.text


async def test_a_coroutine_that_an_on_gap_returns_is_closed_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    begun: list[Any] = []
    returned: list[Coroutine[Any, Any, None]] = []

    async def tell(gap: Gap) -> None:
        begun.append(gap)

    def on_gap(gap: Gap) -> Coroutine[Any, Any, None]:
        returned.append(tell(gap))
        return returned[-1]

    async with running() as node:
        out, sub = node.pub("flood"), node.sub("flood", buffer=10, on_gap=on_gap)
        await node.wait_for(sub="flood", timeout=5)
        await out.send_many(range(5000))
        while (await sub.get(timeout=5)).body != 4999:
            pass
    assert returned and not begun
    assert all(inspect.getcoroutinestate(each) == inspect.CORO_CLOSED for each in returned)
    assert "on_gap of sub('flood') returned a coroutine, which is not awaited: asyncio.create_task" in caplog.text


async def test_a_message_has_its_sender_s_name_although_that_is_gone() -> None:
    mesh = f"names-{uuid.uuid4().hex[:12]}"
    async with meshmsg.Node("display", mesh=mesh, mdns=False, drain=0) as display:
        sub = display.sub("news")
        async with meshmsg.Node("camera", mesh=mesh, mdns=False, seeds=display.endpoints[:1], drain=0) as camera:
            news = camera.pub("news")
            await camera.wait_for(sub="news", timeout=10)
            await news.send("first")
            await camera.close(drain=5)
        await display._driver.until(lambda: not [each for each in display.peers() if each.name == "camera"], 10)
        assert (await sub.get(timeout=10)).sender == "camera"
