"""Models on the way: what was sent as a model becomes the same model again, by its own library's rules."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pydantic.dataclasses
import pytest

from meshmsg import Node
from meshmsg.errors import BadRequest, EncodeError
from meshmsg.sockets.conversions import make_argument_check, make_converter, make_result_check
from meshmsg.sockets.signatures import Signature
from meshmsg.wire.codec import decode_body, explain_encode_error, make_packer


class Paid(msgspec.Struct, tag=True):
    cents: int


class Failed(msgspec.Struct, tag=True):
    cents: int


class Order(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    order_id: int


class Point(msgspec.Struct, array_like=True, tag="point"):
    x: int
    y: int = 0


class Patch(msgspec.Struct, omit_defaults=True, tag=7, tag_field="kind", rename={"name": "title"}):
    name: str | msgspec.UnsetType | None = msgspec.UNSET
    size: int = 5
    parts: list[int] = []
    links: dict[str, int] = msgspec.field(default_factory=dict)


@dataclasses.dataclass
class Receipt:
    outcome: Paid | Failed
    points: list[Point]
    note: str | msgspec.UnsetType = msgspec.UNSET


class Aliased(pydantic.BaseModel):
    mine: int = pydantic.Field(alias="theirs")


class Square(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    side: int
    inner: Aliased | None = None

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.side * self.side


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    size: int = 1


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    size: int = 1


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Anything(pydantic.RootModel[list[Any]]):
    pass


@pydantic.dataclasses.dataclass
class Labelled:
    text: str = pydantic.Field(alias="label")


@dataclasses.dataclass
class Zoo:
    animals: list[Cat | Dog]
    square: Square


SENT = [
    (Paid, Paid(1), {"type": "Paid", "cents": 1}),
    (Paid | Failed, Failed(1), {"type": "Failed", "cents": 1}),
    (Paid | Failed | None, Paid(1), {"type": "Paid", "cents": 1}),
    (list[Paid | Failed], [Failed(1)], [{"type": "Failed", "cents": 1}]),
    (Order, Order(1), {"orderId": 1}),
    (Point, Point(1, 2), ["point", 1, 2]),
    (Patch, Patch(), {"kind": 7}),
    (Patch, Patch("a", 6, [1], {"b": 2}), {"kind": 7, "title": "a", "size": 6, "parts": [1], "links": {"b": 2}}),
    (
        Receipt,
        Receipt(Paid(1), [Point(2)]),
        {"outcome": {"type": "Paid", "cents": 1}, "points": [["point", 2, 0]]},
    ),
    (Aliased, Aliased(theirs=1), {"theirs": 1}),
    (Square, Square(side=2, inner=Aliased(theirs=1)), {"side": 2, "inner": {"theirs": 1}}),
    (Cat | Dog, Dog(), {"kind": "dog", "size": 1}),
    (Annotated[Cat | Dog, pydantic.Field(discriminator="kind")], Dog(), {"kind": "dog", "size": 1}),
    (Numbers, Numbers([1, 2]), [1, 2]),
    (Labelled, Labelled(label="a"), {"label": "a"}),
    (
        Zoo,
        Zoo([Dog(), Cat()], Square(side=1)),
        {
            "animals": [{"kind": "dog", "size": 1}, {"kind": "cat", "size": 1}],
            "square": {"side": 1, "inner": None},
        },
    ),
]


@pytest.mark.guarantee("G11")
@pytest.mark.parametrize(("annotation", "value", "sent"), SENT)
def test_a_model_becomes_the_same_model_again(annotation: Any, value: Any, sent: Any) -> None:
    body = decode_body(make_packer()(value))
    assert body == sent
    argument, result = make_argument_check(annotation, "it"), make_result_check(annotation, "it")
    body_of = make_converter(annotation, "pull('it')")
    assert argument is not None and body_of is not None
    assert argument.convert(body) == value and body_of(body) == value
    if result is not None:
        result.convert(value)
        result.convert(body)


@pytest.mark.parametrize("value", [each for _, each, _ in SENT if isinstance(each, msgspec.Struct)])
def test_structs_travel_as_their_library_sends_them(value: Any) -> None:
    assert decode_body(make_packer()(value)) == msgspec.to_builtins(value)


@pytest.mark.parametrize("value", [Point(1, object()), Anything([1, object()])])  # type: ignore[arg-type]
def test_an_error_leads_into_models_that_travel_as_lists(value: Any) -> None:
    with pytest.raises(TypeError) as failed:
        make_packer()(value)
    error = explain_encode_error(value, failed.value)
    assert isinstance(error, EncodeError) and error.path in ("body[1]", "body[2]")


@pytest.mark.parametrize("kind", [Paid, Cat, Zoo, Labelled])
def test_a_class_is_no_model(kind: type) -> None:
    with pytest.raises(TypeError) as failed:
        make_packer()(kind)
    assert explain_encode_error(kind, failed.value).path == "body"


async def test_models_go_to_a_method_and_come_back_as_they_went() -> None:
    async with Node("node", mesh=f"models-{uuid.uuid4().hex[:12]}", mdns=False, drain=0) as node:
        router = node.router("echo")

        @router.method
        async def echo(it: Paid | Failed, order: Order) -> Receipt:
            assert isinstance(it, Failed) and isinstance(order, Order)
            return Receipt(it, [])

        @router.method
        async def echo_items(items: AsyncIterator[Paid | Failed]) -> AsyncIterator[Paid | Failed]:
            async for item in items:
                yield item

        dealer = node.dealer("echo")
        answer = await dealer.echo(Failed(3), Order(1), timeout=10)
        assert answer == {"outcome": {"type": "Failed", "cents": 3}, "points": []}
        again = [{"type": "Failed", "cents": 1}, Paid(2)]
        answers = [each async for each in dealer.stream("echo_items", items=again, timeout=10)]
        assert answers == [{"type": "Failed", "cents": 1}, {"type": "Paid", "cents": 2}]


@dataclasses.dataclass
class Plain:
    a: int


class Loose(msgspec.Struct):
    a: int


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    a: int


class Named(TypedDict):
    a: int


class LaxModel(pydantic.BaseModel):
    a: int


class StrictModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    a: int


def arrives(annotation: Any, value: Any) -> bool:
    """Whether a method that takes this is called with it."""

    def method(it: Any) -> None: ...

    method.__annotations__ = {"it": annotation}
    try:
        Signature(method, "math.add").bind([value], {})
    except BadRequest:
        return False
    return True


@pytest.mark.parametrize(
    ("annotation", "takes_text", "takes_more"),
    [
        (Plain, False, True),
        (Loose, False, True),
        (Strict, False, False),
        (Named, False, True),
        (LaxModel, True, True),
        (StrictModel, False, False),
    ],
)
def test_how_strict_a_model_is_it_says_itself(annotation: Any, takes_text: bool, takes_more: bool) -> None:
    """As docs/requests.md says: what a model does not know is left out, and pydantic's convert texts."""
    assert arrives(annotation, {"a": 1})
    assert arrives(annotation, {"a": "1"}) is takes_text
    assert arrives(annotation, {"a": 1, "more": 2}) is takes_more
