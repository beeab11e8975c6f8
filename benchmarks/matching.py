"""What it costs to find a topic's subscriptions: the index, with and without its cache, beside trying each pattern.

python benchmarks/matching.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from meshmsg.engine.topics import PatternIndex, matches

COUNTS = (10, 100, 1_000, 10_000)
TOPICS = 200
ROUNDS = 7


def make_patterns(count: int) -> list[str]:
    """Half of them exact, the others with a wildcard; of 1,000 places, each with some sensors."""
    patterns = []
    for number in range(count):
        place, sensor = number % 1_000, number // 1_000
        if number % 2:
            patterns.append(f"site{place}.*.sensor{sensor}")
        else:
            patterns.append(f"site{place}.room{sensor}.sensor{sensor}")
    return patterns


def measure_us(function: Callable[[str], object], topics: list[str]) -> float:
    """Median time of one call in microseconds, over rounds of all topics."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for topic in topics:
            function(topic)
        times.append((time.perf_counter() - start) / len(topics) * 1e6)
    return statistics.median(times)


def main() -> None:
    """Prints a table."""
    print("| subscriptions | each pattern tried | index, new topic | index, known topic |")
    print("|---:|---:|---:|---:|")
    for count in COUNTS:
        patterns = make_patterns(count)
        index = PatternIndex[int]()
        for number, pattern in enumerate(patterns):
            index.add(pattern, number)
        topics = [f"site{number % 1_000}.room0.sensor0" for number in range(TOPICS)]

        def look_anew(topic: str, index: PatternIndex[int] = index) -> None:
            index.add("nobody.ever", -1)  # any change empties the cache
            index.match(topic)
            index.remove("nobody.ever", -1)

        def change_only(topic: str, index: PatternIndex[int] = index) -> None:
            index.add("nobody.ever", -1)
            index.remove("nobody.ever", -1)

        def try_each(topic: str, patterns: list[str] = patterns) -> list[str]:
            return [pattern for pattern in patterns if matches(pattern, topic)]

        naive = measure_us(try_each, topics[: max(2, 20_000 // count)])
        anew = measure_us(look_anew, topics) - measure_us(change_only, topics)
        known = measure_us(index.match, topics)
        print(f"| {count:,} | {naive:,.1f} us | {anew:.2f} us | {known:.2f} us |")


if __name__ == "__main__":
    main()
