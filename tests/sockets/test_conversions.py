"""Values against annotations: what arguments become, what does not fit and how that is said, and results."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import re
import sys
import typing
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NewType, Optional, TypeVar

import msgspec
import pytest

from meshmsg.errors import BadRequest, ConfigurationError, MissingExtra
from meshmsg.sockets.conversions import make_converter
from meshmsg.sockets.signatures import Signature
from meshmsg.wire.codec import decode_body, make_packer

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
T = TypeVar("T")
Identity = NewType("Identity", int)


@dataclasses.dataclass
class Order:
    article: str
    count: int = 1


@dataclasses.dataclass
class Leaf:
    leaves: list[Leaf]


class Color(enum.StrEnum):
    RED = "red"


class Job(msgspec.Struct):
    parts: list[int]


class Duck:
    """Looks to meshmsg like a pydantic model."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def model_validate(cls, value: Any) -> Duck:
        if not isinstance(value, dict):
            raise ValueError("no dict")
        return cls(**value)


class Unknown:
    """No library makes one of these."""


def taking(annotation: Any) -> Callable[..., Any]:
    """Return a method of one argument."""

    def method(it: Any) -> Any:
        return it

    method.__annotations__ = {"it": annotation}
    return method


def receive(annotation: Any, value: Any) -> Any:
    """Return what a method gets for a value that comes over the wire."""
    (got,), _ = Signature(taking(annotation), "math.add").bind([decode_body(make_packer()(value))], {})
    return got


def refuse(annotation: Any, value: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        receive(annotation, value)
    assert caught.value.argument == "it"
    return str(caught.value)


# --- arguments ----------------------------------------------------------------------------------------------------

WITHOUT_LIBRARY = [
    (int, 1, 1),
    (float, 1, 1.0),
    (float, 1.5, 1.5),
    (str, "a", "a"),
    (bytes, b"a", b"a"),
    (bool, True, True),
    (None, None, None),
    (datetime.datetime, NOW, NOW),
    (list, [1, "a"], [1, "a"]),
    (dict, {1: "a"}, {1: "a"}),
    (Any, [1], [1]),
    (object, [1], [1]),
    (T, [1], [1]),
    (typing.SupportsFloat, "duck", "duck"),
    (Identity, 7, 7),
    (Annotated[int, "documented"], 7, 7),
    (typing.LiteralString, "a", "a"),
    (Optional[int], None, None),  # noqa: UP045
    (int | None, 7, 7),
    (int | str, "a", "a"),
    (float | None, 7, 7.0),
    (int | Any, "a", "a"),
    (list[int], [1, 2], [1, 2]),
    (list[float], [1, 2.5], [1.0, 2.5]),
    (list[list[int]], [[1], []], [[1], []]),
    (list[Any], [1, "a"], [1, "a"]),
    (Sequence[int], [1], [1]),
    (Iterable[str], ["a"], ["a"]),
    (list[int] | None, [1], [1]),
    (list[float | int | list[int]], [1, [2], 3.0], [1, [2], 3.0]),
    (dict[str, int], {"a": 1}, {"a": 1}),
    (dict[int, list[float]], {7: [1]}, {7: [1.0]}),
    (Mapping[str, Any], {"a": [1]}, {"a": [1]}),
]

NOT_FITTING = [
    (int, "1", "takes int, got str '1'"),
    (int, True, "takes int, got bool True"),
    (int, 1.0, "takes int, got float 1.0"),
    (float, True, "takes float, got bool True"),
    (float, "1.5", "takes float, got str '1.5'"),
    (str, b"a", "takes str, got bytes b'a'"),
    (bytes, "YQ==", "takes bytes, got str 'YQ=='"),
    (bool, 1, "takes bool, got int 1"),
    (None, 0, "takes None, got int 0"),
    (datetime.datetime, "2026-01-02T00:00:00Z", "takes datetime, got str '2026-01-02T00:00:00Z'"),
    (list, {"a": 1}, "takes list, got dict {'a': 1}"),
    (dict, [1], "takes dict, got list [1]"),
    (int | None, "a", "takes int | None, got str 'a'"),
    (list[int], "ab", "takes list[int], got str 'ab'"),
    (list[int], [1, "a"], "takes list[int]; it[1] takes int, got str 'a'"),
    (list[list[int]] | None, [[1], [2, None]], "takes list[list[int]] | None; it[1][1] takes int, got None"),
    (dict[str, int], {"a": 1, "b": "c"}, "takes dict[str, int]; it['b'] takes int, got str 'c'"),
    (dict[str, int], {1: 1}, "takes dict[str, int]; it key 1 takes str, got int 1"),
]


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(("annotation", "value", "expected"), WITHOUT_LIBRARY)
def test_what_messagepack_carries_is_checked_without_any_library(
    monkeypatch: pytest.MonkeyPatch, annotation: Any, value: Any, expected: Any, installed: bool
) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "msgspec", None)  # importing it raises ImportError
        monkeypatch.setitem(sys.modules, "pydantic", None)
    got = receive(annotation, value)
    assert got == expected and repr(got) == repr(expected)  # 1 == 1.0, so what they look like counts too


@pytest.mark.parametrize(("annotation", "value", "text"), NOT_FITTING)
def test_what_does_not_fit_an_annotation(annotation: Any, value: Any, text: str) -> None:
    assert refuse(annotation, value) == f"math.add: argument 'it' {text}"


def test_errors_stay_short() -> None:
    text = refuse(list[int], ["y" * 10_000] * 1000)
    assert len(text) < 300
    assert len(refuse(int, {"k" * 5000: [["z" * 5000] * 50] * 50})) < 300
    text = refuse(int, {key: {"a": 1} for key in range(9, 0, -1)})
    assert text.endswith("got dict {9: {'a': 1}, 8: {'a': 1}, 7: {'a': 1}, 6: {'a': 1}, ...}")


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Order, {"article": "nut"}, Order("nut")),
        (Order, Order("nut", 3), Order("nut", 3)),
        (list[Order], [{"article": "nut"}], [Order("nut")]),
        (Order | None, None, None),
        (dict[str, Order], {"a": {"article": "nut"}}, {"a": Order("nut")}),
        (Job, Job([1]), Job([1])),
        (Color, "red", Color.RED),
        (Literal["a", 2], 2, 2),
        (tuple[int, str], [1, "a"], (1, "a")),
        (Annotated[int, msgspec.Meta(ge=10)], 10, 10),
        (Duck, {"name": "d"}, Duck),
    ],
)
def test_msgspec_converts_the_rest(annotation: Any, value: Any, expected: Any) -> None:
    got = receive(annotation, value)
    assert isinstance(got, Duck) if expected is Duck else got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (Order, "x", "takes Order, got str 'x'"),
        (Order, {}, "takes Order; it: object missing required field 'article'"),
        (Order, {"article": 1}, "takes Order; it.article takes str, got int"),
        (list[Order], [{"article": "a"}, {}], "takes list[Order]; it[1]: object missing required field 'article'"),
        (Job, {"parts": [1, "a"]}, "takes Job; it.parts[1] takes int, got str"),
        (Color, "blue", "takes Color; it: invalid enum value 'blue'"),
        (Annotated[int, msgspec.Meta(ge=10)], 9, "takes Annotated[int, Meta(ge=10)]; it: expected 'int' >= 10"),
        (dict[str, Order], {1: {}}, "takes dict[str, Order]; it key takes str, got int"),
        (tuple[bytes, ...], ["YQ=="], "takes tuple[bytes, ...]; it[0] takes bytes, got str"),
        (Duck, "x", "takes Duck; it: no dict"),
    ],
)
def test_what_msgspec_refuses_is_told_in_the_same_words(annotation: Any, value: Any, text: str) -> None:
    assert refuse(annotation, value) == f"math.add: argument 'it' {text}"


def test_pydantic_models() -> None:
    pydantic = pytest.importorskip("pydantic")
    order = pydantic.create_model("PydanticOrder", article=(str, ...), count=(int, 1))
    small = Annotated[int, pydantic.Field(lt=10)]
    basket = dataclasses.make_dataclass("Basket", [("order", order), ("number", int)])

    for annotation, value, expected in (
        (order, {"article": "nut"}, order(article="nut")),
        (list[order], [{"article": "nut"}], [order(article="nut")]),
        (order | None, None, None),
        (small, 9, 9),
        (basket, {"order": {"article": "nut"}, "number": 1}, basket(order(article="nut"), 1)),
    ):
        assert receive(annotation, value) == expected
    for annotation, value, text in (
        (order, {"count": "x"}, "takes PydanticOrder; it.article: Field required (and 1 more)"),
        (list[order], [{}], "takes list[PydanticOrder]; it[0].article: Field required"),
        (order, 7, "takes PydanticOrder; it: Input should be a valid dictionary or instance of PydanticOrder"),
        (small, 10, "; it: Input should be less than 10"),
        (small, "9", "; it: Input should be a valid integer"),
    ):
        assert refuse(annotation, value).endswith(text)


@pytest.mark.parametrize("annotation", [Order, list[Order], Order | None, tuple[int, str], Color])
def test_without_msgspec_registration_fails(monkeypatch: pytest.MonkeyPatch, annotation: Any) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(MissingExtra, match=r"^math\.add: argument 'it' needs msgspec for .*meshmsg\[typed\]"):
        Signature(taking(annotation), "math.add")


def test_without_pydantic_its_constraints_are_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    at_least = type("Ge", (), {"__module__": "annotated_types", "ge": 10})()
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(MissingExtra, match=r"argument 'it' needs pydantic for Annotated.*meshmsg\[pydantic\]"):
        Signature(taking(Annotated[int, at_least]), "math.add")


@pytest.mark.parametrize("annotation", [Unknown, list[Unknown], complex, Callable[[int], str], 7, type[int]])
def test_what_no_argument_can_become_fails_at_registration(annotation: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^math\.add: argument 'it' is annotated .* over the wire"):
        Signature(taking(annotation), "math.add")


def test_what_to_do_with_a_model_that_cannot_be_told_or_made() -> None:
    other = dataclasses.make_dataclass("Other", [("x", int)])
    later = dataclasses.make_dataclass("Later", [("x", int), ("seed", dataclasses.InitVar[int], 3)])
    plain, plainer = (msgspec.defstruct(name, [("x", int)]) for name in ("Plain", "Plainer"))
    for annotation in (Order | other, list[Order | other], Order | plain, Order | dict[str, Any], plain | plainer):
        with pytest.raises(
            ConfigurationError, match=r"which type of the union .* msgspec\.Struct with tag=True"
        ) as caught:
            Signature(taking(annotation), "math.add")
        assert "take what MessagePack carries" not in str(caught.value)
    for annotation in (later, list[later]):
        with pytest.raises(ConfigurationError, match=r"with an InitVar: make that a plain field"):
            Signature(taking(annotation), "math.add")
    # What it says can be done.
    here, there = (msgspec.defstruct(name, [("x", int)], tag=True) for name in ("Here", "There"))
    assert receive(here | there, {"type": "There", "x": 1}) == there(1)
    pydantic = pytest.importorskip("pydantic")
    first, second = (pydantic.create_model(name, **{field: int}) for name, field in (("First", "a"), ("Second", "b")))
    assert receive(first | second, {"b": 1}) == second(b=1)


VALUELESS = [typing.Never, typing.NoReturn, typing.Self]


@pytest.mark.parametrize("inside", VALUELESS)
def test_what_no_value_is_fails_at_registration(inside: Any) -> None:
    for annotation in (inside, list[inside], int | inside, Annotated[inside, "documented"], tuple[Order, inside]):
        with pytest.raises(ConfigurationError, match=r"^math\.add: argument 'it' is annotated .* can come from nobody"):
            Signature(taking(annotation), "math.add")
        with pytest.raises(ConfigurationError, match="can come from nobody"):
            make_converter(annotation, "pull('it')")
    with pytest.raises(ConfigurationError, match=r"^math\.add: what it returns is annotated .* can come from nobody"):
        Signature(returning(list[inside]), "math.add")


def test_a_method_may_promise_that_it_only_raises() -> None:
    for annotation in (typing.Never, typing.NoReturn):
        with pytest.raises(TypeError, match=r"returns (Never|NoReturn) by its annotation, got None"):
            Signature(returning(annotation), "math.add").check_result(None)
    with pytest.raises(ConfigurationError, match="can come from nobody"):
        Signature(returning(typing.Self), "math.add")


# --- results ------------------------------------------------------------------------------------------------------


def returning(annotation: Any) -> Callable[..., Any]:
    """Return a method that promises a result."""

    def method() -> Any: ...

    method.__annotations__ = {"return": annotation}
    return method


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        *((annotation, value) for annotation, value, _ in WITHOUT_LIBRARY),
        (int, True),  # Python's own subtypes
        (list[int], [True, 2]),
        (list[int], (1, 2)),  # the same on the wire
        (tuple[int, str], [1, "a"]),
        (Order, Order("nut")),
        (Order, {"article": "nut"}),
        (list[Order], [Order("nut"), {"article": "nut"}]),
        (Job, Job([1])),
        (Unknown, "anything"),
        (Literal["a"], "b"),
        (Annotated[int, msgspec.Meta(ge=10)], 1),
    ],
)
def test_results_that_fit(annotation: Any, value: Any) -> None:
    Signature(returning(annotation), "math.add").check_result(value)


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (int, "x", "returns int by its annotation, got str 'x'"),
        (None, 1, "returns None by its annotation, got int 1"),
        (int, None, "returns int by its annotation, got None"),
        (list[int], [1, "a"], "returns list[int] by its annotation, but the result[1] takes int, got str 'a'"),
        (Order, [1], "returns Order by its annotation, got list [1]"),
        (tuple[int, str], {}, "returns tuple[int, str] by its annotation, got dict {}"),
    ],
)
def test_results_that_do_not_fit_are_a_mistake_of_the_method(annotation: Any, value: Any, text: str) -> None:
    with pytest.raises(TypeError) as caught:
        Signature(returning(annotation), "math.add").check_result(value)
    assert str(caught.value) == f"math.add {text}"


# --- what nobody can send -----------------------------------------------------------------------------------------


class Mood(enum.Enum):
    GOOD = "good"


@dataclasses.dataclass
class Visit:
    """Cannot be sent, because of what it links to."""

    note: str
    next: Visit | None
    tags: typing.ClassVar[set[str]] = set()
    at: datetime.date | None = None


class Stay(msgspec.Struct):
    room: int
    parts: list[Visit]


class Price(typing.TypedDict):
    amount: decimal.Decimal


class Place(typing.NamedTuple):
    key: uuid.UUID


SENT_BY_NOBODY = [
    (uuid.UUID, "UUID: MessagePack has no UUID, so nobody can send it over the wire; annotate str instead"),
    (list[uuid.UUID] | None, "no UUID"),
    (datetime.date, "; annotate datetime or str instead"),
    (datetime.time, "no time"),
    (datetime.timedelta, "annotate float instead"),
    (decimal.Decimal, "annotate str instead"),
    (fractions.Fraction, "no Fraction"),
    (pathlib.Path, "no Path, "),
    (Mood, "no Mood, so nobody can send it over the wire; annotate a StrEnum, an IntEnum or a Literal instead"),
    (Literal[Mood.GOOD, "x"], "no Mood"),
    (set, "annotate list instead"),
    (dict[str, frozenset[int]], "dict[str, frozenset[int]]: MessagePack has no frozenset"),
    (collections.abc.Set[int], "no Set"),
    (complex, "no complex"),
    (Annotated[complex, "documented"], "no complex"),
    (Visit, "Visit, with date in Visit.at: MessagePack has no date"),
    (Stay, "Stay, with date in Visit.at: MessagePack has no date"),
    (Price, "Price, with Decimal in Price.amount"),
    (tuple[Place, ...], "with UUID in Place.key"),
]


@pytest.mark.parametrize(("annotation", "text"), SENT_BY_NOBODY)
def test_what_nobody_can_send_fails_at_registration(annotation: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as argument:
        Signature(taking(annotation), "math.add")
    assert str(argument.value).startswith("math.add: argument 'it' is annotated ") and text in str(argument.value)
    with pytest.raises(ConfigurationError) as result:
        Signature(returning(annotation), "math.add")
    assert str(result.value).startswith("math.add: what it returns is annotated ") and text in str(result.value)


def test_items_that_nobody_can_send_fail_at_registration() -> None:
    def numbers(to: Iterator[decimal.Decimal]) -> None: ...
    def dates() -> Iterator[datetime.date]:
        yield datetime.date(2026, 1, 2)

    with pytest.raises(ConfigurationError, match=r"^math\.add: argument 'to' is annotated Decimal"):
        Signature(numbers, "math.add")
    with pytest.raises(ConfigurationError, match=r"^math\.add: what it yields is annotated date"):
        Signature(dates, "math.add")


def test_a_pydantic_model_that_writes_its_fields_otherwise_can_be_sent() -> None:
    pydantic = pytest.importorskip("pydantic")
    text = Annotated[uuid.UUID, pydantic.PlainSerializer(str)]
    unsendable = pydantic.create_model("Unsendable", key=(uuid.UUID, ...))
    key = uuid.UUID(int=7)
    for sendable, value in (
        (pydantic.create_model("Typed", key=(text, ...)), key),
        (pydantic.create_model("Listed", key=(list[text], ...)), [key]),
        (pydantic.create_model("Hidden", key=(uuid.UUID, pydantic.Field(exclude=True))), key),
        (pydantic.create_model("Enums", __config__={"use_enum_values": True}, key=(Mood | None, ...)), Mood.GOOD),
    ):
        for annotation in (sendable, list[sendable] | None):
            Signature(taking(annotation), "math.add")
            Signature(returning(annotation), "math.add")
        make_packer()(sendable(key=value))
    with pytest.raises(ConfigurationError, match=r"is annotated list\[.*Unsendable\], with UUID in Unsendable.key"):
        Signature(taking(list[unsendable]), "math.add")
    with pytest.raises(TypeError):
        make_packer()(unsendable(key=key))


@pytest.mark.parametrize(
    "value", [Color.RED, enum.IntEnum("Number", "ONE")(1), enum.IntFlag("Flag", "A B")(3), {Color.RED: [NOW]}]
)
def test_enums_that_are_texts_or_numbers_travel(value: Any) -> None:
    if not isinstance(value, dict):
        assert receive(type(value), value) is value
    assert decode_body(make_packer()(value)) == value


# --- what contains itself ---------------------------------------------------------------------------------------


class TypeAliasType:
    """As ``type Name = ...`` makes since Python 3.12: the value is looked at when somebody asks for it."""

    def __init__(self, name: str, value: Callable[[], Any]) -> None:
        self.__name__ = name
        self._value = value

    @property
    def __value__(self) -> Any:
        return self._value()

    def __call__(self) -> None: ...  # what ``typing`` takes for a type

    def __repr__(self) -> str:
        return self.__name__


Tree: Any = TypeAliasType("Tree", lambda: dict[str, Tree])
Json: Any = TypeAliasType("Json", lambda: typing.Union[None, bool, int, float, str, list[Json], dict[str, Json]])  # noqa: UP007
Forest: Any = TypeAliasType("Forest", lambda: list[typing.Union[Order, Forest]])  # noqa: UP007
Nothing: Any = TypeAliasType("Nothing", lambda: Nothing)
Or: Any = TypeAliasType("Or", lambda: typing.Union[int, Or])  # noqa: UP007
There: Any = TypeAliasType("There", lambda: typing.Union[list[Back], Back])  # noqa: UP007
Back: Any = TypeAliasType("Back", lambda: Inner)
Inner: Any = NewType("Inner", object)
Inner.__supertype__ = There
Endless = dict[str, "Endless"]


def takes(annotation: Any) -> Signature:
    def method(value):  # type: ignore[no-untyped-def]
        return value

    method.__annotations__ = {"value": annotation, "return": annotation}
    return Signature(method, "math.method")


def test_an_alias_may_contain_itself() -> None:
    tree, json = takes(Tree), takes(list[Json])
    value = {"a": {"b": {}}}
    assert tree.bind([value], {}) == ([value], {})
    tree.check_result(value)
    with pytest.raises(BadRequest, match=re.escape("value['a']['b'] takes Tree, got int 1")):
        tree.bind([{"a": {"b": 1}}], {})
    with pytest.raises(TypeError, match=re.escape("the result['a']['b'] takes Tree, got int 1")):
        tree.check_result({"a": {"b": 1}})
    mixed = [1, None, [2.5, {"a": ["b"]}]]
    assert json.bind([mixed], {}) == ([mixed], {})
    with pytest.raises(BadRequest, match="argument 'value' takes list"):
        json.bind([[1, {"a": b"raw"}]], {})


def test_what_is_nested_too_deeply_is_a_bad_request() -> None:
    value: dict[str, Any] = {}
    for _ in range(5000):
        value = {"a": value}
    with pytest.raises(BadRequest, match="value is nested too deeply"):
        takes(Tree).bind([value], {})
    with pytest.raises(TypeError, match="the result is nested too deeply"):
        takes(Tree).check_result(value)


def test_of_a_long_way_to_what_is_wrong_the_middle_is_left_out() -> None:
    value: Any = 1
    for place in range(200):
        value = {f"level {place}": value}
    with pytest.raises(BadRequest) as refused:
        takes(Tree).bind([value], {})
    text = str(refused.value)
    assert "value['level 199']['level 198'][" in text and "]['level 1']['level 0'] takes Tree, got int 1" in text
    assert len(text) < 300


@pytest.mark.parametrize("annotation", [Nothing, Or, There, list[Or]])
def test_an_alias_that_is_nothing_but_itself_is_refused(annotation: Any) -> None:
    with pytest.raises(ConfigurationError, match="contains itself without a list or dict in between"):
        takes(annotation)


def test_an_alias_of_models_that_contains_itself_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the alias Forest contains itself: write it as a dataclass"):
        takes(Forest)
    with pytest.raises(ConfigurationError, match="MessagePack has no set"):
        takes(TypeAliasType("Sets", lambda: dict[str, set[int]]))


def test_a_list_that_names_itself_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="where 'Endless' is only a name: import it at run time too"):
        takes(Endless)


def test_a_model_may_contain_itself() -> None:
    found, _ = takes(Leaf).bind([{"leaves": [{"leaves": []}]}], {})
    assert found == [Leaf([Leaf([])])]
