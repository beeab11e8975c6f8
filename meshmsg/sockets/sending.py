"""What sending is in either face: encoding, checking, and the ids of what was sent."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, overload

from meshmsg.checks import require_int, require_number
from meshmsg.engine.run import Details
from meshmsg.errors import BodyTooLarge, ConfigurationError, EncodeError
from meshmsg.wire.codec import decode_body, explain_encode_error

MAX_PRIORITY = 255
Pack = Callable[[Any], bytes]


class MessageIds(Sequence[str]):
    """The ids of many messages, made when somebody looks at them."""

    def __init__(self, prefix: str, numbers: list[range]) -> None:
        self._prefix = prefix
        self._numbers: list[range] = []
        self._ends: list[int] = []  # how many ids there are up to the end of each range
        for each in numbers:
            self.append(each)

    def append(self, numbers: range) -> None:
        """Adds what was accepted next."""
        count = len(self) + len(numbers)
        if self._numbers and self._numbers[-1].stop == numbers.start:
            self._numbers[-1] = range(self._numbers[-1].start, numbers.stop)
            self._ends[-1] = count
        elif numbers:
            self._numbers.append(numbers)
            self._ends.append(count)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[str]:
        return (f"{self._prefix}{number}" for numbers in self._numbers for number in numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        wanted = range(len(self))[index]  # what a list of that length would take
        if isinstance(wanted, range):
            return [self._find(place) for place in wanted]
        return self._find(wanted)

    def __repr__(self) -> str:
        return f"<MessageIds {self[0]!r} to {self[-1]!r}: {len(self)}>" if self else "<MessageIds: 0>"

    def _find(self, place: int) -> str:
        which = bisect_right(self._ends, place)
        numbers = self._numbers[which]
        return f"{self._prefix}{numbers[place - self._ends[which]]}"


def note_accepted(error: BaseException, ids: MessageIds) -> None:
    """Has what ended a ``send_many`` tell which messages were accepted before, and so are on their way."""
    if ids:
        error.accepted = ids  # type: ignore[attr-defined]  # MeshError has it, and others can have it
        error.add_note(f"{len(ids)} messages of this send_many were accepted before: the ids are in `accepted`")


def encode(pack: Pack, body: Any) -> bytes:
    """One body as it travels; raises ``EncodeError`` with the path to what cannot."""
    try:
        return pack(body)
    except Exception as error:
        raise explain_encode_error(body, error) from None


def encode_all(pack: Pack, bodies: Sequence[Any], offset: int) -> list[bytes]:
    """Many bodies; the path in an ``EncodeError`` begins with the index, counted from ``offset``."""
    try:
        return list(map(pack, bodies))
    except Exception:
        for index, body in enumerate(bodies):
            try:
                encode(pack, body)
            except EncodeError as error:
                path = f"bodies[{offset + index}]{error.path.removeprefix('body')}"
                raise EncodeError(str(error).replace(error.path, path, 1), path) from None
        raise


def encode_parts(pack: Pack, bodies: Iterable[Any], most: int) -> Iterator[list[bytes]]:
    """Many bodies in parts of at most ``most``: a list or tuple is encoded before the first, an iterator as it goes."""
    if isinstance(bodies, (list, tuple)):
        encoded = encode_all(pack, bodies, 0)
        if 0 < len(encoded) <= most:
            yield encoded
            return
        for start in range(0, len(encoded), most):
            yield encoded[start : start + most]
        return
    source = iter(bodies)
    count = 0
    while part := list(islice(source, most)):
        yield encode_all(pack, part, count)
        count += len(part)


def require_size(encoded: bytes, queue: str, limit: int, option: str = "") -> None:
    """Raises ``BodyTooLarge`` for a body over ``limit`` bytes; ``option`` is the socket's own that limits them, too."""
    if len(encoded) > limit:
        options = f"the lesser of Node(max_message_bytes=) and {option}" if option else "Node(max_message_bytes=)"
        raise BodyTooLarge(
            f"a body of {len(encoded)} bytes for {queue!r}; the limit is {limit}, {options}: "
            "raise it on both sides, or send a reference"
        )


def freeze_headers(pack: Pack, headers: Mapping[str, Any]) -> dict[str, Any]:
    """Headers as they are now: a copy that later changes cannot reach, and that is known to travel."""
    if not isinstance(headers, Mapping) or not all(isinstance(name, str) for name in headers):
        raise ConfigurationError(f"send(headers=) takes a dict with str keys, got {headers!r}")
    try:
        packed = encode(pack, dict(headers))
    except EncodeError as error:
        path = error.path.replace("body", "headers", 1)
        raise EncodeError(str(error).replace(error.path, path, 1), path) from None
    frozen = decode_body(packed)
    if not isinstance(frozen, dict):
        raise EncodeError("headers cannot be sent: a consumer could not decode them", "headers")
    return frozen


def make_details(
    pack: Pack,
    key: str | None,
    priority: int,
    ttl: float | None,
    delay: float | None,
    headers: Mapping[str, Any] | None,
    now: float,
) -> Details:
    """Checks what ``send`` was told beside the body; raises ``ConfigurationError`` or ``EncodeError``."""
    if key is not None and not isinstance(key, str):
        raise ConfigurationError(f"send(key=) takes a str, not {type(key).__name__} {key!r}: key=str(...)")
    require_int("send(priority=)", priority, at_least=0)
    if priority > MAX_PRIORITY:
        raise ConfigurationError(f"send(priority=) takes 0 to {MAX_PRIORITY}, got {priority}")
    for name, seconds in (("ttl", ttl), ("delay", delay)):
        if seconds is not None:
            require_number(f"send({name}=)", seconds, at_least=0)
    if headers is not None:
        headers = freeze_headers(pack, headers)
    return Details(
        key,
        priority,
        headers or None,
        None if ttl is None else now + ttl,
        None if delay is None else now + delay,
    )
