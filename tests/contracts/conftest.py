"""What the contract suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.faces import FACES, Face


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """Every face of meshmsg in turn; its nodes are closed at the end of the test."""
    face = Face(request.param)
    yield face
    face.close()
