"""What a group wants: topics, and headers that messages must have. Each such binding is a queue of its own (G7)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from meshmsg.checks import GROUP_PREFIX, find_group_fault
from meshmsg.engine.topics import find_fault
from meshmsg.errors import ProtocolError

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
        condition = json.dumps(dict(self.where), separators=(",", ":")) if self.where else ""
        return f"{GROUP_PREFIX}{self.group}{condition}@{self.pattern}"

    def describe(self, *, durable: bool) -> dict[str, Any]:
        """The details of a member's offer."""
        said: dict[str, Any] = {"group": self.group, "pattern": self.pattern}
        if durable:
            said["durable"] = True
        if self.where:
            said["where"] = [each for pair in self.where for each in pair]
        return said


def freeze_where(where: Mapping[str, Scalar] | None) -> Where:
    """The same condition, in whatever order it was written."""
    return tuple(sorted(where.items())) if where else ()


def read_binding(name: str, details: Mapping[str, Any]) -> Binding:
    """What a peer's offer says. Raises ``ProtocolError`` unless its name is made of its details (G11)."""
    group, pattern, flat = details.get("group"), details.get("pattern"), details.get("where", [])
    fault = find_group_fault(group) or find_fault(pattern, pattern=True)
    if fault is not None:
        raise ProtocolError(f"an offer of kind group with a wrong group or pattern: {fault}")
    if type(flat) is not list or len(flat) % 2 or any(type(each) is not str for each in flat[::2]):
        raise ProtocolError("an offer of kind group with a condition that is no list of names and values")
    pairs = dict(zip(flat[::2], flat[1::2], strict=True))
    if None in pairs.values():
        raise ProtocolError("an offer of kind group with a condition without a value")
    assert isinstance(group, str) and isinstance(pattern, str)
    binding = Binding(group, pattern, freeze_where(pairs))
    if binding.queue != name:
        raise ProtocolError("an offer of kind group whose name is not that of its group, condition and pattern")
    return binding


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
