"""What the demo's worker and producer processes share: their orders come on standard input, and its end ends them.

So nothing is left running whatever happens to the parent, SIGKILL included.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypedDict

from meshmsg import Node
from meshmsg.cli.lines_in import LinesIn
from meshmsg.cli.running import Stop, run

FILES, RESULTS, REPORTS = "files", "results", "reports"
REPORT_EVERY_S = 0.2


class Orders(TypedDict):
    """The line that a child reads first; names of files are in the file system's bytes, as ``os.fsdecode`` gives."""

    name: str
    mesh: str
    interfaces: list[str]
    seeds: list[str]
    unencrypted: bool
    folder: str
    files: list[str]
    poison_at: int | None  # where among the files the task goes that always fails
    nap_s: float
    workers: int


def make_node(orders: Orders) -> Node:
    """The child's node; it takes part in mDNS like any other."""
    return Node(
        orders["name"],
        mesh=orders["mesh"],
        interfaces=orders["interfaces"] or None,
        seeds=orders["seeds"],
        unencrypted=orders["unencrypted"],
        drain=1.0,
    )


def run_child(serve: Callable[[Orders, Stop, asyncio.Event], Awaitable[None]]) -> None:
    """Runs a child until it is done, or its parent is gone; the event is set when the parent says go."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")

    async def main(stop: Stop) -> int:
        lines = aiter(LinesIn())
        orders: Orders = json.loads(await anext(lines))
        go = asyncio.Event()
        watching = asyncio.ensure_future(_follow(lines, stop, go))
        await serve(orders, stop, go)
        watching.cancel()
        return 0

    run(main)


async def _follow(lines: AsyncIterator[bytes], stop: Stop, go: asyncio.Event) -> None:
    async for _ in lines:
        go.set()
    stop.request()


def start_command(role: str) -> list[str]:
    """How a child of a role (``worker``, ``producer``) is started."""
    return [sys.executable, "-m", f"meshmsg.cli.demo.{role}"]
