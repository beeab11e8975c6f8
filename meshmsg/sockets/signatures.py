"""What a method takes and returns, read from its signature once: arguments are bound and checked before it runs."""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from inspect import Parameter
from types import CodeType, NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from meshmsg.errors import BadRequest, ConfigurationError
from meshmsg.sockets.annotations import describe_type
from meshmsg.sockets.conversions import Check, Misfit, describe_value, make_argument_check, make_result_check

_STREAMS_IN = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
    collections.abc.Iterator,
    collections.abc.Generator,
)
_STREAMS_OUT = (*_STREAMS_IN, collections.abc.Iterable)
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_STARS: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
# What a caller writes beside the arguments; a dealer keeps these for itself.
_KEPT_BY_DEALERS = ("timeout", "headers", "peer", "key", "idempotent", "items")
_MAX_DOC = 1000
_MAX_DEFAULT = 40


class _Argument(NamedTuple):
    """A parameter that callers fill."""

    name: str
    check: Check | None
    required: bool


class _Given(NamedTuple):
    """A parameter that the router fills: with the context, or with the caller's items."""

    name: str
    place: int | None  # among the positional ones; None for keyword-only
    defaults: tuple[Any, ...]  # of the positional-only ones before it
    by_name: bool
    what: Literal["context", "items"]
    check: Check | None  # of each item


class Signature:
    """What one method takes and returns; ``label`` names it in errors, as in "math.add"; ``text`` is what callers see.

    A parameter annotated with ``skip_context`` gets the context of the call, one annotated with an iterator
    (``AsyncIterator[int]``, or ``Iterator[int]`` in a plain function) gets the items that the caller streams; callers
    know of neither.
    Raises ``ConfigurationError`` for annotations that no argument could satisfy, ``MissingExtra`` when the library that
    converts to them is not installed. The former also for keyword-only parameters that no caller could name, since
    its dealer has an option of this name.

    >>> def add(a: int, b: int = 1) -> int:
    ...     "Adds two numbers."
    ...     return a + b
    >>> signature = Signature(add, "math.add")
    >>> signature.bind([2, 3], {})
    ([2, 3], {})
    >>> signature.bind([2], {"b": "x"})
    Traceback (most recent call last):
    ...
    meshmsg.errors.BadRequest: math.add: argument 'b' takes int, got str 'x'
    >>> signature.describe()["signature"]
    '(a: int, b: int = 1) -> int'
    """

    __slots__ = (
        "label",
        "streams",
        "takes_items",
        "wants_context",
        "text",
        "_doc",
        "_by_position",
        "_by_name",
        "_checked",
        "_changes",
        "_required",
        "_most",
        "_places",
        "_keywords_needed",
        "_extra",
        "_extra_named",
        "_given",
        "_refused",
        "_result",
    )

    def __init__(self, function: Callable[..., Any], label: str, skip_context: type | None = None) -> None:
        self.label = label
        self.streams = _is_generator(function)
        self._doc = _first_paragraph(function)
        self._by_position: list[_Argument] = []
        self._by_name: dict[str, _Argument] = {}
        self._extra: _Argument | None = None  # *args, with the check of each
        self._extra_named: _Argument | None = None  # **kwargs
        self._given: list[_Given] = []
        self._refused = _find_fixed(function)
        self._result: Check | None = None
        try:
            signature = read_signature(function)
        except (TypeError, ValueError):  # of a function in C that tells nothing: it takes whatever it takes
            self._extra = self._extra_named = _Argument("arguments", None, False)
            self.text = "(...)"
        else:
            hints = _resolve(function, signature)
            self._read_parameters(signature, hints, skip_context)
            self.text = self._write(signature, hints)
            returned = _find_result(hints.get("return", Any), self.streams)
            self._result = make_result_check(returned, f"{label}: what it {'yields' if self.streams else 'returns'}")
        self.wants_context = bool(self._given)
        self.takes_items = any(each.what == "items" for each in self._given)
        self._required = sum(each.required for each in self._by_position)
        self._most = sys.maxsize if self._extra is not None else len(self._by_position)
        self._places = {each.name: place for place, each in enumerate(self._by_position)}
        self._keywords_needed = [
            name for name, each in self._by_name.items() if each.required and name not in self._places
        ]
        self._checked = [
            (place, each.check.exact, each.check.convert)
            for place, each in enumerate(self._by_position)
            if each.check is not None
        ]

        every = (*self._by_position, *self._by_name.values(), self._extra, self._extra_named)
        self._changes = bool(self._given) or any(each is not None and each.check is not None for each in every)

    def bind(self, args: list[Any], kwargs: dict[str, Any], context: Any = None) -> tuple[list[Any], dict[str, Any]]:
        """Checks arguments and converts them, and adds what the router gives; ``function(*args, **kwargs)`` comes next.

        What is given stays as it is, for who wants to try once more. ``context`` is needed if ``wants_context``; its
        ``items()`` is called if ``takes_items``. Raises ``BadRequest`` that names the method and the argument.
        """
        if self._changes:
            args, kwargs = [*args], {**kwargs}
        count = len(args)
        if kwargs or count < self._required or count > self._most or self._keywords_needed:
            self._bind_names(args, kwargs)
        for place, exact, convert in self._checked:
            if place >= count:
                break
            value = args[place]
            if type(value) not in exact:
                try:
                    args[place] = convert(value)
                except Misfit as error:
                    raise self._refuse(self._by_position[place], value, error) from None
        if count > len(self._by_position) and self._extra is not None and self._extra.check is not None:
            self._convert_extra(args, self._extra.name, self._extra.check)
        if self._given:
            self._give(args, kwargs, context)
        return args, kwargs

    def check_result(self, value: Any) -> None:
        """Checks what the method returned, or one item of the stream that it yields, by its annotation.

        Raises ``TypeError``: it is a mistake in the method. Models may also come as the dicts that they travel as.
        """
        check = self._result
        if check is None or type(value) in check.exact:
            return
        try:
            check.convert(value)
        except Misfit as error:
            unrun = refuse_unrun(self.label, value, "yielded" if self.streams else "returned")
            if unrun is not None:
                raise unrun from None
            verb, what = ("yields", "an item") if self.streams else ("returns", "the result")
            inside = error.explain(what)
            reason = f"but {inside}" if inside else f"got {describe_value(value)}"
            raise TypeError(f"{self.label} {verb} {check.wanted} by its annotation, {reason}") from None

    def describe(self) -> dict[str, Any]:
        """What ``info`` tells about the method."""
        return {
            "name": self.label.rpartition(".")[2],
            "signature": self.text.encode("utf-8", "replace").decode(),  # or ``info`` cannot be sent
            "doc": self._doc.encode("utf-8", "replace").decode(),
            "streams": self.streams,
            "takes_items": self.takes_items,
        }

    # --- reading ------------------------------------------------------------------------------------------------

    def _read_parameters(
        self, signature: inspect.Signature, hints: Mapping[str, Any], context_type: type | None
    ) -> None:
        place, defaults = 0, list[Any]()
        for name, each in signature.parameters.items():
            hint = hints.get(name, Any)
            place_now = place if each.kind in _POSITIONAL else None
            place += each.kind in _POSITIONAL
            if each.kind is Parameter.POSITIONAL_ONLY:
                defaults.append(each.default)
            what = _find_given(hint, context_type)
            if what is not None and each.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
                check = self._check_of(name, _first_argument(hint)) if what == "items" else None
                by_name = each.kind is not Parameter.POSITIONAL_ONLY
                self._given.append(_Given(name, place_now, tuple(defaults), by_name, what, check))
                self._refused.add(name)
                continue
            if name in self._refused:
                continue
            if each.kind is Parameter.KEYWORD_ONLY and name in _KEPT_BY_DEALERS:
                raise ConfigurationError(
                    f"{self.label}: no caller could give {name!r}, which comes by name only, as {name}= is an option "
                    "of request(): rename it, or let it come by position too"
                )
            check = self._check_of(name, hint)
            if each.kind is Parameter.VAR_POSITIONAL:
                self._extra = _Argument(name, check, False)
            elif each.kind is Parameter.VAR_KEYWORD:
                self._extra_named = _Argument(name, check, False)
            else:
                argument = _Argument(name, check, each.default is Parameter.empty)
                if place_now is not None:
                    self._by_position.append(argument)
                if each.kind is not Parameter.POSITIONAL_ONLY:
                    self._by_name[name] = argument

    def _check_of(self, name: str, hint: Any) -> Check | None:
        where = f"{self.label}: argument {name!r}"
        if isinstance(hint, str):
            raise ConfigurationError(
                f"{where} is annotated {hint!r}, which is not defined where the method is: import it at run time too "
                "(not only under TYPE_CHECKING), or leave the annotation out"
            )
        return make_argument_check(hint, where)

    def _write(self, signature: inspect.Signature, hints: Mapping[str, Any]) -> str:
        """The signature as callers see it."""
        shown, kinds = list[str](), list[Any]()
        for name, each in signature.parameters.items():
            if name in self._refused:
                continue
            if each.kind is not Parameter.POSITIONAL_ONLY and kinds and kinds[-1] is Parameter.POSITIONAL_ONLY:
                shown.append("/")
            if each.kind is Parameter.KEYWORD_ONLY and not {Parameter.VAR_POSITIONAL, Parameter.KEYWORD_ONLY} & {
                *kinds
            }:
                shown.append("*")
            kinds.append(each.kind)
            text = _STARS.get(each.kind, "") + name + (f": {describe_type(hints[name])}" if name in hints else "")
            if each.default is not Parameter.empty:
                text += f" = {_write_default(each.default)}" if name in hints else f"={_write_default(each.default)}"
            shown.append(text)
        if kinds and kinds[-1] is Parameter.POSITIONAL_ONLY:
            shown.append("/")
        returned = f" -> {describe_type(hints['return'])}" if "return" in hints else ""
        return f"({', '.join(shown)}){returned}"

    # --- binding ------------------------------------------------------------------------------------------------

    def _bind_names(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Checks that every argument has a parameter and every parameter an argument; converts those given by name."""
        count = len(args)
        if count > self._most:
            most = f"at most {self._most} argument{'s' * (self._most != 1)} by position"
            raise BadRequest(f"{self.label} takes {most}, got {count}: {self.text}")
        for name, value in kwargs.items():
            argument = self._by_name.get(name)
            if argument is None:
                if self._extra_named is None or name in self._refused:
                    raise self._refuse_name(name)
                argument = _Argument(name, self._extra_named.check, False)
            elif self._places.get(name, count) < count:
                text = f"{self.label}: argument {name!r} came twice, by position and by name: {self.text}"
                raise BadRequest(text, name)
            if argument.check is not None and type(value) not in argument.check.exact:
                try:
                    kwargs[name] = argument.check.convert(value)
                except Misfit as error:
                    raise self._refuse(argument, value, error) from None
        for argument in self._by_position[count:]:
            if argument.required and (argument.name not in kwargs or argument.name not in self._by_name):
                raise self._miss(argument.name)
        for name in self._keywords_needed:
            if name not in kwargs:
                raise self._miss(name)

    def _convert_extra(self, args: list[Any], name: str, check: Check) -> None:
        """Those that ``*args`` takes."""
        first = len(self._by_position)
        for place in range(first, len(args)):
            value = args[place]
            if type(value) not in check.exact:
                try:
                    args[place] = check.convert(value)
                except Misfit as error:
                    raise self._refuse(_Argument(f"{name}[{place - first}]", check, False), value, error) from None

    def _give(self, args: list[Any], kwargs: dict[str, Any], context: Any) -> None:
        for each in self._given:
            value = context if each.what == "context" else self._give_items(context.items(), each)
            if each.place is None or (each.by_name and each.place > len(args)):
                kwargs[each.name] = value
            else:
                args.extend(each.defaults[len(args) : each.place])
                args.insert(each.place, value)

    def _give_items(self, items: Any, given: _Given) -> Any:
        return items if given.check is None else _CheckedItems(items, given.check, given.name, self)

    # --- errors -------------------------------------------------------------------------------------------------

    def _refuse(self, argument: _Argument, value: Any, error: Misfit) -> BadRequest:
        assert argument.check is not None, "only a check finds misfits"
        inside = error.explain(argument.name)
        reason = f"; {inside}" if inside else f", got {describe_value(value)}"
        text = f"{self.label}: argument {argument.name!r} takes {argument.check.wanted}{reason}"
        return BadRequest(text, argument.name)

    def _miss(self, name: str) -> BadRequest:
        return BadRequest(f"{self.label}: argument {name!r} is missing: {self.text}", name)

    def _refuse_name(self, name: str) -> BadRequest:
        close = difflib.get_close_matches(name[:100], self._by_name, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it takes {self.text}"
        return BadRequest(f"{self.label} has no argument {name[:100]!r}: {hint}", name[:100])


class _CheckedItems:
    """A caller's items, each converted to what the method's iterator is annotated with."""

    def __init__(self, items: Any, check: Check, name: str, signature: Signature) -> None:
        self._items = items
        self._check = check
        self._name = name
        self._label = signature.label
        self._count = 0

    def __aiter__(self) -> _CheckedItems:
        return self

    async def __anext__(self) -> Any:
        return self._convert(await self._items.__anext__())

    def __iter__(self) -> _CheckedItems:
        return self

    def __next__(self) -> Any:
        return self._convert(next(self._items))

    def _convert(self, item: Any) -> Any:
        self._count += 1
        if type(item) in self._check.exact:
            return item
        try:
            return self._check.convert(item)
        except Misfit as error:
            reason = f"; {error.explain('item')}" if error.text else f", got {describe_value(item)}"
            text = f"{self._label}: item {self._count} of {self._name!r} takes {self._check.wanted}{reason}"
            raise BadRequest(text, self._name) from None


def refuse_unrun(label: str, value: Any, verb: str) -> TypeError | None:
    """What is wrong with a result that is the work itself, instead of what it brings; None if it is none."""
    awaitable = inspect.isawaitable(value)
    if not (awaitable or inspect.isgenerator(value) or inspect.isasyncgen(value)):
        return None
    if inspect.iscoroutine(value) or inspect.isgenerator(value):
        value.close()  # or Python warns that it was never awaited
    kind = "a coroutine" if awaitable else "a generator"
    text = f"{label} {verb} {kind}, which nobody runs: offer the function itself, or make the wrapper of its kind"
    return TypeError(text)


def read_signature(function: Callable[..., Any]) -> inspect.Signature:
    """The parameters of a function, whatever its annotations are. Raises as ``inspect.signature`` does."""
    if sys.version_info >= (3, 14):  # annotations are evaluated there only now, and some names only type checkers know
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)


def _resolve(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Any]:
    """The annotations by name, "return" among them; one that cannot be resolved stays a text."""
    plain = _find_plain(function)
    names = getattr(plain, "__globals__", {})
    place = getattr(plain, "__qualname__", "")
    annotated = {name: each.annotation for name, each in signature.parameters.items()}
    annotated["return"] = signature.return_annotation
    hints = dict[str, Any]()
    for name, annotation in annotated.items():
        if annotation is Parameter.empty:
            continue
        # One by one: what is unknown about one does not matter for the others.
        hints[name] = _resolve_one(annotation, names, None)
        if isinstance(hints[name], str):
            hints[name] = _resolve_one(annotation, names, _find_locals(place, names))
    return hints


def _resolve_one(annotation: Any, names: dict[str, Any], inner: Mapping[str, Any] | None) -> Any:
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, names, inner, include_extras=True)["it"]
    except Exception:  # whatever evaluating an expression raises
        if isinstance(annotation, typing.ForwardRef):
            return annotation.__forward_arg__
        return annotation if isinstance(annotation, str) else describe_type(annotation)


def _find_locals(place: str, names: dict[str, Any]) -> Mapping[str, Any] | None:
    """The variables of the function that a method is defined in, if that one is at offering it right now."""
    outer, inside, _ = place.rpartition(".<locals>.")
    frame = sys._getframe() if inside else None
    while frame is not None:
        code: CodeType = frame.f_code
        if code.co_qualname == outer and frame.f_globals is names:
            return frame.f_locals
        frame = frame.f_back
    return None


def _plain(hint: Any) -> Any:
    """A hint without metadata."""
    return hint.__origin__ if get_origin(hint) is Annotated else hint


def _find_given(hint: Any, context_type: type | None) -> Literal["context", "items"] | None:
    """Whether a parameter is filled by the router, and with what."""
    hint = _plain(hint)
    if context_type is not None:
        if isinstance(hint, str):  # perhaps imported for type checkers only
            first, _, rest = hint.partition("|")
            known = first.strip().rpartition(".")[2] == context_type.__name__ and rest.strip() in ("", "None")
            return "context" if known else None
        members = [each for each in get_args(hint) if each is not NoneType]
        if hint is context_type or (members == [context_type] and NoneType in get_args(hint)):
            return "context"
    origin = get_origin(hint) or hint
    return "items" if any(origin is each for each in _STREAMS_IN) else None


def _first_argument(hint: Any) -> Any:
    return (get_args(_plain(hint)) or (Any,))[0]


def _find_result(hint: Any, streams: bool) -> Any:
    """The annotation of the value that travels."""
    if not streams:
        return hint
    origin = get_origin(_plain(hint)) or _plain(hint)
    return _first_argument(hint) if any(origin is each for each in _STREAMS_OUT) else Any


def _find_fixed(function: Callable[..., Any]) -> set[str]:
    """Names that ``functools.partial`` has set: they are not for callers to change."""
    fixed = set[str]()
    while isinstance(function, functools.partial):
        fixed |= function.keywords.keys()
        function = function.func
    return fixed


def _is_generator(function: Callable[..., Any]) -> bool:
    both = (function, getattr(function, "__call__", None))  # noqa: B004  # an object whose __call__ is one
    return any(inspect.isasyncgenfunction(each) or inspect.isgeneratorfunction(each) for each in both)


def _find_plain(function: Callable[..., Any]) -> Any:
    """The function under partials, decorators and objects that can be called."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    return function if inspect.isroutine(function) else type(function).__call__


def _first_paragraph(function: Callable[..., Any]) -> str:
    plain = _find_plain(function)
    if not plain.__doc__:
        plain = getattr(function, "func", function)  # whose class or base may have one
    doc = plain.__doc__ or inspect.getdoc(plain)
    paragraph = inspect.cleandoc(doc or "").partition("\n\n")[0]
    return " ".join(paragraph.split())[:_MAX_DOC]


def _write_default(default: Any) -> str:
    try:
        text = reprlib.repr(default)
    except Exception:  # a __repr__ of its own that fails
        return "..."
    return text if len(text) <= _MAX_DEFAULT and not text.startswith("<") else "..."
