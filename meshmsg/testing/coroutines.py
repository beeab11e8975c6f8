"""Coroutines in virtual time: they may await what a cluster gives them, and nothing that needs an event loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from meshmsg.errors import ConfigurationError
from meshmsg.testing.clock import ProcessLoop


class Wait:
    """Something that ends once; who awaits it goes on in the next turn of its process."""

    def __init__(self, loop: ProcessLoop) -> None:
        self.loop = loop
        self.ended = False
        self._then: list[Callable[[], Any]] = []

    def end(self) -> None:
        """It has ended; again is fine."""
        if not self.ended:
            self.ended = True
            for callback in self._then:
                self.loop.call_soon(callback)
            self._then.clear()

    def then(self, callback: Callable[[], Any]) -> None:
        """Calls back after the end, at once if that was before."""
        if self.ended:
            self.loop.call_soon(callback)
        else:
            self._then.append(callback)

    def forsake(self) -> None:
        """Who awaited it was stopped."""

    def result(self) -> Any:
        """What awaiting it gives, or raises."""

    def __await__(self) -> Generator[Wait, None, Any]:
        if not self.ended:
            try:
                yield self
            except GeneratorExit:
                self.forsake()
                raise
        return self.result()


class Run:
    """Runs one coroutine; ``on_end`` gets its value and its error, unless it is stopped before."""

    def __init__(
        self,
        loop: ProcessLoop,
        coroutine: Coroutine[Any, Any, Any],
        on_end: Callable[[Any, Exception | None], Any],
        around: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self.loop = loop
        self.over = False
        self._coroutine = coroutine
        self._on_end = on_end
        self._around = around  # calls each step

    def step(self) -> None:
        """Goes on until it awaits something, or ends."""
        if self.over or self.loop.ended:
            return
        if self.loop.held:
            self.loop.call_soon(self.step)
            return
        try:
            waits_for = self._around(lambda: self._coroutine.send(None))
        except StopIteration as end:
            self._finish(end.value, None)
        except Exception as error:  # the coroutine's own
            self._finish(None, error)
        else:
            if not isinstance(waits_for, Wait):
                self.stop()
                name = getattr(self._coroutine, "__qualname__", self._coroutine)
                raise ConfigurationError(
                    f"{name} awaits something that needs an event loop; a cluster in virtual time has none: await "
                    "request.sleep(), request.send(), request.take(), or a request of a cluster's dealer"
                )
            waits_for.then(self.step)

    def _finish(self, value: Any, error: Exception | None) -> None:
        if not self.over and not self.loop.ended:
            self.over = True
            self._on_end(value, error)

    def stop(self) -> None:
        """It is cancelled where it waits."""
        if not self.over:
            self.over = True
            if inspect.getcoroutinestate(self._coroutine) != inspect.CORO_RUNNING:
                self._around(self._coroutine.close)
