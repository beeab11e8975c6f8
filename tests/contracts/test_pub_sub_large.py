"""Large published messages, which travel in pieces, in whatever face they are used. One suite, every face."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.contracts.faces import PATIENCE_S, Collected, Face
from tests.contracts.topics import connect, get_all

pytestmark = pytest.mark.guarantee("G6")

TEN_MEGABYTES = random.Random(7).randbytes(10_000_000)


def test_ten_megabytes_arrive_intact_and_in_order(face: Face) -> None:
    out, sub = connect(face, "images")
    out.send("before")
    out.send({"image": TEN_MEGABYTES}, headers={"name": "first"})
    out.send("between")
    out.send([TEN_MEGABYTES])
    out.send_many(range(3))
    assert sub.get(timeout=PATIENCE_S).body == "before"
    message = sub.get(timeout=PATIENCE_S)
    assert dict(message.headers) == {"name": "first"}
    assert message.body == {"image": TEN_MEGABYTES}
    assert sub.get(timeout=PATIENCE_S).body == "between"
    assert sub.get(timeout=PATIENCE_S).body == [TEN_MEGABYTES]
    assert get_all(sub, 3) == [0, 1, 2]


@pytest.mark.parametrize("size", [256 * 1024 - 6, 256 * 1024 - 5, 256 * 1024 - 4, 512 * 1024 - 5, 512 * 1024 - 4])
def test_sizes_around_whole_pieces(face: Face, size: int) -> None:
    """Beside its content a body of this size takes five bytes."""
    out, sub = connect(face, "images")
    body = TEN_MEGABYTES[:size]
    out.send_many([1, body, 2])
    assert get_all(sub, 3) == [1, body, 2]


def test_large_messages_of_many_topics_keep_the_order_of_each(face: Face) -> None:
    out, sub = connect(face, "images.*")
    for number in range(4):
        for topic in ("a", "b", "c"):
            size = 0 if number == 2 else 700_000
            out.send([number, TEN_MEGABYTES[:size]], topic=f"images.{topic}")
    got: dict[str, list[Any]] = {}
    for _ in range(12):
        message = sub.get(timeout=PATIENCE_S)
        assert message.body[1] == TEN_MEGABYTES[: len(message.body[1])]
        got.setdefault(message.topic, []).append(message.body[0])
    assert got == {f"images.{topic}": [0, 1, 2, 3] for topic in "abc"}


def test_a_node_hears_its_own_large_messages(face: Face) -> None:
    node = face.node()
    out, sub = node.pub("images"), node.sub("images")
    node.wait_for(sub="images", timeout=PATIENCE_S)
    out.send(TEN_MEGABYTES)
    assert sub.get(timeout=PATIENCE_S).body == TEN_MEGABYTES


def test_who_joins_late_gets_a_large_value(face: Face) -> None:
    publisher, subscriber = face.pair()
    publisher.pub("images", retain=True).send(TEN_MEGABYTES)
    assert subscriber.sub("images", replay="latest").get(timeout=PATIENCE_S).body == TEN_MEGABYTES


def test_what_was_published_right_before_the_end_arrives(face: Face) -> None:
    publisher, subscriber = face.pair()
    out, sub = publisher.pub("images"), subscriber.sub("images")
    publisher.wait_for(sub="images", timeout=PATIENCE_S)
    for number in range(3):
        out.send([number, TEN_MEGABYTES])
    out.send("the end")
    publisher.close(drain=PATIENCE_S)
    for number in range(3):
        assert sub.get(timeout=PATIENCE_S).body == [number, TEN_MEGABYTES]
    assert sub.get(timeout=PATIENCE_S).body == "the end"


def test_who_takes_less_is_told_of_a_gap(face: Face) -> None:
    publisher = face.node("producer")
    subscriber = face.node("consumer", max_message_bytes=1_000_000)
    gaps = Collected()
    out, sub = publisher.pub("images"), subscriber.sub("images", on_gap=gaps.add)
    publisher.wait_for(sub="images", timeout=PATIENCE_S)
    out.send(1)
    out.send(TEN_MEGABYTES)
    out.send(2)
    assert get_all(sub, 2) == [1, 2]
    assert [(gap.start, gap.stop) for gap in gaps.wait(1)] == [(1, 2)]
