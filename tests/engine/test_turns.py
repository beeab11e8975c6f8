"""What a turn looks at: whatever something happened to, however much else a node has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from meshmsg.engine import publisher as publisher_module
from meshmsg.engine.engine import Engine
from meshmsg.engine.outbox import Outbox
from meshmsg.engine.peers import Identity
from meshmsg.engine.publisher import Publisher, make_marker
from meshmsg.engine.run import Details
from meshmsg.engine.subscriber import Reception, Subscriptions
from meshmsg.engine.subscription import Subscription
from meshmsg.engine.topics import PatternIndex
from meshmsg.options import PushOptions, Retry
from meshmsg.wire import frames
from meshmsg.wire.codec import encode_batch, make_packer

QUEUES = 200

touched: list[str] = []


class CountedOutbox(Outbox):
    """Writes down that it was looked at."""

    def absorb(self, now: float) -> None:
        touched.append(self.queue)
        super().absorb(now)

    def dispatch(self, now: float) -> Any:
        touched.append(self.queue)
        return super().dispatch(now)

    def tick(self, now: float) -> None:
        touched.append(self.queue)
        super().tick(now)

    def wake_at(self) -> float | None:
        touched.append(self.queue)
        return super().wake_at()


@pytest.fixture(autouse=True)
def nothing_touched() -> Iterator[None]:
    touched.clear()
    yield
    touched.clear()


class Farm:
    """Engine "a" sends to many queues, engine "b" consumes all of them."""

    def __init__(self, **options: Any) -> None:
        self.now = 0.0
        self.a, self.b = (
            Engine(Identity(name, 1, name, "mesh", (f"tcp://{name}:1",)), generator=random.Random(1)) for name in "ab"
        )
        self.a.make_outbox = CountedOutbox
        self.a.handle_discovered("b", ("tcp://b:1",), 0.0)
        self.b.handle_discovered("a", ("tcp://a:1",), 0.0)
        self.names = [f"q{number}" for number in range(QUEUES)]
        for name in self.names:
            self.a.open_push(name, PushOptions(**options))
            self.b.open_pull(name, 10)
        self.time(0.0)  # the first heartbeat; the next one is not before half a second
        for _ in range(6):
            self.carry()
        assert all(outbox.lanes for outbox in self.a.outboxes.values())
        self.a.check()
        touched.clear()

    def time(self, now: float) -> None:
        self.now = now
        self.a.handle_time(now)
        self.b.handle_time(now)

    def carry(self) -> None:
        for engine, other, route in ((self.a, self.b, b"from-a"), (self.b, self.a, b"from-b")):
            for link, parts in engine.drain(self.now).send:
                if link:
                    other.handle_parts(route, parts, self.now)

    def touched(self) -> set[str]:
        """By what happened since the last time."""
        names = set(touched)
        self.a.check()
        touched.clear()
        return names


def test_a_turn_looks_only_at_the_queues_that_something_happened_to() -> None:
    farm = Farm()
    farm.a.drain(farm.now)
    assert farm.touched() == set()
    farm.a.outboxes["q7"].push(b"\x01")
    farm.a.outboxes["q9"].push_detailed(b"\x01", Details(priority=1), farm.now)
    farm.carry()
    assert farm.touched() == {"q7", "q9"}
    (message,) = farm.b.inboxes["q7"].take(9, farm.now)
    message.ack()
    farm.carry()  # the verdict
    farm.carry()  # what it makes room for
    assert farm.touched() == {"q7"}
    assert farm.a.outboxes["q7"].pending == 0 and farm.a.outboxes["q9"].pending == 1


def test_time_looks_only_at_the_queues_that_are_due() -> None:
    farm = Farm()
    farm.a.outboxes["q3"].push_detailed(b"\x01", Details(due_at=0.2), farm.now)
    farm.a.outboxes["q4"].push_detailed(b"\x01", Details(due_at=0.3), farm.now)
    assert farm.a.drain(farm.now).wake_at == 0.2
    assert farm.touched() == {"q3", "q4"}
    farm.time(0.2)
    assert farm.a.drain(farm.now).wake_at == 0.3
    assert farm.touched() == {"q3"}
    farm.carry()
    farm.time(0.25)
    farm.carry()
    assert farm.touched() == set()


def test_a_nack_with_a_delay_is_due_later() -> None:
    farm = Farm(retry=Retry(3, 0.1, jitter="none"))
    farm.a.outboxes["q5"].push(b"\x01")
    farm.carry()
    (message,) = farm.b.inboxes["q5"].take(9, farm.now)
    message.nack(delay=0.25)
    farm.carry()
    assert farm.a.drain(farm.now).wake_at == 0.25
    farm.time(0.25)
    farm.carry()
    assert [message.attempt for message in farm.b.inboxes["q5"].take(9, farm.now)] == [2]


def test_what_comes_back_unstarted_with_a_delay_is_due_later() -> None:
    farm = Farm()
    farm.a.outboxes["q5"].push(b"\x01")
    farm.carry()
    (lane,) = farm.a.outboxes["q5"].lanes.values()
    back = [0, frames.RETURNED, 0.25, "another message is on trial here"]
    ack = frames.Ack(lane.number, 1, lane.limit, lane.returns, 0, [], [back], 0)
    farm.a.handle_parts(b"from-b", frames.encode(ack), farm.now)
    assert farm.a.drain(farm.now).wake_at == 0.25


def test_queues_that_wait_for_the_end_of_a_suspect_go_on_when_it_came() -> None:
    farm = Farm()
    farm.a.outboxes["q1"].push(b"\x01")
    farm.carry()
    (lane,) = farm.a.outboxes["q1"].lanes.values()
    farm.a.handle_parts(b"from-b", frames.encode(frames.Lost(lane.number)), farm.now)
    farm.carry()
    farm.carry()  # on the new lane, on trial
    farm.a.outboxes["q2"].push(b"\x02")
    farm.carry()
    assert farm.a.outboxes["q2"].waiting == 1
    for message in farm.b.inboxes["q1"].take(9, farm.now):
        message.ack()
    farm.carry()
    farm.touched()
    farm.carry()
    assert farm.a.outboxes["q2"].waiting == 0 and farm.a.outboxes["q1"].pending == 0
    assert [message.body for message in farm.b.inboxes["q2"].take(9, farm.now)] == [2]


def test_a_queue_that_nobody_consumes_any_more_is_due_when_patience_ends() -> None:
    farm = Farm(unroutable_after=5.0)
    farm.a.outboxes["q5"].push(b"\x01")
    farm.carry()
    farm.touched()
    farm.now = 0.1
    for name in ("q5", "q6"):
        farm.b.close_pull(name)
    for _ in range(3):
        farm.carry()
    assert farm.touched() == {"q5", "q6"}
    assert farm.a._sender.wake_at(99.0) == 5.1
    farm.time(5.1)
    assert [letter.reason for letter in farm.a.drain(farm.now).dead] == ["unroutable"]
    assert farm.touched() == {"q5"}


def test_patience_begins_when_a_consumer_leaves_that_held_nothing() -> None:
    farm = Farm(unroutable_after=5.0)
    farm.a._sender.pause_lanes("b")
    farm.a.outboxes["q5"].push(b"\x01")
    farm.carry()
    farm.now = 0.1
    farm.b.withdraw_pull("q5")
    for _ in range(2):
        farm.carry()
    assert not farm.a.outboxes["q5"].lanes
    assert farm.a._sender.wake_at(99.0) == 5.1


def test_who_is_looked_at_too_early_is_looked_at_again_in_time() -> None:
    farm = Farm(unroutable_after=5.0)
    farm.b.withdraw_pull("q5")
    farm.now = 0.1
    farm.carry()
    outbox = farm.a.outboxes["q5"]
    outbox.push(b"\x01")
    farm.carry()
    assert farm.a._sender.wake_at(99.0) == 5.1
    outbox.options = replace(outbox.options, unroutable_after=7.0)
    farm.time(5.1)
    farm.carry()
    assert outbox.waiting == 1 and farm.a._sender.wake_at(99.0) == 7.1


def test_a_consumer_that_is_back_gets_what_waits() -> None:
    farm = Farm()
    farm.a._sender.pause_lanes("b")
    farm.a.outboxes["q5"].push(b"\x01")
    farm.carry()
    assert farm.a.outboxes["q5"].waiting == 1
    farm.a._sender.resume_lanes(farm.a.peers.by_id["b"])
    farm.carry()
    assert farm.a.outboxes["q5"].waiting == 0


def test_a_dead_letter_wakes_the_queue_that_it_moves_to() -> None:
    farm = Farm(dead_letter_to="q0")
    farm.a.outboxes["q8"].push_detailed(b"\x01", Details(expires_at=0.1, due_at=9.0), farm.now)
    farm.a.drain(farm.now)
    farm.touched()
    farm.time(0.1)
    farm.carry()
    assert farm.touched() == {"q0", "q8"}
    assert len(farm.b.inboxes["q0"].take(9, farm.now)) == 1


def test_a_node_in_a_lane_that_is_over_is_forgotten_at_both_ends() -> None:
    farm = Farm()
    for name in farm.names:
        farm.b.close_pull(name)
    farm.time(0.1)  # it has many offers, and tells of changes now and then
    for _ in range(3):
        farm.carry()
    assert not farm.b.leaving and not farm.b._receiver._homes
    assert not farm.a._sender._lanes


# --- offers -------------------------------------------------------------------------------------------------


def offers_told(engine: Engine, now: float) -> list[int]:
    """How much each of the frames in a turn offers."""
    told = [frames.decode(parts) for link, parts in engine.drain(now).send if link]
    return [sum(map(len, frame.offers.values())) for frame in told if isinstance(frame, frames.Offers)]


def test_what_is_opened_in_one_turn_is_told_once() -> None:
    farm = Farm()
    farm.time(1.0)
    farm.b.drain(1.0)
    for number in range(2000):
        farm.b.open_sub(Subscription(f"a.{number}"))
    assert offers_told(farm.b, 1.0) == [QUEUES + 2000]


def test_who_has_many_offers_does_not_tell_each_change_of_them() -> None:
    farm = Farm()
    farm.time(1.0)
    farm.b.drain(1.0)
    subscriptions = [Subscription(f"a.{number}") for number in range(2000)]
    for subscription in subscriptions:
        farm.b.open_sub(subscription)
    assert offers_told(farm.b, 1.0) == [QUEUES + 2000]
    for subscription in subscriptions[:100]:
        farm.b.close_sub(subscription)
        assert offers_told(farm.b, 1.0) == []
    wake_at = farm.b.drain(1.0).wake_at
    assert wake_at is not None and 1.0 < wake_at < 1.1
    assert offers_told(farm.b, wake_at) == [QUEUES + 1900]
    assert offers_told(farm.b, wake_at + 1.0) == []
    farm.b.close_sub(subscriptions[100])
    assert offers_told(farm.b, wake_at + 1.0) == [QUEUES + 1899]
    farm.b.close_sub(subscriptions[101])
    farm.b.close()  # whoever leaves tells all of it at once
    assert offers_told(farm.b, wake_at + 1.0)


# --- topics -------------------------------------------------------------------------------------------------


def test_who_follows_a_topic_is_looked_up_once_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshmsg.engine.topics.MAX_CACHED", 10)
    looked_up: list[str] = []
    find = PatternIndex.find

    def counted(self: PatternIndex[Any], topic: str) -> Any:
        looked_up.append(topic)
        return find(self, topic)

    monkeypatch.setattr(PatternIndex, "find", counted)
    publisher, topics = Publisher(), [f"a.{number}" for number in range(100)]
    for topic in topics:
        publisher.publish(topic, b"\x01")
    publisher.collect(0.0)
    looked_up.clear()
    publisher.on_offers("s.1", 1, {"**": {"since": 1}}, 0.0)
    publisher.on_filter(make_marker("s", 1, 1), True, 0.0)
    publisher.answers(0.0)
    for topic in topics:
        publisher.on_lag("s.1", frames.Lag(1, [[topic, 0]]))
        publisher.on_want("s.1", frames.Want(topic, 0, 1))
    for turn in range(3):
        publisher.heartbeat(float(turn))
        publisher.lags("s.1")
    assert len(looked_up) <= 2 * len(topics), "before it came, and after"


def test_a_heartbeat_tells_one_subscriber_of_a_bounded_number_of_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "MAX_BEACONS", 3)
    publisher = Publisher()
    publisher.on_offers("s.1", 1, {"**": {"since": 1}}, 0.0)
    publisher.on_filter(make_marker("s", 1, 1), True, 0.0)
    publisher.answers(0.0)
    publisher.on_lag("s.1", frames.Lag(1, []))
    for number in range(7):
        publisher.publish(f"a.{number}", b"\x01")
    publisher.collect(0.0)
    publisher.heartbeat(0.5)
    told = [publisher.heartbeat(1.0 + turn)[0].frame for turn in range(3)]
    topics = [[topic for topic, _ in frame.topics] for frame in told if isinstance(frame, frames.Beacon)]
    assert [len(each) for each in topics] == [3, 3, 3]
    assert {topic for each in topics for topic in each} == {f"a.{number}" for number in range(7)}, "each has its turn"


def test_only_the_publishers_that_something_came_from_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    subscriptions = Subscriptions("s", 1)
    subscriptions.add(Subscription("**"), 1)
    receptions = {number: subscriptions.follow(f"p{number}.1") for number in range(QUEUES)}
    for reception in receptions.values():
        reception.change_filters()
        reception.on_start(frames.Start(1, [], True), 0.0)
    subscriptions.collect(0.0)
    looked: list[str] = []
    collect = Reception.collect

    def counted(reception: Reception, now: float) -> list[frames.PubSubFrame]:
        looked.append(reception.peer)
        return collect(reception, now)

    monkeypatch.setattr(Reception, "collect", counted)
    payload = encode_batch([make_packer()(1)])
    receptions[3].on_published(frames.Published("a", "p3", 1, 0, 1, None, payload), 0.0)
    receptions[5].on_published(frames.Published("a", "p5", 1, 4, 1, None, payload), 0.0)  # the first four are missing
    subscriptions.collect(0.0)
    assert looked == ["p3.1", "p5.1"]
    looked.clear()
    subscriptions.collect(0.1)
    assert looked == ["p5.1"]  # an answer is awaited
    subscriptions.check()


def test_only_the_subscribers_that_something_is_due_to_are_looked_at() -> None:
    publisher = Publisher()
    for number in range(QUEUES):
        peer = f"s{number}.1"
        publisher.on_offers(peer, 1, {"a": {"since": 1}}, 0.0)
        publisher.on_filter(b"\xff" + f"{peer}.1".encode(), True, 0.0)
        publisher.on_lag(peer, frames.Lag(1, []))
    assert len(publisher.followers) == QUEUES
    assert publisher.answers(0.0) == [] and not publisher.owed
    publisher.publish("a", b"1")
    publisher.collect(0.0)
    publisher.on_want("s7.1", frames.Want("a", 0, 1))
    assert list(publisher.owed) == ["s7.1"]
    publisher.check()
    assert [answer.peer for answer in publisher.answers(0.0)] == ["s7.1"]
    assert not publisher.owed
    publisher.check()
