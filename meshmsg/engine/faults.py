"""Between the errors of requests and what travels of them (a FAULT): code, type, text, never an object."""

from __future__ import annotations

from meshmsg.errors import (
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    NoResponders,
    NoSuchMethod,
    Overloaded,
    PeerLost,
    RemoteError,
    RequestError,
    Unavailable,
)

_BY_CODE: dict[str, type[RequestError]] = {
    kind.code: kind
    for kind in (
        BadRequest,
        Cancelled,
        DeadlineExceeded,
        NoResponders,
        NoSuchMethod,
        Overloaded,
        PeerLost,
        Unavailable,
    )
}

# After these an idempotent request may be tried again; the method's own failures are its answer.
RETRYABLE = frozenset((NoResponders.code, Overloaded.code, PeerLost.code, Unavailable.code))


def make_error(
    code: str, type_name: str, message: str, remote_traceback: str | None, retry_after: float | None
) -> RequestError:
    """The error that a caller gets for a FAULT.

    >>> make_error("bad_request", "a", "argument 'a' is missing", None, None).argument
    'a'
    """
    kind = _BY_CODE.get(code)
    if kind is None:
        return RemoteError(message, code, type_name, remote_traceback)
    if kind is Overloaded:
        return Overloaded(message, retry_after)
    if kind is BadRequest:
        return BadRequest(message, type_name or None)
    return kind(message)


def name_type(error: BaseException) -> str:
    """What travels as the type of an error: its class, or for ``BadRequest`` the argument that it is about."""
    if isinstance(error, BadRequest):
        return error.argument or ""
    if isinstance(error, RemoteError):
        return error.type
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
