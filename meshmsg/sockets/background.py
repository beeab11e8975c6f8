"""What a node runs beside its turns: hooks that are coroutine functions, and the start of what finds others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

logger = logging.getLogger("meshmsg.node")


class Background:
    """Tasks that nobody awaits one by one. One that fails is logged, with the name of the node."""

    def __init__(self, name: str, on_end: Callable[[], None] = lambda: None) -> None:
        self._name = name
        self._on_end = on_end  # called after each that ends
        self._tasks: set[asyncio.Future[Any]] = set()

    def __len__(self) -> int:
        """How many still run."""
        return len(self._tasks)

    def spawn(self, awaitable: Awaitable[Any]) -> None:
        """Runs one more."""
        task = asyncio.ensure_future(awaitable)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def leave_out(self, task: asyncio.Future[Any] | None) -> None:
        """Neither counts nor cancels a task from now on, such as one that closes the node."""
        if task in self._tasks:
            self._tasks.remove(task)
            self._on_end()

    def cancel(self) -> int:
        """Ends those that still run, and returns how many."""
        count = len(self._tasks)
        for task in self._tasks:
            task.cancel()
        return count

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("node %r: a background task failed", self._name, exc_info=task.exception())
        self._on_end()
