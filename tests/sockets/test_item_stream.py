"""Streams and surveys: what is iterated, how it ends, and that giving up reaches the other side (G8)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from meshmsg import (
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    NodeClosed,
    NoResponders,
    PeerLost,
    RemoteError,
    RequestError,
    WrongThread,
)
from meshmsg.engine.streams import WINDOW_ITEMS
from meshmsg.wire.codec import Undecodable
from meshmsg.wire.items import CALL, CANCEL, CREDIT, UP_END, UP_ITEMS, WANTS_ITEMS
from tests.sockets.far_end import FarEnd, outcome


def start(coroutine: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(coroutine)


async def collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


# --- streams ------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G8")
async def test_a_stream_brings_every_item_in_order() -> None:
    far = FarEnd()
    dealer = far.dealer()
    stream = dealer.stream("count", 3, by=1)
    await far.rest()
    assert far.sent == []  # it begins with the first item
    reading = start(collect(stream))
    _, item, bodies = await far.next(CALL)
    assert bodies == [[[3], {"by": 1}]] and item[5:8] == [None, WANTS_ITEMS, WINDOW_ITEMS]
    far.yields(item[1], 0, 1)
    await far.rest()
    far.yields(item[1], 2)
    far.end(item[1])
    assert await reading == [0, 1, 2]
    far.require_idle(dealer)


@pytest.mark.guarantee("G5")
async def test_a_slow_reader_gives_no_credit() -> None:
    far = FarEnd()
    stream = far.dealer().stream("count")
    reading = start(anext(stream))
    _, call, _ = await far.next(CALL)
    far.yields(call[1], *range(WINDOW_ITEMS))
    assert await reading == 0
    await far.rest()
    assert far.count(CREDIT) == 0
    for expected in range(1, WINDOW_ITEMS // 2):
        assert await anext(stream) == expected
    _, credit, _ = await far.next(CREDIT)
    assert credit == [CREDIT, call[1], WINDOW_ITEMS + WINDOW_ITEMS // 2, WINDOW_ITEMS // 2]
    await stream.aclose()


@pytest.mark.guarantee("G8")
async def test_items_before_an_error_are_not_lost() -> None:
    far = FarEnd()
    dealer = far.dealer()
    stream = dealer.stream("count")
    reading = start(anext(stream))
    _, call, _ = await far.next(CALL)
    far.yields(call[1], 0, 1)
    far.fault(call[1], "error", "broken")
    assert await reading == 0
    assert await anext(stream) == 1
    for _ in range(2):  # and who asks again must not take it for a good end
        with pytest.raises(RemoteError, match="broken") as caught:
            await anext(stream)
        assert (caught.value.method, caught.value.peer) == ("count", "b1")
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_a_stream_ends_with_its_peer_its_deadline_and_its_node() -> None:
    far = FarEnd("b1")
    dealer = far.dealer(max_pending=1)
    for kind, end in (
        (DeadlineExceeded, lambda: far.pass_time(2)),
        (PeerLost, lambda: far.lose("b1")),
        (NoResponders, lambda: None),
    ):
        reading = start(outcome(anext(dealer.stream("count", timeout=1))))
        await far.rest()
        end()
        assert type(await reading) is kind
        far.require_idle(dealer)
    far.calls.on_peer("b2-id.1", "b2", {"math": {}}, alive=True)
    stream = dealer.stream("count")
    unread = dealer.stream("count")
    reading = start(outcome(anext(stream)))
    await far.rest()
    far.close()
    assert type(await reading) is Cancelled
    with pytest.raises(Cancelled, match="the node was closed"):
        await anext(stream)
    with pytest.raises(NodeClosed):
        await anext(unread)
    await stream.aclose()
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("how", ["aclose", "with", "forgotten", "cancelled", "dealer"])
async def test_giving_a_stream_up_reaches_the_method(how: str) -> None:
    far = FarEnd()
    dealer = far.dealer()
    stream: Any = dealer.stream("count")
    reading = start(anext(stream))
    _, call, _ = await far.next(CALL)
    far.yields(call[1], 0)
    assert await reading == 0
    far.yields(call[1], 1)
    if how == "aclose":
        await stream.aclose()
    elif how == "with":
        async with stream:
            pass
    elif how == "forgotten":
        del reading
        gc.disable()
        try:
            stream = None  # nothing but this name may hold it, or it would wait for the collector
            await far.rest()
        finally:
            gc.enable()
    elif how == "cancelled":
        assert await anext(stream) == 1
        reading = start(anext(stream))
        await far.rest()
        reading.cancel()
        await asyncio.wait({reading})
    else:
        await dealer.close()
    assert (await far.next(CANCEL))[1] == [CANCEL, [call[1]]]
    if stream is not None:
        if how == "dealer":
            assert await anext(stream) == 1
        with pytest.raises(Cancelled):
            await anext(stream)
        await stream.aclose()
    far.yields(call[1], 2)
    assert far.calls.late_replies == 1
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_a_stream_closed_before_it_begins_never_does() -> None:
    far = FarEnd()
    dealer = far.dealer(max_pending=1)
    unused = dealer.stream("count")
    await unused.aclose()
    with pytest.raises(Cancelled):
        await anext(unused)
    asked = start(dealer.request("add"))
    _, call, _ = await far.next(CALL)
    waiting = dealer.stream("count")
    reading = start(anext(waiting))  # waits for room
    await far.rest()
    reading.cancel()
    await asyncio.wait({reading})
    far.reply(call[1], 1)
    await asked
    await far.rest()
    assert far.count(CALL) == 0
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_a_stream_whose_beginning_failed_says_so_each_time() -> None:
    far = FarEnd()
    dealer = far.dealer(max_pending=1)
    first = start(outcome(dealer.request("add", 1)))
    await far.rest()
    for stream in (dealer.stream("count", timeout=0.01), dealer.stream("count", timeout=0.01)):
        for _ in range(3):
            with pytest.raises(DeadlineExceeded, match="found no room"):
                await anext(stream)
    late = dealer.stream("count")
    await dealer.close()
    for _ in range(3):
        with pytest.raises(NodeClosed):
            await anext(late)
    await first


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("how", ["time", "aclose", "cancelled"])
async def test_all_readers_hear_that_a_stream_did_not_begin(how: str) -> None:
    far = FarEnd()
    dealer = far.dealer(max_pending=1)
    first = start(outcome(dealer.request("add", 1)))
    _, call, _ = await far.next(CALL)
    stream = dealer.stream("count", timeout=0.01 if how == "time" else None, items=[1])
    readers = [start(outcome(anext(stream))) for _ in range(3)]
    await far.rest()
    if how == "aclose":
        await stream.aclose()
    elif how == "cancelled":
        readers[0].cancel()
    if how != "time":
        far.reply(call[1], 1)  # so that there is room
    await asyncio.wait(readers)
    errors = {type(reader.result()) for reader in readers if not reader.cancelled()}
    assert errors == {DeadlineExceeded if how == "time" else Cancelled}
    if how == "time":
        far.reply(call[1], 1)
    assert await first == 1
    await far.rest()
    assert far.count(CALL) == 0
    far.require_idle(dealer)


async def test_several_tasks_may_read_one_stream() -> None:
    far = FarEnd()
    dealer = far.dealer()
    stream = dealer.stream("count")
    readers = [start(collect(stream)) for _ in range(3)]
    _, call, _ = await far.next(CALL)
    for number in range(10):
        far.yields(call[1], number)
        await far.rest()
    far.end(call[1])
    read = await asyncio.gather(*readers)
    assert sorted(number for part in read for number in part) == list(range(10))
    assert far.count(CALL) == 0
    far.require_idle(dealer)


async def test_an_item_that_cannot_be_read_ends_nothing() -> None:
    far = FarEnd()
    dealer = far.dealer()
    stream = dealer.stream("count")
    reading = start(anext(stream))
    _, call, _ = await far.next(CALL)
    far.yields(call[1], Undecodable("too deep"), 1)
    far.end(call[1])
    with pytest.raises(RequestError, match=r"math\.count: an item cannot be read: too deep"):
        await reading
    assert await collect(stream) == [1]
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_a_stream_may_go_both_ways() -> None:
    far = FarEnd()
    dealer = far.dealer()
    stream = dealer.stream("echo", items=[1, 2])
    reading = start(collect(stream))
    _, call, _ = await far.next(CALL)
    far.takes(call[1], 16)
    _, _, bodies = await far.next(UP_ITEMS)
    await far.next(UP_END)
    far.yields(call[1], *bodies)
    far.end(call[1])
    assert await reading == [1, 2]
    await far.rest()
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_items_that_fail_end_a_stream_for_its_reader() -> None:
    async def numbers() -> AsyncIterator[Any]:
        yield 1
        raise KeyError("no more")

    far = FarEnd()
    dealer = far.dealer()
    reading = start(collect(dealer.stream("echo", items=numbers())))
    _, call, _ = await far.next(CALL)
    far.takes(call[1], 16)
    with pytest.raises(KeyError, match="no more"):
        await reading
    assert (await far.next(CANCEL))[1] == [CANCEL, [call[1]]]
    await far.rest()
    far.require_idle(dealer)


async def test_a_stream_is_read_in_its_loop() -> None:
    def step(coroutine: Any) -> None:
        try:
            coroutine.send(None)
        finally:
            coroutine.close()

    far = FarEnd()
    dealer = far.dealer()
    stream = dealer.stream("count")
    reading = start(anext(stream))
    _, call, _ = await far.next(CALL)
    far.yields(call[1], 1, 2)
    assert await reading == 1
    for use in (lambda: step(anext(stream)), lambda: step(stream.aclose())):
        with pytest.raises(WrongThread):
            await asyncio.to_thread(use)
    assert await anext(stream) == 2
    await stream.aclose()


# --- surveys ------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G8")
async def test_a_survey_brings_one_answer_of_each() -> None:
    far = FarEnd("b1", "b2", "b3", "b4")
    dealer = far.dealer()
    answers = start(collect(dealer.survey("ping", 7, timeout=2, headers={"a": 1})))
    calls = {}
    for _ in range(4):
        name, item, bodies = await far.next(CALL)
        assert bodies == [[[7], {}]] and item[8] == {"a": 1} and 0 < item[5] <= 2
        calls[name] = item[1]
    far.reply(calls["b2"], "pong", "b2")
    far.fault(calls["b1"], "bad_request", "no", "b1")
    far.lose("b3")
    await far.rest()
    far.pass_time(3)
    by_peer = {answer.peer: answer for answer in await answers}
    assert len(by_peer) == 4 and by_peer["b2"] == ("b2", "pong", None, "b2-id")
    kinds = {name: type(answer.error) for name, answer in by_peer.items() if name != "b2"}
    assert kinds == {"b1": BadRequest, "b3": PeerLost, "b4": DeadlineExceeded}
    assert (await far.next(CANCEL))[0] == "b4"
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_who_does_not_serve_is_surveyed_about_itself() -> None:
    far = FarEnd("b1", "b2")
    far.calls.on_peer("b2-id.1", "b2", {"math": {"serving": False}}, alive=True)
    dealer = far.dealer()
    answers = start(collect(dealer.survey("stats")))
    for name in ("b1", "b2"):
        asked, item, _ = await far.next(CALL)
        assert asked == name
        far.reply(item[1], {}, name)
    assert {answer.peer for answer in await answers} == {"b1", "b2"}
    answers = start(collect(dealer.survey("add")))
    _, item, _ = await far.next(CALL)
    far.reply(item[1], 1)
    assert {answer.peer for answer in await answers} == {"b1"}
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_a_survey_asks_who_is_suspect_when_it_is_back() -> None:
    far = FarEnd("b1")
    for name in ("b2", "b3", "b4"):
        far.calls.on_peer(f"{name}-id.1", name, {"math": {}}, alive=False, suspect=True)
    dealer = far.dealer()
    answers = start(collect(dealer.survey("add", timeout=2)))
    name, item, _ = await far.next(CALL)
    far.reply(item[1], 1, name)
    await far.rest()
    assert name == "b1" and far.count(CALL) == 0 and not answers.done()
    far.calls.on_peer("b2-id.1", "b2", {"math": {}}, alive=True)
    far.lose("b3")
    name, item, _ = await far.next(CALL)
    far.reply(item[1], 2, name)
    await far.rest()
    far.pass_time(3)
    by_peer = {answer.peer: answer for answer in await answers}
    assert {name: answer.value for name, answer in by_peer.items()} == {"b1": 1, "b2": 2, "b3": None, "b4": None}
    gone, silent = by_peer["b3"].error, by_peer["b4"].error
    assert isinstance(gone, NoResponders) and "'b3' was suspect, and does not serve any more" in str(gone)
    assert (gone.service, gone.method) == ("math", "add")
    assert isinstance(silent, DeadlineExceeded) and "was not sent within 2 s" in str(silent)
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_a_survey_of_nobody_says_so() -> None:
    far = FarEnd()
    far.lose()
    dealer = far.dealer()
    with pytest.raises(NoResponders, match="nobody serves 'math' now") as caught:
        await collect(dealer.survey("ping"))
    assert (caught.value.service, caught.value.method) == ("math", "ping")
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("how", ["aclose", "forgotten", "cancelled"])
async def test_giving_a_survey_up_reaches_everybody(how: str) -> None:
    far = FarEnd("b1", "b2", "b3")
    dealer = far.dealer()
    survey: Any = dealer.survey("ping")
    reading = start(anext(survey))
    name, call, _ = await far.next(CALL)
    far.reply(call[1], "pong", name)
    assert (await reading).peer == name
    if how == "aclose":
        await survey.aclose()
    elif how == "forgotten":
        del reading
        gc.disable()
        try:
            survey = None
            await far.rest()
        finally:
            gc.enable()
    else:
        reading = start(anext(survey))
        await far.rest()
        reading.cancel()
        await asyncio.wait({reading})
    assert {(await far.next(CANCEL))[0] for _ in range(2)} == {"b1", "b2", "b3"} - {name}
    if survey is not None:  # some did not answer: this is no good end
        with pytest.raises(Cancelled, match=r"math\.ping: given up"):
            await anext(survey)
    far.require_idle(dealer)
