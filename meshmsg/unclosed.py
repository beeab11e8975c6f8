"""Nodes that nobody closed: what is lost with them is said when the process ends."""

from __future__ import annotations

import atexit
import warnings
from collections.abc import Mapping
from typing import Protocol

from meshmsg.message import Ledger


class Closable(Protocol):
    """What is remembered until then."""

    def _warn_if_open(self) -> None: ...


def warn_of_loss(name: str, books: Mapping[str, Ledger], remedy: str) -> None:
    """Says that a node was not closed: loudly, if that loses messages."""
    pending = ", ".join(f"{each.pending} of {queue!r}" for queue, each in books.items() if each.pending)
    if pending:
        text = f"node {name!r} was not closed, and loses messages that are pending ({pending}): use `{remedy}`"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    else:
        warnings.warn(f"node {name!r} was not closed; use `{remedy}`", ResourceWarning, stacklevel=3)


def remember(node: Closable) -> None:
    """Keeps a node until ``forget``: if it were collected with its sockets open, ZeroMQ would wait for ever."""
    _started.add(node)


def forget(node: Closable) -> None:
    """It is closed."""
    _started.discard(node)


_started: set[Closable] = set()


@atexit.register
def _ask_all() -> None:
    for node in list(_started):
        node._warn_if_open()
