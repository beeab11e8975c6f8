"""A service's queue: what fits, what is refused, and what is kept of calls that were given up."""

from __future__ import annotations

import pytest

from meshmsg.engine.service import MAX_GIVEN_UP, MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S
from meshmsg.options import RouterOptions
from meshmsg.wire import items
from tests.engine.service_desk import PLAIN, Desk

pytestmark = pytest.mark.guarantee("G8")


def test_calls_beyond_the_queue_are_refused_at_once() -> None:
    desk = Desk(concurrency=2, max_queue=3)
    first = desk.call(*[PLAIN] * 7)
    told = desk.told()
    assert [item[1] for item in told] == [first + 5, first + 6]
    for item in told:
        assert item[2] == "overloaded" and item[7] == items.NEVER_RAN
        assert MIN_RETRY_AFTER_S <= item[6] <= MAX_RETRY_AFTER_S
    desk.take()
    desk.call()
    assert desk.fault()["code"] == "overloaded"  # one runs, four wait
    desk.serving.on_cancel("a.1", [first + 4])
    desk.call()
    assert desk.told() == []
    assert (desk.math.overloaded, desk.math.requests, desk.math.errors) == (3, 9, 0)
    assert len(desk.take_all()) == 4


def test_without_a_queue_calls_run_as_long_as_workers_are_free() -> None:
    desk = Desk(concurrency=1, max_queue=0)
    desk.call()
    served = desk.take()
    desk.call()
    assert desk.fault()["code"] == "overloaded"
    desk.serving.reply(served, b"\x01")
    desk.told()
    desk.call()
    assert desk.told() == [] and desk.take()


def test_when_to_come_back_follows_the_pace() -> None:
    desk = Desk(concurrency=1, max_queue=99)
    desk.call(*[PLAIN] * 100)
    for _ in range(10):
        desk.now += 0.02
        desk.serving.reply(desk.take(), b"\x01")
    desk.told()
    desk.call(*[PLAIN] * 11)  # 100 wait for 20 ms each
    assert desk.fault()["retry_after"] == pytest.approx(100 * 0.02)
    desk.now += 60.0
    desk.call()
    assert desk.fault()["retry_after"] == MAX_RETRY_AFTER_S


def test_given_up_calls_do_not_fill_the_queue() -> None:
    """Every worker hangs, and callers try, give up, and try again."""
    desk = Desk(concurrency=1, max_queue=10)
    desk.call()
    desk.take()
    for _ in range(2000):
        number = desk.call()
        desk.serving.on_cancel("a.1", [number])
        desk.serving.check()
        assert len(desk.math.queue) <= MAX_GIVEN_UP + 1
    kept = desk.call()
    assert [served.number for served in desk.take_all()] == [kept]


def test_a_queue_has_a_limit_in_bytes_too() -> None:
    desk = Desk(concurrency=1, max_queue=100, max_queue_bytes=1000)
    desk.call(*[PLAIN] * 6, size_bytes=6 * 400)
    told = desk.told()  # one begins at once, 800 bytes wait
    assert [item[1:3] for item in told] == [[number, "overloaded"] for number in (3, 4, 5)]
    assert all(item[7] == items.NEVER_RAN for item in told)
    assert (desk.math.waiting, desk.math.waiting_bytes) == (3, 800)
    desk.call(size_bytes=200)
    assert desk.told() == []
    desk.call(size_bytes=1)
    assert desk.fault()["code"] == "overloaded"
    desk.serving.on_cancel("a.1", [1])
    assert desk.math.waiting_bytes == 600
    served = desk.take()
    assert desk.math.waiting_bytes == 600  # that one never waited
    desk.serving.reply(served, b"\x01")
    desk.take()
    assert desk.math.waiting_bytes == 200
    desk.told()


def test_a_queue_takes_one_call_of_any_size() -> None:
    desk = Desk(concurrency=2, max_queue=100, max_queue_bytes=1000)
    desk.call(*[PLAIN] * 4, size_bytes=4 * 2**21)
    [item] = desk.told()
    assert item[1] == 3 and "with 2 MiB of arguments" in item[4]
    assert len(desk.take_all()) == 3
    assert desk.math.waiting_bytes == 0


def test_workers_that_hang_in_calls_that_are_over_take_room() -> None:
    desk = Desk(concurrency=2, max_queue=1)
    hanging = 0
    desk.math.count_busy = lambda: hanging
    first = desk.call(PLAIN, PLAIN)
    desk.take_all()
    desk.serving.on_cancel("a.1", [first, first + 1])
    assert desk.math.running == 0 and desk.math.admit(10, 0) == (3, 2)
    hanging = 2
    assert desk.math.admit(10, 0) == (1, 0)
    desk.now += 2.0
    desk.call(PLAIN, PLAIN)
    fault = desk.fault()
    assert "2 requests run and 1 wait" in fault["message"]
    hanging = 0
    assert desk.take()


def test_where_nothing_waits_callers_come_back_when_what_runs_may_be_through() -> None:
    desk = Desk(concurrency=1, max_queue=0)
    desk.call()
    desk.take()
    desk.now += 2.0
    desk.call()
    assert desk.fault()["retry_after"] == 2.0


def test_some_methods_have_a_queue_of_their_own() -> None:
    desk = Desk(concurrency=1, max_queue=0)
    apart = desk.math.set_apart(["ping"], RouterOptions(concurrency=1, max_queue=1))
    desk.call()
    desk.take()
    desk.call(PLAIN, PLAIN, PLAIN, method="ping")
    assert desk.fault()["code"] == "overloaded"
    assert (desk.math.waiting, apart.waiting, apart.requests) == (0, 2, 3)
    served = apart.take(desk.now)
    assert served is not None and (served.service, served.method) == ("math", "ping")
    desk.serving.reply(served, b"\x01")
    assert desk.told()[0][0] == items.RESULT
    desk.serving.close("math")
    assert desk.fault()["code"] == "unavailable"
