"""A service that other nodes ask, for threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from meshmsg.blocking.face import DrainingFace
from meshmsg.driver import Driver
from meshmsg.errors import ConfigurationError
from meshmsg.sockets import router
from meshmsg.sockets.methods import find_kind, list_public

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
OfferedT = TypeVar("OfferedT")


class Router(DrainingFace[router.Router]):
    """A service of this node. ``node.router(service, ...)`` makes it; ``docs/requests.md`` is about it.

    Its methods are plain functions and generators, and run in up to ``concurrency`` threads. Other nodes hear of it
    with its first method: to have all of them there at once, offer a class, or offer them before the node starts.

    Examples
    --------
    >>> from meshmsg.blocking import Node
    >>> node = Node("server")
    >>> router = node.router("math")
    >>> @router.method
    ... def add(a: int, b: int) -> int:
    ...     return a + b
    >>> router.methods
    ('ping', 'info', 'stats', 'add')
    """

    def __init__(self, asynchronous: router.Router, driver: Driver) -> None:
        super().__init__(asynchronous, driver)
        self.service = asynchronous.service
        self.options = asynchronous.options

    @overload
    def method(self, function: FunctionT, *, name: str | None = None, endless: bool = False) -> FunctionT: ...
    @overload
    def method(
        self, function: None = None, *, name: str | None = None, endless: bool = False
    ) -> Callable[[FunctionT], FunctionT]: ...
    def method(self, function: Any = None, *, name: str | None = None, endless: bool = False) -> Any:
        """Offers a plain function or generator under its name, or another one; see ``meshmsg.Router.method``.

        A parameter annotated with ``Context`` gets the context of the request, one with ``Iterator`` the caller's
        items. Requests that the function makes get no more time than its caller has left, and end with it. ``close``
        does not wait for a function that is ``endless``.
        """
        if function is None:
            return lambda function: self.method(function, name=name, endless=endless)
        self._require_plain(function)
        self._call(lambda: self._async.method(function, name=name, endless=endless))
        return function

    def offer(self, offered: OfferedT, *, endless: Iterable[str] = ()) -> OfferedT:
        """Offers all public methods of an object; of a class, of an object that is made of it without arguments.

        ``endless`` has the names of those that are (see ``method``).
        """
        made = router.make_offered(self._async._label, offered)  # here, where it may take its time
        for function in list_public(made).values():
            self._require_plain(function)
        self._call(lambda: self._async.offer(made, endless=endless))
        return offered

    def files(self, directory: str | os.PathLike[str], *, writable: bool = False, max_bytes: int | None = None) -> None:
        """Offers the files of a directory, for ``dealer.fetch`` and ``send_file``; see ``meshmsg.Router.files``."""
        self._call(lambda: self._async.files(directory, writable=writable, max_bytes=max_bytes))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods it has."""
        return self._async.methods

    @property
    def serving(self) -> bool:
        """Whether other nodes shall ask this one; set it to False for a while, and balancing goes elsewhere."""
        return self._async.serving

    @serving.setter
    def serving(self, serving: bool) -> None:
        self._call(lambda: setattr(self._async, "serving", serving))

    def close(self, drain: float = router.DRAIN_S) -> None:
        """Takes no more requests, lets those that run end within ``drain`` seconds, and gives up the rest (G10).

        A plain function cannot be stopped: its caller gets ``Unavailable``, and its thread goes on.
        """
        self._close(drain)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_plain(self, function: object) -> None:
        if callable(function) and find_kind(function) in ("coroutine", "async generator"):
            raise ConfigurationError(f"{self._async._label} takes plain functions here; meshmsg.Node runs coroutines")
