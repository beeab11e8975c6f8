"""The caller's table: each request has one outcome, whoever answers, fails, leaves or says nothing."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmsg.engine.calls import Call
from meshmsg.errors import (
    BodyTooLarge,
    Cancelled,
    DeadlineExceeded,
    MeshError,
    NoResponders,
    Overloaded,
    PeerLost,
    ProtocolError,
    RemoteError,
    RequestError,
    Unavailable,
)
from meshmsg.options import Retry
from meshmsg.wire import items
from meshmsg.wire.codec import Undecodable
from tests.engine.caller_desk import NO_JITTER, CallerDesk

pytestmark = pytest.mark.guarantee("G8")


# -- one call ------------------------------------------------------------------------------------------------


def test_an_answer_is_the_outcome() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask()
    desk.reply(name, number, [5])
    assert desk.outcome(call) == [5]
    assert desk.at_rest()


def test_calls_of_one_turn_leave_as_one_run() -> None:
    desk = CallerDesk("b")
    calls = [desk.call() for _ in range(500)]
    desk.turn()
    [(_, item, bodies)] = desk.said
    assert item[:3] == [items.CALL, 0, 500] and len(bodies) == 500
    desk.calls.on_results("b.1", list(range(500)), list(range(500)), desk.now)
    desk.turn()
    assert [desk.outcome(call) for call in calls] == list(range(500))
    assert desk.at_rest()


@pytest.mark.parametrize(
    "other", [{"method": "mul"}, {"timeout": 9.0}, {"headers": {"a": 1}}, {"down": True}, {"timeout": None}]
)
def test_a_run_ends_where_something_differs(other: dict[str, Any]) -> None:
    desk = CallerDesk("b")
    for how in ({}, {}, other, {}):
        desk.call(**how)
    desk.turn()
    assert [item[1:3] for _, item, _ in desk.said] == [[0, 2], [2, 1], [3, 1]]


def test_a_run_is_of_bounded_length() -> None:
    desk = CallerDesk("b")
    for _ in range(items.MAX_RUN + 1):
        desk.call()
    desk.turn()
    assert [item[2] for _, item, _ in desk.said] == [items.MAX_RUN, 1]


def test_what_is_left_of_the_time_is_sent() -> None:
    desk = CallerDesk("b")
    call = desk.call(timeout=10.0)
    call.deadline = desk.now + 3.0  # it waited before it was started
    desk.turn(1.0)
    assert desk.said[0][1][5] == pytest.approx(2.0)
    desk.call(timeout=None)
    desk.said.clear()
    desk.turn()
    assert desk.said[0][1][5] is None


def test_a_fault_is_an_error_with_all_that_is_known() -> None:
    desk = CallerDesk("b")
    call, _, number = desk.ask(method="div")
    fault = [items.FAULT, number, "error", "ZeroDivisionError", "division by zero", "Traceback ...", None, 0]
    desk.calls.on_fault("b.1", fault, desk.now)
    desk.turn()
    with pytest.raises(RemoteError, match="division by zero") as caught:
        desk.outcome(call)
    error = caught.value
    assert (error.code, error.type, error.remote_traceback) == ("error", "ZeroDivisionError", "Traceback ...")
    assert (error.peer, error.service, error.method) == ("b", "math", "div")


def test_a_result_that_cannot_be_read_is_an_error() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask()
    desk.reply(name, number, Undecodable("broken"))
    with pytest.raises(RequestError, match="cannot be read"):
        desk.outcome(call)
    assert desk.at_rest()


def test_nobody_offers_it() -> None:
    desk = CallerDesk()
    for how in ({}, {"repeatable": True}, {"down": True}, {"peer": "c"}):
        call = desk.call(**how)
        desk.turn()
        with pytest.raises(NoResponders) as caught:
            desk.outcome(call)
        assert (caught.value.service, caught.value.method, caught.value.peer) == ("math", "add", None)
    assert desk.at_rest()


def test_who_is_not_serving_or_silent_is_not_asked() -> None:
    desk = CallerDesk("b")
    desk.offer("b", serving=False)
    call = desk.call()
    desk.turn()
    with pytest.raises(NoResponders, match="not serving"):
        desk.outcome(call)
    desk.offer("b", alive=False)
    call = desk.call()
    desk.turn()
    with pytest.raises(NoResponders, match="stuck"):
        desk.outcome(call)
    desk.offer("b")
    desk.ask()


@pytest.mark.parametrize("peer", ["c", "c.1"])
def test_only_the_one_that_was_named_is_asked(peer: str) -> None:
    desk = CallerDesk("b", "c", "d")
    assert {desk.ask(peer=peer)[1] for _ in range(20)} == {"c"}


def test_too_large_for_who_is_asked() -> None:
    desk = CallerDesk("b")
    desk.limits["b.1"] = 10
    call = desk.call(body=b"x" * 11)
    desk.turn()
    with pytest.raises(BodyTooLarge, match="'b' takes 10 bytes"):
        desk.outcome(call)
    assert not desk.said
    assert desk.at_rest()


# -- deadlines -----------------------------------------------------------------------------------------------


def test_at_the_deadline_there_is_an_outcome_and_the_server_is_told() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask(timeout=2.0)
    desk.turn(1.999)
    assert not call.done
    assert desk.calls.wake_at(1e9) == pytest.approx(102.0)
    desk.turn(0.001)
    with pytest.raises(DeadlineExceeded, match="within 2 s") as caught:
        desk.outcome(call)
    assert caught.value.peer == "b"
    assert desk.cancelled() == [(name, number)]
    assert desk.at_rest()


def test_of_a_run_those_without_an_answer_expire() -> None:
    desk = CallerDesk("b")
    calls = [desk.call(timeout=2.0) for _ in range(4)]
    desk.turn()
    desk.calls.on_results("b.1", [0, 2], ["yes", "yes"], desk.now)
    desk.turn(2.0)
    assert [type(desk.outcomes[call][0][1]) for call in calls] == [type(None), DeadlineExceeded] * 2
    assert desk.at_rest()


def test_no_deadline_is_kept_of_calls_that_were_answered() -> None:
    desk = CallerDesk("b")
    for _ in range(100):
        _, name, number = desk.ask(timeout=3600.0)
        desk.reply(name, number)
        assert desk.calls.wake_at(1e9) == 1e9
    assert not desk.calls._deadlines


def test_a_call_whose_time_was_over_before_it_left() -> None:
    desk = CallerDesk("b")
    call = desk.call()
    call.deadline = desk.now
    desk.turn()
    with pytest.raises(DeadlineExceeded):
        desk.outcome(call)
    assert not desk.asked()
    assert desk.at_rest()


# -- late, twice, or from somebody else ----------------------------------------------------------------------


def test_late_replies_are_dropped_and_counted() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask(timeout=1.0)
    desk.turn(1.0)
    desk.reply(name, number)
    desk.fail(name, number, "error")
    desk.calls.on_items("b.1", number, [1], 1)
    desk.calls.on_end("b.1", number, desk.now)
    desk.reply(name, 999)
    assert desk.calls.late_replies == 5
    with pytest.raises(DeadlineExceeded):
        desk.outcome(call)


def test_a_second_answer_changes_nothing() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask()
    desk.reply(name, number, 1)
    desk.reply(name, number, 2)
    desk.fail(name, number, "error")
    assert desk.outcome(call) == 1
    assert desk.calls.late_replies == 2


def test_nobody_else_can_answer() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(peer="b")
    desk.reply("c", number, "forged")
    desk.fail("c", number, "error")
    desk.calls.on_end("c.1", number, desk.now)
    desk.turn()
    assert not call.done
    desk.reply(name, number, "true")
    assert desk.outcome(call) == "true"
    assert desk.calls.late_replies == 3


def test_nobody_else_can_add_to_a_stream() -> None:
    desk = CallerDesk("b", "c")
    call, _, number = desk.ask(peer="b", down=True, up=True)
    assert call.down is not None and call.up is not None
    desk.calls.on_items("c.1", number, ["forged"], 1)
    desk.calls.on_up_credit("c.1", number, 5)
    assert (call.down.waiting, call.up.room) == (0, 0)
    desk.calls.on_items("b.1", number, ["true"], 1)
    assert call.down.take() == "true"


# -- cancelling ----------------------------------------------------------------------------------------------


def test_who_cancels_gets_no_outcome_and_the_server_is_told() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask()
    desk.calls.cancel(call)
    desk.reply(name, number)  # it comes in the same turn
    assert desk.cancelled() == [(name, number)]
    desk.calls.cancel(call)
    desk.turn(60.0)
    assert call not in desk.outcomes and not desk.cancelled()
    assert desk.calls.late_replies == 1
    assert desk.at_rest()


def test_a_call_that_is_cancelled_before_it_left_never_leaves() -> None:
    desk = CallerDesk("b")
    call = desk.call()
    desk.calls.cancel(call)
    desk.turn()
    assert not desk.said
    assert desk.at_rest()


def test_cancelled_while_it_waits_for_its_retry() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask(repeatable=True)
    desk.fail(name, number, "unavailable")
    desk.calls.cancel(call)
    desk.turn(5.0)
    assert not desk.said and call not in desk.outcomes
    assert desk.at_rest()


def test_a_cancelled_stream_is_cut() -> None:
    desk = CallerDesk("b")
    call, _, number = desk.ask(up=True, down=True)
    assert call.up is not None
    desk.calls.on_up_credit("b.1", number, 16)
    desk.calls.cancel(call)
    assert call.up.cut is not None and call.up.room == 0
    desk.said.clear()
    desk.calls.send_items(call, [b"\x01"])
    desk.calls.end_items(call)
    desk.calls.grant(call)
    assert not desk.said
    desk.turn()
    assert desk.at_rest()


# -- losses --------------------------------------------------------------------------------------------------


def test_who_is_lost_is_named_at_once() -> None:
    desk = CallerDesk("b")
    call, _, _ = desk.ask()
    desk.lose("b")
    with pytest.raises(PeerLost, match=r"'b' is gone \(crashed\) and may have run it or not") as caught:
        desk.outcome(call)
    assert caught.value.peer == "b"
    assert desk.at_rest()


def test_a_call_that_is_not_idempotent_never_goes_out_again() -> None:
    desk = CallerDesk("b", "c")
    for how in ("lose", "unavailable", "overloaded", "no_responders", "peer_lost"):
        call, name, number = desk.ask()
        if how == "lose":
            desk.lose(name)
            desk.offer(name)
        else:
            desk.fail(name, number, how)
        desk.turn(5.0)
        assert not desk.asked()
        with pytest.raises(RequestError):
            desk.outcome(call)


def test_the_node_closes() -> None:
    """Two attempts of one call, one that waits for its retry, one that has not left, and a stream."""
    desk = CallerDesk("b", "c")
    hedged, _, _ = desk.ask(repeatable=True, hedge_after=0.1)
    desk.turn(0.1)
    waiting, name, number = desk.ask(repeatable=True)
    desk.fail(name, number, "overloaded")
    stream, _, _ = desk.ask(down=True)
    staged = desk.call()
    desk.calls.close(desk.now)
    desk.turn()
    for call in (hedged, waiting, stream, staged):
        with pytest.raises(Cancelled, match="closed"):
            desk.outcome(call)
    assert len(desk.cancelled()) == 3
    assert desk.at_rest()


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
    for how in ({"down": True}, {"up": True}):
        call, name, number = desk.ask(repeatable=True, **how)
        desk.fail(name, number, "overloaded", never_ran=True)
        assert call.done and not desk.asked()


# -- transparent retries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["unavailable", "no_responders"])
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
        for name, number in desk.asked():
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
    for how in ({}, {"repeatable": True, "peer": "b"}):
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
        desk.fail(name, number, "overloaded")
    assert who_is_asked(desk) == {"c", "d"}
    desk.turn(31.0)
    assert who_is_asked(desk) == {"b", "c", "d"}


def test_who_lets_deadlines_pass_is_left_out() -> None:
    desk = CallerDesk("b", "c", "d")
    for _ in range(5):
        desk.ask(peer="b", timeout=0.1)
        desk.turn(0.1)
    assert who_is_asked(desk) == {"c", "d"}


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


# -- streams -------------------------------------------------------------------------------------------------


def test_a_stream_of_items() -> None:
    desk = CallerDesk("b")
    call, _, number = desk.ask(down=True)
    assert call.down is not None
    desk.calls.on_items("b.1", number, list(range(16)), 2**22)
    desk.said.clear()
    for place in range(7):
        assert call.down.take() == place
        desk.calls.grant(call)
    assert not desk.said, "not worth a word yet"
    assert call.down.take() == 7
    desk.calls.grant(call)
    assert [item for _, item, _ in desk.said] == [[items.CREDIT, number, 24]]
    desk.calls.on_end("b.1", number, desk.now)
    desk.turn()
    assert call.down.ended and call.down.fault is None
    assert desk.outcome(call) is None
    assert desk.at_rest()


def test_more_items_than_there_is_credit_for() -> None:
    desk = CallerDesk("b")
    _, _, number = desk.ask(down=True)
    with pytest.raises(ProtocolError):
        desk.calls.on_items("b.1", number, list(range(17)), 17)


@pytest.mark.parametrize("how", ["fault", "loss", "deadline"])
def test_a_stream_ends_with_what_ended_it(how: str) -> None:
    desk = CallerDesk("b")
    call, _, number = desk.ask(down=True, up=True, timeout=5.0)
    assert call.down is not None and call.up is not None
    desk.calls.on_items("b.1", number, [1, 2], 2)
    if how == "fault":
        desk.fail("b", number, "error")
    elif how == "loss":
        desk.lose("b")
    else:
        desk.turn(5.0)
    with pytest.raises(RequestError) as caught:
        desk.outcome(call)
    assert call.down.fault is caught.value
    assert call.down.take_all() == [1, 2], "what came before can be had"
    assert call.up.cut is not None
    assert desk.at_rest()


# -- anything ------------------------------------------------------------------------------------------------


class Weather:
    """Callers and servers that do anything; each call that is not cancelled has one outcome, and nothing stays."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.desk = CallerDesk("b", "c", seed=seed)
        self.open: list[tuple[str, int]] = []
        self.runs: dict[bytes, int] = {}
        self.cancelled: set[Call] = set()

    def step(self) -> None:
        chance, desk = self.random, self.desk
        kind = chance.randrange(10)
        if kind < 3:
            for _ in range(chance.choice((1, 1, 4))):
                desk.call(
                    repeatable=chance.random() < 0.7,
                    timeout=chance.choice((None, 0.2, 5.0)),
                    hedge_after=chance.choice((None, 0.0, 0.1)),
                    body=b"%d" % len(desk.made),
                    retry=chance.choice((Retry(1), NO_JITTER)),
                    down=chance.random() < 0.1,
                )
        elif kind == 3 and desk.made:
            call = chance.choice(desk.made)
            if not call.done:
                self.cancelled.add(call)
            desk.calls.cancel(call)
        elif kind == 4:
            name = chance.choice("bcd")
            chance.choice((desk.lose, desk.offer))(name)
        elif kind < 8 and self.open:
            self.answer(*self.open.pop(chance.randrange(len(self.open))))
        else:
            desk.turn(chance.choice((0.0, 0.05, 0.3)))
        if chance.random() < 0.5:
            desk.turn()
        self.look()

    def answer(self, name: str, number: int) -> None:
        chance = self.random
        code = chance.choice(("error", "unavailable", "overloaded", "no_responders"))
        if chance.random() < 0.6:
            self.desk.reply(name, number)
        else:
            self.desk.fail(name, number, code, never_ran=chance.random() < 0.3 and code != "error")

    def look(self) -> None:
        for name, item, bodies in self.desk.said:
            if item[0] == items.CALL:
                self.open += [(name, item[1] + place) for place in range(item[2])]
                for body in bodies:
                    self.runs[body] = self.runs.get(body, 0) + 1
        self.desk.said.clear()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 120))
def test_whatever_happens_each_call_has_one_outcome_and_nothing_stays(seed: int, steps: int) -> None:
    weather = Weather(seed)
    desk = weather.desk
    for _ in range(steps):
        weather.step()
    desk.turn()
    weather.look()
    for name in "bcd":  # the end of all who could answer
        desk.lose(name)
    for _ in range(10):
        desk.turn(2.0)
        weather.look()
    for call in desk.made:
        found: list[tuple[Any, MeshError | None]] = desk.outcomes.get(call, [])
        assert len(found) == (call not in weather.cancelled), "an outcome too many, or none"
        assert weather.runs.get(call.body, 0) <= 6
    assert desk.at_rest()
