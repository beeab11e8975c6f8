"""The error tree: as drawn, all public, each also the built-in that fits."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re

import pytest

import meshmsg
from meshmsg import errors
from meshmsg.errors import DeadLettered, EncodeError, MeshError, Reject
from meshmsg.message import DeadLetter

CLASSES = {
    name: found
    for name, found in vars(errors).items()
    if inspect.isclass(found) and issubclass(found, BaseException) and found.__module__ == errors.__name__
}
LINE = re.compile(r"^    (?P<indent>[│ ]*)(?:├── |└── )(?P<name>\w+)(?: \((?P<bases>[\w, ]+)\))?", re.MULTILINE)


def drawn() -> dict[str, tuple[str, set[str]]]:
    """Each error in the docstring: its parent in the tree, and the built-ins beside it."""
    tree: dict[str, tuple[str, set[str]]] = {}
    parents = {0: "MeshError"}
    for match in LINE.finditer(errors.__doc__ or ""):
        depth = len(match["indent"]) // 4
        tree[match["name"]] = (parents[depth], set((match["bases"] or "").split(", ")) - {""})
        parents[depth + 1] = match["name"]
    return tree


def test_the_tree_is_drawn_as_it_is() -> None:
    tree = drawn()
    assert set(tree) | {"MeshError", "Reject"} == set(CLASSES)
    for name, (parent, beside) in tree.items():
        bases = {base.__name__ for base in CLASSES[name].__bases__}
        assert bases == {parent} | beside, name
        assert all(hasattr(builtins, base) for base in beside), name


def test_every_error_is_public() -> None:
    assert set(CLASSES) <= set(meshmsg.__all__)
    assert all(getattr(meshmsg, name) is found for name, found in CLASSES.items())


def test_every_error_but_reject_is_a_mesh_error() -> None:
    assert not issubclass(Reject, MeshError)
    assert all(issubclass(found, MeshError) for name, found in CLASSES.items() if name != "Reject")


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"DeadLettered", "EncodeError"}))
def test_a_plain_error_says_what_it_was_given(name: str) -> None:
    assert str(CLASSES[name]("what to do next")) == "what to do next"


def test_errors_that_carry_more() -> None:
    assert EncodeError("no", "body[1]").path == "body[1]"
    letter = DeadLetter("n/q/1", "q", 1, {}, None, "rejected", "no", (), 1.0, 2.0)
    assert DeadLettered("dead", letter).letter is letter


def test_an_encode_error_survives_a_process_pool() -> None:
    assert pickle.loads(pickle.dumps(EncodeError("no"))).args == ("no",)
