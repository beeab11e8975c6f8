"""What waits to be published: order in each topic, turns between topics, and bounds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from meshmsg.transport.pacing import Pacing, Part

PIECE = bytes(100)


class Line:
    """A pacing, and what it has sent: topics, and which message and piece of them."""

    def __init__(self, turn_bytes: int = 250, waiting_bytes: int = 10**6) -> None:
        self.sent: list[bytes] = []
        self.answer = True
        self.pacing = Pacing(self.send, turn_bytes, waiting_bytes)

    def send(self, parts: Sequence[Part]) -> bool:
        assert len(parts) == 3
        self.sent.append(bytes(parts[0]) + bytes(parts[1]))
        return self.answer

    def publish(self, topic: bytes, name: bytes, pieces: int = 1) -> bool:
        """A message of this name, whole or in so many pieces."""
        if pieces == 1:
            return self.pacing.publish([topic, name, PIECE])
        parts: list[Part] = [topic]
        for index in range(pieces):
            parts += (name + b"%d" % index, PIECE)
        return self.pacing.publish(parts)

    def take(self) -> bytes:
        """What was sent since the last time."""
        sent, self.sent = self.sent, []
        return b" ".join(sent)


def test_whole_messages_leave_at_once() -> None:
    line = Line()
    assert line.publish(b"a", b"x") and line.take() == b"ax"
    line.answer = False
    assert not line.publish(b"a", b"y") and line.take() == b"ay"
    assert not line.pacing


def test_pieces_leave_in_turns_and_other_topics_at_once() -> None:
    line = Line()
    assert line.publish(b"a", b"x", 5)
    assert line.take() == b"" and line.pacing
    line.pacing.advance()
    assert line.take() == b"ax0 ax1 ax2"  # the third begins within the limit
    assert line.publish(b"b", b"y") and line.take() == b"by"
    assert line.publish(b"a", b"z") and line.take() == b""
    line.pacing.advance()
    assert line.take() == b"ax3 ax4 az"
    assert not line.pacing
    assert line.publish(b"a", b"!") and line.take() == b"a!"


def test_one_message_is_under_way_at_a_time_and_topics_have_their_turns() -> None:
    line = Line()
    line.publish(b"a", b"x", 2)
    line.publish(b"a", b"s")
    line.publish(b"a", b"y", 2)
    line.publish(b"a", b"t")
    line.publish(b"b", b"z", 2)
    line.pacing.flush()
    assert line.take() == b"ax0 ax1 as bz0 bz1 ay0 ay1 at"


def test_who_publishes_too_fast_gets_no_more_room() -> None:
    line = Line(waiting_bytes=1000)
    line.publish(b"a", b"x", 8)
    assert line.take() == b""
    line.publish(b"b", b"y", 8)
    assert line.take() == b"ax0 ax1 ax2 ax3 ax4 ax5 ax6"
    line.pacing.advance()
    assert line.take() == b"ax7 by0 by1"


def test_a_message_that_cannot_be_sent_is_not_tried_again() -> None:
    line = Line()
    line.publish(b"a", b"x", 2)

    def fail(parts: Sequence[Part]) -> bool:
        raise OSError

    line.pacing._send = fail
    for _ in range(2):
        try:
            line.pacing.advance()
        except OSError:
            continue
        raise AssertionError("it does not fail")
    assert not line.pacing


@given(
    steps=st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 4)), max_size=40),
    turn_bytes=st.integers(1, 500),
    waiting_bytes=st.integers(100, 2000),
)
def test_every_topic_keeps_its_order(steps: list[tuple[bytes, int]], turn_bytes: int, waiting_bytes: int) -> None:
    line = Line(turn_bytes, waiting_bytes)
    expected: dict[bytes, list[bytes]] = {b"a": [], b"b": [], b"c": []}
    for number, (topic, pieces) in enumerate(steps):
        name = b"%d." % number
        if not pieces:
            before = len(line.sent)
            line.pacing.advance()
            assert len(line.sent) - before <= turn_bytes // 100 + 1
            continue
        line.publish(topic, name, pieces)
        expected[topic] += [topic + name] if pieces == 1 else [topic + name + b"%d" % index for index in range(pieces)]
        assert line.pacing._bytes <= waiting_bytes
    line.pacing.flush()
    assert line.pacing._bytes == 0 and not line.pacing
    for topic, names in expected.items():
        assert [name for name in line.sent if name[:1] == topic] == names
    # Between the first and the last piece of a message there is no piece of another.
    pieces_sent = [name.rpartition(b".") for name in line.sent if not name.endswith(b".")]
    for (message, _, _), (after, _, index) in itertools.pairwise(pieces_sent):
        assert (message == after) == (index != b"0")
