"""Virtual time: order, holds, jumps."""

from __future__ import annotations

import pytest

from meshmsg.testing import VirtualClock
from meshmsg.testing.clock import ProcessLoop


def test_callbacks_run_in_the_order_of_their_times_and_then_of_asking() -> None:
    clock, seen = VirtualClock(), []
    clock.call_at(2.0, lambda: seen.append("b"))
    clock.call_at(1.0, lambda: seen.append("a"))
    clock.call_at(2.0, lambda: seen.append("c"))
    clock.call_soon(lambda: seen.append("now"))
    clock.run_until(1.5)
    assert seen == ["now", "a"] and clock.time() == 1.5
    clock.run_until(2.0)
    assert seen == ["now", "a", "b", "c"]


def test_a_cancelled_timer_is_silent() -> None:
    clock, seen = VirtualClock(), []
    clock.call_later(1.0, lambda: seen.append("x")).cancel()
    clock.run_until(5.0)
    assert seen == []


def test_a_circle_is_noticed() -> None:
    clock = VirtualClock()
    clock.max_steps = 100

    def again() -> None:
        clock.call_soon(again)

    again()
    with pytest.raises(RuntimeError, match="round in circles"):
        clock.run_until(1.0)


def test_a_held_loop_runs_nothing_until_its_last_hold_ends() -> None:
    clock, seen = VirtualClock(), []
    loop = ProcessLoop(clock)
    loop.call_at(1.0, lambda: seen.append("timer"))
    loop.hold("a")
    loop.hold("b")
    loop.call_soon(lambda: seen.append("soon"))
    clock.run_until(2.0)
    loop.release("a")
    clock.run_until(3.0)
    assert seen == []
    loop.release("b")
    clock.run_until(3.0)
    assert seen == ["soon", "timer"]


def test_an_ended_loop_runs_nothing_ever() -> None:
    clock, seen = VirtualClock(), []
    loop = ProcessLoop(clock)
    loop.call_soon(lambda: seen.append("soon"))
    loop.call_at(1.0, lambda: seen.append("timer"))
    loop.end()
    clock.run_until(2.0)
    assert seen == []


def test_a_jump_rings_what_is_due_by_the_process_own_clock() -> None:
    clock, seen = VirtualClock(), []
    loop = ProcessLoop(clock)
    early = loop.call_at(10.0, lambda: seen.append(("early", loop.time())))
    loop.call_at(100.0, lambda: seen.append(("late", loop.time())))
    clock.run_until(1.0)
    loop.jump(30.0)
    clock.run_until(1.0)
    assert seen == [("early", 31.0)]
    early.cancel()
    clock.run_until(70.0)
    assert seen == [("early", 31.0), ("late", 100.0)]


def test_no_timer_rings_before_its_time_whatever_the_rounding() -> None:
    clock = VirtualClock()
    loop = ProcessLoop(clock)
    loop.jump(0.3)
    late: list[float] = []
    for step in range(1000):
        when = loop.time() + 0.1 * step
        loop.call_at(when, lambda when=when: late.append(loop.time() - when))
        clock.run_until(clock.now + 0.1 * step)
    assert len(late) > 900 and min(late) >= 0.0
