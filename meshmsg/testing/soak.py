"""Runs seeds of the simulator: ``python -m meshmsg.testing.soak 10000 --first 1 --workers 2``.

A failing seed prints the broken promise, the end of its log, and the command that replays it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gc
import multiprocessing
import sys
import traceback
from collections.abc import Iterator

from meshmsg.testing.swarm import Swarm

TAIL = 40  # lines of the log that a failure shows
CHUNK = 50


def run_seed(seed: int) -> str | None:
    """Runs one seed; returns None, or the report of what broke."""
    try:
        Swarm(seed).run()
    except Exception:
        return describe_failure(seed)
    return None


def describe_failure(seed: int, lines: int | None = TAIL) -> str:
    """Runs a failing seed again with its log on; in ``lines`` is how much of it to show."""
    swarm = Swarm(seed, traces=True)
    broken = "it passes when its log is on: a bug in the simulator"
    try:
        swarm.run()
    except Exception as error:
        broken = f"{type(error).__name__}: {error}"
        if not isinstance(error, AssertionError) or lines is None:
            broken = traceback.format_exc()
    log = swarm.cluster.log if lines is None else swarm.cluster.log[-lines:]
    faults = ", ".join(sorted(swarm.faults)) or "none"
    return "\n".join(
        (
            f"seed {seed} (faults: {faults})",
            *log,
            broken,
            f"replay: make soak SEEDS=1 FIRST={seed}",
            f"with the whole log: python -m meshmsg.testing.soak --seed {seed} --trace",
        )
    )


def run_chunk(seeds: range) -> list[str]:
    """Runs some seeds; returns a report for each that failed."""
    reports = []
    gc.disable()  # what a run leaves behind is collected once, after it
    gc.freeze()  # and nothing looked at that is not the simulator's
    try:
        for seed in seeds:
            report = run_seed(seed)
            if report is not None:
                reports.append(report)
            gc.collect()
    finally:
        gc.unfreeze()
        gc.enable()
    return reports


def run_many(seeds: range, workers: int) -> Iterator[tuple[int, list[str]]]:
    """Runs seeds in several processes; yields how many are done, and the reports of failures, as they come."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    if workers == 1 or len(chunks) == 1:
        for chunk in chunks:
            yield len(chunk), run_chunk(chunk)
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        for chunk, reports in zip(chunks, pool.map(run_chunk, chunks), strict=True):
            yield len(chunk), reports


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m meshmsg.testing.soak", description=__doc__)
    parser.add_argument("seeds", type=int, nargs="?", default=1000, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--workers", type=int, default=2, help="processes to run them in")
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--trace", action="store_true", help="with --seed: print its whole log")
    options = parser.parse_args(arguments)
    if options.seed is not None and options.trace:
        swarm = Swarm(options.seed, traces=True)
        try:
            swarm.run()
        finally:
            print("\n".join(swarm.cluster.log))
        return 0
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    done = failed = 0
    for count, reports in run_many(seeds, options.workers):
        done += count
        failed += len(reports)
        for report in reports:
            print(report, end="\n\n", flush=True)
        if sys.stderr.isatty():
            print(f"\r{done} of {len(seeds)} seeds, {failed} failed", end="", file=sys.stderr, flush=True)
    print(f"{done} seeds from {seeds.start} on: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
