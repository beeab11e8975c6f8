"""Closing a push while threads send: each id that a thread was given is in the books, and no other."""

from __future__ import annotations

import threading
import uuid

import pytest

from meshmsg import NodeClosed
from meshmsg.blocking import Node

PATIENCE_S = 10.0


def make() -> Node:
    return Node("node", mesh=f"closing-{uuid.uuid4().hex[:12]}", mdns=False, drain=0)


@pytest.mark.guarantee("G1")
def test_what_threads_were_given_an_id_for_when_it_was_closed_is_in_the_books() -> None:
    with make() as node:
        jobs = node.push("work", max_pending=10**6)
        ids: list[list[str]] = [[] for _ in range(4)]
        begun = threading.Barrier(5)

        def send(mine: list[str]) -> None:
            mine.append(jobs.send(0))
            begun.wait(PATIENCE_S)
            with pytest.raises(NodeClosed, match="was closed: open another one"):
                while True:
                    mine.append(jobs.send(len(mine)))

        threads = [threading.Thread(target=send, args=(mine,)) for mine in ids]
        for thread in threads:
            thread.start()
        begun.wait(PATIENCE_S)
        jobs.close()
        for thread in threads:
            thread.join(PATIENCE_S)
        given = [each for mine in ids for each in mine]
        assert len(set(given)) == len(given) == jobs.ledger().accepted == jobs.ledger().pending
        again = node.push("work", max_pending=10**6)
        assert again is not jobs and again.send("next") not in given
        again.close()

        @node.pull("work")
        def handle(message: object) -> None:
            pass

        again.flush(timeout=PATIENCE_S)
        assert again.ledger().processed == len(given) + 1


def test_one_that_is_being_closed_by_another_thread_is_not_handed_out_any_more() -> None:
    with make() as node:
        jobs = node.push("work")
        jobs._running_loop().call(jobs._end)  # and the other thread comes no further for a while
        again = node.push("work")
        assert again is not jobs
        jobs.close()
        assert node.push("work") is again
        again.send(1)
