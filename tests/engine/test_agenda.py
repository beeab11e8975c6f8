"""An agenda tells what is due, and keeps no more than a few entries that count no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshmsg.engine.agenda import MAX_VOID, Agenda

STEP = st.sampled_from(["put", "put", "put", "discard", "take"])
STEPS = st.lists(st.tuples(STEP, st.integers(0, 5), st.integers(0, 20)))


@given(STEPS)
def test_it_does_what_a_dict_would(steps: list[tuple[str, int, int]]) -> None:
    agenda, times = Agenda[int](), dict[int, float]()
    for step, thing, at in steps:
        if step == "put":
            agenda.put(thing, at)
            times[thing] = min(at, times.get(thing, at))
        elif step == "discard":
            agenda.discard(thing)
            times.pop(thing, None)
        else:
            due = agenda.take(at)
            assert sorted(due) == [each for each in sorted(times) if times[each] <= at]
            taken = [times.pop(each) for each in due]
            assert taken == sorted(taken)
        assert agenda.soonest == min(times.values(), default=None)
        assert {each: agenda.time_of(each) for each in range(6)} == {each: times.get(each) for each in range(6)}
        assert len(agenda) == len(times)


def test_the_soonest_comes_first_and_of_equals_the_first() -> None:
    agenda = Agenda[str]()
    for thing, at in (("late", 3.0), ("first", 1.0), ("second", 1.0), ("never", 9.0)):
        agenda.put(thing, at)
    assert agenda.take(3.0) == ["first", "second", "late"]
    assert agenda.take(3.0) == []


def test_what_counts_no_more_is_not_kept() -> None:
    agenda = Agenda[str]()
    for number in range(10_000):
        agenda.put("sooner and sooner", 20_000.0 - number)
    assert len(agenda._heap) <= MAX_VOID + 4
    assert agenda.soonest == 10_001.0
