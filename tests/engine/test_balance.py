"""Shares never exceed the credit, hand out all they can, and follow their strategy."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.engine.balance import STRATEGIES, at_random, least_outstanding, round_robin

LANES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), min_size=1, max_size=8)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@given(count=st.integers(0, 100), lanes=LANES, seed=st.integers(0, 3))
def test_all_that_fits_is_handed_out_and_no_more(
    name: str, count: int, lanes: list[tuple[int, int]], seed: int
) -> None:
    outstanding, credit = [lane[0] for lane in lanes], [lane[1] for lane in lanes]
    shares = STRATEGIES[name](count, outstanding, credit, random.Random(seed))
    assert sum(shares) == min(count, sum(credit))
    assert all(0 <= share <= limit for share, limit in zip(shares, credit, strict=True))


@given(count=st.integers(0, 100), lanes=LANES)
def test_least_outstanding_fills_the_emptiest_first(count: int, lanes: list[tuple[int, int]]) -> None:
    outstanding, credit = [lane[0] for lane in lanes], [lane[1] for lane in lanes]
    shares = least_outstanding(count, outstanding, credit, random.Random(1))
    for given_share, before in zip(shares, outstanding, strict=True):
        for other_share, other_before, other_credit in zip(shares, outstanding, credit, strict=True):
            # Nobody got a message while somebody with credit would be lower by more than one with it.
            if given_share and other_share < other_credit:
                assert before + given_share <= other_before + other_share + 1


def test_least_outstanding_breaks_ties_at_random() -> None:
    generator = random.Random(1)
    firsts = {tuple(least_outstanding(1, [0, 0, 0], [5, 5, 5], generator)) for _ in range(50)}
    assert firsts == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_round_robin_starts_its_remainder_with_the_first() -> None:
    assert round_robin(5, [0, 0, 0], [9, 9, 9], random.Random(1)) == [2, 2, 1]
    assert round_robin(7, [0, 0, 0], [9, 1, 9], random.Random(1)) == [3, 1, 3]


def test_at_random_leaves_full_lanes_alone() -> None:
    assert at_random(9, [0, 0], [2, 3], random.Random(1)) == [2, 3]
