"""Interceptors of a dealer: they see and change what is sent, and are not there when nobody asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from meshmsg import Cancelled, ConfigurationError, RemoteError
from meshmsg.sockets.dealer import Dealer
from meshmsg.sockets.interceptors import Outgoing, Proceed
from meshmsg.wire.items import CALL, CANCEL, UP_ITEMS
from tests.sockets.far_end import FarEnd, outcome


def start(coroutine: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(coroutine)


async def collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


async def test_interceptors_go_from_the_first_to_the_last() -> None:
    seen = []

    async def sign(outgoing: Outgoing, proceed: Proceed) -> Any:
        seen.append(("sign", outgoing.kind, outgoing.service, outgoing.method))
        outgoing.headers["token"] = "secret"
        return await proceed()

    async def double(outgoing: Outgoing, proceed: Proceed) -> Any:
        seen.append(("double", dict(outgoing.headers)))
        outgoing.args = (outgoing.args[0] * 2,)
        return -await proceed()

    far = FarEnd()
    dealer = far.dealer(interceptors=[sign, double])
    given = {"user": "ada"}
    asked = start(dealer.request("add", 4, b=1, headers=given, timeout=3))
    _, item, bodies = await far.next(CALL)
    assert bodies == [[[8], {"b": 1}]] and item[8] == {"user": "ada", "token": "secret"} and item[5] <= 3
    assert given == {"user": "ada"}
    far.reply(item[1], 9)
    assert await asked == -9
    assert seen == [
        ("sign", "request", "math", "add"),
        ("double", {"user": "ada", "token": "secret"}),
    ]
    asked = start(dealer.add(4))  # attribute style goes through them, too
    _, item, bodies = await far.next(CALL)
    assert bodies == [[[8], {}]]
    far.reply(item[1], 1)
    assert await asked == -1
    far.require_idle(dealer)


async def test_an_interceptor_may_answer_refuse_and_try_again() -> None:
    async def decide(outgoing: Outgoing, proceed: Proceed) -> Any:
        if outgoing.method == "cached":
            return "from here"
        if outgoing.method == "forbidden":
            raise PermissionError("not you")
        try:
            return await proceed()
        except RemoteError:
            return await proceed()

    far = FarEnd()
    dealer = far.dealer(interceptors=[decide])
    assert await dealer.request("cached") == "from here"
    with pytest.raises(PermissionError):
        await dealer.request("forbidden")
    asked = start(dealer.request("add"))
    _, item, _ = await far.next(CALL)
    far.fault(item[1], "error", "broken")
    _, item, _ = await far.next(CALL)
    far.reply(item[1], "second")
    assert await asked == "second"
    far.require_idle(dealer)


async def test_streams_and_surveys_are_intercepted_too() -> None:
    async def wrap(outgoing: Outgoing, proceed: Proceed) -> Any:
        outgoing.headers["kind"] = outgoing.kind
        source = await proceed()

        async def shout() -> AsyncIterator[Any]:
            async with source:
                async for item in source:
                    yield (outgoing.kind, item)

        return shout()

    far = FarEnd()
    dealer = far.dealer(interceptors=[wrap])
    reading = start(collect(dealer.stream("count", 2)))
    _, item, _ = await far.next(CALL)
    assert item[8] == {"kind": "stream"}
    far.yields(item[1], 0, 1)
    far.end(item[1])
    assert await reading == [("stream", 0), ("stream", 1)]
    reading = start(collect(dealer.survey("ping")))
    _, item, _ = await far.next(CALL)
    far.reply(item[1], "pong")
    assert [(kind, answer.value) for kind, answer in await reading] == [("survey", "pong")]
    stream = dealer.stream("count")
    first = start(anext(stream))
    _, item, _ = await far.next(CALL)
    far.yields(item[1], 0)
    assert await first == ("stream", 0)
    await stream.aclose()
    assert (await far.next(CANCEL))[1] == [CANCEL, [item[1]]]
    with pytest.raises(Cancelled, match=r"math\.count: given up"):
        await anext(stream)
    unused = dealer.stream("count")
    await unused.aclose()
    with pytest.raises(Cancelled):
        await anext(unused)
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_cancelling_goes_through_interceptors() -> None:
    async def plain(outgoing: Outgoing, proceed: Proceed) -> Any:
        return await proceed()

    far = FarEnd()
    dealer = far.dealer(interceptors=[plain, plain])
    asked = start(outcome(dealer.request("add")))
    await far.next(CALL)
    asked.cancel()
    await far.next(CANCEL)
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("how", ["cancelled", "aclose", "stubborn"])
async def test_interceptors_of_a_stream_that_is_given_up_are_stopped(how: str) -> None:
    stopped = []

    async def peek(outgoing: Outgoing, proceed: Proceed) -> Any:
        source = await proceed()
        try:
            assert await anext(source) == 0
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(outgoing.kind)
            if how != "stubborn":
                raise
        return source

    far = FarEnd()
    dealer = far.dealer(interceptors=[peek])
    stream = dealer.stream("count")
    first, second = start(anext(stream)), start(outcome(anext(stream)))
    _, call, _ = await far.next(CALL)
    far.yields(call[1], 0)
    await far.rest()
    if how == "cancelled":
        first.cancel()
    else:
        await stream.aclose()
    assert type(await second) is Cancelled
    await asyncio.wait({first})
    assert first.cancelled() if how == "cancelled" else isinstance(first.exception(), Cancelled)
    assert stopped == ["stream"]
    if how == "stubborn":
        assert (await far.next(CANCEL))[1] == [CANCEL, [call[1]]]
        far.require_idle(dealer)
    with pytest.raises(Cancelled):
        await anext(stream)


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_items_that_nobody_took_may_go_out_again(asynchronous: bool) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    async def again(outgoing: Outgoing, proceed: Proceed) -> Any:
        try:
            return await proceed()
        except RemoteError:
            if outgoing.method == "other":
                outgoing.options["items"] = iter([1])
            return await proceed()

    far = FarEnd()
    dealer = far.dealer(interceptors=[again])
    for method, taken, fine in (("total", False, True), ("total", True, False), ("other", True, True)):
        items = numbers() if asynchronous else iter([1])
        asked = start(outcome(dealer.request(method, items=items)))
        _, call, _ = await far.next(CALL)
        if taken:
            far.takes(call[1], 16)
            await far.next(UP_ITEMS)
        far.fault(call[1], "error", "broken")
        if fine:
            _, call, _ = await far.next(CALL)
            far.takes(call[1], 16)
            assert (await far.next(UP_ITEMS))[2] == [1]
            far.reply(call[1], "second")
            assert await asked == "second"
        else:
            assert type(await asked) is ConfigurationError
        await far.rest()
        far.require_idle(dealer)


@pytest.mark.parametrize("given", [[5], [lambda outgoing, proceed: None], "abc", 7])
async def test_wrong_interceptors_are_explained(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"dealer\('math', interceptors=\) takes"):
        FarEnd().dealer(interceptors=given)


async def test_without_interceptors_there_is_nothing_of_them() -> None:
    assert type(FarEnd().dealer()) is Dealer
    dealer = FarEnd().dealer(interceptors=[outcome])
    with pytest.raises(ConfigurationError, match=r"request\(headers=\) takes a dict"):
        await dealer.request("add", headers=5)  # type: ignore[arg-type]
