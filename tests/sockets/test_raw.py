"""`node.raw`: plain ZeroMQ sockets, and discovery that connects and disconnects them."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import zmq

from meshmsg import AddressUnavailable, ConfigurationError, NameClash, Node, NodeClosed

PATIENCE_S = 10.0
LOOK_AGAIN_S = 0.001


def make(name: str, shared: str, **options: Any) -> Node:
    return Node(name, mesh=shared, mdns=False, drain=0, **options)


def mesh() -> str:
    return f"raw-{uuid.uuid4().hex[:12]}"


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes, of which the second was told where the first one is."""
    shared = mesh()
    async with make("one", shared) as one, make("two", shared, seeds=one.endpoints) as two:
        yield one, two


async def until(condition: Callable[[], bool]) -> None:
    """Looks again and again; the test's own deadline ends it."""
    while not condition():
        await asyncio.sleep(LOOK_AGAIN_S)


async def send(socket: Any, *parts: bytes) -> None:
    await until(lambda: bool(socket.poll(0, zmq.POLLOUT)))
    socket.send_multipart(parts)


async def receive(socket: Any) -> list[bytes]:
    await until(lambda: bool(socket.poll(0, zmq.POLLIN)))
    parts: list[bytes] = socket.recv_multipart()
    return parts


def connections(node: Node, key: str) -> set[str]:
    """Where a raw socket of a node is connected to."""
    assert node._raws is not None
    return node._raws._open[key].connected


async def test_push_and_pull() -> None:
    async with pair() as (one, two):
        pull, push = one.raw(zmq.PULL, "frames"), two.raw(zmq.PUSH, "frames")
        await send(push, b"a", b"b")
        assert await receive(pull) == [b"a", b"b"]


async def test_publish_and_subscribe_whoever_is_first() -> None:
    async with pair() as (one, two):
        for name in ("subscriber-first", "publisher-first"):
            kinds = (zmq.SUB, zmq.XPUB) if name.startswith("sub") else (zmq.XPUB, zmq.SUB)
            sockets = {kind: (one if kind == zmq.SUB else two).raw(kind, name) for kind in kinds}
            sockets[zmq.SUB].subscribe(b"topic")
            assert await receive(sockets[zmq.XPUB]) == [b"\x01topic"]
            sockets[zmq.XPUB].send(b"other")
            sockets[zmq.XPUB].send(b"topic 1")
            assert await receive(sockets[zmq.SUB]) == [b"topic 1"]


async def test_a_plain_pub_reaches_its_sub() -> None:
    async with pair() as (one, two):
        publisher, subscriber = one.raw(zmq.PUB, "news"), two.raw(zmq.SUB, "news")
        subscriber.subscribe(b"")
        while not subscriber.poll(0):  # a PUB drops what comes before the subscription
            publisher.send(b"news")
            await asyncio.sleep(LOOK_AGAIN_S)
        assert subscriber.recv() == b"news"


async def test_dealer_and_router() -> None:
    async with pair() as (one, two):
        router, dealer = one.raw(zmq.ROUTER, "service"), two.raw(zmq.DEALER, "service")
        await send(dealer, b"question")
        route, question = await receive(router)
        assert question == b"question"
        router.send_multipart([route, b"answer"])
        assert await receive(dealer) == [b"answer"]


async def test_both_ends_in_one_node() -> None:
    async with make("node", mesh()) as node:
        pull, push = node.raw(zmq.PULL, "frames"), node.raw(zmq.PUSH, "frames")
        await send(push, b"a")
        assert await receive(pull) == [b"a"]


async def test_names_and_kinds_do_not_mix() -> None:
    async with pair() as (one, two):
        one.raw(zmq.PULL, "other")
        one.raw(zmq.ROUTER, "frames")
        one.raw(zmq.PULL, "frames")
        two.raw(zmq.PUSH, "frames")
        await until(lambda: bool(connections(two, "PUSH frames")))
        offered = two._engine.offered("raw", "PULL frames")
        assert connections(two, "PUSH frames") == {offered[0]["endpoints"][0]}


async def test_a_peer_that_leaves_is_disconnected_and_one_that_returns_is_connected() -> None:
    shared = mesh()
    first = await make("one", shared).start()
    port = int(first.endpoints[0].rpartition(":")[2])
    async with make("two", shared, seeds=first.endpoints) as two:
        push = two.raw(zmq.PUSH, "frames")
        first.raw(zmq.PULL, "frames")
        await until(lambda: len(connections(two, "PUSH frames")) == 1)
        left = set(connections(two, "PUSH frames"))
        await first.close()
        await until(lambda: not connections(two, "PUSH frames"))
        async with make("one", shared, port=port) as second:
            pull = second.raw(zmq.PULL, "frames")
            await until(lambda: bool(connections(two, "PUSH frames")))
            assert len(connections(two, "PUSH frames") - left) <= 1
            await send(push, b"again")
            assert await receive(pull) == [b"again"]


async def test_a_socket_that_its_user_closed() -> None:
    async with pair() as (one, two):
        pull, push = one.raw(zmq.PULL, "frames"), two.raw(zmq.PUSH, "frames")
        await until(lambda: bool(connections(two, "PUSH frames")))
        pull.close()  # nothing else happens: the node looks at its sockets whenever it turns
        await until(lambda: not two._engine.offered("raw", "PULL frames"))
        await until(lambda: not connections(two, "PUSH frames"))
        push.close()
        again = one.raw(zmq.PULL, "frames"), two.raw(zmq.PUSH, "frames")
        await until(lambda: bool(connections(two, "PUSH frames")))
        await send(again[1], b"a")
        assert await receive(again[0]) == [b"a"]


async def test_what_was_closed_is_fed_no_more() -> None:
    shared = mesh()
    async with make("a", shared) as a, make("b", shared) as b, make("p", shared, seeds=a.endpoints + b.endpoints) as p:
        closed, kept, push = a.raw(zmq.PULL, "frames"), b.raw(zmq.PULL, "frames"), p.raw(zmq.PUSH, "frames")
        await until(lambda: len(connections(p, "PUSH frames")) == 2)
        closed.close()
        await until(lambda: len(connections(p, "PUSH frames")) == 1)
        for number in range(20):
            await send(push, b"%d" % number)
        assert [await receive(kept) for _ in range(20)] == [[b"%d" % number] for number in range(20)]


async def test_a_node_looks_at_raw_sockets_only_while_it_has_some() -> None:
    async with make("node", mesh()) as node:
        looks = node._driver.after_turn
        assert not looks
        sockets = [node.raw(zmq.PULL, "frames"), node.raw(zmq.PUSH, "frames")]
        assert looks
        for socket in sockets:
            socket.close()
        await until(lambda: not looks)
        assert not node._engine.identity.offers["raw"]


async def test_what_cannot_be_bound_leaves_its_name_free(monkeypatch: pytest.MonkeyPatch) -> None:
    async with make("node", mesh()) as node:
        with monkeypatch.context() as patch:
            patch.setattr(node._raws, "_addresses", ("192.0.2.1",))
            with pytest.raises(AddressUnavailable):
                node.raw(zmq.PULL, "frames")
        assert not node.raw(zmq.PULL, "frames").closed


async def test_a_name_is_taken_once_a_kind() -> None:
    async with make("node", mesh()) as node:
        node.raw(zmq.PULL, "frames")
        node.raw(zmq.PUSH, "frames")
        with pytest.raises(NameClash, match="already has a raw 'PULL frames'"):
            node.raw(zmq.PULL, "frames")


@pytest.mark.parametrize("kind", [zmq.STREAM, 99, -1, "PUB", None, 1.0])
async def test_a_kind_that_cannot_be_raw(kind: Any) -> None:
    async with make("node", mesh()) as node:
        with pytest.raises(ConfigurationError, match=r"raw\(kind\) takes one of zmq\.PUSH"):
            node.raw(kind, "frames")


async def test_a_pair_would_meet_nobody() -> None:
    async with make("node", mesh()) as node:
        with pytest.raises(ConfigurationError, match=r"zmq\.DEALER, .*, not .*; of two PAIRs none is offered") as told:
            node.raw(zmq.PAIR, "frames")
        assert "zmq.PAIR" not in str(told.value).partition(", not ")[0]


async def test_a_name_that_is_none() -> None:
    async with make("node", mesh()) as node:
        with pytest.raises(ConfigurationError, match=r"raw\(name\)"):
            node.raw(zmq.PULL, "")


async def test_only_a_running_node_has_raw_sockets() -> None:
    node = make("node", mesh())
    with pytest.raises(NodeClosed, match="is not started"):
        node.raw(zmq.PULL, "frames")
    async with node:
        socket = node.raw(zmq.PULL, "frames")
    assert socket.closed
    with pytest.raises(NodeClosed, match="is closed"):
        node.raw(zmq.PULL, "frames")
