"""The box keeps the newest letters; a letter tells everything; headers for a queue of dead letters stay small."""

from __future__ import annotations

import pytest

from meshmsg.engine.dead_letters import TOLD, TOLD_ATTEMPTS, DeadLetterBox, headers_of, make_letter
from meshmsg.engine.run import Details, Run
from meshmsg.message import Attempt, DeadLetter
from meshmsg.wire.codec import make_packer


def letter(number: int, attempts: int = 1, text: str = "no") -> tuple[DeadLetter, Run]:
    details = Details("k", headers={"h": 1})
    details.history = [Attempt("c", float(index), "nacked", text) for index in range(attempts)]
    run = Run(number, [make_packer()({"n": number})], 3.0, details)
    return make_letter("0123456789abcdef", "q", run, "attempts", "no", 5.0, 100.0), run


def test_a_letter_tells_everything() -> None:
    made, _ = letter(7)
    assert (made.id, made.body, made.headers, made.key) == ("0123456789ab/q/7", {"n": 7}, {"h": 1}, "k")
    assert (made.accepted_at, made.died_at, made.reason) == (103.0, 105.0, "attempts")


def test_the_oldest_falls_out_of_a_full_box_and_is_named() -> None:
    box = DeadLetterBox(2)
    assert not box.add(*letter(1)) and not box.add(*letter(2))
    (fallen,) = box.add(*letter(3))
    assert fallen.body == {"n": 1}
    assert [each.body["n"] for each in box.letters()] == [2, 3]
    assert box.overflowed == 1
    box.check()


@pytest.mark.guarantee("G5")
def test_many_bytes_make_a_box_full_too() -> None:
    box = DeadLetterBox(10, 5000)
    for number in (1, 2, 3):
        assert not box.add(*letter(number, text="x" * 1000))
    fallen = box.add(*letter(4, attempts=3, text="x" * 1000))
    assert [each.body["n"] for each in fallen] == [1, 2] and 4000 < box.size <= 5000
    box.remove("0123456789ab/q/3")
    assert 3000 < box.size < 4000
    box.check()


def test_the_newest_letter_is_kept_whatever_its_size() -> None:
    box = DeadLetterBox(10, 5000)
    box.add(*letter(1))
    (fallen,) = box.add(*letter(2, text="x" * 6000))
    assert fallen.body == {"n": 1} and [each.body["n"] for each in box.letters()] == [2]
    box.check()


def test_finding_and_removing() -> None:
    box = DeadLetterBox()
    made, run = letter(1)
    box.add(made, run)
    found = box.find(made.id)
    assert found is not None and found.run is run
    box.remove(made.id)
    assert box.find(made.id) is None and box.letters("q") == []


def test_headers_tell_the_newest_attempts() -> None:
    made, _ = letter(1, attempts=500)
    told = headers_of(made)
    assert told["h"] == 1 and told[TOLD]["id"] == made.id
    assert len(told[TOLD]["attempts"]) == TOLD_ATTEMPTS and told[TOLD]["attempts"][-1][1] == 499.0
