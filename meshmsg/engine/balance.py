"""Which consumer gets how much of a queue: pure functions from (outstanding, credit) to counts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

# (count to hand out, unsettled per lane, credit per lane, generator) -> share per lane
Shares = Callable[[int, Sequence[int], Sequence[int], random.Random], list[int]]


def least_outstanding(
    count: int, outstanding: Sequence[int], credit: Sequence[int], generator: random.Random
) -> list[int]:
    """Fills the emptiest lanes first, as water fills a vessel, so that all end at one level if credit allows.

    >>> least_outstanding(3, [0, 3, 9], [9, 9, 9], random.Random(1))
    [3, 0, 0]
    >>> least_outstanding(7, [0, 3, 9], [9, 9, 9], random.Random(1))
    [5, 2, 0]
    """
    shares = [0] * len(outstanding)
    if len(shares) == 1:
        return [min(count, credit[0])]
    while count:
        open_lanes = [i for i in range(len(shares)) if shares[i] < credit[i]]
        if not open_lanes:
            break
        level = min(outstanding[i] + shares[i] for i in open_lanes)
        lowest = [i for i in open_lanes if outstanding[i] + shares[i] == level]
        generator.shuffle(lowest)  # ties at random, so that small batches don't favour the first lane
        above = [outstanding[i] + shares[i] for i in open_lanes if outstanding[i] + shares[i] > level]
        step = min([min(above) - level if above else count, *(credit[i] - shares[i] for i in lowest)])
        each, rest = divmod(min(count, step * len(lowest)), len(lowest))
        for position, i in enumerate(lowest):
            shares[i] += each + (position < rest)
        count -= each * len(lowest) + rest
    return shares


def round_robin(count: int, outstanding: Sequence[int], credit: Sequence[int], generator: random.Random) -> list[int]:
    """Equal shares; the remainder starts where the caller rotated the lanes to."""
    shares = [0] * len(credit)
    while count:
        open_lanes = [i for i in range(len(shares)) if shares[i] < credit[i]]
        if not open_lanes:
            break
        each = min([count // len(open_lanes), *(credit[i] - shares[i] for i in open_lanes)])
        if each:
            for i in open_lanes:
                shares[i] += each
            count -= each * len(open_lanes)
        else:
            for i in open_lanes[:count]:
                shares[i] += 1
            count -= min(count, len(open_lanes))
    return shares


def at_random(count: int, outstanding: Sequence[int], credit: Sequence[int], generator: random.Random) -> list[int]:
    """Each message to a lane drawn uniformly from those with credit."""
    shares = [0] * len(credit)
    open_lanes = [i for i in range(len(shares)) if credit[i] > 0]
    for _ in range(count):
        if not open_lanes:
            break
        i = generator.choice(open_lanes)
        shares[i] += 1
        if shares[i] == credit[i]:
            open_lanes.remove(i)
    return shares


STRATEGIES: dict[str, Shares] = {
    "least_outstanding": least_outstanding,
    "round_robin": round_robin,
    "random": at_random,
}
