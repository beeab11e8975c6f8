"""The blocking publisher by itself: what threads put down until the loop takes it."""

from __future__ import annotations

import pytest

from meshmsg.blocking import Node


@pytest.mark.parametrize(("count", "size", "has"), [(2, 500, True), (3, 500, False), (2, 501, False), (0, 0, True)])
def test_threads_that_wait_go_on_when_half_is_free(count: int, size: int, has: bool) -> None:
    """Of both: who went on with room for messages alone would ask for bytes again and again."""
    with Node("node", mdns=False) as node:
        out = node.pub("steady", block=True, window=4, window_bytes=1000)
        out._count, out._bytes = count, size
        assert out._has_half() is has
        out._count = out._bytes = 0
