"""What the process's exit code tells a script; listed in ``meshmsg --help``."""

from __future__ import annotations

OK = 0
NOTHING = 1  # found nothing, or time ran out before everything was done
USAGE = 2  # click's own code for wrong use
DEAD = 3  # messages became dead letters
ANSWERED_WITH_ERROR = 3  # a requested method failed
FAILED = 4  # the node could not run
INTERRUPTED = 130  # 128 + SIGINT, as shells count
