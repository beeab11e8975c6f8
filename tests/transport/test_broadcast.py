"""Publishing and following between real sockets, and with plain ZeroMQ ones on either end."""

from __future__ import annotations

import asyncio
import os
import selectors
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq

from meshmsg.errors import ConfigurationError, ForkedProcess, NodeClosed
from meshmsg.transport import broadcast as broadcast_module
from meshmsg.transport import publishing as publishing_module
from meshmsg.transport.broadcast import RECEIVE_BYTES, SHARE_BYTES, SUBSCRIPTIONS_LIMIT
from meshmsg.transport.descriptors import count_open
from meshmsg.transport.interface import Broadcast
from meshmsg.transport.tuning import NO_COPY_BYTES
from meshmsg.transport.zmq import ZmqTransport
from tests.transport.side import DOWN, FAILED, UP
from tests.transport.station import Station


def satisfies_the_interface(transport: ZmqTransport) -> Broadcast:
    return transport.broadcast  # checked by the type checker


@contextmanager
def plain_socket(kind: int, endpoint: str = "", **options: int) -> Iterator[zmq.Socket[bytes]]:
    """A socket of another program: with an endpoint it connects, otherwise it binds."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    plain = context.socket(kind)
    for name, value in options.items():
        plain.setsockopt(getattr(zmq, name), value)
    if endpoint:
        plain.connect(endpoint)
    else:
        plain.bind("tcp://127.0.0.1:*")
    try:
        yield plain
    finally:
        context.destroy(linger=0)


def endpoint_of(plain: zmq.Socket[bytes]) -> str:
    endpoint = plain.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


async def read_plain(plain: zmq.Socket[bytes], count: int) -> list[bytes]:
    """So many frames, one after the other."""
    frames: list[bytes] = []
    while len(frames) < count:
        try:
            frames.append(plain.recv(zmq.DONTWAIT))
        except zmq.Again:
            await asyncio.sleep(0)
    return frames


# --- the stream ---------------------------------------------------------------------------------------------


async def test_a_plain_sub_reads_topic_header_and_bodies() -> None:
    with Station() as camera:
        (endpoint,) = camera.broadcast.open_broadcast()
        assert camera.broadcast.open_broadcast() == (endpoint,)
        with plain_socket(zmq.SUB, endpoint) as plain:
            plain.setsockopt(zmq.SUBSCRIBE, b"sensors.")
            await camera.until_asked(b"sensors.")
            assert camera.publish(b"elsewhere", b"not this")
            assert camera.publish(b"sensors.kitchen", b"21.5")
            assert await read_plain(plain, 1) == [b"sensors.kitchen"]
            assert plain.getsockopt(zmq.RCVMORE)
            assert await read_plain(plain, 1) == [b"header"]
            assert plain.getsockopt(zmq.RCVMORE)
            assert await read_plain(plain, 1) == [b"21.5"]
            assert not plain.getsockopt(zmq.RCVMORE)
        await camera.until_asked(b"sensors.", added=False)


async def test_a_follower_receives_what_it_asked_for() -> None:
    with Station() as camera, Station() as screen:
        await screen.follow(7, camera, [b"a.", b"b"])
        for topic in (b"a.x", b"a", b"b.y", b"c", b"b"):
            assert camera.publish(topic, b"of " + topic)
        await screen.until_published(3)
        assert screen.published == [
            (7, (b"a.x", b"header", b"of a.x")),
            (7, (b"b.y", b"header", b"of b.y")),
            (7, (b"b", b"header", b"of b")),
        ]
        screen.broadcast.unfollow(7)
        screen.broadcast.unfollow(7)
        await camera.until_asked(b"\0m", added=False)


async def test_publishing_to_nobody_is_fine() -> None:
    with Station() as camera:
        camera.broadcast.open_broadcast()
        assert all(camera.publish(b"topic", bytes(1000)) for _ in range(2000))
        assert camera.broadcast.crowded == 0


async def test_every_address_is_bound_to_one_port() -> None:
    with Station(ZmqTransport(addresses=["127.0.0.1", "::1"])) as camera, Station() as screen:
        endpoints = camera.broadcast.open_broadcast()
        assert len({endpoint.rpartition(":")[2] for endpoint in endpoints}) == 1
        for number, endpoint in enumerate(endpoints):
            screen.broadcast.follow(number, endpoint, [b""], b"\0%d" % number)
            await camera.until_asked(b"\0%d" % number)
        camera.publish(b"topic")
        await screen.until(lambda: sorted(number for number, _ in screen.published) == [0, 1])


# --- markers ------------------------------------------------------------------------------------------------


async def test_the_marker_comes_after_all_filters() -> None:
    filters = [b"topic.%d" % index for index in range(3000)]
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera, filters, b"\0first")
        assert sorted(camera.changes[:-1]) == sorted((each, True) for each in filters)
        assert camera.changes[-1] == (b"\0first", True)
        camera.changes.clear()
        screen.broadcast.refilter(1, [*filters[1:], b"a", b"z"], b"\0second")
        await camera.until_asked(b"\0first", added=False)
        assert camera.changes == [
            (b"a", True),
            (b"z", True),
            (b"\0second", True),
            (b"topic.0", False),
            (b"\0first", False),
        ]
        with pytest.raises(ValueError, match="takes a new one"):
            screen.broadcast.refilter(1, [], b"\0second")
        screen.broadcast.refilter(2, [], b"\0third")  # nobody follows 2


async def test_what_is_published_once_the_marker_was_seen_arrives() -> None:
    """200 times: nothing waits, and nothing is sent twice."""
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera, [], b"\0start")
        for round_number in range(200):
            marker = b"\0%d" % round_number
            if round_number % 10:
                screen.broadcast.refilter(
                    1, [b"%d." % index for index in range(round_number, round_number + 20)], marker
                )
            else:
                screen.broadcast.unfollow(1)
                screen.broadcast.follow(1, camera.broadcast.open_broadcast()[0], [b"%d." % (round_number + 19)], marker)
            await camera.until_asked(marker)
            camera.publish(b"%d.x" % (round_number + 19), marker)
            await screen.until_published(round_number + 1)
            assert screen.bodies()[-1] == marker


async def test_what_stays_followed_has_no_gap_while_filters_change() -> None:
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera, [b"kept"], b"\0start")
        for number in range(3000):
            assert camera.publish(b"kept", b"%d" % number)
            if number % 10 == 0:
                screen.broadcast.refilter(1, [b"kept", b"%d" % number], b"\0%d" % number)
                await asyncio.sleep(0)
                camera.turn()
                screen.turn()
        await screen.until_published(3000)
        assert screen.bodies() == [b"%d" % number for number in range(3000)]


async def test_more_subscriptions_than_one_read_takes() -> None:
    filters = [b"%d" % index for index in range(3 * SUBSCRIPTIONS_LIMIT)]
    with Station() as camera, Station() as screen:
        screen.broadcast.follow(1, camera.broadcast.open_broadcast()[0], filters, b"\0m")
        reads: list[int] = []
        while (b"\0m", True) not in camera.changes:
            changes = camera.broadcast.subscriptions()
            reads.append(len(changes))
            camera.changes += changes
            await asyncio.sleep(0)
        assert max(reads) <= SUBSCRIPTIONS_LIMIT
        assert len(camera.changes) == len(filters) + 1


async def test_publishing_does_not_swallow_the_news_of_subscriptions() -> None:
    """A send takes in the news of a subscription, and then the descriptor stays silent about it (pyzmq#1203)."""
    with Station() as camera, Station() as screen:
        publishing = await camera.open_quietly()
        screen.broadcast.follow(1, publishing.endpoints[0], [b""], b"\0m")
        with selectors.DefaultSelector() as selector:
            selector.register(publishing.descriptor, selectors.EVENT_READ)
            # Nothing here gives way to the loop, until the subscriptions have come and the sends have swallowed that.
            assert selector.select(20)
            deadline = time.monotonic() + 0.05
            while selector.select(0) or time.monotonic() < deadline:
                camera.publish(b"topic")
        await camera.until_asked(b"\0m")


# --- many ---------------------------------------------------------------------------------------------------


async def test_one_publisher_and_fifty_subscribers() -> None:
    with Station() as camera, Station() as screen, Station() as other:
        for number in range(50):
            await (screen if number % 2 else other).follow(number, camera, [b"topic"], b"\0%d" % number)
        for index in range(100):
            assert camera.publish(b"topic", b"%d" % index)
        for station in (screen, other):
            await station.until_published(25 * 100)
        for number in range(50):
            station = screen if number % 2 else other
            assert station.bodies(number) == [b"%d" % index for index in range(100)]


async def test_a_publisher_of_large_messages_does_not_hold_up_another_one() -> None:
    with Station() as camera, Station() as clock, Station() as screen:
        await screen.follow(1, camera, marker=b"\0camera")
        await screen.follow(2, clock, marker=b"\0clock")
        for _ in range(40):
            camera.publish(b"image", bytes(200_000))
        clock.publish(b"time", b"now")
        # Both wait to be read before the first read.
        for number in (1, 2):
            connection = screen.broadcast._followings[number].connection
            while connection is None or not connection.has_messages():
                await asyncio.sleep(0)
            screen.broadcast._on_readable(number)  # asking has silenced the descriptor
        screen.read()
        assert (2, (b"time", b"header", b"now")) in screen.published
        await screen.until_published(41)
        assert max(screen.shares) <= RECEIVE_BYTES + 200_100
        assert SHARE_BYTES < 200_000


async def test_a_receive_takes_no_more_than_asked_for() -> None:
    with Station() as camera, Station(limit=7) as screen:
        await screen.follow(1, camera)
        for index in range(300):
            camera.publish(b"topic", b"%d" % index)
        sizes: list[int] = []
        while len(screen.published) < 300:
            messages = screen.broadcast.receive_published(7)
            sizes.append(len(messages))
            screen.published += messages
            if not screen.broadcast.more():
                await asyncio.sleep(0)
        assert max(sizes) == 7
        assert screen.bodies() == [b"%d" % index for index in range(300)]


async def test_ten_megabytes_arrive_and_are_not_copied() -> None:
    body = os.urandom(10_000_000)
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera)
        for large in (body, b"small", body):
            assert camera.publish(b"topic", large)
        await screen.until_published(3)
        assert screen.bodies() == [body, b"small", body]
        kinds = [type(parts[2]) for _, parts in screen.published]
        assert kinds == [memoryview, bytes, memoryview]
    # A view outlives its socket.
    assert bytes(screen.published[0][1][2]) == body


# --- slow subscribers ---------------------------------------------------------------------------------------


async def test_who_is_slow_misses_messages_and_the_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing_module, "SEND_HIGH_WATER", 20)
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera)
        with plain_socket(zmq.SUB, camera.broadcast.open_broadcast()[0], RCVHWM=1) as slow:
            slow.setsockopt(zmq.SUBSCRIBE, b"topic")
            await camera.until_asked(b"topic")
            results: list[bool] = []
            while camera.broadcast.crowded == 0 or len(results) - results.index(False) < 50:
                results.append(camera.publish(b"topic", bytes(250_000), header=b"%d" % len(results)))
                # The fast one takes each before the next: it is never full.
                await screen.until_published(len(results))
            assert [int(parts[1]) for _, parts in screen.published] == list(range(len(results)))
            # Told at the beginning only (which there may be several of: TCP's buffers grow), not for each.
            assert camera.broadcast.crowded == results.count(False) < 10
            # What the slow one gets is whole, in order, and goes on when it has room again.
            first_missed = results.index(False)
            frames: list[bytes] = []
            while not frames or int(frames[-2]) < len(results):
                frames += await read_plain(slow, 3)
                if len(frames) // 3 >= first_missed:
                    camera.publish(b"topic", bytes(250_000), header=b"%d" % (len(results) + len(frames)))
            assert set(frames[::3]) == {b"topic"} and {len(frame) for frame in frames[2::3]} == {250_000}
            numbers = [int(frame) for frame in frames[1::3]]
            assert numbers[:first_missed] == list(range(first_missed)) and first_missed not in numbers
            assert numbers == sorted(set(numbers))


async def test_a_burst_does_not_overrun_who_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a millisecond libzmq does not look whether there is room again (and would drop)."""
    monkeypatch.setattr(publishing_module, "SEND_HIGH_WATER", 10)
    monkeypatch.setattr(publishing_module, "NAPS", 0)
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera)
        publishing = camera.broadcast._publishing
        assert publishing is not None
        sent = 0
        for _ in range(50):
            while publishing._try_send([b"topic", b"", b"%d" % sent]):
                sent += 1
            # Without giving way to the loop: everything has arrived, so there is room, and nobody has looked.
            while len(screen.published) < sent:
                screen.broadcast._on_readable(1)
                screen.read()
            assert camera.publish(b"topic", b"%d" % sent)
            sent += 1
        await screen.until_published(sent)
        assert screen.bodies() == [b"%d" % index for index in range(sent)]
        assert camera.broadcast.crowded == 0


async def test_a_subscriber_that_takes_nothing_any_more_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing_module, "STUCK_S", 0.3)
    with Station() as camera:
        (endpoint,) = camera.broadcast.open_broadcast()
        with plain_socket(zmq.SUB, endpoint, RCVHWM=1, RECONNECT_IVL=-1) as stuck:
            stuck.setsockopt(zmq.SUBSCRIBE, b"topic")
            await camera.until_asked(b"topic")
            for _ in range(publishing_module.SEND_HIGH_WATER):
                if not camera.publish(b"topic", bytes(200_000)):
                    break
            await camera.until_asked(b"topic", added=False)


# --- connections that end -----------------------------------------------------------------------------------


async def test_a_publisher_that_comes_back_on_its_port_hears_filters_before_the_marker() -> None:
    filters = [b"topic.%d" % index for index in range(2000)]
    with Station() as screen:
        with plain_socket(zmq.XPUB) as before:
            endpoint = endpoint_of(before)
            screen.broadcast.follow(1, endpoint, filters, b"\0first")
            assert (await read_plain(before, 2001))[-1] == b"\1\0first"
            before.send_multipart([b"topic.1", b"", b"before"])
            await screen.until(lambda: screen.bodies() == [b"before"])
        await screen.until(lambda: screen.follow_events == [(1, UP), (1, DOWN)])
        # A change in the meantime counts for the next connection.
        screen.broadcast.refilter(1, [*filters, b"and more"], b"\0second")
        with plain_socket(zmq.XPUB) as after:
            after.bind(endpoint)
            await screen.until(lambda: screen.follow_events == [(1, UP), (1, DOWN), (1, UP)])
            asked = await read_plain(after, 2002)
            assert asked[-1] == b"\1\0second"
            assert set(asked[:-1]) == {b"\1" + each for each in [*filters, b"and more"]}
            after.send_multipart([b"and more", b"", b"after"])
            await screen.until(lambda: screen.bodies() == [b"before", b"after"])


async def test_a_publisher_that_is_not_there_yet_is_followed_when_it_comes() -> None:
    with plain_socket(zmq.XPUB) as there:
        endpoint = endpoint_of(there)
    with Station() as screen:
        screen.broadcast.follow(1, endpoint, [b"z", b"a"], b"\0m")
        connection = screen.broadcast._followings[1].connection
        assert connection is not None
        await screen.until(lambda: connection.ended)
        with plain_socket(zmq.XPUB) as there:
            there.bind(endpoint)
            await screen.until(lambda: screen.follow_events == [(1, UP)])
            assert (await read_plain(there, 3))[-1] == b"\1\0m"


async def test_what_came_before_the_end_is_read_before_the_next_dial() -> None:
    with Station() as screen:
        with Station() as camera:
            await screen.follow(1, camera)
            for index in range(50):
                camera.publish(b"topic", b"%d" % index + bytes(200_000))
            connection = screen.broadcast._followings[1].connection
            assert connection is not None
            camera.transport.close(linger_ms=10_000)
        # It hears of the end first, and reads late.
        while (1, DOWN) not in screen.follow_events:
            await asyncio.sleep(0)
            screen.follow_events += screen.broadcast.follow_events()
        timer = screen.broadcast._followings[1].timer
        assert timer is not None
        timer.cancel()
        screen.broadcast._on_timer(1)
        assert screen.broadcast._followings[1].connection is connection
        await screen.until_published(50)
        await screen.until(lambda: screen.broadcast._followings[1].connection is not connection)


async def test_a_publisher_sees_a_subscriber_that_comes_back_before_its_end_was_noticed() -> None:
    """Who asks for what somebody has asked for is heard, and gone only when the last one is."""
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera, [b"topic"], b"\0same")
        screen.broadcast.follow(2, camera.broadcast.open_broadcast()[0], [b"topic"], b"\0same")
        await camera.until(lambda: len(camera.changes) == 4)
        assert camera.changes == [(b"topic", True), (b"\0same", True)] * 2
        screen.broadcast.unfollow(1)
        await screen.follow(3, camera, [b"topic"], b"\0other")
        screen.broadcast.unfollow(2)
        await camera.until_asked(b"\0same", added=False)
        assert (b"topic", False) not in camera.changes


# --- reach, order of calls, resources -----------------------------------------------------------------------


@pytest.mark.guarantee("G12")
async def test_a_node_on_loopback_publishes_there_and_follows_nobody_beyond() -> None:
    with Station() as screen:
        assert [endpoint.rpartition(":")[0] for endpoint in screen.broadcast.open_broadcast()] == ["tcp://127.0.0.1"]
        for number, endpoint in enumerate(("tcp://192.0.2.1:5555", "tcp://localhost:5555", "nothing")):
            screen.broadcast.follow(number, endpoint, [b""], b"\0m")
        await screen.until(lambda: len(screen.follow_events) == 3)
        assert screen.follow_events == [(0, FAILED), (1, FAILED), (2, FAILED)]
        assert not screen.broadcast._followings


async def test_the_order_of_calls_is_checked() -> None:
    transport = ZmqTransport()
    transport.bind()
    with pytest.raises(NodeClosed, match=r"before start\(\)"):
        assert transport.broadcast
    transport.close()
    with Station() as screen:
        with pytest.raises(ConfigurationError, match="open_broadcast"):
            screen.publish(b"topic")
        assert screen.broadcast.subscriptions() == []
        await screen.follow(1, screen)
        with pytest.raises(ValueError, match="1 is followed"):
            await screen.follow(1, screen)
        screen.transport.close()
        for attempt in (
            lambda: screen.broadcast.follow(2, "tcp://127.0.0.1:1", [], b"\0m"),
            screen.broadcast.open_broadcast,
            lambda: screen.publish(b"topic"),
        ):
            with pytest.raises(NodeClosed):
                attempt()
        assert screen.broadcast.receive_published(1) == []
        screen.broadcast.unfollow(1)


async def test_followings_give_back_their_descriptors() -> None:
    with Station() as camera, Station() as screen:
        await screen.follow(0, camera, marker=b"\0warm up")
        before = count_open(0)
        for number in range(1, 21):
            await screen.follow(number, camera, marker=b"\0%d" % number)
        assert count_open(0) > before + 60
        for number in range(1, 21):
            screen.broadcast.unfollow(number)
        # libzmq closes in the background, and both ends are in this process.
        deadline = asyncio.get_running_loop().time() + 20
        while count_open(0) > before and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0)
        assert count_open(0) <= before


async def test_who_follows_and_hears_nothing_keeps_nobody_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast_module, "LOOK_EVERY", 10**9)
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera)
        camera.publish(b"topic", b"the last for long")
        await screen.until_published(1)
        await asyncio.sleep(0)
        screen.turn()
        camera.turn()
        wakes = screen.wakes + camera.wakes
        began = time.monotonic()
        while time.monotonic() < began + 0.05:
            await asyncio.sleep(0)
        assert screen.wakes + camera.wakes <= wakes + 2


async def test_a_forked_child_gets_an_error_and_the_parent_goes_on() -> None:
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera)
        child = os.fork()
        if child == 0:
            os._exit(try_everything(camera) or try_everything(screen))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        camera.publish(b"topic", b"still here")
        await screen.until(lambda: screen.bodies() == [b"still here"])


def try_everything(station: Station) -> int:
    """In the child: 0 if each method raises ForkedProcess, and close does nothing."""
    broadcast = station.broadcast
    attempts = [
        broadcast.open_broadcast,
        lambda: station.publish(b"topic"),
        broadcast.subscriptions,
        lambda: broadcast.follow(2, "tcp://127.0.0.1:1", [], b"\0m"),
        lambda: broadcast.refilter(1, [], b"\0n"),
        lambda: broadcast.unfollow(1),
        lambda: broadcast.receive_published(1),
        broadcast.follow_events,
    ]
    for number, attempt in enumerate(attempts, 1):
        try:
            attempt()
        except ForkedProcess:
            continue
        return number
    station.transport.close()
    return 0


def test_the_numbers_go_together() -> None:
    assert NO_COPY_BYTES <= SHARE_BYTES <= RECEIVE_BYTES
