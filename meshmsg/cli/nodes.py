"""``meshmsg nodes``: who is in the mesh."""

from __future__ import annotations

from typing import Any

import click

from meshmsg import Node
from meshmsg.cli.looking import Listing, Rows
from meshmsg.cli.numbers import NOT_NEGATIVE
from meshmsg.cli.running import run
from meshmsg.cli.session import Session, session_options

COLUMNS = ("name", "id", "state", "endpoints", "pulls", "pushes")
SHORT_ID = 12


def describe(node: Node) -> dict[str, Any]:
    """The document of ``meshmsg nodes --json``."""
    peers = sorted(node.peers(), key=lambda peer: (peer.name, peer.id))
    return {
        "mesh": node.mesh,
        "nodes": [
            {
                "name": peer.name,
                "id": peer.id,
                "state": peer.state,
                "endpoints": list(peer.endpoints),
                "pulls": sorted(peer.pulls),
                "pushes": sorted(peer.pushes),
            }
            for peer in peers
        ],
    }


def tabulate(document: dict[str, Any]) -> Rows:
    """The same as rows."""
    return [
        (
            each["name"],
            each["id"][:SHORT_ID],
            each["state"],
            ", ".join(each["endpoints"]),
            ", ".join(each["pulls"]) or "-",
            ", ".join(each["pushes"]) or "-",
        )
        for each in document["nodes"]
    ]


@click.command("nodes")
@click.option("--watch", is_flag=True, help="Go on, and show every change; Ctrl-C ends it.")
@click.option("--timeout", type=NOT_NEGATIVE, default=1.0, show_default=True, metavar="SECONDS",
              help="Wait this long at most for nodes to show themselves.")  # fmt: skip
@session_options(json_help="One JSON document; with --watch one a line, at every change.")
def nodes(session: Session, watch: bool, timeout: float) -> None:
    """List the nodes of a mesh.

    Joins the mesh for a moment, and lists everybody else: name, id, state (alive or suspect), endpoints, and the
    queues it pulls and pushes. The list is taken to be complete when no new node came for 0.3 s; if nobody comes at
    all, after the timeout, with exit code 1.

    \b
    Examples:
      meshmsg nodes --watch
      meshmsg nodes --json | jq -r '.nodes[].name'
    """
    listing = Listing(session, COLUMNS, describe, tabulate)
    run(lambda stop: listing.show(stop, watch=watch, timeout_s=timeout))
