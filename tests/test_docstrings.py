"""Runs the `>>>` examples of every public docstring, `>>> await ...` included.

The standard doctest cannot await; its parser and its checker do the rest here. The names of the docstring's
own module are there without an import, `...` stands for any text, and white space does not count.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import doctest
import importlib
import inspect
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 30
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented(node: Documented, name: str) -> Iterator[doctest.DocTest]:
    """Yield the examples in the docstring of a module, class or function and of the public ones inside it."""
    docstring = ast.get_docstring(node)
    if docstring and ">>>" in docstring:
        line = node.body[0].lineno - 1
        yield doctest.DocTestParser().get_doctest(docstring, {}, name, name, line)
    if not isinstance(node, ast.Module | ast.ClassDef):
        return
    for child in node.body:
        named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if named and not child.name.startswith("_"):
            yield from documented(child, f"{name}.{child.name}")


def docstrings() -> Iterator[tuple[str, doctest.DocTest]]:
    for path in sorted((ROOT / "meshmsg").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if ">>>" not in source:  # parsing all of them would take every worker half a second
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for test in documented(ast.parse(source, filename=str(path)), module):
            yield module, test


def compiled(test: doctest.DocTest) -> list[CodeType]:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    name = f"<{test.name}>"
    return [compile(example.source, name, "single", flags, dont_inherit=True) for example in test.examples]


async def run(test: doctest.DocTest, codes: list[CodeType], names: dict[str, object]) -> None:
    for example, code in zip(test.examples, codes, strict=True):
        if example.options.get(doctest.SKIP):
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                waiting = eval(code, names)
                if code.co_flags & inspect.CO_COROUTINE:
                    await waiting
            except Exception as error:
                if example.exc_msg is None:
                    raise
                printed.write(f"{type(error).__name__}: {error}\n")
        compare(test, example, printed.getvalue())


def compare(test: doctest.DocTest, example: doctest.Example, got: str) -> None:
    flags = FLAGS
    for flag, on in example.options.items():
        flags = flags | flag if on else flags & ~flag
    want = example.want
    if example.exc_msg is not None:  # an exception is compared by its own name, without its module's
        name, colon, message = example.exc_msg.partition(":")
        want = name.rpartition(".")[2] + colon + message
    checker = doctest.OutputChecker()
    if not checker.check_output(want, got, flags):
        shown = doctest.Example(example.source, want)
        difference = checker.output_difference(shown, got, flags)
        pytest.fail(f"{test.name}\n>>> {example.source}{difference}", pytrace=False)


@pytest.mark.parametrize(
    ("module", "test"), [pytest.param(module, test, id=test.name) for module, test in docstrings()]
)
def test_examples(module: str, test: doctest.DocTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "displayhook", sys.__displayhook__)  # prints values, as a prompt does
    monkeypatch.setattr(builtins, "_", None, raising=False)  # what the hook leaves behind
    names = dict(vars(importlib.import_module(module)))
    codes = compiled(test)
    if any(code.co_flags & inspect.CO_COROUTINE for code in codes):
        asyncio.run(asyncio.wait_for(run(test, codes, names), TIMEOUT_S))
    else:  # outside a loop, so that an example may start one: the blocking face, node.run()
        examples = run(test, codes, names)
        with contextlib.suppress(StopIteration):
            examples.send(None)
