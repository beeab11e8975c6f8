"""What becomes of subscribers that are too slow: a gap, a publisher that waits, the newest value, a lag."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import pytest

from meshmsg import Gap, NodeClosed, OutboxFull
from tests.contracts.faces import PATIENCE_S, Collected, Face, until
from tests.contracts.topics import connect, get_all


@pytest.mark.guarantee("G6")
def test_what_a_slow_subscriber_loses_is_told_with_its_count(face: Face) -> None:
    gaps = Collected()
    publisher, subscriber = face.pair()
    events = subscriber.events()
    sub = subscriber.sub("flood", buffer=100, on_gap=gaps.add)
    out = publisher.pub("flood")
    publisher.wait_for(sub="flood", timeout=PATIENCE_S)
    for _ in range(10):
        out.send_many(range(1000))
    numbers, got = set(), 0
    out.send("end")
    while (message := sub.get(timeout=PATIENCE_S)).body != "end":
        numbers.add(int(message.id.rpartition("/")[2]))
        got += 1
    (first, *_) = gaps.wait(1)
    assert isinstance(first, Gap) and (first.topic, first.publisher) == ("flood", "producer")
    missed = {number for gap in gaps for number in range(gap.start, gap.stop)}
    assert sub.gaps == sum(gap.missed for gap in gaps) == len(missed) == 10_000 - got
    assert missed | numbers == set(range(10_000)) and not missed & numbers
    while (event := events.get(timeout=PATIENCE_S)).kind != "gap":
        pass
    assert (event.peer, event.queue) == ("producer", "flood") and f"{first.missed} messages" in event.text


@pytest.mark.guarantee("G6")
def test_a_publisher_that_blocks_loses_nothing(face: Face) -> None:
    out, sub = connect(face, "steady", pub={"block": True, "window": 50}, buffer=20)
    sent = Collected()

    def publish() -> None:
        for number in range(500):
            out.send(number)
            sent.add(number)

    thread = threading.Thread(target=publish)
    thread.start()
    extra = until(lambda: _count_extra(out))  # 20 wait in its buffer, and 50 it is behind
    assert len(sent) <= 70 + 50
    got = get_all(sub, 500 + extra - 1)
    assert [body for body in got if body != "extra"] == list(range(500))
    thread.join(PATIENCE_S)
    assert (len(sent), sub.gaps) == (500, 0)


def _count_extra(out: Any) -> int:
    """How many more messages it takes until there is no room, that one included."""
    for count in range(1, 1000):
        try:
            out.send_nowait("extra")
        except OutboxFull:
            return count
    raise AssertionError("there is always room")


@pytest.mark.guarantee("G6")
@pytest.mark.parametrize("size", [1000, 100_000, 600_000])
def test_a_publisher_that_blocks_counts_bytes(face: Face, size: int) -> None:
    """Large bodies are as few as they have to be, however wide the window is in messages."""
    window_bytes = 5 * size
    out, sub = connect(face, "steady", pub={"block": True, "window_bytes": window_bytes}, buffer=1)
    body = bytes(size)
    sent = Collected()

    def publish() -> None:
        for number in range(30):
            out.send([number, body])
            sent.add(number)
        out.send_many([number, body] for number in range(30, 60))

    thread = threading.Thread(target=publish)
    thread.start()
    extra = until(lambda: _count_extra(out))
    # In its buffer is one, five it is behind, and one may go beyond; what threads put down waits apart.
    assert len(sent) <= 7 + (6 if face.is_blocking else 0)
    got = get_all(sub, 60 + extra - 1)
    assert [each for each in got if each != "extra"] == [[number, body] for number in range(60)]
    thread.join(PATIENCE_S)
    assert sub.gaps == 0


@pytest.mark.guarantee("G6")
def test_a_wide_window_keeps_what_a_full_buffer_refuses(face: Face) -> None:
    out, sub = connect(face, "steady", pub={"block": True, "window": 2000}, buffer=10)
    for number in range(1500):  # more than a publisher keeps for repairs of other topics
        out.send(number)
    until(lambda: out.lag() == {"consumer": {"steady": 1490}})
    assert get_all(sub, 1500) == list(range(1500))
    assert sub.gaps == 0


@pytest.mark.parametrize("end", ["pub", "node", "subscription", "subscriber"])
def test_a_blocked_send_ends_when_it_must(face: Face, end: str) -> None:
    publisher, subscriber = face.pair()
    out, sub = publisher.pub("steady", block=True, window=5), subscriber.sub("steady", buffer=1)
    publisher.wait_for(sub="steady", timeout=PATIENCE_S)
    ended = Collected()

    def publish() -> None:
        try:
            for number in range(100):
                out.send(number)
            ended.add("all sent")
        except NodeClosed:
            ended.add("closed")

    thread = threading.Thread(target=publish)
    thread.start()
    until(lambda: out.lag().get("consumer", {}).get("steady", 0) >= 5)
    {"pub": out, "node": publisher, "subscription": sub, "subscriber": subscriber}[end].close()
    assert ended.wait(1) == ["all sent" if end.startswith("sub") else "closed"]
    thread.join(PATIENCE_S)


@pytest.mark.guarantee("G6")
def test_with_latest_only_the_newest_value_waits(face: Face) -> None:
    out, sub = connect(face, "price.*", latest=True)
    for number in range(2000):
        out.send(number, topic=f"price.{number % 2}")
    until(lambda: sub.conflated >= 1998 - 2 * 20)
    found: dict[str, list[int]] = defaultdict(list)
    while not (found["price.0"][-1:] == [1998] and found["price.1"][-1:] == [1999]):
        message = sub.get(timeout=PATIENCE_S)
        found[message.topic].append(message.body)
    for values in found.values():
        assert values == sorted(set(values)) and len(values) < 50
    assert sub.gaps == 0


def test_lag_says_how_far_behind_a_subscriber_is(face: Face) -> None:
    out, sub = connect(face, "steady", pub={"block": True, "window": 1000}, buffer=10)
    for number in range(100):
        out.send(number)
    until(lambda: out.lag() == {"consumer": {"steady": 90}})
    assert get_all(sub, 100) == list(range(100))
    until(lambda: out.lag() == {})


@pytest.mark.guarantee("G6")
def test_the_lag_tells_subscribers_of_one_name_apart(face: Face) -> None:
    """Workers that are started from one unit file all have one name."""
    publisher, *workers = face.node("p"), face.node("w"), face.node("w"), face.node("other")
    subs = [worker.sub("t.*", buffer=10 * number) for number, worker in enumerate(workers, 1)]
    out = publisher.pub("t.*")
    publisher.wait_for(sub="t.a", count=3, timeout=PATIENCE_S)
    out.send_many(range(100), topic="t.a")
    first, second = (f"w ({worker.id[:12]})" for worker in workers[:2])
    until(lambda: out.lag() == {first: {"t.a": 90}, second: {"t.a": 80}, "other": {"t.a": 70}})
    assert get_all(subs[0], 100) == list(range(100))
    until(lambda: out.lag() == {second: {"t.a": 80}, "other": {"t.a": 70}})
    workers[0].close()
    until(lambda: out.lag() == {"w": {"t.a": 80}, "other": {"t.a": 70}})


@pytest.mark.guarantee("G6")
def test_gaps_tell_publishers_of_one_name_apart(face: Face) -> None:
    gaps, publishers, subscriber = Collected(), [face.node("p"), face.node("p")], face.node("s")
    events = subscriber.events()
    sub = subscriber.sub("t", buffer=5, on_gap=gaps.add)
    for publisher in publishers:
        out = publisher.pub("t")
        publisher.wait_for(sub="t", timeout=PATIENCE_S)
        for _ in range(10):
            out.send_many(range(1000))
    got = defaultdict[str, int](int)
    while sum(got.values()) + sub.gaps < 20_000:
        got[sub.get(timeout=PATIENCE_S).id.partition("/")[0]] += 1
    until(lambda: sum(gap.missed for gap in gaps) == sub.gaps)
    missed = defaultdict[str, int](int)
    for gap in gaps:
        assert gap.publisher == "p"
        missed[gap.publisher_id] += gap.missed
    ids = {publisher.id for publisher in publishers}
    assert missed.keys() == ids and {each[:12] for each in ids} == got.keys()
    assert {missed[each] + got[each[:12]] for each in ids} == {10_000}
    told = set[str]()
    while told != ids:
        event = events.get(timeout=PATIENCE_S)
        told |= {event.peer_id} if event.kind == "gap" else set()
