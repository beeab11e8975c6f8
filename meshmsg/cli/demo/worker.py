"""A worker of the demo: takes files, measures each, and acks it when its result is safe."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from meshmsg import Message
from meshmsg.cli.demo.child import FILES, REPORT_EVERY_S, REPORTS, RESULTS, Orders, make_node, run_child
from meshmsg.cli.demo.files import measure
from meshmsg.cli.running import Stop
from meshmsg.sockets.push_pull import Pull

# Few, so that what a killed worker held is soon taken up by others, who first do what they hold themselves.
PREFETCH = 4


class AlwaysFails(Exception):
    """What the one synthetic task raises, every time."""


class Counts:
    """What this worker tells about itself."""

    def __init__(self, name: str, pull: Pull) -> None:
        self.name = name
        self.done = 0
        self.failed = 0
        self._pull = pull

    def as_body(self) -> dict[str, Any]:
        """The report."""
        # There is no public word yet for what a pull holds.
        held = self._pull.unsettled
        return {"worker": self.name, "done": self.done, "failed": self.failed, "held": held}


async def serve(orders: Orders, stop: Stop, go: asyncio.Event) -> None:
    """Works until the parent says stop."""
    folder = Path(orders["folder"])
    async with make_node(orders) as node:
        results, reports = node.push(RESULTS), node.push(REPORTS)
        pull = node.pull(FILES, prefetch=PREFETCH)
        counts = Counts(orders["name"], pull)

        async def work(message: Message) -> None:
            try:
                result = await process(folder, message, orders["nap_s"])
                # Delivered, not only sent: if this process dies now, nobody else knows the result, so the file must
                # not be acked before the result has been processed.
                await results.deliver({"worker": orders["name"], **result})
            except Exception:
                counts.failed += 1
                raise
            counts.done += 1

        pull(work)

        async def report() -> None:
            while True:
                await reports.send(counts.as_body())
                await asyncio.sleep(REPORT_EVERY_S)

        await stop.unless(report())


async def process(folder: Path, message: Message, nap_s: float) -> dict[str, Any]:
    """Measures one file, in a thread, so that a large one does not keep heartbeats waiting."""
    name = message.body["name"]
    if nap_s:
        await asyncio.sleep(nap_s)
    if message.body["poison"]:
        raise AlwaysFails(f"{os.fsdecode(name)} was made to fail every time")
    measured = await asyncio.to_thread(measure, folder / os.fsdecode(name))
    return {
        "id": message.id,
        "name": name,
        "measured": list(measured),
        "attempt": message.attempt,
        "redelivered": message.redelivered,
    }


if __name__ == "__main__":
    run_child(serve)
