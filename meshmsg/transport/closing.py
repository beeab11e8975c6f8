"""Ending ZeroMQ contexts without holding up the loop, and without cutting off what still has to leave."""

from __future__ import annotations

import atexit
import threading
import time

from meshmsg.transport.tuning import Context

# Beyond the linger time a context ends within a millisecond or so, if all its sockets are closed.
GRACE_S = 0.5

_ending: dict[threading.Thread, float] = {}  # -> when it must be done, on the monotonic clock


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


@atexit.register
def _wait_for_all() -> None:
    for thread, deadline in list(_ending.items()):
        thread.join(max(0.0, deadline - time.monotonic()))
