"""What the tests with real processes get: a crew, ended with the test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.crew import Crew


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Signals that stop and go on, and what a killed process leaves behind, are POSIX's."""
    if sys.platform == "win32":
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="SIGSTOP and SIGCONT need POSIX"))


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    """Processes of this test, in a mesh of their own."""
    with Crew(tmp_path) as crew:
        yield crew
        print(crew.report())  # shown when the test failed
