"""What models travel as: dataclasses, msgspec structs and pydantic models, without importing what defines them."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any


def to_plain(value: Any) -> Any:
    """Models travel as what becomes the same model again; models in them may stay what they are, as they come next."""
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        serializer = vars(kind).get("__pydantic_serializer__")
        if serializer is not None:
            return serializer.to_python(value, by_alias=True, round_trip=True)
        return _leave_out_unset({each.name: getattr(value, each.name) for each in dataclasses.fields(value)})
    if hasattr(kind, "__struct_encode_fields__") and not isinstance(value, type):
        return _write_struct(value)
    if hasattr(kind, "__pydantic_serializer__"):
        # Asked for what can be read again, pydantic leaves out computed fields, which no model takes.
        return value.model_dump(mode="python", by_alias=True, round_trip=True)
    if hasattr(kind, "model_dump"):
        return value.model_dump(mode="python")
    raise TypeError(f"{kind.__name__} is no model")


def _write_struct(struct: Any) -> Any:
    """One level of what msgspec writes: names as they are renamed, with its tag, and an array if it is array_like."""
    config = struct.__struct_config__
    values = [getattr(struct, name) for name in struct.__struct_fields__]
    if config.array_like:
        return values if config.tag is None else [config.tag, *values]
    plain = dict(zip(struct.__struct_encode_fields__, values, strict=True))
    if config.omit_defaults:
        defaults = struct.__struct_defaults__  # of the last fields
        names = struct.__struct_encode_fields__[len(values) - len(defaults) :]
        for name, default in zip(names, defaults, strict=True):
            if _is_default(plain[name], default):
                del plain[name]
    plain = _leave_out_unset(plain)
    return plain if config.tag is None else {config.tag_field: config.tag, **plain}


def _is_default(value: Any, default: Any) -> bool:
    """As msgspec tells it: by identity, or both an empty list, dict or set."""
    return value is default or (type(value) in (list, dict, set) and not value and _factory_of(default) is type(value))


def _factory_of(default: Any) -> Any:
    return getattr(default, "factory", None)


def _leave_out_unset(plain: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that hold msgspec's UNSET."""
    msgspec = sys.modules.get("msgspec")  # who has a value of it has imported it
    if msgspec is None:
        return plain
    unset = getattr(msgspec, "UNSET", None)
    for value in plain.values():
        if value is unset and unset is not None:
            return {name: value for name, value in plain.items() if value is not unset}
    return plain
