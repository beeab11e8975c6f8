"""Payloads that come in pieces: large byte strings are copied once, and the rest is decoded as ever."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.errors import ProtocolError
from meshmsg.wire import large, reading
from meshmsg.wire.codec import Undecodable, decode_batch, encode_batch, make_packer
from meshmsg.wire.large import LARGE_BYTES, LargePacker
from meshmsg.wire.reading import MAX_HEADS, ReadPayload, read_own, read_payload

MARK = reading._MARK_TYPE
LARGE = bytes(range(256)) * (LARGE_BYTES // 256)
SMALLEST = 6  # bytes of a large string, where a test says so

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=40)
)
STRINGS = st.binary(max_size=70) | st.builds(bytes, st.integers(0, 300))
EXTENSIONS = st.builds(msgpack.ExtType, st.sampled_from([MARK, 5]), st.binary(max_size=20)) | st.just(
    datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
)
BODIES = st.recursive(
    SCALARS | STRINGS | EXTENSIONS,
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5) | st.binary(max_size=12), inner, max_size=20)
    ),
    max_leaves=40,
)

pack = make_packer()


@contextlib.contextmanager
def small_is_large() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "LARGE_BYTES", SMALLEST)
        patch.setattr(large, "LARGE_BYTES", SMALLEST)
        yield


def cut_at(payload: bytes, places: list[int]) -> list[memoryview]:
    edges = sorted({0, len(payload), *(place % (len(payload) + 1) for place in places)})
    return [memoryview(payload)[start:stop] for start, stop in pairwise(edges)]


@given(bodies=st.lists(BODIES, min_size=1, max_size=3), places=st.lists(st.integers(0), max_size=12))
def test_whatever_the_pieces_it_is_the_same_body(bodies: list[Any], places: list[int]) -> None:
    payload = encode_batch([pack(body) for body in bodies])
    with small_is_large():
        read = read_payload(cut_at(payload, places))
        assert len(read) == len(payload) and bytes(read) == payload
        assert decode_batch(read, len(bodies)) == decode_batch(payload, len(bodies))


@given(bodies=st.lists(BODIES, min_size=1, max_size=3))
def test_what_a_node_sends_itself_is_the_same_body(bodies: list[Any]) -> None:
    with small_is_large():
        encoded = encode_batch([LargePacker().pack(body) for body in bodies])
        assert decode_batch(encoded, len(bodies)) == decode_batch(encode_batch(list(map(pack, bodies))), len(bodies))


def filled(first: int, size: int) -> bytes:
    """A head, or what belongs to it, of bytes that mean something else each for itself."""
    return bytes((first,)) + b"\xdb" * size


def sized(first: int, width: int, size: int, kind: bytes = b"") -> bytes:
    return bytes((first,)) + size.to_bytes(width, "big") + kind + b"\xdb" * size


VALUES = [
    *(bytes((first,)) for first in (0x00, 0x7F, 0x80, 0x90, 0xC0, 0xC2, 0xC3, 0xE0, 0xFF)),
    *(filled(0xA0 + size, size) for size in range(32)),
    *(filled(0xCA + power, size) for power, size in enumerate((4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17))),
    *(filled(0xDC + power, size) for power, size in enumerate((2, 4, 2, 4))),
    *(
        sized(first, width, size)
        for first, width in ((0xC4, 1), (0xC5, 2), (0xC6, 4), (0xD9, 1), (0xDA, 2), (0xDB, 4))
        for size in (0, 200, LARGE_BYTES - 1)
        if size < 256**width
    ),
    *(sized(first, width, 200, b"\5") for first, width in ((0xC7, 1), (0xC8, 2), (0xC9, 4))),
]


@pytest.mark.parametrize("before", VALUES, ids=lambda before: f"{before[0]:x}-{len(before)}")
def test_it_knows_how_long_everything_is(before: bytes) -> None:
    rest = before * 3
    read = read_payload([b"\xdd\0\0\0\7", rest, pack(LARGE), before])
    assert isinstance(read, ReadPayload) and read._strings == [LARGE]
    assert read._skeleton == b"\xdd\0\0\0\7" + rest + reading._MARK + before


@given(payload=st.binary(max_size=200), count=st.integers(1, 3), places=st.lists(st.integers(0), max_size=5))
@pytest.mark.guarantee("G11")
def test_garbage_is_as_wrong_in_pieces(payload: bytes, count: int, places: list[int]) -> None:
    def outcome(given: Any) -> Any:
        try:
            return [repr(body.error if type(body) is Undecodable else body) for body in decode_batch(given, count)]
        except ProtocolError as error:
            return str(error)

    with small_is_large():
        read = read_payload(cut_at(payload, places))
        assert bytes(read) == payload and len(read) == len(payload)
        assert outcome(read) == outcome(payload)


@pytest.mark.guarantee("G11")
def test_a_body_that_ends_too_early_cannot_be_decoded() -> None:
    payload = pack([1, LARGE, LARGE])
    read = read_payload([payload[:100], payload[100:-1]])
    assert isinstance(read, ReadPayload) and bytes(read) == payload[:-1]
    with pytest.raises(ProtocolError, match="not MessagePack"):
        decode_batch(read, 1)


@pytest.mark.parametrize("data", [b"\0", b"abc", LARGE])
def test_an_extension_of_the_application_is_no_mark(data: bytes) -> None:
    kind = msgpack.ExtType(MARK, data)
    for body in ([kind, LARGE, kind, LARGE[1:] + b"2"], [LARGE, kind], [kind] * 3):
        payload = pack(body)
        assert decode_batch(read_payload([payload[:70_000], payload[70_000:]]), 1) == [body]
        assert decode_batch(LargePacker().pack(body), 1) == [body]


def test_no_more_than_so_many_heads_are_looked_at() -> None:
    for count, found in ((MAX_HEADS - 3, True), (MAX_HEADS, False)):
        payload = pack([[None] * count, LARGE])
        read = read_payload([payload])
        assert isinstance(read, ReadPayload) is found
        assert decode_batch(read, 1) == [[[None] * count, LARGE]]


def test_a_key_that_is_an_array_is_a_tuple_here_too() -> None:
    payload = b"\x82\x92\x01\x02" + pack(LARGE) + b"\x01\x02"
    assert decode_batch(read_payload([payload[:9], payload[9:]]), 1) == [{(1, 2): LARGE, 1: 2}]


def test_a_large_string_is_copied_once() -> None:
    body = {"name": "a", "data": bytes(8 * 2**20), "more": bytes(4 * 2**20)}
    payload = pack(body)
    pieces = [memoryview(payload)[start : start + 2**18] for start in range(0, len(payload), 2**18)]
    tracemalloc.start()
    try:
        decoded = decode_batch(read_payload(pieces), 1)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoded == [body]
    assert most < len(payload) + 2**18


def test_what_a_node_sends_itself_is_not_copied() -> None:
    data = bytes(LARGE)
    encoded = LargePacker().pack({"data": data, "list": [data, "text"]})
    assert isinstance(read_own(encoded), ReadPayload)
    (decoded,) = decode_batch(encoded, 1)
    assert decoded["data"] is data and decoded["list"][0] is data
    _, first, second = decode_batch(encode_batch([b"\1", encoded, encoded]), 3)
    assert first["data"] is data and second["list"][0] is data
