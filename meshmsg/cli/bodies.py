"""Bodies as text and JSON, and back."""

from __future__ import annotations

import base64
import json
import math
import re
from datetime import datetime
from typing import Any

from meshmsg import Message

_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
# What ``surrogateescape`` makes of single bytes that are controls to terminals without UTF-8.
_CONTROL_BYTES = re.compile("[\udc80-\udc9f]")


def parse_text(line: bytes) -> str | bytes:
    """A line as a body: text if it is UTF-8, else the bytes as they are.

    >>> parse_text(b"a.jpg"), parse_text(b"\\xff")
    ('a.jpg', b'\\xff')
    """
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line


def parse_json(line: bytes | str) -> Any:
    """A line of JSON as a body; raises ``ValueError``, also for numbers that no float can hold."""
    return json.loads(line, parse_constant=_refuse_word, parse_float=_parse_float)


def _refuse_word(word: str) -> Any:
    raise ValueError(f"{word} is a word of Python's, and of no JSON")


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text if len(text) <= 40 else text[:40] + '...'} is more than a number can be")
    return number


def to_json(value: Any) -> str:
    """A value on one line of JSON, without anything that would steer a terminal: that is written as escapes.

    What JSON has no word for: bytes become ``{"base64": …}``, times ISO 8601, NaN and infinities null.

    >>> to_json({"path": "a.jpg", "raw": b"\\x00"})
    '{"path":"a.jpg","raw":{"base64":"AA=="}}'
    """
    # JSON's own rules end at U+001F. What is beyond can only be within a text, and an escape is the same text.
    return escape_control(json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def to_line(body: Any) -> bytes:
    """A body as a line for people and pipes: text and bytes as they are, the rest as JSON.

    >>> to_line("a.jpg"), to_line([1, 2])
    (b'a.jpg', b'[1,2]')
    """
    if isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else to_json(body).encode()


def to_single_line(body: Any) -> bytes:
    """``to_line`` with what would end the line, or steer a terminal, as escapes.

    >>> to_single_line("a\\nb\\t\\x1b"), to_single_line(b"\\xff\\r")
    (b'a\\\\nb\\t\\\\u001b', b'\\xff\\\\r')
    """
    if isinstance(body, bytes):
        text = escape_control(body.decode(errors="surrogateescape"))
        text = _CONTROL_BYTES.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
        return text.encode(errors="surrogateescape")
    return escape_control(body if isinstance(body, str) else to_json(body)).encode()


def to_screen(body: Any) -> bytes:
    """``to_line`` for a terminal: it may have lines, but must not steer it.

    >>> to_screen("a\\nb\\x1b")
    b'a\\nb\\\\u001b'
    """
    if isinstance(body, bytes):
        return b"\n".join(map(to_single_line, body.split(b"\n")))
    return escape_lines(body if isinstance(body, str) else to_json(body)).encode()


def escape_lines(text: str) -> str:
    """What would steer a terminal as escapes; lines stay lines."""
    return "\n".join(map(escape_control, text.split("\n")))


def escape_control(text: str) -> str:
    """Control characters other than tabs, and all that ends lines, as escapes."""
    return _CONTROL.sub(lambda found: _escape(found[0]), text)


def escape_invisible(name: str) -> str:
    """Everything that cannot be seen as an escape: names that look the same are the same."""
    return name if name.isprintable() else "".join(each if each.isprintable() else _escape(each) for each in name)


def _escape(character: str) -> str:
    code = ord(character)
    return {"\n": "\\n", "\r": "\\r"}.get(character) or (f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}")


def describe_message(message: Message) -> dict[str, Any]:
    """A message as ``pull --json`` prints it."""
    return {
        "id": message.id,
        "queue": message.queue,
        "sender": message.sender,
        "attempt": message.attempt,
        "redelivered": message.redelivered,
        "key": message.key,
        "priority": message.priority,
        "headers": dict(message.headers),
        "body": message.body,
    }


def describe_publication(message: Message) -> dict[str, Any]:
    """A published message as ``sub --json`` and ``tap --json`` print it."""
    return {
        "id": message.id,
        "topic": message.topic,
        "sender": message.sender,
        "number": number_of(message),
        "headers": dict(message.headers),
        "body": message.body,
    }


def number_of(message: Message) -> int | None:
    """Its number among those of its sender and queue or topic, which is the end of its id; a last will has none."""
    end = message.id.rpartition("/")[2]
    return int(end) if end.isdecimal() else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)


def _plain_key(key: Any) -> Any:
    if isinstance(key, bytes):
        return base64.b64encode(key).decode()
    return key if key is None or isinstance(key, (str, int, float)) else str(key)
