"""`meshmsg bench request` end to end with tiny counts: what it reports, never how fast it was."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from meshmsg.cli import bench_grpc, bench_request
from meshmsg.cli.bench import bench
from meshmsg.cli.bench_measures import Result
from meshmsg.cli.bench_processes import BenchmarkFailed
from meshmsg.cli.bench_request import Pair, choose_main, sum_up, take_all_turns
from meshmsg.cli.bench_request_ours import share_out
from tests.cli.test_bench import FIELDS

MORE_FIELDS = ["concurrency", "stream", "baseline_p50_us"]
MORE_FIELDS += [f"{name}{end}" for name in ("grpc", "req_rep") for end in ("", "_ratio", "_p50_us")]


def run_json(*arguments: str) -> dict[str, Any]:
    outcome = CliRunner().invoke(bench, ["request", *arguments, "--repeat", "1", "--json"], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return dict(json.loads(outcome.stdout))


@pytest.fixture
def without_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_grpc, "is_installed", lambda: False)


@pytest.mark.usefixtures("without_grpc")
def test_each_concurrency_has_a_run_and_64_is_the_main_one() -> None:
    result = run_json("--count", "70", "--size", "80")
    assert list(result) == [*FIELDS, *MORE_FIELDS, "runs"]
    one, main, many = result["runs"]
    assert [list(each) for each in result["runs"]] == [[*FIELDS, *MORE_FIELDS]] * 3
    assert [each["concurrency"] for each in result["runs"]] == [1, 64, 512]
    assert [each["messages"] for each in result["runs"]] == [70, 70, 512]
    for run in result["runs"]:
        assert (run["bench"], run["unit"], run["body_bytes"], run["stream"]) == ("request", "requests/s", 80, False)
        assert run["ratio"] == pytest.approx(run["ours"] / run["baseline"], rel=0.01)
        assert run["grpc"] is None
    assert 0 < one["p50_us"] <= one["p99_us"] <= one["p999_us"]
    assert one["req_rep"] > 0 and one["baseline_p50_us"] > 0 and one["req_rep_p50_us"] > 0
    assert main["p50_us"] is None and main["req_rep"] is None and many["baseline_p50_us"] is None
    assert (result["ours"], result["p99_us"]) == (main["ours"], one["p99_us"])


@pytest.mark.skipif(os.name == "nt", reason="no uvloop there")
@pytest.mark.usefixtures("without_grpc")
def test_streams_and_uvloop_stand_beside_the_same_baseline() -> None:
    result = run_json("--concurrency", "3", "--count", "100", "--stream", "--uvloop")
    assert (result["bench"], result["unit"]) == ("request stream uvloop", "items/s")
    assert result["ours"] > 0 and result["baseline"] > 0
    assert [each["concurrency"] for each in result["runs"]] == [result["concurrency"]] == [3]


@pytest.mark.skipif(not bench_grpc.is_installed(), reason="grpcio is not installed")
@pytest.mark.parametrize("ways", [[], ["--stream"]])
def test_grpc_takes_its_turns(ways: list[str]) -> None:
    result = run_json("--concurrency", "2", "--count", "50", *ways)
    assert result["grpc"] > 0
    assert result["grpc_ratio"] == pytest.approx(result["ours"] / result["grpc"], rel=0.02)


def test_people_get_text(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"meshmsg": 3000.0, "zmq.asyncio": 2000.0, "req_rep": 6000.0}
    result = sum_up(rates, {"meshmsg": [7000], "zmq.asyncio": [14_000]}, ["a note"], concurrency=1, stream=False)
    monkeypatch.setattr(bench_request, "measure_requests", lambda **options: [replace(result, bench="request")])
    assert CliRunner().invoke(bench, ["request"], catch_exceptions=False).stdout.splitlines() == [
        "1 at a time",
        "request: 3,000 requests/s",
        "  baseline 2,000 requests/s, ratio 1.5",
        "  p50 7.0 us, p99 7.0 us, p99.9 7.0 us",
        "  a note",
        "  zmq.asyncio: p50 14.0 us, ratio 0.5",
        "  req_rep: 6,000 requests/s, ratio 0.5",
    ]


def test_a_profile_has_a_table_for_each_process() -> None:
    arguments = ["request", "--count", "20000", "--concurrency", "64", "--profile"]
    output = CliRunner().invoke(bench, arguments, catch_exceptions=False).stdout
    for role in ("client", "server"):
        _, found, table = output.partition(f"**{role}**")
        assert found
        assert "% | `" in table.partition("**")[0]
    outcome = CliRunner().invoke(bench, [*arguments, "--json"])
    assert outcome.exit_code == 2 and "--profile" in outcome.output


class Answering:
    """Stands for a process whose answers are known."""

    def __init__(self, **report: Any) -> None:
        self.report = report

    def ask(self, **command: Any) -> dict[str, Any]:
        return self.report


@pytest.mark.parametrize(("received", "handled"), [(9, 10), (10, 9), (10, 11)])
def test_a_request_that_is_lost_or_run_twice_is_an_error_not_a_result(received: int, handled: int) -> None:
    client: Any = Answering(seconds=1.0, cpu_s=1.0, received=received, times_ns=[])
    server: Any = Answering(cpu_s=1.0, handled=handled)
    with pytest.raises(BenchmarkFailed, match=f"asked 10 times, {handled} were handled; of the last 10, {received}"):
        Pair(server, client).run(10, 1)


def test_a_warm_up_does_not_count() -> None:
    client: Any = Answering(seconds=2.0, cpu_s=1.0, received=1, times_ns=[5])

    class Serving:
        """Stands for a server."""

        handled = 0

        def ask(self, **command: Any) -> dict[str, Any]:
            self.handled += 1
            return {"cpu_s": 0.0, "handled": self.handled // 2}

    server: Any = Serving()
    pair = Pair(server, client)
    assert take_all_turns({"x": pair}, 1, 1, repeat=2) == {"x": 0.5}
    assert pair.times_ns == [5, 5]
    assert pair.describe("x", "a request") == "processor time a request, x: client 1000000.0 us, server 0.0 us"


def test_who_does_not_take_part_is_null() -> None:
    result = sum_up({"meshmsg": 50.0, "zmq.asyncio": 100.0}, {"meshmsg": [], "zmq.asyncio": []}, [], concurrency=9,
                    stream=True)  # fmt: skip
    assert (result.ratio, result.unit, result.p50_us) == (0.5, "items/s", None)
    assert [result.extra[name] for name in MORE_FIELDS] == [9, True, *[None] * 7]


def test_the_last_run_is_the_main_one_where_64_is_missing() -> None:
    runs = [Result("x", "y", rate, 1, rate, 1, 1, extra={"concurrency": rate}) for rate in (2, 8)]
    assert choose_main(runs)["ours"] == 8


@pytest.mark.parametrize(("count", "concurrency"), [(10, 3), (3, 10), (8, 8), (1, 1)])
def test_everything_is_shared_out(count: int, concurrency: int) -> None:
    shares = share_out(count, concurrency)
    assert len(shares) == concurrency and sum(shares) == count and max(shares) - min(shares) <= 1


def test_rounds_of_large_requests_are_short() -> None:
    assert bench_request.choose_count(100, 64, stream=False) == 20_000
    assert bench_request.choose_count(10**9, 1, stream=True) == bench_request.FEWEST
    assert bench_request.choose_count(10**9, 512, stream=False) == 512
