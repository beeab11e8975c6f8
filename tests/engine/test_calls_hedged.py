"""The caller's table: what ends a request that is hedged, whose hedges they are, and that they take nobody's turn."""

from __future__ import annotations

from collections import Counter

import pytest

from meshmsg.engine.faults import name_type
from meshmsg.errors import Overloaded, RemoteError, RequestError, Unavailable
from tests.engine.caller_desk import CallerDesk

pytestmark = pytest.mark.guarantee("G8")


def hedge(desk: CallerDesk) -> tuple[object, list[tuple[str, int]]]:
    """A call with two attempts under way."""
    call, name, number = desk.ask(repeatable=True, hedge_after=0.1)
    desk.turn(0.1)
    return call, [(name, number), *desk.asked()]


# -- what ends it --------------------------------------------------------------------------------------------

ANSWERS = [
    ("out_of_stock", "RemoteError"),
    ("error", "ValueError"),
    ("bad_request", "a"),
    ("bad_request", ""),
    ("overloaded", name_type(Overloaded("mine"))),
    ("unavailable", name_type(Unavailable("mine"))),
    ("no_such_method", "meshmsg.errors.NoSuchMethod"),
    ("deadline_exceeded", "meshmsg.errors.DeadlineExceeded"),
]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("code", "raised"), ANSWERS)
def test_an_error_that_is_an_answer_is_the_first_answer(code: str, raised: str, first: int) -> None:
    desk = CallerDesk("b", "c")
    call, attempts = hedge(desk)
    desk.fail(*attempts[first], code, raised=raised)
    with pytest.raises(RequestError) as caught:
        desk.outcome(call)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.peer) == (code, attempts[first][0])
    assert desk.cancelled() == [attempts[1 - first]]
    assert desk.at_rest()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("code", ["overloaded", "unavailable", "no_responders", "deadline_exceeded", "cancelled"])
def test_what_tells_of_no_answer_leaves_it_to_the_others(code: str, first: int) -> None:
    desk = CallerDesk("b", "c")
    call, attempts = hedge(desk)
    desk.fail(*attempts[first], code)
    assert not desk.cancelled()
    desk.reply(*attempts[1 - first])
    assert desk.outcome(call) == "yes"  # type: ignore[arg-type]
    assert desk.at_rest()


def test_a_method_that_says_when_to_come_back_leaves_it_to_the_others() -> None:
    desk = CallerDesk("b", "c")
    call, attempts = hedge(desk)
    desk.fail(*attempts[0], "overloaded", raised=name_type(Overloaded("mine", 1.0)), retry_after=1.0)
    desk.reply(*attempts[1])
    assert desk.outcome(call) == "yes"  # type: ignore[arg-type]


def test_an_answer_after_a_refusal_is_the_outcome() -> None:
    desk = CallerDesk("b", "c", "d")
    call, attempts = hedge(desk)
    desk.turn(0.1)
    attempts += desk.asked()
    desk.fail(*attempts[2], "unavailable")
    desk.fail(*attempts[1], "sold_out", raised="RemoteError")
    with pytest.raises(RemoteError):
        desk.outcome(call)  # type: ignore[arg-type]
    assert desk.cancelled() == [attempts[0]]
    assert desk.at_rest()


# -- whose hedges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hedged_first", [False, True])
def test_each_call_is_hedged_by_its_own_options(hedged_first: bool) -> None:
    """Also where several dealers of one service make a run."""
    desk = CallerDesk("b", "c")
    hows = [(None, b"plain"), (0.3, b"late"), (0.1, b"soon")]
    for hedge_after, body in reversed(hows) if hedged_first else hows:
        desk.call(peer=None, key=None, repeatable=True, hedge_after=hedge_after, body=body)
    desk.offer("c", serving=False)
    desk.turn()
    assert [item[2] for _, item, _ in desk.said] == [3], "one run"
    desk.offer("c")
    for seconds, expected in ((0.1, [b"soon"]), (0.2, [b"late"]), (5.0, [])):
        desk.said.clear()
        desk.turn(seconds)
        assert [bodies for _, _, bodies in desk.said] == [[each] for each in expected]


# -- what they take ------------------------------------------------------------------------------------------


def test_a_hedge_that_does_not_go_costs_nothing() -> None:
    desk = CallerDesk("b", "c")
    budget = desk.calls.clients("math").budget
    for _ in range(20):
        desk.offer("c")
        call, name, number = desk.ask(peer=None, repeatable=True, hedge_after=0.1, balance="least_outstanding")
        other = "bc".replace(name, "")
        desk.now += 0.1
        desk.calls.tick(desk.now)
        desk.offer(other, alive=False, suspect=True)  # after the hedge was decided, and before it leaves
        desk.turn()
        assert not desk.asked()
        desk.offer(other)
        desk.reply(name, number)
        assert desk.outcome(call) == "yes"
    assert desk.calls.hedged == 0
    assert sum(budget.take(desk.now) for _ in range(1000)) == 100 + 20 // 5, "nothing was taken of it"


@pytest.mark.parametrize("slow", ["b", "c", "d"])
def test_hedges_take_nobodys_turn(slow: str) -> None:
    """Else who is slow is always next, since each of its calls has a hedge."""
    desk = CallerDesk("b", "c", "d")
    first: Counter[str] = Counter()
    hedges: Counter[str] = Counter()
    for _ in range(90):
        _, name, number = desk.ask(balance="round_robin", repeatable=True, hedge_after=0.01)
        first[name] += 1
        desk.turn(0.02 if name == slow else 0.005)
        if name == slow:
            [(name, number)] = desk.asked()
            hedges[name] += 1
        desk.reply(name, number)
    assert first == {"b": 30, "c": 30, "d": 30}
    assert len(hedges) == 2 and min(hedges.values()) >= 8, "the others share them"


def test_large_and_small_arguments_have_their_turns() -> None:
    desk = CallerDesk("b", "c", "d")
    desk.limits["b.1"] = 1000
    small: Counter[str] = Counter()
    large: Counter[str] = Counter()
    for place in range(120):
        _, name, number = desk.ask(balance="round_robin", body=b"x" * (1_000_000 if place % 2 else 10))
        (large if place % 2 else small)[name] += 1
        desk.reply(name, number)
    assert set(large) == {"c", "d"} and large["c"] == large["d"]
    total = small + large
    assert min(total.values()) >= 30, "nobody is passed over"
