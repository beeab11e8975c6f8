"""Routers that leave: what runs may end, what waits goes elsewhere, and all of it is over in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from meshmsg import ConfigurationError, NoResponders, Unavailable
from meshmsg.sockets.context import Context
from meshmsg.wire import items
from tests.sockets.desk import Desk, refused

LONG_S = 60.0  # longer than a test may take


@pytest.mark.guarantee("G8", "G10")
async def test_what_runs_ends_and_what_waits_goes_elsewhere() -> None:
    desk = Desk()
    router = desk.router(concurrency=1)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @router.method
    async def wait() -> str:
        begun.set()
        await go_on.wait()
        return "done"

    running, waiting = desk.ask_many("wait", [([], {})] * 2)
    await begun.wait()
    closing = asyncio.ensure_future(router.close(drain=LONG_S))
    error = await refused(waiting)
    assert isinstance(error, Unavailable)
    assert waiting.fault is not None and waiting.fault[7] == items.NEVER_RAN
    assert isinstance(await refused(desk.ask("wait")), NoResponders)
    assert not closing.done()
    go_on.set()
    assert await running == "done"
    await closing
    assert desk.on_arrival == {}
    desk.router().method(wait)  # the name is free again
    assert await desk.ask("wait") == "done"


@pytest.mark.guarantee("G8", "G10")
async def test_what_takes_too_long_is_stopped() -> None:
    desk = Desk()
    router = desk.router()
    stopped: list[str] = []
    begun = asyncio.Semaphore(0)

    @router.method
    async def wait(context: Context) -> None:
        begun.release()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append("wait")

    @router.method
    async def count() -> AsyncIterator[int]:
        begun.release()
        try:
            while True:
                yield 1
        finally:
            stopped.append("count")

    calls = [desk.ask("wait"), desk.stream("count")]
    for _ in calls:
        await begun.acquire()
    await router.close(drain=0)
    for each in calls:
        error = await refused(each)
        assert isinstance(error, Unavailable)
        assert "was stopped: the service closes, and it took too long" in str(error)
        assert each.fault is not None and each.fault[7] == 0  # it may have run
    assert sorted(stopped) == ["count", "wait"]
    assert not router._workers._workers


@pytest.mark.guarantee("G10")
async def test_a_thread_that_hangs_keeps_nobody() -> None:
    desk = Desk()
    router = desk.router()
    begun, go_on = threading.Event(), threading.Event()

    @router.method
    def hang() -> None:
        begun.set()
        go_on.wait(LONG_S)

    asked = desk.ask("hang")
    while not begun.is_set():
        await asyncio.sleep(0)
    await router.close(drain=0)
    assert isinstance(await refused(asked), Unavailable)
    assert not router._workers._workers
    go_on.set()


async def test_a_method_may_close_its_own_router() -> None:
    desk = Desk()
    router = desk.router()

    @router.method
    async def leave() -> None:
        await router.close(drain=0)

    assert isinstance(await refused(desk.ask("leave")), Unavailable)
    await router.close()


@pytest.mark.guarantee("G10")
async def test_a_second_close_is_as_quick_as_it_says() -> None:
    desk = Desk()
    router = desk.router()
    begun = asyncio.Event()

    @router.method
    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    asked = desk.ask("wait")
    await begun.wait()
    patient = asyncio.ensure_future(router.close(drain=LONG_S))
    await asyncio.sleep(0)
    await router.close(drain=0)
    await patient
    assert isinstance(await refused(asked), Unavailable)


async def test_leaving_the_block_closes() -> None:
    desk = Desk()
    async with desk.router() as router:
        assert (await desk.ask("ping"))["node"] == "server"
    assert isinstance(await refused(desk.ask("ping")), NoResponders)
    assert not router._workers._workers


async def test_a_drain_is_a_time() -> None:
    router = Desk().router()
    with pytest.raises(ConfigurationError, match=r"close\(drain=\)"):
        await router.close(drain=-1)


async def test_a_loop_that_ends_its_tasks_ends_the_workers_too() -> None:
    desk = Desk()
    router = desk.router()
    begun = asyncio.Event()

    @router.method
    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    asked = desk.ask("wait")
    await begun.wait()
    tasks = [worker.task for worker in router._workers._workers if worker.task is not None]
    for task in tasks:
        task.cancel()  # as asyncio.run does at its end
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert str(await refused(asked)) == "math.wait was cancelled"
