"""The blocking publisher by itself: what threads put down until the loop takes it."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable

import pytest

from meshmsg import ConfigurationError, NodeClosed, OutboxFull
from meshmsg.blocking import Node, Pub
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


@pytest.mark.guarantee("G6")
def test_what_a_thread_publishes_while_the_node_closes_arrives_or_is_refused() -> None:
    mesh = f"closing-{uuid.uuid4().hex[:12]}"
    with Node("near", mesh=mesh, mdns=False) as near:
        sub = near.sub("ticks")
        with Node("far", mesh=mesh, mdns=False, seeds=near.endpoints[:1]) as far:
            out = far.pub("ticks")
            far.wait_for(sub="ticks", timeout=5)
            # The last moment before the goodbye: the loop gets to nothing else in between.
            sockets = far._node._topics
            close_sockets = sockets.close

            def publish_and_close() -> None:
                out.send("the last one")
                close_sockets()

            sockets.close = publish_and_close  # type: ignore[method-assign]
            out.send("one")
            far.close()
            with pytest.raises(NodeClosed):
                out._put_down("ticks", [b""], 0, None)  # as by a thread that was on its way
        assert [sub.get(timeout=5).body for _ in range(2)] == ["one", "the last one"]


@pytest.mark.guarantee("G6")
def test_what_a_thread_publishes_while_the_pub_closes_arrives_or_is_refused() -> None:
    with Node("node", mdns=False) as node:
        out, sub = node.pub("ticks"), node.sub("ticks")
        node.wait_for(sub="ticks", timeout=5)
        out.send(1)
        out.close()
        with pytest.raises(NodeClosed, match=r"pub\('ticks'\) is closed: open another one"):
            out._put_down("ticks", [b""], 0, None)
        node.pub("ticks").send(2)
        assert [sub.get(timeout=5).body for _ in range(2)] == [1, 2]


@pytest.mark.guarantee("G6")
def test_all_that_threads_publish_until_they_are_refused_arrives() -> None:
    mesh = f"closing-{uuid.uuid4().hex[:12]}"
    with Node("near", mesh=mesh, mdns=False) as near:
        for number in range(5):
            topic = f"ticks.{number}"
            sub = near.sub(topic)
            far = Node("far", mesh=mesh, mdns=False, seeds=near.endpoints[:1]).start()
            out = far.pub(topic, block=True, window=1000)
            far.wait_for(sub=topic, timeout=5)
            accepted = [0, 0]

            def publish(which: int, out: Pub = out, accepted: list[int] = accepted) -> None:
                with pytest.raises(NodeClosed):
                    while True:
                        out.send(which)
                        accepted[which] += 1

            threads = [threading.Thread(target=publish, args=[which]) for which in (0, 1)]
            for thread in threads:
                thread.start()
            got = [0, 0]
            for _ in range(2000):
                got[sub.get(timeout=5).body] += 1
            far.close()
            for thread in threads:
                thread.join()
            while sum(got) < sum(accepted):
                got[sub.get(timeout=5).body] += 1
            assert got == accepted
            assert sub.gaps == 0
            sub.close()


@pytest.mark.guarantee("G6")
def test_who_never_waits_is_refused_for_what_holds_up_its_own_topic() -> None:
    with Node("node", mdns=False) as node:
        out, slow, other = node.pub("a.*", block=True, window=5), node.sub("a.1", buffer=1), node.sub("a.9")
        node.wait_for(sub="a.1", timeout=5)
        with out._lock:
            for topic, count in (("a.1", 20), ("a.2", 1)):
                out._put.append((topic, [b"\x01"] * count, None))
                out._count += count
                out._bytes += count
        out.lag()  # publishes as much as there is room for
        assert [topic for topic, *_ in out._put] == ["a.1", "a.2"]
        out.send_nowait("free", topic="a.9")
        assert other.get(timeout=5).body == "free"
        with pytest.raises(OutboxFull, match=r"^a subscriber of 'a\.1' is 5 messages behind \(window=5\): await"):
            out.send_nowait("slow", topic="a.1")
        why = r"^messages to 'a\.2' wait behind others: a subscriber of 'a\.1' is 5 messages behind \(window=5\)"
        with pytest.raises(OutboxFull, match=why):
            out.send_nowait("behind", topic="a.2")
        assert [slow.get(timeout=5).body for _ in range(20)] == [1] * 20
