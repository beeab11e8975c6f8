"""The console entry: quick help, lazy verbs, exit codes, a message where the extra is missing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner

import meshmsg as package
from meshmsg.cli.verbs import VERBS, meshmsg
from tests.cli.shell import Shell

HELP_IMPORTS = """
import sys
from meshmsg.cli.verbs import meshmsg
meshmsg(["--help"], standalone_mode=False)
loaded = [name for name in sys.modules if name.startswith(("meshmsg.cli.", "rich"))]
assert sorted(loaded) == ["meshmsg.cli.verbs"], loaded
"""
WITHOUT = "import sys; sys.modules[{!r}] = None; from meshmsg.cli.main import main; main()"


def run_python(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=50)


def verb(name: str) -> click.Command:
    command = meshmsg.get_command(click.Context(meshmsg), name)
    assert command is not None
    return command


def test_help_imports_no_verb() -> None:
    result = run_python(HELP_IMPORTS)
    assert result.returncode == 0, result.stderr
    for name in VERBS:
        assert f"\n  {name} " in result.stdout


def test_help_tells_the_exit_codes() -> None:
    output = CliRunner().invoke(meshmsg, ["--help"]).output
    for code in ("0  ", "1  ", "2  ", "3  ", "4  ", "130"):
        assert f"\n    {code} " in output


@pytest.mark.parametrize("name", VERBS)
def test_the_list_says_what_each_verb_says_of_itself(name: str) -> None:
    assert " ".join((verb(name).help or "").split("\n\n")[0].split()) == VERBS[name].summary


@pytest.mark.parametrize("name", [name for name in VERBS if name != "bench"])
def test_every_verb_shows_examples_and_takes_the_shared_options(name: str) -> None:
    output = CliRunner().invoke(meshmsg, [name, "--help"]).output
    assert f"meshmsg {name}" in output.partition("Examples:")[2]
    for option in ("--json", "--mesh", "--interface", "--seed", "--no-mdns"):
        assert option in output


def test_version() -> None:
    result = CliRunner().invoke(meshmsg, ["--version"])
    assert (result.exit_code, result.output) == (0, f"meshmsg {package.__version__}\n")


def test_python_m_is_the_same(shell: Shell) -> None:
    assert shell.run("--version").stdout == f"meshmsg {package.__version__}\n"


@pytest.mark.parametrize("name", ["click", "rich"])
def test_a_missing_extra_says_what_to_install(name: str) -> None:
    result = run_python(WITHOUT.format(name))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f'the command line needs {name}: pip install "meshmsg[cli]"\n'


def test_a_misspelt_verb_is_wrong_use() -> None:
    result = CliRunner().invoke(meshmsg, ["psuh"])
    assert result.exit_code == 2
    assert "'psuh'" in result.output and "push" in result.output


def test_a_number_is_one_that_a_clock_can_reach() -> None:
    """``nan`` and ``inf`` are within the ranges of click."""
    checked = set[str]()
    for name in VERBS:
        for option in verb(name).params:
            if not isinstance(option.type, click.FloatRange):
                continue
            checked.add(f"{name} {option.opts[0]}")
            kind: Any = option.type
            for value in ("nan", "inf", "-inf", "1e300"):
                with pytest.raises(click.BadParameter):
                    kind.convert(value, option, None)
            assert kind.convert("1.5", option, None) == 1.5
    assert {"request --timeout", "survey --timeout", "reply --timeout", "push --rate", "sub --timeout"} <= checked
    for value in ("nan", "inf"):
        result = CliRunner().invoke(meshmsg, ["request", "math.add", "--timeout", value])
        assert result.exit_code == 2 and f"'--timeout': {value} is not a number up to" in result.output


def test_an_interface_that_is_not_there_is_wrong_use(shell: Shell) -> None:
    ended = shell.run("nodes", "--interface", "nosuch0")
    assert ended.code == 2
    assert ended.stderr.startswith("meshmsg: ") and "nosuch0" in ended.stderr
    assert "Traceback" not in ended.stderr
