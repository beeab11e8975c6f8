"""PUSH and PULL under asyncio: what the contract over both faces (``tests/contracts/test_faces.py``) cannot ask."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from meshmsg import ForkedProcess, Ledger, Message, Node, NodeClosed, OutboxFull, Retry, WaitTimeout, WrongThread
from meshmsg.sockets.sending import MessageIds

PATIENCE_S = 10.0


def make(name: str = "node", *others: Node) -> Node:
    mesh = others[0].mesh if others else f"push-pull-{uuid.uuid4().hex[:12]}"
    seeds = [endpoint for other in others for endpoint in other.endpoints]
    return Node(name, mesh=mesh, mdns=False, seeds=seeds, drain=0)


async def test_another_thread_is_refused() -> None:
    async with make() as node:
        jobs, pull = node.push("work"), node.pull("work")
        await jobs.send(1)
        message = await pull.get(timeout=PATIENCE_S)

        def step(coroutine: Any) -> None:
            """As far as a coroutine comes in a thread without its loop."""
            try:
                coroutine.send(None)
            finally:
                coroutine.close()

        uses: list[Callable[[], Any]] = [
            lambda: step(jobs.send(1)),
            lambda: jobs.send_nowait(1),
            lambda: step(jobs.send_many([1])),
            lambda: step(jobs.flush()),
            lambda: step(pull.get()),
            lambda: step(anext(aiter(pull))),
            lambda: step(anext(pull.batches())),
            lambda: node.push("new"),
            lambda: node.pull("new"),
            lambda: step(node.wait_for(pull="work")),
            lambda: node.redrive(),
            lambda: step(node.close()),
        ]
        for use in uses:
            with pytest.raises(WrongThread, match=r"belongs to the thread of its event loop.*meshmsg\.blocking\.Node"):
                await asyncio.to_thread(use)
        message.ack()
        await jobs.flush(timeout=PATIENCE_S)
        assert jobs.ledger() == Ledger(accepted=1, processed=1)


async def test_a_message_is_settled_in_its_loop_and_while_its_node_is_open() -> None:
    async with make() as node:
        jobs, pull = node.push("work"), node.pull("work")
        await jobs.send_many(range(3))
        batches = pull.batches(max_size=3, max_wait=PATIENCE_S)
        batch = await anext(batches)
        message = batch[0]
        uses: list[Callable[[], Any]] = [message.ack, message.nack, message.reject, message.extend, batch.ack]
        for use in uses:
            with pytest.raises(WrongThread):
                await asyncio.to_thread(use)
        assert not any(message.settled for message in batch)
    for use in uses:
        with pytest.raises(NodeClosed):
            use()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_a_message_is_not_settled_in_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    async with make() as node:
        jobs, pull = node.push("work"), node.pull("work")
        await jobs.send(1)
        message = await pull.get(timeout=PATIENCE_S)
        own = node._driver.owner
        with monkeypatch.context() as patch:  # what a fork leaves in the child
            patch.setattr(node._driver, "owner", 0)
            patch.setattr(node._driver, "_pid", -1)
            for use in (message.ack, message.nack, message.reject, message.extend):
                with pytest.raises(ForkedProcess):
                    use()
        assert node._driver.owner == own
        message.ack()
        await jobs.flush(timeout=PATIENCE_S)


@pytest.mark.guarantee("G4")
async def test_cancelling_batches_while_one_fills_leaves_the_messages_where_they_are() -> None:
    async with make() as node:
        jobs, pull = node.push("work"), node.pull("work")
        await jobs.send_many(range(10))
        filling = asyncio.ensure_future(anext(pull.batches(max_size=100, max_wait=PATIENCE_S)))
        while jobs.ledger().in_flight < 10 or pull._inbox.waiting < 10:
            await asyncio.sleep(0)
            if filling.done() or pull.unsettled > pull._inbox.waiting:
                break
        filling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await filling
        messages = [await pull.get(timeout=PATIENCE_S) for _ in range(10)]
        assert [(message.body, message.attempt) for message in messages] == [(number, 1) for number in range(10)]
        for message in messages:
            message.ack()
        await jobs.flush(timeout=PATIENCE_S)


@pytest.mark.guarantee("G5")
async def test_a_send_that_is_cancelled_while_it_waits_was_never_accepted() -> None:
    async with make() as node:
        jobs = node.push("work", max_pending=1)
        await jobs.send(1)
        sending = asyncio.ensure_future(jobs.send(2))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert jobs.ledger() == Ledger(accepted=1, pending=1, ready=1)


@pytest.mark.guarantee("G5")
async def test_many_tasks_that_send_never_exceed_the_limit() -> None:
    async with make() as node:
        jobs, most = node.push("work", max_pending=10), [0]

        async def send() -> None:
            for number in range(40):
                await jobs.send(number)
                most[0] = max(most[0], jobs.ledger().pending)

        @node.pull("work", prefetch=4)
        async def handle(message: Message) -> None:
            most[0] = max(most[0], jobs.ledger().pending)

        await asyncio.gather(*(send() for _ in range(8)), jobs.send_many(range(100)), jobs.send_many(iter(range(100))))
        await jobs.flush(timeout=PATIENCE_S)
        assert most[0] <= 10
        assert jobs.ledger() == Ledger(accepted=520, processed=520)


async def test_bursts_of_sends_let_others_run() -> None:
    """A producer that never waits for anything must not stop the heartbeats."""
    async with make() as node:
        jobs, turns = node.push("work", max_pending=10**6), [0]

        def count() -> None:
            turns[0] += 1
            asyncio.get_running_loop().call_soon(count)

        count()
        for number in range(8000):
            await jobs.send(number)
        assert turns[0] > 5
        before = turns[0]
        await jobs.send_many(range(8000))
        assert turns[0] > before + 5
        before = turns[0]
        for _ in range(800):
            await jobs.send_many(range(10))
        assert turns[0] > before + 5


async def test_a_get_that_is_cancelled_or_times_out_loses_nothing() -> None:
    async with make() as node:
        jobs, pull = node.push("work"), node.pull("work")
        with pytest.raises(WaitTimeout, match=r"no message of 'work' came within 0\.001 s"):
            await pull.get(timeout=0.001)
        waiting = asyncio.ensure_future(pull.get())
        await asyncio.sleep(0)
        waiting.cancel()
        await jobs.send("kept")
        message = await pull.get(timeout=PATIENCE_S)
        assert message.body == "kept"


async def test_a_cancelled_deliver_watches_no_longer() -> None:
    async with make() as node:
        jobs = node.push("work")
        delivering = asyncio.ensure_future(jobs.deliver(1))
        while not jobs._outbox.watched:
            await asyncio.sleep(0)
        delivering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivering
        assert not jobs._outbox.watched and not jobs._outcomes
        assert jobs.ledger().pending == 1


@pytest.mark.parametrize("what", ["send", "deliver", "flush", "get", "iterate", "wait_for"])
async def test_what_waits_at_the_close_is_told(what: str) -> None:
    async with make() as node:
        full, pull = node.push("full", max_pending=1), node.pull("work")
        pending = node.push("pending")
        await full.send(1)
        waits: dict[str, Callable[[], Awaitable[Any]]] = {
            "send": lambda: full.send(2),
            "deliver": lambda: pending.deliver(1),
            "flush": lambda: full.flush(),
            "get": lambda: pull.get(),
            "iterate": lambda: anext(aiter(pull)),
            "wait_for": lambda: node.wait_for(pull="nothing"),
        }
        waiting = asyncio.ensure_future(waits[what]())
        await asyncio.sleep(0)
        await node.close(drain=0)
        with pytest.raises(StopAsyncIteration if what == "iterate" else NodeClosed) as raised:
            await waiting
        assert what != "get" or "make a new Node" in str(raised.value)


async def test_several_tasks_may_iterate_one_pull() -> None:
    async with make() as node:
        jobs, pull = node.push("work"), node.pull("work", prefetch=8)
        seen: list[tuple[str, int]] = []

        async def iterate(name: str) -> None:
            async for message in pull:
                with message:
                    seen.append((name, message.body))
                    await asyncio.sleep(0)

        tasks = [asyncio.ensure_future(iterate(name)) for name in "ab"]
        await jobs.send_many(range(50))
        await jobs.flush(timeout=PATIENCE_S)
        await pull.close()
        await asyncio.gather(*tasks)
        assert sorted(body for _, body in seen) == list(range(50))
        assert {name for name, _ in seen} == {"a", "b"}


@pytest.mark.parametrize("balance", ["least_outstanding", "round_robin", "random"])
async def test_every_balance_reaches_every_consumer(balance: Any) -> None:
    async with make("producer") as producer, make("one", producer) as one, make("two", producer) as two:
        shares: Counter[str] = Counter()
        for node in (one, two):

            @node.pull("work", prefetch=8)
            async def handle(message: Message, name: str = node.name) -> None:
                shares[name] += 1

        await producer.wait_for(pull="work", count=2, timeout=PATIENCE_S)
        jobs = producer.push("work", balance=balance)
        while len(shares) < 2:  # until both have given credit
            await jobs.deliver("first", timeout=PATIENCE_S)
        shares.clear()
        for _ in range(20):
            await jobs.send_many(range(10))
            await jobs.flush(timeout=PATIENCE_S)
        assert shares.total() == 200 and min(shares.values()) > 20, shares
        if balance == "round_robin":
            assert abs(shares["one"] - shares["two"]) <= 20


@pytest.mark.guarantee("G4")
async def test_an_iteration_that_is_left_keeps_nothing_it_did_not_start() -> None:
    async with make("producer") as producer, make("consumer", producer) as consumer:
        jobs, pull = producer.push("work", retry=Retry(max_attempts=1)), consumer.pull("work")
        await jobs.send_many(range(5))
        async for message in pull:
            with message:
                break
        await consumer.close(drain=0)
        while jobs.ledger().in_flight:
            await asyncio.sleep(0)
        assert jobs.ledger() == Ledger(accepted=5, processed=1, pending=4, ready=4)


async def test_one_full_outbox_is_none_of_anothers_business() -> None:
    async with make() as node:
        full, other = node.push("full", max_pending=1), node.push("other", max_pending=1)
        await full.send(1)
        with pytest.raises(OutboxFull):
            full.send_nowait(2)
        other.send_nowait(1)


async def test_coroutine_functions_as_hooks() -> None:
    async with make() as node:
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        jobs = node.push("work", unroutable_after=0)

        @jobs.on_dead_letter
        async def keep(letter: Any) -> None:
            await asyncio.sleep(0)
            told.set_result(letter.body)

        await jobs.send("dead")
        async with asyncio.timeout(PATIENCE_S):
            assert await told == "dead"


def test_ids_are_made_when_somebody_looks() -> None:
    ids = MessageIds("n/q/", [])
    for numbers in (range(3, 5), range(5, 7), range(10**9, 2 * 10**9)):
        ids.append(numbers)
    assert ids._numbers == [range(3, 7), range(10**9, 2 * 10**9)]
    assert len(ids) == 10**9 + 4
    assert next(iter(ids)) == "n/q/3"
    few = MessageIds("n/q/", [range(3, 5), range(9, 10)])
    assert list(few) == ["n/q/3", "n/q/4", "n/q/9"]
    assert (few[0], few[-1], few[1:]) == ("n/q/3", "n/q/9", ["n/q/4", "n/q/9"])
    assert "n/q/9" in few and "n/q/8" not in few


@pytest.mark.guarantee("G1")
async def test_a_send_many_that_is_cancelled_says_what_was_accepted() -> None:
    async with make() as node:
        jobs = node.push("work", max_pending=10)
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.01):
                await jobs.send_many(range(50))
        accepted: Any = getattr(caught.value.__cause__, "accepted")  # noqa: B009 -- any exception gets one
        assert [*accepted] == [f"{node.id[:12]}/work/{number}" for number in range(10)]
