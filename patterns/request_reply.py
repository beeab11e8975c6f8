"""Request, reply: several providers of one service, and requests that may be made again.

Problem
    Clients want an answer, now, from whichever provider is free. Providers crash, also in the worst moment: when they
    have done what was asked and have not said so. The client can't know which of the two it was.
Guarantee
    Each request has exactly one outcome, a result or an error that says why not (G8). Those that are declared
    idempotent are tried again elsewhere, others run once at most. What is idempotent is the application's to make
    so: here each deposit has an id, and the second one with this id changes nothing.
How it fails
    ``--fail`` kills a provider (SIGKILL) after it has stored a deposit and before it answers. That deposit is made
    again at another provider, which knows it by its id. A request that is not idempotent raises ``PeerLost`` then:
    ``fee`` does, and the client looks what became of it before it decides.
What to change
    The methods; the annotations are checked. ``idempotent=`` names the methods that may run twice. ``timeout=`` is
    handed down to whatever a method asks in turn. More providers: ``python request_reply.py provider MESH NAME FILE``.

Run it: ``python request_reply.py [--fail]``
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from meshmsg import Context, Node, PeerLost

DEPOSITS = 200
DEADLY = 77  # the number of the deposit after which --fail kills a provider


def connect(path: str) -> sqlite3.Connection:
    """A database in which each statement is a transaction."""
    return sqlite3.connect(path, timeout=30, isolation_level=None)


class Account:
    """The service: its public methods are what can be requested. They are plain functions, and run in threads."""

    def __init__(self, path: str) -> None:
        self.path = path

    def deposit(self, payment: str, cents: int, context: Context) -> str:
        """Stores a payment, once for each id; says whether it is new."""
        with closing(connect(self.path)) as database:
            stored = database.execute("INSERT INTO payments VALUES (?, ?) ON CONFLICT DO NOTHING", [payment, cents])
        new = stored.rowcount == 1
        if new and context.headers.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)  # stored, and nobody will say so
        return "new" if new else "known"

    def fee(self, cents: int, context: Context) -> None:
        """Takes a fee: without an id, so a second time would take it twice."""
        self.deposit(os.urandom(8).hex(), -cents, context)

    def balance(self) -> int:
        """The sum of all payments."""
        with closing(connect(self.path)) as database:
            ((cents,),) = database.execute("SELECT coalesce(sum(cents), 0) FROM payments")
            return cents


def provide(mesh: str, name: str, path: str) -> None:
    """A provider: serves until it is told to stop (SIGTERM), and then finishes what it has begun."""
    node = Node(name, mesh=mesh)
    node.router("account", concurrency=4).offer(Account(path))
    node.run()


async def use(mesh: str, count: int, fail: bool) -> None:
    """The client."""
    async with Node("client", mesh=mesh) as node:
        account = node.dealer("account", idempotent=["deposit", "balance"], timeout=20)
        await node.wait_for(router="account", count=count, timeout=30)

        async def deposit(number: int) -> str:
            headers = {"kill": True} if fail and number == DEADLY else None
            return await account.deposit(f"payment-{number}", 100, headers=headers)

        answers = await asyncio.gather(*(deposit(number) for number in range(DEPOSITS)))
        before = await account.balance()
        print(f"{len(answers)} deposits answered, {answers.count('known')} of them known already; balance {before}")
        try:
            await account.fee(5, headers={"kill": True} if fail else None)
            print("the fee is taken")
        except PeerLost as error:
            taken = before - await account.balance()
            print(f"{error.peer} is gone, so nobody says whether the fee is taken; it is: {taken} cents")


def main(fail: bool) -> None:
    """Starts providers as processes; all find each other through mDNS."""
    mesh = f"request-reply-{os.getpid()}"
    names = ["provider-1", "provider-2", "provider-3"]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "account.db")
        with closing(connect(path)) as database:
            database.execute("CREATE TABLE payments (id TEXT PRIMARY KEY, cents INTEGER)")
        command = [sys.executable, __file__, "provider", mesh]
        providers = [subprocess.Popen([*command, name, path]) for name in names]
        try:
            asyncio.run(use(mesh, len(names), fail))
        finally:
            for provider in providers:
                provider.terminate()
            for provider in providers:
                provider.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["provider", mesh, name, path]:
            provide(mesh, name, path)
        case arguments:
            main(fail="--fail" in arguments)
