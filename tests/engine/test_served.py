"""The server's table: every call is answered once, runs at most once, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg.engine.served import MAX_STALE, Service
from meshmsg.engine.streams import BYTES_UNDER_WAY, WINDOW_ITEMS
from meshmsg.errors import NameClash, ProtocolError
from meshmsg.options import RouterOptions
from meshmsg.wire import items
from meshmsg.wire.codec import Undecodable, make_packer
from tests.engine.service_desk import PLAIN, Desk

pytestmark = pytest.mark.guarantee("G8")

pack = make_packer()


# --- one call -----------------------------------------------------------------------------------------------


def test_a_call_is_run_and_answered() -> None:
    desk = Desk()
    number = desk.call([[2, 3], {"carry": True}], method="add", headers={"trace": "x"}, remaining=2.0)
    assert desk.serving.arrived == {"math"}
    served = desk.take()
    assert (served.peer, served.peer_name, served.number) == ("a.1", "a", number)
    assert (served.service, served.method, served.args, served.kwargs) == ("math", "add", [2, 3], {"carry": True})
    assert (served.deadline, served.headers, served.received_at, served.flags) == (102.0, {"trace": "x"}, 100.0, 0)
    assert (served.state, served.up, served.out, served.cancelled) == ("running", None, None, None)
    assert (desk.math.running, desk.math.waiting, desk.math.requests) == (1, 0, 1)
    desk.serving.reply(served, pack(5))
    assert served.state == "done" and desk.math.running == 0
    assert desk.serving.take_output() == {"a.1": ([[items.RESULT, [number]]], [pack(5)])}
    assert desk.serving.take_output() == {}
    assert desk.at_rest()


def test_a_run_of_calls_is_answered_with_one_item_and_watched_by_one_deadline() -> None:
    desk = Desk()
    first = desk.call(*[[[index], {}] for index in range(512)], remaining=5.0)
    assert len(desk.serving._deadlines) == 1
    taken = desk.take_all()
    assert [served.args for served in taken] == [[index] for index in range(512)]
    for served in taken:
        desk.serving.reply(served, pack(served.args[0]))
    output = desk.serving.take_output()
    assert output == {"a.1": ([[items.RESULT, list(range(first, first + 512))]], [pack(i) for i in range(512)])}
    assert desk.at_rest()


def test_callers_are_told_apart() -> None:
    desk = Desk()
    desk.call(peer="a.1")
    desk.call(peer="b.1")
    desk.call(peer="a.2")  # another life of the same node
    for served in desk.take_all():
        desk.serving.reply(served, pack(served.peer))
    assert {peer: bodies for peer, (_, bodies) in desk.serving.take_output().items()} == {
        peer: [pack(peer)] for peer in ("a.1", "b.1", "a.2")
    }


def test_bodies_stay_with_their_items() -> None:
    desk = Desk(concurrency=8)
    stream = desk.call(flags=items.WANTS_ITEMS, window=9)
    first = desk.call(PLAIN, PLAIN, PLAIN)
    streaming, one, two, three = desk.take_all()
    desk.serving.reply(one, b"\x01")
    desk.serving.send_items(streaming, [b"\x02", b"\x03"])
    desk.serving.fail(two, "error", "ValueError", "no")
    desk.serving.reply(three, b"\x04")
    desk.serving.send_items(streaming, [b"\x05"])
    desk.serving.end(streaming)
    told, bodies = desk.serving.take_output()["a.1"]
    by_item = []
    for item in told:
        count = items.bodies_of(item)
        by_item.append((item[0], item[1], bodies[:count]))
        bodies = bodies[count:]
    assert bodies == []
    assert by_item == [
        (items.ITEMS, stream, [b"\x02", b"\x03"]),
        (items.FAULT, first + 1, []),
        (items.ITEMS, stream, [b"\x05"]),
        (items.END, stream, []),
        (items.RESULT, [first, first + 2], [b"\x01", b"\x04"]),
    ]


def test_an_error_travels_as_texts() -> None:
    desk = Desk()
    number = desk.call()
    desk.serving.fail(desk.take(), "out_of_stock", "shop.SoldOut", "none left", "Traceback\n", 1.5, True)
    assert desk.fault() == {
        "op": items.FAULT,
        "number": number,
        "code": "out_of_stock",
        "type": "shop.SoldOut",
        "message": "none left",
        "traceback": "Traceback\n",
        "retry_after": 1.5,
        "flags": items.NEVER_RAN,
    }
    assert (desk.math.errors, desk.math.last_error) == (1, "add: shop.SoldOut: none left")
    assert desk.at_rest()


def test_no_text_or_number_of_an_error_costs_the_link() -> None:
    """What an exception says may be anything; a reader takes only so much, and drops the link of who sends more."""
    desk = Desk()
    long = "x" * 50_000 + "the end"
    others = ("a\nb", "\x1b[31m", "two\nlines", "\ud800")
    for texts, retry_after in (
        ((long, long, long, long), float("nan")),
        (others, 10**20),
        (others, float("inf")),
        (("", "", "\udcff", None), -1.0),
    ):
        desk.call()
        desk.serving.fail(desk.take(), *texts, retry_after=retry_after)
        fault = desk.fault()  # checked there as a reader does
        assert fault["code"] and fault["retry_after"] is None
        pack([fault["message"], fault["traceback"]])
        if texts[2] is long:
            assert fault["message"].startswith("xxx") and fault["message"].endswith("the end")
            assert len(fault["message"]) == items.MAX_MESSAGE and len(fault["traceback"]) == items.MAX_TRACEBACK


# --- exactly one answer -------------------------------------------------------------------------------------


def test_only_the_first_answer_counts() -> None:
    desk = Desk()
    number = desk.call(flags=items.WANTS_ITEMS, window=3)
    served = desk.take()
    desk.serving.reply(served, b"\x01")
    desk.serving.reply(served, b"\x02")
    desk.serving.fail(served, "error", "ValueError", "late")
    desk.serving.send_items(served, [b"\x03"])
    desk.serving.end(served)
    assert desk.told() == [[items.RESULT, [number]]]
    assert desk.math.running == 0 and desk.math.errors == 0
    assert desk.at_rest()


@pytest.mark.parametrize("running", [False, True])
def test_a_cancelled_call_gets_no_answer_and_stops(running: bool) -> None:
    desk = Desk()
    number = desk.call(remaining=5.0)
    stopped: list[str | None] = []
    served = desk.take() if running else desk.math.queue[0]
    if running:
        served.on_cancel = lambda: stopped.append(served.cancelled)
    desk.serving.on_cancel("a.1", [number, 77])
    desk.serving.on_cancel("a.1", [number])
    assert served.cancelled == "cancelled by the caller" and served.state == "done"
    assert stopped == (["cancelled by the caller"] if running else [])
    assert desk.math.take(desk.now) is None, "a call that was given up ran"
    desk.serving.reply(served, b"\x01")
    desk.serving.fail(served, "cancelled", "", "")
    assert desk.told() == []
    assert (desk.math.cancelled, desk.math.errors) == (1, 0)
    assert desk.at_rest()


def test_an_answer_that_crosses_the_cancel_is_not_taken_back() -> None:
    desk = Desk()
    number = desk.call()
    served = desk.take()
    desk.serving.reply(served, b"\x01")
    desk.serving.on_cancel("a.1", [number])
    assert served.cancelled is None and desk.math.cancelled == 0
    assert desk.told() == [[items.RESULT, [number]]]


def test_a_caller_that_is_gone_is_told_nothing_and_what_runs_for_it_stops() -> None:
    desk = Desk(concurrency=2)
    desk.call(PLAIN, PLAIN, PLAIN, PLAIN, remaining=9.0)
    desk.call(peer="b.1", remaining=9.0)
    answered, running = desk.take(), desk.take()
    stopped: list[str | None] = []
    running.on_cancel = lambda: stopped.append(running.cancelled)
    desk.serving.reply(answered, b"\x01")
    desk.serving.on_peer_gone("a.1")
    assert stopped == ["peer lost"]
    desk.serving.reply(running, b"\x02")
    desk.serving.check()
    [left] = desk.take_all()
    assert left.peer == "b.1"
    desk.serving.reply(left, b"\x03")
    assert list(desk.serving.take_output()) == ["b.1"]
    assert desk.math.cancelled == 3
    desk.serving.on_peer_gone("a.1")
    desk.serving.on_peer_gone("never-seen.1")
    assert desk.at_rest()


# --- deadlines ----------------------------------------------------------------------------------------------


def test_time_up_cancels_what_runs_and_what_waits() -> None:
    desk = Desk()
    first = desk.call(PLAIN, PLAIN, PLAIN, remaining=2.0)
    desk.call(remaining=9.0, peer="b.1")
    done, running = desk.take(), desk.take()
    waiting = desk.math.queue[0]
    desk.serving.reply(done, b"\x01")
    stopped: list[str | None] = []
    running.on_cancel = lambda: stopped.append(running.cancelled)
    assert desk.serving.wake_at() == desk.now + 2.0
    desk.pass_time(1.99)
    assert stopped == []
    desk.pass_time(0.01)
    assert stopped == ["deadline"] and running.cancelled == waiting.cancelled == "deadline"
    told = desk.told()
    assert [item[:3] for item in told] == [
        [items.FAULT, first + 1, "deadline_exceeded"],
        [items.FAULT, first + 2, "deadline_exceeded"],
        [items.RESULT, [first]],
    ]
    assert "was not through" in told[0][4] and "had not begun" in told[1][4]
    assert desk.math.expired == 2
    assert desk.serving.wake_at() == 109.0
    assert [served.peer for served in desk.take_all()] == ["b.1"]


def test_a_call_whose_time_is_up_never_begins() -> None:
    """Also when the worker is sooner than the engine's timer."""
    desk = Desk()
    number = desk.call(remaining=1.0)
    desk.now += 1.0
    assert desk.math.take(desk.now) is None
    assert desk.fault()["code"] == "deadline_exceeded"
    desk.pass_time(0)
    assert desk.told() == [] and desk.math.expired == 1 and number == 0
    assert desk.at_rest()


def test_deadlines_of_answered_calls_are_forgotten() -> None:
    """One call at a time with a long timeout: what waits for the clock must not pile up."""
    desk = Desk()
    desk.call(remaining=1000.0)
    hanging = desk.take()
    for index in range(20 * MAX_STALE):
        desk.call(remaining=500.0 + index % 7)
        desk.serving.reply(desk.take(), b"\x01")
        assert len(desk.serving._deadlines) <= 2 * MAX_STALE + 2
    assert desk.serving.wake_at() == desk.now + 1000.0  # not one of those that lead nowhere
    desk.serving.reply(hanging, b"\x01")
    assert desk.at_rest()


# --- services -----------------------------------------------------------------------------------------------


def test_an_unknown_service_is_said_at_once() -> None:
    desk = Desk()
    desk.call(PLAIN, PLAIN, service="chemistry")
    told = desk.told()
    assert [(item[2], item[7]) for item in told] == [("no_responders", items.NEVER_RAN)] * 2
    assert "chemistry" in told[0][4]
    assert desk.serving.arrived == set() and desk.at_rest()


def test_a_name_is_offered_once() -> None:
    desk = Desk()
    with pytest.raises(NameClash, match="math"):
        desk.serving.open("math", RouterOptions())
    desk.serving.close("math")
    assert isinstance(desk.serving.open("math", RouterOptions()), Service)


def test_a_closing_service_answers_what_runs_and_returns_what_waits() -> None:
    desk = Desk()
    first = desk.call(PLAIN, PLAIN, remaining=5.0)
    running = desk.take()
    desk.serving.close("math")
    desk.serving.close("math")
    fault = desk.fault()
    assert (fault["number"], fault["code"], fault["flags"]) == (first + 1, "unavailable", items.NEVER_RAN)
    desk.call()
    assert desk.fault()["code"] == "no_responders"
    assert running.cancelled is None
    desk.serving.reply(running, b"\x01")
    assert desk.told() == [[items.RESULT, [first]]]
    assert desk.math.errors == 0 and desk.at_rest()


def test_a_closing_node_tells_every_caller() -> None:
    desk = Desk()
    first = desk.call(PLAIN, PLAIN)
    running = desk.take()
    stopped: list[str | None] = []
    running.on_cancel = lambda: stopped.append(running.cancelled)
    desk.serving.close_all()
    assert [(item[1], item[2], item[7]) for item in desk.told()] == [
        (first + 1, "unavailable", items.NEVER_RAN),
        (first, "peer_lost", 0),  # nobody knows how far it came
    ]
    assert stopped == ["node closed"]
    assert desk.at_rest()


# --- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (Undecodable("bad timestamp"), "cannot be read: bad timestamp"),
        (None, "array of two"),
        ([[1]], "array of two"),
        ([1, {}], "array of two"),
        ([[1], []], "map with texts"),
        ([[1], {1: 2}], "map with texts"),
        ([[1], {"a": 1, b"b": 2}], "map with texts"),
    ],
)
def test_bad_arguments_cost_their_own_call_only(body: Any, words: str) -> None:
    desk = Desk()
    first = desk.call([[1], {}], body, [[3], {"x": 1}], remaining=3.0)
    fault = desk.fault()
    assert (fault["number"], fault["code"], fault["flags"]) == (first + 1, "bad_request", 0)
    assert words in fault["message"] and fault["message"].startswith("math.add: ")
    assert [served.args for served in desk.take_all()] == [[1], [3]]
    assert desk.math.errors == 1


def test_arguments_that_came_as_tuples_are_taken() -> None:
    """The codec reads a body with an array as a dict's key so."""
    desk = Desk()
    desk.call((({(1, 2): 3},), {}))
    assert desk.take().args == [{(1, 2): 3}]


def test_a_run_of_bad_arguments_only_brings_nothing() -> None:
    desk = Desk()
    desk.call(None, None, remaining=3.0)
    assert desk.serving.arrived == set() and desk.at_rest()


# --- streams ------------------------------------------------------------------------------------------------


def test_items_leave_as_the_caller_takes_them() -> None:
    desk = Desk()
    number = desk.call(flags=items.WANTS_ITEMS, window=2)
    served = desk.take()
    assert served.out is not None and served.out.room == 2
    woken: list[int] = []
    served.out.wake = lambda: woken.append(served.out.room if served.out else -1)
    desk.serving.send_items(served, [b"\x01"])
    desk.serving.send_items(served, [])
    desk.serving.send_items(served, [b"\x02"])
    assert desk.told() == [[items.ITEMS, number, 2]]
    with pytest.raises(AssertionError, match="room for 0"):
        desk.serving.send_items(served, [b"\x03"])
    desk.serving.on_credit("a.1", number, 5)
    assert woken == [3]
    desk.serving.send_items(served, [b"\x03"])
    desk.serving.end(served)
    assert desk.told() == [[items.ITEMS, number, 1], [items.END, number]]
    desk.serving.on_credit("a.1", number, 9)  # crossed the end
    assert desk.at_rest()


def test_a_cancelled_stream_wakes_who_waits_for_room() -> None:
    desk = Desk()
    number = desk.call(flags=items.WANTS_ITEMS, window=0)
    served = desk.take()
    woken: list[str | None] = []
    assert served.out is not None
    served.out.wake = lambda: woken.append(served.out.cut if served.out else None)
    desk.serving.on_cancel("a.1", [number])
    assert woken == ["cancelled by the caller"]
    desk.serving.send_items(served, [b"\x01"])
    desk.serving.end(served)
    assert desk.told() == []


def test_the_callers_items_come_as_there_is_credit() -> None:
    desk = Desk()
    number = desk.call(flags=items.SENDS_ITEMS)
    assert desk.told() == [[items.UP_CREDIT, number, WINDOW_ITEMS, 0, BYTES_UNDER_WAY]]
    desk.serving.on_up_items("a.1", number, list(range(WINDOW_ITEMS)))  # also while it waits for a worker
    served = desk.take()
    assert served.up is not None and served.up.waiting == WINDOW_ITEMS
    assert not desk.serving.grant(served) and desk.told() == []
    half = [served.up.take() for _ in range(WINDOW_ITEMS // 2)]
    assert half == list(range(WINDOW_ITEMS // 2))
    assert desk.serving.grant(served)
    assert desk.told() == [[items.UP_CREDIT, number, WINDOW_ITEMS + WINDOW_ITEMS // 2, WINDOW_ITEMS // 2]]
    desk.serving.on_up_end("a.1", number)
    assert served.up.ended and served.up.fault is None
    desk.serving.reply(served, b"\x01")
    assert not desk.serving.grant(served)
    desk.serving.on_up_items("a.1", number, [1, 2])
    desk.serving.on_up_end("a.1", number)
    assert desk.serving.late_items == 2
    assert desk.told() == [[items.RESULT, [number]]]


def test_a_lost_caller_ends_its_stream_with_the_reason() -> None:
    desk = Desk()
    desk.call(flags=items.SENDS_ITEMS)
    served = desk.take()
    desk.serving.on_peer_gone("a.1")
    assert served.up is not None and (served.up.ended, served.up.fault) == (True, "peer lost")


@pytest.mark.parametrize("answer", ["reply", "end", "fail"])
def test_streams_end_with_the_answer(answer: str) -> None:
    desk = Desk()
    desk.call(flags=items.SENDS_ITEMS | items.WANTS_ITEMS, window=4)
    served = desk.take()
    if answer == "reply":
        desk.serving.reply(served, b"\x01")
    elif answer == "end":
        desk.serving.end(served)
    else:
        desk.serving.fail(served, "error", "ValueError", "no")
    assert served.up is not None and served.up.ended
    assert served.out is not None and (served.out.room, served.out.cut) == (0, "the request is over")


# --- hostile callers ----------------------------------------------------------------------------------------


@pytest.mark.guarantee("G11")
def test_what_breaks_the_protocol_is_refused() -> None:
    desk = Desk()
    plain = desk.call()
    up = desk.call(flags=items.SENDS_ITEMS)
    serving = desk.serving
    with pytest.raises(ProtocolError, match="credit for call 0"):
        serving.on_credit("a.1", plain, 5)
    with pytest.raises(ProtocolError, match="came without a stream"):
        serving.on_up_items("a.1", plain, [1])
    with pytest.raises(ProtocolError, match="came without a stream"):
        serving.on_up_end("a.1", plain)
    with pytest.raises(ProtocolError, match="credit"):
        serving.on_up_items("a.1", up, [1] * (WINDOW_ITEMS + 1))
    item = [items.CALL, up, 1, "math", "add", None, 0, 0, None]
    with pytest.raises(ProtocolError, match="call 1 after 1"):
        serving.on_call("a.1", "a", item, [PLAIN], 0.0)
    with pytest.raises(ProtocolError, match="1 bodies for 2"):
        serving.on_call("a.1", "a", [items.CALL, 9, 2, "math", "add", None, 0, 0, None], [PLAIN], 0.0)
    serving.check()
    # Of calls that nobody knows there may be talk: they may have been answered just now.
    serving.on_credit("a.1", 99, 5)
    serving.on_up_end("z.9", 99)
    serving.on_cancel("z.9", [99])
