"""Nodes that nobody closes say at the end of the process what is lost with them, and hold nothing up before."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio
from meshmsg import Node
async def main():
    node = Node("careless", mesh="unclosed", mdns=False, drain=0)
    await node.start()
    await node.push("nobody").send_many(range({count}))
    {end}
asyncio.run(main())
import gc
gc.collect()
"""


def errors_of(count: int, end: str = "pass", *options: str) -> str:
    program = [sys.executable, *options, "-c", PROGRAM.format(count=count, end=end)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, check=True)
    return done.stderr


@pytest.mark.guarantee("G1")
def test_a_program_that_closes_nothing_hears_what_it_loses() -> None:
    text = "node 'careless' was not closed, and loses messages that are pending (5 of 'nobody'): use `async with node:`"
    errors = errors_of(5)
    assert f"RuntimeWarning: {text}" in errors
    assert errors.count("was not closed") == 1


def test_with_nothing_to_lose_only_those_hear_who_ask() -> None:
    assert errors_of(0) == ""
    assert "ResourceWarning: node 'careless' was not closed; use `async with" in errors_of(0, "pass", "-X", "dev")


def test_who_closes_hears_nothing() -> None:
    assert "was not closed" not in errors_of(5, "await node.close()", "-X", "dev")
    assert "was not closed" not in errors_of(5, "await node.close()")


DAEMON = """
import asyncio, threading
from meshmsg import Node
under_way = threading.Event()
async def main():
    async with Node("p", mesh="daemon", mdns=False) as node, Node("s", mesh="daemon", mdns=False, seeds=node.endpoints):
        pub = node.pub("large")
        while True:
            await pub.send(bytes(1_000_000))
            under_way.set()
            await asyncio.sleep(0)
threading.Thread(target=asyncio.run, args=[main()], daemon=True).start()
under_way.wait()
"""


def test_a_thread_that_still_publishes_when_the_process_ends_makes_no_noise() -> None:
    # Its sockets are closed under it, before pyzmq ends (transport/closing.py).
    done = subprocess.run([sys.executable, "-c", DAEMON], capture_output=True, text=True, timeout=30, check=True)
    assert "Traceback" not in done.stderr
    assert "failed in a turn" not in done.stderr


FORKED = """
import asyncio, os, sys
from meshmsg import Node
from meshmsg.transport import closing
async def main():
    async with Node("parent", mesh="forked", mdns=False):
        child = os.fork()
        if not child:
            os._exit(len(closing._open))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(closing._open))
asyncio.run(main())
"""


def test_a_forked_child_closes_nothing_of_its_parent() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["0", "1"]
