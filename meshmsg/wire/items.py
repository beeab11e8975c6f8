"""The items of a ``TALK``: what a caller and a server say to each other, many of them in one frame.

An item is an array that begins with its op. Some have bodies, which follow in the frame's payload in the order of the
items; ``docs/wire-protocol.md`` lists the fields. A call's number is its caller's: it rises and is never used again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshmsg.errors import ProtocolError
from meshmsg.wire import fields

# From a caller to a server.
CALL, CANCEL, CREDIT, UP_ITEMS, UP_END = 1, 2, 3, 4, 5
# From a server to a caller.
RESULT, FAULT, ITEMS, END, UP_CREDIT = 16, 17, 18, 19, 20

# Flags of a CALL: the caller wants items, the caller sends items. Flag of a FAULT: the method was never begun. Flag of
# ITEMS and UP_ITEMS, which may be left out: their sender waits for word that they were taken.
WANTS_ITEMS, SENDS_ITEMS = 1, 2
NEVER_RAN = 1
MARKED = 1

WITH_BODIES = frozenset((CALL, UP_ITEMS, RESULT, ITEMS))

MAX_ITEMS = 65_536  # of one frame
MAX_RUN = 1024  # calls that one CALL of ours makes

# Longest texts that a reader takes, in characters.
MAX_SERVICE = 200
MAX_METHOD = 200
MAX_CODE = 100
MAX_TYPE = 200
MAX_MESSAGE = 1000
MAX_TRACEBACK = 20_000


def bodies_of(item: list[Any]) -> int:
    """How many bodies belong to an item that was checked."""
    op = item[0]
    if op == RESULT:
        return len(item[1])
    if op == CALL or op == ITEMS or op == UP_ITEMS:
        count: int = item[2]
        return count
    return 0


def count_bodies(items: list[list[Any]]) -> int:
    """How many bodies a frame with these items has."""
    return sum(map(bodies_of, items))


def split(item: list[Any], count: int) -> tuple[list[Any], list[Any]]:
    """Two items that say the same as one: with its first ``count`` bodies, and with the others."""
    op = item[0]
    if op == RESULT:
        return [RESULT, item[1][:count]], [RESULT, item[1][count:]]
    if op == CALL:
        first, total = item[1], item[2]
        return [CALL, first, count, *item[3:]], [CALL, first + count, total - count, *item[3:]]
    return [op, item[1], count], [op, item[1], item[2] - count, *item[3:]]  # a mark is at the end


def check_items(items: Any) -> int:
    """Looks at every field of every item; returns how many bodies belong to them.

    Raises ``ProtocolError`` for a known op with wrong fields (G11). Unknown ops have no bodies and are left alone.
    """
    if len(fields.array(items, "items")) > MAX_ITEMS:
        raise ProtocolError(f"{len(items)} items in one frame; at most {MAX_ITEMS}")
    total = 0
    for item in items:
        if type(item) is not list or not item or type(item[0]) is not int:
            raise ProtocolError("an item that is not an array starting with its op")
        check = _CHECKS.get(item[0])
        if check is not None:
            try:
                total += check(item)
            except (IndexError, TypeError, ValueError) as error:
                if isinstance(error, ProtocolError):
                    raise
                raise ProtocolError(f"an item of op {item[0]} with wrong fields: {error}") from None
    return total


def _check_call(item: list[Any]) -> int:
    _, first, count, service, method, remaining, flags, window, headers = item[:9]
    fields.naturals(first, count, flags, window)
    if not count or first + count > fields.MAX_SEQ:
        raise ProtocolError("a CALL of nothing, or of numbers beyond 2^62")
    fields.text(service, "service", MAX_SERVICE)
    fields.text(method, "method", MAX_METHOD)
    if remaining is not None:
        fields.seconds(remaining)
    if window and not flags & WANTS_ITEMS:
        raise ProtocolError("a CALL with credit for items that it does not want")
    if headers is not None:
        fields.headers(headers)
    fields.naturals(*item[9:10])  # bytes of items
    return count  # type: ignore[no-any-return]  # just checked


def _check_numbers(numbers: Any) -> int:
    """At the speed of C: there may be thousands, several times a millisecond."""
    if not fields.array(numbers, "numbers"):
        raise ProtocolError("an item about no calls")
    if set(map(type, numbers)) != {int} or min(numbers) < 0 or max(numbers) > fields.MAX_SEQ:
        raise ProtocolError("numbers of calls are natural numbers up to 2^62")
    return len(numbers)


def _check_cancel(item: list[Any]) -> int:
    _check_numbers(item[1])
    return 0


def _check_credit(item: list[Any]) -> int:
    fields.natural(item[1])
    fields.natural(item[2])
    fields.naturals(*item[3:5])  # how many were taken, and how many bytes may be under way
    return 0


def _check_items(item: list[Any]) -> int:
    fields.natural(item[1])
    if not fields.natural(item[2]):
        raise ProtocolError("no items")
    fields.naturals(*item[3:4])  # flags
    count: int = item[2]
    return count


def _check_end(item: list[Any]) -> int:
    fields.natural(item[1])
    return 0


def _check_fault(item: list[Any]) -> int:
    _, number, code, type_name, message, traceback, retry_after, flags = item[:8]
    fields.natural(number)
    fields.text(code, "code", MAX_CODE)
    fields.text(type_name, "type", MAX_TYPE)
    fields.text(message, "message", MAX_MESSAGE, controls=True)
    if traceback is not None:
        fields.text(traceback, "traceback", MAX_TRACEBACK, controls=True)
    if retry_after is not None:
        fields.seconds(retry_after)
    fields.natural(flags)
    return 0


_CHECKS: dict[int, Callable[[list[Any]], int]] = {
    CALL: _check_call,
    CANCEL: _check_cancel,
    CREDIT: _check_credit,
    UP_ITEMS: _check_items,
    UP_END: _check_end,
    RESULT: lambda item: _check_numbers(item[1]),
    FAULT: _check_fault,
    ITEMS: _check_items,
    END: _check_end,
    UP_CREDIT: _check_credit,
}
