"""Large byte strings in a body are not copied: what is sent, and kept to be sent again, is the application's own.

In MessagePack a byte string is a head and then the bytes as they are. So an encoded body can be a list of parts that
follow one another: what was encoded up to a large byte string, that string, what comes then.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Sized
from typing import Any

import msgpack

from meshmsg.wire.models import to_plain

# From this size on. A smaller one costs less to copy than to send apart.
LARGE_BYTES = 2**16

# A body is searched so deep, in dicts, lists and tuples, and no more than so many items; the rest is encoded as usual.
MAX_LEVELS = 4
MAX_ITEMS = 256

# After so many bodies in a row without a large string the next are not searched.
PATIENCE = 16

BIN32, STR32 = 0xC6, 0xDB


class LargeBody:
    """An encoded body in parts. It has a length, and ``bytes`` of it are what the parts are together.

    ``strings`` are the indexes of the parts that are large byte strings; the part before each ends with its head.
    """

    __slots__ = ("_size", "parts", "strings")

    def __init__(self, parts: Sequence[bytes], strings: Collection[int] = ()) -> None:
        self.parts = parts
        self.strings = strings
        self._size = sum(map(len, parts))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def cut(self, size: int) -> list[memoryview]:
        """As ``cut``; only what lies in two parts is copied."""
        pieces: list[memoryview] = []
        begun = b""  # of a piece, in the parts before
        for part in self.parts:
            view = memoryview(part)
            if begun:
                missing = size - len(begun)
                begun += view[:missing]
                view = view[missing:]
                if len(begun) < size:
                    continue
                pieces.append(memoryview(begun))
            *whole, rest = cut(view, size)
            pieces += whole
            begun = bytes(rest)
        pieces.append(memoryview(begun))
        return pieces


def cut(payload: bytes | memoryview | LargeBody, size: int) -> list[memoryview]:
    """Stretches of ``size`` bytes, and the rest, which is shorter and maybe empty.

    >>> [bytes(piece) for piece in cut(LargeBody([b"abc", b"defgh"]), 2)]
    [b'ab', b'cd', b'ef', b'gh', b'']
    """
    if isinstance(payload, LargeBody):
        return payload.cut(size)
    view = memoryview(payload)
    return [view[start : start + size] for start in range(0, len(view) + 1, size)]


def join_large(header: bytes, bodies: Sequence[bytes | LargeBody]) -> LargeBody:
    """Bodies one behind the other, without copying them."""
    parts = [header]
    strings: list[int] = []
    for body in bodies:
        if isinstance(body, LargeBody):
            strings += [len(parts) + index for index in body.strings]
            parts += body.parts
        else:
            parts.append(body)
    return LargeBody(parts, strings)


class LargePacker:
    """Encodes bodies that may have large strings in them, for one socket.

    Not in one go, as ``make_packer``'s does: if another thread changes the body meanwhile, each dict, list and tuple in
    it is as it was at one moment.
    """

    def __init__(self) -> None:
        self._plain = _make_packer(autoreset=True).pack
        self._packer = _make_packer()
        self._parts: list[bytes] = []
        self._strings: list[int] = []
        self._left = 0  # items that may yet be searched
        self._misses = 0  # bodies in a row without a large string

    @property
    def is_idle(self) -> bool:
        """Whether it finds nothing any more."""
        return self._misses >= PATIENCE

    def pack(self, body: Any) -> Any:
        """The encoded body: ``bytes``, or a ``LargeBody``. Raises whatever msgpack raises."""
        if not self.is_idle:
            return self._search(body)
        encoded = self._plain(body)
        if len(encoded) >= LARGE_BYTES:
            self._misses = 0
            self._plain = _make_packer(autoreset=True).pack
        return encoded

    def _search(self, body: Any) -> bytes | LargeBody:
        self._left = MAX_ITEMS
        try:
            self._add(body, 0)
            self._parts.append(self._take())
            parts, strings = self._parts, self._strings
        finally:
            self._parts, self._strings = [], []
            self._packer.reset()
        if len(parts) == 1:
            self._misses += 1
            return parts[0]
        self._misses = 0
        return LargeBody(parts, strings)

    def _add(self, value: Any, level: int) -> None:
        kind = type(value)
        if (kind is bytes or kind is str) and len(value) >= LARGE_BYTES:
            first, string = (BIN32, value) if kind is bytes else (STR32, value.encode())
            if kind is bytes:
                self._strings.append(len(self._parts) + 1)
            self._parts += (self._take() + bytes((first,)) + len(string).to_bytes(4, "big"), string)
        elif kind is dict and self._is_searched(value, level):
            items = tuple(value.items())  # another thread must not change how many there are
            self._packer.pack_map_header(len(items))
            for key, item in items:
                self._packer.pack(key)
                self._add(item, level + 1)
        elif (kind is list or kind is tuple) and self._is_searched(value, level):
            items = tuple(value)
            self._packer.pack_array_header(len(items))
            for item in items:
                self._add(item, level + 1)
        else:
            self._packer.pack(value)

    def _is_searched(self, value: Sized, level: int) -> bool:
        if level == MAX_LEVELS or len(value) > self._left:
            return False
        self._left -= len(value)
        return True

    def _take(self) -> bytes:
        """What was encoded since the last time. A packer keeps its buffer, so one that grew large is left behind."""
        encoded: bytes = self._packer.bytes()
        if len(encoded) < LARGE_BYTES:
            self._packer.reset()
        else:
            self._packer = _make_packer()
        return encoded


def _make_packer(*, autoreset: bool = False) -> Any:
    # A buffer that grows with what it gets: each thread of the blocking face has such packers, for each of its sockets.
    return msgpack.Packer(default=to_plain, datetime=True, autoreset=autoreset, buf_size=4096)
