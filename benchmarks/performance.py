"""Fills in docs/performance.md: ``python benchmarks/performance.py``. It wants some minutes of an idle machine.

Runs every benchmark that has a budget, the comparison with other libraries and the profile, and puts their tables
between the marks in the page. ``--only budgets`` (or another part) runs that part alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from meshmsg.cli import bench_moments
from meshmsg.cli.bench_beside import measure_beside
from meshmsg.cli.bench_measures import Result, measure_latency, measure_push_pull
from meshmsg.cli.bench_profile import profile_push_pull
from meshmsg.cli.bench_pub_sub import measure_pub_sub, profile_pub_sub
from meshmsg.cli.bench_request import measure_requests, profile_requests

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"


@dataclass(frozen=True)
class Budget:
    """What one benchmark has to reach, and what it is meant to reach."""

    name: str
    measure: Callable[[], Result]
    required: float | None
    aim: float | None
    more_is_better: bool = False

    def judge(self, result: Result) -> str:
        """Whether the result is within the budget."""
        value = result.ours if result.baseline is None or result.bench == "import" else result.ratio
        assert value is not None
        if self.required is None or self.aim is None:
            return ""
        reached = [value >= limit if self.more_is_better else value <= limit for limit in (self.aim, self.required)]
        return "aim reached" if reached[0] else "reached" if reached[1] else "**missed**"


def push_pull(name: str, required: float | None, aim: float | None, **ways: bool) -> Budget:
    """A budget for a way through PUSH and PULL."""
    measure = partial(measure_push_pull, **ways)
    return Budget(f"PUSH→PULL, {name}", measure, required, aim, more_is_better=True)


BUDGETS = [
    push_pull("one `send` and one handler call a message", 1.0, 2.0),
    push_pull("the same under uvloop", 1.0, 2.0, uvloop=True),
    push_pull("`send_many` and `batches()`", 1.5, 3.0, batches=True),
    push_pull("the same under uvloop", 1.5, 3.0, batches=True, uvloop=True),
    push_pull("blocking face, one by one", None, None, blocking=True),
    push_pull("blocking face, in batches", None, None, blocking=True, batches=True),
    Budget("one message, acked, idle mesh (p50)", measure_latency, 1.5, 1.1),
    Budget("the same under uvloop", lambda: measure_latency(uvloop=True), 1.5, 1.1),
    Budget("consumer killed → its work has run elsewhere", bench_moments.measure_failover, 500, 50),
    Budget("node joins → first message handled", bench_moments.measure_join, 1000, 200),
    Budget("memory per pending message over its body", bench_moments.measure_memory, 400, 200),
    Budget("`import meshmsg`", bench_moments.measure_import, 150, 80),
]


PUB_SUB: list[tuple[str, dict[str, Any]]] = [
    ("1 → 1, `send` and handler", {}),
    ("1 → 1, the same under uvloop", {"uvloop": True}),
    ("1 → 1, `send_many` and `batches()`", {"batches": True}),
    ("1 → 1, `block=True`", {"block": True}),
    ("1 → 8, `send` and handler", {"subscribers": 8}),
    ("1 → 8, `send_many` and `batches()`", {"subscribers": 8, "batches": True}),
    ("1 → 1, 100 topics in turns", {"topics": 100}),
    ("1 → 1, 100 topics, `send_many` and `batches()`", {"topics": 100, "batches": True}),
    ("1 → 1, 10 kB", {"size": 10_000}),
    ("1 → 1, 100 kB, `block=True`", {"size": 100_000, "block": True}),
    ("1 → 1, 10 MB, `block=True`", {"size": 10_000_000, "block": True}),
    ("1 → 1, 10 MB in 10 frames, `block=True`", {"size": 10_000_000, "frames": 10, "block": True}),
    ("1 → 8, 1 MB, `block=True`", {"size": 1_000_000, "subscribers": 8, "block": True}),
]
BESIDE = [("1 MB", 1_000_000), ("10 MB", 10_000_000)]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("requests", {}),
    ("requests under uvloop", {"uvloop": True}),
    ("requests of 10 kB", {"size": 10_000, "concurrency": (64,)}),
    ("requests of 1 MB", {"size": 1_000_000, "concurrency": (8,)}),
    ("items of streams", {"stream": True, "concurrency": (1, 64)}),
]


def describe_load() -> str:
    """What else the machine does; beyond the number of its processors, everything waits for its turn."""
    return f", load average {os.getloadavg()[0]:.1f} before the run" if hasattr(os, "getloadavg") else ""


def describe_machine() -> str:
    """Where the numbers below are from."""
    return (
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} processors"
        f"{describe_load()}. Medians."
    )


def make_budget_table() -> str:
    """Runs everything that has a budget."""
    lines = [
        describe_machine(),
        "",
        "| what | ours | baseline | ratio | at least | aim | |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for budget in BUDGETS:
        print(budget.name, file=sys.stderr)
        result = budget.measure()
        cells = [
            f"{result.ours:,g} {result.unit}" if result.ours < 10_000 else f"{result.ours:,.0f} {result.unit}",
            "" if result.baseline is None else f"{result.baseline:,.10g}",
            "" if result.ratio is None else f"{result.ratio:.2f} ×",
            *("" if limit is None else f"{limit:g}" for limit in (budget.required, budget.aim)),
            budget.judge(result),
        ]
        lines.append(f"| {budget.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def make_comparison_table() -> str:
    """Runs the comparison, with its own defaults."""
    subprocess.run([sys.executable, str(HERE / "compare.py")], check=True)
    return (HERE / "results.md").read_text(encoding="utf-8").strip()


def make_profile_tables() -> str:
    """Runs the profile of the plain way."""
    return profile_push_pull(size=100, count=1_000_000, top=12)


def make_pub_sub_tables() -> str:
    """Runs PUB/SUB in all its ways, and small messages beside large ones."""
    lines = [
        describe_machine(),
        "",
        "| what | meshmsg | raw pyzmq | ratio | zenoh | ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, ways in PUB_SUB:
        print(f"pub-sub, {name}", file=sys.stderr)
        result = measure_pub_sub(repeat=3, **ways)
        assert result.baseline is not None and result.ratio is not None
        zenoh = result.extra["zenoh"]
        beside = "| | |" if zenoh is None else f"| {zenoh:,.7g} | {result.extra['zenoh_ratio']:.2f} × |"
        lines.append(f"| {name} | {result.ours:,.7g} | {result.baseline:,.7g} | {result.ratio:.2f} × {beside}")
    lines += ["", "| delay of 100 bytes | alone, p50 and p99 | beside large ones, p50 and p99 |", "|---|---:|---:|"]
    for size, large in BESIDE:
        print(f"beside {size}", file=sys.stderr)
        result = measure_beside(large=large)
        extra = result.extra
        ours = (extra["alone_p50_us"], extra["alone_p99_us"], result.p50_us or 0.0, result.p99_us or 0.0)
        bare = (extra["baseline_alone_p50_us"], extra["baseline_alone_p99_us"], result.baseline or 0.0)
        for name, times_us in (("meshmsg", ours), ("raw pyzmq", (*bare, extra["baseline_p99_us"]))):
            alone50, alone99, beside50, beside99 = (f"{each / 1000:.1f}" for each in times_us)
            lines.append(f"| {name}, {size} every 200 ms | {alone50} and {alone99} ms | {beside50} and {beside99} ms |")
    return "\n".join(lines)


def make_pub_sub_profile() -> str:
    """Runs the profile of the plain way of PUB/SUB."""
    return profile_pub_sub(
        size=100, count=1_000_000, topics=1, subscribers=1, top=8, frames=1, batches=False, block=False, uvloop=False
    )


def make_request_tables() -> str:
    """Runs requests in all their ways: rates, and how long one takes on an idle mesh."""
    lines = [
        describe_machine(),
        "",
        "| what | at a time | meshmsg | zmq.asyncio | ratio | grpc.aio | ratio | our processor time |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    delays = ["", "| one at a time | p50 | p99 | of zmq.asyncio | of REQ/REP |", "|---|---:|---:|---:|---:|"]
    for name, ways in REQUESTS:
        print(f"request, {name}", file=sys.stderr)
        for result in measure_requests(**ways):
            extra = result.extra
            assert result.baseline is not None and result.ratio is not None
            grpc = "| |" if extra["grpc"] is None else f"{extra['grpc']:,.7g} | {extra['grpc_ratio']:.2f} × |"
            spent = result.notes[0].partition("meshmsg: ")[2]
            rates = f"{result.ours:,.7g} | {result.baseline:,.7g} | {result.ratio:.2f} × | {grpc} {spent}"
            lines.append(f"| {name} | {extra['concurrency']} | {rates} |")
            if result.p50_us is not None and extra["req_rep"] is not None:
                ratios = [result.p50_us / extra[f"{each}_p50_us"] for each in ("baseline", "req_rep")]
                cells = [f"{result.p50_us:g} us", f"{result.p99_us:g} us", *(f"{ratio:.2f} ×" for ratio in ratios)]
                delays.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, *delays])


def make_request_profile() -> str:
    """Runs the profile of requests, 64 at a time."""
    return profile_requests(concurrency=(64,), size=100, count=100_000, stream=False, uvloop=False, top=12)


PARTS = {
    "budgets": make_budget_table,
    "comparison": make_comparison_table,
    "profile": make_profile_tables,
    "pub-sub": make_pub_sub_tables,
    "profile of pub-sub": make_pub_sub_profile,
    "requests": make_request_tables,
    "profile of requests": make_request_profile,
}


def put_between_marks(text: str, name: str, content: str) -> str:
    """The page with other content between ``<!-- name -->`` and ``<!-- end of name -->``."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"the page has no marks {begin} and {end}")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def main() -> None:
    """Runs what is wanted and writes the page after each part."""
    parser = argparse.ArgumentParser(description="fill in docs/performance.md")
    parser.add_argument("--only", choices=PARTS, help="one part instead of all")
    only = parser.parse_args().only
    for name in [only] if only else PARTS:
        content = PARTS[name]()
        PAGE.write_text(put_between_marks(PAGE.read_text(encoding="utf-8"), name, content), encoding="utf-8")


if __name__ == "__main__":
    main()
