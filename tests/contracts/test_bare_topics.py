"""`reliable=False` for topics, in whatever face: who meets whom, and who says so."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg import UnknownOption, WaitTimeout
from tests.contracts.faces import PATIENCE_S, Face, until


def test_a_bare_pair_can_be_waited_for(face: Face) -> None:
    publisher, subscriber = face.pair()
    out, sub = publisher.pub("bare.*", reliable=False), subscriber.sub("bare.**", reliable=False)
    publisher.wait_for(sub="bare.a", timeout=PATIENCE_S)
    out.send(1, topic="bare.a")
    assert sub.get(timeout=PATIENCE_S).body == 1, "whoever was waited for gets the first message"
    own = publisher.sub("bare.a", reliable=False)
    publisher.wait_for(sub="bare.a", count=2, timeout=PATIENCE_S)
    out.send(2, topic="bare.a")
    assert sub.get(timeout=PATIENCE_S).body == own.get(timeout=PATIENCE_S).body == 2
    sub.close()
    own.close()
    until(lambda: _count(publisher, "bare.a") == 0)


def _count(node: object, topic: str) -> int:
    target = getattr(node, "_target", None) or node._node  # type: ignore[attr-defined]  # of the asyncio or blocking face
    count: int = target._topics.count_subscribers(topic)
    return count


def test_what_a_full_subscriber_has_no_room_for_is_counted(face: Face) -> None:
    publisher, subscriber = face.pair()
    out, sub = publisher.pub("u", reliable=False), subscriber.sub("u", reliable=False, buffer=2)
    publisher.wait_for(sub="u", timeout=PATIENCE_S)
    out.send_many(range(5))
    until(lambda: sub.dropped == 3)


def test_two_of_a_pattern_count_as_one_node(face: Face) -> None:
    publisher, subscriber = face.pair()
    first, _ = subscriber.sub("u", reliable=False), subscriber.sub("u", reliable=False)
    publisher.pub("u", reliable=False)
    publisher.wait_for(sub="u", timeout=PATIENCE_S)
    first.close()
    publisher.wait_for(sub="u", timeout=PATIENCE_S)
    with pytest.raises(WaitTimeout, match=r"^found 1 of 2 for sub='u'"):
        publisher.wait_for(sub="u", count=2, timeout=0.05)


def test_who_subscribes_in_another_way_is_not_counted_and_named(face: Face) -> None:
    publisher, subscriber = face.pair()
    publisher.pub("u", reliable=False)
    publisher.pub("r")
    subscriber.sub("u")
    subscriber.sub("r", reliable=False)
    subscriber.sub("x")  # so that each hears of the other's broadcast all the same
    publisher.pub("x")
    publisher.wait_for(sub="x", timeout=PATIENCE_S)
    told = "subscribes to it reliably, this pub has reliable=False: both ends need the same"
    with pytest.raises(WaitTimeout, match=f"^found 0 of 1 for sub='u' within 0.05 s; 'consumer' {told}$"):
        publisher.wait_for(sub="u", timeout=0.05)
    told = "subscribes to it with reliable=False, this pub is reliable: both ends need the same"
    with pytest.raises(WaitTimeout, match=f"^found 0 of 1 for sub='r' within 0.05 s; 'consumer' {told}$"):
        publisher.wait_for(sub="r", timeout=0.05)


def test_peers_are_told_of_bare_topics(face: Face) -> None:
    publisher, subscriber = face.pair()
    out, sub = publisher.pub("u.*", reliable=False), subscriber.sub("u.**", reliable=False)
    until(lambda: [peer.offers.get("bare_pub") for peer in subscriber.peers()] == [{"u.*": {}}])
    until(lambda: [peer.offers.get("bare_sub") for peer in publisher.peers()] == [{"u.**": {}}])
    out.close()
    sub.close()
    until(lambda: not any(peer.offers.get("bare_pub") for peer in subscriber.peers()))
    until(lambda: not any(peer.offers.get("bare_sub") for peer in publisher.peers()))


@pytest.mark.parametrize("how", ["send", "send_nowait"])
@pytest.mark.parametrize("option", [{"headers": {"a": 1}}, {"key": "k"}, {"priority": 1}])
def test_what_does_not_travel_is_refused_by_name(face: Face, how: str, option: dict[str, Any]) -> None:
    out = face.node().pub("u.*", reliable=False)
    (name,) = option
    with pytest.raises(UnknownOption, match=rf"^pub\('u\.\*', reliable=False\) is bare ZeroMQ and sends no {name}: "):
        getattr(out, how)(1, topic="u.a", **option)
    getattr(out, how)(1, topic="u.a")
