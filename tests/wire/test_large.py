"""Large byte strings travel as they are, and what arrives is what any packer would have made of the body."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.wire.codec import decode_batch, decode_body, encode_batch, make_packer, renew_packer
from meshmsg.wire.frames import PIECE_BYTES, Data, Published, encode, encode_published
from meshmsg.wire.large import LARGE_BYTES, MAX_ITEMS, MAX_LEVELS, PATIENCE, LargeBody, LargePacker, cut

LARGE = bytes(range(256)) * (LARGE_BYTES // 256)
SMALL_OR_LARGE = st.sampled_from([b"small", LARGE[1:], LARGE, LARGE + b"more", "text", "ä" * LARGE_BYTES, None, 7])
BODIES = st.recursive(
    SMALL_OR_LARGE,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)

pack = make_packer()


def nest(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


@given(body=BODIES)
def test_it_is_what_any_packer_makes(body: Any) -> None:
    assert bytes(LargePacker().pack(body)) == pack(body)


@pytest.mark.parametrize(
    "body", [LARGE, {"data": LARGE}, [1, LARGE, 2], ((LARGE,), {"more": LARGE}), nest(LARGE, MAX_LEVELS)]
)
def test_it_is_the_same_memory(body: Any) -> None:
    encoded = LargePacker().pack(body)
    assert isinstance(encoded, LargeBody) and len(encoded) == len(pack(body))
    assert all(part is LARGE for part in encoded.parts if len(part) > 100) and LARGE in encoded.parts


@pytest.mark.parametrize(
    "body",
    [
        LARGE[1:],
        nest(LARGE, MAX_LEVELS + 1),
        [0] * MAX_ITEMS + [LARGE],
        [[0] * (MAX_ITEMS - 3), [0, 0, LARGE]],  # two and all but three of them leave one
        bytearray(LARGE),
    ],
)
def test_the_rest_is_encoded_as_usual(body: Any) -> None:
    assert LargePacker().pack(body) == pack(body)


def test_what_may_change_is_copied() -> None:
    data = bytearray(LARGE)
    encoded = LargePacker().pack([LARGE, data])
    data[:] = bytes(len(data))
    assert decode_body(encoded) == [LARGE, LARGE]


def test_models_travel_in_it() -> None:
    @dataclasses.dataclass
    class Frame:
        number: int

    assert decode_body(LargePacker().pack([Frame(1), LARGE])) == [{"number": 1}, LARGE]


def test_after_an_error_it_begins_anew() -> None:
    packer = LargePacker()
    for wrong in ([LARGE, object()], {LARGE: {1, 2}}, ["\ud800" * LARGE_BYTES]):
        with pytest.raises((TypeError, ValueError)):
            packer.pack(wrong)
        assert bytes(packer.pack([LARGE])) == pack([LARGE])
        assert packer.pack([1]) == pack([1])


def test_it_keeps_no_large_buffer() -> None:
    packer = LargePacker()
    tracemalloc.start()
    try:
        packer.pack([[0] * 2**21, LARGE])
        assert tracemalloc.get_traced_memory()[0] < 2**20
    finally:
        tracemalloc.stop()


def test_a_packer_is_chosen_by_what_came_before() -> None:
    plain = make_packer()
    assert renew_packer(plain, LARGE_BYTES - 1) is plain
    large = renew_packer(plain, LARGE_BYTES)
    for _ in range(3):
        for _ in range(PATIENCE - 1):
            assert large(7) == b"\x07" and renew_packer(large, 1) is large
        assert isinstance(large([LARGE]), LargeBody) and renew_packer(large, LARGE_BYTES) is large
    for _ in range(PATIENCE):
        large(7)
    assert type(renew_packer(large, 1)([LARGE])) is bytes


def test_who_finds_nothing_searches_no_more_until_a_large_one_comes() -> None:
    packer = LargePacker()
    for _ in range(PATIENCE):
        packer.pack(7)
    assert type(packer.pack([LARGE])) is bytes
    assert isinstance(packer.pack([LARGE]), LargeBody)


def test_what_another_thread_changes_is_well_formed() -> None:
    """As it was at one moment: more items than the header says would end the link (G11)."""

    shared: list[Any] = [0]
    mapping: dict[Any, Any] = {0: 0}

    def change(value: Any) -> Any:
        shared.append(len(shared))
        mapping[len(mapping)] = 0
        return 0

    packer = LargePacker()
    packer._packer = msgpack.Packer(default=change, autoreset=False)
    body = [LARGE, shared, mapping, 1]
    shared[0] = mapping[0] = object()
    assert decode_body(packer.pack(body)) == [LARGE, [0], {0: 0, 1: 0}, 1]


def test_one_of_the_users_own_stays() -> None:
    def own(body: Any) -> bytes:
        return bytes(body)

    assert renew_packer(own, LARGE_BYTES) is own


@given(sizes=st.lists(st.integers(0, 20), max_size=6), size=st.integers(1, 9))
def test_pieces_are_those_of_the_whole(sizes: list[int], size: int) -> None:
    body = LargeBody([bytes(range(start, start + length)) for start, length in enumerate(sizes)])
    whole = bytes(body)
    assert len(body) == len(whole)
    assert cut(body, size) == cut(whole, size) == [whole[at : at + size] for at in range(0, len(whole) + 1, size)]


def test_pieces_within_it_are_views_of_the_same_memory() -> None:
    data = bytes(3 * PIECE_BYTES)
    pieces = cut(LargeBody([b"head", data, b"tail"]), PIECE_BYTES)
    assert [piece.obj is data for piece in pieces] == [False, True, True, False]


@pytest.mark.parametrize("count", [1, 2, 20])
def test_a_batch_of_them_is_not_copied(count: int) -> None:
    bodies = [LargePacker().pack([number, LARGE]) for number in range(count)]
    payload = encode_batch(bodies)
    assert sum(part is LARGE for part in payload.parts) == count
    assert decode_batch(payload, count) == [[number, LARGE] for number in range(count)]


def test_a_batch_may_hold_others() -> None:
    bodies = [pack(1), LargePacker().pack([LARGE]), pack(2)]
    assert decode_batch(bytes(encode_batch(bodies)), 3) == [1, [LARGE], 2]


@pytest.mark.parametrize("size", [LARGE_BYTES, PIECE_BYTES, 3 * PIECE_BYTES])
def test_frames_hold_it(size: int) -> None:
    data = bytes(size)
    body = LargePacker().pack(data)
    _, payload = encode(Data(1, 1, 1, 0, 1, [[1, 1, None]], b""), [body])
    assert bytes(payload) == pack(data)
    assert type(payload) is (LargeBody if len(body) >= PIECE_BYTES else bytes)  # what leaves at once has to be whole
    parts = encode_published(Published("topic", "a" * 32, 1, 0, 1, None, body))
    assert b"".join(parts[2::2]) == pack(data)
