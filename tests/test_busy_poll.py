"""When a loop stays awake: after short waits, for a moment, and not otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import meshmsg
from meshmsg import busy_poll
from meshmsg.busy_poll import ASIDE_S, ASLEEP, ENOUGH, HELD_UP_S, LATE, MOST, BusyPoll

LIMIT_S, PASS_S = 0.003, 0.0003
SHORT_S, LONG_S = 0.001, 0.1


class FakeLoop:
    """Runs what was asked for when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ready: list[Callable[[], Any]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], Any], /) -> None:
        self.ready.append(callback)

    def pass_once(self) -> None:
        """One pass, in which time goes on a little."""
        self.now += PASS_S
        ready, self.ready = self.ready, []
        for callback in ready:
            callback()

    def passes_until_asleep(self) -> int:
        passes = 0
        while self.ready:
            self.pass_once()
            passes += 1
        return passes


class Bench:
    """A loop and its busy poll, and turns to note."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.poll = BusyPoll(self.loop, LIMIT_S, self.loop.time)

    def turn(self, *, after: float = 0.0, received: bool = False, sent: bool = False) -> None:
        end = self.loop.now + after
        while self.loop.ready and self.loop.now + PASS_S < end:
            self.loop.pass_once()
        self.loop.now = end
        self.poll.note(received, sent)

    def learn(self) -> None:
        """As many answers come soon as it takes."""
        for _ in range(ENOUGH):
            assert not self.awake
            self.turn(after=LONG_S, sent=True)
            self.turn(after=SHORT_S, received=True)

    @property
    def awake(self) -> bool:
        return bool(self.loop.ready)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_loop_stays_awake_for_an_answer_when_the_last_ones_came_soon(bench: Bench) -> None:
    bench.learn()
    assert not bench.awake, "nothing has been sent since"
    bench.turn(after=SHORT_S, sent=True)
    assert bench.awake


def test_who_has_work_to_do_in_between_sleeps(bench: Bench) -> None:
    bench.learn()
    bench.turn(after=LONG_S, sent=True)
    assert not bench.awake, "this is no quick exchange, and the work is what takes long"


def test_it_sleeps_when_the_limit_is_over(bench: Bench) -> None:
    bench.learn()
    bench.turn(sent=True)
    assert 9 <= bench.loop.passes_until_asleep() <= 11


def test_it_sleeps_when_the_answer_has_come(bench: Bench) -> None:
    bench.learn()
    bench.turn(sent=True)
    bench.turn(after=SHORT_S, received=True)
    assert bench.loop.passes_until_asleep() == 1


def test_who_answers_in_the_turn_of_the_question_waits_for_the_next(bench: Bench) -> None:
    for _ in range(ENOUGH + 1):
        assert not bench.awake
        bench.turn(after=SHORT_S, received=True, sent=True)
    assert bench.awake


def test_an_answer_that_comes_late_ends_it_until_others_come_soon_again(bench: Bench) -> None:
    bench.learn()
    bench.turn(sent=True)
    bench.turn(after=LONG_S, received=True)
    bench.loop.passes_until_asleep()
    for _ in range(LATE):
        bench.turn(sent=True)
        assert not bench.awake
        bench.turn(after=SHORT_S, received=True)
    bench.turn(sent=True)
    assert bench.awake


def test_one_late_answer_in_a_long_row_changes_nothing(bench: Bench) -> None:
    for _ in range(2 * MOST):
        bench.turn(sent=True)
        bench.turn(after=SHORT_S, received=True)
    bench.loop.passes_until_asleep()
    lates = 0
    while lates < MOST:
        bench.turn(sent=True)
        if not bench.awake:
            break
        bench.turn(after=LONG_S, received=True)
        bench.loop.passes_until_asleep()
        lates += 1
    assert lates == (MOST - ENOUGH) // LATE + 1


def test_each_message_that_leaves_begins_the_limit_anew(bench: Bench) -> None:
    bench.learn()
    bench.turn(sent=True)
    for _ in range(3):
        bench.turn(after=SHORT_S / 2, sent=True)
        bench.loop.pass_once()
    assert len(bench.loop.ready) == 1, "polls once a pass, however many messages left"
    assert 9 <= bench.loop.passes_until_asleep() <= 11


def test_who_is_not_answered_sleeps(bench: Bench) -> None:
    bench.learn()
    for _ in range(9):
        bench.turn(after=SHORT_S, sent=True)
    assert not bench.awake, "the answer to the first has not come for long"
    bench.turn(after=SHORT_S, received=True)
    bench.turn(after=SHORT_S, sent=True)
    assert not bench.awake, "one that came by chance changes nothing"


def test_a_wait_in_sleep_may_take_longer(bench: Bench) -> None:
    between = LIMIT_S * (1 + ASLEEP) / 2
    for _ in range(ENOUGH):
        bench.turn(sent=True)
        assert not bench.awake
        bench.turn(after=between, received=True)
    bench.turn(sent=True)
    assert bench.awake, "both sides would be faster if they were awake"
    bench.turn(after=between, received=True)
    bench.turn(sent=True)
    assert not bench.awake, "but that was tried, and the answer came no sooner"


def test_many_messages_that_leave_together_are_one_question(bench: Bench) -> None:
    for _ in range(ENOUGH):
        for _ in range(2 * LATE):
            bench.turn(after=PASS_S / 10, sent=True)
            assert not bench.awake
        bench.turn(after=LONG_S, received=True)


def test_answers_that_were_late_for_long_are_forgotten_soon(bench: Bench) -> None:
    for _ in range(MOST):
        bench.turn(sent=True)
        bench.turn(after=LONG_S, received=True)
    bench.learn()
    bench.turn(sent=True)
    assert bench.awake


def test_who_only_hears_sleeps(bench: Bench) -> None:
    for _ in range(2 * ENOUGH):
        bench.turn(after=SHORT_S, received=True)
        assert not bench.awake


def test_a_loop_that_others_hold_up_sleeps_for_a_while(bench: Bench) -> None:
    for _ in range(MOST):
        bench.turn(sent=True)
        bench.turn(after=SHORT_S, received=True)
    bench.turn(sent=True)
    bench.loop.now += 2 * HELD_UP_S  # one pass took that long: a thread had the GIL
    bench.loop.ready.pop()()
    assert not bench.awake
    bench.turn(sent=True)
    assert not bench.awake, "it would take that long again"
    bench.turn(received=True)
    bench.turn(after=ASIDE_S, received=True)
    bench.turn(sent=True)
    assert bench.awake


def test_a_turn_without_messages_is_none(bench: Bench) -> None:
    bench.learn()
    bench.turn(sent=True)
    bench.turn(after=SHORT_S)
    assert 6 <= bench.loop.passes_until_asleep() <= 8, "a timer's turn neither ends nor prolongs the wait"


def test_one_that_was_stopped_lets_the_loop_sleep(bench: Bench) -> None:
    bench.learn()
    bench.turn(sent=True)
    bench.poll.stop()
    assert bench.loop.passes_until_asleep() == 1


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """Gets longer with each look for news."""
    seen: list[None] = []
    let_go_first = busy_poll._let_others_go_first

    def count() -> None:
        seen.append(None)
        let_go_first()

    monkeypatch.setattr(busy_poll, "_let_others_go_first", count)
    yield seen


async def test_nodes_that_answer_each_other_stay_awake(polls: list[None]) -> None:
    async with (
        meshmsg.Node("server", mdns=False) as server,
        meshmsg.Node("client", mdns=False, seeds=server.endpoints, busy_poll=0.1) as client,
    ):
        server.pull("work")(lambda message: None)
        push = client.push("work")
        for number in range(2 * ENOUGH):
            await push.deliver(number, timeout=10)
    assert polls


async def test_nodes_that_are_told_to_sleep_do(polls: list[None]) -> None:
    async with (
        meshmsg.Node("server", mdns=False, busy_poll=0) as server,
        meshmsg.Node("client", mdns=False, seeds=server.endpoints, busy_poll=0) as client,
    ):
        server.pull("work")(lambda message: None)
        push = client.push("work")
        for number in range(2 * ENOUGH):
            await push.deliver(number, timeout=10)
    assert not polls


@pytest.mark.parametrize("wrong", [-1, 200, "soon", None, float("nan")])
def test_seconds_that_make_no_sense_are_refused(wrong: Any) -> None:
    with pytest.raises(meshmsg.ConfigurationError, match=r"Node\(busy_poll=\)"):
        meshmsg.Node("client", busy_poll=wrong)
