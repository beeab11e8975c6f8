"""Publishing and subscribing in the simulator, held against G6 at every step: from one to many, from many to one."""

from __future__ import annotations

import pytest

from meshmsg.errors import NameClash, OutboxFull
from meshmsg.testing import Cluster, ClusterNode, ClusterSub, GuaranteeBroken

pytestmark = pytest.mark.guarantee("G6")

LARGE = b"\0" * 400_000  # two of these are what a publisher keeps for repairs without a history


def rest(cluster: Cluster) -> None:
    topics = cluster.books.topics
    for _ in range(40):
        cluster.run(3.0)
        if not topics.outstanding() and not topics.unconfirmed():
            break
    topics.check_rest()


def confirmed(cluster: Cluster) -> None:
    cluster.run(1.0)
    assert not cluster.books.topics.unconfirmed()


def missed(sub: ClusterSub) -> int:
    return sum(gap.missed for gap in sub.gaps)


def crowd(cluster: Cluster, count: int, pattern: str) -> list[ClusterSub]:
    return [cluster.node(f"s{number}").sub(pattern) for number in range(count)]


def test_from_one_to_fifty() -> None:
    """Each of 50 subscribers gets everything in order, although its connection loses a part of it."""
    cluster = Cluster(seed=7)
    pub = cluster.node("p").pub("prices.*")
    subs = crowd(cluster, 50, "prices.*")
    confirmed(cluster)
    cluster.network.broadcasts.drops = 0.2
    for number in range(200):
        pub.send(number, f"prices.{number % 3}")
        cluster.run(0.01)
    rest(cluster)
    assert cluster.network.broadcasts.dropped > 500
    for sub in subs:
        assert sorted(sub.received) == list(range(200))
        assert not sub.gaps


def test_from_fifty_to_one() -> None:
    """One subscriber of 50 publishers of the same topic has room for a few messages only, and loses none."""
    cluster = Cluster(seed=8)
    sub = cluster.node("s").sub("events", buffer=10, takes=0.001)
    pubs = [cluster.node(f"p{number}").pub("events") for number in range(50)]
    for pub in pubs:
        pub.send("hello")  # not necessarily to anybody
    confirmed(cluster)
    cluster.run(1.0)
    before = len(sub.received)
    cluster.network.broadcasts.drops = 0.2
    for number in range(20):
        for pub in pubs:
            pub.send(number)
        cluster.run(0.02)
    rest(cluster)
    assert sorted(sub.received[before:]) == sorted(list(range(20)) * 50)
    assert not sub.gaps


def test_subscribers_survive_a_restart_of_their_publisher() -> None:
    cluster = Cluster(seed=9)
    node = cluster.node("p")
    pub = node.pub("state", retain=True)
    subs = crowd(cluster, 15, "state")
    confirmed(cluster)
    pub.send("old")
    cluster.run(1.0)
    cluster.crash(node)
    cluster.run(1.0)
    cluster.restart(node, same_id=True)
    confirmed(cluster)
    pub.send("new")
    rest(cluster)
    assert all(sub.received == ["old", "new"] for sub in subs)


def slow(cluster: Cluster, **options: bool | int | float) -> tuple[ClusterNode, ClusterSub, ClusterSub]:
    """A publisher, a subscriber that takes ten messages a second, and one that is quick."""
    return (
        cluster.node("p"),
        cluster.node("slow").sub("load", takes=0.1, **options),  # type: ignore[arg-type]
        cluster.node("quick").sub("load"),
    )


def test_a_publisher_that_blocks_waits_for_the_slowest() -> None:
    """With a window the application hears no, and nobody misses anything (``block=True``)."""
    cluster = Cluster(seed=10)
    node, sub, quick = slow(cluster, buffer=5)
    pub = node.pub("load", block=True, window=20)
    confirmed(cluster)
    refused = sent = 0
    for _ in range(300):
        try:
            sent = pub.send([sent, LARGE[:1000]]) + 1
        except OutboxFull:
            refused += 1
        assert sent - len(sub.received) <= 20 + 5 + 1  # the window counts what is in the buffer as received
        cluster.run(0.01)
    assert refused > 100
    rest(cluster)
    assert len(sub.received) == len(quick.received) == sent
    assert not sub.gaps


def test_the_slowest_loses_with_gaps_where_nobody_waits() -> None:
    """Its buffer is full and the publisher keeps little: what it misses is told exactly, and the others get all."""
    cluster = Cluster(seed=11)
    node, sub, quick = slow(cluster, buffer=2)
    pub = node.pub("load")
    confirmed(cluster)
    for number in range(40):
        pub.send([number, LARGE])
        cluster.run(0.02)
    rest(cluster)
    assert len(quick.received) == 40
    assert missed(sub) > 0
    assert len(sub.received) + missed(sub) == 40


def test_the_slowest_gets_the_newest_where_only_that_counts() -> None:
    cluster = Cluster(seed=12)
    node, sub, quick = slow(cluster, latest=True)
    pub = node.pub("load")
    confirmed(cluster)
    for number in range(100):
        pub.send(number)
        cluster.run(0.01)
    rest(cluster)
    assert len(quick.received) == 100
    assert len(sub.received) < 20
    assert sub.received[-1] == 99
    assert len(sub.received) + sub.subscription.conflated == 100
    assert not sub.gaps


def test_a_full_buffer_is_filled_as_soon_as_there_is_room() -> None:
    """A subscriber asks for more when its application took something, not only with its next heartbeat."""
    cluster = Cluster(seed=13)
    sub = cluster.node("s").sub("load", buffer=1, takes=0.001)
    pub = cluster.node("p").pub("load")
    confirmed(cluster)
    for number in range(100):
        pub.send(number)
    started = cluster.now
    assert cluster.run_until(lambda: len(sub.received) == 100)
    assert cluster.now - started < 5.0


@pytest.mark.parametrize("reopens", [False, True])
def test_what_was_published_before_a_close_can_still_be_had(reopens: bool) -> None:
    """A slow subscriber is not cut off when the publisher closes the topic; nor does it start anew if that reopens."""
    cluster = Cluster(seed=14)
    node = cluster.node("p")
    sub = cluster.node("s").sub("load", replay="history", buffer=2, takes=0.05)
    pub = node.pub("load", history=100)
    confirmed(cluster)
    for number in range(30):
        pub.send(number)
    cluster.run(0.2)
    pub.close()
    cluster.run(0.2)
    if reopens:
        node.pub("load", history=100).send(30)
    rest(cluster)
    assert sub.received == list(range(31 if reopens else 30))


def test_messages_right_before_a_close_arrive() -> None:
    cluster = Cluster(seed=15)
    pub = cluster.node("p").pub("news")
    sub = cluster.node("s").sub("news")
    confirmed(cluster)
    cluster.network.broadcasts.drops = 1.0
    pub.send("last")
    pub.close()
    rest(cluster)
    assert sub.received == ["last"]


def test_another_offer_does_not_hide_a_loss() -> None:
    """The first message of a topic is lost; that its subscriber then opens something else proves nothing."""
    cluster = Cluster(seed=16)
    pub = cluster.node("p").pub("news")
    node = cluster.node("s")
    sub = node.sub("news")
    confirmed(cluster)
    cluster.network.broadcasts.drops = 1.0
    pub.send("first")
    node.pull("jobs")
    rest(cluster)
    assert sub.received == ["first"]


def test_the_window_is_not_forgotten_after_a_cut() -> None:
    cluster = Cluster(seed=17)
    node, sub, quick = slow(cluster, buffer=5)
    pub = node.pub("load", block=True, window=10)
    confirmed(cluster)
    for round_number in range(5):
        for _ in range(50):
            try:
                pub.send(round_number)
            except OutboxFull:
                break
        cluster.cut(node, sub.node, one_way=bool(round_number % 2))
        cluster.run(4.0)
        cluster.heal()
        cluster.run(4.0)
    rest(cluster)
    assert quick.received == sub.received
    assert not sub.gaps


def test_options_are_checked() -> None:
    cluster = Cluster()
    node = cluster.node("a")
    node.pub("a.*", retain=True)
    with pytest.raises(NameClash):
        node.pub("a.b")


def test_the_books_notice_a_loss() -> None:
    """Nobody repairs, and nobody says so: that is what the books are for."""
    cluster = Cluster(seed=18)
    pub = cluster.node("p").pub("news")
    sub = cluster.node("s").sub("news")
    confirmed(cluster)
    pub.send(0)
    cluster.run(0.1)
    (reception,) = sub.node.engine.subscriptions.receptions.values()
    (stream,) = reception.topics["news"].streams
    stream.expected = 2  # as if 1 had been there
    pub.send(1)
    pub.send(2)
    with pytest.raises(GuaranteeBroken, match="comes where 1 is due"):
        cluster.run(1.0)


@pytest.mark.guarantee("G7")
def test_the_books_notice_a_group_that_gets_what_it_did_not_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(seed=19)
    pub = cluster.node("p").pub("news")
    cluster.node("s").group("news", "press", where={"hot": True})
    cluster.run(1.0)
    monkeypatch.setattr("meshmsg.engine.groups.fulfils", lambda headers, where: True)
    pub.send(0, headers={"hot": False})
    with pytest.raises(GuaranteeBroken, match="took 1 messages of 0"):
        cluster.run(1.0)


@pytest.mark.guarantee("G7")
def test_the_books_notice_a_durable_group_that_is_forgotten() -> None:
    cluster = Cluster(seed=20)
    pub = cluster.node("p").pub("news")
    member = cluster.node("s").group("news", "press", durable=True)
    cluster.run(1.0)
    pub.send(0)
    cluster.run(1.0)
    (group,) = pub.node.engine.groups.by_queue.values()
    group.durable = False  # as if its member had never said so
    member.close()
    cluster.run(1.0)
    pub.send(1)
    with pytest.raises(GuaranteeBroken, match="nothing is collected"):
        cluster.run(1.0)


def test_the_books_notice_a_last_will_that_nobody_carries_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(seed=21)
    node = cluster.node("p")
    node.pub("presence", will="gone")
    sub = cluster.node("s").sub("presence")
    cluster.run(1.0)
    monkeypatch.setattr(sub.subscription, "put_will", lambda will: None)
    cluster.crash(node)
    cluster.run(30.0)
    assert len(cluster.books.wills.outstanding()) == 1
    assert not sub.received
