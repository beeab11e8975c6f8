"""The benchmarks themselves: meshmsg and its baseline, block by block in turns, in one run."""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from meshmsg.cli.bench_processes import BenchmarkFailed, Process

OURS = "meshmsg.cli.bench_ours"
BLOCKING = "meshmsg.cli.bench_blocking"
BASELINE = "meshmsg.cli.bench_baseline"
# A consumer's prefetch, without and with batches: some of them more than one round trip can bring.
PREFETCH = {False: 1024, True: 8192}


@dataclass(frozen=True, slots=True)
class Result:
    """What one benchmark found; the fields of ``--json``, in this order."""

    bench: str
    unit: str
    ours: float
    baseline: float | None
    ratio: float | None
    messages: int
    body_bytes: int
    p50_us: float | None = None
    p99_us: float | None = None
    p999_us: float | None = None
    notes: tuple[str, ...] = ()  # for people only
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of one benchmark

    def as_dict(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        fields: dict[str, Any] = asdict(self)
        del fields["notes"]
        extra = fields.pop("extra")
        return {**fields, **extra}


def ratio_of(ours: float, baseline: float) -> float:
    """To four digits: more would be noise.

    >>> ratio_of(1.0, 3.0)
    0.3333
    """
    return float(f"{ours / baseline:.4g}")


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The value below which this fraction of sorted values lies (nearest rank).

    >>> percentile([1, 2, 3, 4], 0.5)
    2
    """
    index = max(0, -int(-fraction * len(ordered) // 1) - 1)
    return ordered[min(index, len(ordered) - 1)]


def take_turns(
    repeat: int, ours: Callable[[], float], baseline: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """A B A B …: what else the machine does in between hits both alike."""
    pairs = [(ours(), baseline()) for _ in range(repeat)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


class Flow:
    """A producer and a consumer process, and how much processor time both spent."""

    def __init__(self, producer: Process, consumer: Process) -> None:
        self.producer = producer
        self.consumer = consumer
        self.sent = 0
        self._cpu_s = [0.0, 0.0]
        self._counted = 0

    def run(self, messages: int) -> float:
        """Sends messages, checks that all were received, returns how many went through a second."""
        self.consumer.tell(count=messages)
        sent = self.producer.ask(count=messages)
        received = self.consumer.hear()
        self.sent += messages
        if received["handled"] != self.sent or sent.get("processed", self.sent) != self.sent:
            raise BenchmarkFailed(f"sent {self.sent}, handled {received['handled']}, acked {sent.get('processed')}")
        self._cpu_s[0] += sent["cpu_s"]
        self._cpu_s[1] += received["cpu_s"]
        self._counted += messages
        return float(messages / sent["seconds"])

    def describe(self, name: str) -> str:
        """Processor time is what an idle machine would turn into rate; it suffers less from busy neighbours."""
        producer_us, consumer_us = (seconds / self._counted * 1e6 for seconds in self._cpu_s)
        return f"processor time a message, {name}: producer {producer_us:.2f} us, consumer {consumer_us:.2f} us"


def measure_push_pull(
    *,
    size: int = 100,
    count: int = 200_000,
    repeat: int = 5,
    batches: bool = False,
    blocking: bool = False,
    uvloop: bool = False,
    prefetch: int | None = None,
) -> Result:
    """Messages a second through PUSH and PULL: acked ones through meshmsg, bare ones through pyzmq."""
    ways = {"batches": batches, "blocking": blocking, "uvloop": uvloop}
    program = BLOCKING if blocking else OURS
    options = {"mesh": uuid.uuid4().hex, "size": size, "prefetch": prefetch or PREFETCH[batches], **ways}
    with (
        Process(program, "consume", **options) as consumer,
        Process(BASELINE, "consume") as sink,
        Process(program, "produce", **options, **consumer.hear()) as producer,
        Process(BASELINE, "produce", size=size, **sink.hear()) as source,
    ):
        producer.hear()
        source.hear()
        ours, baseline = Flow(producer, consumer), Flow(source, sink)
        warm_up = max(1, count // 10)
        ours.run(warm_up)
        baseline.run(warm_up)
        rates, base_rates = take_turns(repeat, lambda: ours.run(count), lambda: baseline.run(count))
    median, base = statistics.median(rates), statistics.median(base_rates)
    name = " ".join(["push-pull", *(way for way, taken in ways.items() if taken)])
    notes = (ours.describe("meshmsg"), baseline.describe("baseline"))
    return Result(name, "messages/s", round(median), round(base), ratio_of(median, base), count, size, notes=notes)


def measure_latency(*, size: int = 100, count: int = 2_000, repeat: int = 5, uvloop: bool = False) -> Result:
    """Microseconds from a send to its ack on an idle mesh, one message at a time, against REQ/REP round trips."""
    options = {"mesh": uuid.uuid4().hex, "size": size, "uvloop": uvloop}
    with (
        Process(OURS, "consume", **options) as consumer,
        Process(BASELINE, "respond") as responder,
        Process(OURS, "deliver", **options, **consumer.hear()) as producer,
        Process(BASELINE, "request", size=size, **responder.hear()) as requester,
    ):
        producer.hear()
        requester.hear()
        all_ns: list[float] = []

        def ours(messages: int = count) -> float:
            times_ns = producer.ask(count=messages)["times_ns"]
            all_ns.extend(times_ns)
            return float(statistics.median(times_ns)) / 1000

        def baseline(messages: int = count) -> float:
            responder.ask(count=messages)
            return float(statistics.median(requester.ask(count=messages)["times_ns"])) / 1000

        warm_up = max(1, count // 10)
        ours(warm_up)
        baseline(warm_up)
        all_ns.clear()
        medians, base_medians = take_turns(repeat, ours, baseline)
    median, base = statistics.median(medians), statistics.median(base_medians)
    all_ns.sort()
    p50, p99, p999 = (round(percentile(all_ns, each) / 1000, 1) for each in (0.5, 0.99, 0.999))
    name = "latency" + (" uvloop" if uvloop else "")
    return Result(name, "us", round(median, 1), round(base, 1), ratio_of(median, base), count, size, p50, p99, p999)
