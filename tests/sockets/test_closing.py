"""Awkward moments: several wait at the close, somebody is cancelled, a handler closes its own pull, threads hang."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from meshmsg import Message, Node, NodeClosed, WaitTimeout, WrongThread
from meshmsg.unclosed import forget

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
        while len(jobs._line) < 5:
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


@pytest.mark.guarantee("G1", "G4")
async def test_what_waits_for_threads_that_hang_goes_to_other_consumers() -> None:
    async with make("producer") as producer:
        other = {"mesh": producer.mesh, "seeds": [producer.endpoints[0]], "mdns": False, "drain": 0}
        async with Node("sick", **other) as sick, Node("well", **other) as well:
            hang, hanging, healed = threading.Event(), threading.Event(), []
            events = sick.events()

            @sick.pull("work", timeout=0.05, concurrency=2)
            def suffer(message: Message) -> None:
                if not hang.is_set():
                    hanging.set()
                    hang.wait(PATIENCE_S)
                healed.append(message.body)

            jobs = producer.push("work")
            await producer.wait_for(pull="work", timeout=PATIENCE_S)
            await jobs.send_many(range(50))
            await asyncio.to_thread(hanging.wait, PATIENCE_S)
            done: list[int] = []

            @well.pull("work")
            async def work(message: Message) -> None:
                done.append(message.body)

            await jobs.flush(timeout=PATIENCE_S)
            assert sorted(done) == list(range(50))
            assert jobs.ledger().processed == 50
            while (event := await events.get(timeout=PATIENCE_S)).kind != "consumer.stuck":
                pass
            assert (event.queue, event.text) == ("work", "all 2 threads run past the timeout of 0.05 s")
            await well.close()
            hang.set()
            await jobs.send("again")
            await jobs.flush(timeout=PATIENCE_S)
            assert "again" in healed


def test_another_loop_of_the_same_thread_is_told_so() -> None:
    loop = asyncio.new_event_loop()
    try:
        node = make()
        loop.run_until_complete(node.start())
        jobs = node.push("work")
        with pytest.raises(WrongThread, match="belongs to another event loop"):
            asyncio.run(jobs.deliver(1, timeout=PATIENCE_S))
        loop.run_until_complete(node.close(drain=0))
    finally:
        loop.close()


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("begun", [False, True])  # a burst, within which little is looked at
def test_nothing_is_accepted_in_another_loop(begun: bool, ended: bool) -> None:
    loop = asyncio.new_event_loop()
    try:
        node = make()
        loop.run_until_complete(node.start())
        jobs, news, everything = node.push("work"), node.pub("news"), node.pub("all.*", block=True)
        if begun:
            for sending in (jobs.send(0), news.send(0), everything.send(0, topic="all.a")):
                loop.run_until_complete(sending)
        loop.run_until_complete(asyncio.sleep(0))  # the turn that opening asked for
        if ended:
            loop.close()

        async def plain(use: Callable[[], object]) -> None:
            use()

        uses: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: jobs.send(1),
            lambda: jobs.send(1, key="k"),
            lambda: jobs.send_many([1, 2]),
            lambda: plain(lambda: jobs.send_nowait(1)),
            lambda: plain(lambda: jobs.send_nowait(1, key="k")),
            lambda: jobs.flush(timeout=0) if begun else jobs.deliver(1, timeout=0),
            lambda: news.send(1),
            lambda: news.send(1, key="k"),
            lambda: news.send_many([1, 2]),
            lambda: plain(lambda: news.send_nowait(1)),
            lambda: everything.send(1, topic="all.a"),
            lambda: node.wait_for(pull="work", timeout=PATIENCE_S),
            lambda: node.close(drain=0),
        ]
        for use in uses:
            with pytest.raises(
                WrongThread, match="which has been closed: use it" if ended else "does not run now: use"
            ):
                asyncio.run(use())
        assert jobs.ledger().accepted == begun
        if ended:
            with pytest.raises(WrongThread, match="which has been closed"):
                jobs.send_nowait(1)
        else:
            jobs.send_nowait(1)  # plain code between two runs of the loop
            loop.run_until_complete(news.send(1))
            assert node._engine.publisher.topics() == ({"news": 2, "all.a": 1} if begun else {"news": 1})
            assert loop.run_until_complete(node.close(drain=0))["work"].accepted == begun + 1
    finally:
        if ended:
            abandon(node)
        loop.close()


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("begun", [False, True])  # whether the first loop has waited for messages and events
def test_nothing_is_taken_or_awaited_in_another_loop(begun: bool, ended: bool) -> None:
    loop = asyncio.new_event_loop()

    async def begin() -> Message:
        await node.start()
        for queue in ("work", "taken"):
            await node.push(queue).send(queue)
        if begun:
            for waiting in (empty.get(timeout=0.001), events.get(timeout=0.001)):
                with pytest.raises(WaitTimeout):
                    await waiting
        await asyncio.sleep(0)
        return await node.pull("taken").get(timeout=PATIENCE_S)

    async def plain(use: Callable[[], object]) -> None:
        use()

    async def step(iteration: AsyncIterator[object]) -> None:
        await anext(iteration)

    try:
        node = make()
        pull, empty, events, unread = node.pull("work"), node.pull("empty"), node.events(), node.events()
        message = loop.run_until_complete(begin())
        iteration = aiter(empty)
        if begun:
            waiting = loop.create_task(step(iteration))
            loop.run_until_complete(asyncio.sleep(0))
            waiting.cancel()
            loop.run_until_complete(asyncio.wait({waiting}))
            iteration = aiter(empty)
        if ended:
            loop.close()
        uses: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: pull.get(),
            lambda: pull.get(timeout=0),
            lambda: step(aiter(pull)),
            lambda: step(pull.batches()),
            lambda: step(iteration),
            lambda: empty.get(),
            lambda: events.get(),
            lambda: unread.get(timeout=0.001),
            lambda: step(unread),
            lambda: plain(node.events),
            lambda: plain(message.ack),
            lambda: plain(message.nack),
            lambda: plain(lambda: pull(print)),
            lambda: pull.close(),
            lambda: node.push("idle").flush(),  # nothing is pending
            lambda: node.wait_for(pull="work"),  # there is one
        ]
        for use in uses:
            with pytest.raises(WrongThread, match="belongs to another event loop, which"):
                asyncio.run(use())
        if not ended:
            message.ack()  # plain code between two runs of the loop
            assert (pull.unsettled, loop.run_until_complete(pull.get(timeout=PATIENCE_S)).body) == (1, "work")
            loop.run_until_complete(node.push("taken").flush(timeout=PATIENCE_S))
            loop.run_until_complete(node.close(drain=0))
            assert node.ledger()["taken"].processed == 1
    finally:
        if ended:
            abandon(node)
        loop.close()


def abandon(node: Node) -> None:
    """Its loop is gone: nothing of it can end any more but what it holds of the system."""
    node._driver.stop()
    assert node._transport is not None
    node._transport.close()
    forget(node)
