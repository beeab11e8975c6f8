"""What a dealer has under way: how much that may be, and who waits in line for room."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshmsg import Cancelled, DeadlineExceeded, NodeClosed
from meshmsg.engine.call import Call
from meshmsg.wire.items import CALL
from tests.sockets.far_end import FarEnd, outcome


def start(coroutine: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(coroutine)


@pytest.mark.guarantee("G5")
async def test_further_requests_wait_in_line() -> None:
    far = FarEnd()
    dealer = far.dealer(max_pending=2)
    asked = [start(outcome(dealer.request("add", number))) for number in range(6)]
    order = []
    for _ in range(6):
        _, item, bodies = await far.next(CALL)
        for place, (args, _) in enumerate(bodies):
            order.append(args[0])
            assert far.calls.pending <= 2
            far.reply(item[1] + place, args[0])
        await far.rest()
        if len(order) == 6:
            break
    assert order == list(range(6)) and await asyncio.gather(*asked) == order
    far.require_idle(dealer)


@pytest.mark.guarantee("G5")
async def test_who_gives_up_leaves_nothing_in_line() -> None:
    far = FarEnd()
    dealer = far.dealer(max_pending=1)
    asked = [start(outcome(dealer.request("add", number, timeout=None))) for number in range(50)]
    while len(dealer._under_way._line) < 49:
        await asyncio.sleep(0)
    for task in asked[2:]:
        task.cancel()
    await asyncio.wait(asked[2:])
    assert len(dealer._under_way._line) == 1  # though no room has come
    _, item, _ = await far.next(CALL)
    far.reply(item[1], "first")
    _, item, bodies = await far.next(CALL)
    assert bodies[0][0] == [1]
    far.reply(item[1], "second")
    assert await asyncio.gather(*asked[:2]) == ["first", "second"]
    far.require_idle(dealer)


@pytest.mark.guarantee("G5", "G8")
async def test_who_waits_for_room_may_be_cancelled_or_run_out_of_time() -> None:
    far = FarEnd()
    dealer = far.dealer(max_pending=1)
    asked = [
        start(outcome(dealer.request("add", number, timeout=timeout)))
        for number, timeout in enumerate((None, None, 0.02, None, None))
    ]
    _, item, _ = await far.next(CALL)
    await far.rest()
    asked[1].cancel()
    error = await asked[2]
    assert type(error) is DeadlineExceeded and "max_pending=1" in str(error) and error.method == "add"
    far.reply(item[1], "first")
    far.driver.turn()  # the room is given to the fourth, which is cancelled before it knows
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked[3].cancel()
    _, item, bodies = await far.next(CALL)
    if bodies[0][0] == [3]:  # it had left already
        _, item, bodies = await far.next(CALL)
    assert bodies[0][0] == [4]
    far.reply(item[1], "last")
    assert await asked[0] == "first" and await asked[4] == "last"
    assert asked[1].cancelled() and asked[3].cancelled()
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_those_in_line_run_out_of_time_each_for_itself() -> None:
    far = FarEnd()
    dealer = far.dealer(max_pending=1)
    first = start(outcome(dealer.request("add", 0)))
    patient = start(outcome(dealer.request("add", 1, timeout=60.0)))
    asked = [start(outcome(dealer.request("add", 2, timeout=timeout))) for timeout in (0.02, 0.04, 0.01, 0.02)]
    errors = await asyncio.gather(*asked)
    assert [type(error) for error in errors] == [DeadlineExceeded] * 4
    assert str(errors[0]).startswith("math.add found no room in time: max_pending=1 requests were under way: ")
    assert not patient.done() and len(dealer._under_way.driver.deadlines) == 1
    for done in (first, patient):
        _, item, _ = await far.next(CALL)
        far.reply(item[1], "done")
        assert await done == "done"
    assert not dealer._under_way.driver.deadlines
    far.require_idle(dealer)


async def test_those_in_line_leave_together() -> None:
    far = FarEnd()
    dealer = far.dealer(max_pending=10)
    asked = [start(outcome(dealer.request("add", number))) for number in range(30)]
    runs = []
    while len(runs) < 3:
        _, item, _ = await far.next(CALL)
        runs.append(item[2])
        for number in range(item[1], item[1] + item[2]):
            far.reply(number, number)
    assert runs == [10, 10, 10], "one run each, as their deadlines are the same"
    await asyncio.gather(*asked)
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("who", ["dealer", "node"])
async def test_who_waits_for_room_hears_of_the_close(who: str) -> None:
    far = FarEnd()
    dealer = far.dealer(max_pending=1, timeout=None)
    asked = [start(outcome(dealer.request("add", number))) for number in range(3)]
    await far.rest()
    if who == "dealer":
        await dealer.close()
    else:
        far.close()
    assert [type(error) for error in await asyncio.gather(*asked)] == [Cancelled, NodeClosed, NodeClosed]
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_room_that_comes_before_the_wait_begins_is_room() -> None:
    far = FarEnd()
    dealer = far.dealer(max_pending=1)
    under_way = dealer._under_way
    first, second = (Call("math", "add", b"", 1.0, dealer.options, None) for _ in range(2))
    under_way.start(first)
    waiting = start(under_way.wait_for_room(second))  # as a thread's request does, by a task of its own
    under_way.give_up(first)
    await asyncio.wait_for(waiting, 5)
    assert not under_way._line and not under_way.full
