"""The caller's table: whose word an error is, who is asked all the same, and that answered calls leave nothing."""

from __future__ import annotations

import pytest

from meshmsg.engine.calls import MAX_STALE
from meshmsg.engine.faults import is_answer, make_error, name_type
from meshmsg.engine.providers import FAILURES_TO_EJECT
from meshmsg.errors import NoResponders, Overloaded, PeerLost, RemoteError, RequestError, Unavailable
from tests.engine.caller_desk import CallerDesk

pytestmark = pytest.mark.guarantee("G8")


# -- what methods raise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Overloaded, Unavailable, PeerLost, NoResponders])
def test_what_a_method_raises_is_its_answer(kind: type[RequestError]) -> None:
    """Whatever it calls it: nothing is tried again, and nobody is left out for it."""
    desk = CallerDesk("b", "c")
    for _ in range(4 * FAILURES_TO_EJECT):
        call, name, number = desk.ask(repeatable=True)
        desk.fail(name, number, kind.code, raised=name_type(kind("mine")), retry_after=0.1)
        with pytest.raises(kind):
            desk.outcome(call)
    assert desk.calls.retries == 0
    assert {desk.ask()[1] for _ in range(50)} == {"b", "c"}


@pytest.mark.parametrize("raised", [Overloaded("full"), RemoteError("full", "overloaded", "")])
def test_a_method_never_speaks_as_the_server(raised: RequestError) -> None:
    assert is_answer(name_type(raised), never_ran=False)
    assert isinstance(make_error(raised.code, name_type(raised), "full", None, 2.0), Overloaded)


# -- who has no room -----------------------------------------------------------------------------------------


def test_who_has_no_room_is_not_asked_again_while_others_have_some() -> None:
    desk = CallerDesk("b", "c", "d")
    call, name, number = desk.ask()
    tried = {name}
    for _ in range(2):
        desk.fail(name, number, "overloaded", never_ran=True, retry_after=1.0)
        [(name, number)] = desk.asked()
        tried.add(name)
    assert tried == {"b", "c", "d"}
    desk.fail(name, number, "overloaded", never_ran=True, retry_after=1.0)
    with pytest.raises(Overloaded) as caught:
        desk.outcome(call)
    assert caught.value.retry_after == 1.0
    assert desk.at_rest()


def test_when_nobody_has_room_an_idempotent_call_comes_back() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(repeatable=True)
    for _ in range(2):
        desk.fail(name, number, "overloaded", never_ran=True, retry_after=1.0)
        found = desk.asked()
        if found:
            [(name, number)] = found
    assert not call.done
    desk.turn(0.999)
    assert not desk.asked()
    desk.turn(0.001)
    [(name, number)] = desk.asked()
    desk.reply(name, number)
    assert desk.outcome(call) == "yes" and desk.calls.retries == 1
    assert desk.at_rest()


def test_calls_with_a_key_wait_for_its_keeper() -> None:
    desk = CallerDesk("b", "c", "d")
    call, keeper, number = desk.ask(key="k", repeatable=True, hedge_after=0.1)
    desk.fail(keeper, number, "overloaded", never_ran=True)
    assert not desk.asked(), "it has no room, and is asked at once again"
    desk.turn(0.1)
    [(name, number)] = desk.asked()
    assert name == keeper
    desk.turn(1.0)
    assert not desk.asked(), "a hedge to somebody else"
    desk.reply(keeper, number)
    assert desk.outcome(call) == "yes"


# -- who does not serve --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ping", "info", "stats"])
def test_who_does_not_serve_can_be_asked_about_itself(method: str) -> None:
    desk = CallerDesk("b")
    desk.offer("c", serving=False)
    desk.offer("d", serving=False, alive=False)
    assert {each.name for each in desk.calls.whom_to_survey("math", method)} == {"b", "c"}
    assert {each.name for each in desk.calls.whom_to_survey("math", "add")} == {"b"}
    assert desk.ask(method=method, peer="c")[1] == "c"
    refused = desk.call(method="add", peer="c")
    dead = desk.call(method=method, peer="d")
    desk.turn()
    for call in (refused, dead):
        with pytest.raises(NoResponders):
            desk.outcome(call)


# -- what is left of answered calls --------------------------------------------------------------------------


def test_answered_calls_are_not_kept_for_their_hedges_and_deadlines() -> None:
    desk = CallerDesk("b", "c")
    for _ in range(10 * MAX_STALE):
        _, name, number = desk.ask(repeatable=True, hedge_after=30.0, timeout=3600.0)
        desk.reply(name, number)
        assert len(desk.calls._timers) <= MAX_STALE and len(desk.calls._deadlines) <= MAX_STALE
    desk.turn(60.0)
    assert desk.calls.wake_at(1e9) == 1e9, "nothing is left to wake up for"


def test_runs_that_were_answered_are_forgotten_and_the_others_are_not() -> None:
    desk = CallerDesk("b")
    slow = [desk.ask(timeout=2000.0 + place, repeatable=True, hedge_after=50.0)[0] for place in range(3)]
    for place in range(3 * MAX_STALE):
        run = [desk.call(timeout=1000.0 + place) for _ in range(3)]
        desk.turn()
        for call in run:
            desk.reply("b", call.number)
    assert len(desk.calls._deadlines) <= MAX_STALE + 2 * len(slow)
    for place, call in enumerate(slow):
        assert not call.done
        desk.turn(2000.0 if not place else 1.0)
        assert call.done, "its deadline was forgotten"
    assert desk.at_rest()


def test_what_is_over_is_not_pending() -> None:
    desk = CallerDesk("b", "c")
    _, name, number = desk.ask(repeatable=True, hedge_after=30.0)
    desk.reply(name, number)
    assert desk.calls.pending == 0
    waiting, name, number = desk.ask(repeatable=True)
    desk.fail(name, number, "unavailable")
    assert desk.calls.pending == 1, "its retry is to come"
    desk.calls.cancel(waiting)
    assert desk.calls.pending == 0
    desk.turn()
    assert desk.at_rest()


def test_of_a_service_that_nobody_offers_and_nobody_asked_nothing_is_kept() -> None:
    desk = CallerDesk("b")
    for number in range(10):
        desk.calls.on_peer("c.1", "c", {f"service{number}": {}}, alive=True)
    desk.calls.on_peer("d.1", "d", {"other": {}}, alive=True)
    assert set(desk.calls._clients) == {"math", "service9", "other"}
    desk.lose("d")
    call, name, number = desk.ask()
    desk.calls.on_peer("b.1", "b", {}, alive=True)
    assert set(desk.calls._clients) == {"math", "service9"}, "what was asked is known"
    desk.reply(name, number)
    assert desk.outcome(call) == "yes"
