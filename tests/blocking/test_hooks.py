"""Hooks in threads, at the close of their node and when they fail."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from meshmsg import DeadLetter, Ledger
from meshmsg.blocking import Node
from tests.contracts.faces import PATIENCE_S, Collected


@pytest.fixture
def node() -> Node:
    return Node("node", mesh="hooks-blocking", mdns=False).start()


@pytest.mark.guarantee("G10")
def test_the_drain_is_for_hooks_too(node: Node) -> None:
    kept: list[Any] = []

    def keep(letter: DeadLetter) -> None:
        written = threading.Event()
        threading.Timer(0.2, written.set).start()  # as one that writes it down somewhere
        assert written.wait(PATIENCE_S)
        kept.append(letter.body)

    jobs = node.push("work", ttl=0.01, on_dead_letter=keep)
    jobs.send_many(range(6))
    node.close(drain=PATIENCE_S)
    assert kept == [0, 1, 2, 3, 4, 5]


@pytest.mark.guarantee("G10")
def test_calls_that_are_left_are_counted(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    over = threading.Event()
    jobs = node.push("work", unroutable_after=0, on_dead_letter=lambda letter: over.wait())
    jobs.send_many(range(3))
    jobs.flush(timeout=PATIENCE_S)
    node.close(drain=0.1)
    over.set()
    assert "node 'node' closed before 3 calls of its hooks were done" in caplog.text


def test_a_hook_that_closes_its_node_is_not_waited_for(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    books = Collected()
    jobs = node.push(
        "work", unroutable_after=0, on_dead_letter=lambda letter: books.add(node.close(drain=10 * PATIENCE_S))
    )
    jobs.send_many(range(2))
    assert books.wait(2) == [{"work": Ledger(accepted=2, dead=2)}] * 2
    assert "node 'node' closed before 1 calls of its hooks were done" in caplog.text


def test_a_hook_that_exits_costs_no_other_call(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    seen = Collected()

    def leave(letter: DeadLetter) -> None:
        seen.add(letter.body)
        sys.exit(3)

    jobs = node.push("work", unroutable_after=0, on_dead_letter=leave)
    jobs.send_many(range(3))
    assert seen.wait(3) == [0, 1, 2]
    node.close()
    assert caplog.text.count("SystemExit: 3") == 3


def test_a_hook_that_returns_a_coroutine_is_told(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    seen = Collected()

    async def keep(body: Any) -> None: ...

    def hook(letter: DeadLetter) -> Any:
        seen.add(letter.body)
        return keep(letter.body)

    jobs = node.push("work", unroutable_after=0, on_dead_letter=hook)
    jobs.send_many(range(2))
    assert seen.wait(2) == [0, 1]
    node.close()
    assert caplog.text.count("returned a coroutine, which nobody runs") == 2
