"""``meshmsg topics``: what is published, and who subscribes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import click

from meshmsg import Node
from meshmsg.cli.looking import Listing, Rows
from meshmsg.cli.numbers import NOT_NEGATIVE
from meshmsg.cli.running import run
from meshmsg.cli.session import Session, session_options
from meshmsg.engine.topics import is_pattern, overlaps
from meshmsg.message import Peer

COLUMNS = ("topic", "publishers", "subscribers")


class End(NamedTuple):
    """What one node says of one pattern."""

    pattern: str
    reliable: bool
    who: dict[str, Any]

    @property
    def row(self) -> tuple[str, bool]:
        """Reliable and bare ends of one pattern never meet."""
        return self.pattern, not self.reliable


def describe(node: Node) -> dict[str, Any]:
    """The document of ``meshmsg topics --json``: all that is published, and then what is subscribed to in vain.

    A subscriber is named wherever some topic can match both patterns.
    """
    peers = sorted(node.peers(), key=lambda peer: (peer.name, peer.id))
    published = [end for peer in peers for end in _published(peer)]
    subscribed = [end for peer in peers for end in _subscribed(peer)]
    rows = sorted({end.row for end in published})
    in_vain = [end for end in subscribed if not any(_fits(end, row) for row in rows)]
    topics = [
        _row(
            row,
            [end for end in published if end.row == row],
            [end for end in subscribed if _fits(end, row)],
        )
        for row in rows
    ]
    for row in sorted({end.row for end in in_vain}):
        topics.append(_row(row, [], [end for end in in_vain if end.row == row]))
    return {"mesh": node.mesh, "topics": topics}


def _fits(subscriber: End, row: tuple[str, bool]) -> bool:
    pattern, bare = row
    return subscriber.reliable is not bare and _meet(subscriber.pattern, pattern)


def _row(row: tuple[str, bool], publishers: list[End], subscribers: list[End]) -> dict[str, Any]:
    topic, bare = row
    return {
        "topic": topic,
        "reliable": not bare,
        "publishers": [end.who for end in publishers],
        "subscribers": [end.who for end in subscribers],
    }


def _published(peer: Peer) -> Iterator[End]:
    for pattern, details in _offers(peer, "pub"):
        windows = {name: details.get(name) for name in ("window", "window_bytes")}
        known = {name: window if type(window) is int else None for name, window in windows.items()}
        yield End(pattern, True, {**_name(peer), **known})
    for pattern, _ in _offers(peer, "bare_pub"):
        yield End(pattern, False, {**_name(peer), "window": None, "window_bytes": None})


def _subscribed(peer: Peer) -> Iterator[End]:
    for pattern, _ in _offers(peer, "sub"):
        yield End(pattern, True, {**_name(peer), "pattern": pattern, "group": None})
    for pattern, _ in _offers(peer, "bare_sub"):
        yield End(pattern, False, {**_name(peer), "pattern": pattern, "group": None})
    for _, details in _offers(peer, "group"):
        pattern, group = f"{details.get('pattern')}", f"{details.get('group')}"
        yield End(pattern, True, {**_name(peer), "pattern": pattern, "group": group})


def _offers(peer: Peer, kind: str) -> list[tuple[str, dict[str, Any]]]:
    offers: dict[str, dict[str, Any]] = peer.offers.get(kind, {})
    return [(name, offers[name]) for name in sorted(offers)]


def _name(peer: Peer) -> dict[str, Any]:
    return {"name": peer.name, "id": peer.id, "state": peer.state}


@lru_cache(maxsize=100_000)  # a watch asks again and again
def _meet(pattern_a: str, pattern_b: str) -> bool:
    if not (is_pattern(pattern_a) or is_pattern(pattern_b)):
        return pattern_a == pattern_b
    return overlaps(pattern_a, pattern_b)


def tabulate(document: dict[str, Any]) -> Rows:
    """The same as rows."""
    return [
        (
            each["topic"] + ("" if each["reliable"] else " (reliable=False)"),
            ", ".join(_label(who) for who in each["publishers"]) or "-",
            ", ".join(_label(who, each["topic"]) for who in each["subscribers"]) or "-",
        )
        for each in document["topics"]
    ]


def _label(who: dict[str, Any], topic: str = "") -> str:
    """A name, and in brackets whatever is not as one would expect."""
    details = [who["state"]] if who["state"] != "alive" else []
    if who.get("group"):
        details.append(f"group {who['group']}")
    if who.get("pattern", topic) != topic and topic:
        details.append(who["pattern"])
    return f"{who['name']} ({', '.join(details)})" if details else str(who["name"])


@click.command("topics")
@click.option("--watch", is_flag=True, help="Go on, and show every change; Ctrl-C ends it.")
@click.option("--timeout", type=NOT_NEGATIVE, default=1.0, show_default=True, metavar="SECONDS",
              help="Wait this long at most for nodes to show themselves.")  # fmt: skip
@session_options(json_help="One JSON document; with --watch one a line, at every change.")
def topics(session: Session, watch: bool, timeout: float) -> None:
    """List the topics of a mesh, with who publishes and who subscribes.

    Shows what nodes say that they offer: topics, or patterns of them. Which topics of a pattern were ever published,
    and how far each subscriber is, only their publishers know: pub.lag() there tells.

    \b
    Examples:
      meshmsg topics --watch
      meshmsg topics --json | jq -r '.topics[] | select(.subscribers == []) | .topic'
    """
    listing = Listing(session, COLUMNS, describe, tabulate, "topics")
    run(lambda stop: listing.show(stop, watch=watch, timeout_s=timeout))
