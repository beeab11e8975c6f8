"""A producer of the demo: sends its share of the files, waits until all are settled, and hands in its ledger."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from meshmsg import DeadLetter, Retry
from meshmsg.cli.demo.child import FILES, REPORT_EVERY_S, REPORTS, Orders, make_node, run_child
from meshmsg.cli.running import Stop
from meshmsg.sockets.push_pull import Push

RETRY = Retry(max_attempts=3, backoff=0.2)  # short, because people watch
JOIN_TIMEOUT_S = 30.0
POISON = b"always-fails"  # no file: a task that the demo adds


async def serve(orders: Orders, stop: Stop, go: asyncio.Event) -> None:
    """Finds all workers, sends when the parent says go, waits, reports; then stays until the parent says stop."""
    async with make_node(orders) as node:
        letters: list[DeadLetter] = []
        told = 0  # letters that were reported
        files = node.push(FILES, retry=RETRY, on_dead_letter=letters.append)
        reports = node.push(REPORTS)

        def as_body(final: bool) -> dict[str, Any]:
            nonlocal told
            news, told = letters if final else letters[told:], len(letters)
            return {
                "producer": orders["name"],
                "final": final,
                "ledger": dict(files.ledger()._asdict()),
                "letters": [describe_letter(letter) for letter in news],
            }

        async def report() -> None:
            while True:
                await reports.send(as_body(final=False))
                await asyncio.sleep(REPORT_EVERY_S)

        async def produce() -> None:
            await node.wait_for(pull=FILES, count=orders["workers"], timeout=JOIN_TIMEOUT_S)
            await reports.deliver({"producer": orders["name"], "ready": True})
            await go.wait()
            reporting = asyncio.ensure_future(report())
            await send_all(files, orders)
            await files.flush()
            reporting.cancel()
            await reports.deliver(as_body(final=True))

        await stop.unless(produce())
        await stop.wait()


async def send_all(files: Push, orders: Orders) -> None:
    """One message a file, and the one that always fails."""
    names = [os.fsencode(name) for name in orders["files"]]
    tasks = [{"name": name, "poison": False} for name in names]
    if orders["poison_at"] is not None:
        tasks.insert(orders["poison_at"], {"name": POISON, "poison": True})
    for task in tasks:
        await files.send(task)


def describe_letter(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as a body."""
    return {
        "id": letter.id,
        "name": letter.body["name"],
        "reason": letter.reason,
        "error": letter.error,
        "attempts": [[each.consumer, each.verdict, each.error] for each in letter.attempts],
    }


if __name__ == "__main__":
    run_child(serve)
