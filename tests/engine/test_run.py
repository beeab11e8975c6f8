"""Runs split, and details say on the wire what is worth saying."""

from __future__ import annotations

import pytest

from meshmsg.engine.run import Details, Run
from meshmsg.errors import BodyTooLarge, EncodeError


def test_a_split_takes_the_front() -> None:
    run = Run(10, [b"a", b"b", b"c"], 1.5)
    head = run.split(2)
    assert (head.first_id, head.bodies, head.accepted_at) == (10, [b"a", b"b"], 1.5)
    assert (run.first_id, run.bodies) == (12, [b"c"])
    assert len(head) == 2 and len(run) == 1


def test_only_a_single_message_has_details() -> None:
    with pytest.raises(AssertionError):
        Run(0, [b"a", b"b"], 0.0).require_details()


def test_nothing_to_say_is_nothing_on_the_wire() -> None:
    assert Details().on_wire(0.0) is None
    assert Details(headers={}).on_wire(0.0) is None


def test_everything_on_the_wire() -> None:
    details = Details("k", 3, {"h": 1}, expires_at=12.0)
    details.attempts, details.redelivered, details.trial = 2, True, True
    assert details.on_wire(10.0) == {"a": 3, "r": True, "s": True, "k": "k", "p": 3, "h": {"h": 1}, "x": 2.0}
    assert details.on_wire(20.0)["x"] == 0.0  # type: ignore[index]  # it says something


def test_headers_count_in_the_size_of_a_frame() -> None:
    run = Run(0, [b"12345"], 0.0, Details("key", headers={"blob": b"x" * 1000}))
    assert 1000 < run.measure() < 1100


def test_too_large_headers_are_refused_at_once() -> None:
    with pytest.raises(BodyTooLarge, match="at most 1048576"):
        Details(headers={"blob": b"x" * 2**21})
    with pytest.raises(BodyTooLarge):
        Details(key="k" * 2**20)


def test_headers_that_nobody_could_read_are_refused_at_once() -> None:
    with pytest.raises(EncodeError, match="headers"):
        Details(headers={"map": {("a", 1): 2}})
