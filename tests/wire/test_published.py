"""Published messages as they leave through XPUB: readable by any SUB socket, and refused where they are malformed."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.errors import ProtocolError
from meshmsg.wire import frames
from meshmsg.wire.codec import make_packer

pytestmark = pytest.mark.guarantee("G11")

pack = make_packer()

NODE = "5f0c3a9e4b7d4c61a2e8d9b0c1f2a3b4"
VALID = [frames.PUBLISHED, NODE, 7, 5, 2, {6: {"unit": "C"}}]
PAYLOAD = pack([20.5, 21])


def test_the_bytes_are_what_the_documentation_says() -> None:
    """A test vector: topic, header, bodies."""
    published = frames.Published("sensors.attic", NODE, 7, 5, 2, {6: {"unit": "C"}}, PAYLOAD)
    parts = frames.encode_published(published)
    assert [part.hex() for part in parts] == [
        "73656e736f72732e6174746963",
        "9620d9203566306333613965346237643463363161326538643962306331663261336234070502810681a4756e6974a143",
        "92cb403480000000000015",
    ]
    assert parts[0] == b"sensors.attic"
    assert msgpack.unpackb(parts[2]) == [20.5, 21]
    assert frames.decode_published(parts) == published


def test_the_bytes_of_pieces_are_what_the_documentation_says() -> None:
    """A test vector: the topic, and a header and a piece for each message. Pieces have 4 bytes here, else 256 KiB."""
    published = frames.Published("sensors.attic", NODE, 7, 5, 2, {6: {"unit": "C"}}, PAYLOAD)
    parts = frames.encode_published(published, 4)
    assert [part.hex() for part in parts] == [
        "73656e736f72732e6174746963",
        "9720d9203566306333613965346237643463363161326538643962306331663261336234070502810681a4756e6974a143920003",
        "92cb4034",
        "9720d9203566306333613965346237643463363161326538643962306331663261336234070502c0920103",
        "80000000",
        "9720d9203566306333613965346237643463363161326538643962306331663261336234070502c0920203",
        "000015",
    ]


@given(size=st.integers(0, 100), piece_bytes=st.integers(1, 40), headers=st.sampled_from([None, {5: {"h": [1]}}]))
def test_pieces_are_the_payload(size: int, piece_bytes: int, headers: dict[int, Any] | None) -> None:
    payload = bytes(range(size))
    published = frames.Published("a", NODE, 7, 5, 1, headers, payload)
    parts = frames.encode_published(published, piece_bytes)
    read = [decode([parts[0], *parts[place : place + 2]], piece_bytes) for place in range(1, len(parts), 2)]
    assert b"".join(each.payload for each in read) == payload
    if size <= piece_bytes:
        assert read == [published]
        return
    assert [each.part for each in read] == [[index, len(read)] for index in range(len(read))]
    assert {len(each.payload) for each in read[:-1]} == {piece_bytes}
    assert [each.headers for each in read] == [headers, *[None] * (len(read) - 1)]
    assert {(each.topic, *each[1:5]) for each in read} == {published[:5]}


def decode(parts: list[Any], piece_bytes: int = frames.PIECE_BYTES, max_bytes: int = 1000) -> frames.Published:
    return frames.decode_published(parts, piece_bytes, max_bytes)


def test_pieces_are_not_copied() -> None:
    payload = bytes(3 * frames.PIECE_BYTES)
    parts = frames.encode_published(frames.Published("a", NODE, 7, 5, 1, None, payload))
    for piece in parts[2::2]:
        assert isinstance(piece, memoryview) and piece.obj is payload
    (whole,) = frames.encode_published(frames.Published("a", NODE, 7, 5, 1, None, payload[: frames.PIECE_BYTES]))[2:]
    assert type(whole) is bytes


@pytest.mark.parametrize(
    "part",
    [[], [0], [0, 3, 3], 0, "", {}, [0, 0], [0, 1], [3, 3], [4, 3], [-1, 3], [0.0, 3], [True, 3], [0, "3"], [0, 2**63]],
)
def test_a_part_is_refused_if_it_is_anything_else(part: Any) -> None:
    for size in (1, 10):
        with pytest.raises(ProtocolError):
            decode([b"a", pack([*VALID[:5], None, part]), bytes(size)], 10)


@pytest.mark.parametrize(
    ("part", "size"), [([0, 3], 0), ([0, 3], 9), ([0, 3], 11), ([1, 3], 9), ([2, 3], 0), ([2, 3], 11)]
)
def test_a_piece_has_the_length_of_all(part: list[int], size: int) -> None:
    with pytest.raises(ProtocolError, match="a piece of"):
        decode([b"a", pack([*VALID[:5], None, part]), bytes(size)], 10)


def test_only_the_first_piece_has_headers() -> None:
    assert decode([b"a", pack([*VALID, [0, 3]]), bytes(10)], 10).headers == VALID[5]
    with pytest.raises(ProtocolError, match="first piece"):
        decode([b"a", pack([*VALID, [1, 3]]), bytes(10)], 10)


def test_together_pieces_are_no_more_than_what_is_taken() -> None:
    """``max_bytes``, and what is left of the last piece: sizes are told in whole ones."""
    for max_bytes, most in ((1000, 101), (999, 100), (991, 100), (990, 100), (989, 99), (5, 1)):
        for count in range(2, 200):
            header = pack([*VALID[:5], None, [0, count]])
            if count <= most:
                assert decode([b"a", header, bytes(10)], 10, max_bytes).part == [0, count]
            else:
                with pytest.raises(ProtocolError, match="are taken"):
                    decode([b"a", header, bytes(10)], 10, max_bytes)
    with pytest.raises(ProtocolError, match="are taken"):
        frames.decode_published([b"a", pack([*VALID[:5], None, [0, 2**62]]), bytes(frames.PIECE_BYTES)])


def test_headers_may_hold_what_bodies_may() -> None:
    import datetime

    headers = {0: {"when": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)}}
    parts = frames.encode_published(frames.Published("a", NODE, 1, 0, 1, headers, b"\x01"))
    assert frames.decode_published(parts).headers == headers


def test_the_kind_is_none_on_a_link() -> None:
    assert frames.decode([pack(VALID), PAYLOAD]) is None


def test_items_from_the_future_are_ignored() -> None:
    assert frames.decode_published([b"a", pack([*VALID, None, "more"]), PAYLOAD]).total == 2


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"a"],
        [b"a", pack(VALID)],
        [b"a", pack(VALID), PAYLOAD, b""],
        [b"\xff", pack(VALID), PAYLOAD],
        [b"x" * 201, pack(VALID), PAYLOAD],
        [b"a", b"\xc1", PAYLOAD],
        [b"a", b"\x91" * 5000 + b"\x01", PAYLOAD],
        [b"a", pack(5), PAYLOAD],
        [b"a", pack(VALID[:5]), PAYLOAD],
        [b"a", bytes(frames.MAX_HEADER_BYTES + 1), PAYLOAD],
    ],
)
def test_what_is_no_published_message(parts: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        frames.decode_published(parts)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (0, [frames.DATA, True, None, "x"]),
        (1, ["", "a.b", "x" * 65, 1, None, b"a"]),
        (2, [-1, True, 2**63, "1", None]),
        (3, [-1, 4, 7, 2**62, True, None, 1.0]),
        (4, [0, -1, 1, 2**62, True, None]),
        (5, [[], 1, {4: {}}, {7: {}}, {6: 1}, {6: {1: 2}}, {"6": {}}]),
    ],
)
def test_a_field_is_refused_if_it_is_anything_else(place: int, wrong: list[Any]) -> None:
    for value in wrong:
        header = [*VALID]
        header[place] = value
        with pytest.raises(ProtocolError) as caught:
            frames.decode_published([b"a", pack(header), PAYLOAD])
        reason = f"refused: {caught.value}"
        assert frames.decode(frames.encode(frames.Bye(reason))) == frames.Bye(reason)


@given(parts=st.lists(st.binary(max_size=40), min_size=2, max_size=3), at=st.integers(0, 99), byte=st.integers(0, 255))
def test_noise_is_a_protocol_error_or_a_message(parts: list[bytes], at: int, byte: int) -> None:
    changed = bytearray(pack(VALID))
    changed[at % len(changed)] = byte
    for attempt in (parts, [b"a", bytes(changed), PAYLOAD]):
        try:
            frames.decode_published(attempt)
        except ProtocolError:
            pass
