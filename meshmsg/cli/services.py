"""``meshmsg services``: which services there are, who offers them, and what these say of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click

from meshmsg import MeshError, Node
from meshmsg.cli.looking import Listing, Rows
from meshmsg.cli.numbers import NOT_NEGATIVE
from meshmsg.cli.requesting import explain
from meshmsg.cli.running import run
from meshmsg.cli.session import Session, session_options
from meshmsg.engine.providers import BUILT_IN

ASK_S = 2.0

Document = dict[str, Any]


def describe(node: Node) -> Document:
    """The document of ``meshmsg services --json``."""
    services: dict[str, Document] = {}
    for peer in sorted(node.peers(), key=lambda peer: (peer.name, peer.id)):
        offers: dict[str, Document] = peer.offers.get("router", {})
        for name, details in offers.items():
            provider: Document = {"name": peer.name, "id": peer.id, "state": peer.state}
            provider["serving"] = details.get("serving", True) is not False
            services.setdefault(name, {"service": name, "providers": []})["providers"].append(provider)
    return {"mesh": node.mesh, "services": [services[name] for name in sorted(services)]}


async def inquire(node: Node, *, methods: bool, stats: bool) -> Document:
    """The same with what each provider says of itself; who does not answer has an ``error``."""
    document = describe(node)
    wanted = [name for name, asked in (("info", methods), ("stats", stats)) if asked]
    await asyncio.gather(*(ask(node, service, provider, wanted) for service, provider in each_provider(document)))
    return document


async def ask(node: Node, service: str, provider: Document, wanted: Sequence[str]) -> None:
    """Adds what one provider answers to what is known of it."""
    dealer = node.dealer(service)
    try:
        for method in wanted:
            told = await dealer.request(method, peer=provider["id"], timeout=ASK_S)
            provider |= read_info(told) if method == "info" else read_stats(told)
    except MeshError as error:
        provider["error"] = explain(error)
    except (LookupError, TypeError, ValueError, AttributeError):  # a node of another kind
        provider["error"] = "it answers something else than expected"


def read_info(told: Document) -> Document:
    """The methods that not every service has."""
    return {"methods": [each for each in told["methods"] if each["name"] not in BUILT_IN]}


def read_stats(told: Document) -> Document:
    """The counts, as if nobody had asked for them."""
    own = {
        name: {
            "requests": int(each["requests"]),
            "errors": int(each["errors"]),
            "mean_ms": float(each["mean_ms"]),
            "last_error": each["last_error"],
        }
        for name, each in told["methods"].items()
        if name not in BUILT_IN
    }
    counts = {name: told[name] for name in ("waiting", "overloaded", "cancelled", "expired", "last_error")}
    return {"stats": {"running": told["running"], **counts, "methods": own}}


# -- tables ----------------------------------------------------------------------------------------------------

PLAIN = ("service", "providers")
METHODS = ("service", "method", "providers", "about")
STATS = ("service", "provider", "requests", "errors", "mean ms", "running", "waiting", "last error")
BOTH = ("service", "provider", "method", "requests", "errors", "mean ms", "last error")


def tabulate(document: Document) -> Rows:
    """A row a service."""
    return [clean(each["service"], ", ".join(map(label, each["providers"]))) for each in document["services"]]


def tabulate_methods(document: Document) -> Rows:
    """A row a method; those who offer it alike are named together."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for service, provider in each_provider(document):
        told = [(sign(each), f"{each.get('doc', '')}") for each in provider.get("methods", ())]
        for method, about in told or [("-", provider.get("error", ""))]:
            rows.setdefault((service, method, about), []).append(label(provider))
    return [clean(service, method, ", ".join(names), about) for (service, method, about), names in rows.items()]


def tabulate_stats(document: Document) -> Rows:
    """A row a provider: sums over its methods, without what ``services`` itself asks, and others who look."""
    rows = []
    for service, provider in each_provider(document):
        stats: Document | None = provider.get("stats")
        if stats is None:
            rows.append(clean(service, label(provider), *"-----", provider.get("error", "-")))
            continue
        methods = stats["methods"].values()
        requests = sum(each["requests"] for each in methods)
        mean_ms = sum(each["mean_ms"] * each["requests"] for each in methods) / requests if requests else 0.0
        made = (requests, sum(each["errors"] for each in methods), f"{mean_ms:.3f}")
        rows.append(clean(service, label(provider), *made, stats["running"], stats["waiting"], stats["last_error"]))
    return rows


def tabulate_both(document: Document) -> Rows:
    """A row a provider and method."""
    rows = []
    for service, provider in each_provider(document):
        stats: Document = provider.get("stats", {}).get("methods", {})
        told = provider.get("methods", ())
        for each in told:
            found = stats.get(each["name"], {})
            numbers = (found.get(name, "-") for name in ("requests", "errors", "mean_ms", "last_error"))
            rows.append(clean(service, label(provider), sign(each), *numbers))
        if not told:
            rows.append(clean(service, label(provider), *"----", provider.get("error", "-")))
    return rows


def clean(*cells: Any) -> tuple[str, ...]:
    """Cells of a row as text."""
    return tuple("-" if cell is None else str(cell) for cell in cells)


def each_provider(document: Document) -> list[tuple[str, Document]]:
    """All providers, with the service they offer."""
    return [(service["service"], provider) for service in document["services"] for provider in service["providers"]]


def label(provider: Document) -> str:
    """A name, and in brackets whatever is not as one would expect."""
    details = [provider["state"]] if provider["state"] != "alive" else []
    details += [] if provider["serving"] else ["not serving"]
    name = f"{provider['name']}"
    return f"{name} ({', '.join(details)})" if details else name


def sign(method: Document) -> str:
    """A method as one would write it, and what kind of stream it is."""
    streams = [word for name, word in (("takes_items", "takes items"), ("streams", "streams")) if method.get(name)]
    signature = f"{method['name']}{method.get('signature', '')}"
    return f"{signature} [{', '.join(streams)}]" if streams else signature


TABLES = {
    (False, False): (PLAIN, tabulate),
    (True, False): (METHODS, tabulate_methods),
    (False, True): (STATS, tabulate_stats),
    (True, True): (BOTH, tabulate_both),
}


@click.command("services")
@click.option("--methods", is_flag=True, help="Ask each provider for its methods.")
@click.option("--stats", is_flag=True, help="Ask each provider for its counts.")
@click.option("--watch", is_flag=True, help="Go on, and show every change; Ctrl-C ends it.")
@click.option("--timeout", type=NOT_NEGATIVE, default=1.0, show_default=True, metavar="SECONDS",
              help="Wait this long at most for nodes to show themselves.")  # fmt: skip
@session_options(json_help="One JSON document; with --watch one a line, at every change.")
def services(session: Session, methods: bool, stats: bool, watch: bool, timeout: float) -> None:
    """List the services of a mesh, with who offers them.

    Shows what nodes say that they offer, and whether they are serving. --methods and --stats ask each of them.

    \b
    Examples:
      meshmsg services --methods
      meshmsg services --stats --watch
      meshmsg services --json | jq -r '.services[].service'
    """
    columns, tabulate_ = TABLES[methods, stats]

    def look(node: Node) -> Any:
        return inquire(node, methods=methods, stats=stats) if methods or stats else describe(node)

    listing = Listing(session, columns, look, tabulate_, "services")
    run(lambda stop: listing.show(stop, watch=watch, timeout_s=timeout))
