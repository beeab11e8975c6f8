"""What becomes of messages in whatever face: dead letters, full outboxes, outcomes, flow control."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from meshmsg import (
    BodyTooLarge,
    ConfigurationError,
    DeadLettered,
    Ledger,
    NodeClosed,
    OutboxFull,
    Reject,
    Retry,
    WaitTimeout,
)
from tests.contracts.faces import PATIENCE_S, Collected, Face, Gate, acked, reject_all, take, until

AT_ONCE = Retry(max_attempts=3, backoff=0)


# --- dead letters -------------------------------------------------------------------------------------------


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
    with pytest.raises(ConfigurationError, match=r"^no dead letter '.*' is kept: node\.dead_letters"):
        producer.redrive(ids[2])
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


@pytest.mark.guarantee("G5")
@pytest.mark.parametrize("large", [False, True])
def test_whatever_else_fills_the_outbox_is_seen_by_send(face: Face, large: bool) -> None:
    """Dead letters that are sent again, or come from another queue, take room that ``send`` had counted on."""
    producer, consumer = face.pair()
    limits: dict[str, Any] = {"max_pending_bytes": 100 * 4096 + 500} if large else {"max_pending": 20}
    body = b"x" * 4090 if large else 0
    jobs, held = producer.push("work", retry=Retry(max_attempts=1), **limits), 100 if large else 20
    pull = consumer.pull("work")
    jobs.send_many([body] * held)
    for message in take(pull, held):
        message.reject("not now")
    jobs.flush(timeout=PATIENCE_S)
    pull.close()
    until(lambda: not producer.peers()[0].pulls)
    jobs.send(body)
    assert len(producer.redrive()) == held - 1
    with pytest.raises(WaitTimeout):
        jobs.deliver(body, timeout=0.01)
    assert jobs.ledger().pending == held

    left, dead = producer.push("left", dead_letter_to="dead"), producer.push("dead", **limits)
    dead.send(body)
    reject_all(face, consumer, "left")
    left.send_many([body] * (held - 1))
    left.flush(timeout=PATIENCE_S)
    while dead.ledger().pending < held:
        dead.send_nowait(body)
    with pytest.raises(WaitTimeout):
        dead.deliver(body, timeout=0.01)
    assert dead.ledger().pending == held


@pytest.mark.guarantee("G5")
def test_a_large_body_takes_its_room_from_the_small_ones_after_it(face: Face) -> None:
    node = face.node()
    jobs = node.push("work", max_pending_bytes=40_000)
    jobs.send(b"x" * 30_000)
    for _ in range(2):
        jobs.send(b"x" * 4000)
    with pytest.raises(WaitTimeout):
        jobs.deliver(b"x" * 4000, timeout=0.01)
    assert jobs.ledger().pending == 3


@pytest.mark.guarantee("G1", "G5")
@pytest.mark.parametrize("options", [{"delay": 3600.0}, {"key": "k"}, {"key": "k", "delay": 3600.0}])
def test_the_oldest_is_dropped_wherever_it_waits(face: Face, options: dict[str, Any]) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work", max_pending=5, overflow="drop_oldest")
    pull = consumer.pull("work", prefetch=1)
    jobs.send("first", key="k")
    first = pull.get(timeout=PATIENCE_S)
    ids = [jobs.send(number, **options) for number in range(100)]
    books = jobs.ledger()
    assert (books.accepted, books.dead, books.pending) == (101, 96, 5)
    assert [letter.id for letter in producer.dead_letters()] == ids[:96]
    first.ack()


@pytest.mark.guarantee("G1", "G5")
def test_where_everything_is_with_consumers_the_new_message_is_the_dead_letter(face: Face) -> None:
    producer, consumer = face.pair()
    letters = Collected()
    jobs = producer.push("work", max_pending=3, overflow="drop_oldest", on_dead_letter=letters.add)
    pull = consumer.pull("work")
    jobs.send_many(range(3))
    held = take(pull, 3)
    ids = [
        jobs.send(3),
        jobs.send_nowait(4, key="k"),
        *jobs.send_many([5, 6]),
        jobs.send(7, delay=1.0, headers={"a": 1}),
    ]
    with pytest.raises(DeadLettered, match="overflow") as caught:
        jobs.deliver(8, timeout=PATIENCE_S)
    letters.wait(6)
    assert [letter.id for letter in letters] == [*ids, caught.value.letter.id]
    assert {letter.reason for letter in letters} == {"overflow"}
    assert [letter.body for letter in producer.dead_letters()] == [3, 4, 5, 6, 7, 8]
    assert acked(held) == [0, 1, 2]
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger() == Ledger(accepted=9, processed=3, dead=6)
    assert producer.redrive(ids[0]) == [ids[0]]
    assert acked(take(pull, 1)) == [3]


@pytest.mark.guarantee("G3")
def test_a_delayed_message_keeps_its_place_among_those_of_its_key(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, done = producer.push("work"), Collected()
    face.handle(consumer.pull("work"), lambda message: done.add(message.body))
    jobs.send("later", key="k", delay=0.05)
    jobs.send("after it", key="k")
    jobs.send("of no key")
    assert done.wait(3) == ["of no key", "later", "after it"]


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
    with pytest.raises(WaitTimeout, match=r"stays accepted; no node pulls 'thumbnails'.*offers pull:thumbnail"):
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
    acked(started)
    pull.close()
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


# --- errors in groups ---------------------------------------------------------------------------------------


REJECTS = ExceptionGroup("tasks", [Reject("no such image"), ExceptionGroup("more", [Reject("no such font"), Reject()])])
MIXED = ExceptionGroup("tasks", [Reject("no such image"), OSError("try again")])


@pytest.mark.guarantee("G1", "G4")
def test_a_group_of_rejections_is_one(face: Face) -> None:
    """As a ``TaskGroup`` in a handler raises it."""
    producer, consumer = face.pair()
    jobs = producer.push("work", retry=AT_ONCE)

    def handler(message: Any) -> None:
        raise {"rejects": REJECTS, "mixed": MIXED}[message.body]

    face.handle(consumer.pull("work"), handler)
    jobs.send_many(["rejects", "mixed"])
    jobs.flush(timeout=PATIENCE_S)
    letters = {letter.body: letter for letter in producer.dead_letters()}
    assert (letters["rejects"].reason, letters["rejects"].error) == ("rejected", "no such image; no such font")
    assert len(letters["rejects"].attempts) == 1
    assert (letters["mixed"].reason, len(letters["mixed"].attempts)) == ("attempts", 3)
    assert letters["mixed"].error == "ExceptionGroup: tasks (2 sub-exceptions)"


@pytest.mark.guarantee("G1", "G4")
def test_a_group_of_rejections_ends_at_its_message(face: Face) -> None:
    node = face.node()
    jobs, pull = node.push("work", retry=Retry(max_attempts=1)), node.pull("work")
    jobs.send_many(range(2))
    with pull.get(timeout=PATIENCE_S):
        raise REJECTS
    with pytest.raises(ExceptionGroup, match="tasks"):
        with pull.get(timeout=PATIENCE_S):
            raise MIXED
    jobs.flush(timeout=PATIENCE_S)
    assert [letter.reason for letter in node.dead_letters()] == ["rejected", "attempts"]
