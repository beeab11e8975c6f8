"""What a caller hears of an exception in a method: of a deep traceback its beginning and its end."""

from __future__ import annotations

import logging
import re

import pytest

from meshmsg import RemoteError
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
