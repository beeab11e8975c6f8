"""An error that comes quickly makes nobody look faster, or less busy, than an answer would."""

from __future__ import annotations

from collections import Counter
from heapq import heappop, heappush

import pytest

from meshmsg.engine.call import Call
from meshmsg.engine.providers import FAILURES_TO_EJECT, Latencies
from meshmsg.wire import items
from tests.engine.caller_desk import CallerDesk

pytestmark = pytest.mark.guarantee("G8")

USUAL_S = 0.010


def run(
    desk: CallerDesk, broken: str, balance: str, calls: int, *, lanes: int = 8, code: str = "error"
) -> Counter[str]:
    """So many callers ask one call after the other; who is ``broken`` raises at once. Whom they asked."""
    shares: Counter[str] = Counter()
    under_way: list[tuple[float, str, int]] = []
    free = lanes
    while sum(shares.values()) < calls or under_way:
        made: list[Call] = []
        while free and sum(shares.values()) + len(made) < calls:
            made.append(desk.call(balance=balance))
            free -= 1
        desk.turn()
        for name, number in desk.asked():
            shares[name] += 1
            took = 0.0002 if name in broken else USUAL_S * (0.8 + 0.4 * desk.calls._generator.random())
            heappush(under_way, (desk.now + took, name, number))
        at, name, number = heappop(under_way)
        desk.turn(max(0.0, at - desk.now))
        if name in broken:
            desk.fail(name, number, code, raised="ConnectionError")
        else:
            desk.reply(name, number)
        free += 1
    return shares


@pytest.mark.parametrize("balance", ["fastest", "least_outstanding", "round_robin"])
@pytest.mark.parametrize("broken", ["b", "bc"])
@pytest.mark.parametrize("code", ["error", "bad_request", "mine", "overloaded"])
def test_who_fails_at_once_gets_its_share_and_no_more(balance: str, broken: str, code: str) -> None:
    desk = CallerDesk(*"bcde")
    shares = run(desk, broken, balance, 2000, code=code)
    for name in broken:
        assert 0.1 * 2000 < shares[name] < 0.3 * 2000, shares
    assert desk.at_rest()


@pytest.mark.parametrize("balance", ["fastest", "least_outstanding"])
def test_who_begins_to_fail_gets_no_more_than_before(balance: str) -> None:
    desk = CallerDesk(*"bcde")
    run(desk, "", balance, 400)
    shares = run(desk, "b", balance, 2000)
    assert 0.1 * 2000 < shares["b"] < 0.3 * 2000, shares


def test_errors_that_are_answers_cost_a_provider_nothing() -> None:
    """Where all of them say now and then that something is not there, they share the calls as before."""
    desk = CallerDesk("b", "c")
    for _ in range(30):
        for name in "bc":
            _, _, number = desk.ask(peer=name)
            desk.turn(USUAL_S)
            desk.reply(name, number)
    costs = {each.name: each.cost for each in desk.calls.responders("math")}
    for _ in range(20):
        _, _, number = desk.ask(peer="b")
        desk.turn(0.001)
        desk.fail("b", number, "not_found", raised="RemoteError")
    assert {each.name: each.cost for each in desk.calls.responders("math")} == costs
    desk.turn(2 * USUAL_S)
    assert {desk.ask(balance="least_outstanding")[1] for _ in range(2)} == {"b", "c"}, "nothing is held against it"


def test_who_has_no_room_while_its_methods_hang_is_left_out_all_the_same() -> None:
    desk = CallerDesk("b", "c", "d")
    for _ in range(20):
        _, name, number = desk.ask(peer="c")
        desk.turn(USUAL_S)
        desk.reply(name, number)
    for _ in range(FAILURES_TO_EJECT):
        desk.ask(peer="b", timeout=1.0)
        _, name, number = desk.ask(peer="b")
        desk.fail(name, number, "overloaded", never_ran=True)
        desk.turn(1.0)
    assert {desk.ask(balance="round_robin")[1] for _ in range(20)} == {"c", "d"}


def test_the_median_is_known_from_the_first_answer_on() -> None:
    latencies = Latencies()
    assert latencies.median() is None
    for count in range(1, 101):
        latencies.add(count / 100)
        if count in (1, 2, 3, 19, 20, 21, 100):
            assert latencies.median() == (count - (count == 21) + 1) // 2 / 100, "worked out now and then"


def test_a_slow_error_is_as_slow_as_it_was() -> None:
    desk = CallerDesk("b", "c")
    for _ in range(30):
        _, name, number = desk.ask(peer="b")
        desk.turn(USUAL_S)
        desk.reply(name, number)
    _, name, number = desk.ask(peer="b")
    desk.turn(2.0)
    desk.fail(name, number, "error", raised="TimeoutError")
    [cost] = [each.cost for each in desk.calls.responders("math") if each.name == "b"]
    assert cost == pytest.approx(2.0)


def test_how_long_a_stream_lasted_until_it_failed_says_nothing() -> None:
    desk = CallerDesk("b")
    _, name, number = desk.ask(down=True, timeout=None)
    desk.turn(100.0)
    desk.fail(name, number, "error", raised="ValueError")
    [provider] = desk.calls.responders("math")
    assert (provider.cost, provider.pending) == (0.0, 0)


def test_what_is_held_against_a_provider_is_bounded_and_ends() -> None:
    desk = CallerDesk("b")
    for _ in range(30):
        _, name, number = desk.ask()
        desk.turn(5.0)
        desk.reply(name, number)
    for _ in range(3):
        made = [desk.call(timeout=None) for _ in range(1000)]
        desk.turn()
        for call in made:
            desk.calls.on_fault("b.1", [items.FAULT, call.number, "error", "ValueError", "no", None, None, 0], desk.now)
    desk.turn()
    [provider] = desk.calls.responders("math")
    assert 0 < provider.count_open(desk.now) <= 1000
    assert provider.count_open(desk.now + 5.0) == 0
