"""Each scenario leads to what its file says. ``MESHMSG_REWRITE_SCENARIOS=1`` writes the files anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.simulation.interpreter import replay

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))

pytestmark = pytest.mark.guarantee("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G10")


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_scenario(file: Path) -> None:
    expected = file.read_text(encoding="utf-8")
    happened = replay(expected)
    if os.environ.get("MESHMSG_REWRITE_SCENARIOS") == "1":
        file.write_text(happened, encoding="utf-8")
    else:
        hint = "read the diff; if it is right: MESHMSG_REWRITE_SCENARIOS=1"
        assert happened.splitlines() == expected.splitlines(), hint


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 12
