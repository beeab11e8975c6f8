"""An operator hears of everything once, and of what matters every time."""

from __future__ import annotations

from meshmsg.engine.notes import REPEAT_AFTER_S, Notes


def test_a_repetition_is_told_again_only_after_a_while() -> None:
    notes = Notes(wall_offset=1000.0)
    for now in (0.0, 1.0, REPEAT_AFTER_S, REPEAT_AFTER_S + 1):
        notes.tell("frame.refused", "peer", "id", "noise", now)
    assert [event.time for event in notes.take()] == [1000.0, 1000.0 + REPEAT_AFTER_S]
    assert notes.take() == []


def test_others_and_what_is_told_always_are_not_held_back() -> None:
    notes = Notes(0.0)
    notes.tell("frame.refused", "a", "a", "", 0.0)
    notes.tell("frame.refused", "b", "b", "", 0.0)
    notes.tell("peer.up", "a", "a", "", 0.0, always=True)
    notes.tell("peer.up", "a", "a", "", 0.0, always=True)
    assert [(event.kind, event.peer) for event in notes.take()] == [
        ("frame.refused", "a"),
        ("frame.refused", "b"),
        ("peer.up", "a"),
        ("peer.up", "a"),
    ]
