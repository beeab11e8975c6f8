"""Running applications' hooks outside the loop's thread, so that they may wait as they like."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("meshmsg.blocking")


class Hooks:
    """One daemon thread that calls what it is given, in order; it starts with the first call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Callable[[Any], Any], Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, function: Callable[[Any], Any], argument: Any) -> None:
        """Has a function called soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"meshmsg-{self._name}-hooks", daemon=True)
            self._thread.start()
        self._calls.put((function, argument))

    def close(self, timeout_s: float) -> None:
        """Waits until what was put before is done, but no longer than that."""
        self._calls.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                logger.warning("node %r closed while its on_dead_letter hooks were busy", self._name)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, argument = call
            try:
                function(argument)
            except Exception:
                logger.exception("a hook of node %r failed on %r", self._name, argument)
