"""The caller's table: whose word an error is, who is asked all the same, and that answered calls leave nothing."""

from __future__ import annotations

import pytest

from meshmsg.engine.call_timers import MAX_STALE
from meshmsg.engine.faults import is_answer, make_error, name_type
from meshmsg.engine.providers import FAILURES_TO_EJECT
from meshmsg.errors import NoResponders, Overloaded, PeerLost, RemoteError, RequestError, Unavailable
from tests.engine.caller_desk import CallerDesk

pytestmark = pytest.mark.guarantee("G8")


# -- what methods raise --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "retry_after", "repeatable"),
    [
        (Overloaded, None, True),
        (Overloaded, 0.1, False),
        (Unavailable, 0.1, True),
        (PeerLost, 0.1, True),
        (NoResponders, 0.1, True),
    ],
)
def test_what_a_method_raises_is_its_answer(
    kind: type[RequestError], retry_after: float | None, repeatable: bool
) -> None:
    """Whatever it calls it: nothing is tried again, and nobody is left out for it."""
    desk = CallerDesk("b", "c")
    for _ in range(4 * FAILURES_TO_EJECT):
        call, name, number = desk.ask(repeatable=repeatable)
        desk.fail(name, number, kind.code, raised=name_type(kind("mine")), retry_after=retry_after)
        with pytest.raises(kind):
            desk.outcome(call)
    assert desk.calls.retries == 0
    assert {desk.ask()[1] for _ in range(50)} == {"b", "c"}


def test_a_method_that_says_when_to_come_back_is_asked_again_then() -> None:
    """As gRPC's pushback, which is the application's to give: elsewhere if somebody else is there."""
    desk = CallerDesk("b", "c")
    raised = name_type(Overloaded("mine", 0.5))
    call, name, number = desk.ask(repeatable=True)
    desk.fail(name, number, "overloaded", raised=raised, retry_after=0.5)
    desk.turn(0.499)
    assert not desk.asked()
    desk.turn(0.001)
    [(other, again)] = desk.asked()
    assert other != name
    desk.reply(other, again)
    assert desk.outcome(call) == "yes" and desk.calls.retries == 1
    assert desk.at_rest()


def test_a_method_that_is_always_busy_is_asked_as_often_as_retry_says() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(repeatable=True, timeout=None)
    asked = 1
    while not call.done:
        desk.fail(name, number, "overloaded", raised=name_type(Overloaded()), retry_after=2.0)
        desk.turn(2.0)
        for again in desk.asked():
            name, number = again
            asked += 1
    with pytest.raises(Overloaded):
        desk.outcome(call)
    assert asked == 5
    assert {desk.ask()[1] for _ in range(50)} == {"b", "c"}, "nobody is left out for it"


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


@pytest.mark.parametrize("never_ran", [True, False])
def test_who_has_no_room_is_not_left_out(never_ran: bool) -> None:
    """It is well, and has room again as soon as something ends."""
    desk = CallerDesk("b", "c")
    for _ in range(4 * FAILURES_TO_EJECT):
        _, name, number = desk.ask(peer="b")
        desk.fail(name, number, "overloaded", never_ran=never_ran)
    assert {desk.ask(balance="round_robin")[1] for _ in range(4)} == {"b", "c"}


def test_who_has_no_room_does_not_look_fast() -> None:
    desk = CallerDesk("b", "c")
    for name, seconds in (("b", 0.1), ("c", 0.01)):
        _, _, number = desk.ask(peer=name)
        desk.turn(seconds)
        desk.reply(name, number)
    for _ in range(50):
        _, _, number = desk.ask(peer="b")
        desk.turn(0.001)
        desk.fail("b", number, "overloaded", never_ran=True)
    assert {desk.ask()[1] for _ in range(5)} == {"c"}


@pytest.mark.parametrize("balance", ["fastest", "least_outstanding", "round_robin", "random"])
def test_who_is_left_out_is_asked_before_a_call_ends_with_overloaded(balance: str) -> None:
    desk = CallerDesk("b", "c", "d")
    for _ in range(FAILURES_TO_EJECT):
        _, name, number = desk.ask(peer="b")
        desk.fail(name, number, "unavailable")
    call, name, number = desk.ask(balance=balance)
    tried = [name]
    for _ in range(2):
        desk.fail(name, number, "overloaded", never_ran=True)
        [(name, number)] = desk.asked()
        tried.append(name)
    assert sorted(tried[:2]) == ["c", "d"] and tried[2] == "b"
    desk.reply(name, number)
    assert desk.outcome(call) == "yes"
    assert desk.at_rest()


@pytest.mark.parametrize("code", ["overloaded", "unavailable", "no_responders"])
def test_each_is_asked_once_however_many_they_are(code: str) -> None:
    names = "bcdefghijklm"
    desk = CallerDesk(*names)
    call, name, number = desk.ask()
    tried = [name]
    for _ in range(len(names) - 1):
        desk.fail(name, number, code, never_ran=True)
        [(name, number)] = desk.asked()
        tried.append(name)
    assert sorted(tried) == sorted(names)
    desk.reply(name, number)
    assert desk.outcome(call) == "yes"
    assert desk.at_rest()


def test_when_all_of_many_have_no_room_an_idempotent_call_comes_back() -> None:
    """Refusals cost it none of its attempts."""
    names = "bcdefghijklm"
    desk = CallerDesk(*names)
    call, name, number = desk.ask(repeatable=True, timeout=None)
    for _ in names[1:]:
        desk.fail(name, number, "overloaded", never_ran=True, retry_after=1.0)
        [(name, number)] = desk.asked()
    for attempt in range(1, 5):
        desk.fail(name, number, "overloaded", never_ran=True, retry_after=1.0)
        assert not call.done and not desk.asked()
        desk.turn(1.0)
        [(name, number)] = desk.asked()
        assert desk.calls.retries == attempt
    desk.fail(name, number, "overloaded", never_ran=True, retry_after=1.0)
    with pytest.raises(Overloaded):
        desk.outcome(call)
    assert desk.at_rest()


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
        assert desk.calls.timers.timers <= MAX_STALE and desk.calls.timers.deadlines <= MAX_STALE
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
    assert desk.calls.timers.deadlines <= MAX_STALE + 2 * len(slow)
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
    assert set(desk.calls._clients) == {"service9"}
    desk.reply(name, number)
    assert desk.outcome(call) == "yes"
    assert set(desk.calls._clients) == {"service9"}, "an answer that comes later brings nothing back"


def test_of_names_that_nobody_offers_nothing_is_kept() -> None:
    desk = CallerDesk("b")
    for number in range(50):
        call = desk.call(service=f"nobodys{number}", repeatable=True)
        other = desk.call(service=f"nobodys{number}", peer="c")
        desk.turn()
        assert not desk.calls.responders(f"nobodys{number}")
        assert not desk.calls.whom_to_survey(f"nobodys{number}", "ping")
        for each in (call, other):
            with pytest.raises(NoResponders):
                desk.outcome(each)
    assert set(desk.calls._clients) == {"math"}


@pytest.mark.parametrize("how", ["closed", "lost"])
def test_of_services_that_were_asked_and_are_gone_nothing_is_kept(how: str) -> None:
    desk = CallerDesk("b")
    for number in range(50):
        service = f"session{number}"
        desk.calls.on_peer("c.1", "c", {service: {}}, alive=True)
        _, name, attempt = desk.ask(service=service, repeatable=True)
        desk.reply(name, attempt)
        late, name, attempt = desk.ask(service=service, repeatable=True)
        if how == "closed":
            desk.calls.on_peer("c.1", "c", {}, alive=True)
            desk.fail(name, attempt, "unavailable", never_ran=True)
        else:
            desk.lose("c")
        for _ in range(20):
            desk.turn(1.0)
        with pytest.raises(RequestError):
            desk.outcome(late)
        assert set(desk.calls._clients) == {"math"}
        assert desk.at_rest()


@pytest.mark.parametrize("code", ["overloaded", "no_such_method", "unavailable"])
def test_who_offers_it_next_is_asked_although_the_service_was_gone_meanwhile(code: str) -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask()
    desk.calls.on_peer("b.1", "b", {}, alive=True)
    desk.offer("c")
    desk.fail(name, number, code, never_ran=True)
    [(other, again)] = desk.asked()
    desk.reply(other, again)
    assert (other, desk.outcome(call)) == ("c", "yes")
    assert desk.at_rest()


def test_retries_of_what_lost_its_last_provider_have_one_budget() -> None:
    desk = CallerDesk("b")
    for _ in range(500):
        desk.call(repeatable=True)
    desk.turn()
    desk.lose("b")
    for _ in range(50):
        desk.turn(0.1)
    assert desk.calls.retries <= 200 + 50
