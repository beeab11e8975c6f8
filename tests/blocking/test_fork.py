"""A forked child of a process with a node: clear errors, and never an abort or a hang (pyzmq#1504, libzmq#3223)."""

from __future__ import annotations

import os

import pytest

from tests.blocking.program import run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

USES = """
def refused(use):
    try:
        use()
    except meshmsg.ForkedProcess as error:
        assert "forked child" in str(error) and "make a new Node" in str(error), error
        return
    raise SystemExit(f"not refused: {use}")
def in_child(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as error:
            say(error.code)
        except BaseException as error:
            say(type(error).__name__, error)
        finally:
            os._exit(code)
    say("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_every_use_of_a_blocking_node_is_refused_in_the_child() -> None:
    code, output, errors = run(
        USES
        + """
with make() as node:
    jobs, pull, other, events = node.push("work"), node.pull("work"), node.pull("other"), node.events()
    jobs.send_many(range(3))
    message = pull.get(timeout=10)
    iteration = iter(pull)
    next(iteration)
    def work():
        for use in (
            lambda: jobs.send(1), lambda: jobs.send_nowait(1), lambda: jobs.send_many([1]), lambda: jobs.deliver(1),
            lambda: jobs.flush(), lambda: jobs.ledger(), lambda: next(iteration), lambda: pull.get(timeout=1),
            lambda: next(iter(other)), lambda: next(pull.batches()), lambda: next(other.batches()),
            lambda: pull.close(), lambda: message.ack(), lambda: message.extend(), lambda: other(print),
            lambda: node.push("new"), lambda: node.push("work"), lambda: node.pull("new"),
            lambda: node.wait_for(pull="work"), lambda: node.peers(), lambda: node.ledger(),
            lambda: node.dead_letters(), lambda: node.redrive(), lambda: node.events(), lambda: next(events),
            lambda: events.close(), lambda: node.start(), lambda: node.close(), lambda: node.run(),
        ):
            refused(use)
    in_child(work)
    message.ack()
    say(jobs.ledger().accepted, node.close(drain=0)["work"].accepted)
"""
    )
    assert (code, output, errors) == (0, "child 0\n3 3", "")


def test_a_child_may_leave_the_block_end_and_have_nodes_of_its_own() -> None:
    code, output, errors = run(
        """
import gc
with make("parent", drain=0) as node:
    jobs = node.push("work")
    child = os.fork()
    if child == 0:
        with make("child") as own:
            own.push("own")
            own.pull("own")(lambda message: None)
            say("own", own.push("own").deliver(1, timeout=10).endswith("/own/0"))
        # From here on: the end of the parent's block, its garbage, and the exit functions of Python.
    else:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        node.pull("work")(lambda message: None)
        jobs.deliver("still works", timeout=10)
del node, jobs
gc.collect()
say("end", "child" if child == 0 else "parent")
"""
    )
    assert (code, output, errors) == (0, "own True\nend child\nend parent", "")


def test_a_child_of_an_open_node_ends_without_a_word() -> None:
    code, output, errors = run(
        """
node = make("parent").start()
node.push("work").send(1)
child = os.fork()
if child == 0:
    sys.exit(7)
say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
say(node.close(drain=0)["work"].pending)
"""
    )
    assert (code, output, errors) == (0, "7\n1", "")


def test_forks_while_threads_send_do_not_hang() -> None:
    """A lock that another thread held at the fork is never given back in the child."""
    code, output, errors = run(
        USES
        + """
with make(drain=0) as node:
    jobs = node.push("work", max_pending=1000)
    node.pull("work", concurrency=2)(lambda message: None)
    stop = threading.Event()
    def send():
        while not stop.is_set():
            jobs.send("x")
    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads: thread.start()
    for _ in range(10):
        in_child(lambda: [refused(lambda: jobs.send(1)), refused(lambda: jobs.ledger()), refused(lambda: node.close())])
    stop.set()
    for thread in threads: thread.join()
    jobs.flush(timeout=10)
"""
    )
    assert (code, output, errors) == (0, "\n".join(["child 0"] * 10), "")


def test_everything_can_be_printed_in_the_child() -> None:
    code, output, errors = run(
        USES
        + """
with make("web", drain=0) as node:
    jobs, pull = node.push("work"), node.pull("other")
    jobs.send(1)
    in_child(lambda: [say(each) for each in (node, jobs, pull)])
"""
    )
    assert (code, errors) == (0, "")
    shown, *others = output.splitlines()
    assert shown.startswith("<Node 'web' in mesh ") and shown.endswith(": of another process>")
    assert others == [
        "<Push 'work' of node 'web' (of another process): 1 pending, 0 in flight>",
        "<Pull 'other' of node 'web' (of another process): 0 of 256 unsettled>",
        "child 0",
    ]


def test_an_asyncio_node_in_a_child() -> None:
    code, output, errors = run(
        USES
        + """
import asyncio, gc
def attempt(coroutine):
    try:
        coroutine.send(None)
    except StopIteration:
        return
    finally:
        coroutine.close()
async def main():
    async with meshmsg.Node("node", mesh="m", mdns=False) as node:
        jobs, pull, events = node.push("work"), node.pull("work"), node.events()
        def work():
            for use in (
                lambda: attempt(jobs.send(1)), lambda: jobs.send_nowait(1), lambda: attempt(jobs.send_many([1])),
                lambda: attempt(jobs.flush()), lambda: attempt(pull.get()), lambda: node.push("new"),
                lambda: attempt(node.wait_for(pull="work")), lambda: node.redrive(), lambda: attempt(node.close()),
                lambda: node.ledger(), lambda: node.peers(), lambda: node.dead_letters(), lambda: node.events(),
                lambda: jobs.ledger(), lambda: jobs.on_dead_letter(print), lambda: attempt(pull.close()),
                lambda: attempt(events.get()), lambda: events.close(), lambda: attempt(node.start()),
            ):
                refused(use)
            attempt(node.__aexit__(None, None, None))
            gc.collect()
        in_child(work)
        child = os.fork()
        if child == 0:
            raise SystemExit(5)
        say("left", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        pull(print_nothing)
        say(bool(await jobs.deliver("still works", timeout=10)))
    in_child(lambda: refused(lambda: node.ledger()))
    say(node.ledger()["work"].processed)
async def print_nothing(message): pass
asyncio.run(main())
"""
    )
    assert (code, output, errors) == (0, "child 0\nleft 5\nTrue\nchild 0\n1", "")
