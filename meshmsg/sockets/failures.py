"""What a caller hears of an exception in a method: a code, a type's name, a text; never the object."""

from __future__ import annotations

import logging
import traceback
from types import TracebackType

from meshmsg.engine.faults import name_type
from meshmsg.engine.served import Served, Serving
from meshmsg.errors import MeshError, Overloaded, RequestError

logger = logging.getLogger("meshmsg.handlers")


def fail(serving: Serving, served: Served, error: BaseException, tracebacks: bool) -> None:
    """Answers a call with an exception.

    A ``RequestError`` that the method made itself travels with its code. One that came out of a request of its own is
    a failure like any other: "nobody offers it", said of another service, would be a lie about this one.
    """
    message = say(error)
    if isinstance(error, RequestError) and error.service is None:
        retry_after = error.retry_after if isinstance(error, Overloaded) else None
        serving.fail(served, error.code, name_type(error), message, None, retry_after)
        return
    if not isinstance(error, MeshError):  # a bug here, and not only of the caller's interest
        logger.error("%s.%s failed for %r", served.service, served.method, served.peer_name, exc_info=error)
    text = format_traceback(error) if tracebacks else None
    serving.fail(served, "error", name_type(error), message, text)


def say(error: BaseException) -> str:
    """An exception's own words; one that cannot even say them must not cost its caller the answer."""
    try:
        return str(error)
    except Exception:
        return ""


def format_traceback(error: BaseException) -> str:
    """A traceback as text, from the method on."""
    trace = skip_own(error.__traceback__)
    try:
        return "".join(traceback.TracebackException(type(error), error, trace, compact=True).format())
    except Exception:  # an exception whose parts cannot even be shown
        return "".join(traceback.format_tb(trace)) + type(error).__name__


def skip_own(trace: TracebackType | None) -> TracebackType | None:
    """Leaves out how this package came to call the method."""
    rest = trace
    while rest is not None and rest.tb_frame.f_globals.get("__name__", "").startswith("meshmsg.sockets."):
        rest = rest.tb_next
    return rest or trace
