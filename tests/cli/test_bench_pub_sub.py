"""`meshmsg bench pub-sub` and `beside` end to end with tiny counts: what they report, never how fast it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from meshmsg.cli import bench_pub_sub, bench_zenoh
from meshmsg.cli.bench import bench
from meshmsg.cli.bench_baseline import make_frames
from meshmsg.cli.bench_processes import BenchmarkFailed
from meshmsg.cli.bench_pub_sub import Spread
from meshmsg.cli.bench_pub_sub_ours import make_parts
from meshmsg.wire.codec import make_packer
from tests.cli.test_bench import FIELDS, UVLOOP

MORE_FIELDS = ["subscribers", "topics", "frames", "repaired", "zenoh", "zenoh_ratio"]


def run_json(*arguments: str) -> dict[str, Any]:
    outcome = CliRunner().invoke(bench, [*arguments, "--json"], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return dict(json.loads(outcome.stdout))


@pytest.fixture
def without_zenoh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_zenoh, "is_installed", lambda: False)


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param([], id="send and handler"),
        pytest.param(["--batches"], id="batches"),
        pytest.param(["--block", *UVLOOP], id="block, uvloop"),
        pytest.param(["--subscribers", "3", "--topics", "10"], id="subscribers, topics"),
        pytest.param(["--topics", "10", "--batches"], id="topics in batches"),
        pytest.param(["--size", "300000", "--frames", "3", "--count", "11"], id="large"),
    ],
)
@pytest.mark.usefixtures("without_zenoh")
def test_pub_sub_stands_beside_its_baseline(ways: list[str]) -> None:
    result = run_json("pub-sub", "--repeat", "1", *(ways if "--count" in ways else ["--count", "1001", *ways]))
    assert list(result) == [*FIELDS, *MORE_FIELDS]
    assert result["bench"].startswith("pub-sub") and result["unit"] == "messages/s"
    assert result["ours"] > 0 and result["baseline"] > 0
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"], rel=0.02)
    assert result["messages"] == (11 if "--frames" in ways else 1001)
    assert result["subscribers"] == (3 if "--subscribers" in ways else 1)
    assert (result["zenoh"], result["zenoh_ratio"]) == (None, None)


@pytest.mark.skipif(not bench_zenoh.is_installed(), reason="zenoh is not installed")
def test_zenoh_takes_its_turns() -> None:
    result = run_json("pub-sub", "--repeat", "1", "--count", "501", "--subscribers", "2", "--topics", "2")
    assert result["zenoh"] > 0
    assert result["zenoh_ratio"] == pytest.approx(result["ours"] / result["zenoh"], rel=0.02)


def test_small_messages_beside_large_ones_have_percentiles() -> None:
    arguments = ["--count", "20", "--repeat", "1", "--interval", "1", "--large", "100000", "--every", "5"]
    result = run_json("beside", *arguments)
    assert list(result)[: len(FIELDS)] == FIELDS
    assert result["unit"] == "us" and result["large_bytes"] == 100_000
    assert 0 < result["p50_us"] <= result["p99_us"] <= result["p999_us"]
    for name in ("alone", "baseline_alone"):
        assert 0 < result[f"{name}_p50_us"] <= result[f"{name}_p99_us"]


def test_a_profile_has_a_table_for_each_process() -> None:
    arguments = ["pub-sub", "--count", "50000", "--profile"]
    output = CliRunner().invoke(bench, arguments, catch_exceptions=False).stdout
    for role in ("publisher", "subscriber"):
        _, found, table = output.partition(f"**{role}**")
        assert found
        assert "% | `" in table.partition("**")[0]
    outcome = CliRunner().invoke(bench, [*arguments, "--json"])
    assert outcome.exit_code == 2 and "--profile" in outcome.output


class Answering:
    """Stands for a process whose answers are known."""

    def __init__(self, **report: Any) -> None:
        self.report = report

    def tell(self, **command: Any) -> None: ...

    def hear(self) -> dict[str, Any]:
        return self.report

    def ask(self, **command: Any) -> dict[str, Any]:
        return self.report


@pytest.mark.parametrize(("handled", "gaps"), [(9, 1), (10, 1), (9, 0)])
def test_a_gap_is_an_error_not_a_result(handled: int, gaps: int) -> None:
    publisher: Any = Answering(began=1.0, cpu_s=1.0)
    subscribers: Any = [
        Answering(handled=10, gaps=0, cpu_s=1.0, ended=2.0),
        Answering(handled=handled, gaps=gaps, cpu_s=1.0, ended=2.0),
    ]
    with pytest.raises(BenchmarkFailed, match=f"published 10, a subscriber handled {handled}, lost {gaps} in gaps"):
        Spread(publisher, subscribers).run(10)


def test_a_round_ends_when_the_last_subscriber_has_all() -> None:
    publisher: Any = Answering(began=1.0, cpu_s=1.0)
    subscribers: Any = [Answering(handled=10, gaps=0, cpu_s=1.0, ended=ended) for ended in (2.0, 6.0)]
    assert Spread(publisher, subscribers).run(10) == 2.0


@pytest.mark.parametrize(("size", "frames"), [(100, 1), (100, 3), (1000, 7)])
def test_both_sides_send_the_same_amount(size: int, frames: int) -> None:
    ours = len(make_packer()(make_parts(size, frames)))
    theirs = make_frames("bench.0", {"size": size, "frames": frames})
    assert len(theirs) == frames
    assert sum(map(len, theirs)) == size + len("bench.0 ")
    assert size - frames < ours <= size + 24 + 3 * frames


def test_rounds_of_large_messages_are_short() -> None:
    assert bench_pub_sub.choose_count(100) == 200_000
    assert bench_pub_sub.choose_count(10**9) == bench_pub_sub.FEWEST
