"""File descriptors are counted before a link is opened: libzmq may abort when they run out (pyzmq#234)."""

from __future__ import annotations

import errno
import os

from meshmsg.errors import TooManyLinks

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]  # mypy checks for Linux, where the module exists

# Measured on Linux: the DEALER, both ends of its monitor, its connection. Elsewhere libzmq signals through
# socket pairs, which take two descriptors each where an eventfd takes one.
PER_LINK = 4 if hasattr(os, "eventfd") else 7
# What stays free for the connections of others to us, and for the application.
SPARE = 32


def require_room(links: int) -> None:
    """Raise ``TooManyLinks`` unless there are descriptors for one more link; ``links`` are open already."""
    limit = soft_limit()
    if limit is None:
        return
    used = count_open(links)
    if used + PER_LINK + SPARE > limit:
        raise TooManyLinks(
            errno.EMFILE,
            f"no room for another socket, with {links} links open: {used} of this process's {limit} file "
            f"descriptors are in use, a link takes {PER_LINK} and {SPARE} are kept free; "
            f"raise the limit before starting it, for example with: ulimit -n {2 * limit}",
        )


def soft_limit() -> int | None:
    """How many descriptors this process may have; None where there is no limit."""
    if resource is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def count_open(links: int) -> int:
    """How many descriptors are open; where the system does not say, what ``links`` links must have taken."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return SPARE + links * (PER_LINK + 1)
