"""Where the time goes: samples of both ends, as tables of their most expensive functions."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from meshmsg.cli.bench_measures import OURS, PREFETCH, Flow
from meshmsg.cli.bench_processes import Process, Report

WAITING = ("selectors.py", "select")  # the loop's wait for input


def profile_push_pull(*, size: int, count: int, top: int = 20, prefetch: int | None = None, **ways: bool) -> str:
    """Markdown tables of the functions that the producer and the consumer spent most of their time in."""
    prefetch = prefetch or PREFETCH[ways.get("batches", False)]
    options = {"mesh": uuid.uuid4().hex, "size": size, "prefetch": prefetch, **ways}
    with (
        Process(OURS, "consume", **options) as consumer,
        Process(OURS, "produce", **options, **consumer.hear()) as producer,
    ):
        producer.hear()
        processes = {"producer": producer, "consumer": consumer}
        return profile_processes(Flow(producer, consumer).run, processes, count, top)


def profile_processes(run: Callable[[int], float], processes: Mapping[str, Process], count: int, top: int) -> str:
    """A table for each process of a round of ``count`` messages, after a warm-up."""
    run(max(1, count // 10))
    for process in processes.values():
        process.ask(profile="start")
    run(count)
    reports = {role: process.ask(profile="end") for role, process in processes.items()}
    return "\n\n".join(make_table(role, report, count, top) for role, report in reports.items())


def shorten(name: str) -> str:
    """A function as people name it: the file below its package, and the name.

    >>> shorten("/somewhere/site-packages/meshmsg/driver.py:101 Driver.turn")
    'meshmsg/driver.py:101 Driver.turn'
    """
    file, _, rest = name.partition(":")
    parts = Path(file).parts
    for package in ("meshmsg", "zmq", "asyncio"):
        if package in parts:
            file = "/".join(parts[len(parts) - 1 - parts[::-1].index(package) :])
            return f"{file}:{rest}"
    return f"{Path(file).name}:{rest}"


def is_waiting(name: str) -> bool:
    """Whether a function only waits: what the processor did meanwhile, it did in ZeroMQ's I/O thread."""
    file, select = WAITING
    return file in name and name.endswith(select)


def make_table(role: str, report: Report, messages: int, top: int) -> str:
    """One process's table. A C function's time is in the Python function that called it."""
    own = {name: samples for name, samples in report["own"].items() if not is_waiting(name)}
    total = sum(own.values()) or 1
    main_us = report["thread_s"] / messages * 1e6
    others_us = report["process_s"] / messages * 1e6 - main_us
    lines = [
        f"**{role}**: {main_us:.2f} us a message in Python's thread, {others_us:.2f} us in ZeroMQ's",
        "",
        "| itself | with what it calls | function |",
        "|---:|---:|---|",
    ]
    for name, samples in sorted(own.items(), key=lambda item: -item[1])[:top]:
        both = report["with_calls"][name]
        lines.append(f"| {samples / total:.1%} | {min(1.0, both / total):.1%} | `{shorten(name)}` |")
    return "\n".join(lines)
