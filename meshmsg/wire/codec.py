"""MessagePack for bodies: encoded once at ``send``, decoded a batch at a time.

A body is None, a bool, an int of 64 bits, a float, a str, bytes, an aware datetime, or a list, tuple or dict of
bodies; dict keys are any of the scalars. Dataclasses, msgspec structs and pydantic models travel as what their own
library would send: mostly dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgpack

from meshmsg.errors import EncodeError, ProtocolError
from meshmsg.wire.large import LARGE_BYTES, LargeBody, LargePacker, join_large
from meshmsg.wire.models import to_plain
from meshmsg.wire.reading import ReadPayload, read_own

# The C packer and unpacker stop at 1024 levels; errors lead into a body this far, well within Python's own recursion.
MAX_DEPTH = 255

# What to send instead of common things that MessagePack lacks, by the name of the type or of one of its bases.
_INSTEAD = {
    "set": "list(value)",
    "frozenset": "list(value)",
    "generator": "list(value)",
    "Decimal": "str(value)",
    "UUID": "str(value)",
    "PurePath": "str(value)",
    "Enum": "value.value",
    "date": "value.isoformat()",
    "time": "value.isoformat()",
    "timedelta": "value.total_seconds()",
    "ndarray": "value.tolist()",
}


class PartialBatch(list[Any]):
    """A decoded batch that holds at least one ``Undecodable``; any other is a plain list."""


class Undecodable:
    """Stands in for a body that could not be decoded, so that one bad body never costs its batch."""

    __slots__ = ("error",)

    def __init__(self, error: str) -> None:
        self.error = error


def make_packer() -> Callable[[Any], bytes]:
    """Returns a function that encodes one body; not to be shared between threads.

    It raises whatever msgpack raises; ``explain_encode_error`` makes an ``EncodeError`` of that.

    >>> make_packer()([1, "a"])
    b'\\x92\\x01\\xa1a'
    """
    pack: Callable[[Any], bytes] = msgpack.Packer(default=to_plain, datetime=True, autoreset=True).pack
    return pack


def renew_packer(pack: Callable[[Any], bytes], size: int) -> Callable[[Any], bytes]:
    """What to encode with after a body of ``size`` bytes: after a large one, what does not copy large strings.

    That returns a ``LargeBody`` instead of bytes for what has any. It takes longer for small bodies, so it is given up
    again when it finds nothing. What ``make_packer`` and this did not make is left as it is.
    """
    packer = getattr(pack, "__self__", None)
    if isinstance(packer, msgpack.Packer):
        return pack if size < LARGE_BYTES else LargePacker().pack
    return make_packer() if isinstance(packer, LargePacker) and packer.is_idle else pack


def encode_batch(bodies: Sequence[bytes]) -> Any:
    """Joins encoded bodies into one MessagePack array; a single one is a payload as it is, as copies cost time.

    With a ``LargeBody`` among them it returns one, else bytes.
    """
    count = len(bodies)
    if count == 1:
        return bodies[0]
    if count < 16:
        header = bytes((0x90 | count,))
    elif count < 65536:
        header = b"\xdc" + count.to_bytes(2, "big")
    else:
        header = b"\xdd" + count.to_bytes(4, "big")
    try:
        return b"".join((header, *bodies))
    except TypeError:
        return join_large(header, bodies)


def decode_batch(payload: Any, count: int) -> list[Any]:
    """Decodes a batch of ``count`` bodies; a body that cannot be decoded becomes an ``Undecodable``.

    The payload is bytes, a view of them, or what ``read_payload`` makes of its pieces. Raises ``ProtocolError``
    when it is not an array of that many MessagePack values, or one value.
    """
    try:
        bodies: Any
        if type(payload) is bytes or type(payload) is memoryview:
            bodies = msgpack.unpackb(payload, strict_map_key=False, timestamp=3)
        else:
            bodies = _unpack_large(payload)
        if count == 1:
            return [bodies]
    except Exception:
        bodies = _decode_one_by_one(b"\x91" + bytes(payload) if count == 1 else bytes(payload), count)
    if not isinstance(bodies, list) or len(bodies) != count:
        raise ProtocolError(f"a batch announced {count} bodies and held {_describe(bodies)}")
    return bodies


def _unpack_large(payload: LargeBody | ReadPayload) -> Any:
    read = read_own(payload) if isinstance(payload, LargeBody) else payload
    return read.unpack() if isinstance(read, ReadPayload) else msgpack.unpackb(read, strict_map_key=False, timestamp=3)


def decode_body(encoded: bytes) -> Any:
    """Decodes one body, as the sender keeps it for its dead letters."""
    return decode_batch(encoded, 1)[0]


def explain_encode_error(body: Any, error: Exception) -> EncodeError:
    """Finds the value that made encoding fail, and says where it is and what to send instead."""
    path, value, reason = _find_unsendable(body, "body", ()) or ("body", body, str(error))
    return EncodeError(f"{path} cannot be sent: {reason} (value {_shorten(value)})", path)


def _why_unsendable(value: Any) -> str:
    if isinstance(value, datetime):
        return "a datetime needs a time zone, as in datetime.now(timezone.utc)"
    if isinstance(value, int):
        return "MessagePack carries integers of 64 bits; send str(value)"
    if isinstance(value, str):
        return "the text is not valid Unicode (a lone surrogate); send bytes, as of os.fsencode(value)"
    if isinstance(value, memoryview):
        return "a memoryview with gaps in it; send bytes(value)"
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    for base in type(value).__mro__:
        if base.__name__ in _INSTEAD:
            return f"MessagePack has no {name}; send {_INSTEAD[base.__name__]}"
    return f"MessagePack has no {name}; send a dict, list, str, bytes, number, bool, None or aware datetime"


def _find_unsendable(value: Any, path: str, above: tuple[int, ...]) -> tuple[str, Any, str] | None:
    """Walks depth first to the first value that fails by itself; ``above`` are the ids of what it is in."""
    if id(value) in above:
        return path, value, "it contains itself"
    if len(above) > MAX_DEPTH:
        return path, value, f"it is nested deeper than {MAX_DEPTH} levels"
    inside = (*above, id(value))
    if isinstance(value, dict):
        for key, item in value.items():
            place = f"{path} key {_shorten(key)}"
            found = _find_unsendable(key, place, inside) or _find_unsendable(item, f"{path}[{_shorten(key)}]", inside)
            if found is not None:
                return found
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            found = _find_unsendable(item, f"{path}[{index}]", inside)
            if found is not None:
                return found
    elif not _packs_alone(value):
        try:
            plain = to_plain(value)
        except TypeError:
            return path, value, _why_unsendable(value)
        except Exception as error:  # a model that fails to become a dict
            return path, value, f"{type(error).__name__}: {error}"
        if not isinstance(plain, dict):  # of a root model, or a struct that travels as an array
            return _find_unsendable(plain, path, inside)
        for name, item in plain.items():
            found = _find_unsendable(item, f"{path}.{name}", inside)
            if found is not None:
                return found
    return None


def _packs_alone(value: Any) -> bool:
    try:
        msgpack.packb(value, datetime=True)
    except Exception:
        return False
    return True


def _decode_one_by_one(payload: bytes, count: int) -> list[Any]:
    """The slow way after a failure: finds where each body begins and decodes them apart."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(payload) + 1, strict_map_key=False, timestamp=3)
    unpacker.feed(payload)
    bodies: list[Any] = []
    try:
        if unpacker.read_array_header() != count:
            raise ProtocolError(f"a batch announced {count} bodies and held another number")
        start = unpacker.tell()
        for _ in range(count):
            unpacker.skip()
            bodies.append(_decode_alone(payload[start : unpacker.tell()]))
            start = unpacker.tell()
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"a batch is not MessagePack: {str(error) or type(error).__name__}") from None
    if start != len(payload):
        raise ProtocolError(f"a batch has {len(payload) - start} bytes after its last body")
    return PartialBatch(bodies) if any(type(body) is Undecodable for body in bodies) else bodies


def _decode_alone(encoded: bytes) -> Any:
    try:
        return msgpack.unpackb(encoded, strict_map_key=False, timestamp=3)
    except TypeError:  # an array as a dict key; as tuples they are hashable (msgpack-python#703)
        try:
            return msgpack.unpackb(encoded, strict_map_key=False, timestamp=3, use_list=False)
        except Exception as error:
            return Undecodable(f"{type(error).__name__}: {error}")
    except Exception as error:
        return Undecodable(f"{type(error).__name__}: {error}")


def _describe(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else f"a {type(value).__name__}"


def _shorten(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."
