"""Event log with replay: a state that anybody can build from all that ever happened, and then keep up to date.

Problem
    Balances, stock, a search index: programs hold a state that follows from events. One that starts later, or again,
    needs all events from the first one on and then the new ones, with none missing or counted twice in between.
Guarantee
    Who subscribes with ``replay="history"`` gets what the publisher keeps and then what is new, each event once and
    in order, the seam included, or a ``Gap`` (G6). Events have numbers of their own, by which a program sees that a
    history is complete, and what it has already when the log begins again.
How it fails
    ``--fail`` kills the log between writing an event and publishing it, and a program in the middle of its work. A
    history lives in the memory of its publisher; so the log has a file, and publishes all of it when it starts again,
    as a new stream. Programs know the numbers and go on where they were. The one that was killed starts with nothing,
    and ends with the same state as the others.
What to change
    ``apply`` and the event. The file, for a database. A log that never ends: publish a snapshot now and then, to a
    topic with ``retain=True``, with the number of the last event in it, and keep ``history=`` for what comes after it.

Run it: ``python event_log_replay.py [--fail]``
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from meshmsg import Node

EVENTS = 3000


def apply(balances: dict[str, int], event: dict[str, Any]) -> None:
    """What an event does to the state."""
    balances[event["account"]] = balances.get(event["account"], 0) + event["cents"]


async def record(mesh: str, path: Path, crash: bool) -> None:
    """The log: writes each event to its file, publishes it, and has all of them for whoever comes."""
    path.touch()
    async with Node("log", mesh=mesh) as node:
        events = node.pub("events.accounts", history=1_000_000)  # and up to history_bytes, 64 MiB by default
        written = [json.loads(line) for line in path.read_text().splitlines()]
        await events.send_many(written)
        await node.wait_for(sub="events.accounts", count=2, timeout=30)  # only so that they see some of it live
        with path.open("a") as file:
            for number in range(len(written), EVENTS):
                event = {"number": number, "account": "abcd"[number % 4], "cents": number % 100 - 30}
                file.write(json.dumps(event) + "\n")
                file.flush()  # survives this process; to survive the machine takes os.fsync
                if crash and number == EVENTS // 2:
                    print(f"the log dies with event {number} written and not published", flush=True)
                    os._exit(1)
                await events.send(event)
                if number % 20 == 0:
                    await asyncio.sleep(0.001)  # as if events took their time
        await asyncio.Event().wait()  # it stays, for those who come late


async def project(mesh: str, name: str, crash: bool) -> None:
    """A program: builds its state from the first event on, and keeps it up to date."""
    balances: dict[str, int] = {}
    following = repeated = 0  # the number of the next event, and how many came again
    async with Node(name, mesh=mesh) as node:
        async for message in node.sub("events.accounts", replay="history"):
            number = message.body["number"]
            if number < following:
                repeated += 1
                continue  # the log has started again
            if number > following:
                raise SystemExit(f"{name} misses events {following} to {number - 1}: it has to start anew")
            apply(balances, message.body)
            following += 1
            if crash and following == EVENTS // 3:
                print(f"{name} dies after {following} events", flush=True)
                os._exit(1)
            if following == EVENTS:
                break
        report = {"name": name, "repeated": repeated, "balances": balances}
        await node.push("reports").deliver(report, timeout=10)


async def follow(mesh: str, path: Path, fail: bool) -> None:
    """Starts the log and two programs, restarts what died, and then starts a third program, late."""
    log, first = start("log", mesh, str(path), fail), start("program", mesh, "first", fail)
    processes = [log, first, start("program", mesh, "second")]
    try:
        async with Node("judge", mesh=mesh) as node:
            reports = node.pull("reports")
            if fail:  # as systemd or Kubernetes would
                await asyncio.to_thread(log.wait)
                processes.append(start("log", mesh, str(path)))
                await asyncio.to_thread(first.wait)
                processes.append(start("program", mesh, "first"))
            for count in range(3):
                if count == 2:
                    processes.append(start("program", mesh, "late"))
                with await reports.get(timeout=30) as report:
                    print("{name}: {balances}; {repeated} events came again".format(**report.body))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def start(role: str, mesh: str, what: str, crash: bool = False) -> subprocess.Popen[bytes]:
    """This program again, as a process of its own; all find each other through mDNS."""
    return subprocess.Popen([sys.executable, __file__, role, mesh, what, *(["--crash"] if crash else [])])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["log", mesh, path, *options]:
            asyncio.run(record(mesh, Path(path), crash="--crash" in options))
        case ["program", mesh, name, *options]:
            asyncio.run(project(mesh, name, crash="--crash" in options))
        case arguments:
            with tempfile.TemporaryDirectory() as folder:
                asyncio.run(follow(f"event-log-{os.getpid()}", Path(folder) / "events", fail="--fail" in arguments))
