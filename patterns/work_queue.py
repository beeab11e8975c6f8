"""Work queue: many jobs, some workers, each job done although workers crash.

Problem
    There is more work than one process can do. Workers join and leave while it runs, and now and then one crashes.
Guarantee
    Each job goes to one worker at a time, and to another one if that is lost, until it is done or a dead letter
    (G1, G4). Nobody holds more than ``prefetch`` jobs (G5). A job may be *done* twice, by a worker that crashes
    before its ack arrives; its *result* counts once, because the collector knows it by the job's id.
How it fails
    ``--fail`` kills a worker (SIGKILL) between a result and its ack. The producer notices within milliseconds, and
    what the worker held goes to the others: ``redelivered`` in the ledger, duplicates among the results. A job that
    kills every worker it meets, or keeps raising, ends as a dead letter after ``max_attempts``.
What to change
    ``count_functions`` and the paths that ``produce`` sends. More workers: ``python work_queue.py worker MESH NAME``.
    If a mesh has several producers, or one that may start again, give each run of one its own queue for results, as
    fan_out_fan_in.py does.

Run it: ``python work_queue.py [--fail]``
"""

from __future__ import annotations

import ast
import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from meshmsg import Message, Node, Retry


def count_functions(path: str) -> int:
    """The work: how many functions a Python file defines."""
    tree = ast.parse(Path(path).read_bytes())
    return sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree))


def work(mesh: str, name: str) -> None:
    """A worker: takes jobs until it is told to stop (SIGTERM), and then finishes what it has begun."""
    node = Node(name, mesh=mesh)
    results = node.push("results")

    # A small prefetch spreads long jobs evenly; short ones want a larger one (the default is 256).
    @node.pull("jobs", prefetch=4, concurrency=2)
    async def handle(job: Message) -> None:
        functions = await asyncio.to_thread(count_functions, job.body)  # the loop stays free
        # The job is acked when this function returns. `deliver` makes sure that its result has arrived by then;
        # after a mere `send` it could still be in this process's memory, and die with it.
        await results.deliver({"job": job.id, "path": job.body, "functions": functions})

    node.run()


async def produce(mesh: str, workers: dict[str, subprocess.Popen[bytes]], fail: bool) -> None:
    """The producer, which is also the collector: sends the jobs, and knows that all are done."""
    results: dict[str, int] = {}
    done_by: Counter[str] = Counter()
    duplicates = 0

    async with Node("producer", mesh=mesh) as node:
        # A result is delivered at least once, so it is stored under its job's id: the second time changes nothing.
        @node.pull("results")
        async def collect(result: Message) -> None:
            nonlocal duplicates
            if result.body["job"] in results:
                duplicates += 1
                return
            results[result.body["job"]] = result.body["functions"]
            done_by[result.sender] += 1
            if fail and len(results) == 10:
                print(f"killing {result.sender} before it can ack {Path(result.body['path']).name}")
                workers[result.sender].kill()

        # `send` waits while 20 jobs are pending, so a folder of any size needs little memory.
        jobs = node.push("jobs", max_pending=20, retry=Retry(max_attempts=3))
        for path in sorted(Path(ast.__file__).parent.glob("*.py"))[:60]:
            await jobs.send(str(path))
        # A worker acks a job after its result has been collected: once nothing is pending, all results are here.
        await jobs.flush(timeout=60)

        for letter in node.dead_letters("jobs"):
            print(f"gave up {letter.body}: {letter.reason}, {letter.error}")
        print(f"{len(results)} files define {sum(results.values())} functions; {duplicates} duplicate results")
        print(", ".join(f"{name} did {count}" for name, count in done_by.items()))
        print(jobs.ledger())


def main(fail: bool) -> None:
    """Starts workers as processes of their own; all find each other through mDNS."""
    mesh = f"work-queue-{os.getpid()}"
    names = ["worker-1", "worker-2", "worker-3"]
    workers = {name: subprocess.Popen([sys.executable, __file__, "worker", mesh, name]) for name in names}
    try:
        asyncio.run(produce(mesh, workers, fail))
    finally:
        for worker in workers.values():
            worker.terminate()
        for worker in workers.values():
            worker.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", mesh, name]:
            work(mesh, name)
        case arguments:
            main(fail="--fail" in arguments)
