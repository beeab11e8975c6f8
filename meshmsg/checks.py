"""Checks of what an application gives: each raises ``ConfigurationError`` that says what was wanted and what came."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping

from meshmsg.errors import ConfigurationError, UnknownOption

MAX_NAME_BYTES = 200
MAX_NUMBER = 10**9  # in seconds about 32 years: what no clock can reach is a mistake
GROUP_PREFIX = "group:"  # of the queues that groups of subscribers have
MAX_GROUP_BYTES = 100


def require_known(where: str, given: Iterable[str], known: list[str]) -> None:
    """Checks the names of keywords."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise UnknownOption(f"{where} has no option {name!r}: {hint}")


def refuse_unbuilt(where: str, **options: object) -> None:
    """Refuses options that are promised for later: whoever relies on one must hear that it does nothing yet."""
    for name, value in options.items():
        if value is not None:
            raise ConfigurationError(f"{where}({name}=) is not built yet in this version: leave it out")


def require_name(where: str, name: object) -> str:
    """A queue, topic or mesh name: 1 to 200 bytes of printable UTF-8 without white space."""
    if not isinstance(name, str):
        raise ConfigurationError(f"{where} takes a name (str), not {type(name).__name__} {name!r}")
    if not name or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise ConfigurationError(f"{where} takes a name of 1 to {MAX_NAME_BYTES} bytes, got {name[:50]!r}")
    if not name.isprintable() or any(letter.isspace() for letter in name):
        raise ConfigurationError(f"{where} takes printable characters without white space, got {name!r}")
    return name


def require_queue(where: str, name: object) -> str:
    """A queue's name; those of groups are made by ``sub(group=)`` alone."""
    queue = require_name(where, name)
    if queue.startswith(GROUP_PREFIX):
        raise ConfigurationError(
            f"{where} takes no name that begins with {GROUP_PREFIX!r}, got {queue!r}: such queues belong to groups of "
            "subscribers; node.sub(pattern, group=...) consumes one, node.pub(pattern) fills it"
        )
    return queue


def find_group_fault(group: object) -> str | None:
    """What is wrong with a group's name; None if nothing is."""
    if not isinstance(group, str):
        return f"it is a {type(group).__name__}, not a text"
    if not 0 < len(group.encode("utf-8", "replace")) <= MAX_GROUP_BYTES:
        return f"1 to {MAX_GROUP_BYTES} bytes are allowed"
    if not group.isprintable() or any(letter.isspace() or letter in "@{" for letter in group):
        return "it holds white space, '@', '{' or what cannot be printed"
    return None


def require_where(where: str, condition: object) -> None:
    """Checks a condition on headers: names, each with the value that it must have."""
    if condition is None:
        return
    if not isinstance(condition, Mapping) or not condition:
        raise ConfigurationError(f'{where} takes a dict such as {{"region": "eu"}}, got {reprlib.repr(condition)}')
    for name, value in condition.items():
        if not isinstance(name, str) or not isinstance(value, (str, int, float)) or not _travels(name, value):
            raise ConfigurationError(
                f"{where} takes names of headers with a str, number or bool each, got {name!r}: {reprlib.repr(value)}"
            )


def _travels(name: str, value: str | int | float) -> bool:
    try:
        (name + value if isinstance(value, str) else name).encode()
    except UnicodeEncodeError:
        return False
    return isinstance(value, str) or abs(value) < 2**63  # which no NaN is, either


def require_items(where: str, items: object, hint: str) -> None:
    """Checks that something can be iterated and is meant to be: not a text, whose items are letters, nor a dict."""
    is_one = isinstance(items, (str, bytes, bytearray, memoryview, Mapping))
    if is_one or not (hasattr(items, "__iter__") or hasattr(items, "__getitem__")):
        raise ConfigurationError(f"{where} takes a list, not {type(items).__name__} {reprlib.repr(items)}: {hint}")


def require_strings(where: str, items: Iterable[object], hint: str) -> None:
    """Checks a list, and that each of its items is a str."""
    require_items(where, items, hint)
    for each in items:
        if not isinstance(each, str):
            raise ConfigurationError(f"{where} takes str, not {type(each).__name__} {reprlib.repr(each)}: {hint}")


def require_int(where: str, value: object, *, at_least: int, at_most: int | None = None) -> None:
    """Checks a whole number and its bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigurationError(f"{where} takes a whole number, not {type(value).__name__} {value!r}")
    if value < at_least:
        raise ConfigurationError(f"{where} takes {at_least} or more, got {value}")
    if at_most is not None and value > at_most:
        raise ConfigurationError(f"{where} takes at most {at_most}, got {_show(value)}")


def require_number(
    where: str,
    value: object,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float = MAX_NUMBER,
) -> None:
    """Checks a finite number and its bounds; seconds mostly, so that one of these is the upper one."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigurationError(f"{where} takes a number, not {type(value).__name__} {value!r}")
    if value != value or value in (float("inf"), float("-inf")):
        raise ConfigurationError(f"{where} takes a finite number, got {value}")
    if at_least is not None and value < at_least:
        raise ConfigurationError(f"{where} takes {at_least} or more, got {value}")
    if above is not None and value <= above:
        raise ConfigurationError(f"{where} takes more than {above}, got {value}")
    if value > at_most:
        raise ConfigurationError(f"{where} takes at most {at_most}, got {_show(value)}")


def _show(number: float) -> str:
    try:
        return reprlib.repr(number)
    except ValueError:  # Python prints no whole number of more than 4300 digits
        return "far more"


def require_choice(where: str, value: object, choices: tuple[str, ...]) -> None:
    """Checks that a value is one of a few words."""
    if value not in choices:
        raise ConfigurationError(f"{where} takes one of {', '.join(map(repr, choices))}, got {value!r}")


def require_bool(where: str, value: object) -> None:
    """Checks a flag."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{where} takes True or False, got {value!r}")
