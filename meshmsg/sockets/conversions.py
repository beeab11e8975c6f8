"""Values against annotations: what arguments and bodies become, and whether results are what a method promised.

What MessagePack carries (numbers, texts, bytes, lists, dicts, datetimes, None) and unions, lists and dicts of that are
checked here, strictly: ``"2"`` is no int, and neither is True; an int becomes a float where one is wanted. Everything
else is msgspec's to convert (dataclasses, structs, tuples, enums of texts or numbers, ...), or pydantic's, if it is a
pydantic model, holds one, or carries pydantic's constraints.

Both libraries would also make sets, UUIDs or dates of lists and texts, as JSON does. Who consumes bodies gets that, as
they may come from anywhere; a method does not: its callers would send what they read in its signature, and cannot.
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
from collections.abc import Callable, Iterable
from datetime import datetime
from types import NoneType
from typing import Any, Union, get_args, get_origin

from meshmsg.errors import ConfigurationError, EncodeError, MissingExtra
from meshmsg.sockets.annotations import (
    MAX_WANTED,
    Loop,
    describe_type,
    find_loop,
    find_reference,
    is_never,
    require_end,
    require_sendable,
    require_values,
    rules_of,
    shorten,
    shorten_path,
    simplify,
)

_SIMPLE = (NoneType, bool, int, float, str, bytes, datetime)
_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_UNCHECKED = (Any, object)
_MAX_VALUE = 100
_INSTEAD_OF_LOOP = "write it as a dataclass or a model with a field that is annotated with the class"
_MAX_REASON = 300

_MSGSPEC_PLACE = re.compile(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_NO_SUCH_TYPE = (
    "which nothing that comes over the wire can become: "
    "take what MessagePack carries, a dataclass, a msgspec.Struct or a pydantic model, or leave the annotation out"
)
_REFUSED = (  # by msgspec, and what to do then
    (
        re.compile(r"Type unions may not contain more|If a type union contains multiple Struct"),
        "and nothing that comes over the wire tells which type of the union it is: "
        "keep one of them, or take classes of msgspec.Struct with tag=True, or pydantic models",
    ),
    (
        re.compile(r"dataclasses with `InitVar`"),
        "and nothing that comes over the wire becomes a dataclass with an InitVar: "
        "make that a plain field, or take a pydantic model",
    ),
)
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
        text = f"{name}{shorten_path(self.path)}{self.text}" if self.text else ""
        return shorten(text, _MAX_REASON)


Tell = Callable[[Any, Misfit], ValueError]  # of a value and what is wrong with it: what is raised


def _as_it_is(value: Any, error: Misfit) -> Misfit:
    return error


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
    loop = find_loop(annotation)
    require_end(annotation, loop, where)
    require_values(annotation, where)
    require_sendable(annotation, where)
    check = _make_native(annotation, False, {})
    if check is None:
        wanted = shorten(describe_type(annotation), MAX_WANTED)
        check = Check(wanted, _NONE_EXACT, _make_library(simplify(annotation), where, loop))
    return None if check is ANYTHING else _limit(check, loop)


def make_result_check(annotation: Any, where: str) -> Check | None:
    """Returns a check that what a method returns is what it promised; None if it promised nothing that can be told.

    It converts nothing: models travel as dicts anyway. It is lenient where Python's own types are, and where they are
    not, with what becomes the same on the wire. ``NoReturn`` is what a method promises that only raises. Raises
    ``ConfigurationError`` for what cannot be sent.
    """
    loop = find_loop(annotation)
    require_end(annotation, loop, where)
    if is_never(annotation):
        return Check(describe_type(annotation), _NONE_EXACT, _refuse_all)
    require_values(annotation, where)
    require_sendable(annotation, where)
    check = _make_native(annotation, True, {})
    return None if check is ANYTHING or check is None else _limit(check, loop)


def _refuse_all(value: Any) -> Any:
    raise Misfit


def make_converter(wanted: Any, label: str) -> Callable[[Any], Any] | None:
    """Returns how bodies become what ``type=`` of a consumer says, or raises ``ValueError``; None if everything fits.

    ``label`` names the consumer in errors. Takes what a method's arguments may be annotated with, and what a library
    makes of texts and lists besides. Raises as ``make_argument_check`` does.

    >>> make_converter(dict[str, int], "pull('counts')")({"a": 1})
    {'a': 1}
    >>> make_converter(dict[str, int], "pull('counts')")({"a": "1"})
    Traceback (most recent call last):
    ...
    ValueError: body takes dict[str, int]; body['a'] takes int, got str '1'
    """
    where = f"{label.removesuffix(')')}, type=...): the body"
    loop = find_loop(wanted)
    require_end(wanted, loop, where)
    require_values(wanted, where)
    check = _make_native(wanted, False, {})
    if check is ANYTHING:
        return None
    text = shorten(describe_type(wanted), MAX_WANTED)

    def tell(value: Any, error: Misfit) -> ValueError:
        inside = error.explain("body")
        return ValueError(f"body takes {text}{f'; {inside}' if inside else f', got {describe_value(value)}'}")

    if check is None:
        return _make_library(simplify(wanted), where, loop, tell, texts=True)
    check = _limit(check, loop)
    exact, convert = check.exact, check.convert

    def convert_body(value: Any) -> Any:
        if type(value) in exact:
            return value
        try:
            return convert(value)
        except Misfit as error:
            raise tell(value, error) from None

    return convert_body


def describe_value(value: Any) -> str:
    """What came, for error messages: its type, and its beginning."""
    if value is None:
        return "None"
    try:
        text = f"{type(value).__name__} {_brief.repr(value)}"
    except Exception:  # a __repr__ of its own that fails
        return type(value).__name__
    return shorten(text, _MAX_VALUE)


def place_error(label: str, error: EncodeError, name: str) -> EncodeError:
    """What was found in "the body" of a request, said of the argument or result that it is."""
    path = error.path.replace("body", name, 1)
    return EncodeError(f"{label}: {str(error).replace(error.path, shorten_path(path), 1)}", path)


# --- without any library ----------------------------------------------------------------------------------------


def _make_native(annotation: Any, lenient: bool, begun: dict[Any, Check]) -> Check | None:
    """Returns the check of what MessagePack carries; None for all other types. Lenient for results: checks, at most.

    ``begun`` has the type aliases that this is inside of: one that occurs in itself is its own check.
    """
    aliases = list[Any]()
    annotation = simplify(annotation, lenient, aliases)
    for alias in aliases:
        if alias in begun:
            return begun[alias]
    begun |= {alias: Check(describe_type(alias), _NONE_EXACT, ANYTHING.convert) for alias in aliases}
    check = _make_plain(annotation, lenient, begun)
    for alias in aliases:
        inside = begun.pop(alias)
        if check is not None:
            inside.exact, inside.convert = check.exact, check.convert
    return check


def _make_plain(annotation: Any, lenient: bool, begun: dict[Any, Check]) -> Check | None:
    """The same for what is no alias."""
    origin, inner = get_origin(annotation) or annotation, get_args(annotation)
    if any(origin is each for each in _UNCHECKED) or getattr(origin, "_is_protocol", False):
        return ANYTHING
    if any(origin is each for each in _SIMPLE):
        return _make_simple(origin, lenient)
    wanted = shorten(describe_type(annotation), MAX_WANTED)
    if origin in (Union, types.UnionType):
        members = [_make_native(each, lenient, begun) for each in inner]
        return None if None in members else _make_union([each for each in members if each is not None], wanted)
    if origin in _LISTS:
        item = _make_native(inner[0], lenient, begun) if inner else ANYTHING
        return None if item is None else _make_list(item, wanted, lenient)
    if origin in _DICTS:
        key, item = (_make_native(each, lenient, begun) for each in inner or (Any, Any))
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
    """For results: models (or what they travel as), tuples and lists; everything else may be anything."""
    if wanted is tuple:
        kinds: tuple[type, ...] = (tuple, list)
    elif getattr(wanted, "__pydantic_root_model__", False):  # travels as whatever its root is
        return ANYTHING
    elif getattr(getattr(wanted, "__struct_config__", None), "array_like", False):
        kinds = (wanted, list, tuple)
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


def _limit(check: Check, loop: Loop | None) -> Check:
    """The same check, also for values that are nested more deeply than Python can follow."""
    if loop is None:
        return check
    convert = check.convert

    def convert_deep(value: Any) -> Any:
        try:
            return convert(value)
        except RecursionError:
            raise Misfit("", " is nested too deeply") from None

    return Check(check.wanted, check.exact, convert_deep)


# --- with a library ---------------------------------------------------------------------------------------------


def _make_library(
    annotation: Any, where: str, loop: Loop | None, tell: Tell = _as_it_is, texts: bool = False
) -> Callable[[Any], Any]:
    """Returns what converts to a type that MessagePack does not carry.

    ``tell`` makes of a misfit what is raised; ``texts`` are also taken for bytes (base64) and datetimes, as in JSON.
    """
    validate = getattr(annotation, "model_validate", None)
    if validate is not None:
        return _tell_pydantic(validate, tell)
    found = _look_for_pydantic(annotation, set())
    if found:
        return _tell_pydantic(_make_pydantic(annotation, where, strict="models" not in found), tell)
    if loop is not None:  # msgspec would follow it for ever
        raise ConfigurationError(
            f"{where} is annotated {shorten(describe_type(annotation), MAX_WANTED)}, where the alias "
            f"{describe_type(loop.alias)} contains itself: {_INSTEAD_OF_LOOP}"
        )
    name = find_reference(annotation)
    if name is not None:
        raise ConfigurationError(
            f"{where} is annotated {shorten(describe_type(annotation), MAX_WANTED)}, where {name!r} is only a name: "
            f"import it at run time too, or if it is this annotation itself, {_INSTEAD_OF_LOOP}"
        )
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

    make = msgspec.convert

    def convert(value: Any) -> Any:
        try:
            if texts:
                return make(value, annotation)  # as the keyword costs as much as a small dataclass
            return make(value, annotation, builtin_types=(bytes, datetime))
        except msgspec.ValidationError as error:
            raise tell(value, _translate(str(error))) from None
        except Exception as error:  # of a hook in the model
            raise tell(value, Misfit("", f": {type(error).__name__}: {error}")) from None

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
    return lambda value: adapter.validate_python(value, strict=strict or None)


def _tell_pydantic(validate: Callable[[Any], Any], tell: Tell) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        try:
            return validate(value)
        except Exception as error:
            raise tell(value, _misfit_of_model(error)) from None

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
    if any(rules_of(each) == "pydantic" for each in getattr(annotation, "__metadata__", ())):
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
    reason = (str(error).strip().splitlines() or [""])[-1]
    why = next((why for found, why in _REFUSED if found.match(reason)), _NO_SUCH_TYPE)
    return ConfigurationError(
        f"{where} is annotated {describe_type(annotation)}, {why} ({type(error).__name__}: {reason})"
    )
