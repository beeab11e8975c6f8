"""What a caller hears of an exception in a method: a code, a type's name, a text; never the object."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from types import TracebackType

from meshmsg.engine.faults import name_type
from meshmsg.engine.served import Served, Serving
from meshmsg.errors import MeshError, Overloaded, RequestError
from meshmsg.message import describe_error
from meshmsg.message import say as say

# Frames of a traceback that are looked at, as each costs some 20 us: how it began, and what it came to.
OUTER_FRAMES = 5
INNER_FRAMES = 20

logger = logging.getLogger("meshmsg.handlers")


def fail(serving: Serving, served: Served, error: BaseException, tracebacks: bool) -> None:
    """Answers a call with an exception.

    A ``RequestError`` that the method made itself travels with its code. One that came out of a request of its own is
    a failure like any other: "nobody offers it", said of another service, would be a lie about this one.
    """
    message = say(error)
    if isinstance(error, RequestError) and error.service is None:
        retry_after = error.retry_after if isinstance(error, Overloaded) else None
        # Texts, whatever the method wrote: a caller must not wait in vain because of ``code=404``.
        serving.fail(served, str(error.code), str(name_type(error)), message, None, retry_after)
        return
    if not isinstance(error, MeshError):  # a bug here, and not only of the caller's interest
        trace, _ = shorten(error.__traceback__)
        told = (type(error), error, trace)
        logger.error("%s.%s failed for %r", served.service, served.method, served.peer_name, exc_info=told)
    text = format_traceback(error) if tracebacks else None
    serving.fail(served, "error", name_type(error), message, text)


def contain(label: str, error: SystemExit) -> RuntimeError:
    """What becomes of an exit: raised on, it would end the loop, and a caller could end a node with it."""
    failure = RuntimeError(f"{label} raised {describe_error(error)}")
    failure.__cause__ = error
    return failure


def describe(error: BaseException) -> str:
    """An exception for the statistics, which travel too: without what UTF-8 cannot carry."""
    return describe_error(error).encode("utf-8", "replace").decode()


def format_traceback(error: BaseException) -> str:
    """A traceback as text, from the method on; of a deep one its beginning and its end, of its causes the end alone."""
    trace, left_out = shorten(skip_own(error.__traceback__))
    note = f"({left_out} frames are left out after the first {OUTER_FRAMES})\n" if left_out else ""
    limit = -OUTER_FRAMES - INNER_FRAMES  # of the causes; the rest is no longer than that
    try:
        told = traceback.TracebackException(type(error), error, trace, limit=limit, compact=True)
        return note + "".join(told.format())
    except Exception:  # an exception whose parts cannot even be shown
        return "".join(traceback.format_tb(trace)) + type(error).__name__


def shorten(trace: TracebackType | None) -> tuple[TracebackType | None, int]:
    """A traceback without the frames in the middle, if it is a long one; and how many these are."""
    outer: list[TracebackType] = []
    inner: deque[TracebackType] = deque(maxlen=INNER_FRAMES)
    count = 0
    each = trace
    while each is not None:
        count += 1
        if count <= OUTER_FRAMES:
            outer.append(each)
        else:
            inner.append(each)
        each = each.tb_next
    left_out = count - len(outer) - len(inner)
    if not left_out:
        return trace, 0
    short: TracebackType | None = inner[0]
    for each in reversed(outer):
        short = TracebackType(short, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return short, left_out


def skip_own(trace: TracebackType | None) -> TracebackType | None:
    """Leaves out how this package came to call the method."""
    rest = trace
    while rest is not None and rest.tb_frame.f_globals.get("__name__", "").startswith("meshmsg.sockets."):
        rest = rest.tb_next
    return rest or trace
