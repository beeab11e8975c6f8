"""Last value cache: settings that every program has from its first moment on, and hears of when they change.

Problem
    Programs need the current value of many things: settings, prices, the state of devices. They start at any time,
    and must have all values then, not only those that happen to change while they look.
Guarantee
    Who subscribes with ``replay="latest"`` gets the last value of each topic and then the later ones, with nothing
    missing and no step back at the seam (G6). A change is stored and published before it is acked (G1).
How it fails
    ``--fail`` kills the keeper of the settings between storing a change and publishing it, and again when all is
    done. Retained values die with the process that published them; so the keeper has them in a file, and publishes
    all of them when it starts. The change that was under way comes again, and does no harm. Programs keep what they
    have meanwhile; one that starts then has its values when the keeper is back.
What to change
    The file, for what holds your values: a database, or the devices themselves. For a value that is no more, publish
    None and call ``delete_retained(topic)``, which is for those who come later.

Run it: ``python last_value_cache.py [--fail]``
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from meshmsg import Node

TOPICS = [f"settings.shop.{name}" for name in ("theme", "currency", "discount", "greeting")]
CHANGES = 100  # of each; a value is the number of its change


def store(path: Path, values: dict[str, int]) -> None:
    """Replaces the file in one step, so that a crash leaves the old one or the new one."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(values))
    os.replace(fresh, path)


async def keep(mesh: str, path: Path, crash: bool) -> None:
    """The keeper: stores each change, publishes it, and has all values for whoever comes. May be killed any time."""
    values = json.loads(path.read_text()) if path.exists() else {}
    async with Node("keeper", mesh=mesh) as node:
        settings = node.pub("settings.**", retain=True)
        for topic, value in values.items():
            await settings.send(value, topic=topic)
        async for message in node.pull("changes"):
            with message:  # acks at its end; killed before, the keeper gets the change again
                topic, value = message.body
                values[topic] = value
                store(path, values)
                if crash and value == CHANGES // 2:
                    print(f"the keeper dies with {topic} = {value} stored and not published", flush=True)
                    os._exit(1)
                await settings.send(value, topic=topic)


async def use(mesh: str, name: str) -> None:
    """A program with settings: follows them until all have their last value, and reports what it had on the way."""
    values: dict[str, int] = {}
    first: dict[str, int] = {}
    async with Node(name, mesh=mesh) as node:
        # Only the newest value of each topic counts: `latest` passes over those that it had no time to take.
        async for message in node.sub("settings.shop.*", replay="latest", latest=True):
            topic, value = str(message.topic), message.body
            if value < values.get(topic, 0):
                continue  # the last word of a keeper that died, heard after the first of the next one
            values[topic] = value
            first.setdefault(topic, value)
            if list(values.values()) == [CHANGES] * len(TOPICS):
                break
        report = f"{name}: all settings are {CHANGES}, the first it saw were {sorted(first.values())}"
        await node.push("reports").deliver(report, timeout=10)


async def change_all(mesh: str, path: Path, fail: bool) -> None:
    """Starts a keeper and a program, changes every setting many times, and starts another program at the end."""
    processes = [start("keeper", mesh, str(path), *(["--crash"] if fail else [])), start("program", mesh, "early")]
    try:
        async with Node("admin", mesh=mesh) as node:
            reports = node.pull("reports")
            changes = node.push("changes")
            for value in range(1, CHANGES + 1):
                for topic in TOPICS:
                    await changes.send([topic, value], key=topic)  # by key: in order, even if one comes again
            keeper = processes[0]
            if fail:
                await asyncio.to_thread(keeper.wait)
                processes.append(keeper := start("keeper", mesh, str(path)))  # as systemd or Kubernetes would
            await changes.flush(timeout=30)
            if fail:
                keeper.kill()
                processes.append(start("keeper", mesh, str(path)))
            processes.append(start("program", mesh, "late"))
            for _ in range(2):
                with await reports.get(timeout=30) as report:
                    print(report.body)
            print(changes.ledger())
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """This program again, as a process of its own; all find each other through mDNS."""
    return subprocess.Popen([sys.executable, __file__, *arguments])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keeper", mesh, path, *options]:
            asyncio.run(keep(mesh, Path(path), crash="--crash" in options))
        case ["program", mesh, name]:
            asyncio.run(use(mesh, name))
        case arguments:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "settings.json"
                asyncio.run(change_all(f"last-value-{os.getpid()}", file, fail="--fail" in arguments))
