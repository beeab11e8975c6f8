"""The machines together: routing of frames, lanes that open and end, hostile frames, effects."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmsg.engine.engine import Engine
from meshmsg.engine.outbox import Outbox
from meshmsg.engine.peers import Identity
from meshmsg.options import PushOptions, Retry
from meshmsg.testing import Cluster
from meshmsg.wire import frames
from meshmsg.wire.codec import make_packer

pytestmark = pytest.mark.guarantee("G1", "G2", "G4", "G5", "G10", "G11")


class Pair:
    """Engine "a" produces, engine "b" consumes. Frames wait in between until ``carry`` takes them over, or not."""

    def __init__(self, prefetch: int = 10, **options: Any) -> None:
        self.now = 0.0
        self.a, self.b = (
            Engine(Identity(name, 1, name, "mesh", (f"tcp://{name}:1",)), generator=random.Random(1)) for name in "ab"
        )
        self.out: dict[str, list[list[bytes]]] = {"a": [], "b": []}
        self.routes = {"a": b"from-a", "b": b"from-b"}
        self.a.handle_discovered("b", ("tcp://b:1",), 0.0)
        self.b.handle_discovered("a", ("tcp://a:1",), 0.0)
        self.box: Outbox = self.a.open_push("q", PushOptions(**options))
        self.inbox = self.b.open_pull("q", prefetch)
        for _ in range(5):
            self.carry()
        assert self.peer_of_a.state == "alive"

    @property
    def peer_of_a(self) -> Any:
        return self.a.peers.by_id["b"]

    def turn(self, who: str) -> list[frames.Frame | None]:
        """One engine's output, kept for the other; returns it decoded."""
        engine = self.a if who == "a" else self.b
        sent = [parts for link, parts in engine.drain(self.now).send if link]
        self.out[who] += sent
        return [frames.decode(parts) for parts in sent]

    def carry(self, *, lose: str = "") -> None:
        """Both take their turn, then each gets what the other has said."""
        for who, engine in (("a", self.b), ("b", self.a)):
            route = self.routes[who]
            self.turn(who)
            said, self.out[who] = self.out[who], []
            for parts in [] if who in lose else said:
                engine.handle_parts(route, parts, self.now)
        self.a.check()
        self.b.check()

    def beat(self, seconds: float = 0.5) -> None:
        self.now += seconds
        self.a.handle_time(self.now)
        self.b.handle_time(self.now)

    def break_links(self) -> None:
        """Both links break and are made anew; what was under way is lost."""
        for who, engine in (("a", self.a), ("b", self.b)):
            self.out[who].clear()
            link = next(link for link, _ in engine.peers.linked() if link)
            engine.handle_link(link, "down", self.now)
        for _ in range(4):
            self.carry()


def events(engine: Engine, now: float = 0.0) -> list[str]:
    return [event.kind for event in engine.drain(now).events]


# --- the way of a message -----------------------------------------------------------------------------------


def test_from_the_outbox_to_the_inbox_and_back() -> None:
    pair = Pair()
    pair.box.push_many([b"\x01", b"\x02"], 2)
    pair.carry()
    messages = pair.inbox.take(10, 0.0)
    assert [message.body for message in messages] == [1, 2]
    messages[0].ack()
    messages[1].reject("no")
    pair.carry()
    assert pair.box.ledger()[:3] == (2, 1, 1)
    assert [letter.reason for letter in pair.a.dead_letters.letters()] == ["rejected"]


def test_a_message_to_a_queue_of_the_same_node_never_leaves_it() -> None:
    cluster = Cluster()
    node = cluster.node("a")
    jobs, pull = node.push("q"), node.pull("q")
    jobs.send("x")
    cluster.run(0.1)
    assert pull.processed == ["x"] and cluster.network.frames == 0


def test_lost_data_is_sent_again_on_the_same_lane_without_an_attempt() -> None:
    pair = Pair()
    pair.box.push_many([b"\x01", b"\x02"], 2)
    pair.carry(lose="a")
    pair.break_links()
    messages = pair.inbox.take(10, 0.0)
    assert [(message.body, message.attempt, message.redelivered) for message in messages] == [
        (1, 1, False),
        (2, 1, False),
    ]


def test_lost_acks_are_said_again() -> None:
    pair = Pair()
    pair.box.push(b"\x01")
    pair.carry()
    pair.inbox.take(1, 0.0)[0].ack()
    pair.carry(lose="b")
    assert pair.box.pending == 1
    pair.break_links()
    assert pair.box.processed == 1 and pair.inbox.received == 1


def test_acks_that_a_link_had_no_room_for_are_said_again() -> None:
    pair = Pair(prefetch=1)
    pair.box.push_many([b"\x01", b"\x02"], 2)
    pair.carry()
    pair.inbox.take(1, 0.0)[0].ack()
    pair.carry(lose="b")
    pair.b.handle_unsent(next(link for link, _ in pair.b.peers.linked() if link))
    pair.beat()
    pair.carry()
    pair.carry()
    assert [message.body for message in pair.inbox.take(9, 0.0)] == [2]


def test_offers_that_a_link_had_no_room_for_are_said_again() -> None:
    pair = Pair()
    pair.b.open_pull("other", 5)
    pair.a.open_push("other", PushOptions())
    pair.turn("b")
    pair.out["b"].clear()
    pair.b.handle_unsent(next(link for link, _ in pair.b.peers.linked() if link))
    pair.beat()
    pair.carry()
    assert len(pair.a.outboxes["other"].lanes) == 1


def test_a_repeated_frame_changes_nothing() -> None:
    pair = Pair()
    pair.box.push(b"\x01")
    pair.turn("a")
    pair.out["a"] *= 3
    pair.carry()
    (message,) = pair.inbox.take(9, 0.0)
    message.nack()
    pair.turn("b")
    pair.out["b"] *= 3
    pair.carry()
    assert pair.box.redelivered == 1


def test_old_verdicts_are_not_answered_for_ever() -> None:
    """The floor is held up by the first message; were each repetition of a verdict answered, both would never stop."""
    pair = Pair()
    pair.box.push_many([b"\x01", b"\x02"], 2)
    pair.carry()
    pair.inbox.take(1, 0.0)
    pair.inbox.take(1, 0.0)[0].nack(delay=100.0)
    for _ in range(5):
        pair.carry()
    assert pair.turn("a") == [] and pair.turn("b") == []


def test_a_verdict_is_heard_at_last_when_the_floor_passes_it() -> None:
    """Nothing else may ever come over the lane; then every heartbeat would repeat the verdict."""
    pair = Pair()
    pair.box.push_many([b"\x01", b"\x02"], 2)
    pair.carry()
    (first,) = pair.inbox.take(1, 0.0)
    pair.inbox.take(1, 0.0)[0].reject("no")
    for _ in range(3):
        pair.carry()
    first.ack()
    for _ in range(3):
        pair.carry()
    (lane,) = pair.inbox.lanes.values()
    assert not lane.verdicts
    assert pair.turn("a") == [] and pair.turn("b") == []


def test_late_offers_do_not_replace_newer_ones() -> None:
    pair = Pair()
    old = frames.encode(frames.Offers(pair.b.identity.offers_version, pair.b.identity.offers))
    pair.b.close_pull("q")
    for _ in range(3):
        pair.carry()
    assert not pair.box.lanes
    pair.a.handle_parts(b"from-b", old, 0.0)
    assert not pair.box.lanes


def test_a_hello_has_the_version_of_the_offers_that_leave_with_it() -> None:
    engine = Engine(Identity("a", 1, "a", "mesh", ("tcp://a:1",)), generator=random.Random(1))
    engine.handle_discovered("b", ("tcp://b:1",), 0.0)  # writes the HELLO, which leaves with the next turn
    engine.open_pull("q", 10)
    (hello,) = (frames.decode(parts) for link, parts in engine.drain(0.0).send if link)
    assert isinstance(hello, frames.Hello)
    assert (hello.offers, hello.offers_version) == ({"pull": {"q": {}}}, engine.identity.offers_version)


# --- lanes that end -----------------------------------------------------------------------------------------


def test_a_consumer_that_forgot_the_lane_says_so_and_gets_another() -> None:
    pair = Pair(retry=Retry(5, 0.0))
    pair.inbox.orphan_peer("a.1")  # as if the producer had been gone, and does not know it
    pair.box.push(b"\x01")
    for _ in range(4):
        pair.carry()
    (message,) = pair.inbox.take(9, 0.0)
    assert message.attempt == 2 and message.redelivered
    assert pair.a.counters()["lane_losses"] == 1


def test_a_closed_pull_returns_everything_and_the_producer_lets_go() -> None:
    pair = Pair()
    pair.box.push_many([b"\x01", b"\x02"], 2)
    pair.carry()
    (started,) = pair.inbox.take(1, 0.0)
    pair.b.close_pull("q")
    assert not pair.b.leaving  # nobody knows when the handler ends, nor whether it does
    for _ in range(3):
        pair.carry()
    assert pair.box.lanes and pair.box.ledger()[4:6] == (1, 1)
    started.ack()
    for _ in range(3):
        pair.carry()
    assert not pair.b.leaving and not pair.box.lanes
    assert pair.box.ledger()[1:4] == (1, 0, 1)


def test_a_lane_that_its_producer_gave_up_is_closed_when_it_speaks() -> None:
    pair = Pair()
    pair.a.handle_parts(b"from-b", frames.encode(frames.Ack(99, 1, 10, 0, 0, [], [], frames.CLOSING)), 0.0)
    assert pair.turn("a") == [frames.Close(99)]


def test_a_consumer_that_takes_its_offer_back_gets_nothing_more() -> None:
    pair = Pair()
    pair.box.push(b"\x01")
    pair.carry()
    pair.b.withdraw("pull", "q")
    pair.carry()
    pair.box.push(b"\x02")
    assert not any(isinstance(frame, frames.Data) for frame in pair.turn("a"))
    assert pair.box.ledger()[4:6] == (1, 1), "one waits, one is in flight"


def test_a_pull_closed_and_opened_unseen_is_served_again() -> None:
    pair = Pair()
    pair.box.push(b"\x01")
    pair.carry()
    pair.b.close_pull("q")
    again = pair.b.open_pull("q", 5)
    pair.turn("b")
    pair.out["b"].clear()
    pair.break_links()
    for _ in range(4):
        pair.carry()
    (message,) = again.take(9, 0.0)
    assert message.body == 1 and message.attempt == 1


def test_a_lane_that_had_credit_before_is_not_taken_for_a_new_one() -> None:
    pair = Pair()
    pair.inbox.orphan_peer("a.1")
    old = frames.LaneState(1, "q", next_seq=0, floor=0, want=1, limit=10, returns=0)
    pair.b.handle_parts(b"from-a", frames.encode(old), 0.0)
    assert pair.turn("b") == [frames.Lost(1)] and not pair.inbox.lanes


def test_closing_says_goodbye_and_sends_nothing_more() -> None:
    pair = Pair()
    pair.a.close()
    pair.box.push(b"\x01")
    said = pair.turn("a")
    assert said[-1] == frames.Bye("left") and not any(isinstance(frame, frames.Data) for frame in said)
    pair.carry()
    assert list(pair.b.peers.by_id) == ["b"]


def test_the_last_acks_go_before_the_goodbye() -> None:
    pair = Pair()
    pair.box.push(b"\x01")
    pair.carry()
    (message,) = pair.inbox.take(9, 0.0)
    pair.b.close_pull("q")
    pair.carry()
    message.ack()
    pair.b.close()
    pair.carry()
    assert pair.box.processed == 1 and pair.box.redelivered == 0


def test_a_goodbye_is_answered_before_the_link_is_hung_up() -> None:
    pair = Pair()
    link = pair.b.peers.by_id["a"].link
    pair.a.close()
    assert not pair.a.parted
    pair.turn("a")
    pair.b.handle_parts(b"from-a", pair.out["a"].pop(), 0.0)
    effects = pair.b.drain(0.0)
    assert [(each, frames.decode(parts)) for each, parts in effects.send] == [(link, frames.Bye("heard"))]
    assert effects.hang_up == [link]
    pair.a.handle_parts(b"from-b", effects.send[0][1], 0.0)
    assert pair.a.parted


def test_who_has_said_goodbye_waits_for_nothing_else_and_takes_nothing_in() -> None:
    pair = Pair()
    pair.box.push(b"\x01")
    pair.carry()
    (message,) = pair.inbox.take(9, 0.0)
    message.ack()
    ack = next(parts for link, parts in pair.b.drain(0.0).send if link)
    pair.a.close()
    pair.a.drain(0.0)
    pair.a.handle_parts(b"from-b", ack, 0.0)
    pair.a.handle_parts(b"from-b", [b"\xc1"], 0.0)
    pair.a.handle_time(99.0)
    pair.a.handle_discovered("c", ("tcp://c:1",), 99.0)
    link = pair.a.peers.by_id["b"].link
    assert link is not None
    pair.a.handle_link(link, "up", 99.0)
    effects = pair.a.drain(99.0)
    assert not (effects.send or effects.dial or effects.hang_up or effects.dead or effects.wake_at)
    assert {event.kind for event in effects.events} <= {"frame.refused"}
    assert pair.box.ledger().in_flight == 1 and not pair.a.parted
    pair.a.handle_link(link, "down", 99.0)
    effects = pair.a.drain(99.0)
    assert pair.a.parted and not effects.events and not effects.hang_up


def test_two_that_leave_at_once_take_each_others_goodbye_for_the_answer() -> None:
    pair = Pair()
    pair.a.close()
    pair.b.close()
    pair.carry()
    assert pair.a.parted and pair.b.parted
    assert pair.turn("a") == pair.turn("b") == []


# --- dead letters -------------------------------------------------------------------------------------------


def test_a_redrive_stops_where_the_outbox_is_full() -> None:
    engine = Engine(Identity("a", 1, "a", "mesh"), generator=random.Random(1))
    box = engine.open_push("q", PushOptions(max_pending=2, ttl=1.0))
    for body in (b"\x01", b"\x02"):
        box.push(body)
    engine.drain(0.0)
    engine.handle_time(1.0)
    box.push(b"\x03")
    letters = [letter.id for letter in engine.dead_letters.letters()]
    assert engine.redrive([*letters, "a/q/77"]) == letters[:1]
    assert [letter.id for letter in engine.dead_letters.letters()] == letters[1:]
    box.check()


def test_a_dead_letter_goes_to_its_queue_once() -> None:
    engine = Engine(Identity("a", 1, "a", "mesh"), generator=random.Random(1))
    box = engine.open_push("q", PushOptions(ttl=1.0, dead_letter_to="dead"))
    engine.open_push("dead", PushOptions(ttl=1.0, dead_letter_to="dead"))
    box.push(b"\x01")
    engine.drain(0.0)
    engine.handle_time(1.0)
    assert engine.outboxes["dead"].pending == 1 and not engine.dead_letters.letters()
    engine.drain(1.0)
    assert engine.outboxes["dead"].pending == 1


def test_dead_letters_that_fall_out_are_told() -> None:
    engine = Engine(Identity("a", 1, "a", "mesh"), generator=random.Random(1), max_dead_letter_bytes=1000)
    box = engine.open_push("q", PushOptions(ttl=1.0))
    for _ in range(3):
        box.push(make_packer()("x" * 600))
    engine.drain(0.0)
    engine.handle_time(1.0)
    told = [event.text for event in engine.drain(1.0).events if event.kind == "dead_letter.dropped"]
    assert told == ["over 10000 dead letters or 1000 bytes: a/q/0 is not kept"]  # the next one repeats it
    assert [letter.id for letter in engine.dead_letters.letters()] == ["a/q/2"] and engine.dead_letters.overflowed == 2
    engine.check()


def test_a_watched_dead_letter_is_an_outcome() -> None:
    engine = Engine(Identity("a", 1, "a", "mesh"), generator=random.Random(1))
    box = engine.open_push("q", PushOptions(ttl=1.0))
    box.watched.add(box.push(b"\x01"))
    engine.drain(0.0)
    engine.handle_time(1.0)
    (outcome,) = engine.drain(1.0).settled
    assert outcome.number == 0 and outcome.letter is not None and outcome.letter.reason == "expired"


# --- what hostile frames cost -------------------------------------------------------------------------------


def test_before_a_hello_nothing_is_believed() -> None:
    pair = Pair()
    before = pair.b.refused_frames
    pair.b.handle_parts(b"stranger", frames.encode(frames.Bye("left")), 0.0)
    pair.b.handle_parts(b"stranger", frames.encode(frames.LaneState(9, "q", 0, 0, 1, 0, 0)), 0.0)
    assert pair.b.refused_frames == before + 2 and len(pair.inbox.lanes) == 1


def test_an_unreadable_frame_costs_its_senders_link_only() -> None:
    pair = Pair()
    pair.b.handle_parts(b"from-a", [b"\xc1"], 0.0)
    assert "a" not in pair.b.peers.by_id
    assert "frame.refused" in events(pair.b)
    pair.b.handle_parts(b"stranger", [b"\xc1"], 0.0)


def test_an_unknown_kind_is_counted_and_costs_nothing() -> None:
    pair = Pair()
    pair.b.handle_parts(b"from-a", [make_packer()([99, "from the future"])], 0.0)
    assert pair.b.unknown_kinds == 1 and "a" in pair.b.peers.by_id


def test_a_peer_past_its_credit_is_expelled() -> None:
    pair = Pair(prefetch=2)
    data = frames.Data(1, 0, 0, 0, 3, [[0, 3, None]], b"")
    pair.b.handle_parts(b"from-a", frames.encode(data, [b"\x01"] * 3), 0.0)
    assert "a" not in pair.b.peers.by_id and not pair.inbox.waiting


def test_a_peer_that_acks_what_it_never_got_is_expelled() -> None:
    pair = Pair()
    pair.a.handle_parts(b"from-b", frames.encode(frames.Ack(1, 5, 10, 0, 5, [], [], 0)), 0.0)
    assert "b" not in pair.a.peers.by_id and pair.box.processed == 0


SMALL = st.integers(0, 12)
VERDICT = st.tuples(SMALL, st.integers(0, 9), st.none() | st.floats(0, 5), st.text(max_size=3)).map(list)
FRAMES = st.one_of(
    st.builds(frames.Bye, st.text(max_size=5)),
    st.builds(frames.Beat),
    st.builds(frames.Offers, SMALL, st.dictionaries(st.sampled_from(["pull", "push", "x"]), st.just({"q": {}}))),
    st.builds(frames.LaneState, SMALL, st.sampled_from(["q", "nobody"]), SMALL, SMALL, SMALL, SMALL, SMALL),
    st.builds(frames.Close, SMALL),
    st.builds(frames.Lost, SMALL),
    st.builds(
        frames.Ack,
        SMALL,
        SMALL,
        SMALL,
        SMALL,
        SMALL,
        st.just([[13, 14]]),
        st.lists(VERDICT, max_size=3),
        st.integers(0, 7),
    ),
    st.builds(
        lambda lane, first, count: frames.Data(lane, first, 0, 0, count, [[first, count, None]], b""),
        SMALL,
        SMALL,
        st.integers(1, 4),
    ),
    st.builds(
        lambda node_id, answers, token, endpoints: frames.Hello(
            node_id, 1, "liar", "mesh", endpoints, {"pull": {"q": {}}}, 1, token, None, answers
        ),
        st.sampled_from(["mallory", "b", "a", "x-y"]),
        st.none() | SMALL,
        SMALL,
        st.sampled_from([(), ("tcp://a:1",), ("nonsense",)]),
    ),
)


def encoded(frame: frames.Frame) -> list[bytes]:
    return frames.encode(frame, [b"\x01"] * frame.total if isinstance(frame, frames.Data) else ())


@settings(max_examples=80)
@given(lies=st.lists(st.tuples(st.sampled_from([b"from-b", b"stranger"]), FRAMES), max_size=12))
def test_well_formed_lies_never_break_a_machine(lies: list[tuple[bytes, frames.Frame]]) -> None:
    """A peer that lies can lose its own messages; it cannot make the engine fail, and all books still agree."""
    pair = Pair(retry=Retry(3, 0.0))
    pair.box.push_many([b"\x01"] * 5, 5)
    pair.carry()
    for route, lie in lies:
        pair.a.handle_parts(route, encoded(lie), pair.now)
        pair.b.handle_parts(route.replace(b"b", b"a"), encoded(lie), pair.now)
        pair.a.handle_time(pair.now)
        pair.a.drain(pair.now)
        pair.b.drain(pair.now)
        pair.a.check()
        pair.b.check()
        pair.now += 0.3
    assert pair.box.ledger().balanced


@settings(max_examples=80)
@given(noise=st.lists(st.lists(st.binary(max_size=30), max_size=3), max_size=10), known=st.booleans())
def test_noise_never_breaks_a_machine(noise: list[list[bytes]], known: bool) -> None:
    pair = Pair()
    for parts in noise:
        pair.b.handle_parts(b"from-a" if known else b"stranger", parts, 0.0)
        pair.b.drain(0.0)
    pair.b.check()


# --- time ---------------------------------------------------------------------------------------------------


def test_an_engine_at_rest_only_beats() -> None:
    pair = Pair()
    for _ in range(4):
        pair.beat()
        assert {type(frame) for who in "ab" for frame in pair.turn(who)} == {frames.Beat}
        pair.carry()


def test_wake_at_is_never_over_after_a_turn() -> None:
    pair = Pair(retry=Retry(9, 0.1), unroutable_after=5.0, ttl=30.0)
    pair.box.push_many([b"\x01"] * 3, 3)
    generator = random.Random(1)
    for _ in range(300):
        pair.now += generator.random() * 0.2
        for engine in (pair.a, pair.b):
            engine.handle_time(pair.now)
            wake_at = engine.drain(pair.now).wake_at
            assert wake_at is not None and wake_at > pair.now
