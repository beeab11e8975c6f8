"""Orders: a shop whose web front end calls services, publishes what happened, and works off a dead letter.

    pip install 'meshmsg[examples]'                 # starlette and uvicorn, for the front end
    python orders.py inventory stock.db             # several of each may run, anywhere; they find each other
    python orders.py payment payments.db
    python orders.py mail outbox/
    python orders.py front --port 8080              # http://127.0.0.1:8080

    POST /orders        {"article": "lamp", "count": 1, "card": "4242", "email": "ada@example.org"}
    GET  /stock         what is left of each article
    GET  /health        who serves what, and who does not answer
    GET  /dead-letters  mails that could not be sent; POST tries them again

An order is made of requests, each with one outcome (G8): goods are reserved, the card is charged, and if that fails
the goods are given back. All of them carry the order's id and do nothing the second time. So they may be repeated: by
the dealer, when a provider crashes, and by a browser that never saw the answer and sends its ``Idempotency-Key`` again.

That an order was placed is an event (G6). To the group ``mail`` it is work (G7): a member sends one mail for each, and
what no member can do becomes a dead letter at the front end, until somebody has repaired the cause and tries again.
The front end keeps events in its memory, so a client that got no answer repeats its order. What nobody repeats stays
reserved; a real shop would let reservations expire.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from meshmsg import (
    BadRequest,
    DeadlineExceeded,
    Dealer,
    Message,
    Node,
    NoResponders,
    Overloaded,
    RemoteError,
    RequestError,
    Retry,
)

PRICES = {"lamp": 4900, "chair": 12900, "poster": 900}  # cents
STOCK = 5  # of each article, in a new database
ORDER = {"article": str, "count": int, "card": str, "email": str}
PATIENCE_S = 10.0  # of whoever waits for a page


def connect(path: str) -> sqlite3.Connection:
    """A database in which each statement is a transaction."""
    return sqlite3.connect(path, timeout=30, isolation_level=None)


class Inventory:
    """The service ``inventory``: its public methods. Plain functions run in threads, so sqlite may block."""

    def __init__(self, path: str) -> None:
        self.path = path
        with closing(connect(self.path)) as database:
            database.execute("CREATE TABLE IF NOT EXISTS stock (article TEXT PRIMARY KEY, count INTEGER)")
            database.execute("CREATE TABLE IF NOT EXISTS reserved (id TEXT PRIMARY KEY, article TEXT, count INTEGER)")
            for article in PRICES:
                database.execute("INSERT INTO stock VALUES (?, ?) ON CONFLICT DO NOTHING", [article, STOCK])

    def reserve(self, order: str, article: str, count: int) -> int:
        """Takes goods for an order, once; says what they cost."""
        if count < 1:
            raise BadRequest(f"{count} x {article} is no order", "count")
        if article not in PRICES:
            raise RemoteError(f"there is no {article!r} to buy", code="no_such_article")
        with closing(connect(self.path)) as database:
            database.execute("BEGIN IMMEDIATE")
            if not database.execute("SELECT 1 FROM reserved WHERE id = ?", [order]).fetchone():
                taken = database.execute(
                    "UPDATE stock SET count = count - ? WHERE article = ? AND count >= ?", [count, article, count]
                )
                if not taken.rowcount:
                    raise RemoteError(f"there are not {count} x {article}", code="out_of_stock")
                database.execute("INSERT INTO reserved VALUES (?, ?, ?)", [order, article, count])
            database.execute("COMMIT")
        return PRICES[article] * count

    def release(self, order: str) -> None:
        """Gives the goods of an order back, if it has any."""
        with closing(connect(self.path)) as database:
            database.execute("BEGIN IMMEDIATE")
            row = database.execute("DELETE FROM reserved WHERE id = ? RETURNING article, count", [order]).fetchone()
            if row:
                database.execute("UPDATE stock SET count = count + ? WHERE article = ?", [row[1], row[0]])
            database.execute("COMMIT")

    def stock(self) -> dict[str, int]:
        """How much there is of each article."""
        with closing(connect(self.path)) as database:
            return dict(database.execute("SELECT article, count FROM stock"))


class Payment:
    """The service ``payment``."""

    def __init__(self, path: str) -> None:
        self.path = path
        with closing(connect(self.path)) as database:
            database.execute("CREATE TABLE IF NOT EXISTS charges (id TEXT PRIMARY KEY, card TEXT, cents INTEGER)")

    def charge(self, order: str, card: str, cents: int) -> None:
        """Takes the money for an order, once: one that is paid stays so, whatever the card is the second time."""
        with closing(connect(self.path)) as database:
            if database.execute("SELECT 1 FROM charges WHERE id = ?", [order]).fetchone():
                return
            if not card.isdecimal():
                raise RemoteError(f"the card {card!r} was declined", code="declined")
            database.execute("INSERT INTO charges VALUES (?, ?, ?) ON CONFLICT DO NOTHING", [order, card, cents])


def send_mail(folder: Path, message: Message) -> None:
    """Sends one mail: a file in a folder. Raises as long as there is a file named ``down`` in it."""
    order = message.body
    if (folder / "down").exists():
        raise ConnectionError("the mail server does not answer")
    path = folder / f"{order['id']}.txt"  # named after the order, so a second time changes nothing
    path.write_text(f"To: {order['email']}\n\nYour {order['count']} x {order['article']} are on their way.\n")


def read_order(body: bytes) -> dict[str, Any]:
    """What a browser wants. Raises ``BadRequest`` before anything is reserved or charged."""
    try:
        wanted = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"an order is JSON: {error}") from None
    if not isinstance(wanted, dict):
        raise BadRequest("an order is an object")
    for name, kind in ORDER.items():
        if type(wanted.get(name)) is not kind:
            raise BadRequest(f"an order has {name!r}, of type {kind.__name__}", name)
    return wanted


class Front:
    """The web front end, and its node."""

    def __init__(self, mesh: str) -> None:
        self.node = Node("front", mesh=mesh)

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """The node lives as long as the web server. Starlette calls this."""
        async with self.node as node:
            self.inventory: Dealer = node.dealer("inventory", timeout=PATIENCE_S, idempotent=True)
            self.payment: Dealer = node.dealer("payment", timeout=PATIENCE_S, idempotent=True)
            self.placed = node.pub("orders.placed", retry=Retry(max_attempts=3, backoff=0.1))
            # A group gets what is published since its first member came: without one, mails would be forgotten.
            await node.wait_for(group="mail", timeout=60)
            yield

    async def order(self, request: Request) -> Response:
        """POST /orders."""
        wanted = read_order(await request.body())
        order = request.state.order = request.headers.get("idempotency-key") or uuid.uuid4().hex
        article, count = wanted["article"], wanted["count"]
        cents = await self.inventory.reserve(order, article, count)
        try:
            await self.payment.charge(order, wanted["card"], cents)
        except RemoteError as error:
            if error.code == "declined":
                await self.inventory.release(order)
            raise  # after anything else nobody knows whether the card was charged: the client repeats the order
        await self.placed.send({"id": order, "article": article, "count": count, "email": wanted["email"]})
        return JSONResponse({"id": order, "cents": cents}, 201)

    async def stock(self, request: Request) -> Response:
        """GET /stock."""
        return JSONResponse(await self.inventory.stock())

    async def health(self, request: Request) -> Response:
        """GET /health: everybody is asked; who does not answer in a second is named, too."""
        report: dict[str, dict[str, str]] = {}
        for dealer in (self.inventory, self.payment):
            report[dealer.service] = {}
            try:
                async for answer in dealer.survey("ping", timeout=1.0):
                    report[dealer.service][answer.peer] = "ok" if answer.error is None else str(answer.error)
            except NoResponders:
                pass  # nobody to name
        able = all("ok" in answers.values() for answers in report.values())
        return JSONResponse(report, 200 if able else 503)

    async def dead_letters(self, request: Request) -> Response:
        """GET /dead-letters; POST sends them again, with all their attempts."""
        if request.method == "POST":
            return JSONResponse({"again": self.node.redrive()})
        letters = self.node.dead_letters()
        return JSONResponse([{"order": each.body["id"], "error": each.error, "id": each.id} for each in letters])


async def explain(request: Request, error: Exception) -> Response:
    """What a browser hears of a request that brought no result."""
    assert isinstance(error, RequestError)
    headers = {}
    if isinstance(error, Overloaded):
        status, headers["Retry-After"] = 503, str(int(error.retry_after or 0) + 1)
    elif isinstance(error, DeadlineExceeded):
        status = 504
    elif isinstance(error, RemoteError) and error.code != "error":
        status = {"declined": 402, "no_such_article": 404, "out_of_stock": 409}.get(error.code, 400)
    else:
        status = 400 if error.code == "bad_request" else 503 if isinstance(error, ConnectionError) else 500
    order = getattr(request.state, "order", None)
    return JSONResponse({"error": error.code, "text": str(error), "id": order}, status, headers)


def serve(mesh: str, port: int) -> None:
    """Runs the front end until it is told to stop."""
    front = Front(mesh)
    routes = [
        Route("/orders", front.order, methods=["POST"]),
        Route("/stock", front.stock),
        Route("/health", front.health),
        Route("/dead-letters", front.dead_letters, methods=["GET", "POST"]),
    ]
    app = Starlette(routes=routes, lifespan=front.lifespan, exception_handlers={RequestError: explain})
    listener = socket.create_server(("127.0.0.1", port))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mesh", default="shop", help="services of one mesh see each other")
    roles = parser.add_subparsers(dest="role", required=True)
    for service in ("inventory", "payment"):
        roles.add_parser(service).add_argument("database")
    roles.add_parser("mail").add_argument("folder", type=Path)
    roles.add_parser("front").add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    if arguments.role == "front":
        serve(arguments.mesh, arguments.port)
        return

    node = Node(f"{arguments.role}-{os.getpid()}", mesh=arguments.mesh)
    match arguments.role:
        case "inventory":
            node.router("inventory").offer(Inventory(arguments.database))
        case "payment":
            node.router("payment").offer(Payment(arguments.database))
        case "mail":
            arguments.folder.mkdir(exist_ok=True)

            @node.sub("orders.placed", group="mail", durable=True)
            async def mail(message: Message) -> None:
                send_mail(arguments.folder, message)

    node.run()


if __name__ == "__main__":
    main()
