"""``meshmsg survey``: asks everybody who serves, and prints a line of each."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from typing import Any

import click

from meshmsg import Dealer, MeshError, Node
from meshmsg.cli import exits
from meshmsg.cli.bodies import escape_invisible, to_json, to_single_line
from meshmsg.cli.looking import settle
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
)
from meshmsg.cli.running import Stop, complain, run
from meshmsg.cli.session import Session, session_options
from meshmsg.sockets.item_stream import Answer

# Streams are not for surveys: what a method of one takes is another verb.
ADVICE = (
    (re.compile(r"call stream\(\) instead"), "`meshmsg request --stream --peer NODE` prints those of one node"),
    (re.compile(r"request\(\.\.\., items=\.\.\.\).*"), "`meshmsg request --items --peer NODE` sends one"),
)

Asked = tuple[str, list[Any], dict[str, Any]]


def render(answer: Answer, *, as_json: bool) -> bytes:
    """One node's answer as a line.

    >>> render(Answer("a", 5, None, "f00"), as_json=False)
    b'a  5'
    """
    if as_json:
        found = {"result": answer.value} if answer.error is None else {"error": describe_error(answer.error)}
        return to_json({"peer": answer.peer, "id": answer.peer_id, **found}).encode()
    if answer.error is not None:
        return f"{escape_invisible(answer.peer)}  error: {explain(answer.error, advice=ADVICE)}".encode()
    return escape_invisible(answer.peer).encode() + b"  " + to_single_line(answer.value)


async def print_answers(dealer: Dealer, asked: Asked, timeout_s: float, *, as_json: bool) -> int:
    """Prints answers as they come; the exit code is the highest of all."""
    method, args, kwargs = asked
    code = exits.OK
    async with aclosing(dealer.survey(method, *args, timeout=timeout_s, **kwargs)) as answers:
        async for answer in answers:
            click.echo(render(answer, as_json=as_json))
            if answer.error is not None:
                code = max(code, code_of(answer.error))
    return code


async def find(node: Node, service: str, count: int | None, timeout_s: float) -> str | None:
    """Waits for those who serve; says what is missing, if not enough of them came."""
    if count is not None:
        search = Search(node, service, count=count)
        found = await search.run(asyncio.get_running_loop().time() + timeout_s)
        return None if found else f"waited {timeout_s:g} s for {search.describe()}"
    await settle(node, node.events(), timeout_s)
    return None


@click.command("survey", cls=ArgumentsCommand)
@click.argument("target", metavar="SERVICE.METHOD")
@click.argument("arguments", nargs=-1, metavar="[ARGUMENT | NAME=ARGUMENT]...")
@click.option("--timeout", type=POSITIVE, default=2.0, show_default=True,
              metavar="SECONDS", help="For nodes to show themselves, and then for their answers.")  # fmt: skip
@click.option("-n", "--count", type=click.IntRange(min=1), help="Wait for so many nodes that serve it first.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", callback=read_headers, help="Repeatable.")
@session_options(json_help="One JSON object a node, with result or error.")
def survey(
    session: Session,
    target: str,
    arguments: tuple[str, ...],
    timeout: float,
    count: int | None,
    headers: dict[str, str],
) -> None:
    """Ask everybody who serves a method, and print a line of each.

    Prints the node's name and what it returned, or the error, as answers come. ARGUMENTs are those of `meshmsg
    request`. The exit code is 0 if all answered well, 1 if nobody serves it or somebody did not answer, 2 if the
    request does not fit a method, 3 if a method failed.

    \b
    Examples:
      meshmsg survey math.ping
      meshmsg survey cache.status -n 3 --json | jq -c '[.peer, .result.size]'
    """
    service, method = parse_target(target)
    args, kwargs = parse_arguments(arguments)
    if headers:
        kwargs["headers"] = headers

    async def serve(stop: Stop) -> int:
        async with session.make_node("survey", drain=0.0) as node:
            dealer = node.dealer(service)

            async def ask() -> int:
                missing = await find(node, service, count, timeout)
                if missing is not None:
                    return complain(missing, exits.NOTHING)
                return await print_answers(dealer, (method, args, kwargs), timeout, as_json=session.json)

            try:
                code = await stop.unless(ask())
            except MeshError as error:
                return complain(f"{explain(error)}; {len(node.peers())} nodes seen", code_of(error))
            return exits.INTERRUPTED if code is None else code

    run(serve)
