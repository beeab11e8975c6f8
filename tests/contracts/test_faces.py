"""What PUSH and PULL do, in whatever face they are used. One suite, every face (see ``faces.py``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest

from meshmsg import (
    AlreadySettled,
    BodyTooLarge,
    ConfigurationError,
    DeadLettered,
    EncodeError,
    Ledger,
    NameClash,
    NodeClosed,
    OutboxFull,
    Reject,
    Retry,
    UnknownOption,
    WaitTimeout,
)
from tests.contracts.faces import FACES, PATIENCE_S, Collected, Face, Gate, until

AT_ONCE = Retry(max_attempts=3, backoff=0)


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    face = Face(request.param)
    yield face
    face.close()


def take(source: Any, count: int) -> list[Any]:
    """The first messages of an iteration, which goes on afterwards."""
    return list(islice(source, count))


def bodies_of(messages: list[Any]) -> list[Any]:
    return [message.body for message in messages]


def acked(messages: list[Any]) -> list[Any]:
    for message in messages:
        message.ack()
    return bodies_of(messages)


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


# --- dead letters -------------------------------------------------------------------------------------------


def reject_all(face: Face, node: Any, queue: str = "work") -> None:
    def handler(message: Any) -> None:
        raise Reject(f"no {message.body}")

    face.handle(node.pull(queue), handler)


@pytest.mark.guarantee("G1")
def test_redrive_sends_dead_letters_again_under_their_ids(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, done, mood = producer.push("work"), Collected(), {"reject": True}

    def handler(message: Any) -> None:
        if mood["reject"]:
            raise Reject("not today")
        done.add((message.id, message.body, message.attempt, message.redelivered))

    face.handle(consumer.pull("work"), handler)
    ids = list(jobs.send_many(range(4)))
    jobs.flush(timeout=PATIENCE_S)
    assert [letter.id for letter in producer.dead_letters()] == ids
    mood["reject"] = False
    assert producer.redrive(ids[2]) == [ids[2]]
    jobs.flush(timeout=PATIENCE_S)
    assert list(done) == [(ids[2], 2, 1, True)]
    assert producer.redrive(ids[2]) == []
    assert producer.redrive(queue="another") == []
    assert producer.redrive(queue="work") == [ids[0], ids[1], ids[3]]
    jobs.flush(timeout=PATIENCE_S)
    assert sorted(body for _, body, *_ in done) == [0, 1, 2, 3]
    assert producer.dead_letters() == []
    assert jobs.ledger() == Ledger(accepted=4, processed=4)


def test_on_dead_letter_is_called(face: Face) -> None:
    producer, consumer = face.pair()
    first, second = Collected(), Collected()
    jobs = producer.push("work", on_dead_letter=first.add)
    jobs.on_dead_letter(second.add)
    reject_all(face, consumer)
    message_id = jobs.send("bad")
    for letters in (first, second):
        (letter,) = letters.wait(1)
        assert (letter.id, letter.reason, letter.error) == (message_id, "rejected", "no bad")


def test_a_hook_that_fails_costs_nothing_else(face: Face) -> None:
    producer, consumer = face.pair()
    letters = Collected()

    def fail(letter: Any) -> None:
        raise RuntimeError("a bad hook")

    jobs = producer.push("work", on_dead_letter=fail)
    producer.push("work", on_dead_letter=letters.add)
    reject_all(face, consumer)
    jobs.send("bad")
    jobs.flush(timeout=PATIENCE_S)
    assert [letter.body for letter in letters.wait(1)] == ["bad"]


@pytest.mark.guarantee("G1")
def test_dead_letters_may_move_to_a_queue_of_their_own(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work", dead_letter_to="graveyard")
    reject_all(face, consumer)
    message_id = jobs.send("bad", headers={"trace": 1})
    with consumer.pull("graveyard").get(timeout=PATIENCE_S) as message:
        pass
    assert message.body == "bad"
    told = message.headers["dead-letter"]
    assert (told["id"], told["queue"], told["reason"], told["error"]) == (message_id, "work", "rejected", "no bad")
    assert message.headers["trace"] == 1
    producer.push("graveyard").flush(timeout=PATIENCE_S)
    assert producer.dead_letters() == []
    assert producer.ledger() == {
        "work": Ledger(accepted=1, dead=1),
        "graveyard": Ledger(accepted=1, processed=1),
    }


@pytest.mark.guarantee("G1", "G3")
def test_sending_to_the_queue_of_dead_letters_keeps_ids_apart(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work", dead_letter_to="graveyard")
    graveyard = producer.push("graveyard")
    reject_all(face, consumer)
    ids = []
    for number in range(20):
        jobs.send(f"bad {number}")
        ids.append(graveyard.send(number))
    jobs.flush(timeout=PATIENCE_S)
    messages = take(consumer.pull("graveyard"), 40)
    sent = {message.id: message.body for message in messages}
    assert len(sent) == 40
    assert [sent[each] for each in ids] == list(range(20))
    acked(messages)
    graveyard.flush(timeout=PATIENCE_S)
    assert graveyard.ledger() == Ledger(accepted=40, processed=40)


@pytest.mark.guarantee("G1")
@pytest.mark.parametrize("where", ["message", "queue"])
def test_a_message_without_consumer_expires(face: Face, where: str) -> None:
    node = face.node()
    jobs = node.push("work", **({"ttl": 0.01} if where == "queue" else {}))
    message_id = jobs.send("stale", **({"ttl": 0.01} if where == "message" else {}))
    jobs.flush(timeout=PATIENCE_S)
    (letter,) = node.dead_letters()
    assert (letter.id, letter.reason, letter.attempts) == (message_id, "expired", ())
    assert jobs.ledger() == Ledger(accepted=1, dead=1)


@pytest.mark.guarantee("G1")
def test_a_message_expires_in_its_consumers_hands_until_it_is_started(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, started, gate = producer.push("work"), Collected(), Gate()

    def handler(message: Any) -> Iterator[Gate]:
        started.add(message.body)
        yield gate

    face.handle(consumer.pull("work"), handler)
    jobs.send("first")
    started.wait(1)
    jobs.send("stale", ttl=0.05)
    until(lambda: jobs.ledger().in_flight == 2)
    with pytest.raises(WaitTimeout):
        jobs.flush(timeout=0.1)
    gate.open()
    jobs.flush(timeout=PATIENCE_S)
    assert list(started) == ["first"]
    assert [(letter.body, letter.reason) for letter in producer.dead_letters()] == [("stale", "expired")]


def test_a_delayed_message_waits(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work"), consumer.pull("work")
    jobs.send("tomorrow", delay=86_400)
    jobs.send("soon", delay=0.02)
    jobs.send("now")
    assert [acked([message]) for message in take(pull, 2)] == [["now"], ["soon"]]
    until(lambda: jobs.ledger().processed == 2)
    assert jobs.ledger() == Ledger(accepted=3, processed=2, pending=1, scheduled=1)


@pytest.mark.guarantee("G1")
def test_unroutable_work_dies_if_it_was_asked_to(face: Face) -> None:
    node = face.node()
    jobs = node.push("nobody", unroutable_after=0.01)
    jobs.send_many([1, 2])
    jobs.flush(timeout=PATIENCE_S)
    letters = node.dead_letters("nobody")
    assert [(letter.body, letter.reason) for letter in letters] == [(1, "unroutable"), (2, "unroutable")]
    assert "no node pulled 'nobody'" in letters[0].error


# --- a full outbox ------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G5")
def test_send_nowait_refuses_what_has_no_room(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work", max_pending=3)
    for number in range(3):
        jobs.send_nowait(number)
    with pytest.raises(OutboxFull, match=r"'work' holds 3 messages.*no node pulls 'work'"):
        jobs.send_nowait(3)
    with pytest.raises(BlockingIOError):  # the built-in that fits is a base of it
        jobs.send_nowait(3, key="a")
    assert jobs.ledger() == Ledger(accepted=3, pending=3, ready=3)
    consumer.pull("work").get(timeout=PATIENCE_S).ack()
    until(lambda: jobs.ledger().pending == 2)
    jobs.send_nowait(3)


@pytest.mark.guarantee("G5")
def test_bytes_count_too(face: Face) -> None:
    node = face.node()
    jobs = node.push("work", max_pending_bytes=100)
    jobs.send_nowait(b"x" * 60)
    with pytest.raises(OutboxFull):
        jobs.send_nowait(b"x" * 60)
    jobs.send_nowait(b"x" * 20)
    with pytest.raises(BodyTooLarge, match="the limit is 100"):
        jobs.send_nowait(b"x" * 100)


@pytest.mark.guarantee("G5")
def test_send_waits_while_the_outbox_is_full(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, done, most = producer.push("work", max_pending=10), Collected(), [0]

    def handler(message: Any) -> None:
        done.add(message.body)

    face.handle(consumer.pull("work", prefetch=4), handler)
    for number in range(60):
        jobs.send(number)
        most[0] = max(most[0], jobs.ledger().pending)
    jobs.send_many(range(60, 120))
    jobs.send_many(iter(range(120, 180)))
    jobs.flush(timeout=PATIENCE_S)
    assert list(done) == list(range(180))
    assert most[0] <= 10


@pytest.mark.guarantee("G1", "G5")
def test_the_oldest_may_be_dropped_instead(face: Face) -> None:
    node = face.node()
    jobs = node.push("work", max_pending=3, overflow="drop_oldest")
    ids = [jobs.send(number) for number in range(4)]
    ids += jobs.send_many([4, 5])
    ids.append(jobs.send_nowait(6))
    ids.append(jobs.send(7, key="k"))
    assert jobs.ledger() == Ledger(accepted=8, dead=5, pending=3, ready=3)
    letters = node.dead_letters()
    assert [(letter.id, letter.body, letter.reason) for letter in letters] == [
        (ids[number], number, "overflow") for number in range(5)
    ]


# --- outcomes -----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G1")
def test_deliver_waits_for_the_outcome(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, done = producer.push("work"), Collected()

    def handler(message: Any) -> None:
        if message.body == "bad":
            raise Reject("no")
        done.add((message.id, dict(message.headers)))

    face.handle(consumer.pull("work"), handler)
    message_id = jobs.deliver("good", timeout=PATIENCE_S, headers={"a": 1})
    assert list(done) == [(message_id, {"a": 1})]
    with pytest.raises(DeadLettered, match="rejected") as caught:
        jobs.deliver("bad", timeout=PATIENCE_S)
    assert (caught.value.letter.body, caught.value.letter.error) == ("bad", "no")
    assert jobs.ledger() == Ledger(accepted=2, processed=1, dead=1)


@pytest.mark.guarantee("G1")
def test_deliver_says_who_is_missing(face: Face) -> None:
    producer, consumer = face.pair()
    consumer.pull("thumbnail")
    jobs = producer.push("thumbnails", max_pending=1)
    producer.wait_for(pull="thumbnail", timeout=PATIENCE_S)
    with pytest.raises(
        WaitTimeout, match=r"stays accepted; no node pulls 'thumbnails'.*consumer offers pull:thumbnail"
    ):
        jobs.deliver(1, timeout=0.02)
    with pytest.raises(WaitTimeout, match=r"found no room within 0.02 s"):
        jobs.deliver(2, timeout=0.02)
    assert jobs.ledger() == Ledger(accepted=1, pending=1, ready=1)


def test_flush_says_who_is_missing(face: Face) -> None:
    node = face.node()
    jobs = node.push("thumbnails")
    jobs.flush(timeout=0)
    jobs.send_many([1, 2])
    with pytest.raises(WaitTimeout, match=r"2 messages are pending after 0.01 s; no node pulls 'thumbnails'"):
        jobs.flush(timeout=0.01)


def test_flush_says_who_is_slow(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work"), consumer.pull("work")
    jobs.send(1)
    message = pull.get(timeout=PATIENCE_S)
    with pytest.raises(WaitTimeout, match="'work' is pulled by 'consumer': slow, busy, or nacking"):
        jobs.flush(timeout=0.01)
    message.ack()
    jobs.flush(timeout=PATIENCE_S)


@pytest.mark.guarantee("G1")
def test_the_ledger_balances_whatever_happens(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work", retry=AT_ONCE, max_pending=50)

    def handler(message: Any) -> None:
        if message.body % 7 == 0:
            raise Reject("sevens")
        if message.body % 5 == 0 and message.attempt < 2:
            raise ValueError("fives, once")

    face.handle(consumer.pull("work", concurrency=4), handler)
    for number in range(140):
        jobs.send(number, priority=number % 3, key=str(number % 4) if number % 2 else None)
        assert jobs.ledger().balanced
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger() == Ledger(accepted=140, processed=120, dead=20, redelivered=24)
    assert producer.ledger() == {"work": jobs.ledger()}


# --- flow control -------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G5")
def test_a_consumer_holds_no_more_than_its_prefetch(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work"), consumer.pull("work", prefetch=5)
    jobs.send_many(range(40))
    held, seen = take(pull, 5), []
    with pytest.raises(WaitTimeout):
        pull.get(timeout=0.02)
    assert jobs.ledger() == Ledger(accepted=40, pending=40, ready=35, in_flight=5)
    while held:
        message = held.pop(0)
        seen.append(message.body)
        message.ack()
        if len(seen) + len(held) < 40:
            held.append(pull.get(timeout=PATIENCE_S))
        assert jobs.ledger().in_flight <= 5
    jobs.flush(timeout=PATIENCE_S)
    assert sorted(seen) == list(range(40))


@pytest.mark.guarantee("G1", "G4")
def test_a_closed_pull_returns_what_it_has_not_started(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work", retry=Retry(max_attempts=1)), consumer.pull("work")
    jobs.send_many(range(10))
    started = take(pull, 3)
    until(lambda: jobs.ledger().in_flight == 10)
    pull.close()
    acked(started)
    until(lambda: jobs.ledger().processed == 3)
    until(lambda: jobs.ledger().ready == 7)
    other = face.node("other")
    messages = take(other.pull("work"), 7)
    assert [(message.body, message.attempt) for message in messages] == [(number, 1) for number in range(3, 10)]
    acked(messages)
    jobs.flush(timeout=PATIENCE_S)


def test_closing_a_pull_ends_its_iteration(face: Face) -> None:
    node = face.node()
    pull = node.pull("work")
    pull.close()
    pull.close()
    assert list(pull) == []
    assert list(pull.batches()) == []
    with pytest.raises(NodeClosed, match="was closed"):
        pull.get(timeout=PATIENCE_S)
    assert list(node.pull("other").close() or ()) == []


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
