"""Streaming: results that are too many for one reply, both ways, as fast as the reader takes them.

Problem
    A query has a million rows, or no end. They must not be collected first, nor flood a reader that is slow; and who
    has seen enough wants the other side to stop. The same upwards: an import whose size nobody knows.
Guarantee
    Items come in order, each once, without a hole; an iteration that ends quietly has seen all, others raise what
    happened (G8). Not more than 256 items, or about 4 MiB, are ahead of the reader (G5).
How it fails
    ``--fail`` kills the server in the middle of a stream. The reader gets ``PeerLost`` after the items that arrived.
    A stream is never tried again by itself, since only its reader knows what to do with half of one. Here each row has
    a number, so the reader goes on after its last one, at whoever serves now.
What to change
    ``rows`` and ``store``; plain functions may stream, too (``def`` with ``yield``). Without numbers, begin anew.

Run it: ``python streaming.py [--fail]``
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

from meshmsg import Context, Node, PeerLost

ROWS = 20_000
DEADLY = 5_000  # the row at which --fail kills the server


class Table:
    """The service: methods that yield give streams, and one that takes an ``AsyncIterator`` gets one."""

    def __init__(self) -> None:
        self.made, self.open = 0, False

    async def rows(self, start: int, stop: int, context: Context) -> AsyncIterator[dict[str, int]]:
        """Rows from a number on. Each ``yield`` waits while the reader has enough."""
        self.made, self.open = 0, True
        try:
            for number in range(start, stop):
                if number == DEADLY and context.headers.get("kill"):
                    os.kill(os.getpid(), signal.SIGKILL)
                self.made += 1
                yield {"row": number, "square": number * number}
        finally:
            self.open = False

    async def store(self, numbers: AsyncIterator[int]) -> dict[str, int]:
        """An import: takes items as they come, and says once what became of all."""
        count = total = 0
        async for number in numbers:
            count += 1
            total += number
        return {"count": count, "total": total}

    async def halves(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        """Both ways at a time: an answer for each item."""
        async for number in numbers:
            yield number // 2

    async def watch(self) -> dict[str, int | bool]:
        """How many rows the last stream made, and whether it goes on."""
        return {"made": self.made, "open": self.open}


def serve(mesh: str, name: str) -> None:
    """A server: until it is told to stop (SIGTERM)."""
    node = Node(name, mesh=mesh)
    node.router("table").offer(Table())
    node.run()


async def read(mesh: str, count: int, fail: bool) -> None:
    """The reader, which also imports."""
    async with Node("reader", mesh=mesh) as node:
        table = node.dealer("table", timeout=30)
        await node.wait_for(router="table", count=count, timeout=30)

        seen: list[int] = []
        while len(seen) < ROWS:
            headers = {"kill": True} if fail and not seen else None
            try:
                async for row in table.stream("rows", len(seen), ROWS, headers=headers):
                    assert row["row"] == len(seen), "out of order"
                    seen.append(row["row"])
            except PeerLost as error:
                print(f"{error.peer} is gone after {len(seen)} rows; going on at row {len(seen)}")
        print(f"{len(seen)} rows, each once and in order")

        server = (await table.ping())["node"]
        async with table.stream("rows", 0, ROWS, peer=server) as rows:  # the end of the block gives the stream up
            async for row in rows:
                if row["row"] == 99:
                    break
        while (watched := await table.watch(peer=server))["open"]:  # it hears of that a moment later
            await asyncio.sleep(0.01)
        print(f"stopped reading after 100 rows; {server} made {watched['made']} of {ROWS}")

        print("stored", await table.store(items=range(ROWS)))
        print("halves", [half async for half in table.stream("halves", items=range(0, 20, 2))])


def main(fail: bool) -> None:
    """Starts servers as processes of their own; all find each other through mDNS."""
    mesh, names = f"streaming-{os.getpid()}", ["server-1", "server-2"]
    servers = [subprocess.Popen([sys.executable, __file__, "server", mesh, name]) for name in names]
    try:
        asyncio.run(read(mesh, len(names), fail))
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["server", mesh, name]:
            serve(mesh, name)
        case arguments:
            main(fail="--fail" in arguments)
