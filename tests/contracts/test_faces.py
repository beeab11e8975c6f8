"""What PUSH and PULL do with a message, in whatever face they are used. One suite, every face (``faces.py``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest

from meshmsg import AlreadySettled, ConfigurationError, Ledger, NodeClosed, Reject, Retry, WaitTimeout
from tests.contracts.faces import PATIENCE_S, Collected, Face, Gate, acked, bodies_of, take, until

AT_ONCE = Retry(max_attempts=3, backoff=0)


# --- one message --------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G1")
def test_a_message_arrives_with_its_id_body_and_sender(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work"), consumer.pull("work")
    body = {"path": "a.jpg", "sizes": [1, 2.5, None, True], "raw": b"\x00\xff", "at": datetime(2026, 1, 2, tzinfo=UTC)}
    message_id = jobs.send(body)
    message = pull.get(timeout=PATIENCE_S)
    assert message.body == body
    assert message.id == message_id
    assert (message.sender, message.queue, message.attempt, message.redelivered) == ("producer", "work", 1, False)
    assert (message.key, message.priority, dict(message.headers)) == (None, 0, {})
    message.ack()
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger() == Ledger(accepted=1, processed=1)


@pytest.mark.guarantee("G1")
def test_work_waits_for_a_consumer_that_is_not_there_yet(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    ids = [jobs.send(number) for number in range(10)]
    assert jobs.ledger() == Ledger(accepted=10, pending=10, ready=10)
    messages = take(consumer.pull("work"), 10)
    assert [message.id for message in messages] == ids
    assert acked(messages) == list(range(10))
    jobs.flush(timeout=PATIENCE_S)


def test_a_node_consumes_its_own_work(face: Face) -> None:
    node = face.node()
    jobs, pull = node.push("work"), node.pull("work")
    message_id = jobs.send("to myself")
    message = pull.get(timeout=PATIENCE_S)
    assert (message.id, message.body, message.sender) == (message_id, "to myself", "node")
    message.ack()
    jobs.flush(timeout=PATIENCE_S)


def test_a_body_is_encoded_before_send_returns(face: Face) -> None:
    producer, consumer = face.pair()
    body = {"state": "at send"}
    producer.push("work").send(body)
    body["state"] = "changed"
    assert consumer.pull("work").get(timeout=PATIENCE_S).body == {"state": "at send"}


def test_headers_travel_beside_the_body(face: Face) -> None:
    producer, consumer = face.pair()
    producer.push("work").send("body", headers={"trace": "00-ab", "n": 7})
    message = consumer.pull("work").get(timeout=PATIENCE_S)
    assert (message.body, dict(message.headers)) == ("body", {"trace": "00-ab", "n": 7})


# --- many messages ------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G3")
def test_messages_arrive_in_order_under_their_ids(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    sent = {jobs.send(number): number for number in range(300)}
    messages = []
    for message in consumer.pull("work", prefetch=64):
        messages.append((message.id, message.body))
        message.ack()
        if len(messages) == 300:
            break
    assert messages == list(sent.items())
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger() == Ledger(accepted=300, processed=300)


@pytest.mark.guarantee("G3")
def test_all_ways_of_sending_share_one_order_and_one_row_of_ids(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    ids = [jobs.send(0)]
    ids += jobs.send_many([1, 2, 3])
    ids.append(jobs.send_nowait(4))
    ids.append(jobs.send(5, headers={"a": 1}))
    ids += jobs.send_many(iter([6, 7]))
    ids.append(jobs.send(8))
    messages = take(consumer.pull("work"), 9)
    assert bodies_of(messages) == list(range(9))
    assert [message.id for message in messages] == ids
    assert [int(each.rpartition("/")[2]) for each in ids] == list(range(9))


def test_send_many_returns_the_ids(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work", max_pending=1000)
    ids = jobs.send_many(range(600))
    assert len(ids) == 600 and len(set(ids)) == 600
    assert ids[599] == list(ids)[-1]
    assert list(ids[:2]) == [ids[0], ids[1]]
    assert len(jobs.send_many([])) == 0
    total = 0
    for batch in consumer.pull("work").batches():
        with batch:
            total += len(batch)
        if total == 600:
            break
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger() == Ledger(accepted=600, processed=600)


def test_higher_priorities_leave_first(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    for number, priority in enumerate((0, 5, 255, 0, 5)):
        jobs.send(number, priority=priority)
    messages = take(consumer.pull("work"), 5)
    assert [(message.priority, message.body) for message in messages] == [(255, 2), (5, 1), (5, 4), (0, 0), (0, 3)]


@pytest.mark.guarantee("G3")
def test_messages_of_one_key_are_processed_one_after_another(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work", retry=AT_ONCE)
    for number in range(4):
        jobs.send(number, key="same")
    jobs.send("other", key="another")
    pull = consumer.pull("work")
    first, other = take(pull, 2)
    assert (first.body, first.key, other.body) == (0, "same", "other")
    first.nack()
    again = pull.get(timeout=PATIENCE_S)
    assert (again.body, again.attempt) == (0, 2)
    with pytest.raises(WaitTimeout):
        pull.get(timeout=0)  # not one of them may overtake it
    again.ack()
    rest = []
    for message in islice(pull, 3):
        rest.append(message.body)
        message.ack()
    assert rest == [1, 2, 3]


@pytest.mark.guarantee("G1", "G2")
def test_two_consumers_share_the_work(face: Face) -> None:
    producer = face.node("producer")
    done = Collected()
    for name in ("one", "two"):
        node = face.node(name)
        face.handle(node.pull("work", prefetch=8), lambda message, name=name: done.add((name, message.body)))
    producer.wait_for(pull="work", count=2, timeout=PATIENCE_S)
    jobs = producer.push("work")
    jobs.send_many(range(200))
    jobs.flush(timeout=PATIENCE_S)
    assert sorted(body for _, body in done) == list(range(200))
    assert set(Counter(name for name, _ in done)) == {"one", "two"}


# --- verdicts -----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G1", "G4")
def test_a_nacked_message_comes_again_until_its_attempts_are_used_up(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work", retry=AT_ONCE), consumer.pull("work")
    message_id = jobs.send("poison")
    seen = []
    for message in islice(pull, 3):
        seen.append((message.id, message.attempt, message.redelivered))
        message.nack(error=f"failure {message.attempt}")
    assert seen == [(message_id, 1, False), (message_id, 2, True), (message_id, 3, True)]
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger() == Ledger(accepted=1, dead=1, redelivered=2)
    (letter,) = producer.dead_letters("work")
    assert (letter.id, letter.queue, letter.body, letter.reason) == (message_id, "work", "poison", "attempts")
    assert letter.error == "failure 3"
    assert [(each.consumer, each.verdict, each.error) for each in letter.attempts] == [
        ("consumer", "nacked", f"failure {number}") for number in (1, 2, 3)
    ]
    assert letter.accepted_at <= letter.attempts[0].time <= letter.attempts[2].time <= letter.died_at


@pytest.mark.guarantee("G1", "G4")
def test_a_rejected_message_is_a_dead_letter_at_once(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    message_id = jobs.send("bad", headers={"h": 1}, key="k")
    consumer.pull("work").get(timeout=PATIENCE_S).reject("no such image")
    jobs.flush(timeout=PATIENCE_S)
    (letter,) = producer.dead_letters()
    assert (letter.id, letter.reason, letter.error) == (message_id, "rejected", "no such image")
    assert (letter.headers, letter.key) == ({"h": 1}, "k")
    assert [each.verdict for each in letter.attempts] == ["rejected"]


@pytest.mark.guarantee("G4")
def test_a_delayed_nack_waits(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work"), consumer.pull("work")
    jobs.send("later")
    jobs.send("sooner")
    first, second = take(pull, 2)
    first.nack(delay=30)
    second.nack(delay=0)
    again = pull.get(timeout=PATIENCE_S)
    assert (again.body, again.attempt) == ("sooner", 2)
    again.ack()
    until(lambda: jobs.ledger().processed)
    assert jobs.ledger() == Ledger(accepted=2, processed=1, pending=1, scheduled=1, redelivered=2)


def test_a_with_block_acks_nacks_or_rejects(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work", retry=Retry(max_attempts=1)), consumer.pull("work")
    jobs.send_many(["fine", "fails", "rejected", "acked before"])
    fine, fails, rejected, before = take(pull, 4)
    with fine:
        pass
    with pytest.raises(ZeroDivisionError), fails:
        raise ZeroDivisionError("of course")
    with rejected:
        raise Reject("never")
    with before:
        before.ack()
    jobs.flush(timeout=PATIENCE_S)
    letters = {letter.body: (letter.reason, letter.error) for letter in producer.dead_letters()}
    assert letters == {"fails": ("attempts", "ZeroDivisionError: of course"), "rejected": ("rejected", "never")}
    assert jobs.ledger() == Ledger(accepted=4, processed=2, dead=2)


def test_a_second_verdict_is_refused(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    jobs.send("once")
    message = consumer.pull("work").get(timeout=PATIENCE_S)
    message.ack()
    for verdict in (message.ack, message.nack, message.reject):
        with pytest.raises(AlreadySettled, match="exactly one"):
            verdict()
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger() == Ledger(accepted=1, processed=1)


# --- batches ------------------------------------------------------------------------------------------------


def test_batches_hold_what_there_is(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    jobs.send_many(range(250))
    sizes, seen = [], []
    for batch in consumer.pull("work", prefetch=100).batches(max_size=40):
        with batch:
            sizes.append(len(batch))
            seen += batch.bodies
        if len(seen) == 250:
            break
    assert seen == list(range(250))
    assert max(sizes) == 40
    jobs.flush(timeout=PATIENCE_S)


def test_a_batch_fails_as_a_whole_except_for_what_has_its_verdict(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work", retry=Retry(max_attempts=1))
    jobs.send_many(range(4))
    (batch,) = take(consumer.pull("work").batches(max_size=4, max_wait=PATIENCE_S), 1)
    with pytest.raises(ValueError, match="broken"), batch:
        next(iter(batch)).ack()
        raise ValueError("broken")
    jobs.flush(timeout=PATIENCE_S)
    assert sorted(letter.body for letter in producer.dead_letters()) == [1, 2, 3]
    assert jobs.ledger() == Ledger(accepted=4, processed=1, dead=3)


def test_a_batch_does_not_wait_for_what_the_prefetch_keeps_away(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    jobs.send_many(range(5))
    seen = []
    for batch in islice(consumer.pull("work", prefetch=2).batches(max_size=100, max_wait=10 * PATIENCE_S), 2):
        with batch:
            seen.append(batch.bodies)
    assert seen == [[0, 1], [2, 3]]


# --- handlers -----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G1", "G4")
def test_a_handler_acks_by_returning_nacks_by_raising_and_rejects_by_reject(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work", retry=AT_ONCE)
    attempts: Counter[str] = Counter()

    def handler(message: Any) -> None:
        attempts[message.body] += 1
        if message.body == "poison" or (message.body == "shaky" and message.attempt < 3):
            raise ValueError(f"attempt {message.attempt}")
        if message.body == "bad":
            raise Reject("not a job")
        if message.body == "explicit":
            message.ack()

    face.handle(consumer.pull("work"), handler)
    jobs.send_many(["fine", "poison", "shaky", "bad", "explicit"])
    jobs.flush(timeout=PATIENCE_S)
    assert attempts == {"fine": 1, "poison": 3, "shaky": 3, "bad": 1, "explicit": 1}
    letters = {letter.body: (letter.reason, letter.error) for letter in producer.dead_letters()}
    assert letters == {"poison": ("attempts", "ValueError: attempt 3"), "bad": ("rejected", "not a job")}
    assert jobs.ledger() == Ledger(accepted=5, processed=3, dead=2, redelivered=4)


def test_concurrency_is_how_many_run_at_once(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    started, gate = Collected(), Gate()

    def handler(message: Any) -> Iterator[Gate]:
        started.add(message.body)
        yield gate

    face.handle(consumer.pull("work", concurrency=3), handler)
    jobs.send_many(range(7))
    assert sorted(started.wait(3)) == [0, 1, 2]
    until(lambda: jobs.ledger().in_flight == 7)
    assert len(started) == 3
    gate.open()
    jobs.flush(timeout=PATIENCE_S)
    assert sorted(started) == list(range(7))


@pytest.mark.guarantee("G4")
def test_a_handler_past_its_timeout_is_nacked(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work", retry=Retry(max_attempts=2, backoff=0))
    attempts, gate = Collected(), Gate()

    def handler(message: Any) -> Iterator[Gate]:
        attempts.add(message.attempt)
        yield gate

    face.handle(consumer.pull("work", timeout=0.05, concurrency=2), handler)
    jobs.send("slow")
    jobs.flush(timeout=PATIENCE_S)
    gate.open()
    assert list(attempts) == [1, 2]
    (letter,) = producer.dead_letters()
    assert (letter.reason, letter.error) == ("attempts", "the handler ran longer than its timeout of 0.05 s")


def test_extend_starts_the_timeout_anew(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work", retry=Retry(max_attempts=1))
    gates = [Gate() for _ in range(8)]
    steps = Collected()

    def handler(message: Any) -> Iterator[Gate]:
        for gate in gates:
            message.extend()
            steps.add(message.attempt)
            yield gate

    face.handle(consumer.pull("work", timeout=0.4), handler)
    jobs.send("long")
    pause = Gate()
    for number, gate in enumerate(gates, 1):
        steps.wait(number)
        with pytest.raises(TimeoutError):
            pause._opened.result(0.1)  # twice the timeout in all, a quarter of it each
        gate.open()
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger() == Ledger(accepted=1, processed=1)


def test_a_pull_has_one_handler_or_is_iterated(face: Face) -> None:
    node = face.node()
    pull = node.pull("work")
    face.handle(pull, lambda message: None)
    with pytest.raises(ConfigurationError, match="already has a handler"):
        face.handle(pull, lambda message: None)
    for use in (lambda: take(pull, 1), lambda: take(pull.batches(), 1), lambda: pull.get(timeout=0)):
        with pytest.raises(ConfigurationError, match="has a handler"):
            use()
    with pytest.raises(ConfigurationError, match="not callable"):
        node.pull("other")(7)


def test_sockets_may_be_opened_before_the_start(face: Face) -> None:
    node = face.make("early")
    jobs, done = node.push("work"), Collected()
    face.handle(node.pull("work"), lambda message: done.add(message.body))
    with pytest.raises(NodeClosed, match="not started"):
        jobs.send("too early")
    with node:
        jobs.send("in time")
        assert done.wait(1) == ["in time"]
