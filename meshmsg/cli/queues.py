"""``meshmsg queues``: which queues there are, and who works at their ends."""

from __future__ import annotations

from typing import Any

import click

from meshmsg import Node
from meshmsg.cli.looking import Listing, Rows
from meshmsg.cli.numbers import NOT_NEGATIVE
from meshmsg.cli.running import run
from meshmsg.cli.session import Session, session_options

COLUMNS = ("queue", "producers", "consumers")


def describe(node: Node) -> dict[str, Any]:
    """The document of ``meshmsg queues --json``."""
    queues: dict[str, dict[str, Any]] = {}
    for peer in sorted(node.peers(), key=lambda peer: (peer.name, peer.id)):
        who = {"name": peer.name, "id": peer.id, "state": peer.state}
        for end, names in (("producers", peer.pushes), ("consumers", peer.pulls)):
            for name in names:
                queue = queues.setdefault(name, {"queue": name, "producers": [], "consumers": []})
                queue[end].append(who)
    return {"mesh": node.mesh, "queues": [queues[name] for name in sorted(queues)]}


def tabulate(document: dict[str, Any]) -> Rows:
    """The same as rows."""
    return [(each["queue"], _names(each["producers"]), _names(each["consumers"])) for each in document["queues"]]


def _names(nodes: list[dict[str, str]]) -> str:
    shown = [node["name"] if node["state"] == "alive" else f"{node['name']} ({node['state']})" for node in nodes]
    return ", ".join(shown) or "-"


@click.command("queues")
@click.option("--watch", is_flag=True, help="Go on, and show every change; Ctrl-C ends it.")
@click.option("--timeout", type=NOT_NEGATIVE, default=1.0, show_default=True, metavar="SECONDS",
              help="Wait this long at most for nodes to show themselves.")  # fmt: skip
@session_options(json_help="One JSON document; with --watch one a line, at every change.")
def queues(session: Session, watch: bool, timeout: float) -> None:
    """List the queues of a mesh, with who produces and who consumes.

    Shows what nodes say that they offer. How much waits in a queue is known only to its producers, and nothing on
    the wire asks them yet: node.ledger() in the producer tells.

    \b
    Examples:
      meshmsg queues --watch
      meshmsg queues --json | jq '.queues[] | select(.consumers == []) | .queue'
    """
    listing = Listing(session, COLUMNS, describe, tabulate)
    run(lambda stop: listing.show(stop, watch=watch, timeout_s=timeout))
