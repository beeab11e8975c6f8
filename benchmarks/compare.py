"""meshmsg beside other libraries, in one run: ``make bench``, or ``python benchmarks/compare.py [--seconds S]``.

One producer process, one consumer process, TCP on 127.0.0.1, bodies of 100 bytes. Every contestant runs for about
as long as the others, all take turns for several rounds, and each one's median counts. Prints a Markdown table
and writes it to ``benchmarks/results.md``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import sys
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import meshmsg
from meshmsg.cli.bench_measures import BASELINE, BLOCKING, OURS, PREFETCH, Flow
from meshmsg.cli.bench_processes import BenchmarkFailed, Process

HERE = Path(__file__).resolve().parent
RIVALS = HERE / "rivals.py"
RESULTS = HERE / "results.md"

ACKED = "every message acked after its handler; resent if its consumer dies"
BARE = "none: what a dead consumer had taken is lost, and nobody is told"
HOP = "none end to end: reliable over one connection, back-pressure instead of drops"


@dataclass(frozen=True)
class Contestant:
    """One line of the table: who runs, and what a sender may rely on."""

    name: str
    distribution: str
    module: str
    guarantee: str
    program: str | Path
    role: str = ""  # goes before "consume" and "produce"
    options: dict[str, Any] = field(default_factory=dict)

    def open(self, stack: ExitStack, size: int) -> Flow:
        """Starts both processes."""
        options = {"size": size, "mesh": uuid.uuid4().hex, **self.options}
        prefix = f"{self.role} " if self.role else ""
        consumer = stack.enter_context(Process(self.program, f"{prefix}consume", **options))
        producer = stack.enter_context(Process(self.program, f"{prefix}produce", **options, **consumer.hear()))
        producer.hear()
        return Flow(producer, consumer)


# The others hold thousands of messages between both sides; so may these, but for the lines that say so.
WIDE: dict[str, Any] = {"prefetch": PREFETCH[False]}
WIDE_BATCHES: dict[str, Any] = {"prefetch": PREFETCH[True], "batches": True}

PYZMQ = Contestant("pyzmq PUSH/PULL, blocking, bytes", "pyzmq", "zmq", BARE, BASELINE)
CONTESTANTS = [
    Contestant("meshmsg `send`, handler", "meshmsg", "meshmsg", ACKED, OURS, options=WIDE),
    Contestant("meshmsg `send`, handler, uvloop", "meshmsg", "uvloop", ACKED, OURS, options={**WIDE, "uvloop": True}),
    Contestant("meshmsg `send`, handler, default prefetch of 256", "meshmsg", "meshmsg", ACKED, OURS),
    Contestant("meshmsg `send_many`, `batches()`", "meshmsg", "meshmsg", ACKED, OURS, options=WIDE_BATCHES),
    Contestant("meshmsg.blocking `send`, iteration", "meshmsg", "meshmsg.blocking", ACKED, BLOCKING, options=WIDE),
    PYZMQ,
    Contestant("zmq.asyncio PUSH/PULL, bytes", "pyzmq", "zmq", BARE, RIVALS, "zmq.asyncio"),
    Contestant("pynng push/pull, bytes", "pynng", "pynng", BARE, RIVALS, "pynng"),
    Contestant("zenoh put/subscriber, bytes", "eclipse-zenoh", "zenoh", HOP, RIVALS, "zenoh"),
]


def is_installed(module: str) -> bool:
    """Whether a module can be imported here, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


def describe_version(contestant: Contestant) -> str:
    """The version that ran; a checkout that is not installed knows its own."""
    return meshmsg.__version__ if contestant.distribution == "meshmsg" else version(contestant.distribution)


def compare(*, seconds: float, rounds: int, size: int, warm_up: int) -> list[tuple[Contestant, list[float]]]:
    """Runs everybody who is installed, round after round; returns each one's rates."""
    with ExitStack() as stack:
        flows: list[tuple[Contestant, Flow, int, list[float]]] = []
        for contestant in CONTESTANTS:
            if not is_installed(contestant.module):
                print(f"without {contestant.name}: {contestant.module} is not installed", file=sys.stderr)
                continue
            print(f"warming up {contestant.name}", file=sys.stderr)
            flow = contestant.open(stack, size)
            flow.run(warm_up)
            flows.append((contestant, flow, max(1, int(flow.run(warm_up) * seconds)), []))
        for turn in range(rounds):
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
            for _, flow, count, rates in flows:
                rates.append(flow.run(count))
    return [(contestant, rates) for contestant, _, _, rates in flows]


def make_table(results: list[tuple[Contestant, list[float]]], *, seconds: float, size: int) -> str:
    """The results in Markdown, the fastest first, with what they depend on."""
    medians = {contestant.name: statistics.median(rates) for contestant, rates in results}
    base = medians[PYZMQ.name]
    rounds = len(results[0][1])
    lines = [
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} processors; "
        f"bodies of {size} bytes; one producer and one consumer process over TCP on 127.0.0.1; "
        f"median (lowest to highest) of {rounds} interleaved rounds of about {seconds:g} s.",
        "",
        "| what | version | messages/s | of raw pyzmq | guarantee |",
        "|---|---|---:|---:|---|",
    ]
    for contestant, rates in sorted(results, key=lambda result: -medians[result[0].name]):
        median = medians[contestant.name]
        lines.append(
            f"| {contestant.name} | {describe_version(contestant)} "
            f"| {median:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | {median / base:.2f} × "
            f"| {contestant.guarantee} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description="meshmsg beside other libraries, in one run")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each one runs in a round (2)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each one's turn comes (5)")
    parser.add_argument("--size", type=int, default=100, help="bytes of a body (100)")
    parser.add_argument("--warm-up", type=int, default=20_000, help="messages before anything is timed (20000)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="file for the table (benchmarks/results.md)")
    chosen = parser.parse_args(arguments)
    try:
        results = compare(seconds=chosen.seconds, rounds=chosen.rounds, size=chosen.size, warm_up=chosen.warm_up)
    except BenchmarkFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = make_table(results, seconds=chosen.seconds, size=chosen.size)
    chosen.output.write_text(table, encoding="utf-8")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
