"""Whether this process is a fork: ``count`` differs there from what it was in the process that made a socket."""

from __future__ import annotations

import os

count = 0


def _count() -> None:
    global count
    count += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count)
