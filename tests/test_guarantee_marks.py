"""`pytest --guarantees`: lists tests by what they hold, and refuses a mark that is no guarantee's number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TINY = """
import pytest

@pytest.mark.guarantee({marks})
def test_tiny():
    raise AssertionError("it is listed, and not run")

@pytest.mark.guarantee("G10", "G2")
class TestMore:
    def test_more(self):
        pass
"""


def list_guarantees(folder: Path, marks: str) -> tuple[int, str]:
    """The exit code and output of a run on one tiny file, with this suite's conftest.py as a plugin."""
    (folder / "test_tiny.py").write_text(TINY.format(marks=marks), encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = guarantee\n", encoding="utf-8")
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "--guarantees", "-q"]
    done = subprocess.run(
        [*command, "test_tiny.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_list_has_each_guarantee_with_its_tests_in_order(tmp_path: Path) -> None:
    code, output = list_guarantees(tmp_path, '"G1", "G2"')
    listed = [line.strip() for line in output.splitlines() if line.strip()]
    tiny, more = "test_tiny.py::test_tiny", "test_tiny.py::TestMore::test_more"
    assert listed[:7] == ["G1", tiny, "G2", tiny, more, "G10", more], output
    assert code in (0, 5), output  # 5: no test ran


def test_a_mark_that_names_no_guarantee_is_refused(tmp_path: Path) -> None:
    for marks, named in (('"G1", "holds"', "'holds'"), ('"G0"', "'G0'"), ("", "nothing"), ("7", "7")):
        code, output = list_guarantees(tmp_path, marks)
        assert code == 4, output
        assert "test_tiny.py::test_tiny: guarantee() takes numbers such as 'G1', not " in output
        assert named in output and "INTERNALERROR" not in output
