"""Ending ZeroMQ contexts without holding up the loop, and without cutting off what still has to leave."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
import weakref
from contextlib import suppress
from typing import Protocol

# pyzmq hears here what libzmq needs no longer of the memory that was sent without a copy, until the process ends.
# Handlers run in reverse order: as it is imported before ``_end_all`` is registered, it goes on until that is done.
import zmq.utils.garbage  # noqa: F401 - for what it registers

from meshmsg.transport.tuning import Context

# Beyond the linger time a context ends within a millisecond or so, if all its sockets are closed.
GRACE_S = 0.5

_ending: dict[threading.Thread, float] = {}  # -> when it must be done, on the monotonic clock


class Open(Protocol):
    """What has a context, and ends it with ``close``."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None: ...

    def close(self) -> None: ...


_open: weakref.WeakSet[Open] = weakref.WeakSet()


def remember(transport: Open) -> None:
    """Have this closed when the process ends, if nobody has closed it by then."""
    _open.add(transport)


def terminate(context: Context, linger_ms: int) -> threading.Thread:
    """End a context whose sockets are all closed, in a thread: that waits for what their LINGER allows.

    The thread is a daemon, so that a socket that somebody forgot cannot keep the process from ending. At its
    end the process waits for these threads, but no longer than LINGER allows: so a goodbye leaves.
    """

    def end() -> None:
        context.term()
        _ending.pop(thread, None)

    thread = threading.Thread(target=end, name="meshmsg-transport-close", daemon=True)
    _ending[thread] = time.monotonic() + linger_ms / 1000 + GRACE_S
    thread.start()
    return thread


def _forget_all() -> None:
    """A forked child has no part in what its parent opened."""
    _open.clear()
    _ending.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


@atexit.register
def _end_all() -> None:
    for transport in list(_open):
        _close(transport)
    for thread, deadline in list(_ending.items()):
        thread.join(max(0.0, deadline - time.monotonic()))


def _close(transport: Open) -> None:
    """Closes what nobody closed, in its own thread if that still runs a loop: sockets belong to one."""
    loop = transport.loop
    if loop is None or not loop.is_running():
        transport.close()
        return
    closed = threading.Event()

    def close() -> None:
        transport.close()
        closed.set()

    with suppress(RuntimeError):  # it ended meanwhile
        loop.call_soon_threadsafe(close)
        closed.wait(GRACE_S)
