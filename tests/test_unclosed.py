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
