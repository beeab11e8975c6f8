"""How sockets look when they are printed: never an error, whatever state they are in."""

from __future__ import annotations

from typing import Any

from meshmsg import Node
from meshmsg.blocking import Node as BlockingNode
from meshmsg.sockets.shown import Shown


class Thing(Shown):
    """One whose state can be had, or not."""

    def __init__(self, state: Any) -> None:
        self._given = state

    def _title(self) -> str:
        return repr("thing")

    def _state(self) -> str:
        if isinstance(self._given, Exception):
            raise self._given
        return str(self._given)


def test_the_shape() -> None:
    assert repr(Thing("3 pending")) == "<Thing 'thing': 3 pending>"
    assert repr(Thing("")) == "<Thing 'thing'>"


def test_what_changes_under_its_hands_is_left_out() -> None:
    assert repr(Thing(RuntimeError("dictionary changed size during iteration"))) == "<Thing 'thing'>"


def test_what_was_never_made_whole_can_be_printed() -> None:
    assert repr(Shown()) == "<Shown>"
    for kind in (Node, BlockingNode):
        node = kind("node", mdns=False)
        opened: list[Any] = [
            node,
            node.push("q"),
            node.pull("q"),
            node.pub("t"),
            node.sub("t"),
            node.sub("t", group="g"),
        ]
        opened += [node.router("s"), node.dealer("s"), node.push("b", reliable=False), node.pull("b", reliable=False)]
        for each in opened:
            name = type(each).__name__
            assert repr(each).startswith(f"<{name} "), each
            assert repr(object.__new__(type(each))) == f"<{name}>"
