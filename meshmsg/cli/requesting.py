"""What ``request``, ``survey`` and ``reply`` share: arguments from words, errors as text, JSON and exit codes."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Sequence
from typing import Any

import click

from meshmsg import (
    BadRequest,
    BodyTooLarge,
    Cancelled,
    DeadlineExceeded,
    Dealer,
    EncodeError,
    MeshError,
    Node,
    NoResponders,
    NoSuchMethod,
    Overloaded,
    PeerLost,
    RemoteError,
    RequestError,
    Unavailable,
    WaitTimeout,
)
from meshmsg.cli import exits
from meshmsg.cli.bodies import escape_control, escape_lines
from meshmsg.cli.running import tell

LOOK_EVERY_S = 0.1
NOTICE_AFTER_S = 2.0  # then people are told what is waited for
NAMED = re.compile(r"([^\W\d]\w*)=(.*)", re.DOTALL)
NEGATIVE = re.compile(r"-\.?\d")
LOOKS_LIKE_JSON = ("{", "[", '"')
Advice = tuple[tuple[re.Pattern[str], str], ...]
# What errors advise is Python; people who use a shell have options.
ADVICE: Advice = (
    (re.compile(r"call stream\(\) instead"), "request it with --stream"),
    (re.compile(r"call request\(\) instead"), "request it without --stream"),
    (
        re.compile(r"request\(\.\.\., items=\.\.\.\).*"),
        "request it with --items, an item a line of standard input",
    ),
    (re.compile(r"leave items= out"), "leave out --items"),
    (re.compile(r": start a node with router\(.*"), ""),
)
# What `dealer.request(...)` takes for itself.
OWN_NAMES = frozenset(
    name
    for function in (Dealer.request, Dealer.stream, Dealer.survey)
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
)

NOBODY_ANSWERED = (NoResponders, DeadlineExceeded, PeerLost, Unavailable, Overloaded, Cancelled)
WRONG_USE = (BadRequest, NoSuchMethod, EncodeError, BodyTooLarge)


class ArgumentsCommand(click.Command):
    """A verb whose arguments may be negative numbers, which no option looks like."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Lets click pass what it does not know, and refuses what is no number, as click would."""
        context.ignore_unknown_options = True
        after = args.index("--") if "--" in args else len(args)
        literal = args[after + 1 :]
        rest = super().parse_args(context, args)
        for text in context.params.get("arguments", ()):
            if text.startswith("-") and len(text) > 1 and text not in literal and not NEGATIVE.match(text):
                raise click.NoSuchOption(text.partition("=")[0], ctx=context)
        return rest


def parse_target(text: str) -> tuple[str, str]:
    """Service and method of ``SERVICE.METHOD``; raises ``click.UsageError``.

    >>> parse_target("math.add"), parse_target("shop.orders.list")
    (('math', 'add'), ('shop.orders', 'list'))
    """
    service, _, method = text.rpartition(".")
    if not service or not method:
        raise click.UsageError(f"{text!r} is not SERVICE.METHOD, as math.add")
    return service, method


def parse_arguments(texts: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional arguments and those by name; raises ``click.UsageError``.

    >>> parse_arguments(["2", "Ada", 'tags=["a"]'])
    ([2, 'Ada'], {'tags': ['a']})
    """
    arguments: list[Any] = []
    named: dict[str, Any] = {}
    for place, text in enumerate(texts, 1):
        match = NAMED.fullmatch(text)
        if match is None:
            if named:
                raise click.UsageError(f"argument {place} ({text}) comes after those with names, and has none")
            arguments.append(parse_value(text, f"argument {place}"))
            continue
        name, value = match.groups()
        if name in named:
            raise click.UsageError(f"argument {name!r} is given twice")
        if name in OWN_NAMES:
            raise click.UsageError(
                f"no argument can be called {name!r} here: give it by its place, or if it is the text {text!r}, "
                f"as JSON: {json.dumps(text)}"
            )
        named[name] = parse_value(value, f"argument {name!r}")
    return arguments, named


def parse_value(text: str, where: str) -> Any:
    """A value: JSON, or the text itself if it does not look like any; raises ``click.UsageError``.

    >>> parse_value("2", ""), parse_value("two", ""), parse_value("007", "")
    (2, 'two', '007')
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if not text.lstrip().startswith(LOOKS_LIKE_JSON):
            return text
        why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise click.UsageError(f"{where} is not JSON: {why}") from None


def code_of(error: MeshError) -> int:
    """The exit code for an outcome: nobody answered, wrong use, or the method failed."""
    if isinstance(error, WRONG_USE):
        return exits.USAGE
    if isinstance(error, NOBODY_ANSWERED):
        return exits.NOTHING
    return exits.ANSWERED_WITH_ERROR if isinstance(error, RequestError) else exits.FAILED


def describe_error(error: MeshError) -> dict[str, Any]:
    """An error as ``--json`` prints it."""
    code = error.code if isinstance(error, RequestError) else "error"
    described: dict[str, Any] = {"code": code, "type": name_of(error), "message": str(error)}
    if isinstance(error, RequestError):
        described["peer"] = error.peer
    if isinstance(error, BadRequest):
        described["argument"] = error.argument
    if isinstance(error, Overloaded):
        described["retry_after"] = error.retry_after
    if isinstance(error, RemoteError):
        described["traceback"] = error.remote_traceback
    return described


def explain(error: MeshError, *, verbose: bool = False, advice: Advice = ADVICE) -> str:
    """An error for people, on one line; with ``verbose`` the remote traceback follows."""
    said = str(error)
    if isinstance(error, (BadRequest, NoResponders)):
        for python, shell in advice:
            said = python.sub(shell, said)
    text = escape_control(f"{name_of(error)}: {said}")
    if verbose and isinstance(error, RemoteError) and error.remote_traceback:
        return f"{text}\n{escape_lines(error.remote_traceback.rstrip())}"
    return text


def name_of(error: MeshError) -> str:
    """What kind of error it is: of one that a method raised, its kind there."""
    return error.type if isinstance(error, RemoteError) else type(error).__name__


class Search:
    """Waits until somebody serves what is going to be asked."""

    def __init__(self, node: Node, service: str, peer: str | None = None, count: int = 1) -> None:
        self._node = node
        self._service = service
        self._peer = peer
        self._count = count

    async def run(self, end: float) -> bool:
        """Until so many are there; false if they are not by ``end`` of the loop's clock."""
        loop = asyncio.get_running_loop()
        notice_at = loop.time() + NOTICE_AFTER_S
        while (now := loop.time()) < end:
            try:
                await self._node.wait_for(router=self._service, count=self._count, timeout=min(LOOK_EVERY_S, end - now))
            except WaitTimeout:
                pass
            else:
                if self._peer is None or self._is_peer_there():
                    return True
                await asyncio.sleep(LOOK_EVERY_S)
            if now >= notice_at:
                notice_at = float("inf")
                tell(f"meshmsg: waiting: for {self.describe()}")
        return False

    def describe(self) -> str:
        """What is waited for, and what was found."""
        wanted = "somebody who serves" if self._count == 1 else f"{self._count} nodes that serve"
        who = wanted if self._peer is None else f"node {self._peer!r}, to serve"
        return f"{who} {self._service!r}; {len(self._node.peers())} nodes seen in mesh {self._node.mesh!r}"

    def _is_peer_there(self) -> bool:
        return any(
            self._peer in (peer.name, peer.id) and self._service in peer.offers.get("router", {})
            for peer in self._node.peers()
        )
