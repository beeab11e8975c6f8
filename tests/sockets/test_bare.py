"""`reliable=False`: bare ZeroMQ between nodes that find each other, and what garbage, closing and mixing cost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import zmq

from meshmsg import (
    ConfigurationError,
    EncodeError,
    Event,
    Message,
    NameClash,
    Node,
    NodeClosed,
    OutboxFull,
    WaitTimeout,
    WrongThread,
)
from meshmsg.sockets.bare import BarePull
from meshmsg.wire.codec import make_packer

PATIENCE_S = 10.0
LOOK_AGAIN_S = 0.001
GARBAGE = [b"\xc1", b"", b"\x01\x02", b"\x92\x01", b"\xa1\xff"]


def make(name: str = "node", shared: str = "", **options: Any) -> Node:
    return Node(name, mesh=shared or f"bare-{uuid.uuid4().hex[:12]}", mdns=False, drain=0, **options)


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Node, Node]]:
    """A consumer's node and a producer's, of which the producer's was told where the other one is."""
    shared = f"bare-{uuid.uuid4().hex[:12]}"
    async with make("consumer", shared) as consumer, make("producer", shared, seeds=consumer.endpoints) as producer:
        yield consumer, producer


async def until(condition: Callable[[], bool]) -> None:
    """Looks again and again; the test's own deadline ends it."""
    while not condition():
        await asyncio.sleep(LOOK_AGAIN_S)


async def send_raw(socket: Any, *messages: bytes | list[bytes]) -> None:
    await until(lambda: bool(socket.poll(0, zmq.POLLOUT)))
    for message in messages:
        socket.send_multipart(message if isinstance(message, list) else [message])


async def next_refusal(events: Any) -> Event:
    while True:
        event: Event = await events.get(PATIENCE_S)
        if event.kind == "frame.refused":
            return event


async def test_a_handler_gets_every_body_in_order() -> None:
    async with pair() as (consumer, producer):
        bodies: list[Any] = []

        @consumer.pull("work", reliable=False)
        async def handle(message: Message) -> None:
            assert (message.queue, message.attempt) == ("work", 1)
            bodies.append(message.body)

        push = producer.push("work", reliable=False)
        assert await push.send_many(range(1000)) == 1000
        await push.send({"path": "a.jpg"})
        await until(lambda: len(bodies) == 1001)
        assert bodies == [*range(1000), {"path": "a.jpg"}]


async def test_a_plain_function_and_a_handler_that_fails() -> None:
    async with pair() as (consumer, producer):
        bodies: list[Any] = []

        @consumer.pull("work", reliable=False)
        def handle(message: Message) -> None:
            bodies.append(message.body)
            raise ValueError("nobody hears of this one")

        await producer.push("work", reliable=False).send_many(range(10))
        await until(lambda: len(bodies) == 10)
        assert bodies == list(range(10))


async def test_sockets_that_were_opened_before_the_start() -> None:
    node = make()
    pull = node.pull("work", reliable=False)
    push = node.push("work", reliable=False)
    with pytest.raises(NodeClosed, match="is not started"):
        await push.send(1)
    async with node:
        await push.send(1)
        assert (await pull.get(PATIENCE_S)).body == 1


async def test_iteration_and_batches() -> None:
    async with pair() as (consumer, producer):
        push = producer.push("work", reliable=False)
        pull = consumer.pull("work", reliable=False)
        await push.send_many(range(20))
        bodies = []
        async for message in pull:
            with message:
                bodies.append(message.body)
            if len(bodies) == 10:
                break
        async for batch in pull.batches(max_size=4, max_wait=0):
            assert len(batch) <= 4
            bodies += [message.body for message in batch]
            batch.ack()
            if len(bodies) == 20:
                break
        assert bodies == list(range(20))
        await until(lambda: not pull.unsettled)


async def test_no_more_than_the_prefetch_is_held() -> None:
    async with pair() as (consumer, producer):
        pull = consumer.pull("work", reliable=False, prefetch=4)
        await producer.push("work", reliable=False).send_many(range(20))
        bodies = []
        for _ in range(20):
            message = await pull.get(PATIENCE_S)
            assert pull.unsettled <= 4
            bodies.append(message.body)
            message.ack()
        assert bodies == list(range(20))


async def test_a_full_prefetch_keeps_the_rest_in_zeromq() -> None:
    async with pair() as (consumer, producer):
        pull = consumer.pull("work", reliable=False, prefetch=4)
        await producer.push("work", reliable=False).send_many(range(20))
        held = [await pull.get(PATIENCE_S) for _ in range(4)]
        with pytest.raises(WaitTimeout):
            await pull.get(0.05)
        held[0].ack()
        assert (await pull.get(PATIENCE_S)).body == 4


async def test_a_consumer_that_goes_takes_only_what_it_held() -> None:
    shared = f"bare-{uuid.uuid4().hex[:12]}"
    async with make("stays", shared) as stays, make("goes", shared) as goes:
        seeds = (*stays.endpoints, *goes.endpoints)
        async with make("producer", shared, seeds=seeds) as producer:
            pulls = [node.pull("work", reliable=False) for node in (stays, goes)]
            push = producer.push("work", reliable=False)
            await until(lambda: push._raw is not None and len(push._raw.connected) == 2)
            await push.send_many(range(10))
            await until(lambda: all(pull.unsettled == 5 for pull in pulls))  # PUSH deals in turn
            await goes.close()
            await until(lambda: push._raw is not None and len(push._raw.connected) == 1)
            await push.send_many(range(10, 20))
            bodies = [(await pulls[0].get(PATIENCE_S)).body for _ in range(15)]
            assert bodies[5:] == list(range(10, 20))
            assert set(bodies[:5]) < set(range(10))


@pytest.mark.guarantee("G11")
@pytest.mark.parametrize("garbage", [*GARBAGE, [b"\x01", b"\x02"], [b"\x01", b""]], ids=repr)
async def test_garbage_costs_only_itself(garbage: bytes | list[bytes]) -> None:
    async with pair() as (consumer, producer):
        events = consumer.events()
        pull: Any = consumer.pull("work", reliable=False)
        socket = producer.raw(zmq.PUSH, "work")
        await send_raw(socket, make_packer()("before"), garbage, make_packer()("after"))
        assert [(await pull.get(PATIENCE_S)).body for _ in range(2)] == ["before", "after"]
        refusal = await next_refusal(events)
        assert refusal.queue == "work" and "1 message" in refusal.text
        assert pull.refused == 1


@pytest.mark.guarantee("G11")
async def test_broken_bodies_that_would_make_a_whole_batch_take_no_neighbour_along() -> None:
    """Joined, these are three values, too: [1, 5], 6 and 7."""
    async with pair() as (consumer, producer):
        pull: Any = consumer.pull("work", reliable=False)
        await send_raw(producer.raw(zmq.PUSH, "work"), b"\x92\x01", make_packer()(5), b"\x06\x07")
        assert (await pull.get(PATIENCE_S)).body == 5
        await until(lambda: pull.refused == 2)


@pytest.mark.guarantee("G11")
async def test_a_flood_of_garbage_is_told_once_and_leaves_the_loop_alone() -> None:
    async with pair() as (consumer, producer):
        events = consumer.events()
        pull: Any = consumer.pull("work", reliable=False, prefetch=2)
        await send_raw(producer.raw(zmq.PUSH, "work"), *[b"\xc1"] * 500, make_packer()("after"))
        assert (await pull.get(PATIENCE_S)).body == "after"
        assert pull.refused == 500
        await pull.close()
        await consumer.close()
        told = [event.text async for event in events if event.kind == "frame.refused"]
        assert len(told) == 2  # the first, and at the end how many more there were
        assert sum(int(text.split()[0]) for text in told) == 500


async def test_a_body_of_another_type_is_refused() -> None:
    async with pair() as (consumer, producer):
        events = consumer.events()
        pull = consumer.pull("work", reliable=False, type=dict[str, int])
        await producer.push("work", reliable=False).send_many([{"a": "text"}, {"a": 1}])
        assert (await pull.get(PATIENCE_S)).body == {"a": 1}
        assert "does not fit the type of 'work'" in (await next_refusal(events)).text
        assert pull.unsettled == 1


async def test_a_reader_that_fails_says_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    async with make() as node:
        pull = node.pull("work", reliable=False)
        assert isinstance(pull, BarePull) and pull._pump is not None and pull._reader is not None

        def fail(limit: int) -> list[list[bytes]]:
            raise RuntimeError("out of luck")

        monkeypatch.setattr(pull._pump, "receive", fail)
        with caplog.at_level(logging.ERROR):
            await asyncio.wait({pull._reader})
            await asyncio.sleep(0)  # its callback
        assert "'work'" in caplog.text and "out of luck" in caplog.text


async def test_a_queue_is_reliable_or_not_within_a_node() -> None:
    async with make() as node:
        node.push("a")
        with pytest.raises(NameClash, match="already pushes to 'a' reliably"):
            node.push("a", reliable=False)
        bare = node.push("b", reliable=False)
        with pytest.raises(NameClash, match="already pushes to 'b' with reliable=False"):
            node.push("b")
        assert node.push("b", reliable=False) is bare
        for first, second in ((True, False), (False, True), (False, False)):
            queue = f"pull-{first}-{second}"
            node.pull(queue, reliable=first)
            with pytest.raises(NameClash, match=f"already pulls '{queue}'"):
                node.pull(queue, reliable=second)


@pytest.mark.parametrize("reliable", [False, True])
async def test_what_was_closed_may_be_opened_again(reliable: bool) -> None:
    async with pair() as (consumer, producer):
        pull, push = consumer.pull("work", reliable=False), producer.push("work", reliable=False)
        await push.send(1)
        assert (await pull.get(PATIENCE_S)).body == 1
        closed = producer._engine.offered("raw", "PULL work")
        await pull.close()
        await push.close()
        with pytest.raises(NodeClosed, match="this push of 'work' was closed"):
            await push.send(2)
        with pytest.raises(NodeClosed, match="this push of 'work' was closed"):
            push.send_nowait(2)
        with pytest.raises(NodeClosed, match=r"pull\('work'\) was closed"):
            await pull.get(PATIENCE_S)
        options: Any = {"reliable": reliable}
        again, sender = consumer.pull("work", **options), producer.push("work", **options)
        await pull.close()  # once more: it must not close the new ones
        await push.close()
        # What a bare push hands to a socket that closes meanwhile is lost, as it says.
        await until(lambda: producer._engine.offered("raw", "PULL work") != closed)
        await sender.send(3)
        assert (await again.get(PATIENCE_S)).body == 3


async def test_a_pull_that_was_closed_before_the_start_stays_closed() -> None:
    node = make()
    await node.pull("work", reliable=False).close()
    async with node:
        assert not node._engine.offered("pull", "work")


async def test_a_send_that_waits_ends_with_its_push_or_node() -> None:
    async with make() as node:
        first, second = node.push("a", reliable=False), node.push("b", reliable=False)
        sends = [asyncio.ensure_future(push.send(1)) for push in (first, second)]
        await asyncio.sleep(0)
        await first.close()
        with pytest.raises(NodeClosed, match="this push of 'a' was closed"):
            await sends[0]
    with pytest.raises(NodeClosed):
        await sends[1]


async def test_what_a_bare_push_does_not_take() -> None:
    async with make() as node:
        options: Any = {"reliable": False, "max_pending": 7}
        with pytest.raises(ConfigurationError, match="is bare ZeroMQ and has no max_pending"):
            node.push("work", **options)
        push = node.push("work", reliable=False)
        with pytest.raises(EncodeError, match=r"body\['a'\] cannot be sent"):
            await push.send({"a": {1}})
        with pytest.raises(OutboxFull, match="no node pulls 'work'"):
            push.send_nowait(1)


async def test_errors_name_the_end_that_is_of_the_other_kind() -> None:
    async with make("n") as node:
        node.pull("a", reliable=False)
        push = node.push("a")
        await push.send(1)
        with pytest.raises(WaitTimeout, match="'n' pulls it with reliable=False, this push is reliable"):
            await push.flush(0.05)
        node.pull("b")
        await node.wait_for(pull="b", timeout=PATIENCE_S)
        with pytest.raises(OutboxFull, match="'n' pulls it reliably, this push has reliable=False"):
            node.push("b", reliable=False).send_nowait(1)


async def test_bare_ends_refuse_a_text_for_many_and_a_foreign_thread() -> None:
    async with Node("node", mdns=False) as node:
        push, pull = node.push("work", reliable=False), node.pull("work", reliable=False)
        with pytest.raises(ConfigurationError, match="takes a list, not str 'abc'"):
            await push.send_many("abc")
        for end in (push, pull):
            with pytest.raises(WrongThread):
                await asyncio.to_thread(asyncio.run, end.close())
        await push.send("still open")
        message = await pull.get(timeout=10)
        assert message.body == "still open"
