"""What an annotation means: aliases are resolved, types found that nobody can send, or that contain themselves."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import NoneType, UnionType
from typing import Annotated, Any, ForwardRef, NamedTuple, TypeVar, Union, get_args, get_origin

from meshmsg.errors import ConfigurationError

# What the wire carries as it is, or as what it is derived from: a StrEnum is a str.
_CARRIED = (bool, int, float, str, bytes, bytearray, datetime, list, tuple, dict)
# What it does not carry, and what to annotate instead; by the first part of the module, and the name.
_INSTEAD = {
    ("builtins", "set"): "list",
    ("builtins", "frozenset"): "list",
    ("builtins", "complex"): "list[float]",
    ("builtins", "range"): "list[int]",
    ("collections", "Set"): "list",
    ("collections", "deque"): "list",
    ("datetime", "date"): "datetime or str",
    ("datetime", "time"): "str",
    ("datetime", "timedelta"): "float",
    ("decimal", "Decimal"): "str",
    ("enum", "Enum"): "a StrEnum, an IntEnum or a Literal",
    ("fractions", "Fraction"): "str",
    ("numpy", "ndarray"): "list[float]",
    ("pathlib", "PurePath"): "str",
    ("uuid", "UUID"): "str",
}
MAX_WANTED = 100
MAX_PATH = 120
_TRANSPARENT: tuple[Any, ...] = (Union, UnionType, Annotated)  # around a value that stays what it is

_MODULES = re.compile(r"'[^']*'|\"[^\"]*\"|(?:(?:[A-Za-z_]\w*|<locals>)\.)+(?=\w)")


def describe_type(annotation: Any) -> str:
    """An annotation as one would write it, without modules."""
    if annotation is NoneType:
        return "None"
    if isinstance(annotation, str):
        return annotation
    text = annotation.__qualname__ if isinstance(annotation, type) else repr(annotation)
    return _MODULES.sub(lambda found: found[0] if found[0][0] in "'\"" else "", text)


def shorten(text: str, most: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def shorten_path(path: str) -> str:
    """The way to a value inside of others, without the middle if it is long."""
    return path if len(path) <= MAX_PATH else f"{path[: MAX_PATH // 2]} ... {path[5 - MAX_PATH // 2 :]}"


def simplify(annotation: Any, strip: bool = False, aliases: list[Any] | None = None) -> Any:
    """Resolves aliases, NewTypes and type variables, and strips metadata that constrains nothing.

    Aliases on the way are added to ``aliases``.
    """
    while True:
        if annotation is None:
            return NoneType
        if get_origin(annotation) is Annotated:
            if not strip and any(rules_of(each) for each in annotation.__metadata__):
                return annotation
            annotation = annotation.__origin__
        elif isinstance(annotation, TypeVar):
            annotation = annotation.__bound__ or Any
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif _is_alias(annotation):
            if aliases is not None:
                aliases.append(annotation)
            annotation = annotation.__value__
        elif annotation is typing.LiteralString:
            return str
        else:
            return annotation


def rules_of(metadata: Any) -> str | None:
    """Which library a piece of metadata in ``Annotated`` speaks to; None if neither."""
    library = type(metadata).__module__.partition(".")[0]
    if library in ("pydantic", "annotated_types"):
        return "pydantic"
    return "msgspec" if library == "msgspec" else None


# --- what contains itself ---------------------------------------------------------------------------------------


class Loop(NamedTuple):
    """A type alias that contains itself."""

    alias: Any
    has_end: bool  # a list or dict is in between, which may be empty


def _is_alias(annotation: Any) -> bool:
    return type(annotation).__name__ == "TypeAliasType"  # since Python 3.12, and of typing_extensions


def find_loop(annotation: Any) -> Loop | None:
    """An alias of an annotation that contains itself, if there is one: the worst of them."""
    loops = list[Loop]()
    _collect_loops(annotation, {}, set(), loops)
    return min(loops, key=lambda loop: loop.has_end, default=None)


def _collect_loops(annotation: Any, above: dict[Any, bool], seen: set[Any], loops: list[Loop]) -> None:
    """``above`` has the aliases that this is inside of, with whether a list or dict is between it and this."""
    alias = annotation if _is_alias(annotation) else get_origin(annotation)
    if _is_alias(alias):
        way = (alias, frozenset(each for each, has_end in above.items() if not has_end))
        if alias in above:
            loops.append(Loop(alias, above[alias]))
        elif way not in seen:
            seen.add(way)
            _collect_loops(alias.__value__, {**above, alias: False}, seen, loops)
        return
    if isinstance(annotation, (TypeVar, typing.NewType)):
        inside = annotation.__bound__ if isinstance(annotation, TypeVar) else annotation.__supertype__
        _collect_loops(inside, above, seen, loops)
        return
    origin: Any = get_origin(annotation) or annotation
    if origin is typing.Literal:
        return
    if origin not in _TRANSPARENT:
        above = dict.fromkeys(above, True)
    for each in get_args(annotation):
        _collect_loops(each, above, seen, loops)
    if isinstance(origin, type) and origin not in seen:
        seen.add(origin)
        for each in _list_fields(origin).values():  # a model may well contain itself: libraries know it by its name
            _collect_loops(each, {}, seen, loops)


def require_end(annotation: Any, loop: Loop | None, where: str) -> None:
    """Raises for an alias that is nothing but itself."""
    if loop is not None and not loop.has_end:
        raise ConfigurationError(
            f"{where} is annotated {shorten(describe_type(annotation), MAX_WANTED)}, and the alias "
            f"{describe_type(loop.alias)} contains itself without a list or dict in between: it has no end"
        )


def find_reference(annotation: Any) -> str | None:
    """A name within an annotation that stayed a text, as that of a list that contains itself does."""
    if get_origin(annotation) is typing.Literal:
        return None
    if isinstance(annotation, (str, ForwardRef)):
        return annotation if isinstance(annotation, str) else annotation.__forward_arg__
    found = (find_reference(each) for each in get_args(annotation))
    return next((name for name in found if name is not None), None)


# --- what is no type of a value -----------------------------------------------------------------------------------

_NEVER = (typing.Never, typing.NoReturn)


def is_never(annotation: Any) -> bool:
    """Whether a method says by this result that it only raises."""
    return simplify(annotation, True) in _NEVER


def require_values(annotation: Any, where: str) -> None:
    """Raises where no value fits (``Never``, ``NoReturn``), or only Python knows which (``Self``).

    Fields of models are their library's to judge, where ``Self`` is the model.
    """
    found = _find_valueless(annotation, set())
    if found is None:
        return
    reason = "no value is one" if found in _NEVER else "which class that is says nothing over the wire"
    raise ConfigurationError(
        f"{where} is annotated {shorten(describe_type(annotation), MAX_WANTED)}, and {describe_type(found)} can come "
        f"from nobody: {reason}; annotate what comes, or leave the annotation out"
    )


def _find_valueless(annotation: Any, seen: set[Any]) -> Any:
    aliases = list[Any]()
    annotation = simplify(annotation, True, aliases)
    if not seen.isdisjoint(aliases):
        return None
    seen.update(aliases)
    if annotation in (*_NEVER, typing.Self):
        return annotation
    if get_origin(annotation) is typing.Literal:
        return None
    found = (_find_valueless(each, seen) for each in get_args(annotation))
    return next((each for each in found if each is not None), None)


# --- what nobody can send ---------------------------------------------------------------------------------------


def require_sendable(annotation: Any, where: str) -> None:
    """Raises if a value of this type, or of one inside of it, cannot be encoded."""
    found = _find_unsendable(annotation, "", set())
    if found is None:
        return
    name, place, instead = found
    inside = f", with {name} in {place}" if place else ""
    raise ConfigurationError(
        f"{where} is annotated {shorten(describe_type(annotation), MAX_WANTED)}{inside}: MessagePack has no {name}, "
        f"so nobody can send it over the wire; annotate {instead} instead"
    )


def _find_unsendable(annotation: Any, place: str, seen: set[Any]) -> tuple[str, str, str] | None:
    """The first type that cannot be encoded: its name, the field that it is in, and what to take instead."""
    if any(_is_serializer(each) for each in getattr(annotation, "__metadata__", ())):
        return None
    aliases = list[Any]()
    annotation = simplify(annotation, True, aliases)
    if not seen.isdisjoint(aliases):
        return None  # it is inside of itself, or was looked at before
    seen.update(aliases)
    origin = get_origin(annotation) or annotation
    is_literal = get_origin(annotation) is typing.Literal
    inner = [type(each) if is_literal else each for each in get_args(annotation)]
    if isinstance(origin, type):
        instead = _find_instead(origin)
        if instead is not None:
            return origin.__name__, place, instead
    for each in inner:
        found = _find_unsendable(each, place, seen)
        if found is not None:
            return found
    if isinstance(origin, type) and origin not in seen:
        seen.add(origin)
        for name, each in _list_fields(origin).items():
            found = _find_unsendable(each, f"{origin.__name__}.{name}", seen)
            if found is not None:
                return found
    return None


def _find_instead(kind: type) -> str | None:
    """What to annotate instead of a type; None if it can be encoded, as far as one can tell."""
    for base in kind.__mro__:
        if base in _CARRIED:
            return None
        instead = _INSTEAD.get((base.__module__.partition(".")[0], base.__qualname__))
        if instead is not None:
            return instead
    return None


def _list_fields(kind: type) -> Mapping[str, Any]:
    """The annotations of what travels of a model; none of one that says itself how it is written."""
    names: Iterable[str]
    if dataclasses.is_dataclass(kind):
        names = [each.name for each in dataclasses.fields(kind)]
    elif hasattr(kind, "__struct_fields__"):
        names = kind.__struct_fields__
    elif hasattr(kind, "model_dump"):
        return _list_pydantic_fields(kind)
    elif typing.is_typeddict(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        names = kind.__annotations__
    else:
        return {}
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception:  # a field's type that is not defined; who converts will say so
        return {}
    return {name: hints[name] for name in names if name in hints}


def _list_pydantic_fields(kind: Any) -> Mapping[str, Any]:
    decorators = getattr(kind, "__pydantic_decorators__", None)  # pydantic is not imported here
    if decorators is None or decorators.field_serializers or decorators.model_serializers:
        return {}
    if kind.model_config.get("use_enum_values") or not kind.model_dump.__module__.startswith("pydantic."):
        return {}
    return {
        name: field.annotation
        for name, field in kind.model_fields.items()
        if not field.exclude and not any(_is_serializer(each) for each in field.metadata)
    }


def _is_serializer(metadata: Any) -> bool:
    """Whether a piece of metadata in ``Annotated`` makes pydantic write something else."""
    return type(metadata).__module__ == "pydantic.functional_serializers"
