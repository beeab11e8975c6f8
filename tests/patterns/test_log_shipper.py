"""The log shipper: every line once in the database, whatever is killed."""

from __future__ import annotations

import itertools
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshmsg.testing import make_message
from tests.patterns.programs import DEADLINE_S, ROOT, load

PROGRAM = ROOT / "examples" / "log_shipper.py"
Start = Callable[..., subprocess.Popen[str]]
log_shipper = load(PROGRAM)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a shipper or a collector in a mesh of this test; ends it with the test."""
    running: list[subprocess.Popen[str]] = []
    mesh = f"log-shipper-{os.getpid()}-{tmp_path.name}"

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, str(PROGRAM), "--mesh", mesh, *map(str, arguments)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    """What it said, once it has ended by itself."""
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    return output


def write(path: Path, count: int) -> list[str]:
    """Adds lines to a log; returns all that are in it."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{path.stem} line {next(LINES)}\n" for _ in range(count))
    return path.read_text(encoding="utf-8").splitlines()


LINES = itertools.count()


def stored(database: Path) -> list[str]:
    connection = sqlite3.connect(database, timeout=30)
    try:
        return [row[0] for row in connection.execute("SELECT line FROM lines ORDER BY source, offset")]
    finally:
        connection.close()


@pytest.mark.guarantee("G1", "G2")
def test_every_line_once_although_collector_and_shipper_are_killed(start: Start, tmp_path: Path) -> None:
    log, database = tmp_path / "app.log", tmp_path / "lines.db"
    lines = write(log, 20_000)
    first = start("collect", database)
    shipper = start("ship", "--once", log)
    assert first.stdout is not None
    assert first.stdout.readline().endswith("\n")  # it has stored its first batch, and is at work on others
    first.kill()
    start("collect", database)
    assert "0 refused" in finish(shipper)
    assert stored(database) == lines

    # A shipper that dies before it noted how far it came sends lines again, as new messages.
    log.with_name("app.log.shipped").unlink()
    lines = write(log, 10)
    assert "20010 lines shipped" in finish(start("ship", "--once", log))
    assert stored(database) == lines


@pytest.mark.guarantee("G1")
def test_a_shipper_waits_for_a_collector_and_goes_on_where_it_was(start: Start, tmp_path: Path) -> None:
    log, database = tmp_path / "app.log", tmp_path / "lines.db"
    lines = write(log, 100)
    shipper = start("ship", "--once", log)
    collector = start("collect", database)
    assert "100 lines shipped" in finish(shipper)
    assert stored(database) == lines

    lines = write(log, 7)
    assert "7 lines shipped" in finish(start("ship", "--once", log))
    rotated = log.rename(tmp_path / "app.log.1")  # its inode stays in use, so the new log gets another
    lines += write(log, 5)
    assert "5 lines shipped" in finish(start("ship", "--once", log))
    assert sorted(stored(database)) == sorted(lines)
    assert rotated.exists()

    shown = finish(start("show", database, "line 1")).splitlines()
    assert len(shown) == sum("line 1" in line for line in lines)
    collector.terminate()
    assert finish(collector)  # SIGTERM ends it in order


@pytest.mark.parametrize(
    "body", [None, 7, [], ["a", 1], ["a", -1, "b"], ["a", 2**63, "b"], [1, 1, "b"], ["a", "x", "b"]]
)
def test_what_is_no_line_is_refused(body: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        log_shipper.row_of(make_message(body))


def test_a_line_that_is_being_written_waits_for_its_end(tmp_path: Path) -> None:
    class Queue:
        def __init__(self) -> None:
            self.bodies: list[list[object]] = []

        def send_many(self, bodies: list[list[object]]) -> None:
            self.bodies += bodies

        def flush(self) -> None:
            pass

    log, queue = tmp_path / "app.log", Queue()
    log.write_bytes(b"one\r\ntw\xff\nthr")
    assert log_shipper.ship_chunk(queue, log) == 9
    assert log_shipper.ship_chunk(queue, log) == 0
    log.write_bytes(b"one\r\ntw\xff\nthree\n")
    assert log_shipper.ship_chunk(queue, log) == 6
    assert [body[1:] for body in queue.bodies] == [[0, "one"], [5, "tw\ufffd"], [9, "three"]]
