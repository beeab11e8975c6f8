"""Looking around, leaving, and making mistakes, in whatever face; and bare ZeroMQ."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Any

import pytest

from meshmsg import (
    BodyTooLarge,
    ConfigurationError,
    EncodeError,
    Ledger,
    NameClash,
    NodeClosed,
    Retry,
    UnknownOption,
    WaitTimeout,
)
from tests.contracts.faces import PATIENCE_S, Collected, Face, Gate, acked, reject_all, take, until

# --- looking around -----------------------------------------------------------------------------------------


def test_wait_for_and_peers(face: Face) -> None:
    producer, consumer = face.pair()
    with pytest.raises(WaitTimeout, match=r"found 0 of 1 for pull='work' within 0.01 s; no node pulls 'work'"):
        producer.wait_for(pull="work", timeout=0.01)
    consumer.pull("work")
    consumer.push("more")
    producer.wait_for(pull="work", timeout=PATIENCE_S)
    producer.wait_for(push="more", timeout=PATIENCE_S)
    producer.wait_for(pull="work", count=0, timeout=PATIENCE_S)
    (peer,) = producer.peers()
    assert (peer.name, peer.id, peer.state, peer.endpoints) == ("consumer", consumer.id, "alive", consumer.endpoints)
    assert (peer.pulls, peer.pushes) == (("work",), ("more",))
    with pytest.raises(ConfigurationError, match="exactly one of"):
        producer.wait_for(pull="work", push="work")
    with pytest.raises(ConfigurationError, match="exactly one of"):
        producer.wait_for()
    with pytest.raises(WaitTimeout, match="1 peers seen"):
        producer.wait_for(peer="consumer", count=2, timeout=0.01)


def test_events_tell_of_peers_and_dead_letters(face: Face) -> None:
    producer = face.node("producer")
    events = producer.events()
    with pytest.raises(WaitTimeout):
        events.get(timeout=0.01)
    consumer = face.node("consumer")
    event = events.get(timeout=PATIENCE_S)
    assert (event.kind, event.peer, event.peer_id) == ("peer.up", "consumer", consumer.id)
    reject_all(face, consumer)
    message_id = producer.push("work").send("bad")
    event = events.get(timeout=PATIENCE_S)
    assert (event.kind, event.queue) == ("dead_letter", "work")
    assert message_id in event.text and "rejected" in event.text
    consumer.close()
    assert [event.kind for event in islice(events, 1)] == ["peer.down"]
    reject_all(face, producer, "own")
    producer.push("own").send("unread")
    producer.push("own").flush(timeout=PATIENCE_S)
    producer.close()
    assert [event.kind for event in events] == ["dead_letter"]
    with pytest.raises(NodeClosed, match="closed"):
        events.get()


def test_nodes_find_each_other_through_mdns(face: Face) -> None:
    producer = face.node("producer", mdns=True, seeds=())
    consumer = face.node("consumer", mdns=True, seeds=())
    face.handle(consumer.pull("work"), lambda message: None)
    assert producer.push("work").deliver("hello", timeout=PATIENCE_S)


# --- leaving ------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G10")
def test_close_returns_the_ledger_of_what_is_left(face: Face) -> None:
    node = face.node()
    jobs = node.push("nobody")
    jobs.send_many([1, 2, 3])
    books = {"nobody": Ledger(accepted=3, pending=3, ready=3)}
    assert node.close(drain=0.01) == books
    assert node.close() == books
    assert node.ledger() == books
    assert jobs.ledger() == books["nobody"]


@pytest.mark.guarantee("G10")
def test_close_drains(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, done = producer.push("work"), Collected()
    face.handle(consumer.pull("work", prefetch=2), lambda message: done.add(message.body))
    jobs.send_many(range(50))
    assert producer.close(drain=PATIENCE_S) == {"work": Ledger(accepted=50, processed=50)}
    assert len(done) == 50


@pytest.mark.guarantee("G1", "G4", "G10")
def test_a_consumer_that_leaves_finishes_what_runs_and_returns_the_rest(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, started, gate = producer.push("work"), Collected(), Gate()

    def handler(message: Any) -> Iterator[Gate]:
        started.add(message.body)
        yield gate

    face.handle(consumer.pull("work", concurrency=2), handler)
    jobs.send_many(range(6))
    started.wait(2)
    until(lambda: jobs.ledger().in_flight == 6)
    events = producer.events()
    gate.open()
    consumer.close(drain=PATIENCE_S)
    assert events.get(timeout=PATIENCE_S).kind == "peer.down"
    books = jobs.ledger()
    assert (books.processed, books.ready, books.dead) == (len(started), 6 - len(started), 0)
    assert books.balanced


@pytest.mark.guarantee("G4", "G10")
def test_a_handler_that_does_not_end_costs_its_message_an_attempt(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, started, gate = producer.push("work", retry=Retry(max_attempts=1)), Collected(), Gate()

    def handler(message: Any) -> Iterator[Gate]:
        started.add(message.body)
        yield gate

    face.handle(consumer.pull("work"), handler)
    jobs.send("stuck")
    started.wait(1)
    consumer.close(drain=0.01)
    jobs.flush(timeout=PATIENCE_S)
    gate.open()
    (letter,) = producer.dead_letters()
    assert (letter.reason, letter.error) == ("attempts", "the consumer was closed while the handler ran")


def test_a_closed_node_says_so(face: Face) -> None:
    node = face.node()
    jobs, pull = node.push("work"), node.pull("pulled")
    node.close()
    uses = [
        lambda: jobs.send(1),
        lambda: jobs.send_nowait(1),
        lambda: jobs.send_many([1]),
        lambda: jobs.deliver(1),
        lambda: jobs.flush(),
        lambda: node.push("work"),
        lambda: node.pull("more"),
        lambda: node.wait_for(pull="work"),
        lambda: node.redrive(),
        lambda: take(pull, 1),
        lambda: take(pull.batches(), 1),
        lambda: pull.get(),
        lambda: node.start(),
    ]
    for use in uses:
        with pytest.raises(NodeClosed, match="'node' is closed: make a new Node"):
            use()
    pull.close()
    assert (node.peers(), node.dead_letters(), jobs.ledger()) == ([], [], Ledger())


def test_a_node_that_was_never_started_can_be_closed(face: Face) -> None:
    node = face.make()
    node.push("work")
    assert node.close() == {"work": Ledger()}
    with pytest.raises(NodeClosed):
        node.start()


def test_a_node_is_started_once(face: Face) -> None:
    node = face.node()
    with pytest.raises(NodeClosed, match="started already"):
        node.start()


# --- mistakes -----------------------------------------------------------------------------------------------


def test_unknown_options_name_the_closest(face: Face) -> None:
    node = face.make()
    with pytest.raises(UnknownOption, match=r"push\('work'\) has no option 'max_pendin': did you mean 'max_pending'\?"):
        node.push("work", max_pendin=3)
    with pytest.raises(UnknownOption, match="did you mean 'prefetch'"):
        node.pull("work", prefetsh=3)
    with pytest.raises(TypeError, match="it has prefetch, concurrency"):
        node.pull("work", xyz=3)


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("push", {"max_pending": 0}, "takes 1 or more"),
        ("push", {"max_pending": 2.5}, "takes a whole number"),
        ("push", {"retry": 3}, "takes a Retry"),
        ("push", {"balance": "fair"}, "takes one of 'least_outstanding'"),
        ("push", {"ttl": -1}, "takes 0 or more"),
        ("push", {"dead_letter_to": "a b"}, "without white space"),
        ("push", {"dead_letter_to": "work"}, "its own queue"),
        ("push", {"on_dead_letter": 7}, "on_dead_letter"),
        ("pull", {"prefetch": 0}, "takes 1 or more"),
        ("pull", {"concurrency": True}, "takes a whole number"),
        ("pull", {"timeout": 0}, "takes more than 0"),
        ("pull", {"timeout": float("nan")}, "takes a finite number"),
    ],
)
def test_options_that_cannot_work(face: Face, kind: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        getattr(face.make(), kind)("work", **options)


@pytest.mark.parametrize("name", ["", "a b", "a\n", 7, None, b"work", "x" * 201])
def test_names_that_cannot_be(face: Face, name: Any) -> None:
    node = face.make()
    for use in (node.push, node.pull):
        with pytest.raises(ConfigurationError, match="takes"):
            use(name)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"key": 7}, r"takes a str, not int 7"),
        ({"priority": -1}, "takes 0 or more"),
        ({"priority": 256}, "takes 0 to 255"),
        ({"priority": "high"}, "takes a whole number"),
        ({"ttl": "1"}, "takes a number"),
        ({"delay": -0.1}, "takes 0 or more"),
        ({"headers": {1: 2}}, "a dict with str keys"),
        ({"headers": "trace"}, "a dict with str keys"),
    ],
)
def test_wrong_types_are_refused_at_send(face: Face, options: dict[str, Any], why: str) -> None:
    jobs = face.node().push("work")
    for send in (jobs.send, jobs.send_nowait, jobs.deliver):
        with pytest.raises(ConfigurationError, match=why):
            send("body", **options)
    assert jobs.ledger() == Ledger()


def test_a_queue_is_opened_once(face: Face) -> None:
    node = face.make()
    jobs = node.push("work", max_pending=5)
    jobs.on_dead_letter(lambda letter: None)
    assert getattr(node.push("work"), "_target", None) is getattr(jobs, "_target", None)
    node.push("work", max_pending=5)
    with pytest.raises(NameClash, match="already pushes to 'work' with other options"):
        node.push("work", max_pending=6)
    node.pull("work")
    with pytest.raises(NameClash, match="already pulls 'work'"):
        node.pull("work")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"a": [1, {"b": object()}]}, r"body\['a'\]\[1\]\['b'\]"),
        ([2**64], r"body\[0\]"),
        ({"when": datetime(2026, 1, 1)}, r"body\['when'\]"),
        ("\ud800", "body"),
        (lambda: None, "body"),
    ],
)
def test_a_body_that_cannot_be_sent_fails_at_send(face: Face, body: Any, path: str) -> None:
    node = face.node()
    jobs = node.push("work")
    for send in (jobs.send, jobs.send_nowait, jobs.deliver):
        with pytest.raises(EncodeError, match=f"^{path} cannot be sent: "):
            send(body)
    with pytest.raises(EncodeError, match=rf"^bodies\[2\]{path.removeprefix('body')} cannot be sent: "):
        jobs.send_many([1, 2, body])
    with pytest.raises(EncodeError, match=r"^headers\['h'\]"):
        jobs.send("fine", headers={"h": body})
    assert jobs.ledger() == Ledger()


def test_a_body_that_is_too_large_fails_at_send(face: Face) -> None:
    node = face.node(max_message_bytes=2048)
    jobs = node.push("work")
    for send in (jobs.send, jobs.send_nowait, jobs.deliver, lambda body: jobs.send_many([1, body])):
        with pytest.raises(BodyTooLarge, match="a body of 2051 bytes for 'work'; the limit is 2048"):
            send(b"x" * 2048)
    assert jobs.ledger() == Ledger()


# --- bare ZeroMQ --------------------------------------------------------------------------------------------


def test_unreliable_queues_are_plain_zeromq(face: Face) -> None:
    producer, consumer = face.pair()
    pull = consumer.pull("fast", reliable=False)
    jobs = producer.push("fast", reliable=False)
    producer.wait_for(pull="fast", timeout=PATIENCE_S)
    jobs.send({"n": 0})
    assert jobs.send_many([{"n": 1}, {"n": 2}]) == 2
    messages = take(pull, 3)
    assert acked(messages) == [{"n": 0}, {"n": 1}, {"n": 2}]
    jobs.send_nowait("again")
    assert pull.get(timeout=PATIENCE_S).body == "again"
    assert producer.ledger() == {}
