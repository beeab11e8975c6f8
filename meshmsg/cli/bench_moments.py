"""Benchmarks of single moments: a consumer dies, a node joins, a message waits, a program starts."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable

from meshmsg.cli.bench_measures import OURS, Result, ratio_of, take_turns
from meshmsg.cli.bench_processes import BenchmarkFailed, Process, same_package_environment


def measure_failover(*, size: int = 100, count: int = 100, repeat: int = 5) -> Result:
    """Milliseconds from the SIGKILL of a consumer until the last message it held has run elsewhere; the median.

    Processes share the system's monotonic clock, so the moment of the kill and that of the last message compare.
    """
    times_ms = []
    for _ in range(repeat):
        options = {"mesh": uuid.uuid4().hex, "size": size, "count": count}
        with (
            Process(OURS, "hold", **options) as victim,
            Process(OURS, "hand_out", **options, **victim.hear()) as producer,
            Process(OURS, "take_over", **options, **producer.hear()) as heir,
        ):
            victim.hear()
            held = producer.ask(consumers=2)["in_flight"]
            if held != count:
                raise BenchmarkFailed(f"the consumer to be killed holds {held} of {count} messages")
            start = time.monotonic()
            victim.kill()
            times_ms.append((heir.hear()["at"] - start) * 1000)
    return Result("failover", "ms", round(statistics.median(times_ms), 1), None, None, count, size)


def measure_join(*, size: int = 100, repeat: int = 5) -> Result:
    """Milliseconds from ``Node.start`` in a new process until mDNS has brought its first message; the median."""
    options = {"mesh": uuid.uuid4().hex, "size": size}
    times_ms = []
    with Process(OURS, "offer", **options) as producer:
        producer.hear()
        for _ in range(repeat):
            producer.ask()
            with Process(OURS, "join", **options) as newcomer:
                times_ms.append(newcomer.hear()["seconds"] * 1000)
    return Result("join", "ms", round(statistics.median(times_ms), 1), None, None, repeat, size)


def measure_memory(*, size: int = 100, count: int = 200_000, repeat: int = 3) -> Result:
    """Bytes of the process that a pending message takes beyond its encoded body; the median."""
    over_bytes = []
    for _ in range(repeat):
        with Process(OURS, "hoard", size=size, count=count, mesh=uuid.uuid4().hex) as producer:
            report = producer.hear()
            if report["pending"] != count + 1:
                raise BenchmarkFailed(f"{report['pending']} messages are pending, not {count + 1}")
            over_bytes.append(report["bytes"] / count - size)
    return Result("memory", "bytes", round(statistics.median(over_bytes), 1), None, None, count, size)


def measure_import(*, repeat: int = 11) -> Result:
    """Milliseconds that ``import meshmsg`` adds to a fresh interpreter, beside those it takes without; medians."""

    with tempfile.TemporaryDirectory() as compiled:
        # As installed packages are: compiled. Some environments forbid Python to keep what it has compiled.
        environment = same_package_environment() | {"PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def run(program: str) -> float:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True, env=environment)
            return (time.perf_counter() - start) * 1000

        run("import meshmsg")  # compiles
        times_ms, base_ms = take_turns(repeat, lambda: run("import meshmsg"), lambda: run("pass"))
        cpu_ms = processor_ms(lambda: run("import meshmsg")) - processor_ms(lambda: run("pass"))
    base = statistics.median(base_ms)
    added = statistics.median(times_ms) - base
    notes = (f"processor time: {cpu_ms:.0f} ms more than the baseline",)
    return Result("import", "ms", round(added, 1), round(base, 1), ratio_of(added, base), repeat, 0, notes=notes)


def processor_ms(run: Callable[[], object]) -> float:
    """Processor time that the processes a function starts and waits for take, in milliseconds (0 on Windows)."""
    before = os.times()
    run()
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return spent * 1000
