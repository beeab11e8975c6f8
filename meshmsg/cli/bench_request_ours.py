"""What the measured processes of ``meshmsg bench request`` run: ``python -m meshmsg.cli.bench_request_ours``.

A role and its options follow, as for ``bench_ours``. The other contestants take and give the same: ``serve`` says where
it is, and answers ``{"cpu": true}``; ``ask`` makes as many requests as it is told, so many at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import meshmsg
from meshmsg.cli.bench_ours import TIMEOUT_S, make_body, run_role
from meshmsg.cli.bench_processes import Profiler, commands_in_loop, say

SERVICE = "bench"
METHOD = "echo"
STREAM = "repeat"

Options = dict[str, Any]
Request = Callable[[], Awaitable[Any]]
Stream = Callable[[int], Awaitable[int]]


async def serve(options: Options) -> None:
    """Gives every body back, or many times as a stream."""
    handled = 0
    async with meshmsg.Node("server", mesh=options["mesh"], mdns=False) as node:
        router = node.router(SERVICE)

        @router.method(name=METHOD)
        async def echo(body: Any) -> Any:
            nonlocal handled
            handled += 1
            return body

        @router.method(name=STREAM)
        async def repeat(body: Any, count: int) -> AsyncIterator[Any]:
            nonlocal handled
            for _ in range(count):
                handled += 1
                yield body

        profiler = Profiler()
        say(endpoint=node.endpoints[0])
        async for command in commands_in_loop():
            if not profiler.handles(command):
                say(cpu_s=time.process_time(), handled=handled)


async def ask(options: Options) -> None:
    """Makes requests, or asks for streams."""
    seeds = [options["endpoint"]]
    async with meshmsg.Node("client", mesh=options["mesh"], seeds=seeds, mdns=False) as node:
        dealer = node.dealer(SERVICE, timeout=TIMEOUT_S)
        body = make_body(options["size"])
        await node.wait_for(router=SERVICE, timeout=TIMEOUT_S)

        async def request() -> Any:
            return await dealer.request(METHOD, body)

        async def stream(count: int) -> int:
            received = 0
            async for item in dealer.stream(STREAM, body, count):
                received += item["valid"]
            return received

        await obey(request, stream, as_stream=options["stream"])


async def obey(request: Request, stream: Stream, *, as_stream: bool) -> None:
    """Does what the benchmark says until it says nothing more; the same for all contestants that have a loop."""
    profiler = Profiler()
    say(ready=True)
    async for command in commands_in_loop():
        if profiler.handles(command):
            continue
        cpu_start = time.process_time()
        start = time.perf_counter()
        times_ns: list[int] = []
        if as_stream:
            received = sum(await asyncio.gather(*(stream(share) for share in share_out(**command))))
        elif command["concurrency"] == 1:
            received = await time_one_by_one(request, command["count"], times_ns)
        else:
            received = sum(await asyncio.gather(*(repeat(request, share) for share in share_out(**command))))
        seconds = time.perf_counter() - start
        say(seconds=seconds, cpu_s=time.process_time() - cpu_start, received=received, times_ns=times_ns)


async def repeat(request: Request, count: int) -> int:
    """One request after the other; returns how many brought what they should."""
    received = 0
    for _ in range(count):
        received += (await request())["valid"]
    return received


async def time_one_by_one(request: Request, count: int, times_ns: list[int]) -> int:
    """The same, and how long each took, in nanoseconds."""
    received = 0
    for _ in range(count):
        start = time.perf_counter_ns()
        received += (await request())["valid"]
        times_ns.append(time.perf_counter_ns() - start)
    return received


def share_out(count: int, concurrency: int) -> list[int]:
    """How many each of those at work makes, so that all are made.

    >>> share_out(10, 4)
    [3, 3, 2, 2]
    """
    each, rest = divmod(count, concurrency)
    return [each + (number < rest) for number in range(concurrency)]


ROLES = {"serve": serve, "ask": ask}


if __name__ == "__main__":
    run_role(ROLES)
