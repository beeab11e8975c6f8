"""`type=`: bodies in the consumer's own types, and what becomes of those that do not fit."""

from __future__ import annotations

import dataclasses
import sys
import uuid
from typing import Any

import msgspec
import pytest

from meshmsg import ConfigurationError, Message, MissingExtra, Node
from meshmsg.sockets.typed import make_converter

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


@pytest.mark.parametrize("wanted", [Picture, dict[str, int]])
async def test_without_msgspec(monkeypatch: pytest.MonkeyPatch, wanted: Any) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)  # importing it raises ImportError
    with pytest.raises(
        MissingExtra, match=r'pull\(\'work\', type=\.\.\.\) needs msgspec: pip install "meshmsg\[typed\]"'
    ):
        make_converter(wanted, "pull('work')")


@pytest.mark.parametrize("wanted", ["Picture", 7, {"a": int}])
def test_what_is_no_type(wanted: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"pull\('work', type=.*no type to decode into"):
        make_converter(wanted, "pull('work')")


@pytest.mark.parametrize("reliable", [True, False])
async def test_a_type_that_cannot_be_leaves_the_queue_free(reliable: bool) -> None:
    async with make() as node:
        with pytest.raises(ConfigurationError):
            node.pull("work", type=7, reliable=reliable)
        node.pull("work", reliable=reliable)
