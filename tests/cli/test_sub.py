"""`meshmsg sub` without a mesh: what it asks its node for, and how lines look."""

from __future__ import annotations

import asyncio
from typing import Any, Self

import pytest
from click.testing import CliRunner

from meshmsg.cli import sub as sub_module
from meshmsg.cli.bodies import to_single_line
from meshmsg.cli.pull import BadFormat, make_render
from meshmsg.cli.session import Session
from meshmsg.cli.tap import Tape
from meshmsg.message import Gap
from meshmsg.testing import make_message


class Recorder:
    """Stands for a node; notes what it is asked for, and refuses it."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    def sub(self, pattern: str, **options: Any) -> None:
        options.pop("on_gap", None)
        self.asked = {"pattern": pattern, **options}
        raise BadFormat("seen")


def ask(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what a node was asked for."""
    recorder, codes = Recorder(), []
    monkeypatch.setattr(Session, "make_node", lambda session, role: recorder)
    monkeypatch.setattr(sub_module, "run", lambda serve: codes.append(asyncio.run(serve(None))))
    result = CliRunner().invoke(sub_module.sub, arguments)
    return (codes or [result.exit_code])[0], recorder.asked


def test_options_reach_the_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"pattern": "a", "replay": "none", "latest": False, "where": None}
    assert ask(monkeypatch, "a")[1] == plain
    where = ("--where", "lang=de", "--where", "x=1=2")
    assert ask(monkeypatch, "a", *where)[1] == {**plain, "where": {"lang": "de", "x": "1=2"}}
    group = {"pattern": "a", "group": "g", "prefetch": 256, "durable": False, "where": None}
    assert ask(monkeypatch, "a", "--group", "g")[1] == group
    found = ask(monkeypatch, "a", "--group", "g", "--durable", "-n", "3", *where)[1]
    assert found == {**group, "prefetch": 3, "durable": True, "where": {"lang": "de", "x": "1=2"}}


@pytest.mark.parametrize(
    "arguments", [("--durable",), ("--latest", "--where", "a=b"), ("--where", "a"), ("--group", "g", "--latest")]
)
def test_options_that_do_not_go_together(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    assert ask(monkeypatch, "a", *arguments) == (2, {})


def test_a_message_is_one_line() -> None:
    message = make_message("two\nlines\x1b", queue="a\u200b", headers={"x": "1\n2"})
    assert make_render(None, False, show=to_single_line)(message) == rb"two\nlines\u001b"
    line = make_render("{queue}|{body:>20}|{headers}", False, show=to_single_line)(message)
    assert line.decode() == 'a\u200b|    two\\nlines\\u001b|{"x":"1\\n2"}'
    tape = Tape(as_json=False, most=None)
    tape.add_message(message)
    tape.add_gap(Gap("a\u200b", "p", 2, 3, 5))
    taped, gap = tape.read()
    assert b"\n" not in taped and rb"two\nlines\u001b" in taped
    assert gap == rb"a\u200b  p  gap: 2 are lost, #3 to #4"
