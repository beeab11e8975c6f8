"""What the contract suites share."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.contracts.faces import FACES, Face


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each test runs in every face, but under uvloop in one of the two, by turns; ``MESHMSG_ALL_FACES=1`` runs both.

    What differs there is the loop, and not what is built on it.
    """
    if os.environ.get("MESHMSG_ALL_FACES") == "1":
        return
    under_uvloop = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "uvloop" in str(params.get("face")):
            under_uvloop[params["face"]].append(item)
    left_out = {item for number, each in enumerate(under_uvloop.values()) for item in each[number::2]}
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """Every face of meshmsg in turn; its nodes are closed at the end of the test."""
    face = Face(request.param)
    yield face
    face.close()
