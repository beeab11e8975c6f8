"""Pipeline: work that passes through several stages, where a slow one slows those before it.

Problem
    Items go through stages that scale and fail on their own. None may get lost on the way, nor a slow stage be buried.
Guarantee
    A stage acks an item only after the next one has processed it, so each item is always in the books of the source:
    when its ledger says ``processed``, the item went all the way (G1). Every stage holds at most ``prefetch`` items
    and the source at most ``max_pending``; then its ``send`` waits (G5).
How it fails
    ``--fail`` sends an order that the second stage refuses, and has that stage fail each item once. A stage that raises
    gets the item again after a backoff, up to ``max_attempts`` times; one that raises ``Reject`` makes it a dead letter
    at once, also in the source's books. When a stage crashes, the one before it still holds the item, which may then
    pass twice; the sink sees that by its id.
What to change
    The stages: a function and two queue names each. Start a slow one several times, or raise its ``concurrency``:
    so many items does it have under way. Order is not kept; ``key=`` with ``send`` and ``deliver`` does (G3).

Run it: ``python pipeline.py [--fail]``
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from meshmsg import DeadLettered, Message, Node, Reject, Retry

PRICES = {"apples": 40, "pears": 55, "plums": 15}
RETRY = Retry(max_attempts=3, backoff=0.1)


def parse(message: Message) -> dict[str, Any]:
    """Stage 1: '3 apples' -> {'count': 3, 'fruit': 'apples'}."""
    count, _, fruit = message.body.partition(" ")
    if not count.isdecimal():
        raise Reject(f"not an order: {message.body!r}")  # another attempt would fail the same way
    return {"count": int(count), "fruit": fruit}


def price(message: Message) -> dict[str, Any]:
    """Stage 2: adds what the order costs."""
    if "--fail" in sys.argv and message.attempt == 1:
        raise ConnectionError("the price list does not answer")  # any exception but Reject: worth another attempt
    fruit = message.body["fruit"]
    if fruit not in PRICES:
        raise Reject(f"no price for {fruit!r}")
    return {**message.body, "cents": message.body["count"] * PRICES[fruit]}


# Where each takes its work from, what it does, and which queue it fills.
STAGES: dict[str, tuple[str, Callable[[Message], Any], str]] = {
    "parse": ("lines", parse, "orders"),
    "price": ("orders", price, "bills"),
}


def run_stage(mesh: str, name: str) -> None:
    """A stage: takes an item, works on it, hands it on, and only then acks it."""
    source, function, target = STAGES[name]
    node = Node(name, mesh=mesh)
    onward = node.push(target, retry=RETRY)

    @node.pull(source, prefetch=16, concurrency=8)
    async def handle(message: Message) -> None:
        result = function(message)
        origin = message.headers.get("origin", message.id)  # the id of the source's message, through all stages
        try:
            await onward.deliver(result, headers={"origin": origin})
        except DeadLettered as error:
            raise Reject(error.letter.error) from None  # it failed further on: those before shall know, too

    node.run()


async def feed(mesh: str, lines: list[str]) -> None:
    """The source and the sink, in one process so that this run can compare the two."""
    bills: dict[str, int] = {}
    most_pending = 0

    async with Node("source", mesh=mesh) as node:

        @node.pull("bills")
        async def sink(bill: Message) -> None:
            await asyncio.sleep(0.001)  # a slow sink: everything before it fills up, up to its limits, and waits
            bills[bill.headers["origin"]] = bill.body["cents"]  # by origin: one that passes twice counts once

        source = node.push("lines", retry=RETRY, max_pending=50)
        for line in lines:
            await source.send(line)
            most_pending = max(most_pending, source.ledger().pending)
        await source.flush(timeout=60)

        for letter in node.dead_letters("lines"):
            print(f"dead letter {letter.body!r}: {letter.reason}, {letter.error}")
        print(f"{len(bills)} of {len(lines)} orders cost {sum(bills.values())} cents; {most_pending} pending at most")
        print(source.ledger())


def main(fail: bool) -> None:
    """Starts the stages as processes of their own; all find each other through mDNS."""
    mesh = f"pipeline-{os.getpid()}"
    lines = [f"{number % 9 + 1} {fruit}" for number in range(100) for fruit in PRICES]
    if fail:
        lines.insert(42, "3 pianos")
    flags = ["--fail"] if fail else []
    stages = [subprocess.Popen([sys.executable, __file__, "stage", mesh, name, *flags]) for name in STAGES]
    try:
        asyncio.run(feed(mesh, lines))
    finally:
        for stage in stages:
            stage.terminate()
        for stage in stages:
            stage.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stage", mesh, name, *_]:
            run_stage(mesh, name)
        case arguments:
            main(fail="--fail" in arguments)
