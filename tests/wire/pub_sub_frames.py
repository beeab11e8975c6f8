"""The frames of publish and subscribe for the tests of all frames: drawn, valid, wrong and golden."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from meshmsg.wire import frames
from meshmsg.wire.codec import make_packer

pack = make_packer()

NATURAL = st.integers(0, frames.MAX_SEQ)
TOPICS = st.text("abü.", max_size=40)
POSITIONS = st.lists(st.tuples(TOPICS, NATURAL).map(list), max_size=3)
STARTED = st.tuples(TOPICS, st.integers(9, 99), st.integers(0, 9), st.booleans()).map(list)
HEADERS = st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=2)

DRAWN = st.one_of(
    st.builds(frames.Start, NATURAL, st.lists(STARTED, max_size=3), st.booleans()),
    st.builds(
        frames.Past,
        TOPICS,
        st.integers(0, 9),
        st.integers(10, 20),
        st.none() | st.dictionaries(st.just(9), HEADERS, max_size=1),
        st.booleans(),
        st.just(b""),
    ),
    st.builds(frames.Forgotten, TOPICS, NATURAL, st.booleans()),
    st.builds(frames.Beacon, POSITIONS),
    st.builds(frames.Want, TOPICS, st.integers(0, 9), st.integers(10, frames.MAX_SEQ)),
    st.builds(frames.Lag, NATURAL, POSITIONS),
)

VALID: dict[int, list[Any]] = {
    frames.START: [1, [["a", 5, 2, True]], True],
    frames.PAST: ["a", 5, 1, {5: {"h": 1}}, False],
    frames.FORGOTTEN: ["a", 5, False],
    frames.BEACON: [[["a", 5]]],
    frames.WANT: ["a", 5, 2**62],
    frames.LAG: [1, [["a", 5]]],
}
NOT_FLAGS = [None, 0, 1, "", [], {}]
NOT_HEADERS = [[], "h", 1, {"0": {}}, {True: {}}, {4: {}}, {6: {}}, {5: None}, {5: {1: 2}}, {5: []}]


def wrong_fields(
    not_natural: list[Any], not_lists: list[Any], not_names: list[Any]
) -> dict[tuple[int, int], list[Any]]:
    """By kind and place, what a field must not be, for those that are more than a natural number."""
    not_topics = [*not_names, "x" * 201]
    not_positions = [
        *not_lists,
        *([each] for each in not_lists),
        [["a"]],
        [["a", 1, 2]],
        *([[value, 1]] for value in not_topics),
        *([["a", value]] for value in not_natural),
    ]
    not_started = [
        *not_lists,
        [["a", 1, 0]],
        [["a", 1, 2, False]],  # a history that begins behind the end
        [["a", 0, 0, True]],  # a last value of nothing
        *([[value, 1, 0, True]] for value in not_topics),
        *([["a", value, 0, True]] for value in not_natural),
        *([["a", 1, value, True]] for value in not_natural),
        *([["a", 1, 0, value]] for value in NOT_FLAGS),
    ]
    return {
        (frames.START, 1): not_started,
        (frames.START, 2): NOT_FLAGS,
        (frames.PAST, 0): not_topics,
        (frames.PAST, 1): [*not_natural, 4, 6, 2**62],
        (frames.PAST, 2): [*not_natural, 0, 2**62],
        (frames.PAST, 3): NOT_HEADERS,
        (frames.PAST, 4): NOT_FLAGS,
        (frames.FORGOTTEN, 0): not_topics,
        (frames.FORGOTTEN, 2): NOT_FLAGS,
        (frames.BEACON, 0): not_positions,
        (frames.WANT, 0): not_topics,
        (frames.WANT, 2): [*not_natural, 5, 4],
        (frames.LAG, 1): not_positions,
    }


GOLDEN: dict[str, tuple[frames.Frame, list[bytes]]] = {
    "START, two topics": (frames.Start(3, [["a.b", 1200, 200, True], ["c", 7, 7, False]], True), []),
    "PAST, two messages, the second with headers": (
        frames.Past("a.b", 5, 2, {6: {"unit": "C"}}, False, b""),
        [pack(20.5), pack(21)],
    ),
    "FORGOTTEN, more of the answer follows": (frames.Forgotten("a.b", 200, True), []),
    "BEACON": (frames.Beacon([["a.b", 1200]]), []),
    "WANT": (frames.Want("a.b", 5, 7), []),
    "LAG": (frames.Lag(3, [["a.b", 1200]]), []),
}
