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

# After these an idempotent request may be tried again, unless the method itself raised them: that is its answer.
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


def is_answer(type_name: str, never_ran: bool) -> bool:
    """Whether a FAULT is what the method raised, and not the server's own word on the call: that has no type.

    >>> is_answer("meshmsg.errors.Overloaded", never_ran=False), is_answer("", never_ran=True)
    (True, False)
    """
    return bool(type_name) and not never_ran


def name_type(error: BaseException) -> str:
    """What travels as the type of an error: its class, or for ``BadRequest`` the argument that it is about."""
    if isinstance(error, BadRequest):
        return error.argument or ""
    if isinstance(error, RemoteError):
        return error.type or RemoteError.__name__  # without one it were the server's own word
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
