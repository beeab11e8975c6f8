"""Majordomo: services by name, workers that come and go, and clients that know neither addresses nor workers.

Problem
    The ZeroMQ Guide's Majordomo puts a broker in the middle: workers register for services, clients name a service,
    the broker queues requests, finds dead workers by heartbeats, and hands each worker one request at a time.
Guarantee
    The same without a broker, which can't be a bottleneck nor fail then. A request goes to a worker that serves its
    name, and has one outcome (G8). A client hears at once when nobody offers a service, may wait until somebody does,
    and may ask what there is (``mmi.service``).
How it fails
    ``--fail`` kills a worker (SIGKILL) with a request in hand. The client knows within milliseconds, instead of after
    three heartbeats, and this one, declared idempotent, goes to another worker.
What to change
    The services, and ``concurrency=``: 1 is Majordomo's, plain functions take a thread each. Requests wait at their
    worker here; when a queue of ``max_queue`` is full, ``Overloaded`` says when to come back. What must wait for a
    worker that is not there yet, or outlive its client, is work, not a request: push it (work_queue.py).

Run it: ``python majordomo.py [--fail]``
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from meshmsg import Context, Node, NoResponders, RemoteError


class Echo:
    """A service with one method."""

    def __init__(self, worker: str) -> None:
        self.worker = worker

    def request(self, text: str, context: Context) -> str:
        """Gives back what it gets. A plain function: it runs in a thread, and may block."""
        if context.headers.get("kill") == self.worker:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.002)
        return text


class Arithmetic:
    """Another one."""

    def divide(self, dividend: float, divisor: float) -> float:
        """What it raises, the client gets."""
        return dividend / divisor


SERVICES: dict[str, Callable[[str], Any]] = {"echo": Echo, "arithmetic": lambda worker: Arithmetic()}


def work(mesh: str, name: str, *services: str) -> None:
    """A worker for some services: one request at a time of each, until it is told to stop (SIGTERM)."""
    node = Node(name, mesh=mesh)
    for service in services:
        node.router(service, concurrency=1).offer(SERVICES[service](name))
    node.run()


async def use(mesh: str, start_worker: Callable[[str, str], None], fail: bool) -> None:
    """The client."""
    async with Node("client", mesh=mesh) as node:
        echo = node.dealer("echo", idempotent=["request"], balance="least_outstanding")
        try:
            await echo.request("request", "anybody?")
        except NoResponders as error:
            print(f"{error.code}: {error}")

        for name in ("worker-1", "worker-2", "worker-3"):
            start_worker(name, "echo")
        start_worker("worker-4", "arithmetic")
        await node.wait_for(router="echo", count=3, timeout=30)
        await node.wait_for(router="arithmetic", timeout=30)

        # Majordomo's mmi.service, for all services: what the other nodes offer.
        offered = Counter(service for peer in node.peers() for service in peer.offers["router"])
        print(f"offered: {dict(sorted(offered.items()))}")

        texts = [f"hello {number}" for number in range(300)]
        headers = {"kill": "worker-2"} if fail else None
        asked = (echo.request("request", text, headers=headers, timeout=20) for text in texts)
        replies = await asyncio.gather(*asked)  # all at once: nothing is in lock step
        print(f"{len(replies)} replies, {'as asked' if replies == texts else 'wrong'}")
        served = {answer.peer: answer.value["methods"]["request"]["requests"] async for answer in echo.survey("stats")}
        print("served by " + ", ".join(sorted(served)))

        try:
            await node.dealer("arithmetic").request("divide", 1, 0)
        except RemoteError as error:
            print(f"{error.peer}: {error.type}: {error}")


def main(fail: bool) -> None:
    """The client in this process, the workers in processes of their own; all find each other through mDNS."""
    mesh = f"majordomo-{os.getpid()}"
    workers: list[subprocess.Popen[bytes]] = []

    def start_worker(name: str, service: str) -> None:
        workers.append(subprocess.Popen([sys.executable, __file__, "worker", mesh, name, service]))

    try:
        asyncio.run(use(mesh, start_worker, fail))
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", mesh, name, *services]:
            work(mesh, name, *services)
        case arguments:
            main(fail="--fail" in arguments)
