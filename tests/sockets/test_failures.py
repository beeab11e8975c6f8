"""What a caller hears of an exception in a method: of a deep traceback its beginning and its end."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from meshmsg import BadRequest, RemoteError
from meshmsg.sockets.context import Context
from meshmsg.sockets.failures import INNER_FRAMES, OUTER_FRAMES, format_traceback, shorten
from tests.sockets.desk import Desk, refused


def even(depth: int) -> None:
    if depth:
        odd(depth - 1)
    raise ValueError("at the bottom")


def odd(depth: int) -> None:
    even(depth - 1)


def wrapped(depth: int) -> None:
    try:
        even(depth)
    except ValueError as error:
        raise KeyError("around") from error


def caught(depth: int) -> ValueError:
    try:
        even(depth)
    except ValueError as error:
        return error
    raise AssertionError("it raises")


def count_frames(text: str) -> int:
    return len(re.findall(r'^  File "', text, re.MULTILINE))


@pytest.mark.parametrize("depth", [0, OUTER_FRAMES + INNER_FRAMES - 3])
def test_what_is_short_is_told_in_full(depth: int) -> None:
    error = caught(depth)
    text = format_traceback(error)
    assert text.startswith("Traceback (most recent call last):\n")
    assert count_frames(text) == depth + 2
    assert shorten(error.__traceback__) == (error.__traceback__, 0)


def test_of_what_is_deep_the_middle_is_left_out() -> None:
    error = caught(200)
    before = error.__traceback__
    text = format_traceback(error)
    assert text.startswith(f"(177 frames are left out after the first {OUTER_FRAMES})\nTraceback (most")
    assert text.endswith("ValueError: at the bottom\n")
    assert count_frames(text) == OUTER_FRAMES + INNER_FRAMES
    assert text.index("in caught") < text.index("in odd")
    assert error.__traceback__ is before


def test_of_a_deep_cause_the_end_is_told() -> None:
    with pytest.raises(KeyError) as raised:
        wrapped(200)
    text = format_traceback(raised.value)
    assert "ValueError: at the bottom\n" in text and text.endswith("KeyError: 'around'\n")
    assert count_frames(text) <= 2 * (OUTER_FRAMES + INNER_FRAMES)


async def test_the_log_has_no_more_than_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()

    @desk.router().method
    async def fail() -> None:
        even(200)

    with caplog.at_level(logging.ERROR, "meshmsg.handlers"):
        error = await refused(desk.ask("fail"))
    assert isinstance(error, RemoteError) and error.remote_traceback is not None
    assert "in fail" in error.remote_traceback and "ValueError: at the bottom" in error.remote_traceback
    assert count_frames(error.remote_traceback) == OUTER_FRAMES + INNER_FRAMES
    [record] = caplog.records
    assert count_frames(record.exc_text or "") == OUTER_FRAMES + INNER_FRAMES


NOT_UNICODE = b"caf\xe9".decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("make", "in_all", "of_method"),
    [
        (lambda: ValueError(f"no {NOT_UNICODE}"), "ValueError: no caf?", "ValueError: no caf?"),
        (lambda: RemoteError("no", code=NOT_UNICODE, type=NOT_UNICODE), "caf?: no", "RemoteError: no"),
    ],
)
@pytest.mark.guarantee("G8")
async def test_stats_outlive_a_text_that_cannot_travel(
    make: Callable[[], Exception], in_all: str, of_method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "meshmsg.handlers")  # pytest-xdist cannot carry a lone surrogate in a log
    desk = Desk()

    @desk.router().method
    async def parse() -> None:
        raise make()

    await refused(desk.ask("parse"))
    stats = await desk.ask("stats")
    assert stats["last_error"] == f"parse: {in_all}"
    assert stats["methods"]["parse"]["last_error"] == of_method


@pytest.mark.parametrize(
    ("make", "code", "type_name"),
    [
        (partial(RemoteError, "gone", code=404), "404", "RemoteError"),  # type: ignore[arg-type]
        (partial(RemoteError, "gone", type=KeyError), "error", "<class 'KeyError'>"),  # type: ignore[arg-type]
        (partial(BadRequest, "gone", 5), "bad_request", "5"),  # type: ignore[arg-type]
    ],
)
@pytest.mark.guarantee("G8")
async def test_what_should_have_been_a_text_is_made_one(
    make: Callable[[], Exception], code: str, type_name: str
) -> None:
    desk = Desk()

    @desk.router().method
    async def find() -> None:
        raise make()

    asked = desk.ask("find", remaining=60.0)
    assert (str(await refused(asked)), asked.fault and asked.fault[2:4]) == ("gone", [code, type_name])


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.guarantee("G8")
async def test_no_caller_can_end_the_node(streams: bool, between: bool, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    passed: list[str] = []

    async def watch(context: Context, proceed: Any) -> Any:
        try:
            return await asyncio.ensure_future(proceed())  # in a task of its own, as asyncio.wait_for may
        except Exception as error:
            passed.append(type(error).__name__)
            raise

    router = desk.router(interceptors=[watch] if between else ())

    @router.method
    async def stop() -> None:
        raise SystemExit(3)

    @router.method
    async def stop_yielding() -> AsyncIterator[int]:
        yield 1
        raise SystemExit(3)

    name = "stop_yielding" if streams else "stop"
    asked = desk.stream(name) if streams else desk.ask(name)
    error = await refused(asked)
    assert isinstance(error, RemoteError)
    assert (error.type, str(error)) == ("RuntimeError", f"math.{name} raised SystemExit: 3")
    assert error.remote_traceback is not None and f"in {name}" in error.remote_traceback
    assert (await desk.ask("stats"))["methods"][name]["errors"] == 1  # whoever ran it goes on
    assert passed == (["RuntimeError"] if between else [])
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_what_interrupts_a_method_ends_the_loop() -> None:
    """Python raises it in whatever runs when somebody presses Ctrl-C a second time."""

    async def main() -> None:
        desk = Desk()

        @desk.router().method
        async def work() -> None:
            raise KeyboardInterrupt

        await desk.ask("work")

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
