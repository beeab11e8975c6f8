"""The subscriber's machines: order, gaps, replays, buffers, what is asked for and when, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg.engine import subscriber as subscriber_module
from meshmsg.engine.publisher import make_marker
from meshmsg.engine.subscriber import ASK_AGAIN_S, PATIENCE_S, TAIL_GRACE_S
from meshmsg.engine.subscription import Delivery, Gap, Subscription
from meshmsg.errors import ConfigurationError, ProtocolError
from meshmsg.wire import frames
from meshmsg.wire.codec import encode_batch
from tests.engine.reception_desk import PEER, Side, pack, taken

pytestmark = pytest.mark.guarantee("G6")


# --- order and repair ---------------------------------------------------------------------------------------


def test_live_messages_begin_where_the_start_says() -> None:
    subscription = Subscription("a")
    side = Side(subscription)
    side.start(["a", 5, 5, False])
    side.live("a", 5, 3)
    side.live("a", 8)
    assert subscription.take(1) == [Delivery("a", PEER, 5, [5], None, 1)]
    assert taken(subscription) == [6, 7, 8]
    assert side.wants() == []


def test_messages_before_the_start_are_held_and_none_is_thrown_away() -> None:
    subscription = Subscription("a")
    side = Side(subscription)
    side.live("a", 4)
    side.live("a", 6, 2)
    assert taken(subscription) == [] and subscription.held == 3
    side.start(["a", 6, 6, False])
    assert taken(subscription) == [4]
    assert side.wants() == [("a", 5, 6)]
    side.past("a", 5, 1)
    assert taken(subscription) == [5, 6, 7]


def test_a_topic_that_is_not_listed_begins_at_zero() -> None:
    subscription = Subscription("a.*")
    side = Side(subscription)
    side.live("a.early", 1)
    side.start()
    side.live("a.late", 2)
    assert side.wants() == [("a.early", 0, 1), ("a.late", 0, 2)]
    side.past("a.early", 0, 1)
    side.past("a.late", 0, 2)
    assert taken(subscription) == [0, 1, 0, 1, 2]


def test_a_gap_is_asked_for_once_and_again_after_a_while() -> None:
    subscription = Subscription("a")
    side = Side(subscription)
    side.start(["a", 0, 0, False])
    side.live("a", 3)
    assert side.wants(0.0) == [("a", 0, 3)]
    side.live("a", 4)
    side.live("a", 6)
    assert side.wants(0.1) == []
    assert side.subscriptions.wake_at(0.1) == ASK_AGAIN_S
    assert side.wants(ASK_AGAIN_S) == [("a", 0, 3)]
    side.past("a", 0, 2, 0.6, more=True)
    assert side.wants(0.6) == []
    side.past("a", 2, 1, 0.7)
    assert side.wants(0.7) == [("a", 5, 6)], "the next one at once"
    side.past("a", 5, 1, 0.8)
    assert taken(subscription) == [0, 1, 2, 3, 4, 5, 6]
    assert side.wants(9.0) == [] and side.subscriptions.wake_at(9.0) is None


def test_what_was_asked_for_on_a_lost_link_is_asked_for_at_once_on_the_next() -> None:
    side = Side(Subscription("a"))
    side.start()
    side.live("a", 3)
    assert side.wants(0.0) == [("a", 0, 3)]
    side.reception.up()
    assert side.wants(0.1) == [("a", 0, 3)]


def test_an_answer_that_brings_nothing_is_not_asked_for_at_once() -> None:
    side = Side(Subscription("a"))
    side.start(["a", 0, 0, False])
    side.live("a", 3)
    assert side.wants(0.0) == [("a", 0, 3)]
    side.past("a", 3, 1)
    assert side.wants(0.1) == []
    assert side.wants(ASK_AGAIN_S) == [("a", 0, 3)]


def test_a_lost_end_shows_in_a_beacon() -> None:
    subscription = Subscription("a")
    side = Side(subscription)
    side.start(["a", 2, 2, False])
    side.live("a", 2)
    side.reception.on_beacon(frames.Beacon([["a", 5]]), 1.0)
    assert side.wants(1.0) == [], "it may be on its way"
    assert side.subscriptions.wake_at(1.0) == 1.0 + TAIL_GRACE_S
    side.live("a", 3, now=1.1)
    assert side.wants(1.0 + TAIL_GRACE_S) == []
    assert side.wants(1.1 + TAIL_GRACE_S) == [("a", 4, 5)]
    side.past("a", 4, 1)
    assert taken(subscription) == [2, 3, 4]


def test_what_is_forgotten_is_one_gap_with_its_count() -> None:
    subscription = Subscription("a")
    side = Side(subscription)
    side.start(["a", 0, 0, False])
    side.live("a", 0)
    side.live("a", 10)
    side.live("a", 12)
    side.forgotten("a", 5, more=True)
    side.forgotten("a", 7)
    assert subscription.missed == 6
    assert subscription.take(10) == [Delivery("a", PEER, 0, [0], None, 1), Gap("a", PEER, 1, 7)]
    side.forgotten("a", 14)
    assert taken(subscription) == [(7, 10), 10, (11, 12), 12], "13 may be on its way"
    assert Gap("a", PEER, 7, 10).missed == 3


@pytest.mark.guarantee("G6")
def test_a_loss_larger_than_the_buffer_is_one_gap() -> None:
    subscription = Subscription("a", buffer=10)
    side = Side(subscription)
    side.start(["a", 0, 0, False])
    for seq in range(0, 1000, 5):
        side.live("a", seq, 5)
    assert taken(subscription) == list(range(10))
    assert side.wants() == [("a", 10, 15)], "up to those that are held"
    side.forgotten("a", 990)
    assert taken(subscription) == [(10, 15), *range(15, 25), (25, 990)]
    assert side.wants() == [("a", 990, 1000)]
    side.past("a", 990, 10)
    assert taken(subscription) == list(range(990, 1000))


def test_duplicates_and_overlaps_are_passed_over() -> None:
    subscription = Subscription("a")
    side = Side(subscription)
    side.start(["a", 0, 0, False])
    headers = {1: {"h": 1}, 3: {"h": 3}}
    side.live("a", 0, 2)
    side.live("a", 0, 4, headers=headers)
    side.live("a", 1, 2)
    assert side.subscriptions.repeated == 2
    assert subscription.take(1)[0] == Delivery("a", PEER, 0, [0], None, 1)
    assert [item.headers for item in subscription.take(9) if isinstance(item, Delivery)] == [None, {3: {"h": 3}}]


# --- replay -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("replay", "first"), [("none", 9), ("latest", 8), ("history", 4)])
def test_a_replay_is_asked_for_and_goes_over_into_live(replay: Any, first: int) -> None:
    subscription = Subscription("a", replay=replay)
    side = Side(subscription)
    side.start(["a", 9, 4, True])
    side.live("a", 9)
    assert side.wants() == ([("a", first, 9)] if first < 9 else [])
    if first < 9:
        side.past("a", first, 9 - first)
    side.live("a", 10)
    assert taken(subscription) == [*range(first, 11)]


def test_a_replay_that_begins_later_is_no_gap_but_a_hole_in_it_is() -> None:
    subscription = Subscription("a", replay="history")
    side = Side(subscription)
    side.start(["a", 9, 0, False])
    side.forgotten("a", 3, more=True)
    side.past("a", 3, 2)
    side.forgotten("a", 6, more=True)
    side.past("a", 6, 3)
    assert taken(subscription) == [3, 4, (5, 6), 6, 7, 8]
    other = Subscription("b", replay="history")
    side.add(other)
    side.start(["b", 5, 0, False])
    side.live("b", 9)
    side.forgotten("b", 7)
    assert taken(other) == [(5, 7)], "what is missing of the live ones is one"


def test_a_second_subscription_has_its_own_replay() -> None:
    first, second = Subscription("a"), Subscription("*", replay="history")
    side = Side(first)
    side.start(["a", 3, 0, False])
    side.live("a", 3)
    side.add(second)
    side.live("a", 4)
    assert taken(first) == [3, 4] and taken(second) == []
    side.start(["a", 5, 0, False])
    side.live("a", 5)
    assert taken(first) == [5]
    assert side.wants() == [("a", 0, 4)]
    side.past("a", 0, 4)
    assert taken(first) == [] and taken(second) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("replay", "begins"), [("none", 6), ("latest", 5), ("history", 0)])
def test_what_another_subscription_asked_for_is_no_part_of_its_replay(replay: Any, begins: int) -> None:
    first, second = Subscription("a", replay="history"), Subscription("*", replay=replay)
    side = Side(first)
    side.start(["a", 6, 0, True])
    assert side.wants() == [("a", 0, 6)]
    side.add(second)
    side.past("a", 0, 4, more=True)
    side.start(["a", 6, 0, True])
    side.past("a", 4, 2)
    if replay == "history":
        assert side.wants(now=1.0) == [("a", 0, 4)]
        side.past("a", 0, 4)
    side.live("a", 6)
    assert taken(first) == [0, 1, 2, 3, 4, 5, 6]
    assert taken(second) == list(range(begins, 7))
    assert side.wants(now=2.0) == []


def test_subscriptions_at_different_places_ask_for_what_each_has_room_for_in_turns() -> None:
    ahead, behind = Subscription("a", replay="history", buffer=10), Subscription("*", replay="history", buffer=10)
    side = Side(ahead)
    side.start(["a", 1000, 0, False])
    for start in range(0, 500, 10):
        assert side.wants() == [("a", start, start + 10)]
        side.past("a", start, 10)
        assert taken(ahead) == list(range(start, start + 10))
    side.add(behind)
    side.start(["a", 1000, 0, False])
    side.past("a", 500, 10)  # was asked for before
    assert taken(ahead) == list(range(500, 510)) and taken(behind) == []
    asked = []
    for _ in range(4):
        (want,) = side.wants()
        asked.append(want)
        side.past(want[0], want[1], want[2] - want[1])
        ahead.take(100)
        behind.take(100)
    assert sorted(asked) == [("a", 0, 10), ("a", 10, 20), ("a", 510, 520), ("a", 520, 530)]


def test_bodies_of_two_subscriptions_are_two_objects() -> None:
    first, second = Subscription("a"), Subscription("**")
    side = Side(first, second)
    side.start()
    payload = encode_batch([pack({"n": 1})])
    side.reception.on_published(frames.Published("a", "p", 3, 0, 1, None, payload), 0.0)
    (one,), (other,) = first.take(1), second.take(1)
    assert isinstance(one, Delivery) and isinstance(other, Delivery)
    assert one.bodies == other.bodies and one.bodies[0] is not other.bodies[0]


# --- buffers ------------------------------------------------------------------------------------------------


def test_what_does_not_fit_stays_with_the_publisher() -> None:
    subscription = Subscription("a", buffer=4)
    side = Side(subscription)
    side.start()
    side.live("a", 0, 6)
    side.live("a", 6, 2)
    assert subscription.waiting == 4
    assert side.wants(1.0) == []
    assert taken(subscription, 1) == [0]
    assert side.wants(1.0) == [], "not for a few"
    assert taken(subscription, 1) == [1]
    assert side.wants(1.0) == [("a", 4, 6)]
    side.past("a", 4, 2)
    assert taken(subscription) == [2, 3, 4, 5]
    assert side.wants(1.0) == [("a", 6, 8)]
    side.past("a", 6, 2)
    assert taken(subscription) == [6, 7] and subscription.missed == 0


def test_no_more_is_asked_for_than_fits() -> None:
    subscription = Subscription("a", replay="history", buffer=4)
    side = Side(subscription)
    side.start(["a", 100, 0, False])
    assert side.wants() == [("a", 0, 4)]
    side.past("a", 0, 3)
    assert side.wants() == [("a", 3, 4)]


def test_of_an_overlap_with_what_is_held_only_the_new_part_counts() -> None:
    subscription = Subscription("a")
    side = Side(subscription)
    side.start()
    side.live("a", 1, 3)
    side.past("a", 2, 4)
    side.past("a", 1, 1)
    assert subscription.held == 5
    assert side.wants() == [("a", 0, 1)]
    side.live("a", 0)
    assert taken(subscription) == [*range(6)]


def test_bytes_are_bounded_too() -> None:
    subscription = Subscription("a", buffer_bytes=5)
    side = Side(subscription)
    side.start()
    for seq in range(20):
        side.live("a", seq)
    assert subscription.waiting < 8
    assert side.wants() == []
    assert taken(subscription) == [*range(5)]
    assert subscription.held < 8
    assert side.wants() == [("a", 5, 6)]


def test_latest_keeps_the_newest_of_each_topic() -> None:
    subscription = Subscription("*", latest=True)
    side = Side(subscription)
    side.start(["a", 3, 0, False])
    side.live("a", 3, 4)
    side.live("b", 0)
    side.live("a", 10)
    assert side.wants() == [], "a newer one is there"
    assert taken(subscription) == [10, 0]
    assert subscription.conflated == 7
    side.reception.on_beacon(frames.Beacon([["a", 20]]), 0.0)
    assert side.wants(1.0) == [("a", 19, 20)]
    side.past("a", 19, 1)
    assert taken(subscription) == [19]
    assert subscription.conflated == 15 and subscription.missed == 0
    assert subscription.received + subscription.conflated - 1 == 17 + 1  # one was received, and then conflated


def test_latest_is_bounded_by_topics() -> None:
    subscription = Subscription("*", latest=True, buffer=2)
    side = Side(subscription)
    side.start()
    for topic in "abc":
        side.live(topic, 0)
    side.live("a", 1)
    assert taken(subscription) == [1, 0]
    assert side.wants() == [("c", 0, 1)]
    side.past("c", 0, 1)
    assert taken(subscription) == [0]


def test_a_conflating_replay_asks_for_the_last_one_only() -> None:
    subscription = Subscription("a", latest=True, replay="history")
    side = Side(subscription)
    side.start(["a", 9, 0, False])
    assert side.wants() == [("a", 8, 9)]
    side.past("a", 8, 1)
    assert taken(subscription) == [8] and subscription.conflated == 0


# --- markers and positions ----------------------------------------------------------------------------------


def test_the_marker_is_the_last_filter_and_waits_for_the_start_of_the_one_before() -> None:
    first, second = Subscription("a.**"), Subscription("b")
    side = Side(first)
    assert side.reception.change_filters() == ([b"a", make_marker("s", 1, 1)], [])
    assert side.reception.change_filters() == ([], [])
    side.add(second)
    side.add(Subscription("ab"))
    assert side.reception.change_filters() == ([], [])
    side.reception.on_start(frames.Start(1, [["b", 5, 5, False]], True), 0.0)
    side.live("b", 5)
    assert taken(second) == [], "it is not confirmed yet"
    assert side.reception.change_filters() == ([b"b", make_marker("s", 1, 3)], [make_marker("s", 1, 1)])
    side.reception.on_start(frames.Start(3, [["b", 6, 6, False]], True), 0.0)
    side.subscriptions.remove(first, 4)
    assert side.reception.change_filters() == ([b"ab", make_marker("s", 1, 4)], [b"a", make_marker("s", 1, 3)])
    side.reception.forget_filters()
    assert side.reception.change_filters() == ([b"ab", b"b", make_marker("s", 1, 4)], [])


def test_a_start_in_parts_counts_when_it_is_complete() -> None:
    subscription = Subscription("*")
    side = Side(subscription)
    side.reception.change_filters()
    side.reception.on_start(frames.Start(1, [["a", 5, 5, False]], False), 0.0)
    side.live("a", 5)
    assert taken(subscription) == []
    side.reception.up()  # the rest is lost with the link
    side.reception.on_start(frames.Start(1, [["a", 5, 5, False]], False), 0.0)
    side.reception.on_start(frames.Start(1, [["b", 7, 7, False]], True), 0.0)
    side.live("b", 7)
    assert taken(subscription) == [5, 7]


def test_positions_are_told_with_heartbeats_and_once() -> None:
    side = Side(Subscription("*"))
    side.start(["a", 5, 5, False])
    assert side.lags() == [frames.Lag(1, [["a", 5]])]
    side.live("a", 5)
    side.live("b", 0)
    assert side.lags() == []
    side.subscriptions.heartbeat()
    assert side.lags() == [frames.Lag(1, [["a", 6], ["b", 1]])]
    side.subscriptions.heartbeat()
    assert side.lags() == []
    side.reception.on_beacon(frames.Beacon([["a", 6]]), 0.0)  # it was not heard
    side.subscriptions.heartbeat()
    assert side.lags() == [frames.Lag(1, [["a", 6]])]
    side.reception.up()
    assert side.lags() == [frames.Lag(1, [["a", 6], ["b", 1]])]


def test_positions_are_told_earlier_to_a_publisher_that_waits() -> None:
    side = Side(Subscription("a"))
    side.start()
    side.lags()
    side.reception.report_each(3, None)
    side.live("a", 0, 2)
    assert side.lags() == []
    side.live("a", 2)
    assert side.lags() == [frames.Lag(1, [["a", 3]])]
    side.reception.report_each(None, 2)  # bytes of what arrived
    side.live("a", 3)
    assert side.lags() == []
    side.live("a", 4)
    assert side.lags() == [frames.Lag(1, [["a", 5]])]
    side.live("a", 5)
    assert side.lags() == []


def test_few_topics_are_asked_for_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber_module, "MAX_ASKED", 2)
    side = Side(Subscription("*", replay="latest"))
    side.start(*([topic, 1, 0, True] for topic in "abcd"))
    assert side.wants() == [("a", 0, 1), ("b", 0, 1)]
    assert side.wants() == []
    side.past("b", 0, 1)
    assert side.wants() == [("c", 0, 1)]


# --- ends ---------------------------------------------------------------------------------------------------


def test_what_a_lost_publisher_owes_becomes_gaps() -> None:
    subscription, early = Subscription("a"), Subscription("b")
    side = Side(subscription)
    side.start()
    side.live("a", 2, 2)
    side.reception.on_beacon(frames.Beacon([["a", 6]]), 0.0)
    side.add(early)
    side.live("b", 7)  # published, and gone before it could confirm
    side.subscriptions.end(PEER)
    assert taken(subscription) == [(0, 2), 2, 3, (4, 6)]
    assert taken(early) == [7]
    side.subscriptions.check()
    assert side.subscriptions.follow(PEER) is not side.reception


def test_a_full_buffer_does_not_hide_the_gap_of_an_end() -> None:
    subscription = Subscription("a", buffer=2)
    side = Side(subscription)
    side.start()
    side.live("a", 0)
    side.live("a", 2)
    side.live("a", 4)
    side.subscriptions.end(PEER)
    assert taken(subscription) == [0, (1, 2), 2, (3, 5)]


def test_a_removed_subscription_leaves_nothing_behind() -> None:
    first, second = Subscription("a"), Subscription("*")
    side = Side(first, second)
    side.start()
    side.live("a", 3)
    side.live("b", 3)
    side.subscriptions.remove(second, 3)
    side.subscriptions.check()
    assert list(side.reception.topics) == ["a"] and second.held == 0
    side.live("b", 4)
    assert side.subscriptions.unwanted == 1
    assert side.wants() == [("a", 0, 3)]
    side.subscriptions.remove(first, 4)
    assert side.wants(9.0) == [] and not side.reception.topics


def test_messages_of_another_node_or_life_are_passed_over() -> None:
    subscription = Subscription("a")
    side = Side(subscription)
    side.start()
    for node_id, incarnation in (("q", 3), ("p", 2), ("p", 4)):
        side.reception.on_published(frames.Published("a", node_id, incarnation, 0, 1, None, b"\x91\x01"), 0.0)
    assert taken(subscription) == []


@pytest.mark.guarantee("G11")
def test_what_a_publisher_must_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber_module, "MAX_TOPICS", 3)
    side = Side(Subscription("**"))
    side.reception.change_filters()
    with pytest.raises(ProtocolError, match="never set"):
        side.reception.on_start(frames.Start(2, [], True), 0.0)
    with pytest.raises(ProtocolError, match="more than 3 topics"):
        side.reception.on_start(frames.Start(1, [[f"t{number}", 1, 1, False] for number in range(4)], False), 0.0)
    side.reception.up()
    side.start()
    for topic in ("a..b", "a.*", "", "a\x1b"):
        with pytest.raises(ProtocolError, match="cannot be"):
            side.reception.on_beacon(frames.Beacon([[topic, 1]]), 0.0)
    with pytest.raises(ProtocolError):
        side.reception.on_published(frames.Published("a", "p", 3, 0, 2, None, b"\x91\x01"), 0.0)
    with pytest.raises(ProtocolError, match="more than 3 topics"):
        for number in range(5):
            side.live(f"t{number}", 0)


@pytest.mark.guarantee("G11")
def test_a_hostile_publisher_fills_no_memory() -> None:
    subscription = Subscription("**", buffer=50)
    side = Side(subscription)
    side.start()
    for number in range(300):
        side.live(f"t{number % 3}", 10**9 + 2 * number)
    assert subscription.held <= 50
    for topic in ("t0", "t1", "t2"):
        for up_to in range(1, 500, 7):
            side.forgotten(topic, up_to)
    assert len(subscription) == 3, "one gap a topic"
    missed = subscription.missed
    side.forgotten("t0", 2**62)
    assert subscription.missed - missed < 10**9 + 600, "what nobody has heard of is not missed"


@pytest.mark.guarantee("G11")
def test_one_pattern_too_many_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber_module, "MAX_PATTERNS", 2)
    first = Subscription("a")
    side = Side(first, Subscription("b"), Subscription("a"))
    before = side.subscriptions.version, side.subscriptions.generation, dict(side.subscriptions.offers())
    with pytest.raises(ConfigurationError, match="'c' is one too many"):
        side.add(Subscription("c"))
    assert before == (side.subscriptions.version, side.subscriptions.generation, side.subscriptions.offers())
    assert not side.subscriptions.match("c")
    side.subscriptions.remove(first, 9)  # the other one of the same pattern is still there
    with pytest.raises(ConfigurationError):
        side.add(Subscription("c"))
    side.subscriptions.check()


def test_what_may_be_in_what_was_not_read_yet_is_given_time() -> None:
    side = Side(Subscription("**"))
    side.start()
    side.live("b", 0)
    side.reception.on_beacon(frames.Beacon([["a", 3]]), 0.0)
    side.subscriptions.behind = True  # the handlers of "b" take their time, and "a" comes behind it
    now = 0.0
    for _ in range(10):
        now = side.subscriptions.wake_at(now) or 0.0
        assert side.wants(now) == []
    side.subscriptions.behind = False
    now = side.subscriptions.wake_at(now) or 0.0
    assert side.wants(now) == [("a", 0, 3)]
    assert 9 * TAIL_GRACE_S < now < PATIENCE_S


def test_and_no_longer_than_that() -> None:
    side = Side(Subscription("**"))
    side.start()
    side.reception.on_beacon(frames.Beacon([["a", 3]]), 0.0)
    side.subscriptions.behind = True
    now, wants = 0.0, []
    while not wants:
        now = side.subscriptions.wake_at(now) or 0.0
        wants = side.wants(now)
    assert PATIENCE_S <= now < PATIENCE_S + TAIL_GRACE_S + 0.01 and wants == [("a", 0, 3)]
