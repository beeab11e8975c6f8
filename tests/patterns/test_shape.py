"""Patterns are read and copied more than anything else here: short, complete headers, public imports only."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import meshmsg
from tests.patterns.programs import PATTERNS, ROOT

MAX_LINES = 125
SECTIONS = ["Problem", "Guarantee", "How it fails", "What to change"]
PUBLIC = {"meshmsg", "meshmsg.blocking", "meshmsg.testing"}
FILES = sorted(PATTERNS.glob("*.py"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# What the extra "examples" installs.
EXTRA = {"starlette", "uvicorn"}
PROGRAMS = [*FILES, *EXAMPLES]
named = pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in FILES])


def test_the_patterns_are_there() -> None:
    work = {"work_queue", "pipeline", "fan_out_fan_in", "batch_consumer"}
    topics = {"publish_subscribe", "last_value_cache", "consumer_group", "presence", "event_log_replay"}
    requests = {"request_reply", "streaming", "scatter_gather", "hedged_requests", "majordomo"}
    assert {path.stem for path in FILES} >= work | topics | requests


@named
def test_pattern_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@named
def test_header_says_what_a_reader_needs(path: Path) -> None:
    header = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    titles = [line for line in header.splitlines() if line in SECTIONS]
    assert titles == SECTIONS
    guarantee = header.partition("\nGuarantee\n")[2].partition("\nHow it fails\n")[0]
    assert re.search(r"\bG\d+\b", guarantee), "the guarantee has no number"
    failure = header.partition("\nHow it fails\n")[2].partition("\nWhat to change\n")[0]
    assert "--fail" in failure, "nothing says how to provoke the failure"
    assert f"``python {path.name} [--fail]``" in header


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in PROGRAMS])
def test_imports_are_public(path: Path) -> None:
    others = sys.stdlib_module_names | (EXTRA if path in EXAMPLES else set())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.partition(".")[0] in others or alias.name in PUBLIC, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert node.level == 0, "a template stands alone"
            assert module.partition(".")[0] in others or module in PUBLIC, module
            if module == "meshmsg":
                assert {alias.name for alias in node.names} <= set(meshmsg.__all__)
        elif isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_") or node.attr.endswith("__") or node.attr == "_exit", node.attr


@named
def test_docs_list_the_pattern(path: Path) -> None:
    assert f"patterns/{path.name}" in (ROOT / "docs" / "patterns.md").read_text(encoding="utf-8")
