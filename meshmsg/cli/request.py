"""``meshmsg request``: calls a method of a service, and prints what it returns."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import click

from meshmsg import DeadlineExceeded, Dealer, MeshError, Node
from meshmsg.cli import exits
from meshmsg.cli.bodies import parse_json, parse_text, to_json, to_line, to_screen, to_single_line
from meshmsg.cli.lines_in import LinesIn
from meshmsg.cli.lines_out import LinesOut, OutputClosed
from meshmsg.cli.numbers import POSITIVE
from meshmsg.cli.push import read_headers
from meshmsg.cli.requesting import (
    ArgumentsCommand,
    Search,
    code_of,
    describe_error,
    explain,
    parse_arguments,
    parse_target,
    parse_value,
)
from meshmsg.cli.running import Stop, complain, run
from meshmsg.cli.session import Session, session_options

WITHIN = re.compile(r"within [\d.e-]+ s$")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how the answer is printed."""

    service: str
    method: str
    args: list[Any]
    kwargs: dict[str, Any]
    details: dict[str, Any]
    timeout_s: float
    stream: bool
    count: int | None
    json: bool
    verbose: bool
    screen: bool = False  # the output is a terminal

    def render(self, name: str, value: Any) -> bytes:
        """A line of output."""
        if self.json:
            return to_json({name: value}).encode()
        if self.stream:
            return to_single_line(value)
        return to_screen(value) if self.screen else to_line(value)

    def fail(self, error: MeshError) -> int:
        """Tells an error; returns the exit code."""
        if isinstance(error, DeadlineExceeded):
            # It was asked with what was left after somebody was found. People know what they gave.
            error.args = (WITHIN.sub(f"within {self.timeout_s:g} s", str(error)),)
        if self.json:
            click.echo(to_json({"error": describe_error(error)}))
        return complain(explain(error, verbose=self.verbose), code_of(error))


async def read_items(as_json: bool) -> AsyncIterator[Any]:
    """Lines of standard input as items of a stream: each as an argument would be, or all of them JSON."""
    number = 0
    async for line in LinesIn():
        number += 1
        if not as_json:
            text = parse_text(line)
            yield parse_value(text, f"line {number}") if isinstance(text, str) else text
        elif line.strip():
            try:
                yield parse_json(line)
            except (ValueError, RecursionError) as error:
                raise click.UsageError(f"line {number} is not JSON: {error}") from None


async def ask(node: Node, question: Question, stop: Stop) -> int:
    """All of it: finds somebody, asks, prints."""
    dealer = node.dealer(question.service)
    loop = asyncio.get_running_loop()
    end = loop.time() + question.timeout_s
    search = Search(node, question.service, question.details.get("peer"))
    found = await stop.unless(search.run(end))
    if found is None:
        return exits.INTERRUPTED
    if not found:
        complain(f"waited {question.timeout_s:g} s for {search.describe()}", exits.NOTHING)
    timeout_s = max(0.001, end - loop.time())
    try:
        if question.stream:
            return await print_items(dealer, question, stop, timeout_s)
        answer = await stop.unless(request(dealer, question, timeout_s))
    except MeshError as error:
        return question.fail(error)
    if answer is None:
        return exits.INTERRUPTED
    click.echo(question.render("result", answer[0]))
    return exits.OK


async def request(dealer: Dealer, question: Question, timeout_s: float) -> tuple[Any]:
    """One request; a tuple, as the result may be None."""
    result = await dealer.request(
        question.method, *question.args, timeout=timeout_s, **question.details, **question.kwargs
    )
    return (result,)


async def print_items(dealer: Dealer, question: Question, stop: Stop, timeout_s: float) -> int:
    """Prints each item as it comes; whoever reads them slowly slows the method."""
    output = LinesOut(stop)
    output.start()
    taken = 0
    try:
        stream = dealer.stream(
            question.method, *question.args, timeout=timeout_s, **question.details, **question.kwargs
        )
        async with aclosing(stream):
            while question.count is None or taken < question.count:
                item = await stop.unless(take(stream))
                if item is None:
                    return exits.INTERRUPTED if stop.by_signal else exits.OK
                if not item:
                    break
                await output.write(question.render("item", item[0]))
                taken += 1
    except OutputClosed:
        pass
    finally:
        output.close()
    return exits.OK


async def take(stream: Any) -> tuple[Any, ...]:
    """The next item in a tuple, an empty one at the end."""
    try:
        return (await anext(stream),)
    except StopAsyncIteration:
        return ()


@click.command("request", cls=ArgumentsCommand)
@click.argument("target", metavar="SERVICE.METHOD")
@click.argument("arguments", nargs=-1, metavar="[ARGUMENT | NAME=ARGUMENT]...")
@click.option("--timeout", type=POSITIVE, default=10.0, show_default=True,
              metavar="SECONDS", help="For all of it: to find somebody who serves, and for the answer.")  # fmt: skip
@click.option("--peer", metavar="NODE", help="Ask this node alone, by name or id.")
@click.option("--key", help="Requests of one key go to the same node.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", callback=read_headers, help="Repeatable.")
@click.option("--stream", is_flag=True, help="The method yields items: print each as a line.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="With --stream, leave after this many items.")
@click.option(
    "--items",
    is_flag=True,
    help="The method takes a stream: each line of standard input is an item, read as an ARGUMENT is.",
)
@session_options(json_help='All lines of --items are JSON; prints objects {"result": …}, {"item": …}, {"error": …}.')
def request_(
    session: Session,
    target: str,
    arguments: tuple[str, ...],
    timeout: float,
    peer: str | None,
    key: str | None,
    headers: dict[str, str],
    stream: bool,
    count: int | None,
    items: bool,
) -> None:
    """Call a method of a service, and print what it returns.

    An ARGUMENT is JSON, or text where it is none; text that could be taken for something else is written as JSON:
    '"42"', '"a=b"'. Results are printed as text if they are text, else as JSON. Errors go to standard error, with -v
    also the remote traceback. The exit code is 1 if nobody answered (nobody serves it, no time left, gone, overloaded),
    2 if the request does not fit the method, 3 if the method failed.

    \b
    Examples:
      meshmsg request math.add 2 3
      meshmsg request users.find Ada limit=10 --json | jq .result
      meshmsg request logs.follow --stream -n 100
      seq 5 | meshmsg request numbers.average --items
    """
    if count is not None and not stream:
        raise click.UsageError("--count is for --stream")
    service, method = parse_target(target)
    args, kwargs = parse_arguments(arguments)
    details: dict[str, Any] = {
        name: value for name, value in (("peer", peer), ("key", key), ("headers", headers or None)) if value is not None
    }
    if items:
        details["items"] = read_items(session.json)
    question = Question(
        service, method, args, kwargs, details, timeout, stream, count, session.json, session.verbose,
        sys.stdout.isatty(),
    )  # fmt: skip

    async def serve(stop: Stop) -> int:
        async with session.make_node("request", drain=0.0) as node:
            return await ask(node, question, stop)

    run(serve)
