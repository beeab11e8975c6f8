"""One method of a service: what it takes, how it is run, what became of its calls; and checks of what is offered."""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, Literal

from meshmsg.checks import require_items, require_name
from meshmsg.errors import ConfigurationError
from meshmsg.sockets.context import Context
from meshmsg.sockets.signatures import Signature

Kind = Literal["coroutine", "function", "async generator", "generator"]

MAX_ERROR_CHARS = 500


class Counts:
    """What became of some calls."""

    __slots__ = ("busy_s", "errors", "last_error", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.last_error: str | None = None
        self.busy_s = 0.0

    def note(self, seconds: float, error: str | None) -> None:
        """A call has ended."""
        self.requests += 1
        self.busy_s += seconds
        if error is not None:
            self.errors += 1
            self.last_error = error[:MAX_ERROR_CHARS]

    def stats(self) -> dict[str, Any]:
        """Numbers since the start, as ``stats`` gives them."""
        mean_ms = self.busy_s / self.requests * 1000 if self.requests else 0.0
        return {
            "requests": self.requests,
            "errors": self.errors,
            "last_error": self.last_error,
            "mean_ms": round(mean_ms, 3),
        }


class Method(Counts):
    """What a router does with calls of one name."""

    __slots__ = ("function", "kind", "name", "signature", "streams")

    def __init__(self, service: str, name: str, function: Callable[..., Any]) -> None:
        super().__init__()
        self.name = require_no_dot(service, name)
        self.function = function
        self.kind = find_kind(function)
        self.streams = self.kind.endswith("generator")
        self.signature = Signature(function, f"{service}.{name}", Context)


def find_kind(function: Callable[..., Any]) -> Kind:
    """How a callable has to be run, also one with a ``__call__`` of that kind."""
    for each in (function, getattr(function, "__call__", None)):  # noqa: B004 -- an object whose __call__ is async
        if inspect.isasyncgenfunction(each):
            return "async generator"
        if inspect.iscoroutinefunction(each):
            return "coroutine"
        if inspect.isgeneratorfunction(each):
            return "generator"
    return "function"


def name_method(label: str, function: object, name: object) -> str:
    """The name that a function is offered under."""
    if not callable(function):
        raise ConfigurationError(f"{label}.method takes a function, not {type(function).__name__} {function!r}")
    if isinstance(function, type):
        raise ConfigurationError(f"{label}.method got the class {function.__name__}: {label}.offer offers its methods")
    if name is None:
        name = getattr(function, "__name__", None)
        if name is None or name == "<lambda>":
            raise ConfigurationError(f'{label}: {function!r} has no name: write {label}.method(function, name="...")')
    return require_name(f"{label}.method(name=)", name)


def require_no_dot(service: str, name: str) -> str:
    """A method's name: "a.b.c" is the method c of the service a.b, and cannot be b.c of a as well."""
    before, dot, last = name.rpartition(".")
    if dot:
        hint = f"call it {name.replace('.', '_')!r}"
        if before and last:
            hint = f"use router({f'{service}.{before}'!r}) with the method {last!r}, or {hint}"
        raise ConfigurationError(
            f"router({service!r}) has no method {name!r}: names of services have dots, those of methods have none: "
            f"{hint}"
        )
    return name


def list_public(offered: object) -> dict[str, Callable[..., Any]]:
    """The public methods of an object, by name; no property is looked at."""
    found: dict[str, Callable[..., Any]] = {}
    for name in dir(type(offered)):
        if not name.startswith("_"):
            plain = inspect.getattr_static(type(offered), name)
            is_method = callable(plain) and not isinstance(plain, type)
            if is_method or isinstance(plain, (staticmethod, classmethod, functools.partialmethod)):
                found[name] = getattr(offered, name)
    return found


def require_interceptors(where: str, given: Iterable[Any], what: str) -> tuple[Any, ...]:
    """Checks that each is a coroutine function; ``what`` names its first parameter, for the error."""
    require_items(where, given, "write interceptors=[function]")
    interceptors = tuple(given)
    for each in interceptors:
        if not callable(each) or find_kind(each) != "coroutine":
            raise ConfigurationError(f"{where} takes an `async def ({what}, proceed)`, not {reprlib.repr(each)}")
    return interceptors
