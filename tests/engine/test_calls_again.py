"""The caller's table: what is tried again, with whom, how often; and what never is."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg.engine.providers import MAX_METHODS
from meshmsg.errors import (
    DeadlineExceeded,
    NoResponders,
    Overloaded,
    PeerLost,
    RequestError,
    Unavailable,
)
from meshmsg.options import Retry
from meshmsg.wire import items
from tests.engine.caller_desk import CallerDesk

pytestmark = pytest.mark.guarantee("G8")


# -- retries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["unavailable", "overloaded", "peer_lost", "no_responders"])
def test_an_idempotent_call_goes_to_somebody_else(code: str) -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(repeatable=True)
    desk.fail(name, number, code)
    assert not desk.asked() and not call.done
    desk.turn(0.1)
    [(other, again)] = desk.asked()
    assert other != name and again != number
    desk.reply(other, again)
    assert desk.outcome(call) == "yes"
    assert desk.calls.retries == 1
    assert desk.at_rest()


@pytest.mark.parametrize("code", ["error", "bad_request", "no_such_method", "deadline_exceeded", "cancelled", "mine"])
def test_the_methods_own_failures_are_its_answer(code: str) -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(repeatable=True)
    desk.fail(name, number, code)
    with pytest.raises(RequestError):
        desk.outcome(call)
    assert desk.at_rest() and not desk.asked()


def test_retries_back_off_and_end() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask(repeatable=True, retry=Retry(4, 0.1, max_backoff=1.0, jitter="none"))
    for pause in (0.1, 0.2, 0.4):
        desk.fail(name, number, "unavailable")
        desk.turn(pause - 0.001)
        assert not desk.asked()
        desk.turn(0.001)
        [(name, number)] = desk.asked()
    desk.fail(name, number, "unavailable")
    with pytest.raises(Unavailable):
        desk.outcome(call)
    assert desk.calls.retries == 3
    assert desk.at_rest()


def test_a_retry_that_finds_nobody_is_one_too() -> None:
    """Else a call without a deadline asks for somebody until the budget is used up, which others need."""
    desk = CallerDesk("b")
    call, _, _ = desk.ask(repeatable=True, timeout=None)
    desk.lose("b")
    desk.turn(0.1)
    assert not call.done, "somebody may come"
    for _ in range(20):
        desk.turn(1.0)
    with pytest.raises(NoResponders):
        desk.outcome(call)
    assert desk.calls.retries == 4
    assert desk.at_rest()


def test_a_retry_finds_who_came_meanwhile() -> None:
    desk = CallerDesk("b")
    call, _, _ = desk.ask(repeatable=True)
    desk.lose("b")
    desk.offer("c")
    desk.turn(0.1)
    [(name, number)] = desk.asked()
    desk.reply(name, number)
    assert (name, desk.outcome(call)) == ("c", "yes")


def test_a_server_that_asks_for_time_gets_it() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask(repeatable=True)
    desk.fail(name, number, "overloaded", never_ran=True, retry_after=3.0)
    desk.turn(2.999)
    assert not desk.asked()
    desk.turn(0.001)
    assert len(desk.asked()) == 1
    assert not call.done


def test_no_retry_that_would_come_too_late() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask(repeatable=True, timeout=2.0)
    desk.fail(name, number, "overloaded", never_ran=True, retry_after=3.0)
    with pytest.raises(Overloaded) as caught:
        desk.outcome(call)
    assert caught.value.retry_after == 3.0
    assert desk.at_rest()


def test_all_attempts_share_the_deadline() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask(repeatable=True, timeout=1.0)
    desk.turn(0.5)
    desk.fail(name, number, "unavailable")
    desk.turn(0.1)
    assert desk.said[-1][1][5] == pytest.approx(0.4)
    desk.turn(0.4)
    with pytest.raises(DeadlineExceeded):
        desk.outcome(call)
    assert desk.at_rest()


def test_retries_have_a_budget() -> None:
    """10 a second and a fifth of the requests, over ten seconds: 100 and 100 of 500."""
    desk = CallerDesk("b")
    calls = [desk.call(repeatable=True) for _ in range(500)]
    desk.turn()
    for _, number in desk.asked():
        desk.calls.on_fault("b.1", [items.FAULT, number, "unavailable", "", "no", None, None, 0], desk.now)
    desk.turn(0.1)
    assert desk.calls.retries == len(desk.asked()) == 200
    assert sum(call.done for call in calls) == 300


def test_streams_are_never_tried_again() -> None:
    desk = CallerDesk("b", "c")
    hows: list[dict[str, Any]] = [{"down": True}, {"up": True}]
    for how in hows:
        call, name, number = desk.ask(repeatable=True, **how)
        desk.fail(name, number, "unavailable")
        assert call.done and not desk.asked()


# -- transparent retries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["unavailable", "no_responders", "overloaded"])
@pytest.mark.parametrize("how", [{}, {"down": True}, {"up": True}])
def test_what_never_ran_goes_elsewhere_at_once(code: str, how: dict[str, Any]) -> None:
    """Its service closes: elsewhere it runs for the first time, idempotent or not."""
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(**how)
    desk.fail(name, number, code, never_ran=True)
    [(other, again)] = desk.asked()
    assert other != name
    assert desk.calls.retries == 0
    desk.reply(other, again)
    assert desk.outcome(call) == "yes"
    assert desk.at_rest()


def test_what_never_ran_anywhere_ends() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask()
    count = 1
    while not call.done:
        desk.fail(name, number, "unavailable", never_ran=True)
        for again in desk.asked():
            name, number = again
            count += 1
    with pytest.raises(Unavailable):
        desk.outcome(call)
    assert count <= 6
    assert desk.at_rest()


def test_not_if_only_one_was_asked_for() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(peer="b")
    desk.fail(name, number, "unavailable", never_ran=True)
    with pytest.raises(Unavailable):
        desk.outcome(call)


@pytest.mark.parametrize("what", ["items", "end"])
def test_not_if_the_server_has_items_that_nobody_has_any_more(what: str) -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(up=True)
    desk.calls.on_up_credit(f"{name}.1", number, 16)
    if what == "items":
        desk.calls.send_items(call, [b"\x01"])
    else:
        desk.calls.end_items(call)
    desk.said.clear()
    desk.fail(name, number, "unavailable", never_ran=True)
    with pytest.raises(Unavailable):
        desk.outcome(call)
    assert not desk.asked()


def test_credit_is_of_one_server() -> None:
    """The next one says itself what it takes."""
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(up=True)
    assert call.up is not None
    desk.calls.on_up_credit(f"{name}.1", number, 16)
    desk.fail(name, number, "unavailable", never_ran=True)
    [(other, again)] = desk.asked()
    assert call.up.room == 0
    desk.calls.on_up_credit(f"{name}.1", number, 20)
    assert call.up.room == 0
    desk.calls.on_up_credit(f"{other}.1", again, 2)
    assert call.up.room == 2


# -- hedging -------------------------------------------------------------------------------------------------


def test_a_hedge_goes_to_another_one_and_the_first_answer_wins() -> None:
    for winner in (0, 1):
        desk = CallerDesk("b", "c")
        call, name, number = desk.ask(repeatable=True, hedge_after=0.2)
        desk.turn(0.199)
        assert not desk.asked()
        desk.turn(0.001)
        [(other, again)] = desk.asked()
        assert other != name
        attempts = [(name, number), (other, again)]
        desk.reply(*attempts[winner])
        assert desk.cancelled() == [attempts[1 - winner]]
        assert desk.outcome(call) == "yes"
        desk.reply(*attempts[1 - winner])
        assert desk.calls.late_replies == 1
        assert desk.calls.hedged == 1
        assert desk.at_rest()


def test_no_hedge_for_what_may_not_run_twice() -> None:
    desk = CallerDesk("b", "c")
    hows: list[dict[str, Any]] = [{}, {"repeatable": True, "peer": "b"}]
    for how in hows:
        desk.ask(hedge_after=0.1, **how)
        desk.turn(5.0)
        assert not desk.asked()


@pytest.mark.parametrize("how", [{"up": True}, {"down": True}])
def test_no_hedge_for_streams(how: dict[str, Any]) -> None:
    """The items of one caller go to one server."""
    desk = CallerDesk("b", "c")
    desk.ask(repeatable=True, hedge_after=0.1, **how)
    desk.turn(5.0)
    assert not desk.asked()


def test_no_hedge_without_somebody_else() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask(repeatable=True, hedge_after=0.1)
    desk.turn(1.0)
    assert not desk.asked()
    desk.reply(name, number)
    assert desk.outcome(call) == "yes"
    assert desk.at_rest()


def test_no_hedge_to_whom_it_is_too_large_for() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(repeatable=True, hedge_after=0.1, body=b"x" * 20)
    desk.limits["bc".replace(name, "") + ".1"] = 10
    desk.turn(0.1)
    assert not call.done and not desk.asked()
    desk.reply(name, number)
    assert desk.outcome(call) == "yes"
    assert desk.at_rest()


def test_an_attempt_that_fails_leaves_the_others() -> None:
    for first in (0, 1):
        desk = CallerDesk("b", "c")
        call, name, number = desk.ask(repeatable=True, hedge_after=0.1)
        desk.turn(0.1)
        attempts = [(name, number), *desk.asked()]
        desk.fail(*attempts[first], "overloaded")
        assert not call.done
        desk.reply(*attempts[1 - first])
        assert desk.outcome(call) == "yes"
        assert desk.at_rest()


def test_the_loss_of_both_is_one_loss() -> None:
    desk = CallerDesk("b", "c")
    call, _, _ = desk.ask(repeatable=True, hedge_after=0.1, retry=Retry(1))
    desk.turn(0.1)
    desk.lose("b")
    assert not call.done
    desk.lose("c")
    with pytest.raises(PeerLost):
        desk.outcome(call)
    assert desk.at_rest()


def test_at_the_deadline_all_attempts_are_called_off() -> None:
    desk = CallerDesk("b", "c", "d")
    call, name, number = desk.ask(repeatable=True, hedge_after=0.1, timeout=0.3)
    attempts = {(name, number)}
    desk.turn(0.1)
    attempts.update(desk.asked())
    desk.turn(0.1)
    attempts.update(desk.asked())
    assert len(attempts) == 3
    desk.turn(0.2)
    assert set(desk.cancelled()) == attempts
    with pytest.raises(DeadlineExceeded):
        desk.outcome(call)
    assert desk.at_rest()


def test_a_retry_has_a_hedge_of_its_own_and_not_its_predecessors() -> None:
    desk = CallerDesk("b", "c", "d")
    call, name, number = desk.ask(repeatable=True, hedge_after=0.5)
    desk.turn(0.3)
    desk.fail(name, number, "unavailable")
    desk.turn(0.1)
    assert len(desk.asked()) == 1  # the retry, 0.4 after the start
    desk.turn(0.1)
    assert not desk.asked()
    desk.turn(0.4)
    assert len(desk.asked()) == 1
    assert not call.done


def test_hedges_count_as_attempts() -> None:
    desk = CallerDesk(*"bcdefgh")
    desk.ask(repeatable=True, hedge_after=0.0)
    count = 1
    for _ in range(20):
        desk.turn(0.1)
        count += len(desk.asked())
    assert count == 5


def test_a_hedge_after_what_others_took() -> None:
    desk = CallerDesk("b", "c")
    how: dict[str, Any] = {"repeatable": True, "hedge_after": "p95"}
    for took in range(1, 21):
        call, name, number = desk.ask(**how)
        desk.turn(took / 100)
        assert not desk.asked(), "nothing is known yet"
        desk.reply(name, number)
        assert call.done
    desk.ask(**how)
    desk.turn(0.189)
    assert not desk.asked()
    desk.turn(0.002)
    assert len(desk.asked()) == 1


def test_each_method_has_a_p95_of_its_own() -> None:
    desk = CallerDesk("b", "c")
    how: dict[str, Any] = {"repeatable": True, "hedge_after": "p95"}
    for method, seconds in (("get", 0.001), ("report", 0.2)):
        for _ in range(20):
            _, name, number = desk.ask(method=method, **how)
            desk.turn(seconds)
            desk.reply(name, number)
    for method, seconds in (("report", 0.2), ("get", 0.001)):
        _, name, number = desk.ask(method=method, **how)
        desk.turn(0.9 * seconds)
        assert not desk.asked()
        desk.turn(0.2 * seconds)
        assert len(desk.asked()) == 1, method
        desk.reply(name, number)


def test_not_all_methods_are_remembered() -> None:
    desk = CallerDesk("b")
    for number in range(3 * MAX_METHODS):
        _, name, attempt = desk.ask(method=f"method{number}")
        desk.reply(name, attempt)
    assert len(desk.calls.clients("math").latencies) == MAX_METHODS


# -- who is asked --------------------------------------------------------------------------------------------


def who_is_asked(desk: CallerDesk) -> set[str]:
    asked = set()
    for _ in range(12):
        _, name, number = desk.ask(balance="round_robin")
        desk.reply(name, number)
        asked.add(name)
    return asked


def test_who_fails_again_and_again_is_left_out_for_a_while() -> None:
    desk = CallerDesk("b", "c", "d")
    for _ in range(5):
        _, name, number = desk.ask(peer="b")
        desk.fail(name, number, "unavailable")
    assert who_is_asked(desk) == {"c", "d"}
    desk.turn(31.0)
    assert who_is_asked(desk) == {"b", "c", "d"}


def test_who_lets_deadlines_pass_is_left_out() -> None:
    desk = CallerDesk("b", "c", "d")
    for _ in range(20):
        _, name, number = desk.ask(peer="c")
        desk.turn(0.05)
        desk.reply(name, number)
    for _ in range(5):
        desk.ask(peer="b", timeout=0.1)
        desk.turn(0.1)
    assert who_is_asked(desk) == {"c", "d"}


@pytest.mark.parametrize("took", [None, 0.3])
def test_callers_that_do_not_wait_as_long_as_a_method_takes_speak_against_nobody(took: float | None) -> None:
    desk = CallerDesk("b", "c", "d")
    for _ in range(20):
        _, name, number = desk.ask(peer="c")
        desk.reply(name, number)
        if took is not None:
            _, name, number = desk.ask(method="report", peer="c")
            desk.turn(took)
            desk.reply(name, number)
    for _ in range(20):
        desk.ask(method="report", peer="b", timeout=0.1)
        desk.turn(0.1)
    assert who_is_asked(desk) == {"b", "c", "d"}


def test_failures_of_the_method_do_not_count() -> None:
    desk = CallerDesk("b", "c")
    for _ in range(20):
        _, name, number = desk.ask(peer="b")
        desk.fail(name, number, "error")
    assert who_is_asked(desk) == {"b", "c"}


def test_one_key_one_provider() -> None:
    desk = CallerDesk(*"bcdef")
    [keeper] = {desk.ask(key="k")[1] for _ in range(20)}
    assert len({desk.ask(key=f"{number}")[1] for number in range(50)}) > 2
    desk.lose(keeper)
    assert len({desk.ask(key="k")[1] for _ in range(20)}) == 1


def test_who_offers_it_no_more_may_still_answer() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask()
    desk.calls.on_peer("b.1", "b", {}, alive=True)
    desk.turn()
    assert not desk.calls.responders("math")
    desk.reply(name, number)
    assert desk.outcome(call) == "yes"
