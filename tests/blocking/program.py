"""Small programs that run in a process of their own: for forks, signals, and ends without a close."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import uuid
from typing import IO

PATIENCE_S = 15.0
LIFE_S = 50  # after this it ends by itself, if its test could not see to that

HEADER = """
import os, signal, sys, threading, time
signal.alarm({life_s})
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
import meshmsg
from meshmsg.blocking import Node
def make(name="node", **options):
    return Node(name, mesh={mesh!r}, mdns=False, **options)
def say(*words):
    print(*words, flush=True)
"""


class Program:
    """Python source in its own process; ``line`` reads what it says, ``finish`` its end."""

    def __init__(self, source: str) -> None:
        header = HEADER.format(mesh=f"program-{uuid.uuid4().hex[:12]}", life_s=LIFE_S)
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", header + textwrap.dedent(source)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line it prints."""
        stdout: IO[str] | None = self._process.stdout
        assert stdout is not None
        line = stdout.readline().strip()
        if not line:
            raise AssertionError(f"the program said nothing more: {self.finish()}")
        return line

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def finish(self) -> tuple[int, str, str]:
        """Exit code, and the rest of its output and errors."""
        try:
            output, errors = self._process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)  # faulthandler prints where every thread is
            output, errors = self._process.communicate()
            raise AssertionError(f"the program hangs; it said\n{output}\n{errors}") from None
        return self._process.returncode, output.strip(), errors.strip()


def run(source: str) -> tuple[int, str, str]:
    """Runs a program to its end: exit code, output, errors."""
    return Program(source).finish()
