"""``node.counters()``: what is too frequent or too dull for an event each time, in every face."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.contracts.faces import PATIENCE_S, Face, bodies_of, reject_all, take, until

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.guarantee("G6")
def test_what_was_published_and_sent_again_is_counted(face: Face) -> None:
    publisher, subscriber = face.pair()
    out = publisher.pub("t.*", history=100)
    out.send_many(range(5), topic="t.a")
    until(lambda: publisher.counters()["published_messages"] == 5)
    sub = subscriber.sub("t.*", replay="history")
    assert bodies_of(take(sub, 5)) == [0, 1, 2, 3, 4]
    counters = publisher.counters()
    assert (counters["published_messages"], counters["repaired_messages"], counters["late_repairs"]) == (5, 5, 0)
    # Nothing new was lost, so nothing came twice.
    assert subscriber.counters()["repeated_messages"] == 0


def test_what_only_a_filter_matched_is_counted(face: Face) -> None:
    publisher, subscriber = face.pair()
    out, sub = publisher.pub("t.**"), subscriber.sub("t.*")
    publisher.wait_for(sub="t.a", timeout=PATIENCE_S)
    out.send_many(range(3), topic="t.a.b")  # ZeroMQ compares the first letters, "t."
    out.send("mine", topic="t.a")
    assert sub.get(timeout=PATIENCE_S).body == "mine"
    assert subscriber.counters()["unwanted_messages"] == 3


def test_dead_letters_that_fell_out_are_counted(face: Face) -> None:
    producer, consumer = face.node("producer", max_dead_letters=2), face.node("consumer")
    reject_all(face, consumer)
    producer.push("work").send_many(range(5))
    assert until(lambda: producer.counters()["dropped_dead_letters"]) <= 3
    until(lambda: producer.counters()["dropped_dead_letters"] == 3)
    assert len(producer.dead_letters()) == 2


def test_what_bare_sockets_lose_here_is_counted(face: Face) -> None:
    publisher, subscriber = face.pair()
    out = publisher.pub("u", reliable=False)
    subs = [subscriber.sub("u", reliable=False, buffer=room) for room in (2, 4)]
    publisher.wait_for(sub="u", timeout=PATIENCE_S)
    out.send_many(range(5))
    until(lambda: subscriber.counters()["dropped_bare_messages"] == 4)
    subs[0].close()
    pull = subscriber.pull("work", reliable=False, type=int)
    publisher.push("work", reliable=False).send_many(["no number", 1])
    assert take(pull, 1)[0].body == 1
    counters = subscriber.counters()
    assert (counters["dropped_bare_messages"], counters["refused_bare_messages"]) == (4, 1)
    assert not publisher.counters()["dropped_bare_messages"]


def test_every_counter_is_documented(face: Face) -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    table = text.partition("**Counters.**")[2].partition("\n\n**")[0]
    documented = re.findall(r"`(\w+)`", "".join(line.split(" | ")[0] for line in table.splitlines() if line[:1] == "|"))
    assert sorted(documented) == sorted(face.node().counters())
