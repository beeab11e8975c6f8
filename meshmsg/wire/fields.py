"""What a single field of a frame may be. Each check raises ``ProtocolError``, or returns the value (G11).

What is wrong with a value is said without the value: it may be huge, nested too deep for ``repr``, or an escape code.
"""

from __future__ import annotations

import math
import re
from typing import Any

from meshmsg.errors import ProtocolError

MAX_SEQ = 2**62

# Names and reasons end up in terminals and logs: nothing there that moves a cursor, breaks a line or turns its text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def array(value: Any, what: str = "an entry") -> list[Any]:
    """An array of anything."""
    if type(value) is not list:
        raise ProtocolError(f"{what}: expected an array, got {type(value).__name__}")
    return value


def natural(value: Any) -> int:
    """An integer from 0 to 2^62."""
    if type(value) is not int:
        raise ProtocolError(f"expected a natural number, got {type(value).__name__}")
    if not 0 <= value <= MAX_SEQ:
        raise ProtocolError(f"expected a natural number up to 2^62, got {value}")
    return value


def naturals(*values: Any) -> None:
    """Several of these."""
    for value in values:
        if type(value) is not int or not 0 <= value <= MAX_SEQ:
            natural(value)


def flag(value: Any) -> bool:
    """True or false, and nothing that only counts as such."""
    if type(value) is not bool:
        raise ProtocolError(f"expected true or false, got {type(value).__name__}")
    return value


def seconds(value: Any) -> None:
    """A finite time, not negative."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ProtocolError("expected seconds: a finite number of 0 or more")


def node_id(value: Any) -> str:
    """A node's id. No dot: keys of peers and ids of messages are put together from it."""
    if type(value) is not str or not 0 < len(value) <= 64 or not value.replace("-", "").isalnum():
        raise ProtocolError("a node id is 1 to 64 letters, digits and hyphens")
    return value


def text(value: Any, what: str, limit: int, *, controls: bool = False) -> str:
    """A text of at most ``limit`` characters, in one line unless ``controls`` are welcome."""
    if type(value) is not str or len(value) > limit:
        raise ProtocolError(f"{what} is not a text of at most {limit} characters")
    if not controls and has_controls(value):
        raise ProtocolError(f"{what} is a text with control characters")
    return value


def has_controls(value: str) -> bool:
    """Whether a text has characters that no name may have."""
    return not value.isprintable() and _CONTROL.search(value) is not None  # nearly every text is printable


def headers(value: Any) -> None:
    """A map with texts as keys."""
    if type(value) is not dict or any(type(name) is not str for name in value):
        raise ProtocolError("headers are a map with texts as keys")
