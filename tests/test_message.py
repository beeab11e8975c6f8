"""Messages and batches by themselves, with a lane that only takes notes."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg import (
    AlreadySettled,
    Batch,
    ConfigurationError,
    DeadLetter,
    DeadLettered,
    Ledger,
    Message,
    NodeClosed,
    Peer,
    Reject,
)
from meshmsg.message import Arrival, describe_error


class Notes:
    """A settler that writes down what it is told."""

    sender, queue = "somebody", "work"

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.refusal: Exception | None = None

    def require_usable(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def message_id(self, number: int) -> str:
        return f"node/work/{number}"

    def ack(self, seq: int) -> None:
        self.told.append(("ack", seq))

    def ack_run(self, start: int, stop: int) -> None:
        self.told.append(("ack_run", start, stop))

    def nack(self, seq: int, delay: float | None, error: str) -> None:
        self.told.append(("nack", seq, delay, error))

    def reject(self, seq: int, reason: str) -> None:
        self.told.append(("reject", seq, reason))

    def extend(self, seq: int) -> None:
        self.told.append(("extend", seq))


def make(count: int = 1, details: dict[str, Any] | None = None) -> tuple[Notes, list[Message]]:
    notes = Notes()
    return notes, list(Arrival(notes, 10, 20, [f"body {index}" for index in range(count)], details).open())


def test_a_plain_message() -> None:
    _, (message,) = make()
    assert (message.id, message.sender, message.queue, message.body) == ("node/work/20", "somebody", "work", "body 0")
    assert (message.attempt, message.redelivered, message.key, message.priority) == (1, False, None, 0)
    assert message.headers == {} and message.headers is not message.headers  # nothing that messages share
    assert repr(message) == "<Message 'node/work/20' from 'somebody': attempt 1>"


def test_a_message_with_details() -> None:
    _, (message,) = make(details={"a": 3, "r": True, "k": "key", "p": 7, "h": {"trace": 1}})
    assert (message.attempt, message.redelivered, message.key, message.priority) == (3, True, "key", 7)
    assert message.headers == {"trace": 1}


def test_verdicts() -> None:
    notes, (one, two, three, four) = make(4)
    one.ack()
    two.nack()
    three.nack(delay=1.5, error="why")
    four.extend()
    four.reject("never")
    assert notes.told == [
        ("ack", 10),
        ("nack", 11, None, "nack"),
        ("nack", 12, 1.5, "why"),
        ("extend", 13),
        ("reject", 13, "never"),
    ]
    assert all(message.settled for message in (one, two, three, four))


@pytest.mark.parametrize("delay", [-1, -0.5, float("nan"), float("inf"), True, "1", 1e10, 10**400])
def test_a_delay_that_cannot_be_is_refused_before_it_settles(delay: Any) -> None:
    notes, [message] = make()
    with pytest.raises(ConfigurationError, match=r"nack\(delay=\)"):
        message.nack(delay)
    assert notes.told == [] and not message.settled


@pytest.mark.parametrize("first", ["ack", "nack", "reject"])
@pytest.mark.parametrize("second", ["ack", "nack", "reject"])
def test_one_verdict_each(first: str, second: str) -> None:
    notes, (message,) = make()
    getattr(message, first)()
    with pytest.raises(AlreadySettled, match="node/work/20 already has its verdict"):
        getattr(message, second)()
    assert len(notes.told) == 1


def test_a_with_block() -> None:
    notes, (fine, fails, rejected, rejected_silently, before) = make(5)
    with fine as entered:
        assert entered is fine
    with pytest.raises(KeyError), fails:
        raise KeyError("x")
    with rejected:
        raise Reject("never")
    with rejected_silently:
        raise Reject
    with pytest.raises(KeyError), before:
        before.ack()
        raise KeyError("afterwards")
    assert notes.told == [
        ("ack", 10),
        ("nack", 11, None, "KeyError: 'x'"),
        ("reject", 12, "never"),
        ("reject", 13, "rejected"),
        ("ack", 14),
    ]


def test_a_batch_is_a_sequence() -> None:
    _, messages = make(3)
    batch = Batch(messages)
    assert (len(batch), list(batch), batch[1], batch[-1]) == (3, messages, messages[1], messages[2])
    assert batch.bodies == ["body 0", "body 1", "body 2"]


def test_a_batch_settles_what_is_left() -> None:
    notes, messages = make(3)
    with Batch(messages) as batch:
        batch[1].reject("odd")
    assert notes.told == [("reject", 11, "odd"), ("ack", 10), ("ack", 12)]
    batch.ack()
    batch.nack()
    assert len(notes.told) == 3


def test_a_batch_that_fails() -> None:
    notes, messages = make(2)
    with pytest.raises(ValueError, match="no"), Batch(messages):
        raise ValueError("no")
    assert notes.told == [("nack", 10, None, "ValueError: no"), ("nack", 11, None, "ValueError: no")]
    notes, messages = make(2)
    with Batch(messages):
        raise Reject("all bad")
    assert notes.told == [("reject", 10, "all bad"), ("reject", 11, "all bad")]


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["list"]])
def test_the_text_of_a_verdict_is_a_text(text: Any) -> None:
    notes, (message,) = make()
    with pytest.raises(ConfigurationError, match=r"nack\(error=\) takes a text or an exception, not"):
        message.nack(error=text)
    with pytest.raises(ConfigurationError, match=r"reject\(reason=\) takes a text or an exception, not"):
        message.reject(text)
    assert not message.settled and not notes.told


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_serves_as_the_text_of_a_verdict() -> None:
    notes, (one, two, three) = make(3)
    one.nack(error=ValueError("x"))
    two.reject(KeyError("y"))
    with pytest.raises(Unspeakable), three:
        raise Unspeakable
    assert notes.told == [
        ("nack", 10, None, "ValueError: x"),
        ("reject", 11, "KeyError: 'y'"),
        ("nack", 12, None, "Unspeakable"),
    ]


def test_where_a_message_cannot_be_used_it_keeps_its_verdict_open() -> None:
    notes, messages = make(2)
    notes.refusal = NodeClosed("closed")
    message = messages[0]
    for use in (message.ack, message.nack, message.reject, message.extend, Batch(messages).ack, Batch(messages).nack):
        with pytest.raises(NodeClosed):
            use()
    with pytest.raises(NodeClosed), message:
        pass
    with pytest.raises(KeyError), message:  # the error of the block is the one that counts
        raise KeyError("x")
    with pytest.raises(KeyError), Batch(messages):
        raise KeyError("x")
    assert not message.settled and not notes.told
    Batch([]).ack()


def test_a_batch_that_failed_further_on_is_rejected() -> None:
    letter = DeadLetter("n/q/1", "q", 1, {}, None, "rejected", "no", (), 1.0, 2.0)
    notes, messages = make(2)
    with pytest.raises(DeadLettered), Batch(messages) as batch:
        batch[0].ack()
        raise DeadLettered("dead further on", letter)
    assert notes.told == [("ack", 10), ("reject", 11, "DeadLettered: dead further on")]


def test_what_failed_further_on_is_rejected_and_not_tried_again() -> None:
    letter = DeadLetter("n/q/1", "q", 1, {}, None, "rejected", "no", (), 1.0, 2.0)
    notes, (message,) = make()
    with pytest.raises(DeadLettered), message:
        raise DeadLettered("dead further on", letter)
    assert [told[0] for told in notes.told] == ["reject"]


@pytest.mark.parametrize(
    ("books", "balanced"),
    [
        (Ledger(), True),
        (Ledger(accepted=6, processed=1, dead=1, pending=4, ready=2, in_flight=1, scheduled=1, redelivered=9), True),
        (Ledger(accepted=2, processed=1), False),
        (Ledger(accepted=1, pending=1), False),
    ],
)
def test_a_ledger_knows_whether_it_balances(books: Ledger, balanced: bool) -> None:
    assert books.balanced is balanced


def test_what_a_peer_offers() -> None:
    peer = Peer("id", "name", "alive", (), {"pull": {"a": {}, "b": {}}}, 0.0)
    assert (peer.pulls, peer.pushes) == (("a", "b"), ())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no"), "ValueError: no"),
        (ValueError(), "ValueError"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError("x" * 2000), "RuntimeError: " + "x" * 983 + "..."),
    ],
)
def test_errors_become_one_line(error: Exception, text: str) -> None:
    assert describe_error(error) == text


def test_a_batch_is_acked_without_making_messages() -> None:
    notes = Notes()
    batch = Batch(arrivals=[Arrival(notes, 10, 20, ["a", "b"]), Arrival(notes, 15, 25, ["c"])])
    assert (len(batch), batch.bodies) == (3, ["a", "b", "c"])
    with batch:
        pass
    batch.ack()
    assert notes.told == [("ack_run", 10, 12), ("ack_run", 15, 16)]
    assert [(message.id, message.body, message.settled) for message in batch] == [
        ("node/work/20", "a", True),
        ("node/work/21", "b", True),
        ("node/work/25", "c", True),
    ]
    assert batch.bodies == ["a", "b", "c"]


def test_a_batch_whose_messages_were_looked_at_keeps_their_verdicts() -> None:
    notes = Notes()
    batch = Batch(arrivals=[Arrival(notes, 10, 20, ["a", "b", "c"])])
    batch[1].reject("no")
    batch.ack()
    assert notes.told == [("reject", 11, "no"), ("ack", 10), ("ack", 12)]


def test_a_message_in_hand_does_not_keep_its_neighbours_in_memory() -> None:
    arrival = Arrival(Notes(), 0, 0, ["a", "b"])
    first, _ = arrival.open()
    assert arrival.bodies == [] and first.body == "a"
    assert first._alone().bodies == ["a"]
