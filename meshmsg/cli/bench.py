"""``meshmsg bench``: how fast it is here, always beside a baseline that runs in the same minute."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import click

from meshmsg.cli import bench_beside, bench_measures, bench_moments, bench_profile, bench_pub_sub, bench_request
from meshmsg.cli.bench_measures import Result
from meshmsg.cli.bench_processes import BenchmarkFailed
from meshmsg.cli.numbers import POSITIVE

Command = Callable[..., Any]


@click.group()
def bench() -> None:
    """Measure meshmsg on this machine, each time beside a baseline in the same run.

    Everything stays on 127.0.0.1, between processes that the command starts and ends.
    Ratios mean something on any machine, rates only on the one that made them.

    Example: meshmsg bench push-pull --batches --repeat 5
    """


def shared_options(*, repeat: int, count: int | None = None, size: bool = True) -> Callable[[Command], Command]:
    """The options that most benchmarks have in common."""
    options = [
        click.option("--repeat", default=repeat, show_default=True, type=click.IntRange(1), help="Rounds."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text."),
    ]
    if size:
        help_text = "Bytes of an encoded body."
        options.append(click.option("--size", default=100, show_default=True, type=click.IntRange(64), help=help_text))
    if count is not None:
        help_text = "Messages a round."
        options.append(
            click.option("--count", default=count, show_default=True, type=click.IntRange(1), help=help_text)
        )

    def decorate(command: Command) -> Command:
        for option in options:
            command = option(command)
        return command

    return decorate


def run(measure: Callable[[], Result], as_json: bool) -> None:
    """Runs one benchmark and prints what it found, as JSON or for people."""
    try:
        result = measure()
    except BenchmarkFailed as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(result.as_dict()))
        return
    show(result)


def show(result: Result) -> None:
    """Prints what a benchmark found, for people."""
    click.echo(f"{result.bench}: {result.ours:,} {result.unit}")
    if result.baseline is not None:
        click.echo(f"  baseline {result.baseline:,} {result.unit}, ratio {result.ratio}")
    if result.p50_us is not None:
        click.echo(f"  p50 {result.p50_us} us, p99 {result.p99_us} us, p99.9 {result.p999_us} us")
    for note in result.notes:
        click.echo(f"  {note}")


@bench.command("push-pull")
@shared_options(repeat=5, count=200_000)
@click.option("--batches", is_flag=True, help="send_many and batches() instead of send and a handler.")
@click.option("--blocking", is_flag=True, help="Through meshmsg.blocking instead of asyncio.")
@click.option("--uvloop", is_flag=True, help="Run meshmsg's processes in uvloop.")
@click.option(
    "--prefetch",
    type=click.IntRange(1),
    help="Unsettled messages a consumer may hold; a node's default is 256, which suits slower work.  "
    "[default: 1024, with --batches 8192]",
)
@click.option("--profile", is_flag=True, help="Instead of rates: tables of where the time goes.")
def push_pull(profile: bool, as_json: bool, repeat: int, **options: Any) -> None:
    """Messages a second from a producer to a consumer, acked, beside bare pyzmq PUSH/PULL."""
    if profile:
        if options.pop("blocking") or as_json:
            raise click.UsageError("--profile goes with neither --blocking (it sees one thread only) nor --json")
        require_profiler()
        click.echo(bench_profile.profile_push_pull(**options))
        return
    run(lambda: bench_measures.measure_push_pull(repeat=repeat, **options), as_json)


def require_profiler() -> None:
    """Raises ``click.UsageError`` where there is none."""
    if not hasattr(signal, "setitimer"):
        raise click.UsageError("--profile needs a system with setitimer, which Windows is not")


@bench.command("pub-sub")
@shared_options(repeat=5)
@click.option("--count", type=click.IntRange(1), help="Messages a round.  [default: 200000, fewer of large ones]")
@click.option("--subscribers", default=1, show_default=True, type=click.IntRange(1), help="Processes that subscribe.")
@click.option("--topics", default=1, show_default=True, type=click.IntRange(1), help="Topics, published to in turns.")
@click.option("--frames", default=1, show_default=True, type=click.IntRange(1),
              help="Byte strings in a body; pyzmq sends each as a frame.")  # fmt: skip
@click.option("--batches", is_flag=True, help="send_many and batches() instead of send and a handler.")
@click.option("--block", is_flag=True, help="The publisher waits for slow subscribers.")
@click.option("--uvloop", is_flag=True, help="Run meshmsg's processes in uvloop.")
@click.option("--profile", is_flag=True, help="Instead of rates: tables of where the time goes.")
def pub_sub(profile: bool, as_json: bool, repeat: int, **options: Any) -> None:
    """Messages a second from a publisher to all subscribers, without a gap, beside bare pyzmq PUB/SUB and zenoh."""
    if not profile:
        run(lambda: bench_pub_sub.measure_pub_sub(repeat=repeat, **options), as_json)
        return
    if as_json:
        raise click.UsageError("--profile goes not with --json")
    require_profiler()
    click.echo(bench_pub_sub.profile_pub_sub(**options))


@bench.command("request")
@shared_options(repeat=3)
@click.option("--count", type=click.IntRange(1), help="Requests a round.  [default: 2000 one by one, else 20000]")
@click.option("--concurrency", multiple=True, type=click.IntRange(1), default=bench_request.CONCURRENCIES,
              show_default=True, help="Requests under way at once, of up to 32 MiB; repeatable.")  # fmt: skip
@click.option("--stream", is_flag=True, help="Items of streams instead of requests; so many streams at once.")
@click.option("--uvloop", is_flag=True, help="Run meshmsg's and zmq.asyncio's processes in uvloop.")
@click.option("--profile", is_flag=True, help="Instead of rates: tables of where the time goes.")
def request(profile: bool, as_json: bool, repeat: int, **options: Any) -> None:
    """Requests a second, beside zmq.asyncio's DEALER and ROUTER, grpc.aio, and bare REQ/REP one by one."""
    if profile:
        if as_json:
            raise click.UsageError("--profile goes not with --json")
        require_profiler()
        click.echo(bench_request.profile_requests(**options))
        return
    try:
        results = bench_request.measure_requests(repeat=repeat, **options)
    except BenchmarkFailed as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(bench_request.choose_main(results)))
        return
    for result in results:
        click.echo(f"{result.extra['concurrency']} at a time")
        show(result)


@bench.command("beside")
@shared_options(repeat=3, count=400)
@click.option("--large", default=10_000_000, show_default=True, type=click.IntRange(1), help="Bytes of a large body.")
@click.option("--every", default=40, show_default=True, type=click.IntRange(1), help="Small messages for a large one.")
@click.option("--interval", default=5.0, show_default=True, type=POSITIVE,
              metavar="MS", help="Between two small messages.")  # fmt: skip
@click.option("--uvloop", is_flag=True, help="Run meshmsg's processes in uvloop.")
def beside(as_json: bool, interval: float, **options: Any) -> None:
    """Delay of small messages while large ones of another topic go the same way, beside bare pyzmq PUB/SUB."""
    run(lambda: bench_beside.measure_beside(interval_s=interval / 1000, **options), as_json)


@bench.command("latency")
@shared_options(repeat=5, count=2_000)
@click.option("--uvloop", is_flag=True, help="Run meshmsg's processes in uvloop.")
def latency(as_json: bool, **options: Any) -> None:
    """Time of one acked message on an idle mesh, beside a bare pyzmq REQ/REP round trip."""
    run(lambda: bench_measures.measure_latency(**options), as_json)


@bench.command("failover")
@shared_options(repeat=5, count=100)
def failover(as_json: bool, **options: Any) -> None:
    """Time from a consumer's SIGKILL until all it held has run elsewhere."""
    run(lambda: bench_moments.measure_failover(**options), as_json)


@bench.command("join")
@shared_options(repeat=5)
def join(as_json: bool, **options: Any) -> None:
    """Time from a new node's start until mDNS has brought its first message."""
    run(lambda: bench_moments.measure_join(**options), as_json)


@bench.command("memory")
@shared_options(repeat=3, count=200_000)
def memory(as_json: bool, **options: Any) -> None:
    """Bytes that a pending message takes beyond its body."""
    run(lambda: bench_moments.measure_memory(**options), as_json)


@bench.command("import")
@shared_options(repeat=11, size=False)
def import_(as_json: bool, **options: Any) -> None:
    """What `import meshmsg` adds to a program's start, beside a bare `python -c pass`."""
    run(lambda: bench_moments.measure_import(**options), as_json)
