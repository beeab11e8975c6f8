"""How long a failed message waits (exponential backoff with full jitter)."""

from __future__ import annotations

import random

from meshmsg.options import Retry


def backoff(retry: Retry, attempts: int, generator: random.Random) -> float:
    """Seconds until the next attempt, after ``attempts`` failed ones."""
    ceiling = retry.ceiling(attempts)
    return ceiling * generator.random() if retry.jitter == "full" else ceiling
