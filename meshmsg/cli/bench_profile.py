"""Where the time goes: a producer and a consumer under cProfile, as tables of their most expensive functions."""

from __future__ import annotations

import pstats
import tempfile
import uuid
from pathlib import Path
from typing import Any

from meshmsg.cli.bench_measures import OURS, Flow
from meshmsg.cli.bench_processes import Process

Entry = tuple[str, int, float]  # function, calls, seconds in itself


def profile_push_pull(*, size: int, count: int, top: int = 20, **options: Any) -> str:
    """Markdown tables of the functions that took the most time, without what they called.

    cProfile charges every Python call a fixed toll, so the shares of small functions are exaggerated, and the
    rates under it mean nothing.
    """
    options = {"mesh": uuid.uuid4().hex, "size": size, **options}
    with tempfile.TemporaryDirectory() as folder:
        paths = {role: str(Path(folder, role)) for role in ("producer", "consumer")}
        with (
            Process(OURS, "consume", **options) as consumer,
            Process(OURS, "produce", **options, **consumer.hear()) as producer,
        ):
            producer.hear()
            flow = Flow(producer, consumer)
            flow.run(max(1, count // 10))
            processes = {"producer": producer, "consumer": consumer}
            for process in processes.values():
                process.ask(profile="start")
            flow.run(count)
            for role, process in processes.items():
                process.ask(profile=paths[role])
        return "\n\n".join(make_table(role, read_profile(path), count, top) for role, path in paths.items())


def read_profile(path: str) -> list[Entry]:
    """The functions of a profile, the most expensive first; waiting for input is not work and left out."""
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]]
    stats = pstats.Stats(path).stats  # type: ignore[attr-defined]  # undocumented in typeshed, the one way to the data
    entries = [
        (describe(file, line, name), calls, own)
        for (file, line, name), (_, calls, own, _, _) in stats.items()
        if "'poll' of 'select." not in name
    ]
    return sorted(entries, key=lambda entry: -entry[2])


def describe(file: str, line: int, name: str) -> str:
    """A function as people name it: the file below its package, and the name."""
    if file == "~":
        return name.strip("<>")
    parts = Path(file).parts
    for package in ("meshmsg", "zmq", "asyncio"):
        if package in parts:
            file = "/".join(parts[len(parts) - 1 - parts[::-1].index(package) :])
            break
    return f"{file}:{line} {name}"


def make_table(role: str, entries: list[Entry], messages: int, top: int) -> str:
    """One process's table; calls a message show what is done once a message and what once a batch."""
    total = sum(own for _, _, own in entries) or 1.0
    lines = [
        f"**{role}** ({total / messages * 1e6:.2f} us a message under the profiler)",
        "",
        "| share | calls a message | function |",
        "|---:|---:|---|",
    ]
    for name, calls, own in entries[:top]:
        lines.append(f"| {own / total:.1%} | {calls / messages:.3f} | `{name}` |")
    return "\n".join(lines)
