"""Requests: how they are told, that each has one outcome (G8), and that nothing is left of them."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import weakref
from dataclasses import dataclass
from typing import Any

import pytest

from meshmsg import (
    BadRequest,
    BodyTooLarge,
    Cancelled,
    ConfigurationError,
    DeadlineExceeded,
    EncodeError,
    ForkedProcess,
    NodeClosed,
    NoResponders,
    PeerLost,
    RemoteError,
    Retry,
    WrongThread,
)
from meshmsg.sockets.context import current
from meshmsg.sockets.dealer import Dealer
from meshmsg.wire.items import CALL, CANCEL
from tests.sockets.far_end import FarEnd, outcome


def start(coroutine: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(coroutine)


@dataclass
class Point:
    x: int
    y: int


class AnyContext:
    """A context of a request that is being served, as far as a dealer looks at it."""

    service, method = "shop", "order"

    def __init__(self, deadline: float | None, remaining: float | None) -> None:
        self.deadline = deadline
        self.remaining = remaining


# --- outcomes -----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G8")
async def test_a_request_brings_its_result() -> None:
    far = FarEnd()
    dealer = far.dealer(timeout=5)
    asked = start(dealer.request("add", 2, b=3))
    name, item, bodies = await far.next(CALL)
    assert name == "b1" and bodies == [[[2], {"b": 3}]]
    assert item[2:5] == [1, "math", "add"] and item[6:] == [0, 0, None]
    assert 0 < item[5] <= 5
    far.reply(item[1], 5)
    assert await asked == 5
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_requests_of_one_turn_leave_as_one_item() -> None:
    far = FarEnd()
    dealer = far.dealer()
    asked = [start(dealer.add(number, 1)) for number in range(100)]
    _, item, bodies = await far.next(CALL)
    assert item[2] == 100 and bodies == [[[number, 1], {}] for number in range(100)]
    assert far.count(CALL) == 0
    for number in range(100):
        far.reply(item[1] + number, number + 1)
    assert await asyncio.gather(*asked) == list(range(1, 101))
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_an_error_says_what_it_is_about() -> None:
    far = FarEnd()
    dealer = far.dealer()
    asked = start(outcome(dealer.request("add", 1)))
    _, item, _ = await far.next(CALL)
    far.fault(item[1], "out_of_stock", "none left")
    error = await asked
    assert type(error) is RemoteError and str(error) == "none left"
    assert (error.code, error.peer, error.service, error.method) == ("out_of_stock", "b1", "math", "add")
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_nobody_to_ask_is_known_at_once() -> None:
    far = FarEnd()
    far.lose()
    dealer = far.dealer(timeout=None)
    with pytest.raises(NoResponders, match="nobody offers 'math'"):
        await dealer.request("add")
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_a_lost_peer_and_a_passed_deadline_are_outcomes() -> None:
    far = FarEnd("b1", "b2")
    dealer = far.dealer(timeout=5)
    lost, late = start(outcome(dealer.request("a", peer="b1"))), start(outcome(dealer.request("b", peer="b2")))
    await far.next(CALL)
    await far.rest()
    far.lose("b1")
    assert type(await lost) is PeerLost
    far.pass_time(6)
    assert type(await late) is DeadlineExceeded
    assert (await far.next(CANCEL))[0] == "b2"
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_who_is_cancelled_cancels_the_method() -> None:
    far = FarEnd()
    dealer = far.dealer()
    asked = start(dealer.request("add"))
    _, item, _ = await far.next(CALL)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert (await far.next(CANCEL))[1] == [CANCEL, [item[1]]]
    far.reply(item[1], 1)  # too late
    await far.rest()
    assert far.calls.late_replies == 1
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_a_request_that_is_cancelled_before_it_leaves_never_does() -> None:
    far = FarEnd()
    dealer = far.dealer()
    asked = start(dealer.request("add"))
    far.driver.scheduled = True  # no turn meanwhile
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait({asked})
    far.driver.turn()
    assert far.sent == []
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_an_answer_that_comes_with_the_cancelling_is_not_cancelled_again() -> None:
    far = FarEnd()
    dealer = far.dealer()
    asked = start(dealer.request("add"))
    _, item, _ = await far.next(CALL)
    asked.cancel()
    far.reply(item[1], 1)
    far.driver.turn()  # the outcome is there before the task hears of its end
    await asyncio.wait({asked})
    await far.rest()
    assert asked.cancelled() and far.count(CANCEL) == 0
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_closing_gives_up_what_is_under_way() -> None:
    far = FarEnd()
    first, second = far.dealer(), far.dealer()
    asked = [start(outcome(dealer.request("add"))) for dealer in (first, second)]
    await far.rest()
    await first.close()
    error = await asked[0]
    assert type(error) is Cancelled and "the dealer was closed" in str(error)
    with pytest.raises(NodeClosed, match=r"dealer\('math'\) was closed"):
        await first.request("add")
    far.close()
    assert type(await asked[1]) is Cancelled
    with pytest.raises(NodeClosed, match="node 'caller' is closed"):
        await second.request("add")
    await first.close()
    far.require_idle(first, second)


async def test_an_error_leaves_no_garbage() -> None:
    """An error, the future that held it and the frame that raised it must not hold each other."""
    far = FarEnd()
    dealer = far.dealer()
    gc.disable()
    try:
        asked = start(dealer.request("add"))
        _, item, _ = await far.next(CALL)
        far.fault(item[1], "error", "broken")
        seen = None
        try:
            await asked
        except RemoteError as error:
            seen = weakref.ref(error)
        del asked
        await far.rest()
        assert seen is not None and seen() is None
    finally:
        gc.enable()


# --- deadlines ----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G8")
async def test_a_nested_request_inherits_the_deadline() -> None:
    far = FarEnd()
    dealer = far.dealer(timeout=10)
    now = far.driver.now()
    for context, timeout, expected in (
        (AnyContext(now + 2, 2), ..., 2),
        (AnyContext(now + 2, 2), None, 2),
        (AnyContext(now + 2, 2), 1, 1),
        (AnyContext(now + 60, 60), ..., 10),
        (AnyContext(None, None), ..., 10),
        (AnyContext(None, None), None, None),
    ):
        token = current.set(context)  # type: ignore[arg-type]
        asked = start(dealer.request("add", timeout=timeout))
        current.reset(token)
        _, item, _ = await far.next(CALL)
        assert item[5] == (expected if expected is None else pytest.approx(expected, abs=0.9))
        far.reply(item[1], None)
        await asked


@pytest.mark.guarantee("G8")
async def test_an_inherited_deadline_ends_a_request_without_one() -> None:
    far = FarEnd()
    dealer = far.dealer(timeout=None)
    token = current.set(AnyContext(far.driver.now() + 2, 2))  # type: ignore[arg-type]
    asked = start(outcome(dealer.request("add")))
    current.reset(token)
    await far.next(CALL)
    far.pass_time(3)
    error = await asked
    assert type(error) is DeadlineExceeded and "within 2 s" in str(error)
    far.require_idle(dealer)


@pytest.mark.guarantee("G8")
async def test_nested_requests_with_one_deadline_leave_together() -> None:
    far = FarEnd()
    dealer = far.dealer()
    deadline = far.driver.now() + 2
    asked = []
    for number in range(10):
        token = current.set(AnyContext(deadline, 2 - number / 1e6))  # type: ignore[arg-type]
        asked.append(start(dealer.request("add", number)))
        current.reset(token)
    _, item, _ = await far.next(CALL)
    assert item[2] == 10
    for each in asked:
        each.cancel()
    await asyncio.wait(asked)


@pytest.mark.guarantee("G8")
async def test_a_nested_request_without_any_time_is_not_made() -> None:
    far = FarEnd()
    dealer = far.dealer()
    token = current.set(AnyContext(far.driver.now(), 0.0))  # type: ignore[arg-type]
    with pytest.raises(DeadlineExceeded, match=r"math\.add: shop\.order asks for it, and has no time left") as caught:
        await dealer.request("add")
    current.reset(token)
    assert caught.value.method == "add"
    await far.rest()
    assert far.sent == []
    far.require_idle(dealer)


# --- what is sent -------------------------------------------------------------------------------------------


async def test_options_and_arguments_do_not_mix() -> None:
    far = FarEnd()
    dealer = far.dealer()
    headers = {"user": "ada"}
    asked = start(dealer.add(1, method="m", self=2, service="s", headers=headers, key="k", timeout=None))
    await asyncio.sleep(0)
    headers["user"] = "bob"  # too late
    _, item, bodies = await far.next(CALL)
    assert bodies == [[[1], {"method": "m", "self": 2, "service": "s"}]]
    assert item[5] is None and item[8] == {"user": "ada"}
    far.reply(item[1], None)
    await asked


async def test_arguments_are_those_of_the_moment() -> None:
    far = FarEnd()
    dealer = far.dealer()
    value = [1]
    asked = start(dealer.add(value, Point(1, 2)))
    await asyncio.sleep(0)
    value.append(2)
    _, item, bodies = await far.next(CALL)
    assert bodies == [[[[1], {"x": 1, "y": 2}], {}]]
    far.reply(item[1], None)
    await asked


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((1, {2, 3}), {}, "argument 2"),
        ((1, [5, {"a": object()}]), {}, "argument 2[1]['a']"),
        ((), {"b": [object()]}, "argument 'b'[0]"),
        ((), {"b\ud800": 1}, "arguments"),
        ((2**64,), {}, "argument 1"),
    ],
)
async def test_what_cannot_be_sent_is_named(args: Any, kwargs: Any, path: str) -> None:
    far = FarEnd()
    dealer = far.dealer()
    with pytest.raises(EncodeError) as caught:
        await dealer.request("add", *args, **kwargs)
    assert caught.value.path.startswith(path)
    assert str(caught.value).startswith(f"math.add: {path}")
    far.require_idle(dealer)


@pytest.mark.parametrize("kind", ["request", "stream", "survey"])
@pytest.mark.parametrize(
    ("headers", "error", "message"),
    [
        ({"a": "x" * 2**20}, BodyTooLarge, r"math\.add: headers of more than 1048576 bytes: make an argument"),
        ({str(place): "x" * 300_000 for place in range(4)}, BodyTooLarge, "headers of more than"),
        ({"a": {(1, 2): 3}}, EncodeError, "no receiver could read them"),
    ],
)
async def test_headers_that_would_break_the_link_are_refused(
    kind: str, headers: dict[str, Any], error: type[Exception], message: str
) -> None:
    """They travel in the header of a frame, together with other requests."""
    far = FarEnd()
    dealer = far.dealer()
    with pytest.raises(error, match=message):
        await getattr(dealer, kind)("add", headers=headers)
    far.require_idle(dealer)
    asked = start(dealer.request("add", headers={"a": "x" * (2**20 - 100)}))
    _, item, _ = await far.next(CALL)
    far.reply(item[1], None)
    await asked


@pytest.mark.parametrize(
    ("kind", "name"),
    [("stream", "idempotent"), *(("survey", name) for name in ("peer", "key", "idempotent", "items"))],
)
async def test_options_of_requests_are_no_arguments_of_methods(kind: str, name: str) -> None:
    async def pass_on(outgoing: Any, proceed: Any) -> Any:
        return await proceed()

    for interceptors in ([], [pass_on]):
        dealer = FarEnd().dealer(interceptors=interceptors)
        with pytest.raises(ConfigurationError, match=rf"{kind}\(\) has no {name}=.*by position"):
            await anext(getattr(dealer, kind)("add", **{name: "b1"}))


async def test_arguments_over_the_limit_are_refused() -> None:
    dealer = FarEnd().dealer(max_message_bytes=1000)
    with pytest.raises(BodyTooLarge, match=r"math\.add: arguments of \d+ bytes; the limit is 1000.*items="):
        await dealer.request("add", "x" * 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, r"request\(timeout=\) takes more than 0"),
        ({"timeout": "5"}, r"request\(timeout=\) takes a number"),
        ({"timeout": float("nan")}, "finite"),
        ({"headers": [1]}, r"request\(headers=\) takes a dict with str keys"),
        ({"headers": {1: 2}}, r"request\(headers=\) takes a dict with str keys"),
        ({"peer": 7}, r"request\(peer=\) takes a str.*peer\.id"),
        ({"peer": ""}, r"request\(peer=\) takes a str"),
        ({"key": 7}, r"request\(key=\) takes a str.*str\("),
        ({"idempotent": 1}, r"request\(idempotent=\) takes True or False"),
        ({"items": "abc"}, r"request\(items=\) takes a list"),
        ({"items": 5}, r"request\(items=\) takes a list"),
    ],
)
async def test_wrong_options_are_explained(options: dict[str, Any], message: str) -> None:
    far = FarEnd()
    dealer = far.dealer()
    with pytest.raises(ConfigurationError, match=message):
        await dealer.request("add", **options)
    far.require_idle(dealer)


@pytest.mark.parametrize("method", ["", "a b", 5, None, [], "x" * 201])
async def test_wrong_methods_are_explained(method: Any) -> None:
    dealer = FarEnd().dealer()
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"dealer\('math'\)\.request\(method\) takes"):
            await dealer.request(method)


async def test_names_of_methods_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshmsg.sockets.dealer.MAX_KNOWN_METHODS", 10)
    dealer = FarEnd().dealer()
    for number in range(25):
        start(outcome(dealer.request(f"method{number}")))
    await asyncio.sleep(0)
    assert len(dealer._repeatable) <= 10
    await dealer.close()
    await asyncio.sleep(0)


async def test_attributes_are_methods() -> None:
    far = FarEnd()
    dealer = far.dealer()
    asked = start(dealer.shout("hi", loud=True))
    _, item, bodies = await far.next(CALL)
    assert item[4] == "shout" and bodies == [[["hi"], {"loud": True}]]
    far.reply(item[1], "HI")
    assert await asked == "HI"
    with pytest.raises(AttributeError, match=r"request\('_hidden'\)"):
        dealer._hidden  # noqa: B018
    assert not hasattr(dealer, "__len__")
    assert dealer.service == "math"  # what it has itself is no method
    assert "math" in repr(dealer)


async def test_a_dealer_can_be_copied() -> None:
    far = FarEnd()
    dealer = far.dealer()
    asked = start(copy.copy(dealer).add(1))
    _, item, _ = await far.next(CALL)
    far.reply(item[1], 2)
    assert await asked == 2
    with pytest.raises(AttributeError, match="service"):
        Dealer.__new__(Dealer).service  # noqa: B018


# --- idempotent ---------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize(
    ("declared", "given", "repeats"),
    [(False, None, False), (["get"], None, True), (["put"], None, False), (True, False, False), (False, True, True)],
)
async def test_only_idempotent_requests_are_tried_again(declared: Any, given: bool | None, repeats: bool) -> None:
    far = FarEnd("b1", "b2")
    dealer = far.dealer(idempotent=declared, retry=Retry(backoff=0, max_backoff=0))
    asked = start(outcome(dealer.request("get", idempotent=given)))
    name, _, _ = await far.next(CALL)
    far.lose(name)
    await far.rest()
    far.pass_time(0)
    await far.rest()
    assert asked.done() is not repeats
    if repeats:
        other, item, _ = await far.next(CALL)
        assert other != name
        far.reply(item[1], "second", other)
        assert await asked == "second"
    else:
        assert type(await asked) is PeerLost
    far.require_idle(dealer)


# --- where it may be used -----------------------------------------------------------------------------------


def step(coroutine: Any) -> None:
    """As far as a coroutine comes in a thread without its loop."""
    try:
        coroutine.send(None)
    finally:
        coroutine.close()


async def test_other_threads_and_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    far = FarEnd()
    dealer = far.dealer()
    uses = [
        lambda: step(dealer.request("add")),
        lambda: step(dealer.add()),
        lambda: dealer.stream("add"),
        lambda: dealer.survey("add"),
        lambda: step(dealer.close()),
    ]
    for use in uses:
        with pytest.raises(WrongThread):
            await asyncio.to_thread(use)
    if hasattr(os, "fork"):
        with monkeypatch.context() as patch:  # what a fork leaves in the child
            patch.setattr(far.driver, "owner", 0)
            patch.setattr(far.driver, "_pid", -1)
            for use in uses:
                with pytest.raises(ForkedProcess):
                    use()
    far.require_idle(dealer)


async def test_a_bad_request_keeps_its_argument() -> None:
    far = FarEnd()
    dealer = far.dealer()
    asked = start(outcome(dealer.request("add", 1, "x")))
    _, item, _ = await far.next(CALL)
    far.calls.on_fault("b1-id.1", [17, item[1], "bad_request", "b", "takes int", None, None, 0], far.driver.now())
    far.driver.wake()
    error = await asked
    assert type(error) is BadRequest and error.argument == "b"


async def test_of_a_long_way_to_what_cannot_be_sent_the_middle_is_left_out() -> None:
    value: Any = object()
    for _ in range(200):
        value = [value]
    with pytest.raises(EncodeError) as refused:
        await FarEnd().dealer().request("add", 1, value)
    text = str(refused.value)
    assert text.startswith("math.add: argument 2[0][0][0]") and "[0][0] cannot be sent: MessagePack has no" in text
    assert len(text) < 350 and refused.value.path == "argument 2" + 200 * "[0]"
