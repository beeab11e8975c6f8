"""The publisher's machine: batches, markers, what is kept, what is answered, who holds it up."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg.engine import publisher as publisher_module
from meshmsg.engine.publisher import ANSWER_BYTES, MAX_PATTERNS, Publisher, make_marker, parse_marker
from meshmsg.engine.topic_log import (
    MAX_FRAME_BYTES,
    MAX_FRAME_MESSAGES,
    REPAIR_BYTES,
    REPAIR_MESSAGES,
    TopicOptions,
)
from meshmsg.errors import BodyTooLarge, ConfigurationError, NameClash, ProtocolError
from meshmsg.wire import frames
from meshmsg.wire.codec import encode_batch

PEER = "s.1"


def retained(publisher: Publisher) -> bytes | None:
    """The last value of topic "a"."""
    kept = publisher.logs["a"].retained if "a" in publisher.logs else None
    return kept[1] if kept is not None else None


def publish(publisher: Publisher, topic: str, count: int, now: float = 0.0, body: bytes = b"\x01") -> None:
    for _ in range(count):
        publisher.publish(topic, body)
        publisher.collect(now)


def offer(*patterns: str, since: int = 1) -> dict[str, dict[str, Any]]:
    return {pattern: {"since": since} for pattern in patterns}


def join(publisher: Publisher, *patterns: str, peer: str = PEER, version: int = 1) -> list[frames.PubSubFrame]:
    """A subscriber with live filters; what it is told."""
    publisher.on_offers(peer, version, offer(*patterns, since=version), 0.0)
    node_id, _, incarnation = peer.partition(".")
    publisher.on_filter(make_marker(node_id, int(incarnation), version), True, 0.0)
    return [answer.frame for answer in publisher.answers(0.0) if answer.peer == peer]


def ask(publisher: Publisher, topic: str, start: int, stop: int) -> list[frames.PubSubFrame]:
    publisher.on_want(PEER, frames.Want(topic, start, stop))
    return [answer.frame for answer in publisher.answers(0.0)]


# --- publishing ---------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G6")
def test_one_turn_is_one_broadcast_a_topic() -> None:
    publisher = Publisher()
    assert [publisher.publish("a", b"1"), publisher.publish("b", b"2"), publisher.publish("a", b"3")] == [0, 0, 1]
    assert publisher.publish_many("a", [b"4", b"5"]) == 2
    assert publisher.collect(0.0) == [("a", 0, [b"1", b"3", b"4", b"5"], None), ("b", 0, [b"2"], None)]
    assert publisher.collect(0.0) == []
    publisher.publish("a", b"6", {"unit": "C"})
    assert publisher.collect(0.0) == [("a", 4, [b"6"], {4: {"unit": "C"}})]
    publisher.check()


def test_broadcasts_are_cut_and_a_large_body_goes_alone() -> None:
    publisher = Publisher()
    sizes = [100_000, 100_000, 100_000, 10, MAX_FRAME_BYTES + 1, 10]
    publisher.publish_many("a", [bytes(size) for size in sizes])
    assert [len(broadcast.bodies) for broadcast in publisher.collect(0.0)] == [2, 2, 1, 1]
    publisher.publish_many("a", [b"\x01"] * (MAX_FRAME_MESSAGES + 1))
    assert [len(broadcast.bodies) for broadcast in publisher.collect(0.0)] == [MAX_FRAME_MESSAGES, 1]
    big = {"x": "y" * 200_000}
    publisher.publish("a", b"1", big)
    publisher.publish("a", b"2", big)
    assert [list(broadcast.headers or ()) for broadcast in publisher.collect(0.0)] == [[4103], [4104]]
    publisher.check()


def test_what_is_published_together_fits_one_piece() -> None:
    """Only a body that is larger by itself leaves in pieces."""
    publisher = Publisher()
    for count, size in ((4096, 64), (4, 2**16), (2, 2**17), (64, 4095), (64, 4096), (20, 13_108)):
        publisher.publish_many("a", [bytes(size)] * count)
        for broadcast in publisher.collect(0.0):
            assert len(encode_batch(broadcast.bodies)) <= frames.PIECE_BYTES


def test_headers_that_cannot_be_sent_leave_nothing_behind() -> None:
    publisher = Publisher()
    with pytest.raises(BodyTooLarge):
        publisher.publish("a", b"1", {"x": "y" * 2**21})
    assert publisher.collect(0.0) == []
    publisher.publish("a", b"1")
    assert publisher.collect(0.0) == [("a", 0, [b"1"], None)]


def test_patterns_that_share_topics_need_the_same_options() -> None:
    publisher = Publisher()
    publisher.declare("sensors.**", TopicOptions(retain=True))
    publisher.declare("sensors.kitchen", TopicOptions(retain=True))
    publisher.declare("other", TopicOptions(history=5))
    with pytest.raises(NameClash, match=r"'sensors\.\*' shares topics with 'sensors\.\*\*'"):
        publisher.declare("sensors.*", TopicOptions())
    publisher.withdraw("sensors.**")
    publisher.withdraw("sensors.kitchen")
    publisher.declare("sensors.*", TopicOptions(window=9, window_bytes=99))
    assert publisher.offers() == {"other": {}, "sensors.*": {"window": 9, "window_bytes": 99}}


def test_topics_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "MAX_TOPICS", 2)
    publisher = Publisher()
    publish(publisher, "a", 1)
    publish(publisher, "b", 1)
    with pytest.raises(ConfigurationError, match="'c' is one too many"):
        publisher.publish("c", b"1")


# --- joining ------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G6")
def test_a_marker_confirms_what_the_offers_of_its_version_hold() -> None:
    publisher = Publisher()
    publish(publisher, "a", 3)
    publish(publisher, "b", 1)
    publisher.on_filter(make_marker("s", 1, 1), True, 0.0)
    assert publisher.answers(0.0) == [] and publisher.confirmed("a") == []
    publisher.on_offers(PEER, 1, offer("a", "c"), 0.0)
    assert [answer.frame for answer in publisher.answers(0.0)] == [frames.Start(1, [["a", 3, 3, False]], True)]
    assert publisher.confirmed("a") == publisher.confirmed("c") == [PEER]
    assert publisher.confirmed("b") == []
    publisher.on_offers(PEER, 2, offer("a") | offer("b", since=2), 0.0)
    assert publisher.confirmed("b") == [], "its filter may not be there yet"
    assert publisher.confirmed("c") == []
    publisher.on_filter(make_marker("s", 1, 2), True, 0.0)
    publisher.on_filter(make_marker("s", 1, 1), False, 0.0)
    assert publisher.confirmed("b") == [PEER]
    publisher.on_filter(make_marker("s", 1, 2), False, 0.0)
    assert publisher.confirmed("b") == []


@pytest.mark.guarantee("G6")
def test_a_marker_confirms_also_what_only_later_offers_told_of() -> None:
    publisher = Publisher()
    publisher.on_filter(make_marker("s", 1, 2), True, 0.0)
    publisher.on_offers(PEER, 5, offer("a") | offer("b", since=2) | offer("c", since=3), 0.0)
    assert publisher.confirmed("a") == publisher.confirmed("b") == [PEER]
    assert publisher.confirmed("c") == []
    publisher.on_down(PEER)
    publisher.on_offers(PEER, 9, offer("a") | offer("b", since=7), 0.0)  # closed, and opened again meanwhile
    assert publisher.confirmed("a") == [PEER] and publisher.confirmed("b") == []
    publisher.on_offers(PEER, 10, offer("a", since=10), 0.0)
    assert publisher.confirmed("a") == []


@pytest.mark.guarantee("G6")
def test_a_start_is_repeated_unchanged_until_it_is_answered() -> None:
    publisher = Publisher()
    publish(publisher, "a", 3)
    first = join(publisher, "a")
    publish(publisher, "a", 2)
    assert publisher.answers(0.5) == []
    assert publisher.wake_at(0.5) == 1.0
    publisher.on_filter(make_marker("s", 1, 1), False, 1.0)
    publisher.on_filter(make_marker("s", 1, 1), True, 1.0)  # its SUB came back
    assert [answer.frame for answer in publisher.answers(1.0)] == first
    publisher.on_lag(PEER, frames.Lag(1, [["a", 3]]))
    assert publisher.answers(9.0) == []
    assert publisher.wake_at(9.0) is None
    publisher.on_lag(PEER, frames.Lag(0, []))  # it lost what it knew
    assert [answer.frame for answer in publisher.answers(9.0)] == [frames.Start(1, [["a", 5, 5, False]], True)]


def test_a_start_names_history_and_retained_value() -> None:
    publisher = Publisher()
    publisher.declare("**", TopicOptions(retain=True, history=2))
    publish(publisher, "a", 5)
    publish(publisher, "b", 1)
    assert retained(publisher) == b"\x01"
    assert publisher.delete_retained("a") and not publisher.delete_retained("a")
    assert join(publisher, "**") == [frames.Start(1, [["a", 5, 3, False], ["b", 1, 0, True]], True)]


def test_a_retained_value_can_be_taken_back_in_the_turn_that_it_was_sent_in() -> None:
    publisher = Publisher()
    publisher.declare("**", TopicOptions(retain=True))
    publish(publisher, "a", 2)
    publisher.publish("a", b"secret")
    assert publisher.delete_retained("a") and not publisher.delete_retained("a")
    publisher.collect(0.0)
    assert retained(publisher) is None and not publisher.delete_retained("a")
    publisher.publish("a", b"secret")
    assert publisher.delete_retained("a")
    publisher.publish("a", b"new")
    publisher.collect(0.0)
    assert retained(publisher) == b"new"
    publisher.publish("a", b"secret")
    assert publisher.delete_retained("a"), "both the one before and the one on its way"
    publisher.collect(0.0)
    assert retained(publisher) is None
    publisher.declare("unkept", TopicOptions(retain=True))
    assert not publisher.delete_retained("b")
    publisher.check()


def test_a_long_start_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "MAX_ENTRIES", 2)
    publisher = Publisher()
    for topic in "abc":
        publish(publisher, topic, 1)
    starts = join(publisher, "**")
    assert [(len(each.topics), each.last) for each in starts if isinstance(each, frames.Start)] == [
        (2, False),
        (1, True),
    ]


def test_what_only_looks_like_a_marker_is_a_filter() -> None:
    assert parse_marker(make_marker("node-1", 7, 3)) == ("node-1.7", 3)
    for text in (
        b"",
        b"a",
        b"\xff",
        b"\xff.1.1",
        b"\xffa.1",
        b"\xffa.b.1",
        b"\xffa.1.-1",
        b"\xff\xff.1.1",
        b"\xffa.1.1.1",
    ):
        assert parse_marker(text) is None
    assert parse_marker(b"\xffa.1." + b"9" * 100) is None


@pytest.mark.guarantee("G11")
def test_markers_of_strangers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "MAX_MARKED", 3)
    publisher = Publisher()
    for number in range(100):
        publisher.on_filter(make_marker(f"n{number}", 1, 1), True, 0.0)
        publisher.on_filter(make_marker("n0", 1, number), True, 0.0)
    assert len(publisher._markers) == 3
    assert len(publisher._markers["n0.1"]) == publisher_module.MAX_MARKERS


# --- keeping and answering ----------------------------------------------------------------------------------


@pytest.mark.guarantee("G6")
def test_without_a_history_the_last_thousand_can_be_repaired() -> None:
    publisher = Publisher()
    join(publisher, "a")
    publish(publisher, "a", REPAIR_MESSAGES + 500)
    told = ask(publisher, "a", 0, REPAIR_MESSAGES + 500)
    assert told[0] == frames.Forgotten("a", 500, True)
    assert [each.first_seq for each in told[1:] if isinstance(each, frames.Past)] == list(range(500, 1500))
    last = told[-1]
    assert isinstance(last, frames.Past) and not last.more
    assert all(each.more for each in told[:-1] if isinstance(each, frames.Past))


@pytest.mark.guarantee("G6")
def test_an_answer_tells_how_far_the_history_is_gone_however_little_was_asked_for() -> None:
    publisher = Publisher()
    publisher.declare("kept", TopicOptions(retain=True))
    join(publisher, "**")
    for topic in ("a", "kept"):
        publish(publisher, topic, REPAIR_MESSAGES + 500)
    assert ask(publisher, "a", 10, 20) == [frames.Forgotten("a", 500, False)]
    assert ask(publisher, "kept", 10, 20) == [frames.Forgotten("kept", 500, False)]
    assert ask(publisher, "a", 500, 501) == [frames.Past("a", 500, 1, None, False, b"")]
    publisher.logs["kept"].shed(0)
    assert ask(publisher, "kept", 10, 20) == [frames.Forgotten("kept", REPAIR_MESSAGES + 499, False)]


@pytest.mark.parametrize(
    ("options", "kept_from", "history_from"),
    [
        (TopicOptions(), 0, 20),
        (TopicOptions(history=10), 0, 10),
        (TopicOptions(history=10**6, history_bytes=500), 0, 15),
        (TopicOptions(history=10**6, history_s=4.0), 0, 15),
        (TopicOptions(history=5, history_bytes=300, history_s=1.0), 0, 18),
    ],
)
def test_a_history_has_three_bounds(options: TopicOptions, kept_from: int, history_from: int) -> None:
    publisher = Publisher()
    publisher.declare("a", options)
    for second in range(20):
        publish(publisher, "a", 1, float(second), bytes(100))
    log = publisher.logs["a"]
    assert (log.kept_from, log.history_from(19.0)) == (kept_from, history_from)
    publisher.check()


@pytest.mark.guarantee("G6")
@pytest.mark.parametrize("batch", [1, 3, 10])
@pytest.mark.parametrize(
    ("history_bytes", "headers", "expected"),
    [(299, None, 0), (300, None, 1), (1000, None, 3), (10**6, None, 10), (1000, {"n": bytes(194)}, 2)],
)
def test_a_history_is_exact_by_message_however_they_were_sent(
    batch: int, history_bytes: int, headers: dict[str, bytes] | None, expected: int
) -> None:
    publisher = Publisher()
    publisher.declare("a", TopicOptions(history=100, history_bytes=history_bytes))
    for number in range(10):
        publisher.publish("a", bytes(300), headers)
        if number % batch == batch - 1:
            publisher.collect(0.0)
    publisher.collect(0.0)
    log = publisher.logs["a"]
    assert log.next_seq - log.history_from(0.0) == expected
    publisher.check()


def test_a_batch_is_kept_as_long_as_its_last_message_is_within_the_history() -> None:
    publisher = Publisher()
    publisher.declare("a", TopicOptions(history=10**6, history_bytes=2 * REPAIR_BYTES))
    for _ in range(3 * REPAIR_BYTES // 200_000):
        publisher.publish_many("a", [bytes(50_000)] * 4)
        publisher.collect(0.0)
    log = publisher.logs["a"]
    assert log.next_seq - log.history_from(0.0) == 2 * REPAIR_BYTES // 50_000
    assert log.kept_from <= log.history_from(0.0) < log.kept_from + 4
    publisher.check()


def test_an_old_history_is_let_go_by_heartbeats() -> None:
    publisher = Publisher()
    publisher.declare("a", TopicOptions(history=10**6, history_s=60.0))
    publish(publisher, "a", 3000)
    publisher.heartbeat(59.0)
    assert publisher.logs["a"].kept_from == 0
    publisher.heartbeat(61.0)
    assert publisher.logs["a"].kept_from == 3000 - REPAIR_MESSAGES
    publisher.check()


def test_memory_for_repairs_is_bounded_over_all_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "REPAIR_BYTES_IN_ALL", 10_000)
    publisher = Publisher()
    publisher.declare("kept", TopicOptions(retain=True, history=1000))
    publish(publisher, "kept", 3, body=bytes(1000))
    for topic in "abcdef":
        publish(publisher, topic, 3, body=bytes(1000))
        publisher.check()
    assert publisher._repairs[False].cost <= 10_000
    assert [topic for topic in "abcdef" if publisher.logs[topic].entries] == ["d", "e", "f"]
    publish(publisher, "g", 1, body=bytes(20_000))
    assert publisher.logs["g"].kept_from == 0, "the newest message can be repaired, whatever its size"
    assert publisher.logs["kept"].kept_from == 0
    join(publisher, "a", "kept")
    assert ask(publisher, "a", 0, 3) == [frames.Forgotten("a", 3, False)]


@pytest.mark.guarantee("G6")
def test_what_a_slow_subscriber_is_waited_for_is_no_memory_for_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "REPAIR_BYTES_IN_ALL", 10_000)
    publisher = Publisher()
    publisher.declare("*", TopicOptions(window=100))
    join(publisher, "c")
    for topic in "abcdef":
        publish(publisher, topic, 3, body=bytes(1000))
        publisher.check()
    assert [topic for topic in "abcdef" if publisher.logs[topic].entries] == ["c", "e", "f"]
    publisher.on_lag(PEER, frames.Lag(1, [["c", 3]]))
    for topic in "gh":
        publish(publisher, topic, 3, body=bytes(1000))
        publisher.check()
    assert [topic for topic in "abcdefgh" if publisher.logs[topic].entries] == ["f", "g", "h"]
    publisher.on_down(PEER)
    join(publisher, "*")
    for topic in "gh":
        publish(publisher, topic, 6, body=bytes(1000))
        publisher.check()
    assert len(publisher.logs["g"].entries) and len(publisher.logs["h"].entries), "it is waited for, whatever it takes"


@pytest.mark.guarantee("G6")
def test_what_a_slow_subscriber_is_waited_for_takes_nothing_from_other_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "REPAIR_BYTES_IN_ALL", 10_000)
    publisher = Publisher()
    publisher.declare("large", TopicOptions(window=100))
    join(publisher, "large", "small")
    publish(publisher, "small", 9)
    publish(publisher, "large", 3, body=bytes(9000))
    publisher.check()
    assert publisher.logs["small"].kept_from == 0 and publisher.logs["large"].kept_from == 0


def test_a_retained_value_outlives_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "REPAIR_BYTES_IN_ALL", 100)
    publisher = Publisher()
    publisher.declare("a", TopicOptions(retain=True))
    publish(publisher, "a", 2)
    publish(publisher, "b", 9)
    join(publisher, "a")
    assert ask(publisher, "a", 0, 2) == [
        frames.Forgotten("a", 1, True),
        frames.Past("a", 1, 1, None, False, b""),
    ]


@pytest.mark.guarantee("G11")
def test_an_answer_is_bounded_and_the_rest_is_asked_for_again() -> None:
    publisher = Publisher()
    publisher.declare("**", TopicOptions(history=100))
    join(publisher, "**")
    publisher.on_lag(PEER, frames.Lag(1, []))
    for topic in "ab":
        publish(publisher, topic, 50, body=bytes(100_000))
    publisher.on_want(PEER, frames.Want("a", 0, 50))
    publisher.on_want(PEER, frames.Want("b", 0, 50))
    first = publisher.answers(0.0)
    assert {answer.frame.topic for answer in first if isinstance(answer.frame, frames.Past)} == {"a"}
    assert len(first) == -(-ANSWER_BYTES // 100_000)
    assert isinstance(first[-1].frame, frames.Past) and not first[-1].frame.more
    assert publisher.wake_at(1.0) == 1.0
    assert len(publisher.answers(0.0)) == len(first)
    assert publisher.answers(0.0) == [] and publisher.wake_at(1.0) is None


@pytest.mark.guarantee("G11")
def test_what_was_never_published_cannot_be_spoken_of() -> None:
    publisher = Publisher()
    publish(publisher, "a", 3)
    join(publisher, "a")
    with pytest.raises(ProtocolError):
        publisher.on_want(PEER, frames.Want("a", 0, 4))
    with pytest.raises(ProtocolError):
        publisher.on_want(PEER, frames.Want("b", 0, 1))
    with pytest.raises(ProtocolError):
        publisher.on_lag(PEER, frames.Lag(1, [["a", 4]]))
    with pytest.raises(ProtocolError):
        publisher.on_lag(PEER, frames.Lag(1, [["b", 0]]))
    too_many = [f"a.{number}" for number in range(MAX_PATTERNS + 1)]
    for patterns in (["a..b"], ["a*"], [""], too_many):
        with pytest.raises(ProtocolError):
            publisher.on_offers(PEER, 9, offer(*patterns), 0.0)
    for since in (None, 0, 10, 1.0, "1", True):
        with pytest.raises(ProtocolError, match="since"):
            publisher.on_offers(PEER, 9, {"b": {"since": since}}, 0.0)
    with pytest.raises(ProtocolError, match="since"):
        publisher.on_offers(PEER, 9, {"b": {}}, 0.0)
    publisher.check()


def test_only_what_was_subscribed_to_is_repaired() -> None:
    publisher = Publisher()
    publish(publisher, "a", 3)
    join(publisher, "b")
    assert ask(publisher, "a", 0, 3) == []


# --- positions ----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G6")
def test_a_beacon_tells_where_topics_stood_a_heartbeat_ago() -> None:
    publisher = Publisher()
    join(publisher, "a")
    publish(publisher, "a", 3)
    publish(publisher, "b", 3)
    assert publisher.heartbeat(0.5) == []
    publish(publisher, "a", 1)
    beacon = (PEER, frames.Beacon([["a", 3]]), [])
    assert publisher.heartbeat(1.0) == [beacon]
    publisher.on_lag(PEER, frames.Lag(1, [["a", 3]]))
    assert publisher.heartbeat(1.5) == [(PEER, frames.Beacon([["a", 4]]), [])]
    assert publisher.heartbeat(2.0) == [(PEER, frames.Beacon([["a", 4]]), [])]
    publisher.on_lag(PEER, frames.Lag(1, [["a", 4]]))
    assert publisher.heartbeat(2.5) == []
    publisher.on_lag(PEER, frames.Lag(1, [["a", 2]]))  # another of its subscriptions replays
    assert publisher.heartbeat(3.0) == [(PEER, frames.Beacon([["a", 4]]), [])]


@pytest.mark.guarantee("G6")
def test_sending_waits_for_the_slowest() -> None:
    publisher = Publisher()
    publisher.declare("a", TopicOptions(window=10))
    publish(publisher, "a", 100)
    assert not publisher.blocked("a"), "nobody listens"
    for peer in ("s.1", "t.1", "u.1"):
        join(publisher, "a", peer=peer)
    publisher.publish_many("a", [b"\x01"] * 10)
    assert publisher.blocked("a")
    publisher.collect(0.0)
    publisher.on_lag("s.1", frames.Lag(1, [["a", 110]]))
    publisher.on_lag("t.1", frames.Lag(1, [["a", 101]]))
    assert publisher.blocked("a") and not publisher.unblocked
    publisher.pause("u.1", True)
    assert not publisher.blocked("a") and publisher.unblocked == ["a"]
    publisher.unblocked.clear()
    publish(publisher, "a", 1)
    assert publisher.blocked("a")
    assert publisher.lags("t.1") == {"a": 10}
    publisher.on_down("t.1")
    assert not publisher.blocked("a") and publisher.unblocked == ["a"]
    publisher.check()


@pytest.mark.guarantee("G6")
def test_sending_waits_for_the_slowest_in_bytes_too() -> None:
    publisher = Publisher()
    publisher.declare("a", TopicOptions(window=100, window_bytes=1000))
    publish(publisher, "a", 10)
    for peer in ("s.1", "t.1"):
        join(publisher, "a", peer=peer)
        publisher.on_lag(peer, frames.Lag(1, [["a", 10]]))
    publisher.publish("a", bytes(400))
    publisher.publish_many("a", [bytes(300), bytes(299)])
    assert not publisher.blocked("a") and publisher.room("a") == (97, 1)
    assert publisher.count_fitting("a", [bytes(1), bytes(5)]) == 1
    assert publisher.count_fitting("other", [bytes(1), bytes(5)]) == 2  # of which nothing was published yet
    publisher.publish("a", b"", {"headers": "count, too"})
    room = publisher.room("a")
    assert publisher.blocked("a") and room[0] == 96 and room[1] < 0 and publisher.count_fitting("a", [b""]) == 0
    publisher.collect(0.0)
    assert publisher.blocked("a") and publisher.room("a") == room
    publisher.on_lag("s.1", frames.Lag(1, [["a", 14]]))
    assert publisher.blocked("a") and not publisher.unblocked
    publisher.on_lag("t.1", frames.Lag(1, [["a", 13]]))  # of a batch whose rest it has yet to get, all of it counts
    assert publisher.blocked("a") and not publisher.unblocked
    publisher.on_lag("t.1", frames.Lag(1, [["a", 14]]))
    assert not publisher.blocked("a") and publisher.unblocked == ["a"]
    publisher.publish("a", bytes(5000))
    assert publisher.blocked("a"), "one larger than the window may go alone"
    publisher.collect(0.0)
    publisher.on_down("t.1")
    publisher.on_lag("s.1", frames.Lag(1, [["a", 15]]))
    assert not publisher.blocked("a")
    publisher.check()


def test_a_subscriber_that_was_gone_is_confirmed_again_by_its_old_filters() -> None:
    publisher = Publisher()
    join(publisher, "a")
    publisher.on_down(PEER)
    assert publisher.confirmed("a") == []
    publish(publisher, "a", 2)
    publisher.on_offers(PEER, 1, offer("a"), 0.0)
    assert publisher.confirmed("a") == [PEER]
    assert [answer.frame for answer in publisher.answers(0.0)] == [frames.Start(1, [["a", 2, 2, False]], True)]
    publisher.on_lag(PEER, frames.Lag(1, [["a", 0]]))
    publisher.heartbeat(0.5)
    beacons: list[Any] = [answer.frame for answer in publisher.heartbeat(1.0)]
    assert beacons == [frames.Beacon([["a", 2]])]
