"""A shell in a mesh of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.shell import Shell


@pytest.fixture
def shell() -> Iterator[Shell]:
    opened = Shell()
    try:
        yield opened
    finally:
        opened.close()
