"""The box keeps the newest letters; a letter tells everything; headers for a queue of dead letters stay small."""

from __future__ import annotations

from meshmsg.engine.dead_letters import TOLD, TOLD_ATTEMPTS, DeadLetterBox, headers_of, make_letter
from meshmsg.engine.run import Details, Run
from meshmsg.message import Attempt, DeadLetter
from meshmsg.wire.codec import make_packer


def letter(number: int, attempts: int = 1) -> tuple[DeadLetter, Run]:
    details = Details("k", headers={"h": 1})
    details.history = [Attempt("c", float(index), "nacked", "no") for index in range(attempts)]
    run = Run(number, [make_packer()({"n": number})], 3.0, details)
    return make_letter("0123456789abcdef", "q", run, "attempts", "no", 5.0, 100.0), run


def test_a_letter_tells_everything() -> None:
    made, _ = letter(7)
    assert (made.id, made.body, made.headers, made.key) == ("0123456789ab/q/7", {"n": 7}, {"h": 1}, "k")
    assert (made.accepted_at, made.died_at, made.reason) == (103.0, 105.0, "attempts")


def test_the_oldest_falls_out_of_a_full_box_and_is_named() -> None:
    box = DeadLetterBox(2)
    assert box.add(*letter(1)) is None and box.add(*letter(2)) is None
    fallen = box.add(*letter(3))
    assert fallen is not None and fallen.body == {"n": 1}
    assert [each.body["n"] for each in box.letters()] == [2, 3]
    assert box.overflowed == 1


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
