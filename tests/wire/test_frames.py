"""Every frame survives the way, nothing but ``ProtocolError`` comes of noise, and the bytes stay what they are.

``golden.txt`` holds frames with their bytes: test vectors for other implementations. ``MESHMSG_REWRITE_GOLDEN=1``
writes it anew; that is a change of the protocol, and docs/wire-protocol.md has to say so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.errors import BodyTooLarge, EncodeError, ProtocolError
from meshmsg.wire import frames
from meshmsg.wire.codec import make_packer

pytestmark = pytest.mark.guarantee("G11")

pack = make_packer()

NATURAL = st.integers(0, frames.MAX_SEQ)
NODE_ID = st.text("0123456789abcdefxyz-", min_size=1, max_size=64).filter(lambda text: text.strip("-") != "")
NAMES = st.text(max_size=40)
OFFERS = st.dictionaries(
    NAMES, st.dictionaries(NAMES, st.dictionaries(NAMES, st.integers(0, 9)), max_size=2), max_size=2
)
HEADERS = st.dictionaries(st.text(max_size=5), st.one_of(st.text(max_size=5), st.integers(0, 9), st.none()), max_size=2)
DETAILS = st.fixed_dictionaries(
    {},
    optional={
        "a": st.integers(1, 99),
        "r": st.booleans(),
        "s": st.booleans(),
        "k": st.text(max_size=9),
        "p": st.integers(0, 255),
        "h": HEADERS,
        "x": st.floats(0, 1e6),
    },
)


@st.composite
def data_frames(draw: st.DrawFn) -> frames.Data:
    runs: list[list[Any]] = []
    for first_id in draw(st.lists(st.integers(0, 1000), min_size=1, max_size=4)):
        details = draw(st.none() | DETAILS)
        runs.append([first_id, 1 if details is not None else draw(st.integers(1, 5)), details])
    total = sum(run[1] for run in runs)
    return frames.Data(draw(NATURAL), draw(NATURAL), draw(NATURAL), draw(NATURAL), total, runs, b"")


@st.composite
def ack_frames(draw: st.DrawFn) -> frames.Ack:
    edges = sorted(draw(st.sets(st.integers(10, 10_000), max_size=8)))
    ranges = [[edges[index], edges[index + 1]] for index in range(0, len(edges) - 1, 2)]
    delay = st.none() | st.floats(0, 1e6)
    verdict = st.tuples(NATURAL, st.integers(1, 4), delay, st.text(max_size=20)).map(list)
    return frames.Ack(
        draw(NATURAL),
        draw(NATURAL),
        draw(NATURAL),
        draw(NATURAL),
        draw(st.integers(0, 10)),
        ranges,
        draw(st.lists(verdict, max_size=4)),
        draw(st.integers(0, 7)),
    )


HELLOS = st.builds(
    frames.Hello,
    NODE_ID,
    NATURAL,
    NAMES,
    NAMES,
    st.lists(st.text(max_size=30), max_size=4).map(tuple),
    OFFERS,
    NATURAL,
    NATURAL,
    st.none() | NODE_ID,
    st.none() | NATURAL,
    st.just(frames.PROTOCOL_VERSION),
)
FRAMES = st.one_of(
    HELLOS,
    st.builds(frames.Bye, st.text(max_size=400)),
    st.builds(frames.Beat),
    st.builds(frames.Offers, NATURAL, OFFERS),
    st.builds(frames.LaneState, NATURAL, st.text(max_size=200), NATURAL, NATURAL, NATURAL, NATURAL, NATURAL),
    st.builds(frames.Close, NATURAL),
    st.builds(frames.Lost, NATURAL),
    ack_frames(),
    data_frames(),
)


def encoded(frame: frames.Frame) -> list[bytes]:
    return frames.encode(frame, [b"\x01"] * frame.total if isinstance(frame, frames.Data) else ())


# --- round trips and noise ----------------------------------------------------------------------------------


@given(frame=FRAMES)
def test_frames_survive_the_way(frame: frames.Frame) -> None:
    decoded = frames.decode(encoded(frame))
    if isinstance(frame, frames.Data):
        assert isinstance(decoded, frames.Data)
        decoded = decoded._replace(payload=b"")
    assert decoded == frame


@given(frame=FRAMES, more=st.lists(st.integers(0, 9), max_size=2))
def test_items_from_the_future_are_ignored(frame: frames.Frame, more: list[int]) -> None:
    first, *rest = encoded(frame)
    header = msgpack.unpackb(first, strict_map_key=False)
    if isinstance(frame, frames.Hello):
        header[1]["from the future"] = more
    decoded = frames.decode([pack(header + more), *rest])
    assert type(decoded) is type(frame)


@given(parts=st.lists(st.binary(max_size=60), max_size=4))
def test_noise_is_a_protocol_error_or_a_frame(parts: list[bytes]) -> None:
    try:
        frames.decode(parts)
    except ProtocolError:
        pass


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=15,
)


@given(
    kind=st.sampled_from([1, 2, 3, 4, 16, 17, 18, 24, 25]),
    fields=st.lists(JSON, max_size=10),
    payload=st.binary(max_size=9),
)
def test_wrong_fields_are_a_protocol_error_or_a_frame(kind: int, fields: list[Any], payload: bytes) -> None:
    try:
        frames.decode([pack([kind, *fields]), payload])
    except ProtocolError:
        pass


@given(fields=st.dictionaries(st.sampled_from(frames.Hello._fields), JSON))
def test_a_hello_with_wrong_fields_is_a_protocol_error_or_a_frame(fields: dict[str, Any]) -> None:
    hello = frames.Hello("me", 1, "me", "mesh", (), {}, 1, 1, None, None)._asdict()
    try:
        frames.decode([pack([frames.HELLO, {**hello, **fields}])])
    except ProtocolError:
        pass


@given(frame=FRAMES, at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_is_a_protocol_error_or_a_frame(frame: frames.Frame, at: int, byte: int) -> None:
    first, *rest = encoded(frame)
    changed = bytearray(first)
    changed[at % len(changed)] = byte
    try:
        frames.decode([bytes(changed), *rest])
    except ProtocolError:
        pass


# --- edges --------------------------------------------------------------------------------------------------


def hello(**fields: Any) -> list[bytes]:
    told = {**frames.Hello("me", 1, "me", "mesh", (), {}, 1, 1, None, None)._asdict(), **fields}
    return [pack([frames.HELLO, told])]


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([], "0 parts"),
        ([b"\x91\x03"] * 3, "3 parts"),
        ([b"\xc1"], "not MessagePack"),
        ([b"\x91" * 5000 + b"\x01"], "not MessagePack"),
        ([b"\x00" * (frames.MAX_HEADER_BYTES + 1)], "header of"),
        ([b"\x80"], "not an array"),
        ([b"\x90"], "not an array"),
        ([b"\x91\xc3"], "not an array"),  # true is no kind
        (hello(version=2), "speaks protocol version 2"),
        (hello(version="1"), "without a version"),
        (hello(node_id="a.b"), "node id"),
        (hello(node_id=""), "node id"),
        (hello(node_id="x" * 65), "node id"),
        (hello(expects="a.b"), "node id"),
        (hello(offers={"pull": 5}), "map of maps"),
        (hello(name=b"bytes"), "name is not a text"),
        (hello(incarnation=-1), "natural number"),
        (hello(incarnation=True), "natural number"),
        ([pack([17, 1, 0, 0, 0, 2, [[0, 1, None]]]), b"\x91\x01"], "runs of 1"),
        ([pack([17, 1, 0, 0, 0, 0, []]), b"\x90"], "of 0 messages"),
        ([pack([17, 1, 0, 0, 0, 1, [[0, 1, None]]])], "1 parts"),
        ([pack([17, 1, 0, 0, 0, 2, [[0, 2, {"k": "x"}]]]), b""], "single message"),
        ([pack([17, 1, 0, 0, 0, 1, [[0, 1, {"h": [1]}]]]), b""], "headers are a map"),
        ([pack([24, 1, 5, 9, 0, 3, [[2, 4]], [], 0])], "below the floor"),
        ([pack([24, 1, 5, 9, 0, 0, [[4, 4]], [], 0])], "empty"),
        ([pack([24, 1, 5, 9, 0, 0, [], [[0, 1, -1.0, ""]], 0])], "delay of -1.0"),
        ([pack([24, 1, 5, 9, 0, 0, [], [[0, 1, float("nan"), ""]], 0])], "delay of nan"),
        ([pack([24, 1, 5, 9, 0, 0, [], [[0, "1", None, ""]], 0])], "verdict"),
        ([pack([2])], "wrong fields"),
    ],
)
def test_what_is_refused_and_why(parts: list[bytes], text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        frames.decode(parts)


def test_an_unknown_kind_is_no_error() -> None:
    assert frames.decode([pack([99, {"anything": 1}]), b"payload"]) is None


def test_endpoints_beyond_sixteen_are_not_believed() -> None:
    decoded = frames.decode(hello(endpoints=[f"tcp://{number}:1" for number in range(100)]))
    assert isinstance(decoded, frames.Hello) and len(decoded.endpoints) == 16


def test_headers_may_hold_what_bodies_may() -> None:
    import datetime

    now = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    headers = {"when": now, "map": {1: [2, b"x"]}}
    assert frames.measure_details("key", headers) > 10
    data = frames.Data(1, 0, 0, 0, 1, [[0, 1, {"h": headers}]], b"")
    decoded = frames.decode(frames.encode(data, [b"\x01"]))
    assert isinstance(decoded, frames.Data) and decoded.runs[0][2] == {"h": headers}


def test_headers_that_no_receiver_could_read_are_refused_when_they_are_given() -> None:
    with pytest.raises(EncodeError):
        frames.measure_details(None, {"map": {(1, 2): 3}})
    with pytest.raises(BodyTooLarge):
        frames.measure_details(None, {"x": b"x" * frames.MAX_DETAILS_BYTES})


# --- golden frames ------------------------------------------------------------------------------------------

NODE = "5f0c3a9e4b7d4c61a2e8d9b0c1f2a3b4"
GOLDEN: dict[str, tuple[frames.Frame, list[bytes]]] = {
    "HELLO of a node that pulls one queue": (
        frames.Hello(NODE, 7, "worker", "default", ("tcp://127.0.0.1:5555",), {"pull": {"jobs": {}}}, 1, 3, None, None),
        [],
    ),
    "HELLO that answers link 3 of the other": (
        frames.Hello(NODE, 7, "worker", "default", (), {}, 0, 4, "0a1b", 3),
        [],
    ),
    "BYE": (frames.Bye("left"), []),
    "BEAT": (frames.Beat(), []),
    "OFFERS": (frames.Offers(2, {"pull": {"jobs": {}}, "push": {"results": {}}}), []),
    "LANE, new, three messages wait": (frames.LaneState(1, "jobs", 0, 0, 3, 0, 0), []),
    "LANE, credit given back": (frames.LaneState(1, "jobs", 5, 5, 0, 5, 1), []),
    "DATA, three plain messages": (
        frames.Data(1, 0, 0, 0, 3, [[0, 3, None]], b""),
        [pack("a"), pack("b"), pack({"c": 1})],
    ),
    "DATA, one message with everything": (
        frames.Data(
            1,
            3,
            2,
            9,
            1,
            [[3, 1, {"a": 3, "r": True, "s": True, "k": "key", "p": 5, "h": {"trace": "1"}, "x": 1.5}]],
            b"",
        ),
        [pack(None)],
    ),
    "CLOSE": (frames.Close(1), []),
    "ACK, credit for ten": (frames.Ack(1, 0, 10, 0, 0, [], [], 0), []),
    "ACK, floor, range, nack with delay, reject": (
        frames.Ack(1, 9, 19, 0, 2, [[4, 6], [8, 9]], [[4, 1, 0.5, "ValueError: no"], [8, 2, None, "never"]], 0),
        [],
    ),
    "ACK, messages are missing, credit is wanted back": (frames.Ack(2, 4, 20, 1, 4, [], [], 3), []),
    "ACK, the consumer closes this lane and returns a message": (
        frames.Ack(2, 5, 20, 1, 5, [], [[4, 4, None, "the consumer left"]], 4),
        [],
    ),
    "LOST": (frames.Lost(1), []),
}
GOLDEN_FILE = Path(__file__).parent / "golden.txt"


def golden_text() -> str:
    lines = ["# Frames and their bytes, one ZeroMQ part a line. Written by tests/wire/test_frames.py.", ""]
    for name, (frame, bodies) in GOLDEN.items():
        lines += [f"# {name}", f"# {frame!r}", *(part.hex() for part in frames.encode(frame, bodies)), ""]
    return "\n".join(lines).rstrip() + "\n"


def test_golden_frames() -> None:
    if os.environ.get("MESHMSG_REWRITE_GOLDEN") == "1":
        GOLDEN_FILE.write_text(golden_text(), encoding="utf-8")
    assert golden_text() == GOLDEN_FILE.read_text(encoding="utf-8")


def test_golden_bytes_are_read_as_their_frames() -> None:
    blocks = GOLDEN_FILE.read_text(encoding="utf-8").split("\n\n")[1:]
    assert len(blocks) == len(GOLDEN)
    for block, (frame, _) in zip(blocks, GOLDEN.values(), strict=True):
        parts = [bytes.fromhex(line) for line in block.splitlines() if not line.startswith("#")]
        decoded = frames.decode(parts)
        assert decoded == (frame._replace(payload=parts[1]) if isinstance(frame, frames.Data) else frame)
