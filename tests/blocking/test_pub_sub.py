"""The blocking publisher by itself: what threads put down until the loop takes it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from meshmsg import ConfigurationError
from meshmsg.blocking import Node
from meshmsg.engine import publisher as publisher_module


@pytest.mark.parametrize(
    ("held", "size", "next_size", "goes_on"),
    [
        (2, 500, 1, True),
        (3, 500, 1, False),
        (2, 501, 1, False),
        (1, 400, 700, False),
        (1, 300, 700, True),
        (0, 0, 9000, True),
    ],
)
async def test_threads_that_wait_go_on_when_there_is_room_for_what_they_have(
    held: int, size: int, next_size: int, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In messages and in bytes, and for half of what there can be: who goes on too early asks again and again."""
    asked = list[bool]()

    async def until(condition: Callable[[], bool]) -> None:
        asked.append(condition())

    with Node("node", mdns=False) as node:
        out = node.pub("steady", block=True, window=4, window_bytes=1000)
        out._count, out._bytes = held, size
        with monkeypatch.context() as patch:
            patch.setattr(out._driver, "until", until)
            await out._until_room(1, next_size)
        assert asked == [goes_on]
        out._count = out._bytes = 0


def test_one_topic_too_many_is_refused_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "MAX_TOPICS", 2)
    with Node("node", mdns=False) as node:
        out, sub = node.pub("a.*"), node.sub("a.*")
        node.wait_for(sub="a.b", timeout=5)
        out.send(1, topic="a.b")
        out.send(2, topic="a.c")
        node.wait_for(pub="a.b", timeout=5)
        assert [sub.get(timeout=5).body for _ in range(2)] == [1, 2]
        for send in (out.send, out.send_nowait, lambda body, topic: out.send_many([body], topic)):
            with pytest.raises(ConfigurationError, match=r"2 topics are published here already, 'a\.d' is one"):
                send(3, topic="a.d")
        out.send(4, topic="a.c")
        assert sub.get(timeout=5).body == 4


def test_a_topic_that_two_threads_open_at_once_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Node("node", mdns=False) as node:
        out, sub = node.pub("a.*"), node.sub("a.*")
        node.wait_for(sub="a.b", timeout=5)
        monkeypatch.setattr(publisher_module, "MAX_TOPICS", 1)
        with caplog.at_level(logging.ERROR), out._lock:
            out._put.extend([("a.b", [b"\x01"], None), ("a.c", [b"\x02", b"\x03"], None), ("a.b", [b"\x04"], None)])
            out._count, out._bytes = 4, 4
        out.lag()
        assert [sub.get(timeout=5).body for _ in range(2)] == [1, 4]
        assert "2 messages to 'a.c' are lost" in caplog.text
        assert (out._count, out._bytes) == (0, 0)
