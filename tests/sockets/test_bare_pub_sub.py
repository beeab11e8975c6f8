"""`reliable=False` for topics: what strangers may ask of a publisher, and how many subscriptions a node may have."""

from __future__ import annotations

import asyncio
import sys
import uuid
from typing import Any

import pytest
import zmq

from meshmsg import ConfigurationError, Event, Node
from meshmsg.engine.publisher import MARKER
from meshmsg.sockets import bare_pub_sub
from meshmsg.sockets.bare_pub_sub import NAME
from meshmsg.sockets.pub_sub import Sub
from meshmsg.transport import filters as filters_module
from meshmsg.transport.filters import MAX_FILTER_BYTES
from tests.sockets.test_bare import PATIENCE_S, make, next_refusal, pair, until
from tests.transport.test_broadcast import plain_socket
from tests.transport.test_filter_rules import MIB, many
from tests.transport.test_filters import ask, blast, resident_bytes


def endpoint_of(node: Node) -> str:
    """Where whoever knows no meshmsg subscribes to a node's bare topics."""
    assert node._raws is not None
    endpoint: str = node._raws._open[f"XPUB {NAME}"].socket.getsockopt_string(zmq.LAST_ENDPOINT)
    return endpoint.rstrip("\0")


def port_of(node: Node) -> int:
    return int(endpoint_of(node).rpartition(":")[2])


def refused(node: Node) -> int:
    count = node.counters()["refused_frames"]
    assert isinstance(count, int)
    return count


def markers(count: int) -> list[bytes]:
    """As many filters as nodes set that subscribe to something."""
    return [b"\xff%032d sensors.hall.%05d" % (number, number) for number in range(count)]


@pytest.mark.guarantee("G11")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["filters", "markers"])
async def test_an_abuser_costs_less_than_50_mb_and_nobody_else_a_message(kind: str) -> None:
    data = ask(many(100_000, 180) if kind == "filters" else markers(100_000))
    async with pair() as (subscriber, publisher):
        events = publisher.events()
        out, sub = publisher.pub("a.*", reliable=False), subscriber.sub("a.*", reliable=False)
        await publisher.wait_for(sub="a.x", timeout=PATIENCE_S)
        before = resident_bytes()
        for attempt in range(1, 3):
            sent, total = 0, sub._subscription.received
            async with blast(port_of(publisher), data):
                while refused(publisher) < attempt:
                    await out.send(sent, topic="a.x")
                    sent += 1
                    # No more than ZeroMQ has room for, should its thread have no turn on a busy machine.
                    await asyncio.sleep(0)
                    while sub._subscription.received < total + sent - 500:
                        await asyncio.sleep(0)
            assert resident_bytes() - before < 50_000_000
            assert [(await sub.get(PATIENCE_S)).body for _ in range(sent)] == list(range(sent))
        refusal = await next_refusal(events)
        assert refusal.text.startswith("a subscriber at 127.0.0.1 asked for too much and lost the connection: ")
        await until(lambda: len(publisher._topics._bare._markers) == 1)  # those of the abuser went with it
        subscriber.sub("a.new", reliable=False)
        await until(lambda: len(publisher._topics._bare._markers) == 2)


@pytest.mark.guarantee("G11")
async def test_a_filter_that_is_too_long_is_told_and_costs_its_connection() -> None:
    async with make() as publisher:
        events = publisher.events()
        out, sub = publisher.pub("a", reliable=False), publisher.sub("a", reliable=False)
        await publisher.wait_for(sub="a", timeout=PATIENCE_S)
        with plain_socket(zmq.SUB) as stranger:
            stranger.setsockopt(zmq.RECONNECT_IVL, -1)
            stranger.connect(endpoint_of(publisher))
            for text in (b"a", MARKER + bytes(MAX_FILTER_BYTES)):
                stranger.subscribe(text)
            refusal = await next_refusal(events)
        assert f"a filter of {MAX_FILTER_BYTES + 1} bytes (at most {MAX_FILTER_BYTES})" in refusal.text
        assert refused(publisher) == 1 and publisher._topics.count_subscribers("a") == 1
        await out.send("still here")
        assert (await sub.get(PATIENCE_S)).body == "still here"


async def test_what_is_no_subscription_is_dropped() -> None:
    async with make() as publisher:
        out = publisher.pub("a", reliable=False)
        with plain_socket(zmq.XSUB, endpoint_of(publisher)) as stranger:
            for parts in ([b"x\xffid a"], [b""], [b"x", b"\2\xffid a"], [b"\1a"], [b"\1\xffid a"]):
                stranger.send_multipart(parts)
            await until(lambda: bool(publisher._topics._bare._markers))
            assert publisher._topics._bare._markers == {("id", "a")}
            await out.send(1)
            await until(lambda: bool(stranger.poll(0)))
            assert stranger.recv_multipart()[0] == b"a"


async def test_a_marker_comes_behind_the_filter_that_it_stands_for() -> None:
    """Else `wait_for(sub=)` ends too early, and what is published then is lost."""
    async with pair() as (subscriber, publisher):
        for pattern in ("a.*", "**", "ü"):
            subscriber.sub(pattern, reliable=False)  # before there is anybody to connect to
        socket = publisher.raw(zmq.XPUB, NAME)
        await until(lambda: bool(socket.poll(0)))
        told: list[bytes] = []
        while len(told) < 6:
            await until(lambda: bool(socket.poll(0)))
            told.append(socket.recv()[1:])
        assert told[:3] == sorted([b"a.", b"", "ü".encode()])
        assert all(text.startswith(MARKER + subscriber.id.encode() + b" ") for text in told[3:])


async def test_a_node_may_have_thousands_of_subscriptions() -> None:
    """ZeroMQ drops filters beyond the sender's high-water mark (1,000 by default) without a word (libzmq#2258)."""
    count = 2000
    async with pair() as (subscriber, publisher):
        publisher.pub("sensors.**", reliable=False)
        subs = [subscriber.sub(f"sensors.hall.{number:05d}", reliable=False) for number in range(count)]
        await until(lambda: len(publisher._topics._bare._markers) == count)
        assert not refused(publisher)
        for sub in subs[1:]:
            await sub.close()
        await until(lambda: len(publisher._topics._bare._markers) == 1)


async def test_a_node_opens_as_many_as_publishers_take_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (filters_module, bare_pub_sub):
        monkeypatch.setattr(module, "MAX_COST_EACH", MIB)
    async with pair() as (subscriber, publisher):
        publisher.pub("sensors.**", reliable=False)
        subs: list[Sub] = []
        with pytest.raises(ConfigurationError, match=r"sub\('sensors.hall.00\d+', reliable=False\) is one too many"):
            while len(subs) < 1000:
                subs.append(subscriber.sub(f"sensors.hall.{len(subs):05d}", reliable=False))
        count = len(subs)
        markers = publisher._topics._bare._markers
        await until(lambda: len(markers) == count)
        assert not refused(publisher) and 100 < count < 400
        subs.append(subscriber.sub("sensors.hall.00000", reliable=False))  # it sets no filter
        await subs[1].close()
        subs.append(subscriber.sub("sensors.hall.again", reliable=False))  # in place of one that is gone
        await until(lambda: (subscriber.id, "sensors.hall.again") in markers)
        for sub in subs:
            await sub.close()
        await until(lambda: not markers)
        topics = subscriber._topics._bare
        assert not refused(publisher) and not topics._filters and not topics._cost


async def test_before_the_start_there_is_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bare_pub_sub, "MAX_COST_EACH", 5000)
    node = make()
    sub = node.sub("a", reliable=False)
    with pytest.raises(ConfigurationError, match="after 1: each sets filters at the publishers"):
        node.sub("b" * 60, reliable=False)
    await sub.close()
    node.sub("b" * 20, reliable=False)


async def test_beyond_its_bound_a_node_loses_its_connection_and_the_publisher_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filters_module, "MAX_COST_EACH", MIB)
    shared = f"bare-{uuid.uuid4().hex[:12]}"
    async with make("publisher", shared) as publisher, make("other", shared, seeds=publisher.endpoints) as other:
        events: Any = publisher.events()
        publisher.pub("sensors.**", reliable=False)
        subs = [other.sub(f"sensors.hall.{number:05d}", reliable=False) for number in range(500)]
        refusal: Event = await next_refusal(events)
        assert "filters, about 1 MiB" in refusal.text
        for sub in subs[1:]:
            await sub.close()
        await publisher.wait_for(sub="sensors.hall.00000", timeout=PATIENCE_S)  # it comes again, with less
