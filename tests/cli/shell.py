"""`meshmsg` as people and scripts run it: processes of their own, ended with the test that started them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from click.testing import CliRunner, Result

from meshmsg.cli.verbs import meshmsg

DEADLINE_S = 40.0


class Shell:
    """Starts `meshmsg` in a mesh that only this test uses."""

    def __init__(self, folder: Path) -> None:
        self.mesh = f"test-{uuid.uuid4().hex[:12]}"
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, verb: str, *arguments: str, stdin: bytes | None = None) -> subprocess.Popen[bytes]:
        """Start a verb whose output the test reads; what it reads itself is in its pipe already."""
        return self._start(verb, arguments, stdin, subprocess.PIPE)

    def spool(self, verb: str, *arguments: str, stdin: bytes | None = None) -> Spooled:
        """Start a verb whose output goes to a file, so that it never waits for the test to read it."""
        path = self._folder / f"output-{len(self._started)}"
        with path.open("wb") as file:
            return Spooled(self._start(verb, arguments, stdin, file), path)

    def _start(
        self, verb: str, arguments: tuple[str, ...], stdin: bytes | None, stdout: IO[bytes] | int
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "meshmsg", verb, *arguments],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**os.environ, "MESHMSG_MESH": self.mesh},
        )
        self._started.append(process)
        assert process.stdin is not None
        if stdin is not None:
            process.stdin.write(stdin)
        process.stdin.close()
        process.stdin = None  # or communicate() would flush it
        return process

    def run(self, verb: str, *arguments: str, stdin: bytes | None = None) -> Ended:
        """Start a verb and wait for its end."""
        return finish(self.start(verb, *arguments, stdin=stdin))

    def close(self) -> None:
        """End what still runs, by process id."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


class Ended:
    """How a process ended."""

    def __init__(self, code: int, stdout: bytes, stderr: bytes) -> None:
        self.code = code
        self.stdout = stdout.decode(errors="replace")
        self.stderr = stderr.decode(errors="replace")
        self.raw = stdout

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.stdout}\n{self.stderr}"


def use(*arguments: str, mesh: str = "test-in-process", code: int) -> Result:
    """A verb in this process, for what needs no other one; it must end with this code."""
    result = CliRunner().invoke(meshmsg, arguments, env={"MESHMSG_MESH": mesh})
    assert result.exit_code == code, result.output
    return result


class Spooled:
    """A process whose output is in a file."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.process = process
        self.path = path

    def finish(self) -> Ended:
        """Wait for the end."""
        ended = finish(self.process)
        return Ended(ended.code, self.path.read_bytes(), ended.stderr.encode())


def finish(process: subprocess.Popen[bytes]) -> Ended:
    """Wait for the end of a process."""
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    return Ended(process.returncode, stdout or b"", stderr)


def interrupt(process: subprocess.Popen[bytes]) -> Ended:
    """What Ctrl-C does, and the end that it brings."""
    process.send_signal(signal.SIGINT)
    return finish(process)


def read_line(process: subprocess.Popen[bytes]) -> str:
    """The next line of a process's output, read with as few bytes as possible."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([process.stdout], [], [], DEADLINE_S)
        byte = os.read(process.stdout.fileno(), 1) if readable else b""
        if not byte:
            what = "ended" if readable else f"had no line for {DEADLINE_S:.0f} s"
            raise AssertionError(f"the output {what} after {line!r}")
        line += byte
    return line.decode().rstrip("\n")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until something holds."""
    end = time.monotonic() + DEADLINE_S
    pause_s = 0.001
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(pause_s)
        pause_s = min(0.05, pause_s * 2)


def children_of(pid: int) -> list[int]:
    """The processes that a process started (Linux)."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in lists for child in each.read_text().split()]


def runs(pid: int) -> bool:
    """Whether a process exists and is no zombie (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
