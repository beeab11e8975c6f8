"""Events: each listener has its own bounded queue, hears what it missed, and is told the end."""

from __future__ import annotations

import asyncio
import logging
import uuid

import pytest

from meshmsg import Event, Node, NodeClosed, WaitTimeout, WrongThread
from meshmsg.observe.events import MAX_WAITING, EventHub


def event(number: int) -> Event:
    return Event("peer.up", float(number), text=str(number))


async def test_every_listener_hears_everything_from_its_beginning_on() -> None:
    hub = EventHub("node")
    first = hub.open()
    hub.publish([event(1)])
    second = hub.open()
    hub.publish([event(2)])
    assert [first.poll(), first.poll(), first.poll()] == [event(1), event(2), None]
    assert [second.poll(), second.poll()] == [event(2), None]


async def test_a_listener_that_does_not_read_loses_the_oldest_and_is_told() -> None:
    hub = EventHub("node")
    stream = hub.open()
    hub.publish(event(number) for number in range(MAX_WAITING + 5))
    missed = await stream.get(0)
    assert missed.kind == "events.missed" and missed.text.startswith("5 events")
    assert await stream.get(0) == event(5)
    left = 0
    while stream.poll() is not None:
        left += 1
    assert left == MAX_WAITING - 1


async def test_a_closed_stream_ends_after_what_it_has() -> None:
    hub = EventHub("node")
    stream = hub.open()
    hub.publish([event(1)])
    stream.close()
    hub.publish([event(2)])
    assert [each async for each in stream] == [event(1)]
    with pytest.raises(NodeClosed, match="no more events"):
        await stream.get(1)


async def test_the_end_of_the_hub_ends_who_waits_and_who_comes_later() -> None:
    hub = EventHub("node")
    waiting = asyncio.ensure_future(hub.open().get(5))
    await asyncio.sleep(0)
    hub.close()
    with pytest.raises(NodeClosed):
        await waiting
    assert [each async for each in hub.open()] == []
    assert not hub.streams


async def test_a_wait_that_ran_out_takes_no_event_along() -> None:
    hub = EventHub("node")
    stream = hub.open()
    with pytest.raises(WaitTimeout, match=r"nothing happened within 0\.01 s"):
        await stream.get(0.01)
    hub.publish([event(1)])
    assert await stream.get(1) == event(1)


@pytest.mark.parametrize("started", [True, False])
async def test_events_of_a_closed_node_end_at_once(started: bool) -> None:
    node = Node("node", mesh=f"events-{uuid.uuid4().hex[:12]}", mdns=False, drain=0)
    before = node.events()
    if started:
        await node.start()
    await node.close()
    assert [each async for each in node.events()] == []
    assert [each async for each in before] == []


def test_the_log_says_what_and_how_bad(caplog: pytest.LogCaptureFixture) -> None:
    hub = EventHub("camera")
    with caplog.at_level(logging.INFO, "meshmsg.events"):
        hub.publish([event(1), Event("frame.refused", 0.0, "peer", queue="work", text="no frame")])
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]
    assert caplog.records[1].getMessage() == "node 'camera': frame.refused: queue 'work' peer no frame"
    assert caplog.records[1].event.kind == "frame.refused"  # type: ignore[attr-defined]  # an extra of the record


async def test_two_readers_of_one_stream_share_it() -> None:
    hub = EventHub("node")
    stream = hub.open()
    readers = [asyncio.ensure_future(stream.get(5)) for _ in range(3)]
    await asyncio.sleep(0)
    hub.publish([event(1)])
    done, _ = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
    assert [each.result() for each in done] == [event(1)]
    waiting = [each for each in readers if not each.done()]
    waiting.pop().cancel()  # one that leaves takes nobody along
    hub.publish([event(2)])
    assert await waiting.pop() == event(2)


async def test_the_end_of_a_stream_ends_all_its_readers() -> None:
    hub = EventHub("node")
    stream = hub.open()

    async def read() -> list[Event]:
        return [each async for each in stream]

    readers = [asyncio.ensure_future(read()) for _ in range(2)]
    await asyncio.sleep(0)
    stream.close()
    assert await asyncio.gather(*readers) == [[], []]


async def test_a_stream_asks_before_it_is_read() -> None:
    def refuse() -> None:
        raise WrongThread("not here")

    hub = EventHub("node")
    stream = hub.open()
    hub.publish([event(1)])
    hub.guard = refuse
    for use in (lambda: stream.get(1), lambda: anext(stream)):
        with pytest.raises(WrongThread):
            await use()
    with pytest.raises(WrongThread):
        stream.close()
