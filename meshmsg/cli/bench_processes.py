"""The processes of a benchmark: one JSON object a line goes in and comes out, so that each can be told when to run.

A measured process is kept for all rounds: what is measured is the traffic, not Python's start. It ends when its
standard input does, so none outlives the benchmark.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from meshmsg.errors import MeshError

SILENCE_S = 300.0
SAMPLE_S = 0.001

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
        """Waits for the next thing the process says; one that stays silent for ``SILENCE_S`` seconds is killed."""
        assert self._process.stdout is not None
        limit = threading.Timer(SILENCE_S, self._process.kill)
        limit.start()
        try:
            line = self._process.stdout.readline()
        finally:
            limit.cancel()
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
        return BenchmarkFailed(
            f"the process {self.title!r} ended early, with code {self._process.wait()}; standard error says why. "
            f"(Whoever says nothing for {SILENCE_S:g} s is killed: try a smaller --count.)"
        )

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
    """Takes a sample of the main thread's stack every millisecond of processor time, between two commands.

    ``{"profile": "start"}`` begins, ``{"profile": "end"}`` answers with the samples. Sampling slows everything a
    little and all alike; a tracing profiler (cProfile) makes calls of small functions several times dearer.
    """

    def __init__(self) -> None:
        self._own: Counter[str] = Counter()
        self._with_calls: Counter[str] = Counter()
        self._process_s = 0.0
        self._thread_s = 0.0

    def handles(self, command: Report) -> bool:
        """Obeys a command about profiling and answers it; False if it is about something else."""
        wanted = command.get("profile")
        if wanted == "start":
            signal.signal(signal.SIGPROF, self._sample)
            self._process_s, self._thread_s = time.process_time(), time.thread_time()
            signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
            say(profile="started")
        elif wanted == "end":
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            process_s, thread_s = time.process_time() - self._process_s, time.thread_time() - self._thread_s
            say(own=self._own, with_calls=self._with_calls, process_s=process_s, thread_s=thread_s)
        return wanted is not None

    def _sample(self, number: int, frame: FrameType | None) -> None:
        seen: set[str] = set()
        while frame is not None:
            code = frame.f_code
            name = f"{code.co_filename}:{code.co_firstlineno} {code.co_qualname}"
            if not seen:
                self._own[name] += 1
            seen.add(name)
            frame = frame.f_back
        self._with_calls.update(seen)
