"""The processes of a benchmark: one JSON object a line goes in and comes out, so that each can be told when to run.

A measured process is kept for all rounds: what is measured is the traffic, not Python's start. It ends when its
standard input does, so none outlives the benchmark.
"""

from __future__ import annotations

import asyncio
import cProfile
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from meshmsg.errors import MeshError

Report = dict[str, Any]


class BenchmarkFailed(MeshError):
    """A process of a benchmark ended or answered nonsense; what it had to say went to standard error."""


class Process:
    """A process that runs one role of a program, which is a module's name or a file."""

    def __init__(self, program: str | Path, role: str, **options: Any) -> None:
        self.title = f"{program} {role}"
        start = ["-m", program] if isinstance(program, str) else [str(program)]
        self._process = subprocess.Popen(
            [sys.executable, *start, role, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=same_package_environment(),
            text=True,
        )
        self.pid = self._process.pid

    def tell(self, **command: Any) -> None:
        """Gives a command; ``hear`` gets the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def hear(self) -> Report:
        """Waits for the next thing the process says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        report = json.loads(line)
        assert isinstance(report, dict)
        return report

    def ask(self, **command: Any) -> Report:
        """Gives a command and waits for its answer."""
        self.tell(**command)
        return self.hear()

    def kill(self) -> None:
        """Ends it as a crash would: SIGKILL."""
        self._process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    def close(self, timeout_s: float = 10.0) -> None:
        """Ends its input and waits for it to leave; one that does not is killed."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ended(self) -> BenchmarkFailed:
        return BenchmarkFailed(f"the process {self.title!r} ended early, with code {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(10.0 if error is None else 0.5)


def same_package_environment() -> dict[str, str]:
    """The environment in which a new interpreter finds the meshmsg that runs here, and no other."""
    environment = dict(os.environ)
    package = importlib.util.find_spec("meshmsg")
    if package is not None and package.submodule_search_locations:
        home = str(Path(package.submodule_search_locations[0]).parent)
        others = environment.get("PYTHONPATH", "").split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([home, *filter(None, others)]))
    environment["PYTHONSAFEPATH"] = "1"
    return environment


# -- the other side: inside a measured process ---------------------------------------------------------------


def say(**report: Any) -> None:
    """Tells the benchmark something."""
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def commands() -> Iterator[Report]:
    """What the benchmark wants, until it closes the pipe."""
    for line in sys.stdin:
        yield json.loads(line)


async def commands_in_loop() -> AsyncIterator[Report]:
    """The same without blocking the loop; the waiting thread sleeps in ``read`` and costs nothing."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield json.loads(line)


class Profiler:
    """Profiles the thread that made it, between ``{"profile": "start"}`` and ``{"profile": PATH}``."""

    def __init__(self) -> None:
        self._profile: cProfile.Profile | None = None

    def handles(self, command: Report) -> bool:
        """Obeys a command about profiling and answers it; False if it is about something else."""
        wanted = command.get("profile")
        if wanted is None:
            return False
        if wanted == "start":
            self._profile = cProfile.Profile(time.thread_time)
            self._profile.enable()
        elif self._profile is not None:
            self._profile.disable()
            self._profile.dump_stats(wanted)
        say(profiling=wanted)
        return True
