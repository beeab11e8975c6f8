"""Running applications' hooks outside the loop's thread, so that they may wait as they like."""

from __future__ import annotations

import inspect
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("meshmsg.blocking")


class Hooks:
    """One daemon thread that calls what it is given, in order; it starts with the first call."""

    def __init__(self, name: str) -> None:
        self.on_idle: Callable[[], None] = lambda: None  # called in the thread whenever there is nothing to wait for
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Callable[[Any], Any], Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._given = 0  # counted by the loop
        self._done = 0  # counted by the thread
        self._closes = False  # whether the call that runs closes the node, and waits for that

    @property
    def busy(self) -> bool:
        """Whether there are calls to wait for."""
        return self._given > self._done and not self._closes

    def put(self, function: Callable[[Any], Any], argument: Any) -> None:
        """Has a function called soon; of the loop only."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"meshmsg-{self._name}-hooks", daemon=True)
            self._thread.start()
        self._given += 1
        self._calls.put((function, argument))

    def note_close(self) -> None:
        """The node is about to be closed: if a hook does it, neither that call nor those behind it are waited for."""
        if self._thread is threading.current_thread():
            self._closes = True
            self.on_idle()

    def close(self, timeout_s: float) -> None:
        """Ends the thread when it is through; waits for that so long, unless calls are left."""
        self._calls.put(None)
        left = self._given - self._done - self._closes
        if left:
            logger.warning("node %r closed before %d calls of its hooks were done", self._name, left)
        elif self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, argument = call
            try:
                result = function(argument)
                if inspect.iscoroutine(result):
                    result.close()
                    raise TypeError(
                        f"{function!r} returned a coroutine, which nobody runs: hooks are plain functions here"
                    )
            except BaseException:  # SystemExit too: it would end the hooks of a node that goes on
                logger.exception("a hook of node %r failed on %r", self._name, argument)
            self._done += 1
            if self._done == self._given:
                self.on_idle()
