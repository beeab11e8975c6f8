"""What large bodies leave behind, in whatever face."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import itemgetter
from typing import Any

import pytest

from meshmsg import BodyTooLarge, Context, RequestError, Retry
from meshmsg.wire.frames import PIECE_BYTES
from meshmsg.wire.large import LARGE_BYTES
from tests.contracts.faces import PATIENCE_S, Collected, Face, Gate, bodies_of, take, until
from tests.contracts.services import END, Next, in_thread, incoming, method, outcome_of

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


@pytest.mark.parametrize("kind", ["push", "send_many", "pub"])
def test_large_byte_strings_are_not_copied(face: Face, count_bytes: Callable[[], int], kind: str) -> None:
    """What a socket holds of them is the application's own, from its second large body on."""
    node = face.node()
    data = bytes(LARGE)
    push, pub = node.push("work"), node.pub("news", history=100, history_bytes=100 * LARGE)
    before = count_bytes()
    for _ in range(2):
        if kind == "send_many":
            push.send_many([{"data": data}] * (1 if push.ledger().accepted == 0 else 9))
        else:
            for _ in range(5):
                (push if kind == "push" else pub).send({"data": data})
    assert LARGE // 2 < count_bytes() - before < 2 * LARGE, "ten of them are held, the first as a copy"


@pytest.mark.parametrize("size", [LARGE_BYTES, PIECE_BYTES - 3, 5 * PIECE_BYTES + 7])
def test_large_bodies_arrive_whatever_happens_to_them(face: Face, size: int) -> None:
    """The first of a socket, and those after it; beside small ones; again after a failure; out of a history."""
    here, there = face.pair()
    data = os.urandom(size)
    bodies = [{"number": number, "data": data if number % 3 else data[:5]} for number in range(9)]

    work, pull = here.push("work", retry=Retry(backoff=0)), there.pull("work", prefetch=2)
    work.send_many(bodies[:4])
    for body in bodies[4:]:
        work.send(body)
    handled: list[Any] = []
    while len(handled) < len(bodies):
        message = pull.get(timeout=PATIENCE_S)
        if message.body["number"] % 2 and message.attempt == 1:
            message.nack()
        else:
            handled.append(message.body)
            message.ack()
    assert sorted(handled, key=itemgetter("number")) == bodies

    dead, refusing = here.push("refused"), there.pull("refused")
    for body in bodies[:5]:
        dead.send(body)
        refusing.get(timeout=PATIENCE_S).reject("no")
    until(lambda: dead.ledger().dead == 5)
    assert [letter.body for letter in here.dead_letters("refused")] == bodies[:5]

    news = here.pub("news", history=100, history_bytes=100 * LARGE)
    live = there.sub("news")
    here.wait_for(sub="news", timeout=PATIENCE_S)
    for body in bodies:
        news.send(body)
    assert bodies_of(take(live, len(bodies))) == bodies
    assert bodies_of(take(there.sub("news", replay="history"), len(bodies))) == bodies

    there.router("echo").method(repeat)
    here.wait_for(router="echo", timeout=PATIENCE_S)
    echo = here.dealer("echo", timeout=PATIENCE_S)
    assert [echo.request("repeat", body, more=[body]) for body in bodies] == [[body, [body]] for body in bodies]


def repeat(body: Any, more: Any) -> Any:
    return [body, more]


def give(size: int) -> Any:
    return bytes(size) if size > 1 else size


@pytest.mark.guarantee("G8", "G11")
def test_items_that_a_provider_does_not_take_end_their_request_alone(face: Face) -> None:
    server, client = face.node("server", max_message_bytes=2**18), face.node("client")
    router, math = server.router("math"), client.dealer("math", timeout=PATIENCE_S)
    gate, started = Gate(), Collected()

    @method(face, router)
    def sizes(context: Context) -> Any:
        items, result = incoming(face, context), []
        while (item := (yield Next(items))) != END:
            result.append(len(item))
        return result

    @method(face, router, streams=True)
    def measure(context: Context) -> Any:
        items = incoming(face, context)
        while (item := (yield Next(items))) != END:
            yield len(item)

    @method(face, router)
    def work() -> Any:
        started.add("work")
        yield gate
        return "done"

    client.wait_for(router="math", timeout=PATIENCE_S)
    other = in_thread(math.work)
    started.wait(1)
    limit = (
        r"the limit is 262144, that of 'server': send smaller ones, or raise Node\(max_message_bytes=\) on both sides"
    )
    for size in (2**18, 5_000_000):
        for place, items in ((0, [bytes(size)]), (2, iter([b"x", b"y", bytes(size), b"z"]))):
            with pytest.raises(BodyTooLarge, match=rf"^math\.sizes: items\[{place}\] of {size + 5} bytes; {limit}"):
                math.request("sizes", items=items)
            with pytest.raises(BodyTooLarge, match=limit):
                list(math.stream("measure", items=[bytes(size)]))
    fitting = [2**18 - 5] * 5 + [60_000] * 40 + [10] * 1000  # which together have more than it takes
    assert math.request("sizes", items=map(bytes, fitting)) == fitting
    gate.open()
    assert outcome_of(other) == "done"
    assert server.counters()["refused_frames"] == 0


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
