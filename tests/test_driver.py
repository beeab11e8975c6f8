"""The driver: what raises in a turn is reported, and costs neither the node nor its timer."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

import pytest
import zmq

from meshmsg import Node, NodeClosed, WaitTimeout
from meshmsg.driver import Driver
from meshmsg.engine.effects import Dial, Effects, Follow
from meshmsg.engine.engine import Engine
from meshmsg.engine.peers import Identity

PATIENCE_S = 10.0


def make() -> Node:
    return Node("node", mesh=f"driver-{uuid.uuid4().hex[:12]}", mdns=False, drain=0)


def listen() -> list[dict[str, Any]]:
    """What the running loop's exception handler hears from now on."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))
    return reports


@pytest.mark.guarantee("G11")
@pytest.mark.parametrize("hook", ["on_outcome", "on_events", "on_arrival", "on_topology"])
async def test_a_hook_that_raises_is_reported_and_the_node_goes_on(hook: str) -> None:
    reports = listen()
    async with make() as node:
        failed = RuntimeError("out of luck")
        calls: list[str] = []

        def fail(*arguments: Any) -> Any:
            calls.append(hook)
            if len(calls) == 1:
                raise failed

        pull = node.pull("work")
        driver: Any = node._driver
        if hook == "on_arrival":
            inner = driver.on_arrival["work"]
            driver.on_arrival["work"] = lambda: (inner(), fail())
        elif hook == "on_topology":
            driver.on_topology.append(fail)
        else:
            inner_hook = getattr(driver, hook)
            setattr(driver, hook, lambda found: (inner_hook(found), fail()))
        if hook == "on_events":
            node._engine._notes.tell("test", "", "", "", driver.now())
        delivery = asyncio.ensure_future(node.push("work").deliver(1, timeout=PATIENCE_S))
        (await pull.get(PATIENCE_S)).ack()
        await delivery
        for number in range(10):
            message = asyncio.ensure_future(pull.get(PATIENCE_S))
            await node.push("work").send(number)
            (await message).ack()
        await node.push("work").flush(PATIENCE_S)
        assert calls
    (report,) = reports
    assert report["exception"] is failed
    assert "'node' failed in a turn" in report["message"]


@pytest.mark.guarantee("G11")
async def test_the_timer_goes_on_after_a_turn_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = listen()
    async with make() as node:
        engine = node._engine
        ticks = asyncio.Event()
        original = engine.handle_time
        failures = 0

        def handle_time(now: float) -> None:
            nonlocal failures
            if failures < 2:
                failures += 1
                raise RuntimeError("out of luck")
            original(now)
            ticks.set()

        monkeypatch.setattr(engine, "handle_time", handle_time)
        await ticks.wait()
        assert len(reports) == 2
        push, pull = node.push("work"), node.pull("work")
        await push.send(1, delay=0.01)  # only a timer brings it
        (await pull.get(PATIENCE_S)).ack()


async def test_waking_it_often_makes_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async with make() as node:
        turns = 0
        original = node._driver.turn

        def turn() -> None:
            nonlocal turns
            turns += 1
            original()

        monkeypatch.setattr(node._driver, "turn", turn)
        node._driver.scheduled = False
        for _ in range(100):
            node._driver.wake()
        assert node._driver.scheduled and not turns
        await asyncio.sleep(0)
        assert turns >= 1
        assert turns < 100


async def test_waiting_for_what_holds_and_what_does_not() -> None:
    async with make() as node:
        assert await node._driver.until(lambda: True, 0)
        assert not await node._driver.until(lambda: False, 0.01)
        assert not node._driver._conditions
        with pytest.raises(WaitTimeout):
            await node.wait_for(pull="nobody", timeout=0.01)


async def test_the_stop_ends_what_waits() -> None:
    node = await make().start()
    waiting = asyncio.ensure_future(node.wait_for(pull="nobody"))
    await asyncio.sleep(0)
    await node.close()
    with pytest.raises(NodeClosed):
        await waiting


@pytest.mark.guarantee("G11")
async def test_a_subscriber_that_is_cut_off_is_told_once_and_counted() -> None:
    async with make() as node:
        node.pub("topic")
        (endpoint, *_) = node._engine.identity.offers["broadcast"]["xpub"]["endpoints"]
        events = node.events()
        for cut in (1, 2):
            with zmq.Context() as context, context.socket(zmq.SUB) as stranger:
                stranger.setsockopt(zmq.LINGER, 0)
                stranger.setsockopt(zmq.RECONNECT_IVL, -1)
                stranger.connect(endpoint)
                stranger.subscribe(b"x" * 300)
                assert await node._driver.until(lambda cut=cut: node.counters()["refused_frames"] == cut, PATIENCE_S)  # type: ignore[misc]
        event = await events.get(PATIENCE_S)
        assert event.kind == "frame.refused" and "a filter of 300 bytes" in event.text
        events.close()
        assert [each async for each in events] == []


class Recorder:
    """Stands in for loop, transport and hooks, and notes what was done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.broadcast = self

    def __getattr__(self, name: str) -> Any:
        def note(*arguments: Any) -> Any:
            self.done.append(name)
            return self  # as a timer, too

        return note

    def nothing(self, *arguments: Any) -> list[Any]:
        return []

    link_events = receive = subscriptions = refusals = follow_events = receive_published = nothing

    unread = False

    def more(self) -> bool:
        return False

    def time(self) -> float:
        return 1.0

    def call_soon(self, callback: Any) -> None:
        pass


def test_effects_are_carried_out_in_the_order_of_their_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Identity("n", 1, "node", "mesh"), generator=random.Random(1))
    recorder: Any = Recorder()
    driver, effects = Driver(engine), Effects()
    driver.start(recorder, recorder)
    driver.open_broadcast()
    driver.on_answered, driver.on_outcome, driver.on_dead = recorder.answered, recorder.settled, recorder.dead
    driver.on_events, driver.on_arrival["work"] = recorder.events, recorder.deliver
    some: Any = ["something"]
    effects.dial, effects.send, effects.hang_up = [Dial(1, "tcp://a:1", b"")], [(7, [])], [3]
    effects.publish, effects.unfollow, effects.follow = [[b""]], [4], [Follow(5, "tcp://a:2", [], b"")]
    effects.answered = effects.settled = effects.dead = effects.events = some
    effects.deliver, effects.wake_at = ["work"], 2.0
    monkeypatch.setattr(engine, "drain", lambda now: effects)
    recorder.done.clear()
    driver.turn()
    driver.stop()
    names = {"call_at": "wake_at", "advance": "", "cancel": ""}
    done = [names.get(name, name) for name in recorder.done]
    assert [name for name in done if name] == list(Effects.__init__.__code__.co_names)
    assert sorted(Effects.__slots__) == sorted(Effects.__init__.__code__.co_names)


@pytest.mark.guarantee("G10")
async def test_who_leaves_stays_until_its_goodbye_is_answered() -> None:
    """Otherwise its connection may break before the goodbye is read, and it would be taken for a crash."""
    async with make() as staying:
        leaving = await Node("leaving", mesh=staying.mesh, mdns=False, seeds=staying.endpoints).start()
        await staying._driver.until(lambda: any(each.name == "leaving" for each in staying.peers()), 10)
        assert not leaving._engine.leaving
        await leaving.close()
        assert leaving._engine.parted
