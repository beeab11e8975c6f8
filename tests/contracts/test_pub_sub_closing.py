"""What becomes of received messages when a subscription is closed, in whatever face it is used."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contracts.faces import PATIENCE_S, Collected, Face, Gate, until

COUNT = 1000  # more than threads are lent ahead


def connect(face: Face, **options: Any) -> tuple[Any, Any, Any]:
    """A publisher's socket, another node's subscription to it, and that node."""
    publisher, subscriber = face.pair()
    out, sub = publisher.pub("numbers"), subscriber.sub("numbers", **options)
    publisher.wait_for(sub="numbers", timeout=PATIENCE_S)
    return out, sub, subscriber


@pytest.mark.guarantee("G10")
@pytest.mark.parametrize("whole_node", [False, True])
def test_with_a_drain_handlers_go_on_with_what_has_come(face: Face, whole_node: bool) -> None:
    out, sub, node = connect(face, concurrency=2)
    handled, gate = Collected(), Gate()

    def handle(message: Any) -> Any:
        handled.add(message.body)
        return [gate]

    face.handle(sub, handle)
    out.send_many(range(COUNT))
    handled.wait(1)
    until(lambda: not out.lag())
    gate.open()
    (node if whole_node else sub).close(drain=PATIENCE_S)
    assert sorted(handled) == list(range(COUNT))
    assert sub.discarded == 0


@pytest.mark.guarantee("G10")
def test_what_nobody_takes_before_the_close_is_told(face: Face) -> None:
    out, sub, node = connect(face)
    events = node.events()
    out.send_many(range(COUNT))
    assert sub.get(timeout=PATIENCE_S).body == 0
    until(lambda: not out.lag())
    sub.close()
    assert sub.discarded == COUNT - 1
    event = until(lambda: events.get(timeout=PATIENCE_S))
    while event.kind != "sub.discarded":
        event = events.get(timeout=PATIENCE_S)
    assert (event.queue, event.text) == ("numbers", "999 messages had come, and were not taken before the close")


@pytest.mark.guarantee("G10")
def test_a_drain_that_is_too_short_ends_in_time_and_tells_what_is_left(face: Face) -> None:
    out, sub, _ = connect(face)
    handled, gate = Collected(), Gate()

    def handle(message: Any) -> Any:
        handled.add(message.body)
        return [gate]

    face.handle(sub, handle)
    out.send_many(range(COUNT))
    handled.wait(1)
    until(lambda: not out.lag())
    sub.close(drain=0.05)
    gate.open()
    assert (list(handled), sub.discarded) == ([0], COUNT - 1)


@pytest.mark.guarantee("G6")
def test_what_a_condition_passes_over_is_neither_waiting_nor_discarded_nor_held_up(face: Face) -> None:
    publisher, subscriber = face.pair()
    events = subscriber.events()
    out = publisher.pub("w", block=True, window=10)
    sub = subscriber.sub("w", where={"k": 1}, buffer=5)
    publisher.wait_for(sub="w", timeout=PATIENCE_S)
    for number in range(1000):  # more than the buffer and the window, and nobody takes any
        out.send(number, headers={"k": 0})
    for number in range(2):
        out.send(number, headers={"k": 1})
    until(lambda: sub.unsettled == 2 and not out.lag())
    sub.close()
    assert sub.discarded == 2
    events.close()
    (text,) = (event.text for event in events if event.kind == "sub.discarded")
    assert text.startswith("2 messages")
