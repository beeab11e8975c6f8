"""Messages in pieces at a subscriber: whole or not at all, repaired like any other, and asked for in time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.engine.pieces import STALLED_S, Assembly
from meshmsg.engine.subscriber import ASK_AGAIN_S, TAIL_GRACE_S, Reception, Subscriptions
from meshmsg.engine.subscription import Delivery, Gap, Subscription
from meshmsg.errors import ProtocolError
from meshmsg.wire import frames
from meshmsg.wire.codec import make_packer

pytestmark = pytest.mark.guarantee("G6")

pack = make_packer()

PIECE = 10  # bytes of each piece but the last
HEARTBEAT_S = 0.5


def make_pieces(
    topic: str, seq: int, size: int = 45, *, incarnation: int = 3, headers: dict[int, Any] | None = None
) -> list[frames.Published]:
    """One message as it arrives: each piece as a SUB hands it out."""
    payload = pack(bytes([seq % 256]) * (size - 2))
    published = frames.Published(topic, "p", incarnation, seq, 1, headers, payload)
    parts: list[Any] = list(frames.encode_published(published, PIECE))
    return [frames.decode_published([parts[0], *parts[at : at + 2]], PIECE) for at in range(1, len(parts), 2)]


class Side:
    """A node that subscribes to everything of one publisher, from the first message on."""

    def __init__(self, *subscriptions: Subscription) -> None:
        self.subscriptions = Subscriptions("s", 1)
        self.reception: Reception = self.subscriptions.follow("p.3")
        self.subscription = Subscription("**")
        for subscription in subscriptions or (self.subscription,):
            self.subscriptions.add(subscription, self.subscriptions.version + 1)
        self.reception.change_filters()
        self.reception.on_start(frames.Start(self.subscriptions.version, [], True), 0.0)

    @property
    def assembly(self) -> Assembly:
        return self.reception._assembly

    def hear(self, *pieces: frames.Published, now: float = 0.0) -> None:
        for piece in pieces:
            self.reception.on_published(piece, now)
            self.subscriptions.check()

    def small(self, topic: str, seq: int, now: float = 0.0) -> None:
        self.hear(frames.Published(topic, "p", 3, seq, 1, None, pack(seq)), now=now)

    def past(self, topic: str, seq: int, now: float = 0.0) -> None:
        self.reception.on_past(frames.Past(topic, seq, 1, None, False, make_whole(topic, seq)), now)
        self.subscriptions.check()

    def beacon(self, topic: str, next_seq: int, now: float) -> None:
        self.reception.on_beacon(frames.Beacon([[topic, next_seq]]), now)
        self.subscriptions.check()

    def wants(self, now: float) -> list[tuple[str, int, int]]:
        sent = [frame for _, frame in self.subscriptions.collect(now)]
        self.subscriptions.check()
        return [(each.topic, each.start, each.stop) for each in sent if isinstance(each, frames.Want)]

    def first_want(self, now: float, until: float) -> tuple[float, tuple[str, int, int]] | None:
        """When something is asked for, by the timers alone."""
        while now <= until:
            wants = self.wants(now)
            if wants:
                return now, wants[0]
            due = self.subscriptions.wake_at(now)
            if due is None:
                return None
            assert due > now
            now = due
        return None

    def taken(self) -> list[Any]:
        """Numbers in order; gaps as pairs."""
        result: list[Any] = []
        for item in self.subscription.take(10**6):
            if isinstance(item, Gap):
                result.append((item.start, item.stop))
            else:
                for seq, body in enumerate(item.bodies, item.first_seq):
                    assert body == seq or (set(body) <= {seq} and len(body) >= 40), "not what was published"
                    result.append(seq)
        return result


def make_whole(topic: str, seq: int, size: int = 45) -> bytes:
    return b"".join(piece.payload for piece in make_pieces(topic, seq, size))


# --- whole or not at all ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [11, 19, 20, 21, 30, 45])
def test_a_message_is_there_with_its_last_piece(size: int) -> None:
    side = Side()
    *pieces, last = make_pieces("a", 0, size, headers={0: {"unit": "C"}})
    side.hear(*pieces)
    assert side.subscription.take(9) == []
    side.hear(last)
    body = bytes(size - 2)
    assert side.subscription.take(9) == [Delivery("a", "p.3", 0, [body], {0: {"unit": "C"}}, size)]
    assert side.assembly.topic is None
    assert side.wants(9.0) == []


def test_other_topics_pass_between_the_pieces() -> None:
    side = Side()
    pieces = make_pieces("large", 0)
    for number, piece in enumerate(pieces):
        side.small("small", number)
        side.hear(piece)
    deliveries = [item for item in side.subscription.take(99) if isinstance(item, Delivery)]
    assert [item.topic for item in deliveries] == ["small"] * 5 + ["large"]


@pytest.mark.parametrize("lost", range(5))
def test_with_any_piece_lost_the_message_is_asked_for(lost: int) -> None:
    side = Side()
    pieces = make_pieces("a", 1)
    side.small("a", 0)
    side.hear(*pieces[:lost], *pieces[lost + 1 :])
    assert side.taken() == [0]
    found = side.first_want(0.0, 10.0)
    assert found is not None
    assert found[1] == ("a", 1, 2)
    # Without its last piece nothing tells that it is not on its way.
    assert found[0] <= (TAIL_GRACE_S if lost < 4 else STALLED_S + TAIL_GRACE_S)
    side.past("a", 1, found[0])
    assert side.taken() == [1]
    side.hear(*make_pieces("a", 2), now=found[0])
    assert side.taken() == [2]


@pytest.mark.parametrize("lost", range(5))
def test_a_later_message_of_the_topic_tells_of_the_loss_at_once(lost: int) -> None:
    for behind in (make_pieces("a", 1), [frames.Published("a", "p", 3, 1, 1, None, pack(1))]):
        side = Side()
        pieces = make_pieces("a", 0)
        side.hear(*pieces[:lost], *pieces[lost + 1 :], *behind)
        assert side.wants(0.0) == [("a", 0, 1)]
        side.past("a", 0)
        assert side.taken() == [0, 1]


@given(
    lost=st.sets(st.integers(0, 39), max_size=12),
    topics=st.lists(st.sampled_from("abc"), min_size=8, max_size=8),
    large=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_whatever_is_lost_everything_arrives_once_and_in_order(
    lost: set[int], topics: list[str], large: list[bool]
) -> None:
    side = Side()
    ends: dict[str, int] = {}
    stream: list[frames.Published] = []
    for topic, is_large in zip(topics, large, strict=True):
        seq = ends.get(topic, 0)
        ends[topic] = seq + 1
        stream += make_pieces(topic, seq) if is_large else [frames.Published(topic, "p", 3, seq, 1, None, pack(seq))]
    now = 0.0
    for place, piece in enumerate(stream):
        if place not in lost:
            side.hear(piece, now=now)
    for topic, end in ends.items():
        side.beacon(topic, end, now)
    for _ in range(100):
        for topic, start, stop in side.wants(now):
            for seq in range(start, stop):
                side.past(topic, seq, now)
        now += 0.1
    got: dict[str, list[int]] = {}
    for item in side.subscription.take(99):
        assert isinstance(item, Delivery)
        got.setdefault(item.topic, []).extend(range(item.first_seq, item.first_seq + len(item.bodies)))
    assert got == {topic: list(range(end)) for topic, end in ends.items()}
    assert side.subscriptions.wake_at(now) is None


@pytest.mark.parametrize("other", [("a", 1), ("b", 0)])
def test_one_that_begins_takes_the_place_of_one_that_does_not_end(other: tuple[str, int]) -> None:
    side = Side()
    side.hear(*make_pieces("a", 0)[:3], *make_pieces(*other))
    assert side.assembly.topic is None
    found = side.first_want(0.0, 10.0)
    assert found is not None and found[1] == ("a", 0, 1)
    assert found[0] <= TAIL_GRACE_S


@pytest.mark.parametrize(
    "stranger",
    [
        make_pieces("a", 0)[1],  # a second time
        make_pieces("a", 0)[3],
        make_pieces("a", 1)[2],
        make_pieces("b", 0)[2],
        make_pieces("a", 0, 55)[2],  # of more pieces
    ],
)
def test_what_fits_nowhere_ends_what_was_on_its_way(stranger: frames.Published) -> None:
    side = Side()
    pieces = make_pieces("a", 0)
    assert stranger.part is not None
    side.hear(*pieces[:2], stranger, *pieces[stranger.part[0] + 1 :])
    assert side.subscription.take(9) == []
    assert side.assembly.topic is None


def test_a_new_life_at_the_old_address_adds_nothing() -> None:
    side = Side()
    mine, foreign = make_pieces("a", 0), make_pieces("a", 0, incarnation=4)
    side.hear(mine[0], foreign[0], foreign[1], mine[1], foreign[2], *mine[2:], *foreign)
    assert side.taken() == [0]


# --- what is asked for --------------------------------------------------------------------------------------


def test_what_is_on_its_way_is_not_asked_for_as_long_as_it_comes() -> None:
    """A slow line: a piece a second, and beacons over the other connection."""
    side = Side()
    now = 0.0
    pieces = make_pieces("a", 0, 200)
    for piece in pieces[:-1]:
        side.hear(piece, now=now)
        for _ in range(2):
            side.beacon("a", 1, now)
            assert side.first_want(now, now + HEARTBEAT_S - 0.01) is None
            now += HEARTBEAT_S
    side.hear(pieces[-1], now=now)
    assert side.taken() == [0]
    assert side.first_want(now, now + 10) is None


def test_one_that_stalls_is_asked_for_and_may_go_on() -> None:
    side = Side()
    pieces = make_pieces("a", 0)
    side.hear(*pieces[:2], now=1.0)
    side.beacon("a", 1, 1.2)
    found = side.first_want(1.2, 10.0)
    assert found is not None
    assert 1.0 + STALLED_S <= found[0] <= 1.0 + STALLED_S + TAIL_GRACE_S
    side.hear(*pieces[2:], now=found[0])
    assert side.taken() == [0]
    side.past("a", 0, found[0] + 0.1)
    assert side.taken() == [] and side.subscriptions.repeated == 1
    assert side.first_want(found[0], 20.0) is None


def test_the_rest_of_what_is_lost_already_holds_up_no_repair() -> None:
    side = Side()
    pieces = make_pieces("a", 0, 200)
    side.hear(pieces[0])
    for number, piece in enumerate(pieces[2:6]):
        now = number * TAIL_GRACE_S / 3
        side.hear(piece, now=now)
        assert side.wants(now) == ([("a", 0, 1)] if number == 3 else [])


def test_the_answer_takes_the_place_of_what_stalled() -> None:
    side = Side()
    pieces = make_pieces("a", 0)
    side.hear(*pieces[:2])
    assert side.first_want(0.0, 10.0) is not None
    side.past("a", 0, 2.0)
    assert side.assembly.topic is None
    side.hear(*pieces[2:], now=2.0)
    assert side.taken() == [0]
    assert side.assembly.topic is None


def test_what_is_missing_before_it_is_asked_for_alone() -> None:
    side = Side()
    pieces = make_pieces("a", 3)
    side.small("a", 0)
    side.hear(pieces[0])
    side.beacon("a", 7, 0.1)  # behind it, in its topic's line at the publisher
    found = side.first_want(0.1, 10.0)
    assert found is not None and found[1] == ("a", 1, 3)
    side.hear(*pieces[1:], now=found[0])
    assert side.wants(found[0] + ASK_AGAIN_S) == [("a", 1, 3)]
    side.past("a", 1, 1.0)
    side.past("a", 2, 1.0)
    assert side.taken() == [0, 1, 2, 3]


def test_one_topic_that_arrives_holds_up_no_repair_of_another() -> None:
    side = Side()
    pieces = make_pieces("large", 0, 500)
    side.hear(pieces[0])
    side.beacon("small", 1, 0.1)
    side.hear(pieces[1], now=0.2)
    found = side.first_want(0.2, 10.0)
    assert found == (0.1 + TAIL_GRACE_S, ("small", 0, 1))


def test_a_value_that_replaces_others_is_waited_for_as_well() -> None:
    latest = Subscription("a", latest=True)
    side = Side(latest)
    pieces = make_pieces("a", 4)
    side.hear(*pieces[:-1])
    side.beacon("a", 5, 0.1)
    assert side.first_want(0.1, 1.0) is None
    side.hear(pieces[-1], now=1.1)
    assert [item.first_seq for item in latest.take(9) if isinstance(item, Delivery)] == [4]


def test_a_publisher_that_dies_half_way_leaves_a_gap() -> None:
    side = Side()
    side.hear(*make_pieces("a", 0)[:4])
    side.subscriptions.end("p.3")
    assert side.taken() == [(0, 1)]


# --- what is not collected ----------------------------------------------------------------------------------


def test_what_is_not_wanted_is_not_collected() -> None:
    subscription = Subscription("a")
    side = Side(subscription)
    side.hear(*make_pieces("b", 0)[:4])
    assert side.assembly.topic is None and side.subscriptions.unwanted == 1
    side.past("a", 0)
    side.hear(*make_pieces("a", 0)[:4])
    assert side.assembly.topic is None and side.subscriptions.repeated == 1
    side.hear(*make_pieces("a", 1)[:4], make_pieces("b", 1)[0])
    assert side.assembly.topic is None, "there is one at a time"
    side.hear(*make_pieces("a", 1)[:4])
    assert len(side.assembly._pieces) == 4
    side.subscriptions.remove(subscription, 9)
    assert side.assembly.topic is None
    side.hear(*make_pieces("a", 1)[4:])
    assert side.assembly.topic is None


@pytest.mark.guarantee("G11")
def test_a_publisher_can_fill_no_more_than_one_message_takes() -> None:
    side = Side()
    for seq in range(50):
        for topic in "ab":
            side.hear(*make_pieces(topic, seq)[:4])
            assert sum(map(len, side.assembly._pieces)) <= 5 * PIECE
    assert side.taken() == []


@pytest.mark.guarantee("G11")
def test_pieces_that_make_no_payload_are_refused() -> None:
    side = Side()
    pieces = make_pieces("a", 0)
    for piece in pieces:
        wrong = piece._replace(payload=b"\xc1" * len(piece.payload))
        if piece is pieces[-1]:
            with pytest.raises(ProtocolError):
                side.reception.on_published(wrong._replace(total=2), 0.0)
        else:
            side.hear(wrong._replace(total=2))
    assert side.assembly.topic is None


def test_what_arrives_in_pieces_is_no_gap_whatever_the_publisher_has_forgotten() -> None:
    side = Side()
    side.small("a", 0)
    side.small("a", 2)  # 1 is lost
    pieces = make_pieces("a", 3)
    side.hear(pieces[0])
    side.reception.on_forgotten(frames.Forgotten("a", 4, False), 0.0)
    side.hear(*pieces[1:])
    assert side.taken() == [0, (1, 2), 2, 3]
    side.hear(*make_pieces("a", 4)[:2])  # and the rest of it is lost
    side.reception.on_forgotten(frames.Forgotten("a", 5, False), STALLED_S)
    side.small("a", 5, STALLED_S)
    assert side.taken() == [(4, 5), 5]
