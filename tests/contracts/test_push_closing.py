"""Closing a push, in whatever face: nothing new gets in, what was accepted finds its end; it can be opened again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshmsg import (
    ConfigurationError,
    DeadLetter,
    DeadLettered,
    EncodeError,
    Ledger,
    NodeClosed,
    OutboxFull,
    Retry,
    WaitTimeout,
)
from tests.contracts.faces import PATIENCE_S, Collected, Face, take, until


def in_thread(function: Callable[[], Any]) -> Collected:
    """What a function returns or raises in a thread of its own."""
    results = Collected()

    def run() -> None:
        try:
            results.add(function())
        except Exception as error:
            results.add(error)

    threading.Thread(target=run, daemon=True).start()
    return results


def test_a_closed_push_sends_no_more_and_says_so(face: Face) -> None:
    node = face.node()
    jobs = node.push("work")
    jobs.send(1)
    jobs.close()
    jobs.close()
    sends: list[Callable[[], Any]] = [
        lambda: jobs.send(2),
        lambda: jobs.send(2, key="k"),
        lambda: jobs.send(b"x" * 5000),
        lambda: jobs.send_nowait(2),
        lambda: jobs.send_many([2, 3]),
        lambda: jobs.send_many(iter([2, 3])),
        lambda: jobs.deliver(2),
    ]
    for send in sends:
        with pytest.raises(NodeClosed, match=r"push\('work'\) was closed: open another one"):
            send()
    assert jobs.ledger() == Ledger(accepted=1, pending=1, ready=1)


@pytest.mark.guarantee("G1")
def test_what_was_accepted_is_processed_and_the_queue_is_forgotten(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    ids = list(jobs.send_many(range(20)))
    jobs.close()
    messages = take(consumer.pull("work"), 20)
    assert [message.id for message in messages] == ids
    for message in messages:
        message.ack()
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger() == Ledger(accepted=20, processed=20)
    until(lambda: not producer.ledger())
    until(lambda: not consumer.peers()[0].offers.get("push"))


@pytest.mark.guarantee("G1")
def test_who_waits_for_a_message_waits_on(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work", retry=Retry(max_attempts=1))
    delivered, dead = in_thread(lambda: jobs.deliver("good")), in_thread(lambda: jobs.deliver("bad"))
    until(lambda: jobs.ledger().pending == 2)
    jobs.close()
    with pytest.raises(WaitTimeout):
        jobs.flush(timeout=0.01)
    flushed = in_thread(lambda: jobs.flush(timeout=PATIENCE_S))

    def handle(message: Any) -> None:
        if message.body == "bad":
            raise ValueError("no good")

    face.handle(consumer.pull("work"), handle)
    assert delivered.wait(1)[0].rpartition("/")[0].endswith("/work")
    assert isinstance(dead.wait(1)[0], DeadLettered)
    assert flushed.wait(1) == [None]


@pytest.mark.guarantee("G1")
def test_opened_again_it_is_another_push_of_the_same_messages(face: Face) -> None:
    producer, consumer = face.pair()
    first = producer.push("work", max_pending=2)
    assert producer.push("work") is not None
    waiting = in_thread(lambda: first.deliver(0))
    until(lambda: first.ledger().pending == 1)
    first.close()
    second = producer.push("work", max_pending=3)
    assert second.options.max_pending == 3
    for number in (1, 2):
        second.send_nowait(number)
    with pytest.raises(OutboxFull):
        second.send_nowait(3)
    with pytest.raises(NodeClosed, match="was closed: open another one"):
        first.send(4)
    messages = take(consumer.pull("work"), 3)
    assert [message.body for message in messages] == [0, 1, 2]
    for message in messages:
        message.ack()
    second.flush(timeout=PATIENCE_S)
    assert waiting.wait(1) == [messages[0].id]
    assert second.ledger() == Ledger(accepted=3, processed=3)
    second.send_many(range(3))  # and the first one stays closed, whatever room there is
    with pytest.raises(NodeClosed, match="was closed: open another one"):
        first.send(4)


def test_no_id_is_used_twice_however_often_a_queue_is_opened(face: Face) -> None:
    producer, consumer = face.pair()
    messages, ids = consumer.pull("work"), set[str]()
    for number in range(5):
        jobs = producer.push("work")
        ids.add(jobs.send(number))
        message = messages.get(timeout=PATIENCE_S)
        assert message.body == number
        message.ack()
        jobs.flush(timeout=PATIENCE_S)
        jobs.close()
        until(lambda: not producer.ledger())
    assert len(ids) == 5


@pytest.mark.guarantee("G5")
def test_a_send_that_waits_for_room_is_told(face: Face) -> None:
    node = face.node()
    jobs = node.push("work", max_pending=1)
    jobs.send(1)
    sending = in_thread(lambda: jobs.send(2))
    many = in_thread(lambda: jobs.send_many([3, 4]))
    with pytest.raises(WaitTimeout):
        node.wait_for(pull="nothing", timeout=0.02)  # by now they most likely wait; they are told in any case
    jobs.close()
    for refused in (sending, many):
        (error,) = refused.wait(1)
        assert isinstance(error, NodeClosed) and "push('work') was closed" in str(error)
    assert jobs.ledger() == Ledger(accepted=1, pending=1, ready=1)


def test_a_closed_push_hears_of_its_dead_letters_which_can_be_redriven(face: Face) -> None:
    producer, consumer = face.pair()
    letters, good = Collected(), threading.Event()
    jobs = producer.push("work", retry=Retry(max_attempts=1), on_dead_letter=letters.add)
    message_id = jobs.send("x")
    jobs.close()
    processed = Collected()

    def handle(message: Any) -> None:
        if not good.is_set():
            raise ValueError("not yet")
        processed.add(message.id)

    face.handle(consumer.pull("work"), handle)
    (letter,) = letters.wait(1)
    assert isinstance(letter, DeadLetter) and letter.id == message_id
    until(lambda: not producer.ledger())
    good.set()
    assert producer.redrive(queue="work") == [message_id]
    assert processed.wait(1) == [message_id]
    until(lambda: not producer.ledger())


def test_it_can_be_closed_before_the_start_and_after_the_end(face: Face) -> None:
    node = face.make()
    early = node.push("early")
    early.close()
    node.start()
    try:
        late = node.push("late")
        assert node.push("early").send(1).endswith("/early/0")
        with pytest.raises(NodeClosed):
            early.send(1)
    finally:
        books = node.close(drain=0)
    late.close()
    assert books["early"].pending == 1 and "late" in books


def test_a_node_with_closed_queues_drains_them_too(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    jobs.send_many(range(50))
    jobs.close()
    face.handle(consumer.pull("work"), lambda message: None)
    books = producer.close(drain=PATIENCE_S)
    assert not books or books["work"].pending == 0


def test_who_waits_for_a_message_of_a_closed_push_hears_of_the_end_of_the_node(face: Face) -> None:
    node = face.node()
    jobs = node.push("work")
    waiting = in_thread(lambda: jobs.deliver(1))
    until(lambda: jobs.ledger().pending == 1)
    jobs.close()
    node.close(drain=0)
    assert isinstance(waiting.wait(1)[0], NodeClosed)


def test_another_kind_of_push_may_follow(face: Face) -> None:
    node = face.node()
    jobs = node.push("work")
    jobs.send(1)
    jobs.close()
    node.push("work", reliable=False)


def test_a_bare_push_can_be_closed_and_its_queue_opened_again(face: Face) -> None:
    node = face.make()
    early = node.push("early", reliable=False)
    early.close()
    with node:
        jobs, pull = node.push("work", reliable=False), node.pull("work", reliable=False)
        jobs.send(1)
        assert pull.get(timeout=PATIENCE_S).body == 1
        for closed, queue in ((early, "early"), (jobs, "work")):
            closed.close()
            sends = (lambda: closed.send(2), lambda: closed.send_nowait(2), lambda: closed.send_many([2, 3]))  # noqa: B023
            for send in sends:
                with pytest.raises(NodeClosed, match=f"this push of '{queue}' was closed: open another one"):
                    send()
        late = node.push("work", reliable=False)
        late.send(4)
        assert pull.get(timeout=PATIENCE_S).body == 4
        late.close()
        node.push("work").close()  # of another kind
        late = node.push("work", reliable=False)
    late.close()
    with pytest.raises(NodeClosed):
        late.send(5)


@pytest.mark.guarantee("G11")
def test_a_node_that_has_too_many_names_opens_no_more_and_goes_on(face: Face) -> None:
    """One frame holds all that a node offers: were it too large, no peer would take it."""
    producer, consumer = face.pair()
    inner = getattr(producer, "_target", None) or producer._node
    pull = consumer.pull("work")
    for size in (399, 20):
        number = 0
        with pytest.raises(ConfigurationError, match=r"names open .* close some"):
            while True:
                inner._engine.offer("note", f"{number:06d}".rjust(size, "x"), {})
                number += 1
    openers: list[Callable[[str], Any]] = [
        lambda name: producer.push(name),
        lambda name: producer.pull(name),
        lambda name: producer.pull(name, reliable=False),
        lambda name: producer.sub(name),
        lambda name: producer.sub(name, reliable=False),
        lambda name: producer.sub(name, group="g"),
        lambda name: producer.pub(name),
        lambda name: producer.pub(name, reliable=False),
        lambda name: producer.router(name),
    ]
    for opening in openers:
        with pytest.raises(ConfigurationError, match="names open"):
            opening("n" * 200)
    for each in range(4):
        inner._engine.withdraw("note", f"{each:06d}".rjust(399, "x"))
    with pytest.raises(ConfigurationError, match=r"will 'small' .* names open"):
        producer.pub("small", will="w" * 4000)
    # Nothing was left half open: all of them find their names free.
    producer.push("n" * 200)
    producer.pull("n" * 200).close()
    producer.pub("n" * 200).close()
    producer.pub("small", retain=True).close()
    producer.router("n" * 200).close()
    producer.sub("n" * 200, reliable=False).close()
    assert not inner._engine.identity.offers.get("bare_sub")
    producer.push("work").send("still there")
    assert pull.get(timeout=PATIENCE_S).body == "still there"
    assert producer.counters()["refused_frames"] == 0


@pytest.mark.guarantee("G1")
@pytest.mark.parametrize("what", ["push", "node"])
def test_a_send_many_that_a_close_ends_says_what_was_accepted(face: Face, what: str) -> None:
    node = face.node()
    jobs = node.push("work", max_pending=10)
    results = in_thread(lambda: jobs.send_many(range(50)))
    until(lambda: jobs.ledger().accepted == 10)
    (jobs if what == "push" else node).close()
    (error,) = results.wait(1)
    assert isinstance(error, NodeClosed)
    assert list(error.accepted) == [f"{node.id[:12]}/work/{number}" for number in range(10)]
    assert node.ledger()["work"].accepted == 10
    assert error.__notes__ == ["10 messages of this send_many were accepted before: the ids are in `accepted`"]
    with pytest.raises(NodeClosed) as late:
        jobs.send_many(range(2))
    assert list(late.value.accepted) == []


@pytest.mark.guarantee("G1")
def test_a_send_many_that_its_iterator_ends_says_what_was_accepted(face: Face) -> None:
    def bodies(last: Callable[[], Any]) -> Iterator[Any]:
        yield from range(3000)
        yield last()

    def fail() -> None:
        raise KeyError("the iterator's own")

    jobs = face.node().push("work")
    kinds: list[tuple[type[Exception], Callable[[], Any]]] = [(EncodeError, object), (KeyError, fail)]
    for kind, last in kinds:
        before = jobs.ledger().accepted
        with pytest.raises(kind) as caught:
            jobs.send_many(bodies(last))
        accepted: Any = getattr(caught.value, "accepted")  # noqa: B009 -- any exception gets one
        assert 0 < len(accepted) == jobs.ledger().accepted - before


def test_a_queue_without_dead_letters_has_none_to_redrive(face: Face) -> None:
    node = face.node()
    assert node.redrive(queue="unknown") == []
