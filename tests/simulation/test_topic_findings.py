"""What the simulator found in the machines of topics, each as small as it gets."""

from __future__ import annotations

import random

import pytest

from meshmsg.engine.publisher import Publisher, make_marker
from meshmsg.engine.subscriber import Subscriptions
from meshmsg.engine.subscription import Gap, Subscription
from meshmsg.errors import ProtocolError
from meshmsg.testing import Cluster
from meshmsg.wire.frames import Start

pytestmark = pytest.mark.guarantee("G6")


def test_what_is_due_is_done_when_it_is_due() -> None:
    """Whatever the rounding: else the driver goes round in circles until its clock moves."""
    chance = random.Random(1)
    for _ in range(1000):
        now = chance.uniform(0.0, 10.0)
        publisher = Publisher()
        publisher.on_offers("b.1", 1, {"news": {"since": 1}}, now)
        publisher.on_filter(make_marker("b", 1, 1), True, now)
        assert len(publisher.answers(now)) == 1
        due = publisher.wake_at(now)
        assert due is not None
        assert len(publisher.answers(due)) == 1


def test_a_start_for_a_socket_that_is_gone_is_no_offence() -> None:
    """It was on its way when the subscriber stopped following, and says nothing about the next socket."""
    subscriptions = Subscriptions("b", 1)
    subscription = Subscription("news")
    subscriptions.add(subscription, 1)
    reception = subscriptions.follow("a.1")
    reception.change_filters()
    reception.forget_filters()
    reception.on_start(Start(1, [["news", 5, 5, False]], True), 0.0)
    assert not reception.topics
    with pytest.raises(ProtocolError, match="never set"):
        reception.on_start(Start(2, [], True), 0.0)


def test_a_gap_is_told_although_nobody_takes_messages() -> None:
    subscription = Subscription("news")
    subscription.miss("news", "a.1", 0, 3)
    subscription.put("news", "a.1", 3, ["x"], None, 1)
    assert subscription.take(0) == [Gap("news", "a.1", 0, 3)]
    assert subscription.take(0) == []
    assert subscription.waiting == 1


def test_a_busy_application_hears_of_a_gap_at_once() -> None:
    cluster = Cluster(seed=2)
    publisher = cluster.node("p")
    sub = cluster.node("s").sub("news", takes=30.0)
    pub = publisher.pub("news")
    cluster.run(1.0)
    pub.send("first")
    cluster.run(1.0)
    cluster.network.broadcasts.drops = 1.0
    for _ in range(5):
        pub.send(b"\0" * 400_000)
    cluster.run(3.0)
    assert (sub.received, [(gap.start, gap.stop) for gap in sub.gaps]) == (["first"], [(1, 4)])


def test_a_last_will_is_given_once_although_its_publisher_tries_to_come_back() -> None:
    """It is heard again, but dies before both directions are proven: it went once, not twice."""
    cluster = Cluster(seed=3)
    publisher = cluster.node("p")
    publisher.pub("presence.p", will="gone")
    subscriber = cluster.node("s")
    sub = subscriber.sub("presence.*")
    cluster.run(1.0)
    cluster.freeze(publisher)
    cluster.run(4.0)
    assert sub.received == ["gone"]
    cluster.thaw(publisher)
    cluster.run(0.01)
    cluster.crash(publisher)
    cluster.run(20.0)
    assert sub.received == ["gone"]
    assert [event.kind for event in subscriber.events if event.kind == "peer.up"] == ["peer.up"]


def test_a_publisher_of_the_past_is_followed_while_somebody_has_messages_of_it() -> None:
    """Else they would come again when it publishes once more, to a subscription that asks for the past."""
    cluster = Cluster(seed=4)
    publisher, subscriber = cluster.node("p"), cluster.node("s")
    pub = publisher.pub("news.a", history=10)
    first = subscriber.sub("news.a")
    cluster.run(1.0)
    pub.send("old")
    pub.close()
    cluster.run(1.0)
    second = subscriber.sub("news.*", replay="history")
    cluster.run(1.0)
    assert second.received == ["old"]
    first.close()
    cluster.run(1.0)
    publisher.pub("news.a", history=10).send("new")
    cluster.run(2.0)
    assert second.received == ["old", "new"]
