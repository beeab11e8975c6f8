"""Whether large messages hold up small ones of another topic of the same publisher."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from typing import Any

from meshmsg.cli.bench_measures import BASELINE, Result, percentile, ratio_of
from meshmsg.cli.bench_processes import Process
from meshmsg.cli.bench_pub_sub import OURS


class Pair:
    """A publisher that keeps to a timetable, and a subscriber that says how late each small message came."""

    def __init__(self, stack: ExitStack, program: str, options: dict[str, Any]) -> None:
        self._publisher = stack.enter_context(Process(program, "pace", **options))
        self._subscriber = stack.enter_context(Process(program, "clock", **options, **self._publisher.hear()))
        self._subscriber.hear()
        self._publisher.hear()
        self.alone_us: list[float] = []
        self.beside_us: list[float] = []

    def run(self, count: int, every: int) -> None:
        """A round of small messages alone, and one beside large ones."""
        for times_us, large_every in ((self.alone_us, 0), (self.beside_us, every)):
            self._publisher.tell(count=count, every=large_every)
            times_us += [each / 1000 for each in self._subscriber.ask(count=count)["times_ns"]]

    def sort(self) -> None:
        """For percentiles."""
        self.alone_us.sort()
        self.beside_us.sort()


def measure_beside(
    *,
    size: int = 100,
    large: int = 10_000_000,
    every: int = 40,
    count: int = 400,
    repeat: int = 3,
    interval_s: float = 0.005,
    uvloop: bool = False,
) -> Result:
    """Microseconds from when a small message was due until it was handled; the median of all rounds."""
    options = {"mesh": uuid.uuid4().hex, "size": size, "large": large, "interval_s": interval_s, "uvloop": uvloop}
    with ExitStack() as stack:
        ours, baseline = Pair(stack, OURS, options), Pair(stack, BASELINE, options)
        for _ in range(repeat):
            ours.run(count, every)
            baseline.run(count, every)
    ours.sort()
    baseline.sort()
    p50, p99, p999 = (round(percentile(ours.beside_us, each), 1) for each in (0.5, 0.99, 0.999))
    base = round(percentile(baseline.beside_us, 0.5), 1)
    extra = {"large_bytes": large, "baseline_p99_us": round(percentile(baseline.beside_us, 0.99), 1)}
    for name, pair in (("alone", ours), ("baseline_alone", baseline)):
        for label, fraction in (("p50", 0.5), ("p99", 0.99)):
            extra[f"{name}_{label}_us"] = round(percentile(pair.alone_us, fraction), 1)
    notes = (
        f"without the large ones: p50 {extra['alone_p50_us']} us, p99 {extra['alone_p99_us']} us",
        f"baseline with them: p50 {base} us, p99 {extra['baseline_p99_us']} us; "
        f"without: p50 {extra['baseline_alone_p50_us']} us, p99 {extra['baseline_alone_p99_us']} us",
    )
    return Result(
        "beside" + (" uvloop" if uvloop else ""), "us", p50, base, ratio_of(p50, base), count, size, p50, p99, p999,
        notes, extra,
    )  # fmt: skip
