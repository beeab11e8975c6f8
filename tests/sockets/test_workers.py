"""Handlers: what counts as one, what its end means, and what a timeout costs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from typing import Any
from unittest.mock import ANY

import pytest

from meshmsg import AlreadySettled, ConfigurationError, Ledger, Message, Node, Reject, Retry
from meshmsg.blocking import Node as BlockingNode
from meshmsg.blocking import Pull as BlockingPull
from meshmsg.sockets.workers import Workers, is_async

PATIENCE_S = 10.0
ONCE = Retry(max_attempts=1)


def make() -> Node:
    return Node("node", mesh=f"workers-{uuid.uuid4().hex[:12]}", mdns=False, drain=0)


async def until(condition: Callable[[], bool]) -> None:
    """Looks again at every turn of the loop; the test's own deadline ends it."""
    while not condition():
        await asyncio.sleep(0)


async def plain_async(message: Message) -> None: ...


def plain(message: Message) -> None: ...


class Callable_:
    def __call__(self, message: Message) -> None: ...


class AsyncCallable:
    async def __call__(self, message: Message) -> None: ...

    async def method(self, message: Message) -> None: ...


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (plain_async, True),
        (functools.partial(plain_async), True),
        (AsyncCallable(), True),
        (AsyncCallable().method, True),
        (plain, False),
        (functools.partial(plain), False),
        (lambda message: None, False),
        (Callable_(), False),
        (list[Any]().append, False),
    ],
)
async def test_what_kind_of_handler_it_is(handler: Any, expected: bool) -> None:
    assert is_async(handler) is expected
    async with make() as node:
        node.pull("work")(handler)
        await node.push("work").deliver(1, timeout=PATIENCE_S)


async def test_a_plain_function_runs_in_a_thread_and_a_coroutine_function_does_not() -> None:
    async with make() as node:
        threads: dict[str, threading.Thread] = {}

        @node.pull("coroutine")
        async def coroutine(message: Message) -> None:
            threads["coroutine"] = threading.current_thread()

        @node.pull("function")
        def function(message: Message) -> None:
            threads["function"] = threading.current_thread()

        for queue in ("coroutine", "function"):
            await node.push(queue).deliver(1, timeout=PATIENCE_S)
        assert threads["coroutine"] is threading.current_thread()
        assert threads["function"].name == "meshmsg-function-0"
        assert threads["function"].daemon


async def test_a_plain_function_does_not_stop_the_loop() -> None:
    async with make() as node:
        go_on = threading.Event()

        @node.pull("work")
        def wait(message: Message) -> None:
            assert go_on.wait(PATIENCE_S)

        delivering = asyncio.ensure_future(node.push("work").deliver(1, timeout=PATIENCE_S))
        await node.push("other").send(1)  # would not come back
        go_on.set()
        await delivering


@pytest.mark.guarantee("G4")
async def test_a_timeout_cancels_a_coroutine_and_lets_it_clean_up_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    expired = [0]
    expire = Workers._expire

    def counted(self: Workers) -> None:
        expired[0] += 1
        expire(self)

    monkeypatch.setattr(Workers, "_expire", counted)
    async with make() as node:
        cleaned = asyncio.Event()

        @node.pull("work", timeout=0.02)
        async def handle(message: Message) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(500):  # a timer that is always due would ring at every one of these turns
                    await asyncio.sleep(0)
                cleaned.set()

        jobs = node.push("work", retry=ONCE)
        await jobs.send(1)
        await jobs.flush(timeout=PATIENCE_S)  # the message does not wait for the end of the handler
        async with asyncio.timeout(PATIENCE_S):
            await cleaned.wait()
        assert expired[0] <= 3
        assert node.dead_letters()[0].error == "the handler ran longer than its timeout of 0.02 s"


def generates(message: Message) -> Any:
    yield message


async def generates_later(message: Message) -> Any:
    yield message


class Generates:
    def __call__(self, message: Message) -> Any:
        yield message


@pytest.mark.parametrize(
    "handler", [generates, generates_later, functools.partial(generates), Generates(), Generates().__call__]
)
async def test_a_generator_function_is_no_handler(handler: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"pull\('work'\) is a generator function"):
        make().pull("work")(handler)
    with pytest.raises(ConfigurationError, match="generator function"):
        BlockingNode("node", mdns=False).pull("work")(handler)


def two_messages(first: Message, second: Message) -> None: ...


class Needy:
    async def __call__(self, message: Message, *, retries: int) -> None: ...


class Fine:
    def __call__(self, message: Message, retries: int = 3, *more: int, **others: int) -> None: ...

    @classmethod
    def of_class(cls, message: Message) -> None: ...

    def method(self, message: Unknowable) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (lambda: 1, r"<lambda>\(\) cannot be: too many positional arguments"),
        (two_messages, r"two_messages\(first: .*, second: .*\) .*cannot be: missing a required argument: 'second'"),
        (functools.partial(two_messages, ANY, ANY), "cannot be: too many positional arguments"),
        (Needy(), "Needy.* cannot be: missing a required.*argument: 'retries'"),
        (Fine.method, "Fine.method.* cannot be"),
    ],
)
async def test_a_handler_that_does_not_take_a_message_is_none(handler: Any, why: str) -> None:
    for socket in (make().pull("work"), make().sub("news"), BlockingNode("node", mdns=False).pull("work")):
        if is_async(handler) and isinstance(socket, BlockingPull):
            continue
        with pytest.raises(ConfigurationError, match=f"is called with the message alone, and .*(?:{why})"):
            socket(handler)


@pytest.mark.parametrize(
    "handler", [Fine(), Fine.of_class, Fine().method, functools.partial(two_messages, ANY), [].append, {}.update, print]
)
async def test_whatever_takes_a_message_is_a_handler(handler: Any) -> None:
    assert make().pull("work")(handler) is handler


async def forwards(message: Message) -> Any:
    return plain_async(message)


COROUTINE = "the handler returned a coroutine: register the coroutine function itself, or make the wrapper async"


@pytest.mark.guarantee("G1")
@pytest.mark.parametrize("timeout", [None, PATIENCE_S])
@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (lambda message: plain_async(message), COROUTINE),
        (forwards, COROUTINE),
        (lambda message: generates(message), "the handler returned a generator: write it without yield"),
        (lambda message: generates_later(message), "the handler returned a generator: write it without yield"),
        (lambda message: "anything else", None),
    ],
)
async def test_work_that_a_handler_only_returns_is_not_acked(
    handler: Any, error: str | None, timeout: float | None, recwarn: pytest.WarningsRecorder
) -> None:
    async with make() as node:
        node.pull("work", timeout=timeout)(handler)
        jobs = node.push("work")
        await jobs.send(1)
        await jobs.flush(timeout=PATIENCE_S)
        assert [(letter.reason, letter.error) for letter in node.dead_letters()] == [("rejected", error)] * bool(error)
    gc.collect()
    assert not [str(warning.message) for warning in recwarn if "never awaited" in str(warning.message)]


@pytest.mark.guarantee("G4")
@pytest.mark.parametrize("timeout", [None, PATIENCE_S])
async def test_a_cancellation_that_nobody_asked_the_worker_for_is_a_failure(timeout: float | None) -> None:
    async with make() as node:

        @node.pull("work", timeout=timeout)
        async def handle(message: Message) -> None:
            if message.body == "cancelled":
                other = asyncio.ensure_future(asyncio.Event().wait())
                other.cancel()
                await other
            if message.body == "exit":
                raise GeneratorExit

        jobs = node.push("work", retry=ONCE)
        await jobs.send_many(["cancelled", "exit", "cancelled", "fine"])
        await jobs.flush(timeout=PATIENCE_S)
        assert jobs.ledger() == Ledger(accepted=4, processed=1, dead=3)
        errors = [letter.error for letter in node.dead_letters()]
        assert errors == ["CancelledError", "GeneratorExit", "CancelledError"]


async def test_a_timeout_leaves_no_cancellation_behind() -> None:
    async with make() as node:
        requests: list[int] = []

        @node.pull("work", timeout=0.02)
        async def handle(message: Message) -> None:
            task = asyncio.current_task()
            assert task is not None
            requests.append(task.cancelling())
            if message.body:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if message.body == "converts":
                        raise ValueError("late") from None

        jobs = node.push("work", retry=ONCE)
        await jobs.send_many(["converts", "swallows", ""])
        await jobs.flush(timeout=PATIENCE_S)
        assert requests == [0, 0, 0]


async def test_a_worker_survives_what_it_runs() -> None:
    async with make() as node:

        @node.pull("work", timeout=0.02)
        async def handle(message: Message) -> None:
            if message.body == "hang":
                await asyncio.Event().wait()
            if message.body == "fail":
                raise ValueError("no")
            if message.body == "reject":
                raise Reject("no")
            if message.body == "cancel":
                raise asyncio.CancelledError

        jobs = node.push("work", retry=ONCE)
        await jobs.send_many(["hang", "fail", "reject", "hang", "fine"])
        await jobs.flush(timeout=PATIENCE_S)
        assert jobs.ledger() == Ledger(accepted=5, processed=1, dead=4)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("no")])
async def test_nothing_that_a_function_raises_ends_its_thread(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async with make() as node:

        @node.pull("work")
        def handle(message: Message) -> None:
            if message.body == "raise":
                raise error

        jobs = node.push("work", retry=ONCE)
        await jobs.send_many(["raise", "fine"])
        await jobs.flush(timeout=PATIENCE_S)
        assert jobs.ledger() == Ledger(accepted=2, processed=1, dead=1)
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert bool(told) is not isinstance(error, Exception)


@pytest.mark.guarantee("G4")
async def test_what_a_late_function_says_is_too_late() -> None:
    async with make() as node:
        go_on, said = threading.Event(), []

        @node.pull("work", timeout=0.02)
        def handle(message: Message) -> None:
            if message.attempt == 1:
                assert go_on.wait(PATIENCE_S)
                with message:
                    said.append("late")
                    with pytest.raises(AlreadySettled):
                        message.ack()
            else:
                said.append("second")

        jobs = node.push("work", retry=Retry(max_attempts=2, backoff=0))
        await jobs.send(1)
        while not jobs.ledger().redelivered:
            await asyncio.sleep(0)
        go_on.set()  # only now is the one thread free for the second attempt
        await jobs.flush(timeout=PATIENCE_S)
        assert said == ["late", "second"]
        assert jobs.ledger() == Ledger(accepted=1, processed=1, redelivered=1)


async def test_messages_that_wait_for_a_thread_go_back_when_the_pull_closes() -> None:
    async with make() as node:
        started, go_on = threading.Semaphore(0), threading.Event()

        @node.pull("work", concurrency=2)
        def handle(message: Message) -> None:
            started.release()
            assert go_on.wait(PATIENCE_S)

        pull = node._queues._pulls["work"]
        jobs = node.push("work", retry=ONCE)
        await jobs.send_many(range(6))
        for _ in range(2):
            assert await asyncio.to_thread(started.acquire, timeout=PATIENCE_S)
        closing = asyncio.ensure_future(pull.close(drain=PATIENCE_S))
        while jobs.ledger().ready != 4:
            await asyncio.sleep(0)
        go_on.set()
        await closing
        while jobs.ledger().in_flight:
            await asyncio.sleep(0)
        assert jobs.ledger() == Ledger(accepted=6, processed=2, pending=4, ready=4)


@pytest.mark.guarantee("G1", "G4")
@pytest.mark.parametrize("timeout", [None, PATIENCE_S])
@pytest.mark.parametrize("how", ["itself", "quietly", "all"])
async def test_a_worker_that_is_cancelled_is_replaced(how: str, timeout: float | None) -> None:
    """Such as by ``current_task().cancel()`` in its handler: two of two, and the other messages are handled anyway."""
    async with make() as node:
        bodies: list[int] = []

        @node.pull("work", concurrency=2, timeout=timeout)
        async def handle(message: Message) -> None:
            bodies.append(message.body)
            task = asyncio.current_task()
            assert task is not None
            if message.body < 2 and message.attempt == 1:
                for each in asyncio.all_tasks() if how == "all" else {task}:
                    if each.get_name().startswith("meshmsg-work"):
                        each.cancel()
                if how == "quietly":
                    return  # before the cancellation has come
            await asyncio.sleep(0)

        jobs = node.push("work", retry=Retry(max_attempts=3, backoff=0))
        await jobs.send_many(range(20))
        await jobs.flush(timeout=PATIENCE_S)
        assert jobs.ledger().processed == 20
        if how != "all":
            assert sorted(bodies)[2 if how == "quietly" else 4 :] == list(range(2, 20))  # who goes takes nobody along


@pytest.mark.guarantee("G4")
async def test_what_a_cancelled_handler_held_says_so() -> None:
    async with make() as node:

        @node.pull("work")
        async def handle(message: Message) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        jobs = node.push("work", retry=ONCE)
        await jobs.send(1)
        await jobs.flush(timeout=PATIENCE_S)
        assert node.dead_letters()[0].error == "the task of the handler was cancelled"


async def test_a_subscription_that_closes_handles_what_it_has_although_its_worker_was_cancelled() -> None:
    async with make() as node:
        bodies: list[int] = []
        sub = node.sub("news")
        task = None

        @sub
        async def handle(message: Message) -> None:
            bodies.append(message.body)
            if message.body in (0, 5):
                nonlocal task
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(0)

        await node.pub("news").send_many(range(10))
        await until(lambda: sub._inbox.waiting >= 10)
        await sub.close(drain=PATIENCE_S)
        assert bodies == list(range(10))


async def test_an_idle_worker_that_is_cancelled_is_not_woken_in_the_place_of_another() -> None:
    async with make() as node:
        done = asyncio.Event()
        pull = node.pull("work", concurrency=2)

        @pull
        async def handle(message: Message) -> None:
            done.set()

        workers = pull._workers
        assert isinstance(workers, Workers)
        await until(lambda: len(workers._idle) == 2)
        dead = workers._workers[0].task
        assert dead is not None
        dead.cancel()
        await asyncio.wait({dead})
        assert len(workers._idle) == 1
        await until(lambda: len(workers._idle) == 2)  # it was replaced
        await node.push("work").send(1)
        async with asyncio.timeout(PATIENCE_S):
            await done.wait()


ENDING = """
import asyncio
from meshmsg import Node

async def main():
    node = await Node("ends", mesh="ends", mdns=False).start()

    @node.pull("work")
    async def handle(message):
        print("handles", message.body, flush=True)
        begun.set()
        await asyncio.sleep(60)

    begun = asyncio.Event()
    await node.push("work").send_many(range(5))
    await begun.wait()

asyncio.run(main())
"""


def test_a_loop_that_ends_gets_no_new_workers() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "handles 0\n"
    assert "Task was destroyed" not in ended.stderr


@pytest.mark.guarantee("G1", "G4")
async def test_a_coroutine_that_swallows_its_cancellation_loses_its_message_and_its_word() -> None:
    async with make() as node:
        go_on, late = asyncio.Event(), asyncio.Event()
        said: list[object] = []

        @node.pull("work", timeout=0.02, concurrency=2)
        async def handle(message: Message) -> None:
            if message.attempt == 1:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                said.append(message.settled)
                await go_on.wait()
                late.set()  # it returns, and acks nothing
            else:
                said.append("second")

        jobs = node.push("work", retry=Retry(max_attempts=2, backoff=0))
        await jobs.send(1)
        await jobs.flush(timeout=PATIENCE_S)
        assert said == [True, "second"]
        assert jobs.ledger() == Ledger(accepted=1, processed=1, redelivered=1)
        go_on.set()
        await late.wait()
        await jobs.deliver(2, timeout=PATIENCE_S)


@pytest.mark.guarantee("G1", "G4")
async def test_what_waits_for_coroutines_that_do_not_end_goes_to_other_consumers() -> None:
    async with make() as producer:
        other = {"mesh": producer.mesh, "seeds": [producer.endpoints[0]], "mdns": False, "drain": 0}
        async with Node("sick", **other) as sick, Node("well", **other) as well:
            heal, ran, most = asyncio.Event(), [0], [0]
            events = sick.events()

            @sick.pull("work", timeout=0.02, concurrency=2)
            async def suffer(message: Message) -> None:
                ran[0] += 1
                most[0] = max(most[0], ran[0])
                while not heal.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await heal.wait()
                ran[0] -= 1

            jobs = producer.push("work")
            await producer.wait_for(pull="work", timeout=PATIENCE_S)
            await jobs.send_many(range(50))
            while (event := await events.get(timeout=PATIENCE_S)).kind != "consumer.stuck":
                pass
            text = "all 2 handlers were cancelled at the timeout of 0.02 s, and do not end"
            assert (event.queue, event.text) == ("work", text)
            assert most == [2]  # who does not end keeps its place
            done: list[int] = []

            @well.pull("work")
            async def work(message: Message) -> None:
                done.append(message.body)

            await jobs.flush(timeout=PATIENCE_S)
            assert sorted(done) == list(range(50))
            await well.close()
            heal.set()
            await jobs.deliver("again", timeout=PATIENCE_S)
            assert most == [2]


async def test_a_loop_may_end_while_a_late_handler_cleans_up() -> None:
    """The cancellation that ends the loop is not taken for that of the timeout."""
    async with make() as node:
        cleaning = asyncio.Event()
        pull = node.pull("work", timeout=0.02)

        @pull
        async def handle(message: Message) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cleaning.set()
                await asyncio.Event().wait()

        await node.push("work").send(1)
        async with asyncio.timeout(PATIENCE_S):
            await cleaning.wait()
        assert isinstance(pull._workers, Workers)
        task = pull._workers._workers[0].task
        assert task is not None
        task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE_S)
        assert task.cancelled()
