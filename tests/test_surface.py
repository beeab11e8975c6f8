"""What tab completion offers to somebody who explores: the names of the documentation, and nothing of the inside.

A name without an underscore is a promise to applications. Whoever adds one adds it here, and to the documentation.
"""

from __future__ import annotations

from typing import Any

import pytest

import meshmsg
import meshmsg.blocking
from meshmsg.observe.events import EventStream

NODE = """close counters dead_letters dealer endpoints events id ledger mesh name peers pub pull push raw redrive
router run start sub wait_for"""
CONSUMER = "batches close get options unsettled"
SENDER = "close send send_many send_nowait"
# By what makes it; the second of two is the face without await, where that differs.
SURFACES: dict[str, tuple[str, ...]] = {
    "node": (f"{NODE} drain", NODE),
    "push": (f"{SENDER} deliver flush ledger on_dead_letter options queue",),
    "push, reliable=False": (f"{SENDER} queue",),
    "pull": (f"{CONSUMER} queue",),
    "pull, reliable=False": (f"{CONSUMER} queue refused", f"{CONSUMER} queue"),
    "pub": (f"{SENDER} delete_retained lag options pattern",),
    "sub": (
        f"{CONSUMER} conflated discarded gaps pattern queue",
        f"{CONSUMER} conflated discarded dropped gaps pattern",
    ),
    "sub, group=": (f"{CONSUMER} group pattern queue",),
    "router": ("close files method methods offer options service serving",),
    "dealer": ("close fetch options request send_file service stream survey",),
}
OTHERS = {
    "message": "ack attempt body extend headers id key nack priority queue redelivered reject sender settled topic",
    "batch": "ack bodies count index messages nack",
    "events": "close get poll",
}


def names_of(target: object) -> list[str]:
    return [name for name in dir(target) if not name.startswith("_")]


def open_all(node: Any) -> dict[str, Any]:
    """One of everything that a node opens, and the node."""
    return {
        "node": node,
        "push": node.push("a"),
        "push, reliable=False": node.push("b", reliable=False),
        "pull": node.pull("a"),
        "pull, reliable=False": node.pull("b", reliable=False),
        "pub": node.pub("t"),
        "sub": node.sub("t"),
        "sub, group=": node.sub("t", group="g"),
        "router": node.router("s"),
        "dealer": node.dealer("s"),
    }


@pytest.mark.parametrize("kind", [meshmsg.Node, meshmsg.blocking.Node])
def test_what_a_node_opens_shows_what_is_documented(kind: Any) -> None:
    opened = open_all(kind("node", mdns=False))
    assert {what: names_of(each) for what, each in opened.items()} == {
        what: sorted(faces[-1 if kind is meshmsg.blocking.Node else 0].split()) for what, faces in SURFACES.items()
    }


def test_what_applications_are_given_shows_what_is_documented() -> None:
    given = {"message": meshmsg.Message, "batch": meshmsg.Batch, "events": EventStream}
    assert {what: names_of(kind) for what, kind in given.items()} == {
        what: sorted(names.split()) for what, names in OTHERS.items()
    }
