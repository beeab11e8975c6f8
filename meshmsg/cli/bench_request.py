"""Requests: meshmsg beside ``zmq.asyncio``, gRPC where it is installed, and bare REQ/REP, in turns in one run."""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from meshmsg.cli import bench_grpc
from meshmsg.cli.bench_measures import BASELINE, Result, percentile, ratio_of
from meshmsg.cli.bench_processes import BenchmarkFailed, Process
from meshmsg.cli.bench_profile import profile_processes
from meshmsg.cli.bench_pub_sub import round_rate

OURS = "meshmsg.cli.bench_request_ours"
ZMQ = "meshmsg.cli.bench_request_baseline"
GRPC = "meshmsg.cli.bench_grpc"
REQ_REP = "req_rep"

CONCURRENCIES = (1, 64, 512)
MAIN_CONCURRENCY = 64  # the one that the budget is for
# A round has so many requests, but fewer of large ones.
ONE_BY_ONE, AT_ONCE, ITEMS, ROUND_BYTES, FEWEST = 2_000, 20_000, 50_000, 64 * 10**6, 16
# Arguments at once; a server takes twice as many before it is Overloaded.
MOST_BYTES = 32 * 2**20


class Pair:
    """A server and a client process, and how much processor time both spent."""

    def __init__(self, server: Process, client: Process) -> None:
        self.server = server
        self.client = client
        self.times_ns: list[int] = []
        self._made = 0
        self._cpu_s = [0.0, 0.0]
        self._counted = 0

    def run(self, count: int, concurrency: int) -> float:
        """A round, whose every request has to be answered well and be run once."""
        before = self.server.ask(cpu=True)
        found = self.client.ask(count=count, concurrency=concurrency)
        after = self.server.ask(cpu=True)
        self._made += count
        if found["received"] != count or after["handled"] != self._made:
            raise BenchmarkFailed(
                f"asked {self._made} times, {after['handled']} were handled; of the last {count}, "
                f"{found['received']} were answered"
            )
        self.times_ns += found["times_ns"]
        self._cpu_s[0] += found["cpu_s"]
        self._cpu_s[1] += after["cpu_s"] - before["cpu_s"]
        self._counted += count
        return float(count / found["seconds"])

    def forget(self) -> None:
        """Begins to count anew."""
        self.times_ns = []
        self._cpu_s = [0.0, 0.0]
        self._counted = 0

    def describe(self, name: str, what: str) -> str:
        """Processor time is what an idle machine would turn into rate."""
        client_us, server_us = (seconds / self._counted * 1e6 for seconds in self._cpu_s)
        return f"processor time {what}, {name}: client {client_us:.1f} us, server {server_us:.1f} us"


class Bare:
    """pyzmq's REQ and REP with blocking calls, bytes and no decoding; one at a time is all they can."""

    def __init__(self, stack: ExitStack, size: int) -> None:
        self._server = stack.enter_context(Process(BASELINE, "respond"))
        self._client = stack.enter_context(Process(BASELINE, "request", size=size, **self._server.hear()))
        self._client.hear()
        self.times_ns: list[int] = []

    def run(self, count: int, concurrency: int) -> float:
        """A round."""
        self._server.ask(count=count)
        times_ns = self._client.ask(count=count)["times_ns"]
        self.times_ns += times_ns
        return float(count / sum(times_ns) * 1e9)

    def forget(self) -> None:
        """Begins to count anew."""
        self.times_ns = []


def open_pair(stack: ExitStack, program: str, options: dict[str, Any]) -> Pair:
    """Starts both processes of a contestant."""
    server = stack.enter_context(Process(program, "serve", **options))
    client = stack.enter_context(Process(program, "ask", **options, **server.hear()))
    client.hear()
    return Pair(server, client)


def choose_count(size: int, concurrency: int, *, stream: bool) -> int:
    """Requests of a round that does not take an age.

    >>> choose_count(100, 1, stream=False), choose_count(100, 64, stream=False), choose_count(10**7, 1, stream=False)
    (2000, 20000, 16)
    """
    usual = ITEMS if stream else ONE_BY_ONE if concurrency == 1 else AT_ONCE
    return min(usual, max(FEWEST, concurrency, ROUND_BYTES // size))


def choose_fitting(concurrency: Iterable[int], size: int) -> tuple[int, ...]:
    """Those with at most ``MOST_BYTES`` of arguments at once; the least of them in any case.

    >>> choose_fitting((1, 64, 512), 100), choose_fitting((1, 64, 512), 10**6)
    ((1, 64, 512), (1,))
    """
    chosen = tuple(dict.fromkeys(concurrency))
    return tuple(number for number in chosen if number * size <= MOST_BYTES) or (min(chosen),)


def measure_requests(
    *,
    concurrency: Iterable[int] = CONCURRENCIES,
    size: int = 100,
    count: int | None = None,
    repeat: int = 3,
    stream: bool = False,
    uvloop: bool = False,
) -> list[Result]:
    """Requests a second, for each concurrency; with ``stream`` items a second of so many streams at once."""
    options = {"mesh": uuid.uuid4().hex, "size": size, "stream": stream, "uvloop": uvloop}
    name = " ".join(["request", *(way for way, taken in (("stream", stream), ("uvloop", uvloop)) if taken)])
    results = []
    with ExitStack() as stack:
        pairs = {"meshmsg": open_pair(stack, OURS, options), "zmq.asyncio": open_pair(stack, ZMQ, options)}
        if bench_grpc.is_installed():
            # It brings a poller of its own, and is not made for uvloop.
            pairs["grpc.aio"] = open_pair(stack, GRPC, {**options, "uvloop": False})
        bare = None if stream else Bare(stack, size)
        for number in choose_fitting(concurrency, size):
            amount = choose_count(size, number, stream=stream) if count is None else max(count, number)
            everybody: dict[str, Pair | Bare] = dict(pairs)
            if bare is not None and number == 1:
                everybody[REQ_REP] = bare
            rates = take_all_turns(everybody, amount, number, repeat)
            times_ns = {each: sorted(contestant.times_ns) for each, contestant in everybody.items()}
            what = "an item" if stream else "a request"
            notes = [pair.describe(each, what) for each, pair in pairs.items()]
            result = sum_up(rates, times_ns, notes, concurrency=number, stream=stream)
            results.append(replace(result, bench=name, messages=amount, body_bytes=size))
    return results


def take_all_turns(everybody: dict[str, Pair | Bare], count: int, concurrency: int, repeat: int) -> dict[str, float]:
    """Rounds in turns after a warm-up; the median rate of each contestant."""
    for contestant in everybody.values():
        contestant.run(max(concurrency, count // 10), concurrency)
        contestant.forget()
    rates: dict[str, list[float]] = {name: [] for name in everybody}
    for _ in range(repeat):
        for name, contestant in everybody.items():
            rates[name].append(contestant.run(count, concurrency))
    return {name: statistics.median(found) for name, found in rates.items()}


def sum_up(
    rates: dict[str, float],
    times_ns: dict[str, list[int]],
    notes: list[str],
    *,
    concurrency: int,
    stream: bool,
) -> Result:
    """The result of one concurrency; who does not take part is None."""
    ours, base = rates["meshmsg"], rates["zmq.asyncio"]
    unit = "items/s" if stream else "requests/s"
    extra: dict[str, Any] = {"concurrency": concurrency, "stream": stream}
    p50, p99, p999 = (quantile_us(times_ns["meshmsg"], each) for each in (0.5, 0.99, 0.999))
    extra["baseline_p50_us"] = base_us = quantile_us(times_ns["zmq.asyncio"], 0.5)
    if p50 is not None and base_us is not None:
        notes.append(f"zmq.asyncio: p50 {base_us} us, ratio {ratio_of(p50, base_us)}")
    for name, key in (("grpc.aio", "grpc"), (REQ_REP, REQ_REP)):
        rate = rates.get(name)
        extra[key] = None if rate is None else round_rate(rate)
        extra[f"{key}_ratio"] = None if rate is None else ratio_of(ours, rate)
        extra[f"{key}_p50_us"] = quantile_us(times_ns.get(name, []), 0.5)
        if rate is not None:
            found_us = extra[f"{key}_p50_us"]
            delay = "" if found_us is None else f"; p50 {found_us} us"
            notes.append(f"{name}: {extra[key]:,} {unit}, ratio {extra[f'{key}_ratio']}{delay}")
    return Result(
        "", unit, round_rate(ours), round_rate(base), ratio_of(ours, base), 0, 0, p50, p99, p999, tuple(notes), extra
    )


def quantile_us(times_ns: Sequence[int], fraction: float) -> float | None:
    """Of sorted times; None where none were taken."""
    return round(percentile(times_ns, fraction) / 1000, 1) if times_ns else None


def choose_main(results: Sequence[Result]) -> dict[str, Any]:
    """One JSON object: the rates of 64 at a time, or of the last, percentiles of one at a time, and all in ``runs``."""
    by_concurrency = {each.extra["concurrency"]: each.as_dict() for each in results}
    main = by_concurrency.get(MAIN_CONCURRENCY, results[-1].as_dict())
    percentiles = {name: value for name, value in by_concurrency.get(1, main).items() if name.endswith("_us")}
    return {**main, **percentiles, "runs": list(by_concurrency.values())}


def profile_requests(
    *, concurrency: Iterable[int], size: int, count: int | None, stream: bool, uvloop: bool, top: int = 20
) -> str:
    """Markdown tables of the functions that the client and the server spent most of their time in."""
    options = {"mesh": uuid.uuid4().hex, "size": size, "stream": stream, "uvloop": uvloop}
    number = max(choose_fitting(concurrency, size))
    with ExitStack() as stack:
        pair = open_pair(stack, OURS, options)
        processes = {"client": pair.client, "server": pair.server}
        amount = choose_count(size, number, stream=stream) if count is None else count
        return profile_processes(lambda messages: pair.run(messages, number), processes, amount, top)
