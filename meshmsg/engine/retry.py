"""How long a failed message waits (exponential backoff with full jitter)."""

from __future__ import annotations

import random

from meshmsg.options import Retry


def backoff(retry: Retry, attempts: int, generator: random.Random, *, lost: bool = False) -> float:
    """Seconds until the next attempt, after ``attempts`` failed ones.

    What was ``lost`` with its consumer always waits a random time: a message that kills its consumers must not come
    back together with those that were lost beside it.
    """
    ceiling = retry.ceiling(attempts)
    return ceiling * generator.random() if lost or retry.jitter == "full" else ceiling
