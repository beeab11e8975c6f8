"""What a group wants: topics, and headers that messages must have. Each such binding is a queue of its own (G7)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from meshmsg.checks import GROUP_PREFIX, find_group_fault
from meshmsg.engine.topics import find_fault
from meshmsg.errors import ProtocolError
from meshmsg.wire.fields import has_controls

Scalar: TypeAlias = str | int | float | bool
Where: TypeAlias = tuple[tuple[str, Scalar], ...]


class Binding(NamedTuple):
    """A group's topics. Members that ask for the same share the work; any difference makes another queue.

    >>> Binding("billing", "orders.**", (("region", "eu"),)).queue
    'group:billing{"region":"eu"}@orders.**'
    """

    group: str
    pattern: str
    where: Where = ()

    @property
    def queue(self) -> str:
        """The name of its queue at every publisher, and of its members' offers."""
        # A group's name has neither '{' nor '@', and JSON says itself where it ends: no two bindings share a name.
        return f"{GROUP_PREFIX}{self.group}{self._condition()}@{self.pattern}"

    def _condition(self) -> str:
        # In ASCII, where DEL is the one control character that JSON leaves as it is.
        return json.dumps(dict(self.where), separators=(",", ":")).replace("\x7f", "\\u007f") if self.where else ""

    def describe(self, *, durable: bool) -> dict[str, Any]:
        """The details of a member's offer."""
        said: dict[str, Any] = {"group": self.group, "pattern": self.pattern}
        if durable:
            said["durable"] = True
        if self.where:
            flat = [each for pair in self.where for each in pair]
            steers = any(isinstance(each, str) and has_controls(each) for each in flat)
            said["where"] = self._condition() if steers else flat  # no text in an offer has control characters
        return said


def freeze_where(where: Mapping[str, Scalar] | None) -> Where:
    """The same condition, in whatever order it was written."""
    return tuple(sorted(where.items())) if where else ()


def read_binding(name: str, details: Mapping[str, Any]) -> Binding:
    """What a peer's offer says. Raises ``ProtocolError`` unless its name is made of its details (G11)."""
    group, pattern = details.get("group"), details.get("pattern")
    fault = find_group_fault(group) or find_fault(pattern, pattern=True)
    if fault is not None:
        raise ProtocolError(f"an offer of kind group with a wrong group or pattern: {fault}")
    assert isinstance(group, str) and isinstance(pattern, str)
    binding = Binding(group, pattern, freeze_where(_read_where(details.get("where", []))))
    if binding.queue != name:
        raise ProtocolError("an offer of kind group whose name is not that of its group, condition and pattern")
    return binding


def _read_where(told: Any) -> dict[str, Scalar]:
    pairs: Any = None
    if type(told) is str:
        try:
            pairs = json.loads(told)
        except (ValueError, RecursionError):
            pass
    elif type(told) is list and not len(told) % 2 and all(type(each) is str for each in told[::2]):
        pairs = dict(zip(told[::2], told[1::2], strict=True))
    if type(pairs) is not dict or any(type(each) not in (str, int, float, bool) for each in pairs.values()):
        raise ProtocolError("an offer of kind group with a condition that is no list of names and values")
    return pairs


def fulfils(headers: Mapping[str, Any] | None, where: Iterable[tuple[str, Scalar]]) -> bool:
    """Whether headers hold all that is asked for; true and 1 are two things.

    >>> fulfils({"region": "eu", "n": 1}, [("region", "eu")]), fulfils({"n": 1}, [("n", True)]), fulfils(None, [])
    (True, False, True)
    """
    for name, value in where:
        if headers is None or name not in headers:
            return False
        found = headers[name]
        if found != value or isinstance(found, bool) is not isinstance(value, bool):
            return False
    return True
