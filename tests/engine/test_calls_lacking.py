"""The caller's table: a provider that has no such method, as in the middle of an upgrade, and who is asked instead."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg.errors import BodyTooLarge, NoResponders, NoSuchMethod, Overloaded, PeerLost, Unavailable
from meshmsg.wire.large import LARGE_BYTES
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


LARGE = bytes(LARGE_BYTES)


@pytest.mark.parametrize("balance", ["fastest", "round_robin", "least_outstanding", "random"])
def test_large_arguments_go_to_those_who_take_them(balance: str) -> None:
    desk = CallerDesk("b", "c", "d", "e")
    desk.limits = {"b.1": 10, "d.1": 10}
    asked = []
    for _ in range(40):
        call = desk.call(body=LARGE, balance=balance)
        desk.turn()
        [(name, number)] = desk.asked()
        asked.append(name)
        desk.reply(name, number)
        assert desk.outcome(call) == "yes"
    assert set(asked) == {"c", "e"}
    if balance == "round_robin":
        assert asked.count("c") == asked.count("e") == 20


@pytest.mark.parametrize("key", [None, "a"])
def test_where_nobody_takes_them_that_is_the_outcome(key: str | None) -> None:
    desk = CallerDesk("b", "c")
    desk.limits = {"b.1": 10, "c.1": 10}
    call = desk.call(body=LARGE, key=key)
    desk.turn()
    with pytest.raises(BodyTooLarge, match="takes 10 bytes of arguments"):
        desk.outcome(call)


def test_who_keeps_a_key_keeps_it_for_large_arguments_too() -> None:
    desk = CallerDesk("b", "c")
    desk.limits = {"b.1": 10}
    for key in map(str, range(20)):
        desk.call(key=key)
        large = desk.call(key=key, body=LARGE)
        desk.turn()
        keeper, *more = [name for name, _ in desk.asked()]
        assert more == (["c"] if keeper == "c" else [])
        assert (large in desk.outcomes) is (keeper == "b")


def test_who_is_overloaded_is_given_time_although_others_take_less() -> None:
    desk = CallerDesk("b", "c")
    desk.limits = {"b.1": 10}
    desk.call(body=LARGE, repeatable=True)
    desk.turn()
    [(name, number)] = desk.asked()
    desk.fail(name, number, "overloaded", never_ran=True, retry_after=0.5)
    desk.turn(0.4)
    assert not desk.asked(), "it said when to come again"
    desk.turn(0.6)
    assert [name for name, _ in desk.asked()] == ["c"]


def test_what_was_sent_once_is_not_too_large() -> None:
    desk = CallerDesk("b", "c")
    desk.limits = {"b.1": 10}
    call = desk.call(body=LARGE, repeatable=True)
    desk.turn()
    assert [name for name, _ in desk.asked()] == ["c"]
    desk.calls.on_peer_gone("c.1", "c", "crashed", desk.now)
    for _ in range(100):
        desk.turn(0.5)
    assert not desk.asked()
    with pytest.raises(NoResponders, match="takes fewer than these 65536 bytes"):
        desk.outcome(call)


def test_a_hedge_goes_to_nobody_who_takes_less() -> None:
    desk = CallerDesk("b", "c")
    desk.limits = {"b.1": 10}
    desk.call(body=LARGE, repeatable=True, hedge_after=0.1)
    desk.turn()
    desk.turn(0.2)
    assert len(desk.asked()) == 1 and not desk.calls.hedged
