"""Each pattern as a real mesh of processes, undisturbed and with its failure; its guarantee must hold both times."""

from __future__ import annotations

import ast
import asyncio
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from meshmsg import Node
from tests.patterns.programs import PATTERNS, load, read_ledger, run_pattern

FAILURE = ["", "--fail"]


def search(pattern: str, output: str) -> re.Match[str]:
    """What must be somewhere in an output."""
    found = re.search(pattern, output, re.MULTILINE)
    assert found, f"no {pattern!r} in:\n{output}"
    return found


def count_functions() -> int:
    """What the work queue's workers count, by one process alone."""
    paths = sorted(Path(ast.__file__).parent.glob("*.py"))[:60]
    nodes = (node for path in paths for node in ast.walk(ast.parse(path.read_bytes())))
    return sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes)


@pytest.mark.guarantee("G1", "G2", "G4")
def test_work_queue_does_every_job_once_although_a_worker_is_killed() -> None:
    output = run_pattern("work_queue.py", "--fail")
    search(r"^killing worker-\d before", output)
    found = search(r"^60 files define (\d+) functions; (\d+) duplicate results", output)
    assert int(found[1]) == count_functions()
    # What was done but not acked was done again elsewhere, and counted once.
    assert int(found[2]) >= 1
    ledger = read_ledger(output)
    assert (ledger["accepted"], ledger["processed"], ledger["dead"]) == (60, 60, 0)
    assert ledger["redelivered"] >= 1


@pytest.mark.guarantee("G1", "G2")
def test_work_queue_undisturbed() -> None:
    output = run_pattern("work_queue.py")
    found = search(r"^60 files define (\d+) functions; (\d+) duplicate results", output)
    assert (int(found[1]), int(found[2])) == (count_functions(), 0)
    ledger = read_ledger(output)
    assert (ledger["processed"], ledger["redelivered"]) == (60, 0)


@pytest.mark.guarantee("G1", "G4", "G5")
@pytest.mark.parametrize("failure", FAILURE)
def test_pipeline_brings_every_order_through(failure: str) -> None:
    output = run_pattern("pipeline.py", *failure.split())
    found = search(r"^300 of (\d+) orders cost (\d+) cents; (\d+) pending at most", output)
    cents = sum((number % 9 + 1) * sum([40, 55, 15]) for number in range(100))
    assert int(found[2]) == cents
    # The sink is slow, so the source had to wait for room.
    assert int(found[3]) == 50
    ledger = read_ledger(output)
    if failure:
        assert int(found[1]) == 301
        # Refused in the second stage, and in the source's books.
        assert (ledger["accepted"], ledger["processed"], ledger["dead"]) == (301, 300, 1)
        search(r"^dead letter '3 pianos': rejected, no price for 'pianos'", output)
    else:
        assert (ledger["accepted"], ledger["processed"], ledger["dead"]) == (300, 300, 0)


@pytest.mark.guarantee("G1", "G2")
async def test_pipeline_survives_a_stage_that_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, mesh = load(PATTERNS / "pipeline.py"), f"pipeline-killed-{os.getpid()}"

    def start(stage: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(PATTERNS / "pipeline.py"), "stage", mesh, stage])

    stages = [start("parse"), start("price")]
    try:
        async with Node("watcher", mesh=mesh) as node:
            feeding = asyncio.create_task(pipeline.feed(mesh, ["1 plums"] * 300))
            # Both stages are there, and the sink takes a third of a second at least: price is in the middle of it.
            await node.wait_for(pull="lines", timeout=20)
            await node.wait_for(pull="orders", timeout=20)
            stages[1].kill()
            stages.append(start("price"))
            await feeding
    finally:
        for stage in stages:
            stage.terminate()
        for stage in stages:
            stage.wait()
    output = capsys.readouterr().out
    search(r"^300 of 300 orders cost 4500 cents", output)
    ledger = read_ledger(output)
    assert (ledger["processed"], ledger["dead"]) == (300, 0)


def lattice_points(radius: int) -> int:
    """The points of a circle, by one process alone."""
    return sum(2 * math.isqrt(radius**2 - row**2) + 1 for row in range(-radius, radius + 1))


@pytest.mark.guarantee("G1", "G2", "G4")
@pytest.mark.parametrize("failure", FAILURE)
def test_fan_out_fan_in_joins_every_request(failure: str) -> None:
    output = run_pattern("fan_out_fan_in.py", *failure.split())
    for radius in (1000, 30_000, 90_000):
        found = search(rf"^radius {radius}: (\d+) points", output)
        assert int(found[1]) == lattice_points(radius)
    ledger = read_ledger(output)
    if failure:
        search(r"^worker-1 crashes between an answer and its ack", output)
        search(r"^radius -1: no answer, no circle has a negative radius", output)
        assert (ledger["processed"], ledger["dead"]) == (36, 12)
        assert ledger["redelivered"] >= 1
    else:
        assert (ledger["processed"], ledger["dead"], ledger["redelivered"]) == (36, 0, 0)


async def test_fan_out_fan_in_keeps_no_socket_of_an_asker_that_has_its_answers() -> None:
    program, mesh = load(PATTERNS / "fan_out_fan_in.py"), f"fan-out-sockets-{os.getpid()}"
    worker = subprocess.Popen([sys.executable, str(PATTERNS / "fan_out_fan_in.py"), "worker", mesh, "worker"])
    try:
        async with Node("asker", mesh=mesh) as node:
            circles = program.Circles(node)
            counts = await asyncio.gather(circles.count(100), circles.count(200))
            assert counts == [lattice_points(100), lattice_points(200)]
            # The worker closes it in the turn in which the last answer is acked, and tells its peers.
            assert await node._driver.until(lambda: not any(peer.pushes for peer in node.peers()), 10)
    finally:
        worker.terminate()
        worker.wait()


@pytest.mark.guarantee("G1", "G2", "G4")
@pytest.mark.parametrize("failure", FAILURE)
def test_batch_consumer_stores_every_row_once(failure: str) -> None:
    output = run_pattern("batch_consumer.py", *failure.split())
    rows = int(search(r"^(\d+) rows, 19.95 degrees on average", output)[1])
    ledger = read_ledger(output)
    if failure:
        crashed = search(r"^consumer-1 crashes between the commit and the acks of (\d+) messages", output)
        search(r"^dead letter .*999.0.*: rejected, IntegrityError: CHECK constraint failed", output)
        assert (rows, ledger["processed"], ledger["dead"]) == (4999, 4999, 1)
        assert ledger["redelivered"] >= int(crashed[1])
    else:
        assert (rows, ledger["processed"], ledger["dead"], ledger["redelivered"]) == (5000, 5000, 0, 0)
