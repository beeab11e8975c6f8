"""The house rules that no linter knows: sizes, names, imports, docstrings, guarantees, the wheel."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import meshmsg

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 70
MAX_PATTERN_LINES = 125
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "managers", "manager"}
WHEEL = os.environ.get("MESHMSG_TEST_WHEEL") == "1"


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


ALL_FILES = python_files("meshmsg", "patterns", "examples", "benchmarks", "tests")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def place(path: Path, line: int | None = None) -> str:
    """Return where something is, in the form that terminals and editors open."""
    name = str(path.relative_to(ROOT))
    return name if line is None else f"{name}:{line}"


def report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


# --- sizes and names ----------------------------------------------------------------------------------------


def test_files_are_short() -> None:
    too_long = []
    for path in ALL_FILES:
        limit = MAX_PATTERN_LINES if path.is_relative_to(ROOT / "patterns") else MAX_FILE_LINES
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > limit:
            too_long.append(f"{place(path)} has {lines} lines, {limit} is where it should be split")
    report(too_long)


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return a function's length without its docstring: documentation does not make it hard to read."""
    first, last = function.body[0], function.body[-1]
    lines = (last.end_lineno or last.lineno) - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def test_functions_are_short() -> None:
    too_long = []
    for path in ALL_FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = body_lines(node)
                if lines > MAX_FUNCTION_LINES:
                    too_long.append(f"{place(path, node.lineno)} {node.name}() has {lines} lines")
    report(too_long)


def test_file_names_say_what_is_inside() -> None:
    report([place(path) for path in ALL_FILES if {path.stem, path.parent.name} & FORBIDDEN_NAMES])


def test_tests_do_not_sleep() -> None:
    """Waiting for a time instead of for the thing itself is slow and still wrong on a busy machine.

    The simulator's time is none: what sleeps there moves a virtual clock.
    """
    report(
        [
            f"{place(path, node.lineno)} sleeps; wait for an event or a condition with a deadline"
            for path in python_files("tests")
            if not path.is_relative_to(ROOT / "tests" / "simulation")
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Call) and is_sleep(node)
        ]
    )


def is_sleep(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name != "sleep" or not call.args or not isinstance(call.args[0], ast.Constant):
        return False
    value = call.args[0].value
    return isinstance(value, int | float) and value > 0


# --- imports ------------------------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in python_files("meshmsg")}


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, leaving out what only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from runtime_nodes(child)


@functools.cache
def imported_modules(name: str) -> set[str]:
    """Return the meshmsg modules that a module imports at run time, also those imported inside functions."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in runtime_nodes(parsed(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.add(submodule if submodule in MODULES else base)
    return found & MODULES.keys() - {name}


@functools.cache
def reached_modules(name: str) -> frozenset[str]:
    """Return what a module imports, itself or through others."""
    direct = imported_modules(name)
    return frozenset(direct).union(*map(reached_modules, direct))


def test_no_circular_imports() -> None:
    try:
        TopologicalSorter({name: imported_modules(name) for name in MODULES}).prepare()
    except CycleError as error:
        pytest.fail("circular imports: " + " -> ".join(reversed(error.args[1])))


# One process imports every module as if it were the first: of meshmsg it finds only what this module itself leads to
# (the libraries underneath stay). An empty package stands in for meshmsg/__init__.py, which imports everything, so that
# nothing would be alone; a module that uses the facade gets the real one.
IMPORT_EACH_ALONE = """
import importlib, sys, traceback, types
path, failed, loaded = sys.argv[1], False, {}
empty = types.ModuleType("meshmsg")
empty.__path__ = [path]
for line in sys.stdin.read().splitlines():
    name, *reached = line.split()
    for other in [m for m in sys.modules if m == "meshmsg" or m.startswith("meshmsg.")]:
        del sys.modules[other]
    sys.modules.update({m: loaded[m] for m in reached})
    if name != "meshmsg":
        sys.modules.setdefault("meshmsg", empty)
    try:
        loaded[name] = importlib.import_module(name)
    except BaseException:
        failed = True
        print(f"import {name}", traceback.format_exc(), sep="\\n")
sys.exit(failed)
"""


def test_every_module_imports_alone() -> None:
    order = TopologicalSorter({name: imported_modules(name) for name in MODULES}).static_order()
    lines = [" ".join([name, *sorted(reached_modules(name))]) for name in order if name != "meshmsg.__main__"]
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH_ALONE, meshmsg.__path__[0]],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert result.returncode == 0, result.stdout + result.stderr


# --- docstrings ---------------------------------------------------------------------------------------------


def facades() -> list[ModuleType]:
    """Return the modules whose `__all__` is the public interface."""
    names = [name for name in ("meshmsg", "meshmsg.blocking", "meshmsg.testing") if name in MODULES]
    return [importlib.import_module(name) for name in names]


def public_things() -> Iterator[tuple[str, object]]:
    for module in facades():
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if inspect.isclass(thing) and thing.__module__.startswith("meshmsg"):
                yield f"{module.__name__}.{name}", thing
                yield from public_members(f"{module.__name__}.{name}", thing)
            elif inspect.isfunction(thing):
                yield f"{module.__name__}.{name}", thing


def public_members(where: str, cls: type) -> Iterator[tuple[str, object]]:
    """Yield methods and properties, also those that come from bases inside meshmsg."""
    for base in cls.__mro__:
        if not base.__module__.startswith("meshmsg"):
            continue
        for name, member in vars(base).items():
            kinds = property | staticmethod | classmethod
            if not name.startswith("_") and (isinstance(member, kinds) or inspect.isfunction(member)):
                yield f"{where}.{name}", getattr(cls, name)


def has_docstring(thing: object) -> bool:
    text = inspect.getdoc(thing)
    if inspect.isclass(thing):  # not the base's, and not the signature that @dataclass and NamedTuple write
        text = thing.__doc__
        written = f"{thing.__name__}("
        return bool(text) and not str(text).startswith(written)
    return bool(text and text.strip())


def test_public_names_exist_and_are_documented() -> None:
    missing = {where for where, thing in public_things() if not has_docstring(thing)}
    report([f"{where} has no docstring" for where in sorted(missing)])


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert meshmsg.__version__ == project["version"]


# --- guarantees ---------------------------------------------------------------------------------------------


def claimed_guarantees() -> set[str]:
    """Return the numbers on lines of docs/guarantees.md that say "tested", not "not tested" or "untested"."""
    page = ROOT / "docs" / "guarantees.md"
    if not page.exists():
        return set()
    claims = re.compile(r"(?<!not )(?<!not yet )\btested\b", re.IGNORECASE)
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if claims.search(line)]
    return {number for line in lines for number in re.findall(r"\bG\d+\b", line)}


def marked_guarantees() -> set[str]:
    """Return the numbers in `pytest.mark.guarantee(...)` anywhere under tests/."""
    return {
        argument.value
        for path in python_files("tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.guarantee")
        for argument in node.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }


def test_every_guarantee_said_to_be_tested_is() -> None:
    missing = claimed_guarantees() - marked_guarantees()
    report([f"docs/guarantees.md calls {number} tested; no test is marked so" for number in sorted(missing)])


# --- the package under test ---------------------------------------------------------------------------------


def test_processes_import_the_meshmsg_under_test() -> None:
    """A process started in the checkout must not find the checkout's meshmsg before the installed one."""
    command = [sys.executable, "-c", "import meshmsg; print(meshmsg.__file__)"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=True)
    assert result.stdout.strip() == meshmsg.__file__


@pytest.mark.skipif(not WHEEL, reason="only `make test` builds the wheel")
def test_meshmsg_is_the_built_wheel() -> None:
    installed = Path(inspect.getfile(meshmsg)).parent
    assert installed.is_relative_to(sys.prefix)
    assert installed != ROOT / "meshmsg"

    def content(package: Path) -> dict[str, bytes]:
        files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        return {path.relative_to(package).as_posix(): path.read_bytes() for path in files}

    assert content(installed) == content(ROOT / "meshmsg")
    assert (installed / "py.typed").exists()
