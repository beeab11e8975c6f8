"""What threads may do with one node: send, iterate, settle, close, all at once."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshmsg import AlreadySettled, ConfigurationError, Ledger, NodeClosed, OutboxFull, Reject, WrongThread
from meshmsg.blocking import Node

PATIENCE_S = 20.0


@pytest.fixture
def node() -> Iterator[Node]:
    with Node("node", mesh=f"threads-{uuid.uuid4().hex[:12]}", mdns=False, drain=0) as node:
        yield node


def together(*uses: Callable[[], Any]) -> list[Any]:
    """Runs functions at the same time, each in a thread; returns their results or what they raised."""
    results: list[Any] = [None] * len(uses)
    barrier = threading.Barrier(len(uses))

    def run(index: int, use: Callable[[], Any]) -> None:
        barrier.wait(PATIENCE_S)
        try:
            results[index] = use()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(uses)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), results
    return results


@pytest.mark.guarantee("G1")
def test_a_coroutine_behind_a_plain_function_is_not_acked_without_running(node: Node) -> None:
    async def work(message: Any) -> None: ...

    node.pull("work")(lambda message: work(message))
    jobs = node.push("work")
    jobs.send(1)
    jobs.flush(timeout=PATIENCE_S)
    (letter,) = node.dead_letters()
    assert letter.reason == "rejected" and letter.error.startswith("the handler returned a coroutine: register")


@pytest.mark.guarantee("G1", "G3", "G5")
def test_many_threads_send_and_many_threads_iterate(node: Node) -> None:
    jobs, pull = node.push("work", max_pending=40), node.pull("work", prefetch=32)
    total, most = 4 * 300, [0]

    def send(sender: int) -> dict[str, tuple[int, int]]:
        ids = {}
        for number in range(100):
            ids[jobs.send((sender, number))] = (sender, number)
            most[0] = max(most[0], jobs.ledger().pending)
        bodies = [(sender, number) for number in range(100, 200)]
        ids.update(zip(jobs.send_many(bodies), bodies, strict=True))
        for number in range(200, 300):
            ids[jobs.send((sender, number), headers={"n": number})] = (sender, number)
        return ids

    seen: dict[str, tuple[int, int]] = {}
    done = threading.Semaphore(0)

    def iterate() -> list[tuple[int, int]]:
        mine = []
        for message in pull:
            with message:
                mine.append(tuple(message.body))
                seen[message.id] = tuple(message.body)
            done.release()
        return mine

    def close() -> None:
        for _ in range(total):
            assert done.acquire(timeout=PATIENCE_S)
        pull.close()

    *sent, one, two, three, _ = together(*(lambda s=s: send(s) for s in range(4)), iterate, iterate, iterate, close)
    assert not [error for error in sent if isinstance(error, Exception)]
    assert seen == {message_id: body for ids in sent for message_id, body in ids.items()}
    assert len(seen) == total == len(one) + len(two) + len(three)
    for mine in (one, two, three):
        for sender in range(4):  # a thread sees each sender's messages in their order
            numbers = [number for other, number in mine if other == sender]
            assert numbers == sorted(numbers)
    assert most[0] <= 40
    assert jobs.ledger() == Ledger(accepted=total, processed=total)


@pytest.mark.guarantee("G5")
def test_threads_together_never_exceed_the_limit(node: Node) -> None:
    jobs = node.push("work", max_pending=50, max_pending_bytes=100_000)

    def send() -> int:
        accepted = 0
        for size in (10, 6000) * 20:
            try:
                jobs.send_nowait(b"x" * size)
                accepted += 1
            except OutboxFull:
                pass
        return accepted

    accepted = sum(together(send, send, send, send))
    books = jobs.ledger()
    assert books.accepted == books.pending == accepted <= 50
    assert accepted >= 16  # 100,000 bytes of the larger kind


def test_verdicts_may_come_from_another_thread(node: Node) -> None:
    jobs, pull = node.push("work"), node.pull("work")
    jobs.send_many([1, 2])
    first, second = pull.get(timeout=PATIENCE_S), pull.get(timeout=PATIENCE_S)
    (result,) = together(first.ack)
    assert result is None
    with pytest.raises(AlreadySettled):
        first.nack()
    results = together(*[second.ack] * 4)
    assert [error for error in results if error and not isinstance(error, AlreadySettled)] == []
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger() == Ledger(accepted=2, processed=2)


def test_two_threads_that_settle_at_once_settle_once(node: Node) -> None:
    """The check in ``Message`` is no lock: the lane takes the first verdict, and the books still balance."""
    jobs, pull = node.push("work"), node.pull("work", prefetch=4)
    jobs.send_many(range(12))
    for message in pull:
        message.settled = False
        message._lane.ack(message._seq)
        message._lane.ack(message._seq)
        message._lane.nack(message._seq, None, "too late")
        if message.body == 11:
            break
    jobs.flush(timeout=PATIENCE_S)
    assert jobs.ledger() == Ledger(accepted=12, processed=12)


def test_a_pull_closes_under_its_threads(node: Node) -> None:
    pull = node.pull("work")

    def get() -> Any:
        return pull.get()

    ended, batches, error, _ = together(lambda: list(pull), lambda: list(pull.batches()), get, pull.close)
    assert (ended, batches) == ([], [])
    assert isinstance(error, NodeClosed)


def test_a_node_closes_under_its_threads() -> None:
    node = Node("node", mesh=f"threads-{uuid.uuid4().hex[:12]}", mdns=False).start()
    full, pull, events = node.push("full", max_pending=1), node.pull("work"), node.events()
    full.send(1)
    uses = [
        lambda: full.send(2),
        lambda: full.send_many([2]),
        lambda: full.deliver(2),
        lambda: full.flush(),
        lambda: pull.get(),
        lambda: events.get(),
        lambda: node.wait_for(pull="nothing"),
    ]
    *errors, books, again = together(*uses, lambda: node.close(drain=0), lambda: node.close(drain=0))
    assert [error for error in errors if not isinstance(error, NodeClosed)] == []
    assert books == again == {"full": Ledger(accepted=1, pending=1, ready=1)}


@pytest.mark.guarantee("G1", "G10")
def test_what_is_sent_during_the_close_is_refused_or_in_the_books() -> None:
    node = Node("node", mesh=f"threads-{uuid.uuid4().hex[:12]}", mdns=False).start()
    jobs = node.push("work", max_pending=10**6)
    started = threading.Semaphore(0)

    def send() -> int:
        accepted = 0
        try:
            while True:
                jobs.send(accepted)
                accepted += 1
                if accepted == 100:
                    started.release()
        except NodeClosed:
            return accepted

    def close() -> dict[str, Ledger]:
        for _ in range(3):
            assert started.acquire(timeout=PATIENCE_S)
        return node.close(drain=0)

    *accepted, books = together(send, send, send, close)
    assert books["work"].accepted == books["work"].pending == sum(accepted)
    with pytest.raises(NodeClosed):  # for a thread that looked whether the node is open just before it closed
        jobs._outbox.put(b"too late")


def test_hooks_may_wait_for_the_node(node: Node) -> None:
    letters: list[str] = []
    told = threading.Event()
    copies = node.push("copies")

    def keep(letter: Any) -> None:
        letters.append(copies.deliver(letter.body, timeout=PATIENCE_S))
        letters.append(node.dead_letters()[0].id)
        told.set()

    jobs = node.push("work", on_dead_letter=keep)
    node.pull("copies")(lambda message: None)

    @node.pull("work")
    def handle(message: Any) -> None:
        raise Reject("no")

    message_id = jobs.send("bad")
    assert told.wait(PATIENCE_S)
    assert letters == [f"{node.id[:12]}/copies/0", message_id]


def test_hooks_hear_of_the_dead_letters_of_the_close(node: Node) -> None:
    letters: list[Any] = []
    jobs = node.push("work", on_dead_letter=letters.append)

    @node.pull("work")
    def handle(message: Any) -> None:
        raise Reject("no")

    jobs.send("bad")
    jobs.flush(timeout=PATIENCE_S)
    node.close()
    assert [letter.body for letter in letters] == ["bad"]


def test_waiting_in_the_nodes_own_thread_is_refused(node: Node) -> None:
    """As in a type's decoder or a body's encoder, which run there."""
    full, pull = node.push("full", max_pending=1), node.pull("work")
    full.send(1)
    loop = node._started_loop()
    for use in (
        lambda: full.send(2),
        lambda: full.deliver(2),
        lambda: full.flush(),
        lambda: node.wait_for(pull="x"),
        lambda: node.close(),
        lambda: pull.close(),
    ):
        with pytest.raises(WrongThread, match="in the thread of node 'node'"):
            loop.call(use)
    with pytest.raises(OutboxFull):
        loop.call(full.send_nowait, 2)
    assert loop.call(full.ledger).accepted == 1
    assert loop.call(node.peers) == []


def test_coroutine_functions_are_refused(node: Node) -> None:
    async def handler(message: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="takes a plain function here"):
        node.pull("work")(handler)
    with pytest.raises(ConfigurationError, match="takes a plain function"):
        node.push("work", on_dead_letter=handler)


def test_a_body_that_cannot_be_sent_fails_in_the_callers_thread(node: Node) -> None:
    threads = []

    class Body:
        def model_dump(self, **options: Any) -> dict[str, Any]:
            threads.append(threading.current_thread())
            return {}

    node.push("work").send(Body())
    assert set(threads) == {threading.current_thread()}
