"""A node that publishes to thousands of topics: declaring one costs no look at each of the others."""

from __future__ import annotations

import pytest

from meshmsg.engine import groups as groups_module
from meshmsg.engine import publisher as publisher_module
from meshmsg.engine.publisher import Publisher
from meshmsg.engine.topic_log import TopicOptions
from meshmsg.engine.topics import overlaps
from meshmsg.errors import NameClash
from meshmsg.testing import Cluster

KINDS = [TopicOptions(), TopicOptions(retain=True), TopicOptions(window=9)]


@pytest.fixture(name="compared")
def _count(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The pairs of patterns that were compared."""
    compared: list[tuple[str, str]] = []

    def note(pattern_a: str, pattern_b: str) -> bool:
        compared.append((pattern_a, pattern_b))
        return overlaps(pattern_a, pattern_b)

    monkeypatch.setattr(publisher_module, "overlaps", note)
    monkeypatch.setattr(groups_module, "overlaps", note)
    return compared


def test_single_topics_are_compared_with_none(compared: list[tuple[str, str]]) -> None:
    publisher = Publisher()
    publisher.declare("plain.**", KINDS[0])
    compared.clear()
    for number in range(600):
        publisher.declare(f"{('plain', 'kept', 'waited')[number % 3]}.{number}", KINDS[number % 3])
    assert not compared
    assert len(publisher.offers()) == 601
    assert publisher.offers() is publisher.offers()  # not made anew for each


def test_patterns_are_compared_with_those_that_differ(compared: list[tuple[str, str]]) -> None:
    publisher = Publisher()
    for number in range(100):
        publisher.declare(f"a{number}.*", KINDS[0])
    assert not compared
    publisher.declare("b.*", KINDS[1])
    assert len(compared) == 100


@pytest.mark.parametrize(("first", "second"), [("a.b", "a.b"), ("a.*", "a.b"), ("a.b", "a.*"), ("a.*", "*.b")])
def test_what_shares_topics_with_other_options_is_refused(first: str, second: str) -> None:
    publisher = Publisher()
    publisher.declare(first, KINDS[0])
    publisher.declare("c", KINDS[1])
    with pytest.raises(NameClash, match="shares topics with 'a") as caught:
        publisher.declare(second, KINDS[1])
    assert repr(first) in str(caught.value)
    assert list(publisher.offers()) == [first, "c"]
    publisher.declare(first, KINDS[0])
    publisher.withdraw(first)
    with pytest.raises(NameClash):
        publisher.declare(second, KINDS[1])
    publisher.withdraw(first)
    publisher.declare(second, KINDS[2])
    assert publisher.offers() == {"c": {}, second: KINDS[2].offer()}
    publisher.publish("a.b", b"1")
    assert publisher.logs["a.b"].options == KINDS[2]


@pytest.mark.guarantee("G7")
def test_a_topic_is_compared_with_groups_and_with_no_other_topic(compared: list[tuple[str, str]]) -> None:
    cluster = Cluster(1)
    node, other = cluster.node("a"), cluster.node("b")
    members = [other.group(f"orders.{name}", "billing") for name in ("eu", "us", "*")]
    pub = node.pub("first")
    cluster.run(1.0)
    compared.clear()
    for number in range(100):
        node.pub(f"other.{number}")
    assert len(compared) <= 100 * len(members)
    late = node.pub("orders.eu")
    pub.send("nobody")
    late.send("two groups")
    cluster.settle()
    assert [member.processed for member in members] == [["two groups"], [], ["two groups"]]
    assert len(node.engine.groups.by_queue) == 2


def test_how_much_may_follow() -> None:
    publisher = Publisher()
    publisher.declare("a", KINDS[2])
    assert min(publisher.room("a")) > 10**6  # nobody is there who could be behind
    publisher.publish("a", b"1")
    publisher.logs["a"].behind_limit = 9
    for number in range(1, 9):
        assert (publisher.room("a")[0], publisher.blocked("a")) == (9 - number, False)
        publisher.publish("a", b"1")
        publisher.collect(0.0)
    assert (publisher.room("a")[0], publisher.blocked("a")) == (0, True)
