"""What the measured processes of ``meshmsg bench pub-sub`` run: ``python -m meshmsg.cli.bench_pub_sub_ours``.

A role and its options follow, as for ``bench_ours``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import meshmsg
from meshmsg.cli.bench_ours import CHUNK, TIMEOUT_S, VALID, Counter, make_body, run_role
from meshmsg.cli.bench_processes import Profiler, commands_in_loop, say

CHUNK_BYTES = 2**20  # of one send_many, with large bodies
BUFFER = 65_536  # what a subscription holds by default
OVERHEAD_BYTES = 64  # of a message beyond its size, more or less
AROUND_BYTES = 22  # of a body that has a time, beside its padding

Options = dict[str, Any]


def make_parts(size_bytes: int, frames: int) -> dict[str, Any]:
    """A body of about this size; with more than one frame most of it are as many byte strings.

    >>> make_parts(64, 2)
    {'valid': True, 'parts': [b'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx', b'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx']}
    """
    return make_body(size_bytes) if frames == 1 else {"valid": True, "parts": [b"x" * (size_bytes // frames)] * frames}


async def publish(options: Options) -> None:
    """Publishes as many messages as it is told to, topic after topic in turns."""
    keep = options["count"]
    async with meshmsg.Node("publisher", mesh=options["mesh"], mdns=False) as node:
        kept_bytes = keep * (options["size"] + OVERHEAD_BYTES)
        pub = node.pub(options["pattern"], history=keep, history_bytes=kept_bytes, block=options["block"])
        body = make_parts(options["size"], options["frames"])
        topics = options["topics"]
        profiler = Profiler()
        say(endpoint=node.endpoints[0])
        async for command in commands_in_loop():
            if profiler.handles(command):
                continue
            if "subscribers" in command:
                await wait_for_subscribers(node, topics, command["subscribers"])
                say(found=command["subscribers"])
            elif "count" in command:
                began = time.monotonic()
                await publish_all(pub, body, topics, command["count"], options)
                say(began=began)
            else:
                say(cpu_s=time.process_time(), repaired=node.counters()["repaired_messages"])


async def wait_for_subscribers(node: meshmsg.Node, topics: Sequence[str], count: int) -> None:
    """Until everything reaches all of them."""
    for topic in topics:
        await node.wait_for(sub=topic, count=count, timeout=TIMEOUT_S)


async def publish_all(pub: Any, body: Any, topics: Sequence[str], count: int, options: Options) -> None:
    """So many messages, in the way that is measured."""
    if options["batches"]:
        chunk = max(1, min(CHUNK, CHUNK_BYTES // options["size"]))
        bodies = [body] * chunk
        turns = cycle(topics)
        for _ in range(count // chunk):
            await pub.send_many(bodies, topic=next(turns))
        await pub.send_many(bodies[: count % chunk], topic=next(turns))
    elif len(topics) == 1:
        for _ in range(count):
            await pub.send(body)
    else:
        for topic in islice(cycle(topics), count):
            await pub.send(body, topic)


async def follow(options: Options) -> None:
    """Handles as many messages as it is told to expect, and says when the last one was."""
    counter = Counter()
    seeds = [options["endpoint"]]
    async with meshmsg.Node("subscriber", mesh=options["mesh"], seeds=seeds, mdns=False) as node:
        sub = node.sub(
            options["pattern"],
            buffer=max(BUFFER, options["count"]),
            on_gap=lambda gap: counter.reached.set(),  # the round has failed: nobody need wait for what will not come
        )

        async def handle_batches() -> None:
            async for batch in sub.batches():
                counter.add(sum(map(VALID, batch.bodies)))

        async def handle(message: meshmsg.Message) -> None:
            if message.body["valid"]:
                counter.handled += 1
                if counter.handled >= counter.wanted:
                    counter.reached.set()

        task = asyncio.create_task(handle_batches()) if options["batches"] else None
        if task is None:
            sub(handle)
        profiler = Profiler()
        say(ready=True)
        async for command in commands_in_loop():
            if not profiler.handles(command):
                cpu_start = time.process_time()
                await wait_or_give_up(counter, command["count"])
                ended = time.monotonic()
                say(ended=ended, handled=counter.handled, gaps=sub.gaps, cpu_s=time.process_time() - cpu_start)
        if task is not None:
            await sub.close()
            await task


async def wait_or_give_up(counter: Counter, count: int) -> None:
    """Who lost messages says how many it has, instead of only that time ran out."""
    try:
        await counter.wait(count)
    except TimeoutError:
        pass


# -- small messages beside large ones ----------------------------------------------------------------------------


async def pace(options: Options) -> None:
    """Publishes small messages at their times, and large ones of another topic in between if it is told to."""
    async with meshmsg.Node("publisher", mesh=options["mesh"], mdns=False) as node:
        small, large = node.pub("small"), node.pub("large")
        large_body = {"data": b"x" * options["large"]}
        padding = b"x" * (options["size"] - AROUND_BYTES)
        say(endpoint=node.endpoints[0])
        await wait_for_subscribers(node, ["small", "large"], 1)
        say(found=1)
        async for command in commands_in_loop():
            start = time.monotonic()
            for number in range(command["count"]):
                due = start + number * options["interval_s"]
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if command["every"] and number % command["every"] == 0:
                    await large.send(large_body)
                await small.send({"due": due, "data": padding})


async def clock(options: Options) -> None:
    """Says how long after its time each small message came, in nanoseconds."""
    times_ns: list[int] = []
    complete = asyncio.Event()
    wanted = 0
    seeds = [options["endpoint"]]
    async with meshmsg.Node("subscriber", mesh=options["mesh"], seeds=seeds, mdns=False) as node:

        async def handle_small(message: meshmsg.Message) -> None:
            times_ns.append(int((time.monotonic() - message.body["due"]) * 1e9))
            if len(times_ns) == wanted:
                complete.set()

        async def handle_large(message: meshmsg.Message) -> None:
            assert message.body["data"]

        node.sub("small")(handle_small)
        node.sub("large")(handle_large)
        say(ready=True)
        async for command in commands_in_loop():
            wanted = command["count"]
            if len(times_ns) < wanted:
                async with asyncio.timeout(TIMEOUT_S):
                    await complete.wait()
            say(times_ns=times_ns)
            times_ns.clear()
            complete.clear()


ROLES = {"publish": publish, "follow": follow, "pace": pace, "clock": clock}


if __name__ == "__main__":
    run_role(ROLES)
