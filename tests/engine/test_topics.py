"""Matching against a matcher that is too simple to be wrong; what topics may look like; filters."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.engine.topics import (
    MAX_CACHED,
    MAX_TOPIC_BYTES,
    PatternIndex,
    filters_of,
    find_fault,
    is_pattern,
    matches,
    overlaps,
    prefix_of,
    require_pattern,
    require_topic,
)
from meshmsg.errors import ConfigurationError

SEGMENTS = st.sampled_from(["a", "b", "ab", "ü"])
TOPICS = st.lists(SEGMENTS, min_size=1, max_size=6).map(".".join)
PATTERNS = st.lists(SEGMENTS | st.sampled_from(["*", "**"]), min_size=1, max_size=6).map(".".join)
ALL_SHORT_TOPICS = [
    ".".join(segments) for length in range(1, 6) for segments in itertools.product(("a", "b"), repeat=length)
]


def naive(pattern: list[str], topic: list[str]) -> bool:
    if not pattern:
        return not topic
    if pattern[0] == "**":
        return any(naive(pattern[1:], topic[swallowed:]) for swallowed in range(len(topic) + 1))
    return bool(topic) and pattern[0] in ("*", topic[0]) and naive(pattern[1:], topic[1:])


def match_slowly(pattern: str, topic: str) -> bool:
    return naive(pattern.split("."), topic.split("."))


@given(pattern=PATTERNS, topic=TOPICS)
def test_matches_as_the_naive_matcher(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) == match_slowly(pattern, topic)


@given(patterns=st.lists(PATTERNS, max_size=12), topics=st.lists(TOPICS, max_size=5), data=st.data())
def test_an_index_finds_what_the_matcher_finds(patterns: list[str], topics: list[str], data: st.DataObject) -> None:
    index = PatternIndex[int]()
    held: set[tuple[str, int]] = set()
    for number, pattern in enumerate(patterns):
        index.add(pattern, number % 5)
        held.add((pattern, number % 5))
        if data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(held)))
            index.remove(*gone)
            held.discard(gone)
        for topic in topics:
            found = index.match(topic)
            assert len(set(found)) == len(found)
            assert set(found) == {value for known, value in held if match_slowly(known, topic)}
    assert len(index) == len(held)
    for entry in held:
        index.remove(*entry)
    assert len(index) == 0
    assert not index._root.children


@given(pattern_a=st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=3).map(".".join), data=st.data())
def test_patterns_overlap_where_some_topic_matches_both(pattern_a: str, data: st.DataObject) -> None:
    pattern_b = data.draw(st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=3).map(".".join))
    # Two patterns of three segments that meet at all meet in a topic of at most five.
    expected = any(matches(pattern_a, topic) and matches(pattern_b, topic) for topic in ALL_SHORT_TOPICS)
    assert overlaps(pattern_a, pattern_b) == expected
    assert overlaps(pattern_b, pattern_a) == expected


@given(patterns=st.lists(PATTERNS, min_size=1, max_size=9), topic=TOPICS, most=st.integers(1, 9))
def test_filters_let_through_whatever_matches(patterns: list[str], topic: str, most: int) -> None:
    filters = filters_of(patterns, most)
    assert 0 < len(filters) <= most
    if any(matches(pattern, topic) for pattern in patterns):
        assert any(topic.startswith(each) for each in filters)
    for one, other in itertools.permutations(filters, 2):
        assert not one.startswith(other)


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [
        ("sensors.kitchen", "sensors.kitchen"),
        ("sensors.*", "sensors."),
        ("sensors.**", "sensors"),
        ("sensors.**.x", "sensors."),
        ("sensors.**.**", "sensors"),
        ("a.b.*.c.**", "a.b."),
        ("**", ""),
        ("*.b", ""),
    ],
)
def test_prefixes(pattern: str, prefix: str) -> None:
    assert prefix_of(pattern) == prefix


def test_filters_lose_their_last_segments_first() -> None:
    patterns = [f"site.{number}.room" for number in range(5)] + ["other.**"]
    assert filters_of(patterns) == ["other", *sorted(f"site.{number}.room" for number in range(5))]
    assert filters_of(patterns, 3) == ["other", "site."]
    assert filters_of(patterns, 1) == [""]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "0 bytes"),
        ("x" * 201, "201 bytes"),
        ("ü" * 101, "202 bytes"),
        (".a", "empty segment"),
        ("a.", "empty segment"),
        ("a..b", "empty segment"),
        ("a\nb", "control character"),
        ("a\u202eb", "control character"),
        ("a\udce9", "lone surrogate"),
        ("a.*", r"holds a '\*'"),
        ("a*", r"holds a '\*'"),
        (b"a", "is a bytes"),
        (None, "is a NoneType"),
    ],
)
def test_what_is_no_topic_and_why(text: object, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault) as caught:
        require_topic("pub", text)
    assert "pub takes a topic" in str(caught.value) and "write" in str(caught.value)
    assert find_fault(text) is not None


@pytest.mark.parametrize("text", ["a*", "*a.b", "a.***", "a.b*.c", "", "a..*", "*."])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ConfigurationError, match="sub takes a topic or pattern"):
        require_pattern("sub", text)


def test_what_is_fine() -> None:
    for topic in ("a", "sensors.kitchen.temperature", "größe.1", "x" * MAX_TOPIC_BYTES, "-._.$"):
        assert require_topic("pub", topic) == topic
        assert require_pattern("sub", topic) == topic
        assert not is_pattern(topic)
    for pattern in ("*", "**", "a.*.b", "**.a.**"):
        assert require_pattern("sub", pattern) == pattern
        assert is_pattern(pattern)


def test_an_index_remembers_few_topics() -> None:
    index = PatternIndex[int]()
    index.add("**", 1)
    for number in range(MAX_CACHED + 10):
        assert index.match(f"topic.{number}") == (1,)
    assert len(index._cache) <= MAX_CACHED


def test_many_wildcards_cost_no_more_than_their_segments() -> None:
    """Patterns come from peers, too: one that backtracks must not take forever."""
    topic = ".".join("a" * 95)
    pattern = ".".join(["**", "a"] * 30 + ["b"])
    index = PatternIndex[int]()
    index.add(pattern, 1)
    assert index.match(topic) == ()
    assert not matches(pattern, topic)
    assert not overlaps(pattern, topic)
