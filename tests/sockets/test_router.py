"""Routers: what they offer, under which names, and what their callers hear of a failure."""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from meshmsg import (
    BadRequest,
    BodyTooLarge,
    Cancelled,
    ConfigurationError,
    DeadlineExceeded,
    NameClash,
    NoResponders,
    NoSuchMethod,
    Overloaded,
    RemoteError,
    Unavailable,
)
from meshmsg.sockets.context import Context
from meshmsg.sockets.router import UNKNOWN
from meshmsg.wire import items
from tests.sockets.desk import Desk, refused


class Doubler:
    def __call__(self, number: int) -> int:
        return 2 * number


class AsyncDoubler:
    async def __call__(self, number: int) -> int:
        return 2 * number

    async def method(self, number: int) -> int:
        return 2 * number

    @staticmethod
    def static(number: int) -> int:
        return 2 * number


async def double(number: int) -> int:
    return 2 * number


def double_plainly(number: int) -> int:
    return 2 * number


# --- offering -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        double,
        double_plainly,
        Doubler(),
        AsyncDoubler(),
        AsyncDoubler().method,
        AsyncDoubler.static,
        functools.partial(double),
        functools.partial(double_plainly),
        lambda number: 2 * number,
    ],
)
async def test_every_kind_of_function_can_be_a_method(function: Any) -> None:
    desk = Desk()
    router = desk.router()
    assert router.method(function, name="twice") is function
    assert await desk.ask("twice", 21) == 42
    assert await desk.ask("twice", number=4) == 8


async def test_a_method_has_the_name_of_its_function_or_a_given_one() -> None:
    desk = Desk()
    router = desk.router()
    router.method(double)

    @router.method
    async def first() -> int:
        return 1

    @router.method(name="second")
    async def another() -> int:
        return 2

    @router.method()
    async def third() -> int:
        return 3

    assert router.methods == ("ping", "info", "stats", "double", "first", "second", "third")
    assert [await desk.ask(name) for name in ("first", "second", "third")] == [1, 2, 3]
    assert await another() == 2


@pytest.mark.parametrize("name", ["ping", "info", "stats"])
async def test_built_in_methods_cannot_be_replaced(name: str) -> None:
    with pytest.raises(NameClash, match=f"every service has '{name}' already"):
        Desk().router().method(double, name=name)


async def test_what_cannot_be_a_method_is_refused() -> None:
    router = Desk().router()
    router.method(double)
    with pytest.raises(NameClash, match="has a method 'double' already"):
        router.method(double)
    with pytest.raises(
        ConfigurationError, match=r'has no name: write router\(\'math\'\).method\(function, name="..."\)'
    ):
        router.method(lambda: 1)
    with pytest.raises(ConfigurationError, match="has no name"):
        router.method(functools.partial(double))
    with pytest.raises(ConfigurationError, match="offer offers its methods"):
        router.method(Doubler)
    with pytest.raises(ConfigurationError, match="takes a function, not int 3"):
        router.method(3)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="printable characters without white space"):
        router.method(double, name="two words")
    assert router.methods == ("ping", "info", "stats", "double")


class Base:
    def inherited(self) -> str:
        return "inherited"


class Account(Base):
    limit = 3

    def __init__(self, balance: int = 0) -> None:
        self.balance = balance

    async def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    def look(self) -> int:
        return self.balance

    @classmethod
    def kind(cls) -> str:
        return cls.__name__

    @property
    def costly(self) -> int:
        raise AssertionError("a property is looked at")

    def _secret(self) -> None: ...

    class Nested: ...


async def test_an_object_offers_its_public_methods() -> None:
    desk = Desk()
    router = desk.router()
    account = Account(5)
    assert router.offer(account) is account
    assert sorted(router.methods[3:]) == ["deposit", "inherited", "kind", "look"]
    assert await desk.ask("deposit", 2) == 7
    assert await desk.ask("look") == 7
    assert await desk.ask("kind") == "Account"
    assert await desk.ask("inherited") == "inherited"


async def test_a_class_offers_the_methods_of_an_object_of_its_own() -> None:
    desk = Desk()
    router = desk.router()
    assert router.offer(Account) is Account
    assert await desk.ask("deposit", 2) == 2

    class Needy:
        def __init__(self, needed: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"cannot make a Needy .*offer an object"):
        router.offer(Needy)
    with pytest.raises(ConfigurationError, match="no public methods"):
        router.offer(object())


async def test_an_object_is_offered_whole_or_not_at_all() -> None:
    router = Desk().router()
    router.method(double, name="look")
    with pytest.raises(NameClash):
        router.offer(Account())
    assert router.methods[3:] == ("look",)


# --- asking -------------------------------------------------------------------------------------------------


async def test_an_unknown_method_is_answered_with_the_closest_one() -> None:
    desk = Desk()
    router = desk.router()
    router.method(double)
    assert str(await refused(desk.ask("duble", 1))) == "math.duble: no such method: did you mean 'double'?"
    error = await refused(desk.ask("launch"))
    assert isinstance(error, NoSuchMethod)
    assert str(error) == "math.launch: no such method: it has ping, info, stats, double"


@pytest.mark.guarantee("G8")
async def test_an_unknown_method_is_the_services_own_word_and_counted() -> None:
    """It never ran, so its caller may ask somebody who has it."""
    desk = Desk()
    router = desk.router()
    router.method(double)
    asked = desk.ask("launch")
    await refused(asked)
    assert asked.fault is not None and (asked.fault[3], asked.fault[7]) == ("", items.NEVER_RAN)
    await desk.ask("double", 1)
    stats = await desk.ask("stats")
    missing = {"requests": 1, "errors": 1, "last_error": str(stats["methods"][UNKNOWN]["last_error"])}
    assert stats["methods"][UNKNOWN].items() >= missing.items()
    assert missing["last_error"].startswith("NoSuchMethod: math.launch: no such method")
    counted = [(each["requests"], each["errors"]) for each in stats["methods"].values()]
    assert stats["requests"] == 3 and stats["errors"] == sum(errors for _, errors in counted) == 1
    assert "launch: no_such_method: math.launch" in stats["last_error"]


async def test_a_method_that_raises_it_has_answered() -> None:
    desk = Desk()

    @desk.router().method
    async def gateway() -> None:
        raise NoSuchMethod("not behind me")

    asked = desk.ask("gateway")
    await refused(asked)
    assert asked.fault is not None and (asked.fault[3], asked.fault[7]) == ("meshmsg.errors.NoSuchMethod", 0)


async def test_interceptors_see_an_unknown_method_first() -> None:
    desk = Desk()

    async def refuse(context: Context, proceed: Any) -> Any:
        raise RemoteError("who are you?", code="unauthenticated")

    async def let_through(context: Context, proceed: Any) -> Any:
        return await proceed()

    desk.router(interceptors=[refuse])
    asked = desk.ask("launch")
    assert isinstance(await refused(asked), RemoteError) and asked.fault is not None and asked.fault[7] == 0
    desk.router("open", interceptors=[let_through])
    asked = desk.ask("launch", service="open")
    assert isinstance(await refused(asked), NoSuchMethod)
    assert asked.fault is not None and asked.fault[7] == items.NEVER_RAN


async def test_arguments_that_do_not_fit_name_the_argument() -> None:
    desk = Desk()
    desk.router().method(double)
    error = await refused(desk.ask("double", "x"))
    assert isinstance(error, BadRequest)
    assert error.argument == "number"
    assert str(error) == "math.double: argument 'number' takes int, got str 'x'"


async def test_a_stream_and_a_single_result_are_not_taken_for_each_other() -> None:
    desk = Desk()
    router = desk.router()
    router.method(double)

    @router.method
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    error = await refused(desk.ask("count", 3))
    assert isinstance(error, BadRequest)
    assert str(error) == "math.count streams items: call stream() instead"
    assert str(await refused(desk.stream("double", 3))) == "math.double gives one result: call request() instead"


async def test_every_service_answers_ping_info_and_stats() -> None:
    desk = Desk()
    router = desk.router()

    @router.method
    async def add(a: int, b: int = 1, *, context: Context) -> int:
        """Adds two numbers.

        Slowly.
        """
        return a + b

    @router.method
    def count() -> Iterator[int]:
        yield 1

    who = {"service": "math", "node": "server", "id": "beef"}
    assert await desk.ask("ping") == who
    info = await desk.ask("info")
    assert {**who, "serving": True}.items() <= info.items()
    assert [each["name"] for each in info["methods"]] == ["ping", "info", "stats", "add", "count"]
    assert info["methods"][3]["signature"] == "(a: int, b: int = 1) -> int"
    assert info["methods"][3]["doc"] == "Adds two numbers."
    assert [each["streams"] for each in info["methods"]] == [False, False, False, False, True]
    assert await desk.ask("add", 1) == 2
    await refused(desk.ask("add", "1"))
    stats = await desk.ask("stats")
    assert who.items() <= stats.items()
    assert (stats["requests"], stats["errors"], stats["running"], stats["waiting"]) == (5, 1, 0, 0)
    add_stats = stats["methods"]["add"]
    assert (add_stats["requests"], add_stats["errors"]) == (2, 1)
    assert add_stats["last_error"] == "BadRequest: math.add: argument 'a' takes int, got str '1'"
    assert add_stats["mean_ms"] > 0
    assert stats["methods"]["count"] == {"requests": 0, "errors": 0, "last_error": None, "mean_ms": 0.0}


async def test_a_service_may_pause() -> None:
    desk = Desk()
    router = desk.router()
    router.method(double)
    assert router.serving and desk.told
    router.serving = False
    assert desk.told is False
    assert (await desk.ask("info"))["serving"] is False  # whoever asks nevertheless is served
    router.serving = True
    assert router.serving and desk.told
    with pytest.raises(ConfigurationError, match="takes True or False"):
        router.serving = 1  # type: ignore[assignment]


async def test_a_service_is_announced_with_its_first_method() -> None:
    desk = Desk()
    router = desk.router()
    assert desk.told is None
    router.serving = False
    assert desk.told is None
    router.method(double)
    assert desk.told is False
    router.serving = True
    assert desk.told is True


async def test_built_in_methods_are_answered_when_there_is_no_room_for_others() -> None:
    desk = Desk()
    router = desk.router(concurrency=1, max_queue=0)
    go_on = asyncio.Event()

    @router.method
    async def wait() -> None:
        await go_on.wait()

    running = desk.ask("wait")
    assert isinstance(await refused(desk.ask("wait")), Overloaded)
    for name in ("ping", "info", "stats"):
        assert (await desk.ask(name))["node"] == "server"
    stats = await desk.ask("stats")
    assert (stats["running"], stats["waiting"], stats["overloaded"], stats["requests"]) == (1, 0, 1, 6)
    go_on.set()
    await running


# --- failures -----------------------------------------------------------------------------------------------


def divide(a: int, b: int) -> float:
    return a / b


async def divide_later(a: int, b: int) -> float:
    return divide(a, b)


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("function", [divide, divide_later])
async def test_an_exception_travels_as_text(function: Any, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.router().method(function, name="divide")
    error = await refused(desk.ask("divide", 1, 0))
    assert isinstance(error, RemoteError)
    assert (error.code, error.type, str(error)) == ("error", "ZeroDivisionError", "division by zero")
    assert error.remote_traceback is not None
    lines = error.remote_traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "test_router.py" in lines[1]  # not how it was called
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert "math.divide failed for 'client'" in caplog.text


async def test_tracebacks_can_be_kept_back() -> None:
    desk = Desk()
    desk.router(tracebacks=False).method(divide)
    error = await refused(desk.ask("divide", 1, 0))
    assert isinstance(error, RemoteError)
    assert (error.type, error.remote_traceback) == ("ZeroDivisionError", None)


@pytest.mark.guarantee("G8")
async def test_a_method_may_raise_what_its_caller_shall_get(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    router = desk.router()

    @router.method
    async def buy(what: str) -> None:
        if what == "bread":
            raise RemoteError("sold out", code="out_of_stock", type="Stock")
        if what == "soup":
            raise Overloaded("the kitchen is busy", retry_after=3.0)
        raise BadRequest(f"nobody sells {what}", "what")

    error = await refused(desk.ask("buy", "bread"))
    assert isinstance(error, RemoteError)
    assert (error.code, error.type, str(error)) == ("out_of_stock", "Stock", "sold out")
    assert error.remote_traceback is None
    error = await refused(desk.ask("buy", "soup"))
    assert isinstance(error, Overloaded)
    assert (error.retry_after, str(error)) == (3.0, "the kitchen is busy")
    error = await refused(desk.ask("buy", "time"))
    assert isinstance(error, BadRequest)
    assert (error.argument, str(error)) == ("what", "nobody sells time")
    assert not caplog.records


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("kind", [NoResponders, Overloaded, Unavailable, DeadlineExceeded])
async def test_what_a_method_hears_of_another_service_is_not_said_of_its_own(kind: Any) -> None:
    """Or a caller would think that nothing ran, and try elsewhere."""
    desk = Desk()

    async def reserve() -> None:
        error = kind("nobody offers 'stock'")
        error.service, error.method = "stock", "reserve"
        raise error

    desk.router().method(reserve)
    error = await refused(desk.ask("reserve", remaining=60.0))
    assert isinstance(error, RemoteError)
    assert (error.code, error.type, str(error)) == ("error", f"meshmsg.errors.{kind.__name__}", "nobody offers 'stock'")
    assert error.remote_traceback is not None


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("raised", "type_name", "text"),
    [
        (Mute(), "tests.sockets.test_router.Mute", ""),
        (ValueError("\udc80"), "ValueError", "?"),
        (ValueError("x" * 100_000), "ValueError", None),
        (ExceptionGroup("both", [ValueError("1"), KeyError("2")]), "ExceptionGroup", "both (2 sub-exceptions)"),
        (SystemExit(3), "RuntimeError", "a plain method raised SystemExit: 3"),
        (StopIteration(), "RuntimeError", "coroutine raised StopIteration"),
        (asyncio.CancelledError("why"), "RuntimeError", "a plain method raised CancelledError: why"),
    ],
)
@pytest.mark.guarantee("G8")
async def test_whatever_a_plain_function_raises_its_caller_hears(
    raised: BaseException, type_name: str, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "meshmsg.handlers")  # pytest-xdist cannot carry a lone surrogate in a log
    desk = Desk()

    def fail() -> None:
        raise copy.copy(raised)  # one that stays would hold what was served

    router = desk.router(concurrency=1)
    router.method(fail)
    error = await refused(desk.ask("fail"))
    assert text is None or str(error) == text
    assert len(str(error)) <= 1000
    assert isinstance(error, RemoteError)
    assert error.type.rpartition(".")[2] == type_name.rpartition(".")[2]
    assert error.remote_traceback is not None
    assert len(error.remote_traceback) <= 20_000
    assert (await desk.ask("ping"))["node"] == "server"  # whoever ran it goes on


@pytest.mark.guarantee("G8")
async def test_a_cancellation_that_nobody_asked_for_is_an_answer_too() -> None:
    desk = Desk()
    router = desk.router(concurrency=1)

    @router.method
    async def fail() -> None:
        raise asyncio.CancelledError("why")

    error = await refused(desk.ask("fail"))
    assert isinstance(error, Cancelled)
    assert str(error) == "math.fail was cancelled: why"
    assert (await desk.ask("ping"))["node"] == "server"


@pytest.mark.parametrize("plain", [False, True])
async def test_a_result_that_cannot_be_sent_names_the_value(plain: bool) -> None:
    desk = Desk()
    router = desk.router(max_message_bytes=5000)

    def get(what: str) -> Any:
        return {"set": {"tags": {1, 2}}, "large": "x" * 5000}[what]

    async def get_later(what: str) -> Any:
        return get(what)

    router.method(get if plain else get_later, name="get")
    error = await refused(desk.ask("get", "set"))
    assert isinstance(error, RemoteError)
    assert error.type == "meshmsg.errors.EncodeError"
    assert str(error).startswith("math.get: result['tags'] cannot be sent: MessagePack has no set; send list(value)")
    error = await refused(desk.ask("get", "large"))
    assert isinstance(error, RemoteError)
    assert error.type == f"meshmsg.errors.{BodyTooLarge.__name__}"
    assert str(error).startswith("math.get: result of 5003 bytes; the limit is 5000: stream it in parts")


async def test_a_result_over_what_the_caller_takes_is_not_sent() -> None:
    desk = Desk()
    desk.limit = 400_000
    router = desk.router(max_message_bytes=10**6)

    @router.method
    async def get(size: int) -> bytes:
        return bytes(size)

    @router.method
    async def stream(size: int) -> AsyncIterator[bytes]:
        yield bytes(size)

    assert len(await desk.ask("get", 399_000)) == 399_000
    assert "the limit is 400000" in str(await refused(desk.ask("get", 400_000)))
    asked = desk.stream("stream", 400_000)
    assert str(await refused(asked)).startswith("math.stream: item of 400005 bytes")
    assert not asked.items


async def forwarded() -> int:
    return 1


def yields() -> Iterator[int]:
    yield 1


async def yields_later() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda: forwarded(), "a coroutine"),
        (lambda: yields(), "a generator"),
        (lambda: yields_later(), "a generator"),
    ],
)
async def test_returning_the_work_instead_of_its_result_is_a_clear_error(function: Any, what: str) -> None:
    desk = Desk()
    desk.router().method(function, name="forward")
    error = await refused(desk.ask("forward"))
    assert isinstance(error, RemoteError)
    assert error.type == "TypeError"
    assert str(error).startswith(f"math.forward returned {what}, which nobody runs: offer the function itself")


async def test_a_result_that_breaks_the_annotation_is_the_servers_mistake() -> None:
    desk = Desk()
    router = desk.router()

    @router.method
    async def wrong() -> int:
        return "x"  # type: ignore[return-value]

    @router.method
    def wrong_plainly() -> int:
        return "x"  # type: ignore[return-value]

    @router.method
    async def items() -> AsyncIterator[int]:
        yield 1
        yield "x"  # type: ignore[misc]

    @router.method
    def items_plainly() -> Iterator[int]:
        yield 1
        yield "x"  # type: ignore[misc]

    for name in ("wrong", "wrong_plainly"):
        error = await refused(desk.ask(name))
        assert isinstance(error, RemoteError)
        assert (error.code, error.type) == ("error", "TypeError")
        assert str(error) == f"math.{name} returns int by its annotation, got str 'x'"
    for name in ("items", "items_plainly"):
        asked = desk.stream(name)
        assert str(await refused(asked)) == f"math.{name} yields int by its annotation, got str 'x'"
        assert asked.items == [1]
