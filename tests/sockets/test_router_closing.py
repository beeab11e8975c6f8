"""Routers that leave: what runs may end, what waits goes elsewhere, and all of it is over in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from meshmsg import ConfigurationError, NodeClosed, NoResponders, Unavailable
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


@pytest.mark.guarantee("G8", "G10")
async def test_endless_calls_are_stopped_at_once_and_others_end() -> None:
    desk = Desk()
    router = desk.router()
    go_on, hanging = asyncio.Event(), threading.Event()
    stopped: list[str] = []

    @router.method
    async def finite() -> AsyncIterator[int]:
        yield 1
        await go_on.wait()
        yield 2

    @router.method(endless=True)
    async def follow() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            stopped.append("follow")

    @router.method(endless=True)
    def follow_plainly() -> Iterator[int]:
        yield 1
        hanging.wait(LONG_S)

    @router.offer
    class Polls:
        async def short(self) -> str:
            await go_on.wait()
            return "done"

    class Events:
        async def next(self) -> None:
            await asyncio.Event().wait()

    router.offer(Events(), endless=["next"])
    finite_one, *streams = [desk.stream(name) for name in ("finite", "follow", "follow_plainly")]
    short, polled = desk.ask("short"), desk.ask("next")
    for each in (finite_one, *streams):
        await each.until_items(1)
    closing = asyncio.ensure_future(router.close(drain=LONG_S))
    for each in (*streams, polled):
        error = await refused(each)
        assert isinstance(error, Unavailable) and str(error).endswith("was stopped: the service closes")
        assert each.fault is not None and each.fault[7] == 0  # it ran
    assert [each.items for each in streams] == [[1], [1]]
    assert not closing.done()
    go_on.set()
    await finite_one
    assert (finite_one.items, await short) == ([1, 2], "done")
    await closing
    assert stopped == ["follow"] and not router._workers._workers
    hanging.set()


async def test_what_cannot_be_endless() -> None:
    router = Desk().router()
    with pytest.raises(ConfigurationError, match=r"method\(endless=\)"):
        router.method(endless="yes")  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match=r"offer\(endless=\) takes a list"):
        router.offer(object(), endless="next")
    with pytest.raises(ConfigurationError, match=r"offer\(endless=\) names 'nothing'"):
        router.offer(Desk(), endless=["nothing"])
    assert "nothing" not in router.methods and len(router.methods) == 3


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


@pytest.mark.guarantee("G8", "G10")
async def test_a_method_may_close_its_own_router() -> None:
    desk = Desk()
    router = desk.router()
    begun, go_on = asyncio.Event(), asyncio.Event()

    @router.method
    async def wait() -> str:
        begun.set()
        await go_on.wait()
        return "done"

    @router.method
    async def leave() -> str:
        await router.close(drain=LONG_S)
        await router.close(drain=LONG_S)
        return "left"

    running = desk.ask("wait")
    await begun.wait()
    assert await desk.ask("leave") == "left"
    assert isinstance(await refused(desk.ask("wait")), NoResponders)
    go_on.set()
    await router.close()
    assert await running == "done" and not router._workers._workers


@pytest.mark.guarantee("G8", "G10")
async def test_a_method_that_closes_its_own_router_has_no_longer_than_others() -> None:
    desk = Desk()
    router = desk.router()

    @router.method
    async def leave() -> None:
        await router.close(drain=0)
        await asyncio.Event().wait()

    assert isinstance(await refused(desk.ask("leave")), Unavailable)
    await router.close()
    assert not router._workers._workers


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


async def test_a_closed_router_takes_no_methods() -> None:
    desk = Desk()
    router = desk.router()

    async def one() -> int:
        return 1

    router.method(one)
    await router.close()
    again = desk.router()
    for use in (
        lambda: router.method(one, name="two"),
        lambda: router.offer(desk),
        lambda: setattr(router, "serving", False),
    ):
        with pytest.raises(
            NodeClosed, match=r"^router\('math'\) was closed: open another one, node\.router\('math'\)$"
        ):
            use()
    assert "two" not in router.methods and again.serving
    again.method(one)
    assert await desk.ask("one") == 1


@pytest.mark.guarantee("G8")
async def test_a_router_that_ends_leaves_its_successor_alone() -> None:
    desk = Desk()
    first = desk.router()
    begun, go_on = asyncio.Event(), asyncio.Event()

    @first.method
    async def wait() -> str:
        begun.set()
        await go_on.wait()
        return "first"

    running = desk.ask("wait")
    await begun.wait()
    closing = asyncio.ensure_future(first.close(drain=LONG_S))
    await asyncio.sleep(0)
    second = desk.router()

    @second.method
    async def name() -> str:
        return "second"

    go_on.set()
    assert await running == "first"
    await closing
    assert await desk.ask("name") == "second"
