"""``meshmsg sub``: published messages, each as a line."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

import click

from meshmsg import WaitTimeout
from meshmsg.cli import exits
from meshmsg.cli.bodies import describe_publication, to_single_line
from meshmsg.cli.lines_out import LinesOut, OutputClosed
from meshmsg.cli.numbers import NOT_NEGATIVE
from meshmsg.cli.pull import PREFETCH, BadFormat, Render, Wanted, close_on, make_render, pull_lines
from meshmsg.cli.push import read_headers
from meshmsg.cli.running import Stop, complain, run
from meshmsg.cli.session import Session, session_options
from meshmsg.errors import NodeClosed
from meshmsg.message import Gap
from meshmsg.sockets.pub_sub import Sub

FIELDS = ("body", "id", "topic", "sender", "number", "headers")
LINES = 500  # that are written at once


@dataclass(frozen=True, slots=True)
class Wish:
    """How much to take, and how it looks."""

    count: int | None
    timeout_s: float | None
    render: Render


def describe_gap(gap: Gap) -> str:
    """A gap for people."""
    numbers = f"{gap.start} to {gap.stop - 1}"
    return f"{gap.missed} messages of {gap.topic!r} from {gap.publisher!r} are lost (numbers {numbers})"


async def print_topics(sub: Sub, wish: Wish, stop: Stop) -> int:
    """Prints messages until there are enough, time runs out, the reader leaves, or somebody says stop."""
    output = LinesOut(stop)
    output.start()
    closing = asyncio.ensure_future(close_on(stop, sub))
    taken = 0
    try:
        while wish.count is None or taken < wish.count:
            try:
                lines = [wish.render(await sub.get(wish.timeout_s))]
                most = LINES if wish.count is None else min(LINES, wish.count - taken)
                while len(lines) < most and sub.unsettled:
                    lines.append(wish.render(await sub.get(0)))
            except NodeClosed:
                break
            except WaitTimeout:
                if not taken:
                    complain(f"no message of {sub.pattern!r} came within {wish.timeout_s:g} s", exits.NOTHING)
                return exits.OK if taken and wish.count is None else exits.NOTHING
            await output.write(b"\n".join(lines))
            taken += len(lines)
    except OutputClosed:
        pass
    finally:
        closing.cancel()
        output.close()
    enough = wish.count is None or taken >= wish.count
    return exits.OK if enough or not stop.by_signal else exits.INTERRUPTED


@click.command("sub")
@click.argument("pattern")
@click.option("-n", "--count", type=click.IntRange(min=1), help="Leave after this many messages.")
@click.option("--timeout", type=NOT_NEGATIVE, metavar="SECONDS", help="Leave after this long without one.")
@click.option("--format", "template", metavar="TEXT", help="A line with {body} {topic} {sender} {number} and so on.")
@click.option("--replay", type=click.Choice(["none", "latest", "history"]), default="none", show_default=True,
              help="What of the past to begin with, as far as publishers keep it.")  # fmt: skip
@click.option("--latest", is_flag=True, help="Pass over what is out of date: only each topic's newest value waits.")
@click.option("--group", metavar="NAME", help="Share the work: of each group, one member gets each message.")
@click.option("--durable", is_flag=True, help="With --group: publishers collect while no member is there.")
@click.option("--where", multiple=True, metavar="NAME=VALUE", callback=read_headers,
              help="Only messages with this header, a text; repeatable. Members of a group need the same.")  # fmt: skip
@session_options(json_help="One JSON object a message, with id, topic, sender, number, headers and body.")
def sub(
    session: Session,
    pattern: str,
    count: int | None,
    timeout: float | None,
    template: str | None,
    replay: Literal["none", "latest", "history"],
    latest: bool,
    group: str | None,
    durable: bool,
    where: dict[str, str],
) -> None:
    """Subscribe to topics and print each message as a line.

    PATTERN is a topic, or a pattern: * is one segment, ** any number. Text is printed as it is, but with control
    characters as escapes, so that a message stays a line; anything else as JSON. What could not be had any more is
    told on standard error, with its numbers. With --group a message is acked when its line is out, and what is not
    printed goes to another member.

    \b
    Examples:
      meshmsg sub 'sensors.*.temperature' --replay latest
      meshmsg sub 'logs.**' --format '{topic} {body}'
      meshmsg sub 'orders.**' --group billing --json | jq .body
    """
    if group is not None and (latest or replay != "none"):
        raise click.UsageError("--group gets every message once: it goes with neither --latest nor --replay")
    if durable and group is None:
        raise click.UsageError("--durable is for a --group: without one, --replay asks for what was published before")
    if latest and where:
        raise click.UsageError("--latest keeps a topic's newest message whatever its headers: leave out --where")
    try:
        render = make_render(template, session.json, FIELDS, describe_publication, to_single_line)
    except BadFormat as error:
        raise click.UsageError(str(error)) from None

    async def serve(stop: Stop) -> int:
        async with session.make_node("sub") as node:
            try:
                if group is not None:
                    held = min(PREFETCH, count or PREFETCH)
                    member = node.sub(pattern, group=group, prefetch=held, durable=durable, where=where or None)
                    return await pull_lines(member, Wanted(count, timeout, "ack", render), stop)

                def on_gap(gap: Gap) -> None:
                    complain(describe_gap(gap), exits.OK)

                subscription = node.sub(pattern, replay=replay, latest=latest, where=where or None, on_gap=on_gap)
                return await print_topics(subscription, Wish(count, timeout, render), stop)
            except BadFormat as error:
                return complain(error, exits.USAGE)

    run(serve)
