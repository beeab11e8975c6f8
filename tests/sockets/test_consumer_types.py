"""`type=`: bodies in the consumer's own types, and what becomes of those that do not fit."""

from __future__ import annotations

import dataclasses
import datetime
import sys
import uuid
from typing import Any

import msgspec
import pytest

from meshmsg import ConfigurationError, Message, MissingExtra, Node
from meshmsg.sockets.conversions import make_converter

PATIENCE_S = 10.0


@dataclasses.dataclass
class Picture:
    path: str
    width: int = 0


class Job(msgspec.Struct):
    name: str
    parts: list[int]


class Model:
    """Looks to meshmsg like a pydantic model."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def model_validate(cls, value: Any) -> Model:
        if not isinstance(value, dict):
            raise ValueError("no dict")
        return cls(**value)


def make() -> Node:
    return Node("node", mesh=f"typed-{uuid.uuid4().hex[:12]}", mdns=False, drain=0)


@pytest.mark.parametrize(
    ("wanted", "body", "expected"),
    [
        (Picture, {"path": "a.jpg"}, Picture("a.jpg")),
        (Picture, Picture("a.jpg", 7), Picture("a.jpg", 7)),
        (Job, Job("a", [1, 2]), Job("a", [1, 2])),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (tuple[int, str], [1, "a"], (1, "a")),
        (int | None, None, None),
    ],
)
async def test_a_body_comes_in_its_type(wanted: Any, body: Any, expected: Any) -> None:
    async with make() as node:
        pull = node.pull("work", type=wanted)
        await node.push("work").send(body)
        message = await pull.get(PATIENCE_S)
        assert message.body == expected and type(message.body) is type(expected)
        message.ack()


async def test_a_model_with_a_validator_of_its_own_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    async with make() as node:
        pull = node.pull("work", type=Model)
        await node.push("work").send({"path": "a.jpg"})
        message = await pull.get(PATIENCE_S)
        assert isinstance(message.body, Model) and message.body.path == "a.jpg"
        message.ack()


async def test_a_pydantic_model() -> None:
    pydantic = pytest.importorskip("pydantic")
    picture = pydantic.create_model("Picture", path=(str, ...), width=(int, 0))
    async with make() as node:
        pull = node.pull("work", type=picture)
        push = node.push("work")
        await push.send(picture(path="a.jpg"))
        message = await pull.get(PATIENCE_S)
        assert message.body == picture(path="a.jpg")
        message.ack()
        await push.send({"width": 7})
        await push.flush(PATIENCE_S)
        assert [letter.reason for letter in node.dead_letters()] == ["rejected"]


@pytest.mark.guarantee("G4")
@pytest.mark.parametrize("wanted", [Picture, Model])
async def test_a_body_that_does_not_fit_is_rejected_at_once_and_costs_no_other(wanted: Any) -> None:
    async with make() as node:
        bodies: list[Any] = []

        @node.pull("work", type=wanted)
        async def handle(message: Message) -> None:
            bodies.append(message.body.path)

        push = node.push("work")
        await push.send_many([{"path": "a"}, ["no dict"], {"path": "b"}])
        await push.flush(PATIENCE_S)
        assert bodies == ["a", "b"]
        (letter,) = node.dead_letters()
        assert (letter.reason, letter.body) == ("rejected", ["no dict"])
        assert "does not fit the type of 'work'" in letter.error
        assert push.ledger().processed == 2


@pytest.mark.parametrize("wanted", [Picture, tuple[int, str]])
def test_without_msgspec(monkeypatch: pytest.MonkeyPatch, wanted: Any) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)  # importing it raises ImportError
    with pytest.raises(
        MissingExtra,
        match=r"^pull\('work', type=\.\.\.\): the body needs msgspec for .*pip install \"meshmsg\[typed\]\"",
    ):
        make_converter(wanted, "pull('work')")


@pytest.mark.parametrize(
    ("wanted", "fits", "misfit", "why"),
    [
        (int, 3, "3", "body takes int, got str '3'"),
        (int | None, None, 1.5, "body takes int | None, got float 1.5"),
        (list[int], [1, 2], [1, "x"], "body takes list[int]; body[1] takes int, got str 'x'"),
        (dict[str, float], {"a": 1.5}, {"a": []}, "body takes dict[str, float]; body['a'] takes float, got list []"),
    ],
)
def test_what_python_has_itself_needs_no_library(
    monkeypatch: pytest.MonkeyPatch, wanted: Any, fits: Any, misfit: Any, why: str
) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    convert = make_converter(wanted, "pull('work')")
    assert convert is not None and convert(fits) == fits
    with pytest.raises(ValueError) as caught:
        convert(misfit)
    assert str(caught.value) == why


@pytest.mark.parametrize(
    ("wanted", "misfit", "why"),
    [
        (Picture, ["a"], "body takes Picture, got list ['a']"),
        (Picture, {"path": 7}, "body takes Picture; body.path takes str, got int"),
        (Picture, {}, "body takes Picture; body: object missing required field 'path'"),
        (Job, {"name": "a", "parts": [1, "x"]}, "body takes Job; body.parts[1] takes int, got str"),
        (Model, 7, "body takes Model; body: no dict"),
    ],
)
def test_what_does_not_fit_is_said_as_of_an_argument(wanted: Any, misfit: Any, why: str) -> None:
    convert = make_converter(wanted, "sub('work')")
    assert convert is not None
    with pytest.raises(ValueError) as caught:
        convert(misfit)
    assert str(caught.value) == why


@dataclasses.dataclass
class Seen:
    at: datetime.datetime
    who: uuid.UUID
    tags: set[str] = dataclasses.field(default_factory=set)


def test_a_body_may_come_from_where_there_are_only_texts() -> None:
    convert = make_converter(Seen, "pull('work')")
    assert convert is not None
    who = uuid.UUID(int=7)
    seen = convert({"at": "2026-01-02T03:04:05Z", "who": str(who), "tags": ["a"]})
    assert seen == Seen(datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), who, {"a"})


def test_what_may_be_anything_costs_nothing() -> None:
    assert make_converter(Any, "pull('work')") is None


@pytest.mark.parametrize("wanted", ["Picture", 7, {"a": int}])
def test_what_is_no_type(wanted: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^pull\('work', type=\.\.\.\): the body is annotated"):
        make_converter(wanted, "pull('work')")


@pytest.mark.parametrize("reliable", [True, False])
async def test_a_type_that_cannot_be_leaves_the_queue_free(reliable: bool) -> None:
    async with make() as node:
        with pytest.raises(ConfigurationError):
            node.pull("work", type=7, reliable=reliable)
        node.pull("work", reliable=reliable)
