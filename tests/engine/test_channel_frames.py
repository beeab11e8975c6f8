"""What a turn has to say becomes frames of bounded size, and nothing gets lost or mixed up by that."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmsg.engine.channel import MAX_ITEMS_BYTES, Channel
from meshmsg.engine.outbox import MAX_FRAME_BYTES
from meshmsg.wire import frames, items
from meshmsg.wire.codec import decode_batch, make_packer
from meshmsg.wire.frames import Talk

pytestmark = pytest.mark.guarantee("G8")

pack = make_packer()


def call(first: int, count: int, headers: dict[str, Any] | None = None) -> list[Any]:
    return [items.CALL, first, count, "math", "add", 1.0, 0, 0, headers]


def spread(said: list[list[Any]], bodies: list[bytes]) -> list[tuple[int, bytes]]:
    """Which body belongs to which call."""
    told: list[tuple[int, bytes]] = []
    rest = iter(bodies)
    for item in said:
        count = items.bodies_of(item)
        numbers = [item[1]] * count
        if item[0] == items.RESULT:
            numbers = item[1]
        elif item[0] == items.CALL:
            numbers = list(range(item[1], item[1] + count))
        told += [(number, next(rest)) for number in numbers]
    assert next(rest, None) is None
    return told


def cut(said: list[list[Any]], bodies: list[bytes]) -> list[tuple[Talk, list[bytes]]]:
    channel = Channel(1)
    channel.on_heard(frames.Heard(1, 1, 0, 0, 0), 0.0)
    channel.send(said, bodies)
    made = channel.flush()
    for talk, load in made:
        assert talk.items
        assert len(load) == 1 or sum(map(len, load)) <= MAX_FRAME_BYTES
        decoded = frames.decode(frames.encode(talk, load))
        assert isinstance(decoded, Talk) and decoded.items == talk.items
        decode_batch(decoded.payload, items.count_bodies(talk.items))
    assert [talk.seq for talk, _ in made] == list(range(len(made)))
    assert spread([item for talk, _ in made for item in talk.items], [each for _, load in made for each in load]) == (
        spread(said, bodies)
    )
    return made


def test_frames_are_cut_by_size() -> None:
    body = pack(b"x" * 100_000)
    said = [call(0, 5), [items.CANCEL, [7]], [items.RESULT, [10, 11, 13]], [items.ITEMS, 5, 2]]
    made = cut(said, [body] * 10)
    assert [len(load) for _, load in made] == [2, 2, 2, 2, 2]
    assert made[0][0].items == [call(0, 2)]
    assert made[2][0].items == [call(4, 1), [items.CANCEL, [7]], [items.RESULT, [10]]]


def test_a_large_body_travels_alone() -> None:
    small, large = pack("x"), pack(b"x" * (MAX_FRAME_BYTES + 1))
    made = cut([call(0, 4), [items.END, 9]], [small, large, small, small])
    assert [len(load) for _, load in made] == [1, 1, 2]
    assert len(cut([call(0, 1)], [large])) == 1


def test_headers_stay_below_what_a_reader_takes() -> None:
    fault = [items.FAULT, 1, "error", "ValueError", "x" * 1000, "\u20ac" * 20_000, None, 0]
    made = cut([fault] * 100, [])
    assert len(made) > 1
    made = cut([call(number, 1, {"h": "x" * 500_000}) for number in range(10)], [b"\x01"] * 10)
    assert len(made) > 1
    assert all(len(frames.encode(talk, load)[0]) < 2 * MAX_ITEMS_BYTES for talk, load in made)
    cut([[items.END, number] for number in range(items.MAX_ITEMS + 10)], [])
    cut([[items.RESULT, list(range(2**60, 2**60 + 300_000))]], [b"\x01"] * 300_000)


@given(
    ops=st.lists(
        st.tuples(
            st.sampled_from([items.CALL, items.RESULT, items.ITEMS, items.UP_ITEMS, items.CANCEL, items.END]),
            st.lists(st.sampled_from([1, 50_000, 130_000, 262_144, 300_000]), min_size=1, max_size=6),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=100, deadline=None)
def test_cutting_loses_and_confuses_nothing(ops: list[tuple[int, list[int]]]) -> None:
    said: list[list[Any]] = []
    bodies: list[bytes] = []
    number = 0
    for op, sizes in ops:
        if op == items.CALL:
            said.append(call(number, len(sizes)))
        elif op in (items.RESULT, items.CANCEL):
            said.append([op, list(range(number, number + len(sizes)))])
        elif op == items.END:
            said.append([op, number])
        else:
            said.append([op, number, len(sizes)])
        number += len(sizes)
        if op in items.WITH_BODIES:
            bodies += [pack(b"x" * size) for size in sizes]
    cut(said, bodies)
