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
    published = frames.Published("sensors.attic", NODE, 7, 5, 2, {6: {"unit": "C"}}, b"")
    parts = frames.encode_published(published, [pack(20.5), pack(21)])
    assert [part.hex() for part in parts] == [
        "73656e736f72732e6174746963",
        "9620d9203566306333613965346237643463363161326538643962306331663261336234070502810681a4756e6974a143",
        "92cb403480000000000015",
    ]
    assert parts[0] == b"sensors.attic"
    assert msgpack.unpackb(parts[2]) == [20.5, 21]
    assert frames.decode_published(parts) == published._replace(payload=parts[2])


def test_headers_may_hold_what_bodies_may() -> None:
    import datetime

    headers = {0: {"when": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)}}
    parts = frames.encode_published(frames.Published("a", NODE, 1, 0, 1, headers, b""), [b"\x01"])
    assert frames.decode_published(parts).headers == headers


def test_the_kind_is_none_on_a_link() -> None:
    assert frames.decode([pack(VALID), PAYLOAD]) is None


def test_items_from_the_future_are_ignored() -> None:
    assert frames.decode_published([b"a", pack([*VALID, "more"]), PAYLOAD]).total == 2


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
