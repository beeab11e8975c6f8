"""Fan-out, fan-in: one request split into parts, done by many workers, and put together again.

Problem
    A request is too large for one worker. Its parts are done side by side, come back in any order and mixed with
    those of other requests, and the one who asked wants one answer: the whole result, or why there is none.
Guarantee
    Each part is done until it succeeds or is a dead letter (G1, G4). A request is complete when each of its parts is
    there, and a part counts once although a crash may have it done twice (G2): it is stored under its number.
How it fails
    ``--fail`` kills a worker (SIGKILL) in the middle, and asks for something that no worker can do. What the killed
    one held is done by the others. A part that can't be done becomes a dead letter, and fails its request at once
    with the part's error; without that hook the request would wait for ever. Other requests notice nothing.
What to change
    ``count_points``, and how ``Circles.count`` splits a request and joins its parts. The parts of a request and its
    state live in the process that asked: if that dies, so does the question. Parts should be large enough to be
    worth a message, and several times as many as workers, so that a slow worker gets fewer of them.

Run it: ``python fan_out_fan_in.py [--fail]``
"""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import uuid

from meshmsg import DeadLetter, Message, Node, Retry


def count_points(radius: int, first: int, stop: int) -> int:
    """The work: how many points with whole coordinates some rows of a circle hold."""
    return sum(2 * math.isqrt(radius**2 - row**2) + 1 for row in range(first, stop))


def work(mesh: str, name: str) -> None:
    """A worker: does parts for whoever asks, until it is told to stop (SIGTERM)."""
    node = Node(name, mesh=mesh)

    @node.pull("parts", prefetch=4)
    async def handle(part: Message) -> None:
        points = await asyncio.to_thread(count_points, *part.body)
        # The same queue is the same socket, so opening it each time costs nothing. Without a deadline, the answer to
        # somebody who has left would keep this worker waiting.
        answers = node.push(part.headers["reply_to"], unroutable_after=5)
        await answers.deliver(points, headers=part.headers)  # before the ack, so that no crash can lose it

    node.run()


class Circles:
    """Asks the workers, and puts their answers together."""

    def __init__(self, node: Node) -> None:
        # Answers come back through a queue of this node's own: another node that asks must not get them.
        self.reply_to = f"points-{node.id}"
        self.parts = node.push("parts", retry=Retry(max_attempts=3, backoff=0.1), on_dead_letter=self.fail)
        self.requests: dict[str, tuple[asyncio.Future[None], dict[int, int | None]]] = {}
        node.pull(self.reply_to)(self.collect)

    async def count(self, radius: int, parts: int = 12) -> int:
        """Fans one request out, and waits until all of it has come in."""
        request, done = uuid.uuid4().hex, asyncio.get_running_loop().create_future()
        values: dict[int, int | None] = dict.fromkeys(range(parts))
        self.requests[request] = done, values
        bounds = [-radius + (2 * radius + 1) * part // parts for part in range(parts + 1)]
        try:
            for part in range(parts):
                headers = {"reply_to": self.reply_to, "request": request, "part": part}
                await self.parts.send((radius, bounds[part], bounds[part + 1]), headers=headers)
            await done
            return sum(value or 0 for value in values.values())
        finally:
            del self.requests[request]  # also when the caller gives up: late parts find nothing, and are dropped

    async def collect(self, answer: Message) -> None:
        """Fan-in: each part has its place, and whoever fills the last one completes the request."""
        if answer.headers["request"] in self.requests:
            done, values = self.requests[answer.headers["request"]]
            values[answer.headers["part"]] = answer.body
            if None not in values.values() and not done.done():
                done.set_result(None)

    def fail(self, letter: DeadLetter) -> None:
        """A part that nobody can do ends its request."""
        if letter.headers["request"] in self.requests:
            done, _ = self.requests[letter.headers["request"]]
            if not done.done():
                done.set_exception(RuntimeError(f"part {letter.headers['part']} failed: {letter.error}"))


async def ask(mesh: str, workers: list[subprocess.Popen[bytes]], fail: bool) -> None:
    """Several requests at a time, by one process."""
    async with Node("asker", mesh=mesh) as node:
        circles = Circles(node)
        radii = [1000, 50_000, 100_000] + ([2.5] if fail else [])
        ...


def main(fail: bool) -> None:
    """Starts workers as processes of their own; they and the asker find each other through mDNS."""
