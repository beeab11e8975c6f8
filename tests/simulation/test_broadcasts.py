"""The simulated XPUB and SUB keep what the real ones promise: order, the marker last, connections that come back."""

from __future__ import annotations

import random

import pytest

from meshmsg.testing import Network, VirtualClock
from meshmsg.testing.clock import ProcessLoop
from meshmsg.testing.network import SimulatedTransport
from meshmsg.transport.interface import LinkEvent
from meshmsg.wire.frames import PIECE_BYTES


class Pair:
    """A publisher and a subscriber, each alone on its host."""

    def __init__(self, seed: int = 1, piece_bytes: int = PIECE_BYTES) -> None:
        self.clock = VirtualClock()
        self.network = Network(self.clock, random.Random(seed))
        self.network.broadcasts.piece_bytes = piece_bytes
        self.publisher = self.open("a")
        self.subscriber = self.open("b")
        (self.endpoint,) = self.publisher.broadcast.open_broadcast()

    def open(self, host: str) -> SimulatedTransport:
        return self.network.open(ProcessLoop(self.clock), host, f"tcp://{host}:1")

    def follow(self, *filters: bytes, marker: bytes = b"\xff1") -> None:
        self.subscriber.broadcast.follow(1, self.endpoint, filters, marker)
        self.run(0.1)

    def run(self, seconds: float) -> None:
        self.clock.run_until(self.clock.now + seconds)

    def publish(self, *topics: bytes) -> None:
        for topic in topics:
            self.publisher.broadcast.publish([topic, b"header", b"bodies"])

    def received(self) -> list[bytes]:
        return [parts[0] for _, parts in self.subscriber.broadcast.receive_published(1000)]

    def events(self) -> list[LinkEvent]:
        return [event for _, event in self.subscriber.broadcast.follow_events()]

    def changes(self) -> list[tuple[bytes, bool]]:
        return self.publisher.broadcast.subscriptions()


def test_filters_come_before_their_marker_and_go_with_the_connection() -> None:
    pair = Pair()
    pair.follow(b"b", b"a")
    assert pair.changes() == [(b"a", True), (b"b", True), (b"\xff1", True)]
    pair.subscriber.broadcast.refilter(1, [b"b", b"c"], b"\xff2")
    pair.run(0.1)
    assert pair.changes() == [(b"c", True), (b"\xff2", True), (b"a", False), (b"\xff1", False)]
    pair.publish(b"a", b"bc", b"c", b"d")
    pair.run(0.1)
    assert pair.received() == [b"bc", b"c"]
    pair.subscriber.broadcast.unfollow(1)
    pair.run(0.1)
    assert pair.changes() == [(b"b", False), (b"c", False), (b"\xff2", False)]
    assert pair.events() == [LinkEvent.UP]


def test_a_filter_that_another_subscriber_has_is_not_removed() -> None:
    pair = Pair()
    other = pair.open("c")
    pair.follow(b"a")
    other.broadcast.follow(1, pair.endpoint, [b"a"], b"\xff9")
    pair.run(0.1)
    assert pair.changes().count((b"a", True)) == 2
    pair.network.crash(pair.subscriber)
    pair.run(0.1)
    assert pair.changes() == [(b"\xff1", False)]


def test_a_connection_comes_back_with_the_filters_of_that_time() -> None:
    pair = Pair()
    pair.follow(b"a")
    pair.changes()
    pair.network.disconnect("b", "a")
    pair.run(0.01)
    assert pair.events() == [LinkEvent.UP, LinkEvent.DOWN]
    pair.subscriber.broadcast.refilter(1, [b"b"], b"\xff2")
    pair.run(0.5)
    assert pair.events() == [LinkEvent.UP]
    assert pair.changes() == [(b"a", False), (b"\xff1", False), (b"b", True), (b"\xff2", True)]


def test_a_restarted_publisher_is_found_again() -> None:
    pair = Pair()
    pair.follow(b"a")
    pair.network.crash(pair.publisher)
    pair.run(5.0)
    assert pair.events() == [LinkEvent.UP, LinkEvent.DOWN]
    pair.publisher = pair.open("a")
    assert pair.publisher.broadcast.open_broadcast() == (pair.endpoint,)
    pair.run(5.0)
    pair.publish(b"a")
    pair.run(0.1)
    assert pair.received() == [b"a"]


@pytest.mark.parametrize("one_way", [False, True])
def test_a_short_cut_holds_up_and_a_long_one_ends_the_connection(one_way: bool) -> None:
    pair = Pair()
    pair.follow(b"a")
    pair.network.cut("a", "b", one_way=one_way)
    pair.publish(b"a1")
    pair.run(1.0)
    assert pair.received() == []
    pair.network.heal()
    pair.run(1.0)
    assert (pair.received(), pair.events()) == ([b"a1"], [LinkEvent.UP])
    pair.network.cut("a", "b", one_way=one_way)
    pair.run(10.0)
    pair.publish(b"a2")
    pair.network.heal()
    pair.run(5.0)
    pair.publish(b"a3")
    pair.run(0.1)
    assert (pair.received(), pair.events()) == ([b"a3"], [LinkEvent.DOWN, LinkEvent.UP])


def test_who_is_full_misses_whole_messages_and_nobody_else_does() -> None:
    pair = Pair()
    pair.follow(b"")
    other = pair.open("c")
    other.broadcast.follow(1, pair.endpoint, [b""], b"\xff9")
    pair.run(0.1)
    pair.network.broadcasts.high_water = 3
    pair.network.freeze(pair.subscriber)
    for number in range(5):
        pair.publish(b"%d" % number)
        pair.run(0.1)
    pair.network.thaw(pair.subscriber)
    pair.run(1.0)
    assert pair.received() == [b"0", b"1", b"2"]
    assert len(other.broadcast.receive_published(10)) == 5
    assert pair.network.broadcasts.dropped == 2


def test_pieces_wait_for_turns_and_are_sent_before_the_end() -> None:
    pair = Pair(piece_bytes=1)
    pair.follow(b"a")
    pair.changes()
    pair.publisher.broadcast.publish([b"a", *[b"1"] * 20])
    pair.publisher.broadcast.advance()
    assert pair.publisher.broadcast.more() and pair.network.broadcasts.published < 10
    pair.publisher.close()
    assert pair.network.broadcasts.published == 10


def test_drops_come_in_bursts() -> None:
    pair = Pair()
    pair.follow(b"")
    pair.network.broadcasts.drops = 0.1
    pair.publish(*(b"%03d" % number for number in range(500)))
    pair.run(1.0)
    received = pair.received()
    assert received == sorted(received)
    assert 250 < len(received) == 500 - pair.network.broadcasts.dropped < 450
