"""Topics and patterns: what they may look like, what matches what, and an index of many patterns.

A topic is segments joined by dots, as in ``sensors.kitchen.temperature``. In a pattern a segment may be ``*``, which
stands for exactly one segment, or ``**``, which stands for any number of them, also none.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from meshmsg.errors import ConfigurationError

T = TypeVar("T", bound=Hashable)

MAX_TOPIC_BYTES = 200
MAX_CACHED = 16_384  # topics whose matches an index remembers
# libzmq loses filters of a connection that comes back when they are more than its high-water mark (libzmq#2258).
MAX_FILTERS = 900

# Topics end up in terminals and logs: nothing there that moves a cursor, breaks a line or turns its text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def find_fault(text: object, *, pattern: bool = False) -> str | None:
    """What is wrong with a topic or pattern, in words that do not repeat it; None if nothing is."""
    if not isinstance(text, str):
        return f"it is a {type(text).__name__}, not a text"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode (a lone surrogate)"
    if not 0 < size <= MAX_TOPIC_BYTES:
        return f"it takes {size} bytes, and 1 to {MAX_TOPIC_BYTES} are allowed"
    if _CONTROL.search(text):
        return "it holds a control character"
    segments = text.split(".")
    if "" in segments:
        return "it has an empty segment"
    for segment in segments:
        if "*" in segment and not (pattern and segment in ("*", "**")):
            return "'*' stands for a whole segment, as in 'sensors.*.temperature'" if pattern else "it holds a '*'"
    return None


def require_topic(where: str, text: object) -> str:
    """Returns a topic; raises ``ConfigurationError`` with the fault and what to write instead."""
    fault = find_fault(text)
    if fault is not None:
        hint = (
            "one topic, without wildcards" if is_pattern(text) else "segments joined by dots, as in 'sensors.kitchen'"
        )
        raise ConfigurationError(f"{where} takes a topic, got {_shorten(text)}: {fault}; write {hint}")
    assert isinstance(text, str)
    return text


def require_pattern(where: str, text: object) -> str:
    """Returns a topic or pattern; raises ``ConfigurationError`` with the fault and what to write instead."""
    fault = find_fault(text, pattern=True)
    if fault is not None:
        hint = "segments joined by dots, each a name, '*' or '**'"
        raise ConfigurationError(f"{where} takes a topic or pattern, got {_shorten(text)}: {fault}; write {hint}")
    assert isinstance(text, str)
    return text


def is_pattern(text: object) -> bool:
    """Whether a text has wildcards, so that more than one topic can match it.

    >>> is_pattern("sensors.*"), is_pattern("sensors.kitchen")
    (True, False)
    """
    return isinstance(text, str) and "*" in text


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic matches a pattern; at worst the product of their segments in steps.

    >>> matches("sensors.**.temperature", "sensors.temperature")
    True
    """
    if "*" not in pattern:
        return pattern == topic
    wanted, given = pattern.split("."), topic.split(".")
    at = 0  # in the pattern
    retry_at, retry_from = -1, 0  # behind the last '**', and the segment that it would swallow next
    index = 0
    while index < len(given):
        if at < len(wanted) and wanted[at] == "**":
            retry_at, retry_from = at + 1, index
            at += 1
        elif at < len(wanted) and wanted[at] in ("*", given[index]):
            at += 1
            index += 1
        elif retry_at >= 0:
            retry_from += 1
            at, index = retry_at, retry_from
        else:
            return False
    return all(segment == "**" for segment in wanted[at:])


def choose_topic(pattern: str, topic: object) -> str:
    """The topic that one message of a ``pub`` goes to, checked; without one, the pattern has to be a topic itself.

    >>> choose_topic("sensors.*", "sensors.attic"), choose_topic("sensors.attic", None)
    ('sensors.attic', 'sensors.attic')
    """
    if topic is None:
        if is_pattern(pattern):
            raise ConfigurationError(f"pub({pattern!r}) has many topics: say which, send(body, topic=...)")
        return pattern
    name = require_topic("send(topic=)", topic)
    if not matches(pattern, name):
        raise ConfigurationError(f"{name!r} is no topic of pub({pattern!r}): open a pub of its own for it")
    return name


def prefix_of(pattern: str) -> str:
    """The longest text that every matching topic begins with, at a border of segments: the filter for ZeroMQ.

    >>> prefix_of("sensors.*.temperature"), prefix_of("sensors.**"), prefix_of("**")
    ('sensors.', 'sensors', '')
    """
    segments = pattern.split(".")
    literal = next((index for index, each in enumerate(segments) if each in ("*", "**")), len(segments))
    prefix = ".".join(segments[:literal])
    must_go_on = any(each != "**" for each in segments[literal:])
    return prefix + "." if prefix and must_go_on else prefix


def filters_of(patterns: Iterable[str], most: int = MAX_FILTERS) -> list[str]:
    """Few prefixes that let every topic through that matches one of the patterns; those of others may pass, too.

    With more than ``most`` of them the longest lose segments, as many as it takes. Sorted.
    """
    prefixes = _uncovered({prefix_of(pattern) for pattern in patterns})
    while len(prefixes) > most:
        depth = max(prefix.rstrip(".").count(".") for prefix in prefixes)
        shorter = set[str]()
        for prefix in prefixes:
            deep = prefix.rstrip(".").count(".") == depth
            shorter.add(prefix.rstrip(".").rpartition(".")[0] + "." * (depth > 0) if deep else prefix)
        prefixes = _uncovered(shorter)
    return prefixes


def _uncovered(prefixes: set[str]) -> list[str]:
    """Those that do not begin with another one; in order, a prefix comes right before what it covers."""
    kept: list[str] = []
    for prefix in sorted(prefixes):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return kept


def overlaps(pattern_a: str, pattern_b: str) -> bool:
    """Whether some topic can match both; at worst the product of their segments in steps.

    >>> overlaps("sensors.**", "*.kitchen.temperature"), overlaps("sensors.*", "sensors.*.temperature")
    (True, False)
    """
    first, second = pattern_a.split("."), pattern_b.split(".")
    # reachable[j]: the rest of ``first`` from the current segment on, and of ``second`` from j on, may still meet.
    reachable = [all(each == "**" for each in second[index:]) for index in range(len(second) + 1)]
    for a in reversed(first):
        row = [False] * len(second) + [a == "**" and reachable[-1]]
        for index in range(len(second) - 1, -1, -1):
            b = second[index]
            if "**" in (a, b):  # it stands for nothing, or swallows one segment of the other
                row[index] = reachable[index] or row[index + 1]
            else:
                row[index] = reachable[index + 1] and (a == b or "*" in (a, b))
        reachable = row
    return reachable[0]


class _Node(Generic[T]):
    """One segment of the patterns that begin alike."""

    __slots__ = ("children", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.values: dict[T, None] = {}


class PatternIndex(Generic[T]):
    """Values under patterns, found by topic.

    A trie of segments: adding, removing and a first ``match`` cost steps by the segments of one pattern or topic, not
    by the number of patterns; only patterns that differ behind wildcards are walked side by side, each at most once
    per segment. Repeated topics come from a cache of ``MAX_CACHED``, which any change empties.

    >>> index = PatternIndex[str]()
    >>> index.add("sensors.*", "one"); index.add("**", "all")
    >>> sorted(index.match("sensors.kitchen"))
    ['all', 'one']
    """

    def __init__(self) -> None:
        self.generation = 0  # changes with every change
        self._root: _Node[T] = _Node()
        self._cache: dict[str, tuple[T, ...]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, pattern: str, value: T) -> None:
        """Puts a value under a pattern. Twice is as once."""
        node = self._root
        for segment in pattern.split("."):
            following = node.children.get(segment)
            if following is None:
                following = node.children[segment] = _Node()
            node = following
        if value not in node.values:
            node.values[value] = None
            self._count += 1
            self.generation += 1
            self._cache.clear()

    def remove(self, pattern: str, value: T) -> None:
        """Takes a value away from a pattern; without it, nothing happens."""
        way: list[tuple[_Node[T], str]] = []
        node = self._root
        for segment in pattern.split("."):
            way.append((node, segment))
            following = node.children.get(segment)
            if following is None:
                return
            node = following
        if value not in node.values:
            return
        del node.values[value]
        self._count -= 1
        self.generation += 1
        self._cache.clear()
        for above, segment in reversed(way):
            below = above.children[segment]
            if below.values or below.children:
                break
            del above.children[segment]

    def match(self, topic: str) -> tuple[T, ...]:
        """The values of all patterns that a topic matches, each once."""
        found = self._cache.get(topic)
        if found is None:
            found = self.find(topic)
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            self._cache[topic] = found
        return found

    def find(self, topic: str) -> tuple[T, ...]:
        """As ``match``, for who remembers it himself until ``generation`` is another."""
        # Dicts as sets that keep their order: who is delivered to first must not depend on hashes.
        active: dict[_Node[T], bool] = {}  # node -> whether it is a '**', which swallows further segments
        self._enter(self._root, False, active)
        for segment in topic.split("."):
            following: dict[_Node[T], bool] = {}
            for node, swallows in active.items():
                if swallows:
                    self._enter(node, True, following)
                for name in (segment, "*"):
                    child = node.children.get(name)
                    if child is not None:
                        self._enter(child, False, following)
            active = following
        found: dict[T, None] = {}
        for node in active:
            found.update(node.values)
        return tuple(found)

    @staticmethod
    def _enter(node: _Node[T], swallows: bool, active: dict[_Node[T], bool]) -> None:
        """A '**' may stand for nothing, so whoever reaches a node reaches a '**' below it, too."""
        entering: _Node[T] | None = node
        while entering is not None:
            active[entering] = swallows or active.get(entering, False)
            entering = entering.children.get("**")
            swallows = True


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
