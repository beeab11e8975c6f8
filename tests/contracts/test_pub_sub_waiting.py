"""Waiting for publishers and subscribers: what counts, and what is said when the time is over."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg.errors import ConfigurationError, WaitTimeout
from tests.contracts.faces import PATIENCE_S, Face

pytestmark = pytest.mark.guarantee("G6")


@pytest.mark.parametrize(
    "open_more",
    [
        lambda node: node.pub("other"),
        lambda node: node.pull("jobs"),
        lambda node: node.sub("other", group="g"),
        lambda node: node.sub("other"),
    ],
    ids=["pub", "pull", "group", "sub"],
)
def test_a_subscriber_is_confirmed_whatever_else_it_opens(face: Face, open_more: Any) -> None:
    subscriber = face.node("subscriber")
    sub = subscriber.sub("news.*")
    open_more(subscriber)
    publisher = face.node("publisher")  # it sees the last of the offers only
    out = publisher.pub("news.today")
    publisher.wait_for(sub="news.today", timeout=PATIENCE_S)
    open_more(publisher)
    out.send("hello")
    assert sub.get(timeout=PATIENCE_S).body == "hello"


def test_a_subscriber_knows_when_it_is_live(face: Face) -> None:
    publisher, subscriber = face.pair()
    out = publisher.pub("news.*")
    subs = [subscriber.sub(pattern) for pattern in ("news.today", "**")]
    subscriber.wait_for(pub="news.today", timeout=PATIENCE_S)
    out.send("hello", topic="news.today")
    assert [sub.get(timeout=PATIENCE_S).body for sub in subs] == ["hello", "hello"]
    late = subscriber.sub("news.**")
    subscriber.wait_for(pub="news.today", timeout=PATIENCE_S)
    out.send("again", topic="news.today")
    assert late.get(timeout=PATIENCE_S).body == "again"
    out.close()
    subscriber.wait_for(pub="news.today", count=0, timeout=PATIENCE_S)


def test_who_waits_in_vain_hears_why(face: Face) -> None:
    publisher, subscriber = face.pair()
    with pytest.raises(WaitTimeout, match=r"this node publishes nothing, which is not 'a.b'"):
        publisher.wait_for(sub="a.b", timeout=0)
    publisher.pub("a")
    with pytest.raises(WaitTimeout, match=r"this node publishes 'a', which is not 'a.b': only what is published here"):
        publisher.wait_for(sub="a.b", timeout=0)
    with pytest.raises(
        WaitTimeout, match=r"found 0 of 1 for pub='a.b' .* no reliable sub\(\) of this node matches 'a.b'"
    ):
        subscriber.wait_for(pub="a.b", timeout=0)
    subscriber.sub("**")
    with pytest.raises(WaitTimeout, match=r"nobody publishes to it reliably \(1 peers seen\)"):
        subscriber.wait_for(pub="a.b", timeout=0.1)
    subscriber.wait_for(pub="a", timeout=PATIENCE_S)
    with pytest.raises(WaitTimeout, match=r"found 1 of 2 .* published by 'producer'"):
        subscriber.wait_for(pub="a", count=2, timeout=0)


@pytest.mark.parametrize("kind", ["sub", "pub"])
@pytest.mark.parametrize(
    ("topic", "fault"),
    [("a.*", "one topic, without wildcards"), ("a..b", "empty segment"), ("", "0 bytes"), (7, "int")],
)
def test_what_is_no_topic_cannot_be_waited_for(face: Face, kind: str, topic: Any, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"wait_for\({kind}=\) takes a topic, got .*{fault}"):
        face.node().wait_for(**{kind: topic}, timeout=0)


def test_a_retained_value_can_be_taken_back_at_once(face: Face) -> None:
    publisher, subscriber = face.pair()
    out = publisher.pub("news", retain=True)
    out.send("secret")
    assert out.delete_retained() is True
    sub = subscriber.sub("news", replay="latest")
    publisher.wait_for(sub="news", timeout=PATIENCE_S)
    out.send("public")
    assert sub.get(timeout=PATIENCE_S).body == "public"
