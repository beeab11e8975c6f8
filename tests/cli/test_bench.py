"""`meshmsg bench` and benchmarks/compare.py end to end with tiny counts: what they report, never how fast it was."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest
from click.testing import CliRunner

from meshmsg.cli import bench_processes, bench_profile
from meshmsg.cli.bench import bench
from meshmsg.cli.bench_measures import BASELINE, Flow, percentile, take_turns
from meshmsg.cli.bench_ours import make_body
from meshmsg.cli.bench_processes import BenchmarkFailed, Process

FIELDS = ["bench", "unit", "ours", "baseline", "ratio", "messages", "body_bytes", "p50_us", "p99_us", "p999_us"]
UVLOOP = [] if os.name == "nt" else ["--uvloop"]  # there is none for Windows
COMPARE = Path(__file__).resolve().parents[2] / "benchmarks" / "compare.py"


def run_json(*arguments: str) -> dict[str, Any]:
    """Run a benchmark with --json and check what every result has to be like."""
    outcome = CliRunner().invoke(bench, [*arguments, "--json"], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)
    assert list(result) == FIELDS
    assert result["ours"] > 0
    return dict(result)


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param([], id="send and handler"),
        pytest.param(["--batches"], id="batches"),
        pytest.param(["--prefetch", "7", *UVLOOP], id="prefetch, uvloop"),
        pytest.param(["--blocking"], id="blocking"),
        pytest.param(["--blocking", "--batches"], id="blocking batches"),
    ],
)
def test_push_pull_stands_beside_its_baseline(ways: list[str]) -> None:
    result = run_json("push-pull", "--count", "1001", "--repeat", "1", "--size", "80", *ways)
    assert result["unit"] == "messages/s"
    assert result["messages"] == 1001
    assert result["body_bytes"] == 80
    assert result["baseline"] > 0
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"], rel=0.01)
    assert result["p50_us"] is None


def test_latency_has_percentiles_in_order() -> None:
    result = run_json("latency", "--count", "20", "--repeat", "2")
    assert result["unit"] == "us"
    assert result["baseline"] > 0
    assert 0 < result["p50_us"] <= result["p99_us"] <= result["p999_us"]


@pytest.mark.parametrize(
    ("arguments", "unit"),
    [
        (["failover", "--repeat", "1", "--count", "10"], "ms"),
        (["join", "--repeat", "1"], "ms"),
        (["memory", "--repeat", "1", "--count", "20000"], "bytes"),
    ],
)
def test_single_moments_have_no_baseline(arguments: list[str], unit: str) -> None:
    result = run_json(*arguments)
    assert result["unit"] == unit
    assert result["baseline"] is None
    assert result["ratio"] is None


def test_import_is_measured_beside_a_bare_interpreter() -> None:
    result = run_json("import", "--repeat", "1")
    assert result["unit"] == "ms"
    assert result["baseline"] > 0


def test_people_get_text() -> None:
    arguments = ["push-pull", "--count", "100", "--repeat", "1"]
    output = CliRunner().invoke(bench, arguments, catch_exceptions=False).stdout
    assert "baseline" in output and "ratio" in output and "processor time" in output


def test_a_profile_has_a_table_for_each_process() -> None:
    arguments = ["push-pull", "--count", "50000", "--profile"]
    output = CliRunner().invoke(bench, arguments, catch_exceptions=False).stdout
    for role in ("producer", "consumer"):
        _, found, table = output.partition(f"**{role}**")
        assert found
        assert "% | `" in table.partition("**")[0]


def test_a_profile_tells_a_function_from_what_it_calls_and_from_waiting() -> None:
    report = {
        "own": {"/x/meshmsg/node.py:1 inner": 3, "/x/asyncio/run.py:2 outer": 1, "/x/selectors.py:3 E.select": 9},
        "with_calls": {"/x/meshmsg/node.py:1 inner": 3, "/x/asyncio/run.py:2 outer": 13},
        "process_s": 3.0,
        "thread_s": 2.0,
    }
    table = bench_profile.make_table("producer", report, 1_000_000, 5)
    assert "2.00 us a message in Python's thread, 1.00 us in ZeroMQ's" in table
    assert "| 75.0% | 75.0% | `meshmsg/node.py:1 inner` |" in table
    assert "| 25.0% | 100.0% | `asyncio/run.py:2 outer` |" in table
    assert "select" not in table


def test_a_profile_is_not_json() -> None:
    outcome = CliRunner().invoke(bench, ["push-pull", "--profile", "--json"])
    assert outcome.exit_code == 2
    assert "--profile" in outcome.output


def test_a_process_that_ends_early_is_an_error_not_a_hang() -> None:
    with Process(BASELINE, "consume") as process:
        process.hear()
        process.kill()
        with pytest.raises(BenchmarkFailed, match=r"bench_baseline consume.* ended early"):
            process.hear()


def test_a_silent_process_is_an_error_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    with Process(BASELINE, "consume") as process:
        process.hear()
        monkeypatch.setattr(bench_processes, "SILENCE_S", 0.01)
        with pytest.raises(BenchmarkFailed, match="says nothing for"):
            process.hear()


def test_a_lost_message_is_an_error_not_a_result() -> None:
    class Answering:
        """Stands for a process whose answers are known."""

        def __init__(self, **report: Any) -> None:
            self.report = report

        def tell(self, **command: Any) -> None: ...

        def hear(self) -> dict[str, Any]:
            return self.report

        def ask(self, **command: Any) -> dict[str, Any]:
            return self.report

    producer: Any = Answering(seconds=1.0, cpu_s=1.0, processed=10)
    consumer: Any = Answering(handled=9, cpu_s=1.0)
    with pytest.raises(BenchmarkFailed, match="sent 10, handled 9, acked 10"):
        Flow(producer, consumer).run(10)


@pytest.mark.parametrize("size", [64, 65, 100, 1000, 70_000])
def test_bodies_have_the_size_they_are_said_to_have(size: int) -> None:
    encoded: Any = msgpack.packb(make_body(size))
    assert len(encoded) == size


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100)])
def test_percentiles_are_nearest_ranks(fraction: float, expected: int) -> None:
    assert percentile(range(1, 101), fraction) == expected


def test_rounds_take_turns() -> None:
    order: list[str] = []

    def taking(name: str) -> float:
        order.append(name)
        return float(len(order))

    assert take_turns(2, lambda: taking("ours"), lambda: taking("baseline")) == ([1.0, 3.0], [2.0, 4.0])
    assert order == ["ours", "baseline", "ours", "baseline"]


@pytest.mark.timeout(120)
def test_the_comparison_writes_a_table(tmp_path: Path) -> None:
    table = tmp_path / "results.md"
    arguments = ["--seconds", "0.01", "--rounds", "1", "--warm-up", "100", "--output", str(table)]
    run = subprocess.run([sys.executable, str(COMPARE), *arguments], capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stderr
    text = table.read_text(encoding="utf-8")
    assert text.strip() == run.stdout.strip()
    assert "| pyzmq PUSH/PULL, blocking, bytes |" in text and "| meshmsg `send`, handler |" in text
    for module in ("zenoh", "pynng"):
        missing = importlib.util.find_spec(module) is None
        assert (f"{module} is not installed" in run.stderr) == missing
        assert (f"| {module} " in text) != missing
