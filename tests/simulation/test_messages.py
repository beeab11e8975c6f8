"""``make_message`` makes what a consumer gets, and keeps what a handler says."""

from __future__ import annotations

import pytest

from meshmsg.errors import AlreadySettled
from meshmsg.message import Batch
from meshmsg.testing import make_message


def test_it_looks_as_it_was_told() -> None:
    message = make_message({"n": 1}, queue="q", sender="s", number=7, attempt=3, key="k", priority=2, headers={"h": 1})
    assert (message.id, message.body, message.queue, message.sender) == ("s/q/7", {"n": 1}, "q", "s")
    assert (message.attempt, message.redelivered, message.key, message.priority) == (3, True, "k", 2)
    assert message.headers == {"h": 1} and not message.settled


def test_it_keeps_the_verdict() -> None:
    message = make_message()
    message.extend()
    assert message.verdict is None and message.extensions == 1
    message.nack(delay=2.0, error="later")
    assert message.settled and message.verdict == ("nacked", 2.0, "later")
    with pytest.raises(AlreadySettled):
        message.ack()


def test_a_batch_of_them_is_settled_as_one() -> None:
    messages = [make_message(number) for number in range(3)]
    with Batch(list(messages)):
        messages[1].reject("no")
    assert [message.verdict and message.verdict.kind for message in messages] == ["acked", "rejected", "acked"]
