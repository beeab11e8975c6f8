"""One timer ends every wait whose time is over, and costs nothing for those that end before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from meshmsg.deadlines import Deadlines


class Timer:
    """What ``call_at`` returns."""

    def __init__(self, when: float, callback: Callable[[], Any]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Hand:
    """A loop whose clock is moved by hand, and which rings as early as it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], Any], /) -> Timer:
        self.timers.append(Timer(when, callback))
        return self.timers[-1]

    @property
    def armed(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def move_to(self, now: float, early: float = 0.0) -> None:
        """Moves the clock, and rings what is due."""
        self.now = now
        for timer in self.armed:
            if timer.when - early <= now:
                self.timers.remove(timer)
                timer.callback()


@pytest.fixture
def hand() -> Hand:
    return Hand()


def make_futures(count: int) -> list[asyncio.Future[None]]:
    loop = asyncio.get_running_loop()
    return [loop.create_future() for _ in range(count)]


async def test_each_wait_ends_at_its_own_time(hand: Hand) -> None:
    deadlines = Deadlines(hand)
    late, soon, sooner = make_futures(3)
    deadlines.put(late, 109.0)
    deadlines.put(soon, 103.0)
    deadlines.put(sooner, 101.0)
    assert [timer.when for timer in hand.armed] == [101.0]  # one at a time
    for now, ended in ((101.0, [sooner]), (103.5, [soon, sooner]), (109.0, [late, soon, sooner])):
        hand.move_to(now)
        assert [future for future in (late, soon, sooner) if future.done()] == ended
    assert not hand.armed and not deadlines
    for future in (late, soon, sooner):
        with pytest.raises(TimeoutError):
            await future


async def test_a_wait_that_ended_is_left_alone_and_its_timer_serves_the_next(hand: Hand) -> None:
    deadlines = Deadlines(hand)
    for at in range(110, 1110):
        (future,) = make_futures(1)
        deadlines.put(future, float(at))
        future.set_result(None)
        deadlines.discard(future)
    assert [timer.when for timer in hand.timers] == [110.0]  # a thousand waits, one timer
    waiting, answered = make_futures(2)
    deadlines.put(waiting, 120.0)
    deadlines.put(answered, 115.0)
    answered.set_result(None)  # and not discarded yet, when its time comes
    hand.move_to(110.0)
    assert [timer.when for timer in hand.armed] == [115.0]
    hand.move_to(115.0)
    assert not waiting.done() and [timer.when for timer in hand.armed] == [120.0]
    hand.move_to(120.0)
    assert waiting.done() and not hand.armed
    with pytest.raises(TimeoutError):
        await waiting


async def test_a_loop_that_rings_a_moment_early_rings_again(hand: Hand) -> None:
    deadlines = Deadlines(hand)
    (future,) = make_futures(1)
    deadlines.put(future, 101.0)
    hand.move_to(100.9995, early=0.001)
    assert not future.done()
    hand.move_to(101.0)
    with pytest.raises(TimeoutError):
        await future


async def test_after_the_stop_nothing_ends(hand: Hand) -> None:
    deadlines = Deadlines(hand)
    (future,) = make_futures(1)
    deadlines.put(future, 101.0)
    deadlines.stop()
    hand.move_to(200.0)
    assert not future.done() and not hand.armed
