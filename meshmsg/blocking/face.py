"""What the sockets for threads have in common: each is the face of one that its node's loop alone may use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec, Protocol, TypeVar

from meshmsg.blocking.loop import LoopThread
from meshmsg.driver import Driver
from meshmsg.errors import NodeClosed
from meshmsg.sockets.shown import Shown


class Draining(Protocol):
    """A socket whose close gives what runs some time."""

    _label: str

    async def close(self, drain: float = ..., /) -> None: ...


InnerT = TypeVar("InnerT")
DrainingT = TypeVar("DrainingT", bound=Draining)
ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")


class Face(Shown, Generic[InnerT]):
    """A socket that any thread may use; the one behind it is opened by the node, before the start or after it."""

    def __init__(self, asynchronous: InnerT, driver: Driver) -> None:
        self._async = asynchronous
        self._driver = driver
        self._loop: LoopThread | None = None

    def _connect(self, loop: LoopThread) -> None:
        """The node has started."""
        self._loop = loop

    def _is_of(self, asynchronous: object) -> bool:
        """Whether this is the face of that one, which may be a new one of the same name."""
        return self._async is asynchronous

    def _call(
        self, function: Callable[ParametersT, ResultT], *arguments: ParametersT.args, **keywords: ParametersT.kwargs
    ) -> ResultT:
        """In the loop's thread while there is one; before the start and after the close, here."""
        if self._loop is None:
            self._driver.require_process()
            return function(*arguments, **keywords)
        return self._loop.call(function, *arguments, **keywords)

    def _running_loop(self) -> LoopThread:
        self._driver.require_running()
        assert self._loop is not None, "a running node has a loop"
        return self._loop

    def _title(self) -> str:
        inner = self._async
        return inner._title() if isinstance(inner, Shown) else super()._title()

    def _state(self) -> str:
        inner = self._async
        return inner._state() if isinstance(inner, Shown) else super()._state()


class DrainingFace(Face[DrainingT]):
    """One whose close waits for what runs."""

    def _close(self, drain: float) -> None:
        self._driver.require_process()
        if self._loop is None:
            raise NodeClosed(f"the node of {self._async._label} is not started, so there is nothing to close")
        if not self._loop.ended.is_set():
            self._loop.wait(self._async.close(drain))
