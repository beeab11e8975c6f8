"""What ``nodes``, ``queues``, ``topics`` and ``services`` share: waiting for a mesh to show itself, and printing it."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from meshmsg import Node
from meshmsg.cli import exits
from meshmsg.cli.bodies import escape_invisible, to_json
from meshmsg.cli.running import Stop, complain
from meshmsg.cli.session import Session
from meshmsg.observe.events import EventStream

QUIET_S = 0.3  # a listing is complete when no new node came for this long
# An offer that changes is no event, so a watch also looks by itself.
LOOK_EVERY_S = 0.5
ANY_WIDTH = 10_000

Rows = Sequence[Sequence[str]]


async def settle(node: Node, events: EventStream, timeout_s: float) -> None:
    """Waits until the mesh has shown itself: until no new node came for 0.3 s, or for ``timeout_s`` in all.

    As long as nobody came it waits for the whole timeout: the first answer may take a moment.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    quiet_at = loop.time() + QUIET_S
    while (now := loop.time()) < end:
        until = min(end, quiet_at) if node.peers() else end
        if until <= now:
            return
        try:
            async with asyncio.timeout_at(until):
                event = await anext(events)
        except (TimeoutError, StopAsyncIteration):
            continue
        if event.kind in ("peer.up", "peer.back"):
            quiet_at = loop.time() + QUIET_S


class Listing:
    """One verb's view of a node: as a JSON document and as a table."""

    def __init__(
        self,
        session: Session,
        columns: Sequence[str],
        describe: Callable[[Node], dict[str, Any] | Awaitable[dict[str, Any]]],
        tabulate: Callable[[dict[str, Any]], Rows],
        things: str = "queues",
    ) -> None:
        self._session = session
        self._columns = columns
        self._describe = describe
        self._tabulate = tabulate
        self._things = things  # what there may be none of, although there are nodes
        self._is_terminal = sys.stdout.isatty()

    async def show(self, stop: Stop, *, watch: bool, timeout_s: float) -> int:
        """Joins the mesh, looks, prints; with ``watch`` until somebody says stop."""
        async with self._session.make_node("look", drain=0.0) as node:
            events = node.events()
            await stop.unless(settle(node, events, timeout_s))
            if watch:
                await self._watch(node, events, stop)
                return exits.OK
            if stop.requested:
                return exits.INTERRUPTED
            document = await stop.unless(self._look(node))
            if document is None:
                return exits.INTERRUPTED
            found = bool(self._tabulate(document))
            if found or self._session.json:
                self._print(document)
            return exits.OK if found else self._complain_nothing(node)

    async def _look(self, node: Node) -> dict[str, Any]:
        document = self._describe(node)
        return await document if inspect.isawaitable(document) else document

    def _complain_nothing(self, node: Node) -> int:
        count = len(node.peers())
        seen = f"nodes found: {count}, but no {self._things}" if count else "no nodes found"
        return complain(
            f"{seen} in mesh {node.mesh!r}; another mesh is --mesh NAME, more time is --timeout SECONDS",
            exits.NOTHING,
        )

    async def _watch(self, node: Node, events: EventStream, stop: Stop) -> None:
        shown: dict[str, Any] | None = None
        live = None
        if self._is_terminal and not self._session.json:
            live = Live(console=Console(), auto_refresh=False)
            live.start()
        try:
            while not stop.requested:
                document = await stop.unless(self._look(node))
                if document is not None and document != shown:
                    shown = document
                    if live is not None:
                        live.update(self._table(document), refresh=True)
                    else:
                        self._print(document)
                await stop.unless(_next(events))
        finally:
            if live is not None:
                live.stop()

    def _print(self, document: dict[str, Any]) -> None:
        if self._session.json:
            click.echo(to_json(document))
        elif self._is_terminal:
            Console().print(self._table(document))
        else:
            # No frame and no folding: one row a line, for grep and awk.
            Console(width=ANY_WIDTH).print(self._table(document, plain=True))
        sys.stdout.flush()

    def _table(self, document: dict[str, Any], *, plain: bool = False) -> Table:
        table = Table(box=None if plain else SIMPLE_HEAD, pad_edge=False)
        for column in self._columns:
            table.add_column(column, no_wrap=plain)
        for row in self._tabulate(document):
            # Not str: what nodes call themselves is no markup. And what cannot be seen must be.
            table.add_row(*(Text(escape_invisible(cell)) for cell in row))
        return table


async def _next(events: EventStream) -> None:
    """Until something happens, or it is time to look again."""
    try:
        async with asyncio.timeout(LOOK_EVERY_S):
            await anext(events, None)
    except TimeoutError:
        pass
