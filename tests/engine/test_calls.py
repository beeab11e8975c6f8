"""The caller's table: each request has one outcome, whoever answers, fails, leaves or says nothing."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg.errors import (
    BodyTooLarge,
    Cancelled,
    DeadlineExceeded,
    NoResponders,
    PeerLost,
    RemoteError,
    RequestError,
)
from meshmsg.wire import items
from meshmsg.wire.codec import Undecodable
from tests.engine.caller_desk import CallerDesk

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
    hows: list[dict[str, Any]] = [{}, {}, other, {}]
    for how in hows:
        desk.call(**how)
    desk.turn()
    assert [item[1:3] for _, item, _ in desk.said] == [[0, 2], [2, 1], [3, 1]]


def test_each_call_has_its_own_headers_however_equal_they_are() -> None:
    """To Python 1, True and 1.0 are one, also within lists and as names of maps; to MessagePack they are three."""
    desk = CallerDesk("b")
    values: list[Any] = [1, True, 1.0, 0.0, -0.0, [0], [False], {1: "a"}, {1.0: "a"}, {True: "a"}]
    for value in values:
        desk.call(headers={"x": value})
    desk.turn()
    assert [repr(item[8]["x"]) for _, item, _ in desk.said for _ in range(item[2])] == [repr(each) for each in values]


def test_calls_with_the_same_headers_leave_as_one_run() -> None:
    desk = CallerDesk("b")
    shared = {"trace": "7f", "on": True}
    for headers in (shared, shared, dict(shared), {"trace": "7f", "on": True}):
        desk.call(headers=headers)
    desk.turn()
    assert [item[2] for _, item, _ in desk.said] == [4]


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
    hows: list[dict[str, Any]] = [{}, {"repeatable": True}, {"down": True}, {"peer": "c"}]
    for how in hows:
        call = desk.call(**how)
        desk.turn()
        with pytest.raises(NoResponders) as caught:
            desk.outcome(call)
        assert (caught.value.service, caught.value.method, caught.value.peer) == ("math", "add", None)
    assert desk.at_rest()


def test_who_is_not_serving_or_not_reached_yet_is_not_asked() -> None:
    desk = CallerDesk("b")
    desk.offer("b", serving=False)
    call = desk.call()
    desk.turn()
    with pytest.raises(NoResponders, match="not serving"):
        desk.outcome(call)
    desk.offer("b", alive=False)
    call = desk.call()
    desk.turn()
    with pytest.raises(NoResponders, match="cannot be reached yet"):
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
    assert not desk.calls.timers.deadlines


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


def test_a_stream_that_ends_too_late_says_how_much_of_it_came() -> None:
    desk = CallerDesk("b")
    for count, told in ((0, "no answer"), (1, "1 item and no end"), (3, "3 items and no end")):
        call, name, number = desk.ask(down=True, timeout=0.5)
        for item in range(count):
            desk.calls.on_items(f"{name}.1", number, [item], 0)
        desk.turn(0.5)
        with pytest.raises(DeadlineExceeded, match=f"^math.add brought {told} within 0.5 s$"):
            desk.outcome(call)
