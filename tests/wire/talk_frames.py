"""The frames of requests for the tests of all frames: drawn, valid, wrong and golden."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from meshmsg.wire import frames, items
from meshmsg.wire.codec import make_packer

pack = make_packer()

NATURAL = st.integers(0, frames.MAX_SEQ)
LINE = st.text("abü .", max_size=20)
LINES = st.text(max_size=30)
NUMBERS = st.lists(NATURAL, min_size=1, max_size=5)
COUNT = st.integers(1, 5)
SECONDS = st.none() | st.floats(0, 1e6)
HEADERS = st.none() | st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=2)
FIRST = st.integers(0, 2**61)


def _call(draw: st.DrawFn) -> list[Any]:
    flags = draw(st.integers(0, 3))
    window = draw(NATURAL) if flags & items.WANTS_ITEMS else 0
    said = [draw(FIRST), draw(COUNT), draw(LINE), draw(LINE), draw(SECONDS), flags, window, draw(HEADERS)]
    more = draw(st.lists(NATURAL, max_size=1))  # bytes, from those who know them
    return [items.CALL, *said, *more]


@st.composite
def _and_more(draw: st.DrawFn, most: int, *fields: st.SearchStrategy[Any]) -> list[Any]:
    """An item, and up to so many fields that were added later."""
    return [*(draw(field) for field in fields), *draw(st.lists(NATURAL, max_size=most))]


ITEM = st.one_of(
    st.composite(_call)(),
    st.tuples(st.sampled_from([items.CANCEL, items.RESULT]), NUMBERS).map(list),
    _and_more(2, st.sampled_from([items.CREDIT, items.UP_CREDIT]), NATURAL, NATURAL),
    _and_more(1, st.sampled_from([items.UP_ITEMS, items.ITEMS]), NATURAL, COUNT),
    st.tuples(st.sampled_from([items.UP_END, items.END]), NATURAL).map(list),
    st.tuples(st.just(items.FAULT), NATURAL, LINE, LINE, LINES, st.none() | LINES, SECONDS, st.integers(0, 1)).map(
        list
    ),
    st.tuples(st.just(99), LINES).map(list),  # of a later version
)
TALKS = st.builds(frames.Talk, NATURAL, NATURAL, NATURAL, NATURAL, st.lists(ITEM, max_size=4), st.just(b""))
DRAWN = st.one_of(TALKS, st.builds(frames.Heard, NATURAL, NATURAL, NATURAL, NATURAL, NATURAL))

CALL = [items.CALL, 0, 1, "math", "add", 1.5, 1, 16, {"h": 1}, 2**22]
VALID: dict[int, list[Any]] = {
    frames.TALK: [1, 1, 0, 0, [CALL]],
    frames.HEARD: [1, 1, 0, 0, 0],
}
VALID_ITEMS: list[list[Any]] = [
    CALL,
    [items.CANCEL, [0, 5]],
    [items.CREDIT, 0, 16, 8, 2**22],
    [items.UP_ITEMS, 0, 1, 1],
    [items.UP_END, 0],
    [items.RESULT, [0]],
    [items.FAULT, 0, "error", "ValueError", "no\nsuch", "Traceback\n", 1.5, 0],
    [items.ITEMS, 0, 1, 1],
    [items.END, 0],
    [items.UP_CREDIT, 0, 16, 8, 2**22],
]
# How long an item was before fields were added to it; it may still come so.
SHORTEST = {items.CALL: 9, items.CREDIT: 3, items.UP_ITEMS: 3, items.ITEMS: 3, items.UP_CREDIT: 3}


def not_items(
    not_natural: list[Any], not_lists: list[Any], not_seconds: list[Any], controls: list[str]
) -> list[list[list[Any]]]:
    """Every item with each of its fields in turn being what it must not be, or missing."""
    not_maps = [[], "h", 1, True, {1: 2}, {b"h": 1}, {None: 1}]
    not_texts = [None, 1, b"x", [], {}]
    not_lines = [*not_texts, *(f"a{letter}b" for letter in controls)]
    not_numbers = [*not_lists, [], *([0, value] for value in not_natural)]
    not_counts = [*not_natural, 0]
    wrong: dict[tuple[int, int], list[Any]] = {
        (items.CALL, 1): [*not_natural, 2**62],
        (items.CALL, 2): [*not_counts, 2**62 + 1],
        (items.CALL, 3): [*not_lines, "x" * 201],
        (items.CALL, 4): [*not_lines, "x" * 201],
        (items.CALL, 5): not_seconds,
        (items.CALL, 6): [*not_natural, 0, 2],  # there is credit, so it wants items
        (items.CALL, 8): not_maps,
        (items.CANCEL, 1): not_numbers,
        (items.UP_ITEMS, 2): not_counts,
        (items.RESULT, 1): not_numbers,
        (items.FAULT, 2): [*not_lines, "x" * 101],
        (items.FAULT, 3): [*not_lines, "x" * 201],
        (items.FAULT, 4): [*not_texts, "x" * 1001],
        (items.FAULT, 5): [*not_texts[1:], "x" * 20_001],
        (items.FAULT, 6): not_seconds,
        (items.ITEMS, 2): not_counts,
    }
    made: list[list[list[Any]]] = []
    for item in VALID_ITEMS:
        for place in range(1, len(item)):
            made += [[[*item[:place], value, *item[place + 1 :]]] for value in wrong.get((item[0], place), not_natural)]
            if place < SHORTEST.get(item[0], len(item)):
                made.append([item[:place]])
    return made


def wrong_fields(
    not_natural: list[Any], not_lists: list[Any], not_seconds: list[Any], controls: list[str]
) -> dict[tuple[int, int], list[Any]]:
    """By kind and place, what a field must not be, for those that are more than a natural number."""
    no_ops = [[], [None], [True], ["1"], [1.0], [b"1"], [[]]]
    odd = [*not_lists, *([each] for each in not_lists), *([CALL, each] for each in no_ops)]
    return {(frames.TALK, 4): [*odd, *not_items(not_natural, not_lists, not_seconds, controls)]}


def body_count(frame: frames.Talk) -> int:
    """How many bodies belong to it."""
    return items.count_bodies(frame.items)


GOLDEN: dict[str, tuple[frames.Frame, list[bytes]]] = {
    "TALK, two calls, one that wants items and sends some, and one is cancelled": (
        frames.Talk(
            2,
            5,
            0,
            3,
            [
                [items.CALL, 7, 2, "math", "add", 1.5, 0, 0, None],
                [items.CALL, 9, 1, "files", "read", None, 3, 16, {"trace": "1"}, 4194304],
                [items.CANCEL, [4, 6]],
                [items.CREDIT, 3, 24, 8],
                [items.UP_ITEMS, 9, 2],
                [items.UP_END, 9],
            ],
            b"",
        ),
        [pack([[2, 3], {}]), pack([[2], {"b": 4}]), pack([["a.txt"], {}]), pack("x"), pack(b"y")],
    ),
    "TALK, two results, a fault, items, the end of others": (
        frames.Talk(
            5,
            2,
            3,
            1,
            [
                [items.RESULT, [7, 8]],
                [items.FAULT, 10, "overloaded", "", "1000 calls wait", None, 0.5, items.NEVER_RAN],
                [items.ITEMS, 9, 2, items.MARKED],
                [items.END, 3],
                [items.UP_CREDIT, 9, 16, 0, 4194304],
            ],
            b"",
        ),
        [pack(5), pack(6), pack("line 1"), pack("line 2")],
    ),
    "HEARD, the other side's number is not known and is asked for": (frames.Heard(2, 0, 0, 0, frames.ASKS), []),
    "HEARD, frames from 3 on are missing": (frames.Heard(2, 5, 3, 9, frames.MISSING), []),
}
