"""Ends that are closed at an awkward moment: several wait, somebody is cancelled, a handler closes its own pull."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from meshmsg import Message, Node, NodeClosed

PATIENCE_S = 10.0


def make(name: str = "node", **options: Any) -> Node:
    return Node(name, mesh=uuid.uuid4().hex, mdns=False, drain=0, **options)


@pytest.mark.guarantee("G5", "G10")
async def test_everybody_who_waits_for_room_hears_of_the_close() -> None:
    async with make() as node:
        jobs = node.push("nobody", max_pending=1)
        await jobs.send(0)
        waiting = [
            asyncio.ensure_future(each)
            for each in (jobs.send(1), jobs.send(2), jobs.send_many([3]), jobs.send_many([4]), jobs.deliver(5))
        ]
        while not jobs._line.locked():
            await asyncio.sleep(0)
    done, late = await asyncio.wait(waiting, timeout=PATIENCE_S)
    assert not late
    assert [type(each.exception()) for each in done] == [NodeClosed] * 5


@pytest.mark.guarantee("G4", "G10")
async def test_a_close_that_is_cancelled_goes_on() -> None:
    async with make() as node:
        started = asyncio.Event()
        pull = node.pull("work")

        @pull
        async def handle(message: Message) -> None:
            started.set()
            await asyncio.Event().wait()

        await node.push("work").send_many(range(3))
        await started.wait()
        closing = asyncio.ensure_future(pull.close(drain=1000))
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing})
        await pull.close()  # with less patience than the first
        again = node.pull("work")
        bodies = [(await again.get(timeout=PATIENCE_S)).body for _ in range(3)]
        assert sorted(bodies) == [0, 1, 2]


@pytest.mark.guarantee("G4", "G10")
async def test_a_handler_may_close_its_own_pull() -> None:
    async with make() as node:
        pull = node.pull("work")

        @pull
        async def handle(message: Message) -> None:
            await pull.close()

        await node.push("work").send(1)
        while pull._closing is None or not pull._closing.done():
            await asyncio.sleep(0)
        again = node.pull("work")
        message = await again.get(timeout=PATIENCE_S)
        assert (message.body, message.attempt) == (1, 2)


@pytest.mark.guarantee("G1", "G4")
async def test_a_handler_that_raises_something_odd_fails_like_any_other() -> None:
    class Odd(BaseException):
        """No Exception, and nothing that ends a process either."""

    async with make() as node:
        done: list[int] = []

        @node.pull("work")
        async def handle(message: Message) -> None:
            if message.body == 0 and message.attempt == 1:
                raise Odd
            done.append(message.body)

        jobs = node.push("work")
        await jobs.send_many(range(3))
        await jobs.flush(timeout=PATIENCE_S)
        assert sorted(done) == [0, 1, 2]
