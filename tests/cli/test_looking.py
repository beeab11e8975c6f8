"""`meshmsg nodes` and `meshmsg queues`: what a mesh shows of itself."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from meshmsg.cli import nodes, queues
from meshmsg.cli.looking import Listing
from meshmsg.cli.session import Session
from tests.cli.shell import Shell, interrupt, read_line

# Listings return as soon as the mesh is quiet; this only bounds a busy machine.
PATIENT = ("--timeout", "20")


def read_document(text: str) -> Any:
    return json.loads(text)


def test_nodes_lists_who_is_there(shell: Shell) -> None:
    pull = shell.start("pull", "jobs")
    ended = shell.run("nodes", "--json", *PATIENT)
    assert ended.code == 0, ended
    document = read_document(ended.stdout)
    assert list(document) == ["mesh", "nodes"] and document["mesh"] == shell.mesh
    [node] = document["nodes"]
    assert list(node) == ["name", "id", "state", "endpoints", "pulls", "pushes"]
    assert node["name"] == f"pull-{pull.pid}"
    assert node["state"] == "alive"
    assert node["endpoints"][0].startswith("tcp://127.0.0.1:")
    assert (node["pulls"], node["pushes"]) == (["jobs"], [])


def test_queues_lists_both_ends(shell: Shell) -> None:
    push = shell.start("push", "waiting", "a")
    ended = shell.run("queues", "--json", *PATIENT)
    assert ended.code == 0, ended
    document = read_document(ended.stdout)
    assert list(document) == ["mesh", "queues"]
    [queue] = document["queues"]
    assert queue["queue"] == "waiting" and queue["consumers"] == []
    [producer] = queue["producers"]
    assert list(producer) == ["name", "id", "state"] and producer["name"] == f"push-{push.pid}"


def test_without_a_terminal_a_listing_is_one_row_a_line(shell: Shell) -> None:
    pull = shell.start("pull", "jobs")
    header, row = shell.run("nodes", *PATIENT).lines
    assert header.split() == ["name", "id", "state", "endpoints", "pulls", "pushes"]
    assert row.split()[0] == f"pull-{pull.pid}" and row.split()[-2:] == ["jobs", "-"]
    header, row = shell.run("queues", *PATIENT).lines
    assert header.split() == ["queue", "producers", "consumers"]
    assert row.split() == ["jobs", "-", f"pull-{pull.pid}"]


@pytest.mark.parametrize("terminal", [False, True])
async def test_names_are_printed_as_they_are(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """What other nodes call themselves must not steer the printing."""
    printed = io.StringIO()
    monkeypatch.setattr("sys.stdout", printed)
    monkeypatch.setenv("COLUMNS", "200")
    names = ["[/]", "[red]x[/red]", "[link=http://x]y", ":smile:", "\\[b]"]
    session = Session()
    for module in (nodes, queues):
        rows = [["-"] * (len(module.COLUMNS) - 1) + [name] for name in names]
        listing = Listing(session, module.COLUMNS, lambda _: {}, lambda _, rows=rows: rows)  # type: ignore[misc]
        listing._is_terminal = terminal
        listing._print({})
    lines = [line.split()[-1] for line in printed.getvalue().splitlines() if line.strip()]
    assert [line for line in lines if line in names] == names * 2


@pytest.mark.parametrize("terminal", [False, True])
def test_what_cannot_be_seen_is_shown(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    printed = io.StringIO()
    monkeypatch.setattr("sys.stdout", printed)
    monkeypatch.setenv("COLUMNS", "200")
    names = ["a\u200b", "*\u202e.b", "\x1b[2J", "c\x9b\x07", "d\te"]
    listing = Listing(Session(), ("topic",), lambda _: {}, lambda _: [[name] for name in names])
    listing._is_terminal = terminal
    listing._print({})
    lines = [line.strip() for line in printed.getvalue().splitlines() if line.strip()]
    assert lines[-5:] == ["a\\u200b", "*\\u202e.b", "\\u001b[2J", "c\\u009b\\u0007", "d\\u0009e"]


def test_a_name_in_brackets_is_found(shell: Shell) -> None:
    shell.start("pull", "[red]jobs[/red]")
    _, row = shell.run("queues", *PATIENT).lines
    assert row.split()[0] == "[red]jobs[/red]"


@pytest.mark.parametrize("verb", ["nodes", "queues"])
def test_an_empty_mesh_has_an_exit_code(shell: Shell, verb: str) -> None:
    ended = shell.run(verb, "--timeout", "0.1")
    assert (ended.code, ended.stdout) == (1, "")
    assert f"no nodes found in mesh {shell.mesh!r}" in ended.stderr
    ended = shell.run(verb, "--timeout", "0.1", "--json")
    assert (ended.code, read_document(ended.stdout)) == (1, {"mesh": shell.mesh, verb: []})


def test_nodes_without_queues_are_no_queues(shell: Shell) -> None:
    shell.start("nodes", "--watch", "--json")
    ended = shell.run("queues", *PATIENT)
    assert ended.code == 1
    assert "nodes found: 1, but no queues" in ended.stderr


def test_watch_prints_a_line_at_every_change(shell: Shell) -> None:
    watch = shell.start("queues", "--watch", "--json", "--timeout", "0.1")
    assert read_document(read_line(watch))["queues"] == []
    pull = shell.start("pull", "jobs")
    [queue] = read_document(read_line(watch))["queues"]
    assert queue["queue"] == "jobs" and queue["consumers"][0]["name"] == f"pull-{pull.pid}"
    interrupt(pull)
    while left := read_document(read_line(watch))["queues"]:
        assert left[0]["consumers"][0]["state"] == "suspect"  # for a moment, on a machine that is busy
    ended = interrupt(watch)
    assert (ended.code, ended.stderr) == (0, "")


def test_a_watch_ends_when_nobody_reads_it(shell: Shell) -> None:
    watch = shell.start("nodes", "--watch", "--json", "--timeout", "0.1")
    read_line(watch)
    assert watch.stdout is not None and watch.stderr is not None
    watch.stdout.close()
    shell.start("pull", "jobs")  # a change that cannot be printed
    assert watch.wait(timeout=30) == 0
    assert watch.stderr.read() == b""
