"""One publisher and its subscribers: meshmsg, bare pyzmq and, where it is installed, zenoh, in turns in one run."""

from __future__ import annotations

import statistics
import uuid
from contextlib import ExitStack
from typing import Any

from meshmsg.cli import bench_zenoh
from meshmsg.cli.bench_measures import BASELINE, Result, ratio_of
from meshmsg.cli.bench_processes import BenchmarkFailed, Process
from meshmsg.cli.bench_profile import profile_processes

OURS = "meshmsg.cli.bench_pub_sub_ours"
ZENOH = "meshmsg.cli.bench_zenoh"

PREFIX = "bench"
# A round has this many messages, or as many as have this many bytes, but some in any case.
ROUND_MESSAGES, ROUND_BYTES, FEWEST = 200_000, 256 * 10**6, 16


class Spread:
    """A publisher and its subscribers, and how much processor time they spent."""

    def __init__(self, publisher: Process, subscribers: list[Process]) -> None:
        self.publisher = publisher
        self.subscribers = subscribers
        self.sent = 0
        self.repaired = 0
        self._cpu_s = [0.0, 0.0]
        self._counted = 0

    def run(self, messages: int) -> float:
        """Publishes, checks that every subscriber got all, returns how many messages a second reached all of them."""
        before = self.publisher.ask(cpu=True)
        for subscriber in self.subscribers:
            subscriber.tell(count=messages)
        sent = self.publisher.ask(count=messages)
        received = [subscriber.hear() for subscriber in self.subscribers]
        after = self.publisher.ask(cpu=True)
        self.sent += messages
        for each in received:
            if each["handled"] != self.sent or each["gaps"]:
                raise BenchmarkFailed(
                    f"published {self.sent}, a subscriber handled {each['handled']}, lost {each['gaps']} in gaps"
                )
        self.repaired = after.get("repaired", 0)
        self._cpu_s[0] += after["cpu_s"] - before["cpu_s"]
        self._cpu_s[1] += sum(each["cpu_s"] for each in received) / len(received)
        self._counted += messages
        return float(messages / (max(each["ended"] for each in received) - sent["began"]))

    def describe(self, name: str) -> str:
        """Processor time, and how much came only by repairs."""
        publisher_us, subscriber_us = (seconds / self._counted * 1e6 for seconds in self._cpu_s)
        repaired = f", {self.repaired} of {self.sent} repaired" if self.repaired else ""
        return (
            f"processor time a message, {name}: publisher {publisher_us:.2f} us, "
            f"subscriber {subscriber_us:.2f} us{repaired}"
        )


def open_spread(stack: ExitStack, program: str, subscribers: int, options: dict[str, Any]) -> Spread:
    """Starts all processes of a contestant, and waits until each subscriber gets everything."""
    publisher = stack.enter_context(Process(program, "publish", **options))
    told = publisher.hear()
    followers = [
        stack.enter_context(Process(program, "follow", **options, **told, number=number))
        for number in range(subscribers)
    ]
    for follower in followers:
        follower.hear()
    publisher.ask(subscribers=subscribers)
    return Spread(publisher, followers)


def choose_count(size: int) -> int:
    """Messages of a round that takes neither an age nor all memory.

    >>> choose_count(100), choose_count(100_000), choose_count(10_000_000)
    (200000, 2560, 25)
    """
    return min(ROUND_MESSAGES, max(FEWEST, ROUND_BYTES // size))


def make_options(*, size: int, count: int, topics: int, **ways: Any) -> dict[str, Any]:
    """What all processes are told."""
    return {
        "mesh": uuid.uuid4().hex,
        "size": size,
        "count": count,
        "topics": [f"{PREFIX}.{number}" for number in range(topics)],
        "pattern": f"{PREFIX}.0" if topics == 1 else f"{PREFIX}.*",
        "prefix": f"{PREFIX}.",
        **ways,
    }


def measure_pub_sub(
    *,
    size: int = 100,
    count: int | None = None,
    repeat: int = 5,
    subscribers: int = 1,
    topics: int = 1,
    frames: int = 1,
    batches: bool = False,
    block: bool = False,
    uvloop: bool = False,
) -> Result:
    """Messages a second from one publisher to all of its subscribers, none of which may miss any."""
    count = choose_count(size) if count is None else count
    ways = {"batches": batches, "block": block, "uvloop": uvloop}
    options = make_options(size=size, count=count, topics=topics, frames=frames, **ways)
    programs = {"meshmsg": OURS, "baseline": BASELINE, **({"zenoh": ZENOH} if bench_zenoh.is_installed() else {})}
    rates: dict[str, list[float]] = {name: [] for name in programs}
    with ExitStack() as stack:
        spreads = {name: open_spread(stack, program, subscribers, options) for name, program in programs.items()}
        for spread in spreads.values():
            spread.run(max(1, count // 10))
        for _ in range(repeat):
            for name, spread in spreads.items():
                rates[name].append(spread.run(count))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    notes = [spread.describe(name) for name, spread in spreads.items()]
    extra: dict[str, Any] = {"subscribers": subscribers, "topics": topics, "frames": frames}
    extra |= {"repaired": spreads["meshmsg"].repaired, "zenoh": None, "zenoh_ratio": None}
    ours, base = medians["meshmsg"], medians["baseline"]
    if "zenoh" in medians:
        extra["zenoh"] = round_rate(medians["zenoh"])
        extra["zenoh_ratio"] = ratio_of(ours, medians["zenoh"])
        notes.append(f"zenoh {extra['zenoh']:,} messages/s, ratio {extra['zenoh_ratio']}")
    name = " ".join(["pub-sub", *(way for way, taken in ways.items() if taken)])
    ratio = ratio_of(ours, base)
    return Result(
        name, "messages/s", round_rate(ours), round_rate(base), ratio, count, size, notes=tuple(notes), extra=extra
    )


def round_rate(rate: float) -> float:
    """Whole messages, where there are enough of them.

    >>> round_rate(1234.5), round_rate(12.345)
    (1234, 12.35)
    """
    return round(rate) if rate >= 1000 else round(rate, 2)


def profile_pub_sub(*, size: int, count: int | None, topics: int, subscribers: int, top: int = 20, **ways: Any) -> str:
    """Markdown tables of the functions that the publisher and a subscriber spent most of their time in."""
    count = choose_count(size) if count is None else count
    options = make_options(size=size, count=count, topics=topics, **ways)
    with ExitStack() as stack:
        spread = open_spread(stack, OURS, subscribers, options)
        processes = {"publisher": spread.publisher, "subscriber": spread.subscribers[0]}
        return profile_processes(spread.run, processes, count, top)
