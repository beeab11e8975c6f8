"""Thousands of random runs with faults, each held against the guarantees at every step (``make soak`` runs more)."""

from __future__ import annotations

import os

import pytest

from meshmsg.testing import GuaranteeBroken
from meshmsg.testing.soak import describe_failure, run_chunk
from meshmsg.testing.swarm import FAULTS, Swarm

CHUNK = 100
SEEDS = int(os.environ.get("MESHMSG_SEEDS", "2000"))
FIRST = int(os.environ.get("MESHMSG_FIRST_SEED", "0"))
CHUNKS = [range(start, min(start + CHUNK, FIRST + SEEDS)) for start in range(FIRST, FIRST + SEEDS, CHUNK)]

pytestmark = pytest.mark.guarantee("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G10", "G11")


@pytest.mark.parametrize("seeds", CHUNKS, ids=[f"{chunk.start}-{chunk.stop - 1}" for chunk in CHUNKS])
def test_seeds(seeds: range) -> None:
    reports = run_chunk(seeds)
    if reports:
        pytest.fail("\n\n".join(reports[:3]), pytrace=False)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone(fault: str) -> None:
    """A few runs with one kind of fault only, so that a failure names it."""
    for seed in range(5):
        try:
            Swarm(seed, faults={fault}).run()
        except Exception as error:
            pytest.fail(f"seed {seed} with only {fault}: {type(error).__name__}: {error}", pytrace=False)


def test_a_seed_is_the_same_run_every_time() -> None:
    def log(seed: int) -> list[str]:
        swarm = Swarm(seed, traces=True)
        swarm.run()
        return swarm.cluster.log

    for seed in (3, 13, 17):
        assert log(seed) == log(seed)


@pytest.mark.parametrize("seed", [29, 30, 31])  # the second one publishes, the third one requests
def test_a_log_changes_nothing(seed: int) -> None:
    """A seed that failed must fail again when it is replayed with its log on."""
    quiet, loud = Swarm(seed), Swarm(seed, traces=True)
    quiet.run()
    loud.run()
    assert quiet.cluster.clock.steps == loud.cluster.clock.steps
    assert quiet.cluster.network.frames == loud.cluster.network.frames
    assert quiet.cluster.network.broadcasts.published == loud.cluster.network.broadcasts.published


def test_a_failure_says_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_at_the_end(swarm: Swarm) -> None:
        raise GuaranteeBroken("G2", "for this test")

    monkeypatch.setattr(Swarm, "_check_rest", break_at_the_end)
    report = describe_failure(5)
    assert "G2: for this test" in report
    assert "make soak SEEDS=1 FIRST=5" in report
    assert "python -m meshmsg.testing.soak --seed 5 --trace" in report
    assert len(report.splitlines()) > 40
