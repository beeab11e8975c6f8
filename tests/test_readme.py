"""Runs every python block of README.md and docs/, each in its own process: an example that fails is a bug.

A block that cannot run here follows a line `<!-- not run: the reason -->`. `await` needs no function
around it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 30
FENCE = re.compile(
    r"(?:<!--\s*not run:\s*(?P<reason>(?:(?!-->).)*?)\s*-->\s*)?"
    r"^(?P<indent>[ ]*)```python[^\n]*\n(?P<source>.*?)^[ ]*```\s*?$",
    re.MULTILINE | re.DOTALL,
)

# The source arrives on standard input. It runs inside a loop only if it awaits: others may call node.run().
RUN = """
import ast, asyncio, inspect, sys, types
code = compile(sys.stdin.read(), sys.argv[1], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
main = sys.modules["__main__"] = types.ModuleType("__main__")  # without the imports above
names = vars(main)
if code.co_flags & inspect.CO_COROUTINE:
    asyncio.run(eval(code, names))
else:
    exec(code, names)
"""


class Block(NamedTuple):
    path: Path
    line: int
    source: str
    not_run: str | None


def blocks() -> Iterator[Block]:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start("source")) + 1
            indent = len(match["indent"])
            source = "".join(row[indent:] or "\n" for row in match["source"].splitlines(keepends=True))
            yield Block(path, line, source, match["reason"])


def block_id(block: Block) -> str:
    return f"{block.path.relative_to(ROOT).as_posix()}:{block.line}"


@pytest.mark.parametrize("block", [pytest.param(block, id=block_id(block)) for block in blocks()])
def test_block_runs(block: Block, tmp_path: Path) -> None:
    if block.not_run is not None:
        pytest.skip(f"not run: {block.not_run}")
    padded = "\n" * (block.line - 1) + block.source  # so that a traceback names the line of the page
    try:
        result = subprocess.run(
            [sys.executable, "-c", RUN, str(block.path)],
            input=padded,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"still running after {TIMEOUT_S} s; it printed {error.stdout!r} and {error.stderr!r}")
    assert result.returncode == 0, result.stdout + result.stderr
