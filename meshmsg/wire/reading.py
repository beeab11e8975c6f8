"""Large byte strings in a body that arrives are copied once: out of ZeroMQ's memory, into the value itself.

MessagePack has no brackets that would have to be matched: a body is a row of heads, each with the bytes that belong to
it. So the large byte strings are found without decoding anything: each is put together from the pieces in which it
came, and what is left, with a mark in place of each string, is decoded as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from meshmsg.wire.large import BIN32, LARGE_BYTES, LargeBody

# So many heads are looked at; what is left of the payload is decoded as usual.
MAX_HEADS = 1024
# The type of the extension that stands for a large string, which has one byte. An application's own may have it, too;
# a text hardly ever has this byte.
_MARK_TYPE = 0x1F
_MARK = bytes((0xD4, _MARK_TYPE, 0))


def _measure_heads() -> tuple[list[int], list[int], list[int]]:
    """By first byte: how long a head is, how many bytes of it say how many follow, and how many follow anyway."""
    heads, lengths, bodies = [1] * 256, [0] * 256, [0] * 256
    for first in range(0xA0, 0xC0):  # a short text
        bodies[first] = first & 0x1F
    for first, width in ((0xC4, 1), (0xC5, 2), (BIN32, 4), (0xD9, 1), (0xDA, 2), (0xDB, 4)):  # bytes, texts
        heads[first], lengths[first] = 1 + width, width
    for first, width in ((0xC7, 1), (0xC8, 2), (0xC9, 4)):  # extensions, whose head has their type behind the length
        heads[first], lengths[first] = 2 + width, width
    for power, first in enumerate(range(0xD4, 0xD9)):  # extensions of a fixed size
        heads[first], bodies[first] = 2, 2**power
    for power, first in enumerate(range(0xCC, 0xD0)):  # numbers
        heads[first] = heads[first + 4] = 1 + 2**power
    heads[0xCA], heads[0xCB] = 5, 9
    for first in (0xDC, 0xDE):  # arrays and maps: what they have has heads of its own
        heads[first], heads[first + 1] = 3, 5
    return heads, lengths, bodies


_HEADS, _LENGTHS, _BODIES = _measure_heads()


class ReadPayload:
    """A payload without its large byte strings, and these. Its length and ``bytes`` are those of the payload itself."""

    __slots__ = ("_places", "_size", "_skeleton", "_strings")

    def __init__(self, skeleton: bytes, strings: Sequence[bytes | None], places: Sequence[int]) -> None:
        self._skeleton = skeleton
        self._strings = strings  # by mark; None where the application's own extension looks like one
        self._places = places  # of the marks in the skeleton
        self._size = len(skeleton) + sum(len(string) + 5 - len(_MARK) for string in strings if string is not None)

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        parts: list[Any] = []
        start = 0
        for string, place in zip(self._strings, self._places, strict=True):
            if string is not None:
                parts += (self._skeleton[start:place], bytes((BIN32,)), len(string).to_bytes(4, "big"), string)
                start = place + len(_MARK)
        return b"".join((*parts, self._skeleton[start:]))

    def unpack(self) -> Any:
        """The value. Raises whatever msgpack raises."""
        strings = iter(self._strings)

        def find(kind: int, data: bytes) -> Any:
            string = next(strings, None) if kind == _MARK_TYPE else None
            return string if string is not None else msgpack.ExtType(kind, data)

        return msgpack.unpackb(self._skeleton, strict_map_key=False, timestamp=3, ext_hook=find)


class _Sorter:
    """Goes over the pieces of one payload, and takes the large byte strings out of it."""

    __slots__ = ("_heads_left", "_left", "_rest", "_size", "_string", "_unread", "places", "strings")

    def __init__(self, size: int) -> None:
        self.strings: list[bytes | None] = []
        self.places: list[int] = []
        self._rest: list[Any] = []  # what is no large byte string, in parts
        self._size = 0  # of that
        self._unread = size
        self._left = 0  # bytes that belong to the last head
        self._string: list[Any] | None = None  # the parts of the large string that they are
        self._heads_left = MAX_HEADS

    def sort(self, pieces: Sequence[memoryview]) -> bytes:
        """Returns what is left."""
        head = b""  # begun in the piece before
        for piece in pieces:
            at = 0
            while at < len(piece):
                if self._left:
                    part = piece[at : at + self._left]
                    self._take(part)
                    at += len(part)
                    continue
                missing = _HEADS[head[0] if head else piece[at]] - len(head)
                head += piece[at : at + missing]
                at += missing
                if len(head) == _HEADS[head[0]]:
                    self._begin(head, self._unread - at)
                    head = b""
            self._unread -= len(piece)
        self._put(head)
        return b"".join(self._rest)

    def _begin(self, head: bytes, left: int) -> None:
        """Finds out what belongs to a head, behind which so many bytes are left."""
        first = head[0]
        length = int.from_bytes(head[1 : 1 + _LENGTHS[first]], "big") + _BODIES[first]
        self._heads_left -= 1
        if length > left or self._heads_left < 0:
            self._put(head)
            self._left = left
        elif first == BIN32 and length >= LARGE_BYTES:
            self._left, self._string = length, []
        else:
            if head[-1] == _MARK_TYPE and (0xC7 <= first <= 0xC9 or 0xD4 <= first <= 0xD8):
                self.places.append(self._size)
                self.strings.append(None)
            self._put(head)
            self._left = length

    def _take(self, part: memoryview) -> None:
        self._left -= len(part)
        if self._string is None:
            self._put(part)
            return
        self._string.append(part)
        if not self._left:
            self.places.append(self._size)
            self.strings.append(b"".join(self._string))
            self._string = None
            self._put(_MARK)

    def _put(self, part: bytes | memoryview) -> None:
        self._rest.append(part)
        self._size += len(part)


def read_payload(pieces: Sequence[Any]) -> bytes | ReadPayload:
    """A payload that came in pieces; plain bytes if there are no large byte strings in it.

    >>> bytes(read_payload([b"[1", b", 2]"]))
    b'[1, 2]'
    """
    views = [memoryview(piece) for piece in pieces]
    sorter = _Sorter(sum(map(len, views)))
    skeleton = sorter.sort(views)
    return ReadPayload(skeleton, sorter.strings, sorter.places) if sorter.strings else skeleton


def read_own(body: LargeBody) -> bytes | ReadPayload:
    """What this process sent to itself: its large byte strings are the very objects that the application sent."""
    skeleton = bytearray()
    places = []
    for index, part in enumerate(body.parts):
        if index in body.strings:
            del skeleton[-5:]  # its head
            places.append(len(skeleton))
            skeleton += _MARK
        else:
            skeleton += part
    # Something else that looks like a mark, if it is one, has to be counted. That is rare enough to be slow.
    if skeleton.count(_MARK_TYPE) > len(places):
        return read_payload([bytes(body)])
    return ReadPayload(bytes(skeleton), [body.parts[index] for index in body.strings], places)
