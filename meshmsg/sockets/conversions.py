"""Values against annotations: what a method's arguments become, and whether its results are what it promised.

What MessagePack carries (numbers, texts, bytes, lists, dicts, datetimes, None) and unions, lists and dicts of that are
checked here, strictly: ``"2"`` is no int, and neither is True; an int becomes a float where one is wanted. Everything
else is msgspec's to convert (dataclasses, structs, tuples, enums of texts or numbers, ...), or pydantic's, if it is a
pydantic model, holds one, or carries pydantic's constraints.

Both libraries would also make sets, UUIDs or dates of what comes, which nobody can send: those are refused.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import itertools
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import NoneType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from meshmsg.errors import ConfigurationError, MissingExtra

_SIMPLE = (NoneType, bool, int, float, str, bytes, datetime)
_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
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
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_UNCHECKED = (Any, object, typing.NoReturn, typing.Never, typing.Self)
_MAX_WANTED = 100
_MAX_VALUE = 100
_MAX_REASON = 300

_MODULES = re.compile(r"'[^']*'|\"[^\"]*\"|(?:(?:[A-Za-z_]\w*|<locals>)\.)+(?=\w)")
_MSGSPEC_PLACE = re.compile(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_MSGSPEC_TYPES = re.compile(r"Expected `(.+)`, got `(.+)`")


class _Brief(reprlib.Repr):
    """Looks at the beginning of a value only, whatever a caller sent."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = 60

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:  # the library's own sorts all keys first
        if level <= 0:
            return "{...}"
        shown = itertools.islice(x.items(), self.maxdict)
        texts = [f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for key, value in shown]
        return "{" + ", ".join([*texts, *(["..."] if len(x) > self.maxdict else [])]) + "}"


_brief = _Brief()


class Misfit(ValueError):
    """A value does not fit: ``path`` leads to what is wrong in it, ``text`` says what; "" if it is of another type."""

    def __init__(self, path: str = "", text: str = "") -> None:
        super().__init__(path, text)
        self.path = path
        self.text = text

    def explain(self, name: str) -> str:
        """What is wrong inside of the value called ``name``; "" if it is of another type altogether."""
        text = f"{name}{self.path}{self.text}" if self.text else ""
        return _shorten(text, _MAX_REASON)


@dataclasses.dataclass(slots=True, eq=False)
class Check:
    """One annotation: a value of one of the types ``exact`` fits as it is, any other goes through ``convert``.

    ``convert`` returns the value that the method gets, or raises ``Misfit``.
    """

    wanted: str
    exact: frozenset[type]
    convert: Callable[[Any], Any]

    def all_fit(self, values: Iterable[Any]) -> bool:
        """Whether values fit without a look at each of them: in C, however many they are."""
        return self is ANYTHING or self.exact.issuperset(map(type, values))


_NONE_EXACT: frozenset[type] = frozenset()
ANYTHING = Check("Any", _NONE_EXACT, lambda value: value)


def make_argument_check(annotation: Any, where: str) -> Check | None:
    """Returns how values become what is annotated; None if everything fits.

    Raises ``MissingExtra`` when the library for it is not installed, ``ConfigurationError`` for what nothing that
    comes over the wire could become, or no caller could send; ``where`` names the argument in them.
    """
    _require_sendable(annotation, where)
    check = _make_native(annotation, lenient=False)
    if check is None:
        wanted = _shorten(describe_type(annotation), _MAX_WANTED)
        check = Check(wanted, _NONE_EXACT, _make_library(_simplify(annotation), where))
    return None if check is ANYTHING else check


def make_result_check(annotation: Any, where: str) -> Check | None:
    """Returns a check that what a method returns is what it promised; None if it promised nothing that can be told.

    It converts nothing: models travel as dicts anyway. It is lenient where Python's own types are, and where they are
    not, with what becomes the same on the wire. Raises ``ConfigurationError`` for what cannot be sent.
    """
    _require_sendable(annotation, where)
    check = _make_native(annotation, lenient=True)
    return None if check is ANYTHING else check


def describe_type(annotation: Any) -> str:
    """An annotation as one would write it, without modules."""
    if annotation is NoneType:
        return "None"
    if isinstance(annotation, str):
        return annotation
    text = annotation.__qualname__ if isinstance(annotation, type) else repr(annotation)
    return _MODULES.sub(lambda found: found[0] if found[0][0] in "'\"" else "", text)


def describe_value(value: Any) -> str:
    """What came, for error messages: its type, and its beginning."""
    if value is None:
        return "None"
    try:
        text = f"{type(value).__name__} {_brief.repr(value)}"
    except Exception:  # a __repr__ of its own that fails
        return type(value).__name__
    return _shorten(text, _MAX_VALUE)


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


# --- without any library ----------------------------------------------------------------------------------------


def _make_native(annotation: Any, lenient: bool) -> Check | None:
    """Returns the check of what MessagePack carries; None for all other types. Lenient for results: checks, at most."""
    annotation = _simplify(annotation, strip=lenient)
    origin, inner = get_origin(annotation) or annotation, get_args(annotation)
    if any(origin is each for each in _UNCHECKED) or getattr(origin, "_is_protocol", False):
        return ANYTHING
    if any(origin is each for each in _SIMPLE):
        return _make_simple(origin, lenient)
    wanted = _shorten(describe_type(annotation), _MAX_WANTED)
    if origin in (Union, types.UnionType):
        members = [_make_native(each, lenient) for each in inner]
        return None if None in members else _make_union([each for each in members if each is not None], wanted)
    if origin in _LISTS:
        item = _make_native(inner[0], lenient) if inner else ANYTHING
        return None if item is None else _make_list(item, wanted, lenient)
    if origin in _DICTS:
        key, item = (_make_native(each, lenient) for each in inner or (Any, Any))
        return None if key is None or item is None else _make_dict(key, item, wanted)
    return _make_instance(origin, wanted) if lenient else None


def _make_simple(wanted: type, lenient: bool) -> Check:
    kinds: tuple[type, ...] = (int, float) if wanted is float else (wanted,)
    refuses_bool = wanted is not bool and not lenient
    makes_float = wanted is float and not lenient

    def convert(value: Any) -> Any:
        if not isinstance(value, kinds) or (refuses_bool and isinstance(value, bool)):
            raise Misfit
        return float(value) if makes_float else value  # type: ignore[arg-type]  # an int or a float

    return Check(describe_type(wanted), frozenset((wanted,)), convert)


def _make_union(members: list[Check], wanted: str) -> Check:
    if ANYTHING in members:
        return ANYTHING
    exact = frozenset().union(*(each.exact for each in members))

    def convert(value: Any) -> Any:
        if type(value) in exact:
            return value
        misfits = []
        for member in members:
            try:
                return member.convert(value)
            except Misfit as error:
                misfits.append(error)
        inside = [error for error in misfits if error.text]
        raise inside[0] if len(inside) == 1 else Misfit  # of `None | list[int]`, the list's reason is the one to tell

    return Check(wanted, exact, convert)


def _make_list(item: Check, wanted: str, lenient: bool) -> Check:
    def convert(value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise Misfit
        if item.all_fit(value):
            return value if lenient or type(value) is list else list(value)
        converted = []
        for index, each in enumerate(value):
            try:
                converted.append(item.convert(each))
            except Misfit as error:
                raise _inside(f"[{index}]", item, each, error) from None
        return converted

    return Check(wanted, frozenset((list,)) if item is ANYTHING else _NONE_EXACT, convert)


def _make_dict(key: Check, item: Check, wanted: str) -> Check:
    any_dict = key is ANYTHING and item is ANYTHING

    def convert(value: Any) -> Any:
        if not isinstance(value, dict):
            raise Misfit
        if key.all_fit(value) and item.all_fit(value.values()):
            return value
        converted = {}
        for name, each in value.items():
            try:
                fitting = key.convert(name)
            except Misfit as error:
                raise _inside(f" key {_brief.repr(name)}", key, name, error) from None
            try:
                converted[fitting] = item.convert(each)
            except Misfit as error:
                raise _inside(f"[{_brief.repr(name)}]", item, each, error) from None
        return converted

    return Check(wanted, frozenset((dict,)) if any_dict else _NONE_EXACT, convert)


def _make_instance(wanted: Any, text: str) -> Check | None:
    """For results: models (or the dicts that they become), tuples and lists; everything else may be anything."""
    if wanted is tuple:
        kinds: tuple[type, ...] = (tuple, list)
    elif isinstance(wanted, type) and (
        dataclasses.is_dataclass(wanted) or hasattr(wanted, "__struct_fields__") or hasattr(wanted, "model_dump")
    ):
        kinds = (wanted, dict)
    else:
        return ANYTHING

    def convert(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise Misfit
        return value

    return Check(text, frozenset(kinds), convert)


def _inside(place: str, check: Check, value: Any, error: Misfit) -> Misfit:
    """The same misfit, seen from one level above."""
    if error.text:
        return Misfit(place + error.path, error.text)
    return Misfit(place, f" takes {check.wanted}, got {describe_value(value)}")


def _simplify(annotation: Any, strip: bool = False) -> Any:
    """Resolves aliases, NewTypes and type variables, and strips metadata that constrains nothing."""
    while True:
        if annotation is None:
            return NoneType
        if get_origin(annotation) is Annotated:
            if not strip and any(_rules_of(each) for each in annotation.__metadata__):
                return annotation
            annotation = annotation.__origin__
        elif isinstance(annotation, TypeVar):
            annotation = annotation.__bound__ or Any
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":  # since Python 3.12
            annotation = annotation.__value__
        elif annotation is typing.LiteralString:
            return str
        else:
            return annotation


# --- with a library ---------------------------------------------------------------------------------------------


def _rules_of(metadata: Any) -> str | None:
    """Which library a piece of metadata in ``Annotated`` speaks to; None if neither."""
    library = type(metadata).__module__.partition(".")[0]
    if library in ("pydantic", "annotated_types"):
        return "pydantic"
    return "msgspec" if library == "msgspec" else None


def _make_library(annotation: Any, where: str) -> Callable[[Any], Any]:
    """Returns what converts to a type that MessagePack does not carry."""
    validate = getattr(annotation, "model_validate", None)
    if validate is not None:
        return _tell_pydantic(validate)
    found = _look_for_pydantic(annotation, set())
    if found:
        return _make_pydantic(annotation, where, strict="models" not in found)
    try:
        import msgspec
    except ImportError:
        raise MissingExtra(
            f'{where} needs msgspec for {describe_type(annotation)}: pip install "meshmsg[typed]" '
            '(or take a pydantic model: pip install "meshmsg[pydantic]")'
        ) from None
    try:
        msgspec.json.schema(annotation)  # looks at the type without a value of it
    except Exception as error:
        raise _no_such_value(annotation, where, error) from None

    def convert(value: Any) -> Any:
        try:
            # Texts are no bytes and no datetimes here, unlike in JSON.
            return msgspec.convert(value, annotation, builtin_types=(bytes, datetime))
        except msgspec.ValidationError as error:
            raise _translate(str(error)) from None
        except Exception as error:  # of a hook in the model
            raise Misfit("", f": {type(error).__name__}: {error}") from None

    return convert


def _make_pydantic(annotation: Any, where: str, strict: bool) -> Callable[[Any], Any]:
    try:
        pydantic = importlib.import_module("pydantic")
    except ImportError:
        raise MissingExtra(
            f'{where} needs pydantic for {describe_type(annotation)}: pip install "meshmsg[pydantic]"'
        ) from None
    try:
        adapter = pydantic.TypeAdapter(annotation)
    except Exception as error:
        raise _no_such_value(annotation, where, error) from None
    return _tell_pydantic(lambda value: adapter.validate_python(value, strict=strict or None))


def _tell_pydantic(validate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        try:
            return validate(value)
        except Exception as error:
            raise _misfit_of_model(error) from None

    return convert


def _misfit_of_model(error: Exception) -> Misfit:
    """Tells the first of pydantic's problems; a model of another make has only its text."""
    list_problems = getattr(error, "errors", None)  # pydantic is not imported here
    problems: Any = list_problems() if callable(list_problems) else []
    if not problems:
        return Misfit("", f": {str(error) or type(error).__name__}")
    path = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in problems[0]["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Misfit(path, f": {problems[0]['msg']}{more}")


def _look_for_pydantic(annotation: Any, seen: set[type]) -> set[str]:
    """Whether an annotation holds what only pydantic understands: "models", "constraints"."""
    found = set[str]()
    if hasattr(annotation, "__pydantic_validator__") or hasattr(annotation, "model_validate"):
        found.add("models")
    if any(_rules_of(each) == "pydantic" for each in getattr(annotation, "__metadata__", ())):
        found.add("constraints")
    if get_origin(annotation) is not typing.Literal:
        for each in get_args(annotation):
            found |= _look_for_pydantic(each, seen)
    if isinstance(annotation, type) and annotation not in seen:
        seen.add(annotation)
        try:
            fields = typing.get_type_hints(annotation, include_extras=True)
        except Exception:  # a field's type that is not defined; who converts will say so
            return found
        for each in fields.values():
            if _look_for_pydantic(each, seen):
                found.add("models")  # what has fields is a model too
    return found


def _translate(text: str) -> Misfit:
    """Makes a misfit of msgspec's message, as in "Expected `int`, got `str` - at `$.count`"."""
    place = _MSGSPEC_PLACE.fullmatch(text)
    if place is None:
        return Misfit("", f": {text}")
    path = place["path"] or ""
    if place["key"]:
        path += " key"
    what = place["what"]
    found = _MSGSPEC_TYPES.fullmatch(what)
    if found is None:
        return Misfit(path, f": {what[:1].lower()}{what[1:]}".replace("`", "'"))
    return Misfit(path, f" takes {found[1]}, got {found[2]}" if path else "")


def _no_such_value(annotation: Any, where: str, error: Exception) -> ConfigurationError:
    reason = str(error).strip().splitlines()
    return ConfigurationError(
        f"{where} is annotated {describe_type(annotation)}, which nothing that comes over the wire can become: "
        "take what MessagePack carries, a dataclass, a msgspec.Struct or a pydantic model, or leave the annotation out "
        f"({type(error).__name__}: {reason[-1] if reason else ''})"
    )


# --- what nobody can send ---------------------------------------------------------------------------------------


def _require_sendable(annotation: Any, where: str) -> None:
    """Raises if a value of this type, or of one inside of it, cannot be encoded."""
    found = _find_unsendable(annotation, "", set())
    if found is None:
        return
    name, place, instead = found
    inside = f", with {name} in {place}" if place else ""
    raise ConfigurationError(
        f"{where} is annotated {_shorten(describe_type(annotation), _MAX_WANTED)}{inside}: MessagePack has no {name}, "
        f"so nobody can send it over the wire; annotate {instead} instead"
    )


def _find_unsendable(annotation: Any, place: str, seen: set[Any]) -> tuple[str, str, str] | None:
    """The first type that cannot be encoded: its name, the field that it is in, and what to take instead."""
    if any(_is_serializer(each) for each in getattr(annotation, "__metadata__", ())):
        return None
    annotation = _simplify(annotation, strip=True)
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
