"""Streams as their server sees them: items as they come, and no faster than they are taken, in both directions."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from meshmsg import BadRequest, Cancelled, RemoteError
from meshmsg.sockets.context import Context
from meshmsg.wire import items
from tests.sockets.desk import Asked, Desk, offer_counts, refused, until_free

PATIENCE_S = 10.0


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("name", ["count", "count_plainly"])
async def test_a_slow_reader_stops_the_generator(name: str) -> None:
    desk = Desk()
    yielded: list[int] = []
    router = desk.router()
    offer_counts(router, yielded, [])
    asked = desk.stream(name, 1000, window=3)
    await asked.until_items(3)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(yielded) <= 4  # one more may wait for room
    asked.credit(10)
    await asked.until_items(10)
    assert len(yielded) <= 11
    asked.credit(1000)
    assert await asked is None
    assert asked.items == list(range(1000))


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("name", ["count", "count_plainly"])
@pytest.mark.parametrize("window", [2, 500])
async def test_a_reader_who_leaves_closes_the_generator(name: str, window: int) -> None:
    desk = Desk()
    closed: list[str] = []
    router = desk.router(concurrency=1)
    offer_counts(router, [], closed)
    asked = desk.stream(name, 10**6, window=window)
    await asked.until_items(2)
    asked.cancel()
    await until_free(desk)
    assert closed == [name]
    assert not asked.outcome.done()


@pytest.mark.parametrize("plain", [False, True])
async def test_an_error_within_a_stream_comes_after_its_items(plain: bool) -> None:
    desk = Desk()
    router = desk.router()

    def fail_plainly() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no more")

    async def fail() -> AsyncIterator[int]:
        for number in (1, 2):
            yield number
        raise ValueError("no more")

    router.method(fail_plainly if plain else fail, name="fail")
    asked = desk.stream("fail", window=10)
    error = await refused(asked)
    assert isinstance(error, RemoteError)
    assert (error.type, str(error), asked.items) == ("ValueError", "no more", [1, 2])


async def test_items_arrive_as_they_are_yielded() -> None:
    desk = Desk()
    router = desk.router()
    steps = threading.Semaphore(0)

    @router.method
    def slow() -> Iterator[int]:
        for number in range(3):
            yield number
            assert steps.acquire(timeout=PATIENCE_S)

    asked = desk.stream("slow", window=100)
    for number in range(3):
        await asked.until_items(number + 1)
        assert asked.items == list(range(number + 1))
        steps.release()
    await asked


def two_ways(desk: Desk, name: str, window: int = 100) -> Asked:
    return desk.ask(name, window=window, flags=items.WANTS_ITEMS | items.SENDS_ITEMS)


@pytest.mark.guarantee("G8")
async def test_a_method_takes_what_its_caller_streams() -> None:
    desk = Desk()
    router = desk.router()

    @router.method
    async def total(context: Context) -> int:
        return sum([each async for each in context.items()])

    @router.method
    def total_plainly(context: Context) -> int:
        return sum(context.items())

    @router.method
    async def echo(numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        async for number in numbers:
            yield -number

    @router.method
    def echo_plainly(numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            yield -number

    for name in ("total", "total_plainly"):
        asked = desk.ask(name, flags=items.SENDS_ITEMS)
        for number in range(100):
            await asked.until_room()
            asked.send(number)
        asked.end()
        assert await asked == 4950
    for name in ("echo", "echo_plainly"):
        asked = two_ways(desk, name)
        for number in range(5):
            await asked.until_room()
            await asked.until_items(number)
            asked.send(number)
        asked.end()
        await asked
        assert asked.items == [0, -1, -2, -3, -4]


@pytest.mark.guarantee("G8")
async def test_a_slow_method_stops_its_caller() -> None:
    desk = Desk()
    router = desk.router()
    go_on = asyncio.Event()

    @router.method
    async def take(context: Context) -> int:
        await go_on.wait()
        return len([each async for each in context.items()])

    asked = desk.ask("take", flags=items.SENDS_ITEMS)
    await asked.until_room()
    before = asked.allowed
    asked.send(*range(before))
    for _ in range(20):
        await asyncio.sleep(0)
    assert asked.allowed == before
    go_on.set()
    await asked.until_room()
    asked.end()
    assert await asked == before


@pytest.mark.parametrize("plain", [False, True])
async def test_a_caller_that_leaves_ends_the_wait_for_its_items(plain: bool) -> None:
    desk = Desk()
    router = desk.router(concurrency=1)
    heard: list[str] = []
    begun = threading.Event()

    def take_plainly(context: Context) -> None:
        begun.set()
        try:
            list(context.items())
        except Cancelled as error:
            heard.append(str(error))

    async def take(context: Context) -> None:
        begun.set()
        try:
            [each async for each in context.items()]
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    router.method(take_plainly if plain else take, name="take")
    asked = desk.ask("take", flags=items.SENDS_ITEMS)
    while not begun.is_set():
        await asyncio.sleep(0)
    asked.send(1)
    asked.cancel()
    await until_free(desk)
    assert heard == ["math.take: the caller's items end: cancelled by the caller" if plain else "cancelled"]


@pytest.mark.parametrize("plain", [False, True])
async def test_items_of_a_caller_that_sends_none_are_a_bad_request(plain: bool) -> None:
    desk = Desk()
    router = desk.router()

    def take_plainly(context: Context) -> None:
        context.items()

    async def take(numbers: AsyncIterator[int]) -> None: ...

    router.method(take_plainly if plain else take, name="take")
    error = await refused(desk.ask("take"))
    assert isinstance(error, BadRequest)
    assert str(error).startswith("math.take takes a stream: request(..., items=...)")


def slice_and_list(numbers: Iterator[int]) -> list[list[int]]:
    return [list(itertools.islice(numbers, 2)), list(numbers)]


def slice_and_list_untyped(numbers: Iterator) -> list[list[int]]:  # type: ignore[type-arg]
    return slice_and_list(numbers)


def break_and_list(numbers: Iterator[int]) -> list[list[int]]:
    head = [next(numbers)]
    for number in numbers:
        head.append(number)
        break
    return [head, list(numbers)]


def ask_twice(context: Context) -> list[list[int]]:
    assert context.items() is context.items()
    return [[next(context.items()), next(context.items())], list(context.items())]


async def break_and_list_in_the_loop(numbers: AsyncIterator[int]) -> list[list[int]]:
    head = [await anext(numbers)]
    async for number in numbers:
        head.append(number)
        break
    return [head, [number async for number in numbers]]


async def untyped_in_the_loop(numbers: AsyncIterator) -> list[list[int]]:  # type: ignore[type-arg]
    return await break_and_list_in_the_loop(numbers)


async def ask_twice_in_the_loop(context: Context) -> list[list[int]]:
    head = [await anext(context.items()), await anext(context.items())]
    return [head, [number async for number in context.items()]]


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize(
    "method",
    [
        slice_and_list,
        slice_and_list_untyped,
        break_and_list,
        ask_twice,
        break_and_list_in_the_loop,
        untyped_in_the_loop,
        ask_twice_in_the_loop,
    ],
)
async def test_items_are_one_iterator(method: Callable[..., Any]) -> None:
    desk = Desk()
    desk.router().method(method, name="take")
    asked = desk.ask("take", flags=items.SENDS_ITEMS)
    await asked.until_room()
    asked.send(*range(6))
    asked.end()
    assert await asked == [[0, 1], [2, 3, 4, 5]]


async def test_after_the_last_item_comes_none() -> None:
    desk = Desk()
    router = desk.router()

    @router.method
    def take(numbers: Iterator[int]) -> list[int | None]:
        return [next(numbers, None) for _ in range(4)]

    asked = desk.ask("take", flags=items.SENDS_ITEMS)
    await asked.until_room()
    asked.send(1, 2)
    asked.end()
    assert await asked == [1, 2, None, None]


async def test_items_for_a_method_that_takes_none_are_a_bad_request() -> None:
    desk = Desk()
    router = desk.router()
    ran: list[str] = []

    async def without(scale: int) -> None:
        ran.append("coroutine")

    def without_plainly(scale: int) -> None:
        ran.append("function")

    async def yields(scale: int) -> AsyncIterator[int]:
        ran.append("generator")
        yield scale

    async def may_take(scale: int, context: Context) -> int:
        return scale

    for method in (without, without_plainly, yields, may_take):
        router.method(method)
    text = "math.{}: it takes no items: leave items= out; its arguments are (scale: int)"
    for name in ("without", "without_plainly"):
        error = await refused(desk.ask(name, 1, flags=items.SENDS_ITEMS))
        assert isinstance(error, BadRequest)
        assert str(error).startswith(text.format(name))
    error = await refused(desk.ask("yields", 1, window=4, flags=items.SENDS_ITEMS | items.WANTS_ITEMS))
    assert str(error).startswith(text.format("yields"))
    assert await desk.ask("may_take", 1, flags=items.SENDS_ITEMS) == 1
    assert not ran
