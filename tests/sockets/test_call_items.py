"""The caller's items: they leave as the method takes them, and end with the request (G5, G8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from meshmsg import BodyTooLarge, Cancelled, EncodeError, MeshError
from meshmsg.wire.items import CALL, CANCEL, NEVER_RAN, UP_END, UP_ITEMS
from tests.sockets.far_end import FarEnd, outcome


def start(coroutine: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(coroutine)


async def collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


@pytest.mark.guarantee("G5", "G8")
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_items_leave_as_the_method_takes_them(asynchronous: bool) -> None:
    taken = []

    def numbers() -> Any:
        for number in range(7):
            taken.append(number)
            yield number

    async def numbers_async() -> AsyncIterator[Any]:
        for number in numbers():
            yield number

    far = FarEnd()
    dealer = far.dealer()
    asked = start(dealer.request("total", items=numbers_async() if asynchronous else numbers()))
    _, call, _ = await far.next(CALL)
    await far.rest()
    assert taken == [] and far.sent == []  # nothing before the first credit
    seen: list[int] = []
    for upto in (2, 3, 7):
        far.takes(call[1], upto)
        while len(seen) < upto:
            _, item, bodies = await far.next(UP_ITEMS)
            assert item[1] == call[1]
            seen += bodies
        await far.rest()
        assert seen == list(range(upto)) and taken == seen and far.count(UP_ITEMS) == 0
    assert far.count(UP_END) == 0
    far.takes(call[1], 20)
    await far.rest()
    assert (await far.next(UP_END))[1] == [UP_END, call[1]]
    far.reply(call[1], 21)
    assert await asked == 21
    await far.rest()
    far.require_idle(dealer)


async def test_a_short_list_leaves_with_its_end() -> None:
    far = FarEnd()
    dealer = far.dealer()
    asked = start(dealer.request("total", items=[1, 2]))
    _, call, _ = await far.next(CALL)
    far.takes(call[1], 16)
    _, _, bodies = await far.next(UP_ITEMS)
    assert bodies == [1, 2] and far.count(UP_END) == 1
    far.reply(call[1], 3)
    assert await asked == 3
    await far.rest()
    far.require_idle(dealer)


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_server_that_takes_anything_does_not_stop_the_loop(asynchronous: bool) -> None:
    many = 50_000
    taken = 0

    def numbers() -> Iterator[int]:
        nonlocal taken
        while taken < many:
            taken += 1
            yield taken

    async def numbers_async() -> AsyncIterator[int]:
        for number in numbers():
            yield number

    far = FarEnd()
    dealer = far.dealer()
    asked = start(dealer.request("total", items=numbers_async() if asynchronous else numbers()))
    _, call, _ = await far.next(CALL)
    far.takes(call[1], 10**9)
    await far.rest()
    assert 0 < taken < many
    asked.cancel()
    await asyncio.wait({asked})
    await far.rest()
    far.require_idle(dealer)


async def test_no_items_are_a_stream_too() -> None:
    far = FarEnd()
    dealer = far.dealer()
    asked = start(dealer.request("total", items=[]))
    _, call, _ = await far.next(CALL)
    far.takes(call[1], 16)
    await far.next(UP_END)
    far.reply(call[1], 0)
    assert await asked == 0
    await far.rest()
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_items_end_with_the_request() -> None:
    cleaned = []

    async def endless() -> AsyncIterator[Any]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            cleaned.append("waiting")

    async def fast() -> AsyncIterator[Any]:
        try:
            while True:
                yield 1
        finally:
            cleaned.append("yielding")

    far = FarEnd()
    dealer = far.dealer()
    for items in (endless(), fast()):
        asked = start(dealer.request("total", items=items))
        _, call, _ = await far.next(CALL)
        far.takes(call[1], 4)
        await far.next(UP_ITEMS)
        far.reply(call[1], "enough")
        assert await asked == "enough"
        await far.rest()
        far.require_idle(dealer)
    assert cleaned == ["waiting", "yielding"]


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_items_that_fail_end_the_request(asynchronous: bool) -> None:
    def numbers() -> Any:
        yield 1
        raise KeyError("no more")

    async def numbers_async() -> AsyncIterator[Any]:
        for number in numbers():
            yield number

    far = FarEnd()
    dealer = far.dealer()
    asked = start(dealer.request("total", items=numbers_async() if asynchronous else numbers()))
    _, call, _ = await far.next(CALL)
    far.takes(call[1], 16)
    with pytest.raises(KeyError, match="no more"):
        await asked
    assert (await far.next(CANCEL))[1] == [CANCEL, [call[1]]]
    await far.rest()
    far.require_idle(dealer)


async def test_an_item_that_cannot_be_sent_is_named() -> None:
    far = FarEnd()
    dealer = far.dealer(max_message_bytes=1000)
    cases: list[tuple[list[Any], type[MeshError], str]] = [
        ([1, {"a": object()}], EncodeError, r"math\.total: items\[1\]\['a'\] cannot be sent"),
        ([1, 2, b"x" * 1000], BodyTooLarge, r"math\.total: items\[2\] of \d+ bytes"),
    ]
    for items, kind, message in cases:
        asked = start(dealer.request("total", items=items))
        _, call, _ = await far.next(CALL)
        far.takes(call[1], 16)
        with pytest.raises(kind, match=message):
            await asked
        await far.rest()
        far.require_idle(dealer)


async def test_items_that_are_cancelled_by_themselves_end_the_request() -> None:
    async def numbers() -> AsyncIterator[Any]:
        yield 1
        raise asyncio.CancelledError

    far = FarEnd()
    dealer = far.dealer()
    asked = start(outcome(dealer.request("total", items=numbers())))
    _, call, _ = await far.next(CALL)
    far.takes(call[1], 16)
    error = await asked
    assert type(error) is Cancelled and error.method == "total"
    await far.rest()
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("kind", [StopAsyncIteration, StopIteration])
async def test_items_that_raise_what_ends_an_iteration_do_not_end_it_well(kind: type[Exception]) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise kind  # which of a generator is StopAsyncIteration alone; Python makes a RuntimeError of the other

    class Numbers:
        def __iter__(self) -> Iterator[int]:
            raise kind

    far = FarEnd()
    dealer = far.dealer()
    for items in (numbers(), Numbers()):
        reading = start(collect(dealer.stream("echo", items=items)))
        _, call, _ = await far.next(CALL)
        far.takes(call[1], 16)
        with pytest.raises(RuntimeError, match=r"raised Stop(Async)?Iteration"):
            await reading
        await far.rest()
        far.require_idle(dealer)


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("smaller", ["first", "second", "neither"])
async def test_the_limit_of_who_has_the_call_by_then_counts(smaller: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    async def later() -> AsyncIterator[bytes]:
        begun.set()
        await gate.wait()
        yield bytes(2**18)

    far = FarEnd("b1", "b2")
    limits: dict[str, int] = {}
    monkeypatch.setattr(far.driver.engine.peers, "find", lambda key: key)
    monkeypatch.setattr(far.driver.engine.peers, "limit_of", limits.get)
    dealer = far.dealer()
    asked = start(outcome(dealer.request("total", items=later())))
    first, call, _ = await far.next(CALL)
    far.takes(call[1], 16, first)
    await begun.wait()
    far.fault(call[1], "unavailable", "it closes", first, NEVER_RAN)
    second, call, _ = await far.next(CALL)
    assert second != first
    if smaller != "neither":
        limits[f"{first if smaller == 'first' else second}-id.1"] = 2**18
    far.takes(call[1], 16, second)
    gate.set()
    if smaller == "second":
        error = await asked
        assert isinstance(error, BodyTooLarge)
        assert str(error).startswith(f"math.total: items[0] of 262149 bytes; the limit is 262144, that of {second!r}: ")
        assert (await far.next(CANCEL))[0] == second
    else:
        await far.next(UP_ITEMS)
        far.reply(call[1], "taken", second)
        assert await asked == "taken"
    await far.rest()
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_who_closes_a_dealer_waits_for_what_its_items_clean_up() -> None:
    cleaned = []

    def numbers(name: str) -> AsyncIterator[int]:
        over = asyncio.Event()

        async def run() -> AsyncIterator[int]:
            try:
                yield 1
                await asyncio.Event().wait()
            finally:
                asyncio.get_running_loop().call_later(0.05, over.set)
                await over.wait()
                cleaned.append(name)

        return run()

    far = FarEnd()
    dealer, other = far.dealer(), far.dealer()
    asked = []
    for each, name in ((dealer, "answered"), (dealer, "given up"), (other, "of another dealer")):
        asked.append(start(outcome(each.request("total", items=numbers(name)))))
        _, call, _ = await far.next(CALL)
        far.takes(call[1], 16)
        await far.next(UP_ITEMS)
        if name == "answered":
            far.reply(call[1], "early")
            assert await asked[0] == "early"
    assert cleaned == []
    await dealer.close()
    assert cleaned == ["answered", "given up"]
    await other.close()
    assert len(cleaned) == 3 and not far.driver.endings
    await asyncio.gather(*asked)
    far.require_idle(dealer, other)


async def test_a_dealer_may_be_closed_by_what_its_items_clean_up() -> None:
    far = FarEnd()
    dealer = far.dealer()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            await dealer.close()  # and does not wait for itself
            cleaned.set()

    cleaned = asyncio.Event()
    asked = start(outcome(dealer.request("total", items=numbers())))
    _, call, _ = await far.next(CALL)
    far.takes(call[1], 16)
    await far.next(UP_ITEMS)
    far.reply(call[1], "early")
    assert await asked == "early"
    await far.rest()
    assert cleaned.is_set()
    far.require_idle(dealer)
