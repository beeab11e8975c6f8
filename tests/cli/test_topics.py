"""`meshmsg topics`: what a mesh says of its topics."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshmsg.cli.topics import describe, tabulate
from meshmsg.message import Peer
from tests.cli.shell import Shell, interrupt, read_line

PATIENT = ("--timeout", "20")


class Seen:
    """Stands for a node that sees these peers."""

    mesh = "m"

    def __init__(self, *peers: Peer) -> None:
        self._peers = peers

    def peers(self) -> tuple[Peer, ...]:
        return self._peers


def peer(name: str, state: Any = "alive", **offers: Any) -> Peer:
    return Peer(f"id-{name}", name, state, (), offers, 0.0)


def rows(*peers: Peer) -> list[tuple[str, ...]]:
    node: Any = Seen(*peers)
    return [tuple(row) for row in tabulate(describe(node))]


def test_subscribers_stand_where_some_topic_matches() -> None:
    found = rows(
        peer("p", pub={"a.b": {}, "a.*": {"window": 7}}),
        peer("s", sub={"a.b": {}, "a.**": {}, "b.**": {}}),
        peer("t", "suspect", sub={"b.**": {}}),
        peer("g", group={"group:x@*.b": {"group": "x", "pattern": "*.b"}}),
    )
    assert found == [
        ("a.*", "p", "g (group x, *.b), s (a.**), s (a.b)"),
        ("a.b", "p", "g (group x, *.b), s (a.**), s"),
        ("b.**", "-", "s, t (suspect)"),
    ]


def test_the_document_has_what_offers_tell() -> None:
    node: Any = Seen(peer("p", pub={"a": {"window": 7, "window_bytes": "x"}}), peer("s", sub={"*": {}}))
    assert describe(node) == {
        "mesh": "m",
        "topics": [
            {
                "topic": "a",
                "reliable": True,
                "publishers": [{"name": "p", "id": "id-p", "state": "alive", "window": 7, "window_bytes": None}],
                "subscribers": [{"name": "s", "id": "id-s", "state": "alive", "pattern": "*", "group": None}],
            }
        ],
    }


def test_bare_ends_meet_bare_ends_only() -> None:
    found = rows(
        peer("p", pub={"a": {}}, bare_pub={"a": {}, "b.*": {}}),
        peer("s", sub={"**": {}}, bare_sub={"b.c": {}, "d": {}}),
        peer("t", bare_sub={"a": {}}),
    )
    assert found == [
        ("a", "p", "s (**)"),
        ("a (reliable=False)", "p", "t"),
        ("b.* (reliable=False)", "p", "s (b.c)"),
        ("d (reliable=False)", "-", "s"),
    ]


@pytest.mark.parametrize("details", [{}, {"group": 7, "pattern": None}, {"pattern": ""}])
def test_strange_offers_do_no_harm(details: dict[str, Any]) -> None:
    found = rows(peer("p", pub={"a..b": {"window": "x"}, "": {}}), peer("g", group={"group:x@a": details}))
    assert {row[0] for row in found} >= {"", "a..b"}


def test_topics_lists_both_ends(shell: Shell) -> None:
    sub = shell.start("sub", "sensors.*")
    pub = shell.start("pub", "sensors.attic", "21", "--retain")
    assert pub.stderr is not None and pub.stderr.readline()
    watch = shell.start("topics", "--watch", "--json")
    while not any(row["publishers"] and row["subscribers"] for row in json.loads(read_line(watch))["topics"]):
        pass
    header, row = shell.run("topics", *PATIENT).lines
    assert header.split() == ["topic", "publishers", "subscribers"]
    assert row.split() == ["sensors.attic", f"pub-{pub.pid}", f"sub-{sub.pid}", "(sensors.*)"]
    assert interrupt(watch).code == 0


def test_an_empty_mesh_has_an_exit_code(shell: Shell) -> None:
    ended = shell.run("topics", "--timeout", "0.1", "--json")
    assert (ended.code, json.loads(ended.stdout)) == (1, {"mesh": shell.mesh, "topics": []})
    assert f"no nodes found in mesh {shell.mesh!r}" in ended.stderr


def test_nodes_without_topics_are_no_topics(shell: Shell) -> None:
    shell.start("nodes", "--watch", "--json")
    ended = shell.run("topics", *PATIENT)
    assert ended.code == 1
    assert "nodes found: 1, but no topics" in ended.stderr
