"""The caller's table: a provider that has no such method, as in the middle of an upgrade, and who is asked instead."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg.errors import BodyTooLarge, NoSuchMethod, Overloaded, PeerLost, Unavailable
from tests.engine.caller_desk import CallerDesk

pytestmark = pytest.mark.guarantee("G8")


def lack(desk: CallerDesk, name: str, number: int) -> None:
    """The server's own word that it has no such method."""
    desk.fail(name, number, "no_such_method", never_ran=True)


@pytest.mark.parametrize("repeatable", [False, True])
def test_who_has_the_method_is_found_at_once(repeatable: bool) -> None:
    desk = CallerDesk(*"bcdefghi")
    call, name, number = desk.ask(repeatable=repeatable)
    asked = [name]
    for _ in range(7):
        lack(desk, name, number)
        [(name, number)] = desk.asked()
        asked.append(name)
    desk.reply(name, number)
    assert desk.outcome(call) == "yes"
    assert sorted(asked) == list("bcdefghi"), "each is asked once"
    assert not desk.calls.retries and desk.at_rest()


@pytest.mark.parametrize("how", [{}, {"repeatable": True}, {"down": True}, {"up": True}, {"key": "k"}])
def test_only_when_all_lack_it_that_is_the_outcome(how: dict[str, Any]) -> None:
    desk = CallerDesk("b", "c", "d")
    call, name, number = desk.ask(**how)
    asked = {name}
    for _ in range(2):
        lack(desk, name, number)
        [(name, number)] = desk.asked()
        asked.add(name)
    assert asked == {"b", "c", "d"}
    lack(desk, name, number)
    with pytest.raises(NoSuchMethod) as caught:
        desk.outcome(call)
    assert caught.value.peer == name
    assert not desk.asked() and desk.at_rest()


def test_who_is_meant_alone_is_asked_alone() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(peer="b")
    lack(desk, name, number)
    with pytest.raises(NoSuchMethod):
        desk.outcome(call)
    assert not desk.asked() and desk.at_rest()


def test_items_that_were_sent_cannot_be_sent_again() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(up=True)
    desk.calls.on_up_credit(f"{name}.1", number, 16)
    desk.calls.send_items(call, [b"\x01"])
    lack(desk, name, number)
    with pytest.raises(NoSuchMethod):
        desk.outcome(call)
    assert desk.at_rest()


def test_a_method_that_raises_it_has_answered() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(repeatable=True)
    desk.fail(name, number, "no_such_method", raised="meshmsg.errors.NoSuchMethod")
    with pytest.raises(NoSuchMethod):
        desk.outcome(call)
    assert not desk.asked() and desk.at_rest()


def test_nothing_speaks_against_who_lacks_a_method() -> None:
    desk = CallerDesk("b", "c", "d")
    for _ in range(20):
        _, name, number = desk.ask(peer="b")
        lack(desk, name, number)
    providers = desk.calls.clients("math").providers
    [provider] = [each for each in providers.everybody() if each.name == "b"]
    assert provider.failures == 0 and provider.ejections == 0


def test_who_was_left_out_is_asked_before_it_is_given_up() -> None:
    desk = CallerDesk("b", "c", "d")
    for _ in range(5):
        _, name, number = desk.ask(peer="b")
        desk.fail(name, number, "peer_lost")
    call, name, number = desk.ask()
    asked = [name]
    for _ in range(2):
        lack(desk, name, number)
        [(name, number)] = desk.asked()
        asked.append(name)
    assert asked[-1] == "b"
    desk.reply(name, number)
    assert desk.outcome(call) == "yes"


@pytest.mark.parametrize(("code", "error"), [("overloaded", Overloaded), ("unavailable", Unavailable)])
def test_what_one_said_that_may_have_it_is_the_outcome(code: str, error: type[Exception]) -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask()
    desk.fail(name, number, code, never_ran=True)
    [(name, number)] = desk.asked()
    lack(desk, name, number)
    with pytest.raises(error):
        desk.outcome(call)
    assert not desk.asked() and desk.at_rest()


def test_one_that_may_have_it_is_asked_again_later() -> None:
    desk = CallerDesk("b", "c")
    call, full, number = desk.ask(repeatable=True)
    desk.fail(full, number, "overloaded", never_ran=True, retry_after=2.0)
    [(name, number)] = desk.asked()
    lack(desk, name, number)
    desk.turn(1.9)
    assert not desk.asked()
    desk.turn(0.1)
    [(name, number)] = desk.asked()
    assert name == full
    desk.reply(name, number)
    assert desk.outcome(call) == "yes"
    assert desk.calls.retries == 1 and desk.at_rest()


@pytest.mark.parametrize("has_it", [True, False])
def test_a_retry_that_finds_only_those_without_it_asks_them_once_more(has_it: bool) -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(repeatable=True)
    lack(desk, name, number)
    [(other, number)] = desk.asked()
    desk.lose(other)
    desk.turn(0.1)
    [(again, number)] = desk.asked()
    assert again == name
    if has_it:
        desk.reply(name, number)
        assert desk.outcome(call) == "yes"
    else:
        lack(desk, name, number)
        with pytest.raises(NoSuchMethod):
            desk.outcome(call)
    assert not desk.asked() and desk.at_rest()


def test_those_without_it_are_no_attempts() -> None:
    desk = CallerDesk(*"bcdefgh")
    call, name, number = desk.ask(repeatable=True)
    for _ in range(6):
        lack(desk, name, number)
        [(name, number)] = desk.asked()
    for pause in (0.1, 0.2, 0.4, 0.8):
        desk.fail(name, number, "unavailable")
        desk.turn(pause)
        [(name, number)] = desk.asked()
    desk.fail(name, number, "unavailable")
    with pytest.raises(Unavailable):
        desk.outcome(call)
    assert desk.calls.retries == 4 and desk.at_rest()


def test_a_hedge_goes_on() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(repeatable=True, hedge_after=0.05)
    desk.turn(0.05)
    [(other, again)] = desk.asked()
    lack(desk, name, number)
    assert not desk.asked() and not call.done
    desk.reply(other, again)
    assert desk.outcome(call) == "yes" and desk.at_rest()


def test_no_hedge_goes_to_who_lacks_it() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(repeatable=True, hedge_after=0.05)
    lack(desk, name, number)
    [(other, number)] = desk.asked()
    desk.turn(0.05)
    assert not desk.asked() and desk.calls.hedged == 0
    desk.reply(other, number)
    assert desk.outcome(call) == "yes" and desk.at_rest()


@pytest.mark.parametrize("code", ["unavailable", "overloaded", "no_responders", "no_such_method"])
def test_what_began_and_was_stopped_never_runs_again_unasked(code: str) -> None:
    """A server that stops a method says ``Unavailable`` without adding that it never ran."""
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask()
    desk.fail(name, number, code)
    assert call.done and not desk.asked()
    desk.turn(30.0)
    assert not desk.asked() and desk.at_rest()


def test_who_lacks_it_may_be_lost_meanwhile() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask()
    lack(desk, name, number)
    desk.lose(name)
    [(other, number)] = desk.asked()
    desk.lose(other)
    with pytest.raises(PeerLost):
        desk.outcome(call)
    assert desk.at_rest()


@pytest.mark.parametrize("options", [{}, {"key": "a"}, {"balance": "round_robin"}])
def test_large_arguments_go_to_who_takes_them(options: dict[str, Any]) -> None:
    desk = CallerDesk("b", "c", "d")
    desk.limits = {"b.1": 10, "d.1": 10}
    for _ in range(20):
        desk.call(body=bytes(11), **options)
        desk.turn()
        assert desk.asked()[0][0] == "c"
    desk.limits["c.1"] = 5
    desk.call(body=bytes(11), **options)
    desk.turn()
    ((_, error),) = desk.outcomes[desk.made[-1]]
    assert isinstance(error, BodyTooLarge)
