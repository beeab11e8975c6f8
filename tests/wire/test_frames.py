"""Every frame survives the way, nothing but ``ProtocolError`` comes of noise, and the bytes stay what they are.

``golden.txt`` holds frames with their bytes: test vectors for other implementations. ``MESHMSG_REWRITE_GOLDEN=1``
writes it anew; that is a change of the protocol, and docs/wire-protocol.md has to say so.
"""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.engine import lane
from meshmsg.errors import BodyTooLarge, EncodeError, ProtocolError
from meshmsg.wire import frames
from meshmsg.wire.codec import encode_batch, make_packer
from tests.wire import pub_sub_frames, talk_frames

pytestmark = pytest.mark.guarantee("G11")

pack = make_packer()

NATURAL = st.integers(0, frames.MAX_SEQ)
NODE_ID = st.text("0123456789abcdefxyz-", min_size=1, max_size=64).filter(lambda text: text.strip("-") != "")
CONTROL = [*map(chr, range(32)), *map(chr, range(127, 160)), *"\u2028\u2029\u202a\u202e\u2066\u2069"]
LETTERS = st.characters(exclude_categories=("Cc", "Cs", "Cf", "Zl", "Zp"))
NAMES = st.text(LETTERS, max_size=40)
FLAT = st.integers(0, 9) | st.booleans() | NAMES | st.lists(NAMES, max_size=2)
OFFERS = st.dictionaries(NAMES, st.dictionaries(NAMES, st.dictionaries(NAMES, FLAT), max_size=2), max_size=2)
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
    verdict = st.tuples(st.integers(0, 9_999), st.integers(1, 4), delay, st.text(max_size=20)).map(list)
    return frames.Ack(
        draw(NATURAL),
        draw(st.integers(10_000, frames.MAX_SEQ)),
        draw(NATURAL),
        draw(NATURAL),
        draw(st.integers(0, 10)),
        ranges,
        draw(st.lists(verdict, max_size=4, unique_by=lambda verdict: verdict[0])),
        draw(st.integers(0, 7)),
    )


HELLOS = st.builds(
    frames.Hello,
    NODE_ID,
    NATURAL,
    NAMES,
    NAMES,
    st.lists(NAMES, max_size=4).map(tuple),
    OFFERS,
    NATURAL,
    NATURAL,
    st.none() | NODE_ID,
    st.none() | NATURAL,
    st.just(frames.PROTOCOL_VERSION),
    st.none() | NATURAL,
)
FRAMES = st.one_of(
    HELLOS,
    st.builds(frames.Bye, st.text(LETTERS, max_size=400)),
    st.builds(frames.Beat),
    st.builds(frames.Offers, NATURAL, OFFERS),
    st.builds(frames.LaneState, NATURAL, st.text(LETTERS, max_size=200), NATURAL, NATURAL, NATURAL, NATURAL, NATURAL),
    st.builds(frames.Close, NATURAL),
    st.builds(frames.Lost, NATURAL),
    ack_frames(),
    data_frames(),
    pub_sub_frames.DRAWN,
    talk_frames.DRAWN,
)
BODIED = (frames.Data, frames.Past, frames.Talk)


def encoded(frame: frames.Frame) -> list[bytes]:
    count = 0
    if isinstance(frame, frames.Talk):
        count = talk_frames.body_count(frame)
    elif isinstance(frame, BODIED):
        count = frame.total
    return frames.encode(frame, [b"\x01"] * count)


# --- round trips and noise ----------------------------------------------------------------------------------


@given(frame=FRAMES)
def test_frames_survive_the_way(frame: frames.Frame) -> None:
    decoded = frames.decode(encoded(frame))
    if isinstance(frame, BODIED):
        assert isinstance(decoded, BODIED)
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
    kind=st.sampled_from([1, 2, 3, 4, 16, 17, 18, 24, 25, 33, 34, 35, 36, 40, 41, 48, 49]),
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
        (hello(offers={"pull": 5}), "maps in maps, not int"),
        (hello(name=b"bytes"), "name is not a text"),
        (hello(incarnation=-1), "natural number"),
        (hello(incarnation=True), "natural number"),
        ([pack([17, 1, 0, 0, 0, 2, [[0, 1, None]]]), b"\x91\x01"], "runs of 1"),
        ([pack([17, 1, 0, 0, 0, 0, []]), b"\x90"], "of 0 messages"),
        ([pack([17, 1, 0, 0, 0, 1, [[0, 1, None]]])], "no payload in its header or behind it"),
        ([pack([17, 1, 0, 0, 0, 1, [[0, 1, None]], "text"])], "no payload in its header or behind it"),
        ([pack([34, "a", 0, 1, None, False])], "no payload in its header or behind it"),
        ([pack([48, 1, 1, 0, 0, [[5, 1]]])], "no payload in its header or behind it"),
        ([pack([17, 1, 0, 0, 0, 2, [[0, 2, {"k": "x"}]]]), b""], "single message"),
        ([pack([17, 1, 0, 0, 0, 1, [[0, 1, {"h": [1]}]]]), b""], "headers are a map"),
        ([pack([24, 1, 5, 9, 0, 3, [[2, 4]], [], 0])], "below the floor, or out of order"),
        ([pack([24, 1, 5, 9, 0, 0, [[4, 4]], [], 0])], "empty"),
        ([pack([24, 1, 5, 9, 0, 0, [], [[0, 1, -1.0, ""]], 0])], "expected seconds"),
        ([pack([24, 1, 5, 9, 0, 0, [], [[0, 1, float("nan"), ""]], 0])], "expected seconds"),
        ([pack([24, 1, 5, 9, 0, 0, [], [[0, "1", None, ""]], 0])], "natural number, got str"),
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


# --- each field, with everything that it must not be -----------------------------------------------------------

DEEP: list[Any] = []
for _ in range(250):
    DEEP = [DEEP]
NOT_NATURAL = [-1, 2**62 + 1, 2**64 - 1, True, 1.0, float("nan"), "1", b"1", None, [], {}, DEEP]
NOT_LISTS = ["", "ab", b"ab", {}, {1: 2}, 1, None, msgpack.ExtType(5, b"ab")]
NOT_QUEUES = [None, 1, b"x", [], "x" * 1001, *(f"a{letter}b" for letter in CONTROL)]
NOT_NAMES = [*NOT_QUEUES, "x" * 401]
NOT_IDS = ["", "a.b", "a b", "-", "x" * 65, "\x1b", 1, b"a", []]
NOT_OFFERS = [
    None,
    [],
    {"pull": 1},
    {"pull": ["q"]},
    {"pull": {"q": 1}},
    {"pull": {"q": None}},
    {"pull": {1: {}}},
    {1: {}},
    {b"pull": {}},
    {"pull": {"q": {1: 2}}},
    {"pull": {"q": {"x": {}}}},
    {"pull": {"q": {"x": [[]]}}},
    {"pull": {"q": {"x": DEEP}}},
    {"pull": {"q\x1b[2J": {}}},
    {"raw": {"PUB x": {"endpoints": ["tcp://\n"]}}},
]
NOT_SECONDS = [-1, -0.1, float("nan"), float("inf"), float("-inf"), True, "1", b"1", [], {}]
NOT_DETAILS = [
    [],
    "a",
    1,
    *({"a": value} for value in [0, *NOT_NATURAL]),
    *({"p": value} for value in NOT_NATURAL),
    *({"x": value} for value in [None, *NOT_SECONDS]),
    *({name: value} for name in "rs" for value in (1, 0, None, "", "yes", [], DEEP)),
    *({"k": value} for value in (None, 1, b"k", [])),
    *({"h": value} for value in (None, [], "h", 1, {1: 2}, {b"x": 1}, {None: 1})),
]
NOT_RUNS = [
    *NOT_LISTS,
    [],
    [[0, 1]],
    [[0, 1, None, None]],
    [[0, 0, None], [0, 1, None]],
    [[0, 2, None]],
    *([each] for each in NOT_LISTS),
    [{5: 0, 1: 0, None: 0}],
    *([[value, 1, None]] for value in NOT_NATURAL),
    *([[0, value, None]] for value in NOT_NATURAL),
    *([[0, 1, value]] for value in NOT_DETAILS),
]
NOT_RANGES = [
    *NOT_LISTS,
    *([each] for each in NOT_LISTS),
    [[4]],
    [[4, 5, 6]],
    [[5, 4]],
    [[4, 4]],
    [[2, 5]],  # below the floor
    [[4, 10]],  # above what was received
    [[6, 7], [4, 5]],
    [[4, 6], [5, 7]],
    [[4, 5], [4, 5]],
    *([[value, 9]] for value in NOT_NATURAL),
    *([[4, value]] for value in NOT_NATURAL),
]
NOT_VERDICTS = [
    *NOT_LISTS,
    *([each] for each in NOT_LISTS),
    [[1, 1, None]],
    [[9, 1, None, ""]],  # was not received
    [[1, 1, None, ""], [1, 2, None, ""]],
    *([[value, 1, None, ""]] for value in NOT_NATURAL),
    *([[1, value, None, ""]] for value in NOT_NATURAL),
    *([[1, 1, value, ""]] for value in NOT_SECONDS),
    *([[1, 1, None, value]] for value in (None, 1, b"x", [], "x" * 1001, "x" * 2**21)),
]
VALID: dict[int, list[Any]] = {
    frames.BYE: ["left"],
    frames.OFFERS: [1, {}],
    frames.LANE: [1, "jobs", 0, 0, 0, 0, 0],
    frames.DATA: [1, 0, 0, 0, 1, [[0, 1, None]]],
    frames.CLOSE: [1],
    frames.ACK: [1, 9, 9, 0, 3, [], [], 0],
    frames.LOST: [1],
    **pub_sub_frames.VALID,
    **talk_frames.VALID,
}
# Every other field of these frames is a natural number.
OTHER_FIELDS: dict[tuple[int, int], list[Any]] = {
    (frames.BYE, 0): NOT_NAMES,
    (frames.OFFERS, 1): NOT_OFFERS,
    (frames.LANE, 1): NOT_QUEUES,
    (frames.DATA, 5): NOT_RUNS,
    (frames.ACK, 5): NOT_RANGES,
    (frames.ACK, 6): NOT_VERDICTS,
    **pub_sub_frames.wrong_fields(NOT_NATURAL, NOT_LISTS, NOT_NAMES),
    **talk_frames.wrong_fields(NOT_NATURAL, NOT_LISTS, NOT_SECONDS, CONTROL),
}
HELLO_FIELDS: dict[str, list[Any]] = {
    "node_id": [None, *NOT_IDS],
    "incarnation": NOT_NATURAL,
    "name": NOT_NAMES,
    "mesh": NOT_NAMES,
    "endpoints": [*NOT_LISTS, *([each] for each in NOT_NAMES)],
    "offers": NOT_OFFERS,
    "offers_version": NOT_NATURAL,
    "token": NOT_NATURAL,
    "expects": NOT_IDS,
    "answers": [value for value in NOT_NATURAL if value is not None],
    "version": [0, 2, -1, True, "1", 1.0, None, DEEP],
    "max_body_bytes": [value for value in NOT_NATURAL if value is not None],
}
OPTIONAL = {"max_body_bytes"}


def require_refusal(parts: list[bytes]) -> None:
    """The reason goes into a log, and back in a BYE that the other side has to be able to read."""
    with pytest.raises(ProtocolError) as caught:
        frames.decode(parts)
    reason = f"refused: {caught.value}"
    assert frames.decode(frames.encode(frames.Bye(reason))) == frames.Bye(reason)


@pytest.mark.parametrize(("kind", "place"), [(kind, place) for kind in VALID for place in range(len(VALID[kind]))])
def test_a_field_is_refused_if_it_is_anything_else(kind: int, place: int) -> None:
    payload = [b"\x91\x01"] if kind in (frames.DATA, frames.PAST, frames.TALK) else []
    assert frames.decode([pack([kind, *VALID[kind]]), *payload]) is not None
    for wrong in OTHER_FIELDS.get((kind, place), NOT_NATURAL):
        fields = [*VALID[kind]]
        fields[place] = wrong
        require_refusal([pack([kind, *fields]), *payload])
    require_refusal([pack([kind, *VALID[kind][:place]]), *payload])


@pytest.mark.parametrize("field", HELLO_FIELDS)
def test_a_field_of_a_hello_is_refused_if_it_is_anything_else(field: str) -> None:
    for wrong in HELLO_FIELDS[field]:
        require_refusal(hello(**{field: wrong}))
    known = frames.Hello("me", 1, "me", "mesh", (), {}, 1, 1, None, None)._asdict()
    without = [pack([frames.HELLO, {name: value for name, value in known.items() if name != field}])]
    if field in OPTIONAL:
        assert frames.decode(without) == frames.Hello(**known)
    else:
        require_refusal(without)
    for other in NOT_LISTS:
        if other != {}:
            require_refusal([pack([frames.HELLO, other])])


@pytest.mark.parametrize("kind", [*VALID, frames.HELLO])
@pytest.mark.parametrize("depth", [500, 1000, 100_000])
def test_a_field_that_is_nested_too_deep_is_refused(kind: int, depth: int) -> None:
    for level in (b"\x91", b"\x81\x01"):
        require_refusal([bytes((0x92, kind)) + level * depth + b"\x01", b"\x91\x01"])


@pytest.mark.parametrize("claim", [b"\xdd\xff\xff\xff\xff", b"\xdd\x00\x0f\xff\xff" * 500, b"\xdf\xff\xff\xff\xff"])
def test_claimed_lengths_take_no_memory(claim: bytes) -> None:
    tracemalloc.start()
    try:
        require_refusal([b"\x92\x12" + claim + bytes(2**20 - 2 - len(claim))])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20


def test_a_million_ranges_or_runs_are_refused() -> None:
    """They fit into no header, or lie outside of what was received; either way nobody walks them twice."""
    many = b"\xdd" + (10**6).to_bytes(4, "big")
    require_refusal([b"\x99\x18\x01\x09\x09\x00\x03" + many + b"\x92\x04\x05" * 10**6 + b"\x90\x00"])
    require_refusal([b"\x97\x11\x01\x00\x00\x00\x01" + many + b"\x93\x00\x00\xc0" * 10**6, b"\x91\x01"])


@given(frame=FRAMES, cut=st.integers(0, 10_000))
def test_a_torn_header_is_refused(frame: frames.Frame, cut: int) -> None:
    first, *rest = encoded(frame)
    require_refusal([first[: cut % len(first)], *rest])


# --- what our own side says is never refused ------------------------------------------------------------------


def test_an_error_that_is_no_unicode_leaves_all_the_same() -> None:
    """An exception's text may hold an undecodable file name; a verdict that cannot leave blocks all others."""
    text = "No such file: 'caf\udce9.txt'\nsecond line \x1b[31m"
    verdict = [4, frames.NACKED, None, text]
    decoded = frames.decode(frames.encode(frames.Ack(1, 5, 9, 0, 5, [], [verdict], 0)))
    assert isinstance(decoded, frames.Ack)
    assert decoded.verdicts == [[4, frames.NACKED, None, text.replace("\udce9", "?")]]


def test_the_longest_text_of_a_verdict_is_read() -> None:
    consumer = lane.InLane(1, "peer.1", "peer", "jobs", lambda changed: None)
    consumer.limit = consumer.received = 2
    consumer.nack(0, 1e12, "\udcff" * 5000)
    consumer.reject(1, "x" * 5000)
    state = consumer.state()
    decoded = frames.decode(frames.encode(state))
    assert isinstance(decoded, frames.Ack) and [len(verdict[3]) for verdict in decoded.verdicts] == [1000, 1000]


def test_a_key_that_is_no_unicode_is_refused_when_it_is_given() -> None:
    with pytest.raises(EncodeError, match=r"key 'caf.*' cannot be sent: .*lone surrogate"):
        frames.measure_details("caf\udce9", None)


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
    "HELLO of a node that takes bodies of up to 1 MiB": (
        frames.Hello(NODE, 7, "worker", "default", (), {}, 0, 5, None, None, max_body_bytes=2**20),
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
    "DATA, a message whose payload is too large for the header": (
        frames.Data(1, 0, 0, 0, 1, [[0, 1, None]], b""),
        [b"\xc5\x10\x00" + b"x" * 4096],
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
    **pub_sub_frames.GOLDEN,
    **talk_frames.GOLDEN,
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
    for block, (frame, bodies) in zip(blocks, GOLDEN.values(), strict=True):
        parts = [bytes.fromhex(line) for line in block.splitlines() if not line.startswith("#")]
        decoded = frames.decode(parts)
        assert decoded == (frame._replace(payload=encode_batch(bodies)) if isinstance(frame, BODIED) else frame)


def test_a_small_payload_is_in_the_header_and_a_large_one_behind_it() -> None:
    frame = frames.Data(1, 0, 0, 0, 1, [[0, 1, None]], b"")
    for size, parts in ((frames.MAX_INLINE_BYTES, 1), (frames.MAX_INLINE_BYTES + 1, 2)):
        sent = frames.encode(frame, [b"x" * size])
        assert len(sent) == parts
        assert frames.decode(sent) == frame._replace(payload=b"x" * size)
