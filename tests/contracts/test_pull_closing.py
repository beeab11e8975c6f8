"""Closing a pull, in whatever face: nothing is left of it, and the queue can be opened again."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest

from meshmsg.engine.inbox import Inbox
from meshmsg.sockets.push_pull import Pull
from tests.contracts.faces import PATIENCE_S, Face


def living() -> int:
    gc.collect()
    return sum(isinstance(each, (Pull, Inbox)) for each in gc.get_objects())


def require_no_more_than(count: int) -> None:
    pause = threading.Event()
    for _ in range(100):
        if living() <= count:
            return
        pause.wait(0.02)  # until the producer has let go of it, and heard what there was to hear
    assert living() <= count


def use(pull: Any, way: str) -> None:
    if way == "handler":
        pull(lambda message: None)
    elif way == "iteration":
        for message in pull:
            message.ack()
            break
    else:
        pull.get(timeout=PATIENCE_S).ack()


@pytest.mark.parametrize("way", ["handler", "iteration", "get"])
def test_nothing_is_left_of_pulls_that_were_closed(face: Face, way: str) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    before = living()
    for number in range(3):
        jobs.send(number)
        pull = consumer.pull("work")
        use(pull, way)
        jobs.flush(timeout=PATIENCE_S)
        pull.close()
    pull = None
    require_no_more_than(before)


def test_nothing_is_left_of_members_that_left(face: Face) -> None:
    node = face.node()
    before = living()
    for _ in range(3):
        node.sub("news.*", group="readers").close()
    require_no_more_than(before)


@pytest.mark.guarantee("G4")
def test_a_pull_that_was_closed_with_a_message_in_hand_can_be_opened_again(face: Face) -> None:
    node = face.node()
    jobs = node.push("work")
    jobs.send_many(range(2))
    pull = node.pull("work", prefetch=1)
    for message in pull:
        pull.close()
        again = node.pull("work")
        other = again.get(timeout=PATIENCE_S)
        assert (message.body, other.body) == (0, 1)
        message.ack()
        other.ack()
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger().processed == 2
