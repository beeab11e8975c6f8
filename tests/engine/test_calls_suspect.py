"""The caller's table while a provider is suspect: its connection broke, or it is silent, and that is decided soon."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg.engine.call_timers import MAX_STALE
from meshmsg.errors import Cancelled, DeadlineExceeded, NoResponders, NoSuchMethod
from meshmsg.wire import items
from tests.engine.caller_desk import CallerDesk

pytestmark = pytest.mark.guarantee("G8")

ANY_CALL: list[dict[str, Any]] = [
    {}, {"repeatable": True}, {"hedge_after": 0.0, "repeatable": True}, {"down": True}, {"up": True}, {"timeout": None},
    {"peer": "b"}, {"peer": "b.1"}, {"key": "k"}, {"method": "ping", "peer": "b"},
]  # fmt: skip


def doubt(desk: CallerDesk, name: str, **how: Any) -> None:
    desk.offer(name, alive=False, suspect=True, **how)


@pytest.mark.parametrize("how", ANY_CALL)
def test_a_call_waits_while_who_serves_is_suspect_and_is_sent_when_it_is_back(how: dict[str, Any]) -> None:
    desk = CallerDesk("b")
    doubt(desk, "b")
    call = desk.call(**how)
    desk.turn()
    desk.turn(0.005)
    assert not desk.asked() and not call.done and desk.calls.pending == 1
    desk.offer("b")
    desk.turn()
    [(name, number)] = desk.asked()
    desk.reply(name, number)
    assert desk.outcome(call) == "yes" and call.attempts == 1
    assert desk.at_rest()


@pytest.mark.parametrize("how", ANY_CALL)
@pytest.mark.parametrize("end", ["gone", "withdrawn", "not serving"])
def test_when_it_is_not_coming_back_nobody_offers_it(how: dict[str, Any], end: str) -> None:
    desk = CallerDesk("b")
    doubt(desk, "b")
    call = desk.call(**how)
    desk.turn()
    if end == "gone":
        desk.lose("b")
    elif end == "withdrawn":
        desk.calls.on_peer("b.1", "b", {}, alive=True)
        desk.turn()
    else:
        desk.offer("b", serving=False)
        desk.turn()
    if end == "not serving" and how.get("method") == "ping":
        assert len(desk.asked()) == 1, "that can be asked of who does not serve"
        return
    with pytest.raises(NoResponders):
        desk.outcome(call)
    assert not desk.asked() and desk.at_rest()


@pytest.mark.parametrize(
    ("others", "peer", "told"),
    [
        ((), "b", "'b' was suspect, and is gone; it never had this request; nobody offers 'math'"),
        (("d", "c"), "b", "'b' was suspect, and is gone; it never had this request; 'c' and 'd' offer 'math'"),
        (("c",), "b.1", "'b' was suspect, and is gone; it never had this request; 'c' offers 'math'"),
        ((), None, "'b' was suspect, and is gone; it never had this request, and nobody else offers 'math'"),
    ],
)
def test_who_waited_for_a_suspect_hears_that_it_is_gone(others: tuple[str, ...], peer: str | None, told: str) -> None:
    desk = CallerDesk("b", *others)
    doubt(desk, "b")
    call = desk.call(peer=peer)
    desk.turn()
    desk.lose("b")
    with pytest.raises(NoResponders) as caught:
        desk.outcome(call)
    assert str(caught.value) == told
    again = desk.call(peer="b")
    desk.turn()
    known = " and ".join(repr(each) for each in sorted(others)) or "nobody"
    with pytest.raises(NoResponders, match=f"^no node known as 'b' offers 'math'; {known} offers? 'math': give peer="):
        desk.outcome(again)


def test_of_several_that_are_gone_or_not_serving_both_is_told() -> None:
    desk = CallerDesk("b")
    desk.offer("c", serving=False)
    doubt(desk, "b")
    call = desk.call()
    desk.turn()
    desk.lose("b")
    with pytest.raises(NoResponders, match="never had this request, and nobody else is serving 'math', or can be re"):
        desk.outcome(call)


def test_who_neither_serves_nor_was_ever_there_is_not_waited_for() -> None:
    desk = CallerDesk()
    doubt(desk, "b", serving=False)
    desk.offer("c", alive=False)  # it has introduced itself, and was not reached yet
    for how in ({}, {"peer": "b"}, {"peer": "c"}, {"key": "k"}):
        call = desk.call(**how)  # type: ignore[arg-type]
        desk.turn()
        with pytest.raises(NoResponders, match="not serving"):
            desk.outcome(call)
    assert desk.at_rest()


def test_nobody_waits_while_somebody_else_can_be_asked() -> None:
    desk = CallerDesk("b", "c")
    doubt(desk, "b")
    assert {desk.ask()[1] for _ in range(20)} == {"c"}


def test_a_call_for_one_alone_waits_for_it_though_others_can_be_asked() -> None:
    desk = CallerDesk("b", "c")
    doubt(desk, "b")
    call = desk.call(peer="b")
    desk.turn()
    assert not desk.asked() and not call.done
    desk.offer("d")  # somebody else comes, which changes nothing for it
    desk.turn()
    assert not desk.asked() and not call.done
    desk.offer("b")
    desk.turn()
    assert [name for name, _ in desk.asked()] == ["b"]


def test_of_two_with_one_name_the_one_that_is_there_is_asked() -> None:
    desk = CallerDesk()
    desk.calls.on_peer("x.1", "twin", {"math": {}}, alive=False, suspect=True)
    desk.calls.on_peer("y.1", "twin", {"math": {}}, alive=True)
    assert desk.ask(peer="twin")[1] == "y"


def test_a_key_stays_with_its_keeper_while_that_is_suspect() -> None:
    """Its state lives there, and other callers, which may have noticed nothing, ask it all the time."""
    desk = CallerDesk("b", "c", "d")
    keeper = desk.ask(key="k")[1]
    others = {"b", "c", "d"} - {keeper}
    doubt(desk, keeper)
    call = desk.call(key="k")
    desk.turn()
    assert not desk.asked() and not call.done
    free = next(key for key in "abcdefghijk" if desk.calls.clients("math").providers.pick("fastest", 0, key).alive)  # type: ignore[union-attr]
    assert desk.ask(key=free)[1] in others, "other keys have other keepers"
    desk.lose(keeper)
    [(name, _)] = desk.asked()
    assert name in others, "it is gone, and its keys move"


def test_the_deadline_is_that_of_the_request_and_not_of_when_it_is_sent() -> None:
    desk = CallerDesk("b")
    doubt(desk, "b")
    calls = [desk.call(timeout=2.0) for _ in range(3)]
    desk.turn()
    late = desk.call(timeout=1.0)
    desk.turn(0.5)
    assert desk.calls.wake_at(1e9) == pytest.approx(101.5)
    desk.turn(1.0)
    with pytest.raises(DeadlineExceeded, match=r"math\.add was not sent within 1 s") as caught:
        desk.outcome(late)
    assert (caught.value.service, caught.value.method, caught.value.peer) == ("math", "add", None)
    desk.offer("b")
    desk.turn()
    [(_, item, _)] = desk.said
    assert item[2] == 3 and item[5] == pytest.approx(0.5), "those that were made together leave together"
    desk.turn(0.5)
    for call in calls:
        with pytest.raises(DeadlineExceeded):
            desk.outcome(call)
    assert desk.at_rest()


def test_who_comes_and_goes_decides_nothing_and_leaves_nothing_behind() -> None:
    desk = CallerDesk("b")
    doubt(desk, "b")
    calls = [desk.call(timeout=100.0), desk.call(timeout=None), desk.call(timeout=100.0, peer="b")]
    desk.turn()
    for _ in range(10 * MAX_STALE):  # others that do not serve, or are suspect as well
        doubt(desk, "c")
        desk.turn()
        desk.offer("c", serving=False)
        desk.turn()
    assert not desk.asked() and desk.calls.pending == 3
    assert desk.calls.timers.timers <= 2 * MAX_STALE
    desk.lose("b")
    for call in calls:
        with pytest.raises(NoResponders):
            desk.outcome(call)
    assert desk.at_rest()


def test_a_call_that_waits_can_be_cancelled() -> None:
    desk = CallerDesk("b")
    doubt(desk, "b")
    calls = [desk.call(), desk.call(timeout=None, down=True), desk.call(peer="b")]
    desk.turn()
    for call in calls:
        desk.calls.cancel(call)
    desk.turn()
    assert desk.calls.pending == 0
    desk.offer("b")
    desk.turn()
    assert not desk.asked() and not desk.outcomes
    assert desk.at_rest()


def test_a_call_that_is_cancelled_in_the_turn_that_decides_is_not_sent() -> None:
    desk = CallerDesk("b")
    doubt(desk, "b")
    call = desk.call()
    desk.turn()
    desk.offer("b")
    desk.calls.cancel(call)
    desk.turn()
    assert not desk.asked() and desk.at_rest()


def test_a_call_that_is_cancelled_at_its_deadline_has_no_outcome() -> None:
    desk = CallerDesk("b")
    doubt(desk, "b")
    call = desk.call(timeout=1.0)
    desk.turn()
    desk.calls.cancel(call)
    desk.turn(1.0)
    assert not desk.outcomes and desk.at_rest()


def test_a_node_that_closes_ends_what_waits() -> None:
    desk = CallerDesk("b")
    doubt(desk, "b")
    calls = [desk.call(timeout=timeout) for timeout in (None, 5.0)]
    desk.turn()
    desk.calls.close(desk.now)
    desk.turn()
    for call in calls:
        with pytest.raises(Cancelled):
            desk.outcome(call)
    assert desk.at_rest()


def test_back_and_suspect_again_within_one_turn() -> None:
    desk = CallerDesk("b")
    doubt(desk, "b")
    call = desk.call()
    desk.turn()
    for _ in range(3):
        desk.offer("b")
        doubt(desk, "b")
    desk.turn()
    assert not desk.asked() and not call.done
    desk.offer("b")
    desk.turn()
    assert len(desk.asked()) == 1, "once"


# -- those that were sent before -----------------------------------------------------------------------------


def test_what_was_sent_before_stays_where_it_is() -> None:
    desk = CallerDesk("b")
    call, name, number = desk.ask()
    doubt(desk, "b")
    desk.turn(1.0)
    assert not desk.asked()
    desk.reply(name, number)
    assert desk.outcome(call) == "yes" and desk.at_rest()


def test_a_retry_waits_and_does_not_count_the_time() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(repeatable=True)
    other = "c" if name == "b" else "b"
    doubt(desk, other)
    desk.lose(name)
    desk.turn(0.1)  # the pause before a retry
    assert not desk.asked() and not call.done
    desk.turn(5.0)
    desk.offer(other)
    desk.turn()
    [(name, number)] = desk.asked()
    assert (name, call.attempts) == (other, 2)
    desk.reply(name, number)
    assert desk.outcome(call) == "yes" and desk.at_rest()


@pytest.mark.parametrize("how", [{}, {"up": True}, {"down": True}])
def test_what_did_not_begin_waits_for_the_other_one(how: dict[str, Any]) -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(**how)
    other = "c" if name == "b" else "b"
    doubt(desk, other)
    desk.calls.on_peer(f"{name}.1", name, {}, alive=True)  # it closes
    desk.fail(name, number, "unavailable", never_ran=True)
    assert not desk.asked() and not call.done
    desk.offer(other)
    desk.turn()
    [(name, number)] = desk.asked()
    assert name == other
    desk.reply(name, number)
    assert desk.outcome(call) == "yes" and desk.at_rest()


def test_items_that_end_while_the_call_waits_end_at_who_gets_it() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(up=True)
    other = "c" if name == "b" else "b"
    doubt(desk, other)
    desk.calls.on_up_credit(f"{name}.1", number, 16)  # so the application takes the next item, and there is none
    desk.calls.on_peer(f"{name}.1", name, {}, alive=True)
    desk.fail(name, number, "unavailable", never_ran=True)
    assert call.up is not None and call.up.room == 0
    desk.calls.end_items(call)
    desk.turn()
    assert not desk.said, "nobody has the call"
    desk.offer(other)
    desk.turn()
    assert [(name, item[0]) for name, item, _ in desk.said] == [(other, items.CALL), (other, items.UP_END)]
    number = desk.said[0][1][1]
    assert desk.said[1][1] == [items.UP_END, number]
    desk.reply(other, number)
    assert desk.outcome(call) == "yes" and desk.at_rest()


def test_a_method_that_others_lack_may_be_at_who_is_suspect() -> None:
    desk = CallerDesk("b", "c")
    doubt(desk, "c")
    call, _, number = desk.ask()
    desk.fail("b", number, "no_such_method", never_ran=True)
    assert not desk.asked() and not call.done
    desk.offer("c")
    desk.turn()
    [(name, number)] = desk.asked()
    assert name == "c"
    desk.reply(name, number)
    assert desk.outcome(call) == "yes" and desk.at_rest()


def test_a_method_that_all_others_lack_when_that_one_is_gone() -> None:
    desk = CallerDesk("b", "c")
    doubt(desk, "c")
    call, _, number = desk.ask()
    desk.fail("b", number, "no_such_method", never_ran=True)
    desk.lose("c")
    while asked := desk.asked():
        desk.fail("b", asked[0][1], "no_such_method", never_ran=True)
    with pytest.raises(NoSuchMethod):
        desk.outcome(call)
    assert desk.at_rest()


@pytest.mark.parametrize("both", [False, True])
def test_a_hedge_is_not_kept_for_who_is_suspect(both: bool) -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(repeatable=True, hedge_after=0.1)
    doubt(desk, "c" if name == "b" else "b")
    if both:
        doubt(desk, name)
    desk.turn(0.2)
    assert not desk.asked() and desk.calls.hedged == 0
    desk.reply(name, number)
    assert desk.outcome(call) == "yes" and desk.at_rest()


def test_a_hedge_whose_provider_is_suspect_in_the_last_moment_does_not_wait() -> None:
    desk = CallerDesk("b", "c")
    call, name, number = desk.ask(repeatable=True, hedge_after=0.1)
    desk.now += 0.2
    desk.calls.tick(desk.now)
    doubt(desk, "b")
    doubt(desk, "c")
    desk.turn()
    assert not desk.asked() and desk.calls.pending == 1
    desk.reply(name, number)
    assert desk.outcome(call) == "yes" and desk.at_rest()


def test_a_survey_asks_who_is_suspect_as_well() -> None:
    desk = CallerDesk("b", "c", "d")
    doubt(desk, "c")
    doubt(desk, "d", serving=False)
    desk.offer("e", alive=False)
    assert {each.name for each in desk.calls.whom_to_survey("math", "add")} == {"b", "c"}
    assert {each.name for each in desk.calls.whom_to_survey("math", "stats")} == {"b", "c", "d"}
    assert {each.name for each in desk.calls.responders("math")} == {"b"}
