"""Bodies to lines and JSON, and back."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.cli.bodies import (
    describe_message,
    escape_invisible,
    parse_json,
    parse_text,
    to_json,
    to_line,
    to_single_line,
)
from meshmsg.cli.pull import choose_show, make_render
from meshmsg.cli.running import complain
from meshmsg.cli.session import Formatter
from meshmsg.testing import make_message

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON_VALUES)
def test_json_comes_back_as_it_was(value: Any) -> None:
    line = to_json(value)
    assert "\n" not in line
    assert parse_json(line) == value


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("NaN", "NaN is a word of Python's"),
        ('{"a": [-Infinity]}', "-Infinity is a word of Python's"),
        ("1e400", "1e400 is more than a number can be"),
        ("-1" + "0" * 400 + ".0", r"-10{38}\.\.\. is more than"),
    ],
)
def test_a_number_that_would_not_come_back_is_no_json(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}"):
        parse_json(line)


@given(st.binary().filter(lambda line: b"\n" not in line))
def test_a_line_comes_back_as_it_was(line: bytes) -> None:
    assert to_line(parse_text(line)) == line


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"\x00\xff", {"base64": "AP8="}),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        ([float("nan"), float("-inf")], [None, None]),
        ({1: "a", None: "b", b"k": "c"}, {"1": "a", "null": "b", "aw==": "c"}),
    ],
)
def test_what_json_has_no_word_for(value: Any, shown: Any) -> None:
    assert json.loads(to_json(value)) == shown


def test_a_message_as_json() -> None:
    described = describe_message(make_message({"path": "a.jpg"}, queue="thumbnails"))
    assert list(described) == [
        "id", "queue", "sender", "attempt", "redelivered", "key", "priority", "headers", "body",
    ]  # fmt: skip
    assert json.loads(to_json(described))["body"] == {"path": "a.jpg"}


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("tab\tand ü 👩\u200d🚀", "tab\tand ü 👩\u200d🚀"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x1b[31m\x07\x00", "\\u001b[31m\\u0007\\u0000"),
        ("a\x85b\u2028c\u2029", "a\\u0085b\\u2028c\\u2029"),
        (["a\nb", "\x9b"], '["a\\nb","\\u009b"]'),
    ],
)
def test_a_single_line_is_one(body: Any, line: str) -> None:
    assert to_single_line(body) == line.encode()
    assert len(to_single_line(body).decode().splitlines()) == 1


def test_bytes_on_a_single_line_are_what_they_are_but_for_control_characters() -> None:
    assert to_single_line(b"\xff\xfe\t\n\x7f") == b"\xff\xfe\t\\n\\u007f"
    assert to_single_line("ä\x9b".encode()) == "ä\\u009b".encode()
    assert to_single_line(b"\x9b\xe4") == b"\\x9b\xe4"


def test_json_steers_no_terminal_and_is_the_same_text() -> None:
    text = "".join(map(chr, range(0xA1))) + "\u2028\u2029\\u009b \\\x9b"
    line = to_json({text: [text]})
    assert json.loads(line) == {text: [text]}
    assert line.isascii() is False and not any(ord(each) < 32 or 127 <= ord(each) < 160 for each in line)
    assert line.splitlines() == [line]
    assert to_json("\x1b\x9b\x7f") == '"\\u001b\\u009b\\u007f"'


@pytest.mark.parametrize(("terminal", "shown"), [(False, b"a\x1b\nb"), (True, b"a\\u001b\nb")])
def test_pull_prints_bodies_as_they_are_unless_a_terminal_sees_them(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: bytes
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert make_render(None, False, show=choose_show())(make_message("a\x1b\nb")) == shown


def test_what_is_told_to_people_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert complain("two\nlines\x1b[2J\x9b\r", 3) == 3
    assert capsys.readouterr() == ("", "meshmsg: two\nlines\\u001b[2J\\u009b\\r\n")
    record = logging.LogRecord("meshmsg", logging.ERROR, "", 0, "no %s", ("\x1b",), None)
    assert Formatter("%(message)s").format(record) == "no \\u001b"


def test_names_show_what_cannot_be_seen() -> None:
    assert escape_invisible("a.\u200bb.\u202e.ü \u00a0\U000e0001") == "a.\\u200bb.\\u202e.ü \\u00a0\\U000e0001"
