"""What must not fail in silence: no verdict, a verdict that nobody hears, ends that do not fit. Every face."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import zmq

from meshmsg import ConfigurationError, Event, Reject, Retry, WaitTimeout
from meshmsg.sockets import held
from tests.contracts.faces import PATIENCE_S, Face, acked, take, until

AT_ONCE = Retry(max_attempts=3, backoff=0)


def next_event(events: Any, kind: str) -> Event:
    while True:
        event: Event = events.get(timeout=PATIENCE_S)
        if event.kind == kind:
            return event


# --- bare ends ----------------------------------------------------------------------------------------------


def test_what_a_bare_handler_raises_is_logged_and_an_event(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    producer, consumer = face.pair()
    jobs, pull, events = producer.push("work", reliable=False), consumer.pull("work", reliable=False), consumer.events()

    def handler(message: Any) -> None:
        raise Reject("never") if message.body else ValueError("odd")

    face.handle(pull, handler)
    jobs.send_many([0, 1])
    told = [next_event(events, "message.failed") for _ in range(2)]
    assert [(each.queue, each.text) for each in told] == [
        ("work", "bare/work/0: ValueError: odd"),
        ("work", "bare/work/1: never"),
    ]
    assert "pull('work'): message bare/work/0 failed: ValueError: odd" in caplog.text


def test_a_bare_nack_is_told_once(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, pull, events = producer.push("work", reliable=False), consumer.pull("work", reliable=False), consumer.events()
    jobs.send_many(range(3))
    first, second, third = take(pull, 3)
    second.nack(error="no")  # before the first has its verdict
    assert next_event(events, "message.failed").text == "bare/work/1: no"
    first.ack()
    third.reject("nor this")
    assert next_event(events, "message.failed").text == "bare/work/2: nor this"


# --- no verdict ---------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G5")
@pytest.mark.parametrize("reliable", [True, False])
def test_who_waits_with_all_messages_in_hand_is_told_why(
    face: Face, reliable: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(held, "STALLED_S", 0.01)
    producer, consumer = face.pair()
    jobs, pull = producer.push("work", reliable=reliable), consumer.pull("work", prefetch=3, reliable=reliable)
    events = consumer.events()
    jobs.send_many(range(5))
    taken = take(pull, 3)
    with pytest.raises(WaitTimeout, match="3 messages were taken and not settled, and no more come") as refusal:
        pull.get(timeout=0.1)
    event = next_event(events, "consumer.stuck")
    assert event.queue == "work"
    assert event.text.endswith(str(refusal.value).partition("; ")[2])
    assert "`with message:`" in event.text and event.text in caplog.text
    assert acked(taken) == [0, 1, 2]
    rest = take(pull, 2)
    with pytest.raises(WaitTimeout, match=r"came within 0\.05 s$"):
        pull.get(timeout=0.05)  # these two keep none from coming
    assert acked(rest) == [3, 4]


@pytest.mark.guarantee("G5")
def test_nobody_is_told_who_does_not_wait_or_settles(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "STALLED_S", 0.01)
    producer, consumer = face.pair()
    jobs, pull, events = producer.push("work"), consumer.pull("work", prefetch=1), consumer.events()
    jobs.send_many(range(20))
    for message in take(pull, 1):
        with pytest.raises(WaitTimeout, match="nothing happened"):
            while events.get(timeout=0.05).kind != "consumer.stuck":
                pass
        message.ack()
    for _ in range(19):
        pull.get(timeout=PATIENCE_S).ack()
    with pytest.raises(WaitTimeout, match="nothing happened"):
        while events.get(timeout=0.05).kind != "consumer.stuck":
            pass


@pytest.mark.guarantee("G1", "G4")
def test_a_closed_pull_nacks_what_was_taken_and_not_settled(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work", retry=AT_ONCE), consumer.pull("work")
    jobs.send_many(range(3))
    take(pull, 3)[1].ack()
    pull.close()
    assert "pull('work') was closed, and nacked 2 that were taken and not settled" in caplog.text
    again = take(face.node("other").pull("work"), 2)
    assert sorted((each.body, each.attempt, each.redelivered) for each in again) == [(0, 2, True), (2, 2, True)]
    acked(again)
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger().processed == 3


@pytest.mark.guarantee("G1", "G4")
def test_a_loop_may_finish_its_round_after_the_close(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work", retry=Retry(max_attempts=1)), consumer.pull("work")
    jobs.send_many(range(3))
    iteration = iter(pull)
    next(iteration)  # forgotten
    message = next(iteration)
    pull.close()
    message.ack()
    assert list(iteration) == []
    until(lambda: (jobs.ledger().processed, jobs.ledger().dead, jobs.ledger().ready) == (1, 1, 1))


@pytest.mark.guarantee("G1", "G4")
@pytest.mark.parametrize("batches", [False, True])
def test_what_a_loop_leaves_after_the_close_is_nacked(face: Face, batches: bool) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work", retry=AT_ONCE), consumer.pull("work")
    jobs.send_many(range(2))
    iteration = iter(pull.batches(max_size=2, max_wait=PATIENCE_S) if batches else pull)
    next(iteration)
    pull.close()
    assert jobs.ledger().processed == 0
    assert list(iteration) == []
    again = take(face.node("other").pull("work"), 2)
    expected = [(0, 2), (1, 2 if batches else 1)]
    assert sorted((each.body, each.attempt) for each in again) == expected
    acked(again)


@pytest.mark.guarantee("G4", "G10")
def test_a_close_with_a_drain_waits_for_verdicts(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work", retry=Retry(max_attempts=1)), consumer.pull("work")
    jobs.send(1)
    message = pull.get(timeout=PATIENCE_S)
    closing = threading.Thread(target=lambda: pull.close(drain=PATIENCE_S))
    closing.start()
    until(lambda: not producer.peers()[0].pulls)
    assert jobs.ledger().in_flight == 1
    message.ack()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger().processed == 1


# --- ends that do not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reliable", [True, False])
def test_only_consumers_that_can_be_reached_are_waited_for(face: Face, reliable: bool) -> None:
    producer, consumer = face.pair()
    consumer.pull("work", reliable=not reliable)
    producer.wait_for(pull="work", timeout=PATIENCE_S)  # nothing is pushed to it here: any will do
    producer.push("work", reliable=reliable)
    with pytest.raises(WaitTimeout, match=r"found 0 of 1 for pull='work'.* both ends need the same"):
        producer.wait_for(pull="work", timeout=0.05)
    other = face.node("other")
    other.pull("work", reliable=reliable)
    producer.wait_for(pull="work", timeout=PATIENCE_S)


@pytest.mark.parametrize("reliable", [True, False])
def test_more_handlers_than_messages_are_refused(face: Face, reliable: bool) -> None:
    node = face.node()
    with pytest.raises(ConfigurationError, match="concurrency=50 handlers cannot run with prefetch=4"):
        node.pull("work", prefetch=4, concurrency=50, reliable=reliable)
    node.pull("work", prefetch=50, concurrency=50, reliable=reliable)  # the name is free


def test_a_raw_socket_belongs_to_the_loop_and_the_blocking_face_says_so(face: Face) -> None:
    node = face.node()
    if face.is_blocking:
        with pytest.raises(ConfigurationError, match=r"raw\('frames'\) is for meshmsg.Node alone: .* reliable=False"):
            node.raw(zmq.PULL, "frames")
    else:
        assert not node.raw(zmq.PULL, "frames").closed
