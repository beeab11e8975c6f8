"""Running a pattern or an example as what it is: a program that starts others, works, and ends."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
PATTERNS = ROOT / "patterns"
# A run takes a second or two. This is what a busy machine may take; under pytest's own limit, so that a run which
# hangs shows its words.
DEADLINE_S = 50.0


def run_pattern(name: str, *arguments: str) -> str:
    """What a pattern prints. It must end by itself, with exit code 0, and so must all that it started.

    (They inherit its standard output, and this reads to the end of that.)
    """
    command = [sys.executable, str(PATTERNS / name), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        end_session(process)
        output, errors = process.communicate()
        raise AssertionError(f"still running after {DEADLINE_S} s; it said:\n{output}{errors}") from None
    print(output, errors)  # shown when the test fails further on
    assert process.returncode == 0
    return output


def end_session(process: subprocess.Popen[str]) -> None:
    """Ends a process that leads a session of its own, with all that it started."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


def read_ledger(output: str) -> dict[str, int]:
    """The numbers of the one ledger in an output."""
    (line,) = re.findall(r"^\d+ accepted = .*$", output, re.MULTILINE)
    ledger = {name: int(number) for number, name in re.findall(r"(\d+) (\w+)", line)}
    assert ledger["accepted"] == ledger["processed"] + ledger["dead"] + ledger["pending"], ledger
    assert ledger["pending"] == 0, ledger
    return ledger


def load(path: Path) -> ModuleType:
    """A program as a module, without running it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
