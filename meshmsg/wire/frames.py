"""The frames between two nodes. Every layout is written down in ``docs/wire-protocol.md``.

A frame is one ZeroMQ message: a header (a MessagePack array whose first item is the kind), and for some a payload with
the bodies: the header's last item, or a second part if it is large. Readers ignore items after those they know, and
count kinds they don't know. State frames are absolute and idempotent: losing one costs time, never truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from meshmsg.errors import BodyTooLarge, EncodeError, ProtocolError
from meshmsg.wire import fields
from meshmsg.wire.codec import encode_batch, make_packer
from meshmsg.wire.fields import MAX_SEQ as MAX_SEQ
from meshmsg.wire.fields import array, flag, natural, naturals, seconds
from meshmsg.wire.items import check_items
from meshmsg.wire.large import cut

PROTOCOL_VERSION = 1

HELLO, BYE, BEAT, OFFERS = 1, 2, 3, 4
LANE, DATA, CLOSE = 16, 17, 18
ACK, LOST = 24, 25
PUBLISHED, START, PAST, FORGOTTEN, BEACON = 32, 33, 34, 35, 36
WANT, LAG = 40, 41
TALK, HEARD = 48, 49

# What a consumer says about one message. ACKED ones travel as cumulative floor and ranges, not as verdicts.
NACKED, REJECTED, EXPIRED, RETURNED = 1, 2, 3, 4

# Flags of an ACK: the consumer misses messages; it wants unused credit back; it consumes no more through this lane.
GAP, RECALL, CLOSING = 1, 2, 4

# Flags of a HEARD: the sender misses frames, from ``heard`` on; it asks for a HEARD.
MISSING, ASKS = 1, 2

# A peer's header is small; whoever sends more is not speaking this protocol.
MAX_HEADER_BYTES = 4 * 2**20

# A payload up to this is the last item of its header: a part of its own costs both sides as much as copying so much.
MAX_INLINE_BYTES = 4096

# A larger payload leaves through XPUB as several messages, between which those of other topics find their way.
PIECE_BYTES = 256 * 1024
# What is taken of one payload if nothing else is said.
MAX_PAYLOAD_BYTES = 64 * 2**20

# Longest texts that a reader takes, in characters. A group's queue has its pattern and condition in its name.
MAX_NAME = 400
MAX_QUEUE = 1000
MAX_TOPIC = 200
MAX_VERDICT_TEXT = 1000


class Hello(NamedTuple):
    """The first frame on every link: who speaks, from where, and whom it believes to talk to.

    ``max_body_bytes`` is the largest encoded body that it takes; None if it does not say.
    """

    node_id: str
    incarnation: int
    name: str
    mesh: str
    endpoints: tuple[str, ...]
    offers: dict[str, Any]
    offers_version: int
    token: int
    expects: str | None
    answers: int | None
    version: int = PROTOCOL_VERSION
    max_body_bytes: int | None = None


class Bye(NamedTuple):
    """The sender leaves now."""

    reason: str


class Beat(NamedTuple):
    """The sender makes progress."""


class Offers(NamedTuple):
    """What the sender offers, complete; a higher version replaces a lower one."""

    version: int
    offers: dict[str, Any]


class LaneState(NamedTuple):
    """A producer's view of a lane: what was sent, what waits, what credit it gave back."""

    lane: int
    queue: str
    next_seq: int
    floor: int
    want: int
    limit: int
    returns: int


class Data(NamedTuple):
    """Messages ``first_seq`` and following; each run is ``[first id, count, details or None]``."""

    lane: int
    first_seq: int
    floor: int
    want: int
    total: int
    runs: list[list[Any]]
    payload: bytes


class Close(NamedTuple):
    """The producer gave this lane up; what was not started must not be."""

    lane: int


class Ack(NamedTuple):
    """A consumer's view of a lane: received, credit, and every verdict that is not confirmed yet."""

    lane: int
    received: int
    limit: int
    returns: int
    floor: int
    ranges: list[list[int]]
    verdicts: list[list[Any]]
    flags: int


class Lost(NamedTuple):
    """The consumer does not know this lane (any more)."""

    lane: int


class Published(NamedTuple):
    """Messages of one topic, ``first_seq`` and following, as they leave through XPUB; ``headers`` by number.

    ``part`` is ``[index, count]`` if the payload is only a piece of theirs; the first piece has the headers.
    """

    topic: str
    node_id: str
    incarnation: int
    first_seq: int
    total: int
    headers: dict[int, dict[str, Any]] | None
    payload: bytes
    part: list[int] | None = None


class Start(NamedTuple):
    """A publisher's answer to a marker: where its topics stood when the marker came.

    Each topic is ``[topic, next_seq, history_from, retained]``; one that is not listed began later, at 0.
    """

    version: int
    topics: list[list[Any]]
    last: bool


class Past(NamedTuple):
    """Messages that a subscriber asked for; ``more`` of the same answer may follow."""

    topic: str
    first_seq: int
    total: int
    headers: dict[int, dict[str, Any]] | None
    more: bool
    payload: bytes


class Forgotten(NamedTuple):
    """The publisher holds nothing of this topic below ``up_to`` any more."""

    topic: str
    up_to: int
    more: bool


class Beacon(NamedTuple):
    """How far topics are that went quiet; each ``[topic, next_seq]``."""

    topics: list[list[Any]]


class Want(NamedTuple):
    """A subscriber asks for messages ``start`` to ``stop``, without the latter."""

    topic: str
    start: int
    stop: int


class Lag(NamedTuple):
    """What a subscriber got: the last ``START``, and ``[topic, next expected]`` of topics that moved."""

    version: int
    topics: list[list[Any]]


class Talk(NamedTuple):
    """What a caller and a server have to say in one turn, see ``wire.items``; below ``heard`` everything arrived.

    ``channel`` is the sender's number for this conversation, ``to`` is the receiver's; ``seq`` counts the frames.
    """

    channel: int
    to: int
    seq: int
    heard: int
    items: list[list[Any]]
    payload: bytes


class Heard(NamedTuple):
    """Where one side of a channel is: what arrived, and what it has sent. ``to`` is 0 as long as it is not known."""

    channel: int
    to: int
    heard: int
    next_seq: int
    flags: int


PubSubFrame = Start | Past | Forgotten | Beacon | Want | Lag
PUB_SUB_FRAMES = (Start, Past, Forgotten, Beacon, Want, Lag)
Frame = Hello | Bye | Beat | Offers | LaneState | Data | Close | Ack | Lost | PubSubFrame | Talk | Heard

# What a message's key and headers may take, in bytes, so that a header with some of them stays far below the limit.
MAX_DETAILS_BYTES = 2**20

# Shared by all threads, so it must never call Python code half way: no ``default=``, no datetime. The text of an error
# may hold lone surrogates (an undecodable file name does); its verdict has to leave all the same.
_pack = msgpack.Packer(autoreset=True, unicode_errors="replace").pack


def _unpack(header: bytes) -> Any:
    return msgpack.unpackb(header, strict_map_key=False, timestamp=3)


def measure_details(key: str | None, headers: dict[str, Any] | None) -> int:
    """About the bytes that a message's key and headers take; raises if they could not be sent, or not be read."""
    size = 0
    if key is not None:
        size += 4 * len(key)
        try:
            key.encode()
        except UnicodeEncodeError:
            text = f"key {key[:50]!r} cannot be sent: the text is not valid Unicode (a lone surrogate)"
            raise EncodeError(text, "key") from None
    if headers:
        encoded = make_packer()(headers)
        size += len(encoded)
        try:
            _unpack(encoded)
        except Exception as error:
            raise EncodeError(f"headers cannot be sent: no receiver could read them ({error})", "headers") from None
    if size > MAX_DETAILS_BYTES:
        raise BodyTooLarge(f"a key and headers of {size} bytes; at most {MAX_DETAILS_BYTES}: put it into the body")
    return size


def encode(frame: Frame, bodies: Sequence[bytes] = ()) -> list[bytes]:
    """The ZeroMQ parts of a frame; ``bodies`` are the encoded bodies of a ``Data``, ``Past`` or ``Talk``."""
    kind = type(frame)
    if kind in _WITH_BODIES:
        payload = encode_batch(bodies)
        if len(payload) <= MAX_INLINE_BYTES:
            return [_pack_data((_WITH_BODIES[kind], *frame[:-1], payload))]
        header = _pack_data((_WITH_BODIES[kind], *frame[:-1]))
        return [header, payload if len(payload) >= PIECE_BYTES else bytes(payload)]  # what leaves in pieces is as it is
    if isinstance(frame, Hello):
        return [_pack((HELLO, _tell_hello(frame)))]
    return [_pack((_PLAIN_KINDS[kind], *frame))]


def encode_published(frame: Published, piece_bytes: int = PIECE_BYTES) -> list[bytes | memoryview]:
    """The ZeroMQ parts of messages on their way to all subscribers: topic, header, payload.

    If the payload has more than ``piece_bytes``: the topic, and then a header and a piece for each of the ZeroMQ
    messages to send, which all begin with the topic. Pieces are views of the payload.
    """
    parts: list[bytes | memoryview] = [frame.topic.encode()]
    size = len(frame.payload)
    if size <= piece_bytes:
        parts += (_pack_data((PUBLISHED, *frame[1:6])), bytes(frame.payload))
        return parts
    count = -(-size // piece_bytes)
    for index, piece in enumerate(cut(frame.payload, piece_bytes)[:count]):
        headers = None if index else frame.headers
        parts += (_pack_data((PUBLISHED, *frame[1:5], headers, (index, count))), piece)
    return parts


def _tell_hello(hello: Hello) -> dict[str, Any]:
    told = hello._asdict()
    if hello.max_body_bytes is None:
        del told["max_body_bytes"]
    return told


def _pack_data(header: tuple[Any, ...]) -> bytes:
    try:
        packed: bytes = _pack(header)
    except TypeError:  # headers may hold what bodies may
        packed = make_packer()(header)
    return packed


def decode(parts: Sequence[bytes]) -> Frame | None:
    """Reads one frame; None for an unknown kind. Raises ``ProtocolError`` for anything malformed (G11)."""
    if not parts or len(parts) > 2:
        raise ProtocolError(f"a frame of {len(parts)} parts; one or two make a frame")
    if len(parts[0]) > MAX_HEADER_BYTES:
        raise ProtocolError(f"a header of {len(parts[0])} bytes; at most {MAX_HEADER_BYTES}")
    try:
        header = _unpack(parts[0])
    except Exception as error:
        raise ProtocolError(f"a header that is not MessagePack: {str(error) or type(error).__name__}") from None
    if type(header) is not list or not header or type(header[0]) is not int:
        raise ProtocolError("a header that is not an array starting with the frame's kind")
    reader = _READERS.get(header[0])
    if reader is None:
        return None
    try:
        return reader(header, parts)  # type: ignore[no-any-return]  # every reader returns its own Frame
    except (IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ProtocolError):
            raise
        raise ProtocolError(f"a frame of kind {header[0]} with wrong fields: {error}") from None


def decode_published(
    parts: Sequence[Any], piece_bytes: int = PIECE_BYTES, max_bytes: int = MAX_PAYLOAD_BYTES
) -> Published:
    """Reads what came through a SUB socket. Raises ``ProtocolError`` for anything malformed (G11).

    So it is for pieces that are not as long as all are, or too many: together they have at most ``max_bytes``, and
    what is left of a piece.
    """
    if len(parts) != 3:
        raise ProtocolError(f"published messages of {len(parts)} parts; topic, header and payload make three")
    if len(parts[0]) > MAX_TOPIC or len(parts[1]) > MAX_HEADER_BYTES:
        raise ProtocolError(f"a topic of {len(parts[0])} and a header of {len(parts[1])} bytes")
    try:
        topic = parts[0].decode()
        header = _unpack(parts[1])
    except Exception as error:
        raise ProtocolError(f"a topic or header that cannot be read: {type(error).__name__}") from None
    if type(header) is not list or len(header) < 6 or header[0] != PUBLISHED:
        raise ProtocolError("a header that is not an array of PUBLISHED and its fields")
    _, node_id, incarnation, first_seq, count, headers = header[:6]
    _check_messages(first_seq, count, headers)
    part = header[6] if len(header) > 6 else None
    if part is not None:
        _check_part(part, len(parts[2]), headers, piece_bytes, max_bytes)
    return Published(topic, fields.node_id(node_id), natural(incarnation), first_seq, count, headers, parts[2], part)


def _check_part(part: Any, size: int, headers: Any, piece_bytes: int, max_bytes: int) -> None:
    if type(part) is not list or len(part) != 2 or not natural(part[0]) < natural(part[1]):
        raise ProtocolError("a part is its index and how many there are")
    index, count = part
    if (count - 1) * piece_bytes > max_bytes:
        raise ProtocolError(f"a payload of {count} pieces; here up to {max_bytes} bytes are taken")
    if count < 2 or not 0 < size <= piece_bytes or (size < piece_bytes and index < count - 1):
        raise ProtocolError(f"a piece of {size} bytes, {index} of {count}")
    if index and headers is not None:
        raise ProtocolError("headers belong to the first piece")


def _read_hello(header: list[Any], parts: Sequence[bytes]) -> Hello:
    known = header[1]
    if type(known) is not dict or type(known.get("version")) is not int:
        raise ProtocolError("a HELLO without a version")
    if known["version"] != PROTOCOL_VERSION:
        raise ProtocolError(f"it speaks protocol version {known['version']}, this node {PROTOCOL_VERSION}")
    known.setdefault("max_body_bytes", None)
    hello = Hello(*(known[name] for name in Hello._fields))
    endpoints = [fields.text(each, "endpoint", 300) for each in array(hello.endpoints, "endpoints")[:16]]
    fields.node_id(hello.node_id)
    fields.text(hello.name, "name", MAX_NAME)
    fields.text(hello.mesh, "mesh", MAX_NAME)
    natural(hello.incarnation)
    natural(hello.token)
    _check_offers(hello.offers)
    natural(hello.offers_version)
    if hello.answers is not None:
        natural(hello.answers)
    if hello.expects is not None:
        fields.node_id(hello.expects)
    if hello.max_body_bytes is not None:
        natural(hello.max_body_bytes)
    return hello._replace(endpoints=tuple(endpoints))


def _read_data(header: list[Any], parts: Sequence[bytes]) -> Data:
    _, lane, first_seq, floor, want, count, runs = header[:7]
    naturals(lane, first_seq, floor, want, count)
    total = 0
    for first_id, length, details in map(array, array(runs, "runs")):
        natural(first_id)
        total += natural(length)
        if not length:
            raise ProtocolError("a run of no messages")
        if details is not None:
            _check_details(details, length)
    if total != count or not count:
        raise ProtocolError(f"a DATA frame of {count} messages with runs of {total}")
    return Data(lane, first_seq, floor, want, count, runs, _find_payload(header, 7, parts))


def _find_payload(header: list[Any], place: int, parts: Sequence[bytes]) -> bytes:
    if len(parts) == 2:
        return parts[1]
    if len(header) <= place or type(header[place]) is not bytes:
        raise ProtocolError("a frame with bodies, and no payload in its header or behind it")
    return header[place]  # type: ignore[no-any-return]  # just checked


def _check_details(details: Any, length: int) -> None:
    if type(details) is not dict or (length != 1 and details.keys() != {"t"}):
        raise ProtocolError("details belong to a single message")
    if "t" in details:
        fields.text(details["t"], "topic", MAX_TOPIC)
    fields.headers(details.get("h", {}))
    if type(details.get("k", "")) is not str:
        raise ProtocolError("a key is a text")
    if not natural(details.get("a", 1)):
        raise ProtocolError("attempts are counted from 1")
    natural(details.get("p", 0))
    seconds(details.get("x", 0))
    if type(details.get("r", False)) is not bool or type(details.get("s", False)) is not bool:
        raise ProtocolError("redelivered and on trial are true or false")


def _read_ack(header: list[Any], parts: Sequence[bytes]) -> Ack:
    _, lane, received, limit, returns, floor, ranges, verdicts, flags = header[:9]
    naturals(lane, received, limit, returns, floor, flags)
    # In order, apart, and within what arrived: then each costs the producer something once, not again and again.
    end = floor
    for start, stop in map(array, array(ranges, "ranges")):
        if not end <= natural(start) < natural(stop):
            raise ProtocolError("an ACK range that is empty, below the floor, or out of order")
        end = stop
    if end > received:
        raise ProtocolError(f"an ACK that settles messages up to {end} and received only {received}")
    for seq, kind, delay, text in map(array, array(verdicts, "verdicts")):
        if natural(seq) >= received:
            raise ProtocolError(f"a verdict on message {seq} of {received} received")
        natural(kind)
        fields.text(text, "verdict", MAX_VERDICT_TEXT, controls=True)  # an exception's text may have several lines
        if delay is not None:
            seconds(delay)
    if len({verdict[0] for verdict in verdicts}) != len(verdicts):
        raise ProtocolError("two verdicts on one message")
    return Ack(lane, received, limit, returns, floor, ranges, verdicts, flags)


def _read_lane(header: list[Any], parts: Sequence[bytes]) -> LaneState:
    state = LaneState(*header[1:8])
    fields.text(state.queue, "queue", MAX_QUEUE)
    naturals(state.lane, *state[2:])
    return state


def _read_start(header: list[Any], parts: Sequence[bytes]) -> Start:
    _, version, topics, last = header[:4]
    for topic, next_seq, history_from, retained in map(array, array(topics, "topics")):
        fields.text(topic, "topic", MAX_TOPIC)
        if natural(history_from) > natural(next_seq) or next_seq < flag(retained):
            raise ProtocolError("a START with a history or a retained message beyond its topic's end")
    return Start(natural(version), topics, flag(last))


def _read_past(header: list[Any], parts: Sequence[bytes]) -> Past:
    _, topic, first_seq, count, headers, more = header[:6]
    _check_messages(first_seq, count, headers)
    payload = _find_payload(header, 6, parts)
    return Past(fields.text(topic, "topic", MAX_TOPIC), first_seq, count, headers, flag(more), payload)


def _read_want(header: list[Any], parts: Sequence[bytes]) -> Want:
    _, topic, start, stop = header[:4]
    if not natural(start) < natural(stop):
        raise ProtocolError("a WANT of nothing")
    return Want(fields.text(topic, "topic", MAX_TOPIC), start, stop)


def _read_talk(header: list[Any], parts: Sequence[bytes]) -> Talk:
    _, channel, to, seq, heard, items = header[:6]
    naturals(channel, to, seq, heard)
    check_items(items)  # as many bodies as they say are in the payload, or it is not taken
    return Talk(channel, to, seq, heard, items, _find_payload(header, 6, parts))


def _read_heard(header: list[Any], parts: Sequence[bytes]) -> Heard:
    _, channel, to, heard, next_seq, flags = header[:6]
    naturals(channel, to, heard, next_seq, flags)
    return Heard(channel, to, heard, next_seq, flags)


def _check_messages(first_seq: Any, count: Any, headers: Any) -> None:
    """``headers`` say by sequence number what messages have beside their bodies."""
    if not natural(count) or natural(first_seq) + count > MAX_SEQ:
        raise ProtocolError("no messages, or too many")
    if headers is None:
        return
    if type(headers) is not dict:
        raise ProtocolError("headers are maps by sequence number")
    for seq, each in headers.items():
        if not first_seq <= natural(seq) < first_seq + count:
            raise ProtocolError("headers of a message that is not there")
        fields.headers(each)


def _positions(value: Any) -> list[list[Any]]:
    """``[[topic, sequence number]...]``."""
    for topic, seq in map(array, array(value, "positions")):
        fields.text(topic, "topic", MAX_TOPIC)
        natural(seq)
    return value  # type: ignore[no-any-return]  # just checked


def _read_offers(header: list[Any], parts: Sequence[bytes]) -> Offers:
    _check_offers(header[2])
    return Offers(natural(header[1]), header[2])


def _check_offers(offers: Any) -> None:
    """``{kind: {name: details}}``, the details flat: whoever walks or prints offers may rely on it."""
    for kind, names in _map(offers).items():
        fields.text(kind, "kind of offer", MAX_NAME)
        for name, details in _map(names).items():
            fields.text(name, "name of an offer", MAX_QUEUE)
            for what, value in _map(details).items():
                fields.text(what, "detail of an offer", MAX_NAME)
                for each in value if type(value) is list else (value,):
                    if type(each) is str:
                        fields.text(each, "detail of an offer", MAX_QUEUE)
                    elif type(each) not in (bool, int, float, type(None)):
                        raise ProtocolError("details of an offer are texts, numbers, or arrays of these")


def _map(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise ProtocolError(f"offers are maps in maps, not {type(value).__name__}")
    return value


_READERS: dict[int, Any] = {
    HELLO: _read_hello,
    BYE: lambda header, parts: Bye(fields.text(header[1], "reason", MAX_NAME)),
    BEAT: lambda header, parts: Beat(),
    OFFERS: _read_offers,
    LANE: _read_lane,
    DATA: _read_data,
    CLOSE: lambda header, parts: Close(natural(header[1])),
    ACK: _read_ack,
    LOST: lambda header, parts: Lost(natural(header[1])),
    START: _read_start,
    PAST: _read_past,
    FORGOTTEN: lambda header, parts: Forgotten(
        fields.text(header[1], "topic", MAX_TOPIC), natural(header[2]), flag(header[3])
    ),
    BEACON: lambda header, parts: Beacon(_positions(header[1])),
    WANT: _read_want,
    LAG: lambda header, parts: Lag(natural(header[1]), _positions(header[2])),
    TALK: _read_talk,
    HEARD: _read_heard,
}
_WITH_BODIES: dict[type, int] = {Data: DATA, Talk: TALK, Past: PAST}
_PLAIN_KINDS: dict[type, int] = {
    Bye: BYE,
    Beat: BEAT,
    Offers: OFFERS,
    LaneState: LANE,
    Close: CLOSE,
    Ack: ACK,
    Lost: LOST,
    Start: START,
    Forgotten: FORGOTTEN,
    Beacon: BEACON,
    Want: WANT,
    Lag: LAG,
    Heard: HEARD,
}
