"""Bodies survive the way, bad ones cost nobody else anything, and an error names the value to blame."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import tracemalloc
import uuid
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.errors import EncodeError, ProtocolError
from meshmsg.wire.codec import (
    PartialBatch,
    Undecodable,
    decode_batch,
    decode_body,
    encode_batch,
    explain_encode_error,
    make_packer,
)

pytestmark = pytest.mark.guarantee("G11")

UTC = datetime.UTC
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.datetimes(timezones=st.just(UTC), min_value=datetime.datetime(1970, 1, 1)),
)
KEYS = st.one_of(st.text(), st.integers(-1000, 1000), st.booleans(), st.binary())
BODIES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)

pack = make_packer()


def encode_error(body: Any) -> EncodeError:
    with pytest.raises((TypeError, ValueError, OverflowError, LookupError, BufferError)) as caught:
        pack(body)
    return explain_encode_error(body, caught.value)


# --- round trips --------------------------------------------------------------------------------------------


@given(bodies=st.lists(BODIES, min_size=1, max_size=6))
def test_bodies_survive_the_way(bodies: list[Any]) -> None:
    assert decode_batch(encode_batch([pack(body) for body in bodies]), len(bodies)) == bodies


@pytest.mark.parametrize("count", [1, 15, 16, 65535, 65536])
def test_batches_of_any_length(count: int) -> None:
    assert decode_batch(encode_batch([b"\x07"] * count), count) == [7] * count


def test_tuples_arrive_as_lists_and_models_as_dicts() -> None:
    @dataclasses.dataclass
    class Point:
        x: int
        y: tuple[int, ...]

    assert decode_body(pack(Point(1, (2, 3)))) == {"x": 1, "y": [2, 3]}


def test_tuples_as_keys_arrive_as_tuples() -> None:
    assert decode_body(pack({(1, "a"): [1, 2]})) == {(1, "a"): (1, 2)}
    # Only the body that needs it is decoded in this way.
    assert decode_batch(encode_batch([pack([1]), pack({(1,): 2}), pack([3])]), 3) == [[1], {(1,): 2}, [3]]


# --- what cannot be decoded ---------------------------------------------------------------------------------

BAD = {
    "text that is no UTF-8": b"\xa2\xff\xff",
    "a timestamp of the wrong length": b"\xc7\x03\xff\x00\x00\x00",
    "a map as a key": b"\x81\x80\x01",
}


@pytest.mark.parametrize("encoded", BAD.values(), ids=BAD.keys())
def test_one_bad_body_costs_its_neighbours_nothing(encoded: bytes) -> None:
    batch = decode_batch(encode_batch([pack("before"), encoded, pack({"n": 1})]), 3)
    assert type(batch) is PartialBatch
    assert batch[0] == "before" and batch[2] == {"n": 1}
    assert type(batch[1]) is Undecodable and batch[1].error


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (b"", 1),
        (b"\xc1", 1),
        (b"\x07", 2),
        (b"\x81\x01\x02", 2),
        (b"\x01\x02", 1),
        (b"\x92\x01", 1),
        (b"\x92\x01", 2),
        (b"\x91\x01\x02", 1),
        (b"\x93\x01\x02\x03", 2),
        (b"\x91\x01", 2**62),
        (b"\xdd\xff\xff\xff\xff", 2**32 - 1),
        (b"\x91" + b"\xc6\xff\xff\xff\xff", 1),
    ],
)
def test_a_batch_that_is_none(payload: bytes, count: int) -> None:
    with pytest.raises(ProtocolError):
        decode_batch(payload, count)


@given(payload=st.binary(max_size=200), count=st.integers(1, 5))
def test_noise_is_a_protocol_error_or_a_batch(payload: bytes, count: int) -> None:
    try:
        assert len(decode_batch(payload, count)) == count
    except ProtocolError:
        pass


@given(bodies=st.lists(BODIES, min_size=1, max_size=4), at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_is_a_protocol_error_or_a_batch(bodies: list[Any], at: int, byte: int) -> None:
    payload = bytearray(encode_batch([pack(body) for body in bodies]))
    payload[at % len(payload)] = byte
    try:
        assert len(decode_batch(bytes(payload), len(bodies))) == len(bodies)
    except ProtocolError:
        pass


@given(bodies=st.lists(st.sampled_from(list(BAD.values())) | BODIES.map(pack), min_size=1, max_size=6))
def test_each_bad_body_costs_only_itself(bodies: list[bytes]) -> None:
    batch = decode_batch(encode_batch(bodies), len(bodies))
    for encoded, body in zip(bodies, batch, strict=True):
        assert (type(body) is Undecodable) == (encoded in BAD.values())
        assert type(body) is Undecodable or body == decode_body(encoded)


@given(bodies=st.lists(BODIES, min_size=1, max_size=4), cut=st.integers(1, 10_000), count=st.integers(-1, 1))
def test_a_torn_or_miscounted_batch_is_refused(bodies: list[Any], cut: int, count: int) -> None:
    payload = encode_batch([pack(body) for body in bodies])
    # What holds one body is that body: an array of two is also one body that is an array.
    if not count or 1 not in (len(bodies), len(bodies) + count):
        with pytest.raises(ProtocolError):
            decode_batch(payload[: -1 - cut % len(payload)] if not count else payload, len(bodies) + count)
    with pytest.raises(ProtocolError, match=r"after its last body|held"):
        decode_batch(payload + b"\x00", len(bodies))


def test_a_single_body_is_a_payload_as_it_is() -> None:
    for body in (bytes(10**6), [1, 2], None):
        encoded = pack(body)
        assert encode_batch([encoded]) is encoded
        assert decode_batch(encoded, 1) == [body]


def test_the_deepest_body_that_can_be_sent_arrives() -> None:
    for levels in (255, 511, 1000):
        body = decode_body(pack(nested(levels)))
        for _ in range(levels - 1):  # a comparison would be as deep
            [body] = body
        assert body == []


@pytest.mark.parametrize("depth", [600, 1000, 5000, 100_000])
@pytest.mark.parametrize("level", [b"\x91", b"\x81\x01", b"\x81"], ids=["arrays", "maps", "maps as keys"])
def test_deep_nesting_is_decoded_or_refused(depth: int, level: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_batch(level * depth + b"\x01", 2)
    try:
        decode_batch(b"\x91" + level * depth + b"\x01", 1)
    except ProtocolError as error:
        assert not str(error).endswith(": ")  # it says what is wrong


CLAIMS = {
    "an array": b"\xdd\xff\xff\xff\xff",
    "a map": b"\xdf\xff\xff\xff\xff",
    "a text": b"\xdb\xff\xff\xff\xff",
    "bytes": b"\xc6\xff\xff\xff\xff",
    "an extension": b"\xc9\xff\xff\xff\xff\x05",
    "arrays of arrays": b"\xdd\x00\x0f\xff\xff" * 500,
    "arrays of arrays as keys": b"\x81" + b"\xdd\x00\x0f\xff\xff" * 500,
    "maps of maps": b"\xdf\x00\x07\xff\xff\x01" * 500,
}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS.keys())
def test_claimed_lengths_take_no_memory(claim: bytes) -> None:
    """Each level claims as much as the whole payload could hold; believing it would take gigabytes."""
    payload = b"\x91" + claim + bytes(2**20 - 1 - len(claim))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode_batch(payload, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20


# --- what cannot be encoded ---------------------------------------------------------------------------------


class Odd:
    def __repr__(self) -> str:
        return "<odd>"


class Colour(enum.Enum):
    RED = "red"


def nested(levels: int) -> list[Any]:
    body: list[Any] = []
    for _ in range(levels - 1):
        body = [body]
    return body


DEEP: list[Any] = []
DEEP.append(DEEP)


@pytest.mark.parametrize(
    ("body", "path", "text"),
    [
        (Odd(), "body", "Odd"),
        ({"a": [1, {"b": Odd()}]}, "body['a'][1]['b']", "Odd"),
        ([1, 2**64], "body[1]", "integers of 64 bits"),
        ({"a": {1, 2}}, "body['a']", "set"),
        ({"when": datetime.datetime(2020, 1, 1)}, "body['when']", "needs a time zone"),
        (["\ud800"], "body[0]", "not valid Unicode"),
        ({Odd(): 1}, "body key <odd>", "Odd"),
        (DEEP, "body[0]", "contains itself"),
        ([complex(1, 2)], "body[0]", "send a dict, list, str, bytes, number, bool, None or aware datetime"),
        ([-(2**63) - 1], "body[0]", "send str(value)"),
        ({2**64: 1}, "body key 18446744073709551616", "integers of 64 bits"),
        ({"\ud800": 1}, "body key '\\ud800'", "not valid Unicode"),
        ({"a": ({"b": Decimal(1)},)}, "body['a'][0]['b']", "decimal.Decimal; send str(value)"),
        ({(1, Decimal(2)): 1}, "body key (1, Decimal('2'))[1]", "send str(value)"),
        ([{1}], "body[0]", "send list(value)"),
        ([memoryview(b"abcd")[::2]], "body[0]", "with gaps in it; send bytes(value)"),
        ([frozenset()], "body[0]", "send list(value)"),
        ((each for each in ()), "body", "send list(value)"),
        ([PurePosixPath("a")], "body[0]", "send str(value)"),
        ([uuid.UUID(int=1)], "body[0]", "send str(value)"),
        ([Colour.RED], "body[0]", "send value.value"),
        ([datetime.date(2026, 1, 1)], "body[0]", "send value.isoformat()"),
        ([datetime.timedelta(1)], "body[0]", "send value.total_seconds()"),
        (nested(2000), "body" + "[0]" * 256, "nested deeper than 255 levels"),
        ({"x" * 500: Odd()}, "body['" + "x" * 76 + "...]", "Odd"),
    ],
)
def test_an_error_leads_to_the_value(body: Any, path: str, text: str) -> None:
    error = encode_error(body)
    assert error.path == path
    assert str(error).startswith(f"{path} cannot be sent: ") and text in str(error)


def test_an_error_leads_into_models() -> None:
    @dataclasses.dataclass
    class Job:
        name: str
        extra: Any

    assert encode_error([Job("a", {"x": Odd()})]).path == "body[0].extra['x']"
    assert encode_error({"job": Job("a", [Job("b", 2**64)])}).path == "body['job'].extra[0].extra"

    itself = Job("a", None)
    itself.extra = [itself]
    error = encode_error(itself)
    assert error.path == "body.extra[0]" and "contains itself" in str(error)


def test_an_error_leads_into_msgspec_structs() -> None:
    msgspec = pytest.importorskip("msgspec")
    job = msgspec.defstruct("Job", ["name", "extra"])
    assert decode_body(pack([job("a", {"x": 1})])) == [{"name": "a", "extra": {"x": 1}}]
    assert encode_error([job("a", {"x": Odd()})]).path == "body[0].extra['x']"


def test_an_error_leads_into_pydantic_models() -> None:
    pydantic = pytest.importorskip("pydantic")
    job = pydantic.create_model("Job", name=(str, ...), extra=(Any, None))
    assert decode_body(pack([job(name="a", extra={"x": 1})])) == [{"name": "a", "extra": {"x": 1}}]
    assert encode_error([job(name="a", extra={"x": Odd()})]).path == "body[0].extra['x']"


def test_a_model_that_fails_says_why() -> None:
    class Model:
        def model_dump(self, mode: str) -> dict[str, Any]:
            raise LookupError("no fields yet")

    error = encode_error({"a": Model()})
    assert error.path == "body['a']" and "LookupError: no fields yet" in str(error)


def test_a_repr_that_fails_or_never_ends_is_kept_out_of_the_error() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert "<Rude>" in str(encode_error([Rude()]))
    assert len(str(encode_error([{"x" * 5000}]))) < 400


@given(body=st.recursive(SCALARS | st.builds(Odd), lambda inner: st.lists(inner, max_size=3), max_leaves=6))
def test_whatever_fails_is_explained(body: Any) -> None:
    try:
        pack(body)
    except Exception as error:
        assert isinstance(explain_encode_error(body, error), EncodeError)


def test_a_packer_works_on_after_an_error() -> None:
    packer = make_packer()
    for _ in range(3):
        with pytest.raises(TypeError):
            packer([1, Odd()])
        assert packer([1]) == msgpack.packb([1])
