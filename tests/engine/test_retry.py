"""Backoff grows, is capped, and scatters what was lost together."""

from __future__ import annotations

import random

import pytest

from meshmsg.engine.retry import backoff
from meshmsg.options import Retry


def test_without_jitter_it_doubles_up_to_the_cap() -> None:
    retry = Retry(backoff=0.5, max_backoff=3.0, jitter="none")
    assert [backoff(retry, attempts, random.Random(1)) for attempts in (1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_full_jitter_is_uniform_below_the_ceiling() -> None:
    retry, generator = Retry(backoff=1.0), random.Random(1)
    delays = [backoff(retry, 3, generator) for _ in range(500)]
    assert 0 <= min(delays) < 0.2 and 3.8 < max(delays) <= 4.0
    assert sum(delays) / len(delays) == pytest.approx(2.0, abs=0.2)


def test_what_was_lost_waits_a_random_time_in_any_case() -> None:
    retry, generator = Retry(backoff=1.0, jitter="none"), random.Random(1)
    assert len({backoff(retry, 1, generator, lost=True) for _ in range(10)}) == 10


def test_very_many_attempts_do_not_overflow() -> None:
    assert backoff(Retry(max_attempts=10**6, jitter="none"), 10**6, random.Random(1)) == 60.0
