"""Who waits for room: in order, all that have room in one turn, and no work for those who do not."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from typing import Any

import pytest

from meshmsg import Node, NodeClosed
from meshmsg.driver import Driver
from meshmsg.engine.engine import Engine
from meshmsg.engine.peers import Identity
from meshmsg.sockets.line import Line, Room

PATIENCE_S = 10.0


class Hall:
    """Bounded room with a line in front of it, and a driver that turns when the test says so."""

    def __init__(self, count: int = 0, size: int = 10**9) -> None:
        self.driver = Driver(Engine(Identity("a" * 32, 1, "node", "test"), generator=random.Random(0)))
        self.line = Line(self.driver, self._require_open)
        self.count, self.size = count, size
        self.closed = False
        self.order: list[Any] = []
        self.asked = 0  # how often it was asked for its room
        self.tasks: list[asyncio.Task[None]] = []

    def _require_open(self) -> None:
        if self.closed:
            raise NodeClosed("closed")

    def _room(self) -> Room:
        self.asked += 1
        return self.count, self.size

    def enter(self, name: Any, size: int = 1) -> asyncio.Task[None]:
        self.tasks.append(asyncio.ensure_future(self._enter(name, size)))
        return self.tasks[-1]

    async def _enter(self, name: Any, size: int) -> None:
        await self.line.wait(size, self._room, lambda: self.count > 0 and self.size >= size)
        self.count -= 1
        self.size -= size
        self.order.append(name)
        assert self.count >= 0
        assert self.size >= 0

    async def turn(self) -> None:
        """The end of a turn, and what is ready then: one iteration of the loop."""
        for callback in list(self.driver.after_turn.values()):
            callback()
        await asyncio.sleep(0)

    def require_empty(self) -> None:
        assert not self.line.busy
        assert len(self.line) == 0
        assert self.line._let_on_bytes == 0
        assert not self.driver.after_turn


@pytest.mark.guarantee("G5")
async def test_all_that_have_room_go_on_in_one_turn_in_order() -> None:
    hall = Hall()
    for number in range(5000):
        hall.enter(number)
    await asyncio.sleep(0)
    for _ in range(100):
        await hall.turn()
    assert len(hall.line) == 5000
    assert hall.asked == 100  # of the first one only
    hall.count = 3000
    await hall.turn()
    assert hall.order == list(range(3000))
    hall.count = 2000
    await hall.turn()
    assert hall.order == list(range(5000))
    assert hall.asked == 102
    hall.require_empty()


@pytest.mark.guarantee("G5")
async def test_a_small_body_does_not_pass_a_large_one() -> None:
    hall = Hall(count=10, size=10)
    for name, size in (("a", 6), ("b", 6), ("c", 1)):
        hall.enter(name, size)
    await asyncio.sleep(0)
    hall.line.advance()
    hall.line.advance()  # what is given to one is not given to the next
    assert len(hall.line._let_on) == 1
    await hall.turn()
    assert hall.order == ["a"]
    await hall.turn()
    assert hall.order == ["a"]
    hall.size = 7
    await hall.turn()
    assert hall.order == ["a", "b", "c"]
    hall.require_empty()


@pytest.mark.guarantee("G5")
async def test_who_finds_the_room_gone_keeps_the_place_in_line() -> None:
    hall = Hall()
    for number in range(6):
        hall.enter(number)
    await asyncio.sleep(0)
    hall.count = 4
    hall.line.advance()
    hall.count = 1  # somebody who does not wait was faster
    await hall.turn()
    assert hall.order == [0]
    assert len(hall.line) == 5
    hall.count = 9
    await hall.turn()
    assert hall.order == [0, 1, 2, 3, 4, 5]
    hall.require_empty()


@pytest.mark.guarantee("G5")
async def test_room_that_comes_before_they_heard_of_the_last_is_theirs_too() -> None:
    hall = Hall()
    for number in range(4):
        hall.enter(number)
    await asyncio.sleep(0)
    hall.count = 3
    hall.line.advance()
    hall.line._call_back()  # what the first one does that finds no room
    hall.line.advance()
    await hall.turn()
    hall.count = 1
    await hall.turn()
    assert hall.order == [0, 1, 2, 3]
    hall.require_empty()


@pytest.mark.guarantee("G5")
async def test_who_is_cancelled_leaves_the_room_to_the_next() -> None:
    hall = Hall()
    tasks = [hall.enter(number) for number in range(6)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    hall.count = 2
    hall.line.advance()
    tasks[1].cancel()  # it was let on already
    tasks[4].cancel()
    await hall.turn()
    assert hall.order == [2]
    await hall.turn()
    assert hall.order == [2, 3]
    hall.count = 1
    await hall.turn()
    assert hall.order == [2, 3, 5]
    hall.require_empty()
    tasks = [hall.enter(number) for number in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    hall.require_empty()  # without any turn: who gives up again and again fills nothing


@pytest.mark.guarantee("G5", "G10")
async def test_everybody_hears_of_the_end() -> None:
    hall = Hall()
    tasks = [hall.enter(number) for number in range(5)]
    await asyncio.sleep(0)
    hall.count = 2
    hall.line.advance()
    hall.closed = True
    await hall.turn()
    await asyncio.wait(tasks, timeout=PATIENCE_S)
    assert [type(task.exception()) for task in tasks] == [NodeClosed] * 5
    assert not hall.order
    hall.require_empty()
    with pytest.raises(NodeClosed):
        await hall.line.wait(1, hall._room, lambda: True)


@pytest.mark.guarantee("G5")
@pytest.mark.parametrize("seed", range(30))
async def test_whatever_happens_nobody_is_passed_or_forgotten(seed: int) -> None:
    draw = random.Random(seed)
    hall = Hall()
    waiting: dict[int, asyncio.Task[None]] = {}
    for number in range(400):
        what = draw.randrange(6)
        if what <= 2:
            waiting[number] = hall.enter(number, draw.randrange(1, 4))
        elif what == 3 and waiting:
            waiting.pop(draw.choice(list(waiting))).cancel()
        else:
            hall.count, hall.size = draw.randrange(5), draw.randrange(8)
        if draw.random() < 0.5:
            hall.line.advance()
        if draw.random() < 0.5:
            hall.count = min(hall.count, draw.randrange(5))
            await asyncio.sleep(0)
        waiting = {each: task for each, task in waiting.items() if not task.done()}
    assert hall.order == sorted(hall.order)
    hall.count = hall.size = 10**6
    for _ in range(4):
        await hall.turn()
    await asyncio.wait(hall.tasks, timeout=PATIENCE_S)
    assert hall.order == sorted(hall.order)
    assert len(hall.order) == sum(not task.cancelled() for task in hall.tasks)
    hall.require_empty()


# -- with sockets --------------------------------------------------------------------------------------------


class Turns:
    """In which turn of a node each of many sends ended."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        self.ended = Counter[int]()
        turn = node._driver.turn

        def count() -> None:
            self.now += 1
            turn()

        monkeypatch.setattr(node._driver, "turn", count)

    async def note(self, sending: Any) -> None:
        await sending
        self.ended[self.now] += 1


def make() -> Node:
    return Node("node", mesh=uuid.uuid4().hex, mdns=False, drain=0)


@pytest.mark.guarantee("G5")
async def test_a_batch_that_is_acked_lets_as_many_senders_on_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async with make() as node:
        jobs, pull = node.push("work", max_pending=100), node.pull("work", prefetch=100)
        await jobs.send_many(range(100))
        turns = Turns(node, monkeypatch)
        sending = [asyncio.ensure_future(turns.note(jobs.send(number))) for number in range(100, 400)]
        while len(jobs._line) < 300:
            await asyncio.sleep(0)
        got: list[int] = []
        batches = pull.batches(max_size=50, max_wait=PATIENCE_S)
        for part in range(1, 9):
            batch = await anext(batches)
            got += [message.body for message in batch]
            batch.ack()
            assert jobs.ledger().pending <= 100
            while len(jobs._line) > max(0, 300 - 50 * part):
                await asyncio.sleep(0)
        await asyncio.gather(*sending)
        assert got == list(range(400))
        assert list(turns.ended.values()) == [50] * 6


@pytest.mark.guarantee("G5")
async def test_who_comes_later_goes_later_with_room_or_without() -> None:
    async with make() as node:
        jobs, pull = node.push("work", max_pending=10), node.pull("work", prefetch=10)
        await jobs.send_many(range(10))
        sending: list[asyncio.Future[Any]] = [asyncio.ensure_future(jobs.send(number)) for number in range(10, 15)]
        sending += [asyncio.ensure_future(jobs.send_many(range(15, 40)))]
        while len(jobs._line) < 6:
            await asyncio.sleep(0)
        sending += [asyncio.ensure_future(jobs.send(number)) for number in range(40, 50)]
        got: list[int] = []
        async for message in pull:
            got.append(message.body)
            message.ack()
            assert jobs.ledger().pending <= 10
            if len(got) == 50:
                break
        await asyncio.gather(*sending)
        assert sorted(got) == list(range(50))
        assert got[:16] == list(range(16))
        alone = [body for body in got if body < 15 or body >= 40]
        assert alone == sorted(alone)


@pytest.mark.guarantee("G6")
async def test_senders_in_front_of_a_window_go_on_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async with make() as node:
        out, sub = node.pub("steady.*", block=True, window=100), node.sub("steady.a", buffer=100)
        await node.wait_for(sub="steady.a", timeout=PATIENCE_S)
        turns = Turns(node, monkeypatch)
        sending = [asyncio.ensure_future(turns.note(out.send(number, topic="steady.a"))) for number in range(1000)]
        while "steady.a" not in out._lines:
            await asyncio.sleep(0)
        await out.send("another topic waits for nobody", topic="steady.b")
        for number in range(1000):
            assert (await sub.get(timeout=PATIENCE_S)).body == number
            assert out.lag().get("node", {}).get("steady.a", 0) <= 100
        await asyncio.gather(*sending)
        assert len(turns.ended) <= 1000 // 25 + 1  # a subscriber tells with each quarter of the window
        assert not out._lines
        assert not node._driver.after_turn


@pytest.mark.guarantee("G5", "G7")
async def test_senders_in_front_of_a_full_group_go_on_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async with make() as node:
        out = node.pub("orders.*", max_pending=100)
        member = node.sub("orders.**", group="billing", prefetch=100)
        await node.wait_for(group="billing", timeout=PATIENCE_S)
        await out.send_many(range(100), topic="orders.a")
        turns = Turns(node, monkeypatch)
        sending = [
            asyncio.ensure_future(turns.note(out.send(number, topic=f"orders.{'ab'[number % 2]}")))
            for number in range(100, 400)
        ]
        while len(out._line) < 300:
            await asyncio.sleep(0)
        got: list[int] = []
        batches = member.batches(max_size=50, max_wait=PATIENCE_S)
        while len(got) < 400:
            batch = await anext(batches)
            got += [message.body for message in batch]
            batch.ack()
            assert all(books.pending <= 100 for books in node.ledger().values())
        await asyncio.gather(*sending)
        for number in (0, 1):  # what leaves in one turn is in order within its topic
            alone = [body for body in got if body >= 100 and body % 2 == number]
            assert alone == list(range(100 + number, 400, 2))
        assert len(got) == 400
        assert len(turns.ended) <= 8
        assert not out._line.busy


@pytest.mark.guarantee("G5")
async def test_what_would_fit_waits_behind_what_does_not() -> None:
    async with make() as node:
        jobs, pull = node.push("work", max_pending_bytes=100_000), node.pull("work", prefetch=1)
        await jobs.send("a" * 60_000)
        sending: list[asyncio.Future[Any]] = []
        for late in (jobs.send("b" * 50_000), jobs.send_many(["c"]), jobs.send("d"), jobs.send_many(["e"])):
            sending.append(asyncio.ensure_future(late))
            while len(jobs._line) < len(sending):
                assert not sending[-1].done()
                await asyncio.sleep(0)
        await _require_order(pull, "abcde")
        await asyncio.gather(*sending)


@pytest.mark.guarantee("G5", "G7")
async def test_what_would_fit_into_a_group_waits_behind_what_does_not() -> None:
    async with make() as node:
        out = node.pub("orders", max_pending_bytes=100_000)
        member = node.sub("orders", group="billing", prefetch=1)
        await node.wait_for(group="billing", timeout=PATIENCE_S)
        await out.send("a" * 60_000)
        sending: list[asyncio.Future[Any]] = []
        for late in (out.send("b" * 50_000), out.send("c"), out.send("d", headers={"x": 1}), out.send_many(["e"])):
            sending.append(asyncio.ensure_future(late))
            while len(out._line) < len(sending):
                assert not sending[-1].done()
                await asyncio.sleep(0)
        await _require_order(member, "abcde")
        await asyncio.gather(*sending)


async def _require_order(consumer: Any, letters: str) -> None:
    for letter in letters:
        message = await consumer.get(timeout=PATIENCE_S)
        assert message.body[0] == letter
        message.ack()


@pytest.mark.guarantee("G5", "G6")
async def test_who_was_served_stands_behind_those_who_were_not() -> None:
    async with make() as node:
        jobs, pull = node.push("work", max_pending=10), node.pull("work", prefetch=10)
        out, sub = node.pub("steady", block=True, window=10), node.sub("steady", buffer=10)
        await node.wait_for(sub="steady", timeout=PATIENCE_S)

        async def send_two(socket: Any, name: str) -> None:
            await socket.send(f"{name}1")
            await socket.send(f"{name}2")

        for number in range(10):
            await jobs.send(number)
            await out.send(number)
        sending = [asyncio.ensure_future(send_two(socket, name)) for name in "abc" for socket in (jobs, out)]
        while len(jobs._line) < 3 or len(out._lines.get("steady", ())) < 3:
            await asyncio.sleep(0)
        batch = await anext(pull.batches(max_size=10, max_wait=PATIENCE_S))
        assert len(batch) == 10
        batch.ack()
        expected = [f"{name}{number}" for number in (1, 2) for name in "abc"]
        got = [(await sub.get(timeout=PATIENCE_S)).body for _ in range(16)]
        assert got == [*range(10), *expected]
        got = [(await pull.get(timeout=PATIENCE_S)).body for _ in range(6)]
        assert got[:3] == expected[:3]  # the last in line may go on with a burst
        assert sorted(got) == sorted(expected)
        await asyncio.gather(*sending)
