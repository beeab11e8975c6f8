"""Running a pattern or an example as what it is: a program that starts others, works, and ends."""

from __future__ import annotations

import importlib.util
import re
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
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout, result.stderr)  # shown when the test fails further on
    return result.stdout


def read_ledger(output: str) -> dict[str, int]:
    """The numbers of the one ledger in an output."""
    (line,) = re.findall(r"^Ledger\((.*)\)$", output, re.MULTILINE)
    ledger = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", line)}
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
