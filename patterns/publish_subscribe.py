"""Publish, subscribe: one publisher, many subscribers, each with its own choice of topics.

Problem
    Several processes want the same stream of messages, or parts of it. The publisher must not know them, nor wait
    for a slow one. And nobody should believe that it saw everything when it did not.
Guarantee
    Once a subscriber is confirmed, it gets every message of its topics, each once and in the order of its topic, or
    a ``Gap`` that says which are missing (G6). Nobody gets what it did not ask for.
How it fails
    ``--fail`` adds a subscriber that is too slow. Its buffer fills, what does not fit stays with the publisher, and
    what that keeps no longer is lost: the subscriber gets a ``Gap`` with the exact number, and goes on with what
    there is. The publisher and the other subscribers notice nothing.
What to change
    The topics, and what becomes of a slow subscriber: with ``history=`` the publisher keeps more for it, with
    ``block=True`` it waits; with ``latest=True`` a subscriber skips to the newest values. Where each message is
    *work* that somebody has to do, take a group (consumer_group.py).

Run it: ``python publish_subscribe.py [--fail]``
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter

from meshmsg import Gap, Node

TICKS = 5000  # to each topic
# The topics, each with those who want it.
TOPICS = {
    "prices.eu.gold": ["archive", "jeweller"],
    "prices.eu.silver": ["archive", "ticker"],
    "prices.us.gold": ["archive", "jeweller", "slow"],
}
# Subscribers: the pattern, and how many messages may wait for it. "*" is one segment, "**" any number of them.
SUBSCRIBERS = {
    "archive": ("prices.**", 65_536),
    "jeweller": ("prices.*.gold", 65_536),
    "ticker": ("prices.eu.silver", 65_536),
    "slow": ("prices.us.gold", 500),
}


async def subscribe(mesh: str, name: str) -> None:
    """A subscriber: checks what it gets, up to the end of each of its topics, and reports."""
    pattern, buffer = SUBSCRIBERS[name]
    open_topics = {topic for topic, names in TOPICS.items() if name in names}
    expected: Counter[str] = Counter()
    received = skipped = 0
    gaps: list[Gap] = []  # of a topic each, with the publisher, how many, and from which to before which number

    async with Node(name, mesh=mesh) as node:
        sub = node.sub(pattern, buffer=buffer, on_gap=gaps.append)
        async for message in sub:
            tick, topic = message.body["tick"], str(message.topic)
            if tick < expected[topic]:
                raise AssertionError(f"tick {tick} of {topic} came twice, or too late")
            skipped += tick - expected[topic]
            expected[topic] = tick + 1
            received += 1
            if message.body["last"]:
                open_topics.remove(topic)
                if not open_topics:
                    break
            if name == "slow" and received % 100 == 0:
                await asyncio.sleep(0.01)
        told = [gap.missed for gap in gaps]
        report = {"name": name, "pattern": pattern, "received": received, "skipped": skipped, "told": told}
        await node.push("reports").deliver(report, timeout=10)


async def publish(mesh: str, names: list[str]) -> None:
    """The publisher. It waits for the subscribers at the start, so that all of them see the first message."""
    async with Node("exchange", mesh=mesh) as node:
        reports = node.pull("reports")
        prices = node.pub("prices.*.*")
        for topic, wanted_by in TOPICS.items():
            # Each has confirmed: whatever is published from now on, it gets or hears of. No sleep says as much.
            await node.wait_for(sub=topic, count=len(set(wanted_by) & set(names)), timeout=30)
        for tick in range(TICKS):
            for topic in TOPICS:
                await prices.send({"tick": tick, "cents": 180_000 + tick % 7, "last": tick == TICKS - 1}, topic=topic)
        print(f"published {TICKS} ticks to each of {len(TOPICS)} topics", flush=True)
        # What somebody missed is repaired by this node. So it stays until all have what they want.
        for _ in names:
            with await reports.get(timeout=30) as report:
                print("{name} ({pattern}): {received} ticks; {skipped} missing, told {told}".format(**report.body))


def main(fail: bool) -> None:
    """Starts subscribers as processes of their own; all find each other through mDNS."""
    mesh = f"publish-subscribe-{os.getpid()}"
    names = [name for name in SUBSCRIBERS if fail or name != "slow"]
    processes = [subprocess.Popen([sys.executable, __file__, "subscriber", mesh, name]) for name in names]
    try:
        asyncio.run(publish(mesh, names))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["subscriber", mesh, name]:
            asyncio.run(subscribe(mesh, name))
        case arguments:
            main(fail="--fail" in arguments)
