"""A channel: what is said arrives in order and once, whatever becomes of the links and of either side's memory.

How what is said becomes frames is in ``test_channel_frames.py``.
"""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmsg.engine.channel import TELL_AFTER_BYTES, TELL_AFTER_FRAMES, Channel
from meshmsg.errors import ProtocolError
from meshmsg.wire import frames, items
from meshmsg.wire.codec import decode_batch, make_packer
from meshmsg.wire.frames import ASKS, MISSING, Heard, Talk

pytestmark = pytest.mark.guarantee("G8")

pack = make_packer()


class Side:
    """One node with its channel to the other, tied to links as the engine does it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.next_number = 1
        self.channel = self.new_channel()
        self.links: list[deque[list[bytes]]] = []  # the newest one is the one it sends on
        self.ends = 0  # how often what was under way was lost
        self.sent = 0
        self.firsts = [0]  # of the items that were said in each of its channels
        self.heard: list[tuple[int, int]] = []  # (how often the sender had begun anew, which item)

    def new_channel(self) -> Channel:
        self.next_number += 1
        return Channel(self.next_number - 1)

    def forget(self) -> None:
        self.channel = self.new_channel()
        self.ends += 1
        self.firsts.append(self.sent)

    def say(self, count: int = 1) -> None:
        for _ in range(count):
            self.channel.send([[items.ITEMS, self.sent, 1]], [pack((self.ends, self.sent))])
            self.sent += 1

    def put(self, frame: Talk | Heard, bodies: list[bytes]) -> None:
        if self.links:
            self.links[-1].append(frames.encode(frame, bodies))

    def flush(self) -> None:
        for talk, bodies in self.channel.flush():
            self.put(talk, bodies)
        self.tell_if_due()

    def tell_if_due(self) -> None:
        if self.channel.due:
            self.put(self.channel.state(), [])

    def beat(self) -> None:
        self.now += 0.5
        if self.channel.restless:
            self.put(self.channel.state(), [])

    def connect(self) -> None:
        self.links.append(deque())
        self.put(self.channel.resume(), [])

    def receive(self, parts: list[bytes]) -> None:
        frame = frames.decode(parts)
        assert isinstance(frame, Talk | Heard)
        if self.channel.is_news(frame):
            self.forget()
        if isinstance(frame, Heard):
            for talk, bodies in self.channel.on_heard(frame, self.now):
                self.put(talk, bodies)
        elif self.channel.on_talk(frame):
            said = decode_batch(frame.payload, items.count_bodies(frame.items))
            self.heard += [(ends, number) for ends, number in said]
        self.tell_if_due()
        self.channel.check()


class Pair:
    """Two nodes. Frames keep their order on a link and nowhere else; a cut takes some of the last ones with it."""

    def __init__(self) -> None:
        self.one, self.other = self.sides = (Side(), Side())

    def connect(self) -> None:
        for side in self.sides:
            side.connect()

    def cut(self, side: Side, lost: int) -> None:
        """What is left of the old link may still arrive, after frames of newer ones even."""
        if side.links:
            link = side.links[-1]
            for _ in range(min(lost, len(link))):
                link.pop()
        side.connect()

    def deliver(self, sender: Side, which: int = 0) -> bool:
        waiting = [link for link in sender.links if link]
        if not waiting:
            return False
        receiver = self.other if sender is self.one else self.one
        receiver.receive(waiting[which % len(waiting)].popleft())
        return True

    def deliver_all(self) -> int:
        """Returns how many rounds it took; what they have to say must come to an end by itself."""
        count = 0
        while self.deliver(self.one) | self.deliver(self.other):
            count += 1
            assert count < 10_000, "they go on talking for ever"
        return count

    def settle(self) -> None:
        for _ in range(8):
            for side in self.sides:
                side.flush()
                side.beat()
            self.deliver_all()


@pytest.fixture
def pair() -> Pair:
    made = Pair()
    made.connect()
    made.deliver_all()
    return made


# --- between two that agree ----------------------------------------------------------------------------------


def test_what_is_said_in_one_turn_is_one_frame(pair: Pair) -> None:
    pair.one.say(3)
    pair.one.flush()
    assert len(pair.one.links[-1]) == 1
    pair.deliver_all()
    assert pair.other.heard == [(0, 0), (0, 1), (0, 2)]


def test_nothing_is_kept_once_it_is_known_to_have_arrived(pair: Pair) -> None:
    pair.one.say(5)
    pair.one.flush()
    assert pair.one.channel.unheard_bytes > 0
    pair.deliver_all()
    pair.other.say()
    pair.other.flush()  # says what was heard as well
    assert len(pair.other.links[-1]) == 1
    pair.deliver_all()
    assert pair.one.channel.unheard_bytes == 0
    pair.one.beat()
    assert pair.deliver_all() == 1
    require_rest(pair)


def test_who_only_listens_says_what_it_heard_at_the_next_beat(pair: Pair) -> None:
    pair.one.say()
    pair.one.flush()
    pair.deliver_all()
    pair.other.beat()
    pair.deliver_all()
    assert not pair.one.channel.restless and not pair.other.channel.restless


def test_who_sent_asks_at_the_next_beat_until_there_is_an_answer(pair: Pair) -> None:
    pair.one.say()
    pair.one.flush()
    pair.deliver_all()
    pair.other.beat()
    pair.other.links[-1].clear()  # the other believes to have told it
    assert not pair.other.channel.restless
    pair.one.beat()
    pair.deliver_all()
    require_rest(pair)


def test_after_many_frames_it_is_told_at_once(pair: Pair) -> None:
    for _ in range(TELL_AFTER_FRAMES - 1):
        pair.one.say()
        pair.one.flush()
    pair.deliver_all()
    assert pair.one.channel.unheard_bytes > 0
    pair.one.say()
    pair.one.flush()
    pair.deliver_all()
    assert pair.one.channel.unheard_bytes == 0


def test_after_many_bytes_it_is_told_at_once(pair: Pair) -> None:
    pair.one.channel.send([[items.ITEMS, 0, 1]], [pack([0, b"x" * TELL_AFTER_BYTES])])
    pair.one.flush()
    pair.deliver_all()
    assert pair.one.channel.unheard_bytes == 0


def test_both_ends_in_one_node(pair: Pair) -> None:
    """A node is a peer of its own, and has one channel for both directions."""
    alone = Side()
    alone.connect()
    alone.say(3)
    alone.flush()
    while alone.links[-1]:
        alone.receive(alone.links[-1].popleft())
    assert alone.heard == [(0, 0), (0, 1), (0, 2)]
    alone.beat()
    while alone.links[-1]:
        alone.receive(alone.links[-1].popleft())
    assert not alone.channel.restless


# --- loss ---------------------------------------------------------------------------------------------------


def test_a_gap_is_told_once_and_filled(pair: Pair) -> None:
    for _ in range(3):
        pair.one.say()
        pair.one.flush()
    pair.one.links[-1].popleft()
    pair.deliver(pair.one)
    pair.deliver(pair.one)
    assert len(pair.other.links[-1]) == 1  # for two frames that came too early
    pair.deliver_all()
    assert pair.other.heard == [(0, 0), (0, 1), (0, 2)]


def test_a_lost_end_shows_on_the_new_link(pair: Pair) -> None:
    for _ in range(3):
        pair.one.say()
        pair.one.flush()
    pair.cut(pair.one, 2)
    pair.deliver_all()
    assert pair.other.heard == [(0, 0), (0, 1), (0, 2)]


def test_a_frame_that_was_never_written_shows_at_the_next_beat(pair: Pair) -> None:
    pair.one.say()
    pair.one.flush()
    pair.one.links[-1].clear()
    pair.one.beat()
    pair.deliver_all()
    assert pair.other.heard == [(0, 0)]


def test_a_gap_is_filled_again_only_after_a_while(pair: Pair) -> None:
    one = pair.one.channel
    pair.one.say()
    pair.one.flush()
    gap = Heard(pair.other.channel.number, one.number, 0, 0, MISSING)
    assert len(one.on_heard(gap, 10.0)) == 1
    assert one.on_heard(gap, 10.4) == []
    assert len(one.on_heard(gap, 10.5)) == 1
    one.resume()  # what was sent on the old link is lost
    assert len(one.on_heard(gap, 10.6)) == 1


def test_a_word_that_is_older_than_the_last_one_changes_nothing(pair: Pair) -> None:
    for _ in range(3):
        pair.one.say()
        pair.one.flush()
    one, number = pair.one.channel, pair.other.channel.number
    assert one.on_heard(Heard(number, one.number, 2, 0, 0), 0.0) == []
    assert one.on_heard(Heard(number, one.number, 1, 0, MISSING), 0.0) == []
    assert len(one.on_heard(Heard(number, one.number, 2, 0, MISSING), 0.0)) == 1


def test_two_that_both_miss_something_do_not_ask_each_other_on_and_on(pair: Pair) -> None:
    for side in pair.sides:
        for _ in range(2):
            side.say()
            side.flush()
        side.links[-1].clear()
    for side, peer in (pair.sides, pair.sides[::-1]):  # each gap was filled a moment ago, in vain
        side.channel.on_heard(Heard(peer.channel.number, side.channel.number, 0, 0, MISSING), 0.4)
    for side in pair.sides:
        side.beat()
    assert pair.deliver_all() < 5
    assert pair.one.heard == []
    pair.settle()
    assert pair.one.heard == pair.other.heard == [(0, 0), (0, 1)]


@pytest.mark.guarantee("G11")
def test_what_was_never_sent_cannot_have_been_heard(pair: Pair) -> None:
    one, number = pair.one.channel, pair.other.channel.number
    with pytest.raises(ProtocolError, match="heard frames up to 1"):
        one.on_heard(Heard(number, one.number, 1, 0, 0), 0.0)
    with pytest.raises(ProtocolError, match="heard frames up to 1"):
        one.on_talk(Talk(number, one.number, 0, 1, [], b"\x90"))
    with pytest.raises(ProtocolError, match="speaks to channel"):
        one.on_heard(Heard(number, one.number + 1, 0, 0, 0), 0.0)


# --- beginnings ----------------------------------------------------------------------------------------------


def test_nobody_talks_before_the_other_knows_the_channel() -> None:
    pair = Pair()
    for side in pair.sides:
        side.links.append(deque())  # and nothing was said yet
    pair.one.say()
    pair.one.flush()
    first = frames.decode(pair.one.links[-1][0])
    assert len(pair.one.links[-1]) == 1 and isinstance(first, Heard) and first.flags == ASKS
    pair.deliver_all()
    assert pair.other.heard == [(0, 0)]


def test_frames_that_waited_for_the_other_leave_even_if_its_answer_is_lost() -> None:
    pair = Pair()
    for side in pair.sides:
        side.links.append(deque())
    pair.one.say()
    pair.one.flush()
    pair.deliver(pair.one)
    pair.other.links[-1].clear()
    pair.settle()
    assert pair.other.heard == [(0, 0)]


def test_frames_that_waited_leave_if_the_other_answers_with_something_else() -> None:
    pair = Pair()
    for side in pair.sides:
        side.links.append(deque())
        side.say()
        side.flush()
    pair.deliver(pair.other)
    pair.deliver(pair.one)  # the other is ready
    pair.deliver(pair.one)
    talks = [parts for parts in pair.other.links[-1] if isinstance(frames.decode(parts), Talk)]
    pair.other.links[-1] = deque(talks)
    pair.deliver_all()
    assert pair.one.heard == [(0, 0)] and pair.other.heard == []
    pair.one.beat()
    pair.one.links[-1].clear()  # lost as well
    pair.one.beat()
    pair.deliver_all()
    assert pair.other.heard == [(0, 0)]


def test_what_a_forgotten_channel_said_is_not_heard_again(pair: Pair) -> None:
    """The calls in it have been given up by the side that forgot; run again, they would run twice."""
    for _ in range(2):
        pair.one.say()
        pair.one.flush()
    pair.deliver(pair.one)
    assert pair.other.heard == [(0, 0)]
    pair.other.forget()
    pair.settle()
    assert pair.one.ends == 1 and pair.other.heard == [(0, 0)]
    pair.one.say()
    pair.settle()
    assert pair.other.heard == [(0, 0), (1, 2)]


def test_forgetting_ends_the_others_channel_once(pair: Pair) -> None:
    for side in pair.sides:
        side.say()
    pair.settle()
    pair.one.forget()
    for side in pair.sides:
        side.say(2)
    pair.settle()
    assert (pair.one.ends, pair.other.ends) == (1, 1)
    for side in pair.sides:
        side.forget()
        side.say(2)
    pair.settle()
    assert (pair.one.ends, pair.other.ends) == (2, 2)
    assert pair.one.heard[-2:] == pair.other.heard[-2:] == [(2, 3), (2, 4)]


def test_a_channel_in_which_nothing_was_said_ends_without_a_word(pair: Pair) -> None:
    pair.other.forget()
    pair.cut(pair.other, 0)
    pair.deliver_all()
    pair.one.say()
    pair.settle()
    assert pair.one.ends == 0 and pair.other.heard == [(0, 0)]


def test_what_an_ended_channel_lost_is_not_missed_in_the_next_one(pair: Pair) -> None:
    """The other side heard of the first frame, and never got it."""
    pair.settle()
    pair.one.say()
    pair.one.flush()
    pair.cut(pair.one, 1)
    pair.deliver(pair.one)
    pair.one.forget()
    pair.connect()
    pair.settle()
    require_rest(pair)
    pair.one.say()
    pair.settle()
    require_rest(pair)
    assert pair.other.heard == [(1, 1)] and pair.other.ends == 0


def test_a_number_counts_once_the_other_side_has_answered_to_it(pair: Pair) -> None:
    """What says so may be late, and the number not in use any more: whatever was sent to it would be lost."""
    pair.other.forget()
    late = frames.encode(pair.other.channel.resume())
    pair.other.forget()
    pair.one.receive(late)
    pair.one.say()
    pair.settle()
    assert pair.one.ends == 0 and pair.other.heard == [(0, 0)]


def test_a_late_word_of_an_old_channel_is_ignored(pair: Pair) -> None:
    pair.one.say()
    pair.one.flush()
    late = pair.one.links[-1].popleft()
    late_state = frames.encode(Heard(pair.one.channel.number, 0, 0, 0, ASKS))
    pair.one.forget()
    pair.connect()
    pair.settle()
    for parts in (late, late_state):
        pair.other.receive(parts)
    pair.settle()
    assert pair.other.heard == [] and pair.other.ends == 0
    pair.one.say()
    pair.settle()
    assert pair.other.heard == [(1, 1)]


# --- everything together -------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["say", "flush", "deliver", "deliver", "deliver", "cut", "drop", "beat", "forget"]),
        st.integers(0, 1),
        st.integers(0, 5),
    ),
    max_size=80,
)


def take(pair: Pair, what: str, who: int, how: int) -> None:
    side = pair.sides[who]
    if what == "say":
        side.say(how + 1)
    elif what == "flush":
        side.flush()
    elif what == "deliver":
        pair.deliver(side, how)
    elif what == "cut":
        pair.cut(side, how)
    elif what == "drop" and side.links:
        link = side.links[-1]  # a frame that a full link refused
        if link:
            del link[how % len(link)]
    elif what == "beat":
        side.beat()
    elif what == "forget":
        side.forget()


def require_order(pair: Pair) -> None:
    for sender, receiver in (pair.sides, pair.sides[::-1]):
        numbers = [number for _, number in receiver.heard]
        assert numbers == sorted(set(numbers)), "twice, or out of order"
        for life, first in enumerate(sender.firsts):
            heard = [number for ends, number in receiver.heard if ends == life]
            assert heard == list(range(first, first + len(heard))), "with a hole"


@given(steps=STEPS.map(lambda steps: [step for step in steps if step[0] != "forget"]))
@settings(max_examples=200, deadline=None)
def test_everything_arrives_once_and_in_order(steps: list[tuple[str, int, int]]) -> None:
    pair = Pair()
    for step in steps:
        take(pair, *step)
        require_order(pair)
    pair.connect()
    pair.settle()
    for sender, receiver in (pair.sides, pair.sides[::-1]):
        assert receiver.heard == [(0, number) for number in range(sender.sent)]
    require_rest(pair)


@given(steps=STEPS)
@settings(max_examples=300, deadline=None)
def test_nothing_arrives_twice_when_sides_forget(steps: list[tuple[str, int, int]]) -> None:
    pair = Pair()
    for step in steps:
        take(pair, *step)
        require_order(pair)
    forgotten = sum(what == "forget" for what, _, _ in steps)
    pair.connect()
    pair.settle()
    assert pair.one.ends + pair.other.ends <= 2 * forgotten, "one side's forgetting ends the other's channel once"
    marks = [side.sent for side in pair.sides]
    for side in pair.sides:
        side.say(3)
    pair.settle()
    require_order(pair)
    for mark, receiver in zip(marks, pair.sides[::-1], strict=True):
        assert [number for _, number in receiver.heard[-3:]] == list(range(mark, mark + 3))
    require_rest(pair)


def require_rest(pair: Pair) -> None:
    for side in pair.sides:
        assert side.channel.unheard_bytes == 0
        assert not side.channel.restless and not side.channel.due


def test_long_lives_with_many_faults() -> None:
    """As above, longer than what hypothesis draws."""
    for seed in range(30):
        generator = random.Random(seed)
        pair = Pair()
        kinds = ["say", "flush", "flush", "deliver", "deliver", "deliver", "deliver", "cut", "drop", "beat"]
        if seed % 2:
            kinds.append("forget")
        for _ in range(1000):
            take(pair, generator.choice(kinds), generator.randrange(2), generator.randrange(6))
        require_order(pair)
        pair.connect()
        pair.settle()
        require_order(pair)
        require_rest(pair)
        if not seed % 2:
            assert [len(side.heard) for side in pair.sides] == [side.sent for side in pair.sides[::-1]]
