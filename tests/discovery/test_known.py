"""The table of reported nodes."""

from __future__ import annotations

import pytest

from meshmsg.discovery.candidate import Candidate
from meshmsg.discovery.known import KnownNodes
from tests.discovery.sightings import Sightings

A = Candidate("a", ("tcp://127.0.0.1:1",))
B = Candidate("b", ("tcp://127.0.0.1:2",))
MOVED_A = Candidate("a", ("tcp://127.0.0.1:3",))


def test_only_news_are_passed_on() -> None:
    seen = Sightings()
    known = KnownNodes(seen.found, seen.lost)
    assert [known.report(candidate) for candidate in (A, A, B, MOVED_A, A)] == [True, False, True, True, True]
    assert seen.candidates == [A, B, MOVED_A, A]
    for _ in range(2):
        known.withdraw("a")
    known.withdraw("never seen")
    assert seen.gone == ["a"]
    assert "b" in known and "a" not in known and len(known) == 1


def test_seeds_have_no_id_and_are_always_passed_on() -> None:
    seen = Sightings()
    known = KnownNodes(seen.found, seen.lost, limit=0)
    seed = Candidate(None, ("tcp://127.0.0.1:1",))
    assert known.report(seed) and known.report(seed)
    assert seen.candidates == [seed, seed]


def test_at_the_limit_known_nodes_may_still_change(caplog: pytest.LogCaptureFixture) -> None:
    seen = Sightings()
    known = KnownNodes(seen.found, seen.lost, limit=1)
    assert known.report(A)
    assert not known.report(B) and not known.report(B)
    assert known.report(MOVED_A)
    assert len(caplog.records) == 1
    known.withdraw("a")
    assert known.report(B)
    assert not known.report(A)
    assert len(caplog.records) == 2, "after there was room, the next refusal is news again"


def test_silence_after_close() -> None:
    seen = Sightings()
    known = KnownNodes(seen.found, seen.lost)
    known.report(A)
    known.close()
    known.withdraw("a")
    assert not known.report(B)
    assert seen.candidates == [A] and not seen.gone


def test_failing_callbacks_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a bug above")

    known = KnownNodes(fail, fail)
    assert known.report(A)
    known.withdraw("a")
    assert [record.getMessage() for record in caplog.records] == [
        f"found() failed for {A}",
        "lost() failed for node a",
    ]
