"""What large bodies leave behind, in whatever face."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from meshmsg import BodyTooLarge, RequestError
from tests.contracts.faces import PATIENCE_S, Face

LARGE = 2**23
LIMIT = 2**21


@pytest.fixture(name="count_bytes")
def _trace() -> Iterator[Callable[[], int]]:
    def count() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    yield count
    tracemalloc.stop()


def attempt(use: Callable[[], Any]) -> None:
    """Has a large body encoded, which is refused then: so that nothing else may keep it."""
    with suppress(BodyTooLarge, RequestError):
        use()
        raise AssertionError("it was accepted")


def require_freed(count_bytes: Callable[[], int], before: int) -> None:
    """A thread may yet be about to let go of a body."""
    pause = threading.Event()
    for _ in range(50):
        held = count_bytes() - before
        if held < LARGE // 2:
            return
        pause.wait(0.02)
    raise AssertionError(f"{held} bytes are held")


def test_encoding_keeps_no_memory(face: Face, count_bytes: Callable[[], int]) -> None:
    node = face.node(max_message_bytes=LIMIT)
    push, pub, dealer = node.push("work"), node.pub("a.*"), node.dealer("math", timeout=PATIENCE_S)
    node.router("math").method(give)
    node.wait_for(router="math", timeout=PATIENCE_S)
    assert dealer.request("give", 1) == 1
    body = bytes(LARGE)
    uses: list[Callable[[], Any]] = [
        lambda: push.send(body),
        lambda: push.send_nowait(body),
        lambda: push.send_many([1, body]),
        lambda: push.send_many(iter([1, body])),
        lambda: pub.send(body, topic="a.b"),
        lambda: pub.send_nowait(body, topic="a.b"),
        lambda: pub.send_many([1, body], topic="a.b"),
        lambda: dealer.request("give", body),
        lambda: dealer.request("give", 1, items=[body]),
        lambda: dealer.request("give", LARGE),
    ]
    before = count_bytes()
    for use in uses:
        attempt(use)
        require_freed(count_bytes, before)
    if face.is_blocking:  # each thread has packers of its own, for as long as it lives
        over = threading.Event()
        ready = threading.Barrier(4)

        def run() -> None:
            for use in uses:
                attempt(use)
            ready.wait(PATIENCE_S)
            over.wait(PATIENCE_S)

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        ready.wait(PATIENCE_S)
        try:
            require_freed(count_bytes, before)
        finally:
            over.set()
            for thread in threads:
                thread.join()


def give(size: int) -> Any:
    return bytes(size) if size > 1 else size


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (
            "push",
            r"the limit is 1024, the lesser of Node\(max_message_bytes=\) and push\(max_pending_bytes=\): raise it",
        ),
        ("pub", r"the limit is 1024, Node\(max_message_bytes=\): raise it"),
    ],
)
def test_small_limits_are_kept_and_named(face: Face, kind: str, why: str) -> None:
    """Also below the size up to which bodies are let in by count, and behind the first one of a burst."""
    node = face.node(max_message_bytes=1024)
    out = node.push("news") if kind == "push" else node.pub("news")
    for size in (1024, 1025, 4000, 5000):
        out.send("ok")
        for attempt_it in (out.send, out.send_nowait):
            with pytest.raises(BodyTooLarge, match=f"a body of {size + 3} bytes for 'news'; {why}"):
                attempt_it("x" * size)
        with pytest.raises(BodyTooLarge, match=why):
            out.send_many(["x" * size])
    if kind == "push":
        assert out.ledger().accepted == 4
        few = node.push("few", max_pending_bytes=500)
        few.send("ok")
        with pytest.raises(BodyTooLarge, match="the limit is 500"):
            few.send("x" * 600)
