"""What the measured meshmsg processes run: ``python -m meshmsg.cli.bench_ours ROLE OPTIONS``."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from operator import itemgetter
from typing import Any

import meshmsg
from meshmsg.cli.bench_processes import Profiler, commands_in_loop, say
from meshmsg.wire.large import LARGE_BYTES

VALID = itemgetter("valid")
QUEUE = "bench"
CHUNK = 500  # bodies handed to one send_many
TIMEOUT_S = 60.0

Options = dict[str, Any]


def make_body(size_bytes: int) -> dict[str, Any]:
    """A dict of the kind people send, whose MessagePack encoding has this many bytes, 16 at least.

    Large ones hold bytes, as of an image, small ones a text. It is a byte shorter where MessagePack's header of these
    grows, which no text can make up for.

    >>> import msgpack
    >>> len(msgpack.packb(make_body(100)))
    100
    """
    import msgpack

    name, filling = ("data", b"x") if size_bytes >= LARGE_BYTES else ("text", "x")
    body: dict[str, Any] = {"valid": True, name: filling}
    for length in range(size_bytes):
        body[name] = filling * (size_bytes - length)
        if len(msgpack.packb(body)) <= size_bytes:
            break
    return body


# -- one way: push-pull ----------------------------------------------------------------------------------------


class Counter:
    """Counts handled messages; the benchmark is answered when as many came as it named."""

    def __init__(self) -> None:
        self.handled = 0
        self.wanted = 0
        self.reached = asyncio.Event()

    def add(self, count: int) -> None:
        """So many more were handled."""
        self.handled += count
        if self.handled >= self.wanted:
            self.reached.set()

    async def wait(self, count: int) -> None:
        """Waits for so many more than ever wanted before."""
        self.wanted += count
        if self.handled < self.wanted:
            self.reached.clear()
            async with asyncio.timeout(TIMEOUT_S):
                await self.reached.wait()


async def consume(options: Options) -> None:
    """Handles as many messages as it is told to expect."""
    counter = Counter()
    async with meshmsg.Node("consumer", mesh=options["mesh"], mdns=False) as node:
        prefetch = options.get("prefetch")
        pull = node.pull(QUEUE, **({} if prefetch is None else {"prefetch": prefetch}))

        async def handle_batches() -> None:
            async for batch in pull.batches():
                with batch:
                    counter.add(sum(map(VALID, batch.bodies)))

        async def handle(message: meshmsg.Message) -> None:
            if message.body["valid"]:
                counter.handled += 1
                if counter.handled >= counter.wanted:
                    counter.reached.set()

        task = asyncio.create_task(handle_batches()) if options.get("batches") else None
        if task is None:
            pull(handle)
        profiler = Profiler()
        say(endpoint=node.endpoints[0])
        async for command in commands_in_loop():
            if not profiler.handles(command):
                cpu_start = time.process_time()
                await counter.wait(command["count"])
                say(handled=counter.handled, cpu_s=time.process_time() - cpu_start)
        if task is not None:
            await pull.close()
            await task


async def produce(options: Options) -> None:
    """Sends as many messages as it is told to, and says how long that took, from the first send to the last ack."""
    seeds = [options["endpoint"]]
    async with meshmsg.Node("producer", mesh=options["mesh"], seeds=seeds, mdns=False) as node:
        push = node.push(QUEUE)
        body = make_body(options["size"])
        await node.wait_for(pull=QUEUE, timeout=TIMEOUT_S)
        profiler = Profiler()
        say(ready=True)
        async for command in commands_in_loop():
            if profiler.handles(command):
                continue
            count = command["count"]
            cpu_start = time.process_time()
            start = time.perf_counter()
            if options.get("batches"):
                bodies = [body] * CHUNK
                for _ in range(count // CHUNK):
                    await push.send_many(bodies)
                await push.send_many(bodies[: count % CHUNK])
            else:
                for _ in range(count):
                    await push.send(body)
            await push.flush(timeout=TIMEOUT_S)
            elapsed = time.perf_counter() - start
            cpu_s = time.process_time() - cpu_start
            say(seconds=elapsed, cpu_s=cpu_s, processed=push.ledger().processed)


# -- there and back: latency -----------------------------------------------------------------------------------


async def deliver(options: Options) -> None:
    """Delivers one message after the other and says how long each took, in nanoseconds."""
    seeds = [options["endpoint"]]
    async with meshmsg.Node("producer", mesh=options["mesh"], seeds=seeds, mdns=False) as node:
        push = node.push(QUEUE)
        body = make_body(options["size"])
        await node.wait_for(pull=QUEUE, timeout=TIMEOUT_S)
        say(ready=True)
        async for command in commands_in_loop():
            times_ns = []
            for _ in range(command["count"]):
                start = time.perf_counter_ns()
                await push.deliver(body, timeout=TIMEOUT_S)
                times_ns.append(time.perf_counter_ns() - start)
            say(times_ns=times_ns)


# -- a consumer dies: failover ---------------------------------------------------------------------------------


async def hold(options: Options) -> None:
    """Takes messages and never ends one: the consumer that will be killed. Says when it has started the first."""
    async with meshmsg.Node("victim", mesh=options["mesh"], mdns=False) as node:
        pull = node.pull(QUEUE)
        never = asyncio.Event()

        async def handle(message: meshmsg.Message) -> None:
            say(started=True)
            await never.wait()

        pull(handle)
        say(endpoint=node.endpoints[0])
        await never.wait()


async def hand_out(options: Options) -> None:
    """Sends work to the victim while it is the only consumer, then waits for as many consumers as it is told."""
    seeds = [options["endpoint"]]
    async with meshmsg.Node("producer", mesh=options["mesh"], seeds=seeds, mdns=False, drain=0) as node:
        push = node.push(QUEUE)
        await push.send_many([make_body(options["size"])] * options["count"])
        say(endpoint=node.endpoints[0])
        async for command in commands_in_loop():
            await node.wait_for(pull=QUEUE, count=command["consumers"], timeout=TIMEOUT_S)
            say(in_flight=push.ledger().in_flight)


async def take_over(options: Options) -> None:
    """Handles messages, and says when it had handled as many as the victim held."""
    seeds = [options["endpoint"]]
    async with meshmsg.Node("heir", mesh=options["mesh"], seeds=seeds, mdns=False) as node:
        pull = node.pull(QUEUE)
        handled = 0

        async def handle(message: meshmsg.Message) -> None:
            nonlocal handled
            handled += 1
            if handled == options["count"]:
                say(at=time.monotonic())

        pull(handle)
        async for _ in commands_in_loop():
            pass


# -- a node joins ----------------------------------------------------------------------------------------------


async def offer(options: Options) -> None:
    """Waits in the mesh, and sends one message for each node that is going to join."""
    async with meshmsg.Node("producer", mesh=options["mesh"]) as node:
        push = node.push(QUEUE)
        body = make_body(options["size"])
        say(ready=True)
        async for _ in commands_in_loop():
            await push.send(body)
            say(sent=True)


async def join(options: Options) -> None:
    """Starts a node and says how long it took until mDNS had brought it its first message."""
    first = asyncio.Event()

    async def handle(message: meshmsg.Message) -> None:
        first.set()

    node = meshmsg.Node("newcomer", mesh=options["mesh"])
    node.pull(QUEUE)(handle)
    start = time.perf_counter()
    async with node:
        async with asyncio.timeout(TIMEOUT_S):
            await first.wait()
        say(seconds=time.perf_counter() - start)


# -- what pending messages cost: memory ------------------------------------------------------------------------


async def hoard(options: Options) -> None:
    """Accepts messages that nobody pulls and says how many bytes the process grew by."""
    count = options["count"]
    async with meshmsg.Node("producer", mesh=options["mesh"], mdns=False, drain=0) as node:
        push = node.push(QUEUE, max_pending=2 * count, max_pending_bytes=2**40)
        body = make_body(options["size"])
        await push.send(body)
        gc.collect()
        before = resident_bytes()
        for _ in range(count):
            await push.send(body)
        gc.collect()
        say(bytes=resident_bytes() - before, pending=push.ledger().pending)


def resident_bytes() -> int:
    """Memory this process occupies: now, where the system says so (Linux); else at its highest."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


ROLES: dict[str, Callable[[Options], Awaitable[None]]] = {
    "consume": consume,
    "produce": produce,
    "deliver": deliver,
    "hold": hold,
    "take_over": take_over,
    "hand_out": hand_out,
    "offer": offer,
    "join": join,
    "hoard": hoard,
}


def run_role(roles: Mapping[str, Callable[[Options], Awaitable[None]]]) -> None:
    """Runs the role that the command line names."""
    role, options = sys.argv[1], json.loads(sys.argv[2])
    logging.getLogger("meshmsg").setLevel(logging.ERROR)  # that a consumer died is no news here
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if options.get("uvloop"):
        import uvloop

        factory = uvloop.new_event_loop

    async def run() -> None:
        await roles[role](options)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


if __name__ == "__main__":
    run_role(ROLES)
