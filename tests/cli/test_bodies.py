"""Bodies to lines and JSON, and back."""

from __future__ import annotations

import json
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


def test_names_show_what_cannot_be_seen() -> None:
    assert escape_invisible("a.\u200bb.\u202e.ü \u00a0\U000e0001") == "a.\\u200bb.\\u202e.ü \\u00a0\\U000e0001"
