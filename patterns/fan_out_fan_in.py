"""Fan-out, fan-in: one request split into parts, done by many workers, and put together again.

Problem
    A request is too large for one worker. Its parts are done side by side and come back in any order, mixed with
    those of other requests; who asked wants one answer: the whole result, or why there is none.
Guarantee
    Each part is tried until it is done or a dead letter (G1, G4). A request is complete when all its parts are
    there. A part counts once, although a crash may have it done twice (G2): its answer has a place of its own.
How it fails
    ``--fail`` has a worker crash between an answer and its ack, and asks for a circle that no worker can do. What the
    crashed one held is done by the others. A part that can't be done becomes a dead letter, and fails its request
    with its error instead of leaving it to wait for ever. The other requests notice nothing.
What to change
    ``count_points``, and how ``Circles.count`` splits a request and joins its parts. All of a request lives in the
    process that asked: if that dies, so does the question. Make several times as many parts as there are workers.

Run it: ``python fan_out_fan_in.py [--fail]``
"""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import uuid

from meshmsg import DeadLettered, Message, Node, Reject, Retry


def count_points(radius: int, first: int, stop: int) -> int:
    """The work: how many points with whole coordinates some rows of a circle hold."""
    if radius < 0:
        raise Reject("no circle has a negative radius")  # at once; any other exception would be tried again
    return sum(2 * math.isqrt(radius**2 - row**2) + 1 for row in range(first, stop))


def work(mesh: str, name: str, crash: bool) -> None:
    """A worker: does parts for whoever asks, until it is told to stop (SIGTERM)."""
    node = Node(name, mesh=mesh)
    answering: list[str] = []  # the queues that handlers answer to now: those of one asker have the same socket

    @node.pull("parts", prefetch=4, concurrency=4)  # while one waits for its answer to be taken, others go on
    async def handle(part: Message) -> None:
        points = await asyncio.to_thread(count_points, *part.body)
        reply_to = part.headers["reply_to"]
        answers = node.push(reply_to, unroutable_after=5)  # seconds; then its asker has gone, and this goes on
        answering.append(reply_to)
        try:
            await answers.deliver(points, headers=part.headers)  # before the ack, so that no crash can lose it
        finally:
            answering.remove(reply_to)
            if reply_to not in answering:  # the last one closes it, or a socket would stay for every asker there was
                await answers.close()
        if crash:
            print(f"{name} crashes between an answer and its ack", flush=True)
            os._exit(1)

    node.run()


class Circles:
    """Asks the workers, and puts their answers together."""

    def __init__(self, node: Node) -> None:
        # Answers come back through a queue of this node's own: another node that asks must not get them.
        self.reply_to = f"points-{node.id}"
        self.parts = node.push("parts", retry=Retry(max_attempts=3, backoff=0.1))
        self.answers: dict[str, dict[int, int]] = {}  # by request and part
        node.pull(self.reply_to)(self.collect)

    async def count(self, radius: int, parts: int = 12) -> int:
        """Fans a request out and waits until all of it has come in; ``DeadLettered`` if a part can't be done."""
        request = uuid.uuid4().hex
        answers = self.answers[request] = {}
        bounds = [-radius + (2 * radius + 1) * part // parts for part in range(parts + 1)]
        common = {"reply_to": self.reply_to, "request": request}
        jobs = [([radius, bounds[part], bounds[part + 1]], {**common, "part": part}) for part in range(parts)]
        try:
            # A worker acks a part after its answer was collected: all parts processed means all answers are here.
            await asyncio.gather(*(self.parts.deliver(body, headers=headers) for body, headers in jobs))
            return sum(answers.values())
        finally:
            del self.answers[request]  # also when it failed, or the caller gave up

    async def collect(self, answer: Message) -> None:
        """Fan-in: stores each answer in its place, so that one which comes twice counts once."""
        self.answers.get(answer.headers["request"], {})[answer.headers["part"]] = answer.body  # {}: nobody waits for it


async def ask(mesh: str, radii: list[int]) -> None:
    """Several requests side by side, and what comes of each."""
    async with Node("asker", mesh=mesh) as node:
        circles = Circles(node)
        await node.wait_for(pull="parts", count=3, timeout=30)  # not needed, but then all three get some
        requests = [asyncio.ensure_future(circles.count(radius)) for radius in radii]
        for radius, request in zip(radii, requests, strict=True):
            try:
                print(f"radius {radius}: {await request} points, so pi is about {await request / radius**2:.7f}")
            except DeadLettered as error:
                print(f"radius {radius}: no answer, {error.letter.error}")
        await circles.parts.flush(timeout=30)
        print(circles.parts.ledger())


def main(fail: bool) -> None:
    """Starts workers as processes of their own; all find each other through mDNS."""
    mesh = f"fan-out-{os.getpid()}"
    roles = [["worker-1", "--crash"] if fail else ["worker-1"], ["worker-2"], ["worker-3"]]
    workers = [subprocess.Popen([sys.executable, __file__, "worker", mesh, *role]) for role in roles]
    try:
        asyncio.run(ask(mesh, [1000, 30_000, 90_000, *([-1] if fail else [])]))
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", mesh, name, *options]:
            work(mesh, name, crash="--crash" in options)
        case arguments:
            main(fail="--fail" in arguments)
