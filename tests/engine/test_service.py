"""A service's queue: what fits, what is refused, and what is kept of calls that were given up."""

from __future__ import annotations

import pytest

from meshmsg.engine.service import MAX_GIVEN_UP, MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S
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
