"""``meshmsg pull``: messages from a queue, each as a line; acked when the line is out."""

from __future__ import annotations

import asyncio
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import click

from meshmsg import Message
from meshmsg.cli import exits
from meshmsg.cli.bodies import describe_message, number_of, to_json, to_line, to_screen
from meshmsg.cli.lines_out import LinesOut, OutputClosed
from meshmsg.cli.numbers import NOT_NEGATIVE
from meshmsg.cli.running import Stop, complain, run
from meshmsg.cli.session import Session, session_options
from meshmsg.sockets.consumer import Consumer
from meshmsg.sockets.push_pull import Pull

PREFETCH = 256
FIELDS = ("body", "id", "queue", "sender", "attempt", "redelivered", "key", "priority", "headers")

Render = Callable[[Message], bytes]


class BadFormat(Exception):
    """The format does not fit a message."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How much to take, and what to say to it."""

    count: int | None
    timeout_s: float | None
    verdict: Literal["ack", "nack", "reject"]
    render: Render


def make_render(
    template: str | None,
    as_json: bool,
    fields: Sequence[str] = FIELDS,
    describe: Callable[[Message], dict[str, Any]] = describe_message,
    show: Callable[[Any], bytes] = to_line,
) -> Render:
    """How a message becomes a line; raises ``BadFormat`` for a format that no message fits.

    ``show`` makes a line of a body, and a text of whatever else a format asks for.
    """
    if as_json:
        return lambda message: to_json(describe(message)).encode()
    if template is None:
        return lambda message: show(message.body)
    template = template.replace("\\t", "\t").replace("\\n", "\n")
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise BadFormat(f"--format {template!r}: {error}") from None
    for name in names:
        if name.partition(".")[0].partition("[")[0] not in fields:
            raise BadFormat(f"--format has no {{{name}}}; there are {', '.join(f'{{{each}}}' for each in fields)}")
    formatter = LineFormatter(show)
    return lambda message: _fill(formatter, template, message, {name: read_field(message, name) for name in fields})


def choose_show() -> Callable[[Any], bytes]:
    """Bodies as they are, or if a terminal would see them, so that they cannot steer it."""
    return to_screen if sys.stdout.isatty() else to_line


class LineFormatter(string.Formatter):
    """``str.format`` that writes what is no number as the verb would print it."""

    def __init__(self, show: Callable[[Any], bytes]) -> None:
        self._show = show

    def format_field(self, value: Any, spec: str) -> str:
        """One value in its place."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return format(value, spec)
        return format(self._show(value).decode(errors="replace"), spec)


def read_field(message: Message, name: str) -> Any:
    """A field by the name that formats call it."""
    return number_of(message) if name == "number" else getattr(message, name)


def _fill(formatter: LineFormatter, template: str, message: Message, values: dict[str, Any]) -> bytes:
    try:
        line = formatter.format(template, **values)
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise BadFormat(f"--format does not fit message {message.id}: {type(error).__name__}: {error}") from None
    return line.encode(errors="replace")


def settle(message: Message, verdict: str) -> None:
    """Gives the message its verdict."""
    if verdict == "ack":
        message.ack()
    elif verdict == "nack":
        message.nack(error="meshmsg pull --verdict nack")
    else:
        message.reject("meshmsg pull --verdict reject")


async def pull_lines(pull: Pull, wanted: Wanted, stop: Stop) -> int:
    """Prints messages until there are enough, time runs out, the reader leaves, or somebody says stop."""
    output = LinesOut(stop)
    output.start()
    closing = asyncio.ensure_future(close_on(stop, pull))
    messages = aiter(pull)
    taken = 0
    try:
        while wanted.count is None or taken < wanted.count:
            try:
                async with asyncio.timeout(wanted.timeout_s):
                    message = await anext(messages)
            except StopAsyncIteration:
                break
            except TimeoutError:
                if not taken:
                    complain(f"no message of {pull.queue!r} came within {wanted.timeout_s:g} s", exits.NOTHING)
                return exits.OK if taken and wanted.count is None else exits.NOTHING
            if not await _print(message, wanted, output):
                break
            taken += 1
    finally:
        closing.cancel()
        output.close()
    enough = wanted.count is None or taken >= wanted.count
    return exits.OK if enough or not stop.by_signal else exits.INTERRUPTED


async def close_on(stop: Stop, pull: Consumer) -> None:
    """Ends the iteration; what was not started goes back at no cost (G4)."""
    await stop.wait()
    await pull.close()


async def _print(message: Message, wanted: Wanted, output: LinesOut) -> bool:
    """Prints one message, and settles it when the line is out; False if nobody takes lines any more."""
    try:
        await output.write(wanted.render(message))
    except OutputClosed:
        message.nack(delay=0, error="the reader of the output went away")
        return False
    except BadFormat:
        message.nack(delay=0, error="meshmsg pull --format does not fit it")
        raise
    settle(message, wanted.verdict)
    return True


@click.command("pull")
@click.argument("queue")
@click.option("-n", "--count", type=click.IntRange(min=1), help="Leave after this many messages.")
@click.option("--timeout", type=NOT_NEGATIVE, metavar="SECONDS", help="Leave after this long without one.")
@click.option("--format", "template", metavar="TEXT", help="A line with {body} {id} {attempt} {sender} and so on.")
@click.option("--prefetch", type=click.IntRange(min=1), help="Unsettled messages to hold at most.  [default: 256]")
@click.option(
    "--verdict",
    type=click.Choice(["ack", "nack", "reject"]),
    default="ack",
    show_default=True,
    help="What to say to each message: done, again, or never again.",
)
@session_options(json_help="One JSON object a message, with id, sender, attempt, headers and body.")
def pull(
    session: Session,
    queue: str,
    count: int | None,
    timeout: float | None,
    template: str | None,
    prefetch: int | None,
    verdict: Literal["ack", "nack", "reject"],
) -> None:
    """Take messages from a queue and print each as a line.

    A message is acked when its line is out: written, and for a pipe taken by its reader (on Linux). What was not
    printed goes back to its producer unharmed when this ends: after -n messages, at Ctrl-C, or when the reader of
    the pipe has left. Text is printed as it is (but steers no terminal), anything else as JSON.

    \b
    Examples:
      meshmsg pull thumbnails
      meshmsg pull thumbnails -n 10 --json | jq .body.path
      meshmsg pull thumbnails --format '{attempt} {body[path]}'
    """
    try:
        wanted = Wanted(count, timeout, verdict, make_render(template, session.json, show=choose_show()))
    except BadFormat as error:
        raise click.UsageError(str(error)) from None
    held = min(prefetch or PREFETCH, count or PREFETCH)

    async def serve(stop: Stop) -> int:
        async with session.make_node("pull") as node:
            try:
                return await pull_lines(node.pull(queue, prefetch=held), wanted, stop)
            except BadFormat as error:
                return complain(error, exits.USAGE)

    run(serve)
