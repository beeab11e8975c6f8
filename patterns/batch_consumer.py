"""Batch consumer: messages stored by the hundred, one transaction each time, and acked only once it is committed.

Problem
    A database takes a thousand rows in one transaction as fast as ten rows in ten. But when one transaction stands
    for many messages, what happens to the others when one is bad, and to all of them in a crash?
Guarantee
    A batch is acked after its commit, so whatever is not in the database is still with the producer (G1). Every row
    is there once: its key is the message's id, which a redelivered message keeps. A consumer holds at most
    ``prefetch`` messages (G5).
How it fails
    ``--fail`` sends a reading that the table refuses, and has a consumer crash between its commit and the acks. The
    bad row becomes a dead letter with the table's words as its error, and its neighbours are stored. What the crashed
    consumer had committed comes again, to the other one, and changes nothing. While the database itself is away,
    whole batches are tried again, up to ``max_attempts`` times: choose a ``Retry`` that outlasts its restart.
What to change
    ``row_of`` and the SQL, for any database with unique keys. One transaction takes up to ``max_size`` messages;
    the first of them waits up to ``max_wait`` seconds for the others.

Run it: ``python batch_consumer.py [--fail]``
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from meshmsg import Batch, Message, Retry
from meshmsg.blocking import Node

TABLE = """CREATE TABLE IF NOT EXISTS readings
    (id TEXT PRIMARY KEY, sensor TEXT NOT NULL, celsius REAL CHECK (celsius BETWEEN -90 AND 60)) WITHOUT ROWID"""
# Not INSERT OR IGNORE: that would also ignore rows that break a CHECK, and nobody would ever know.
INSERT = "INSERT INTO readings VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING"


def row_of(message: Message) -> tuple[Any, ...]:
    """A message as a row; what this raises says that the message is bad."""
    body = message.body
    if not isinstance(body["sensor"], str):
        raise TypeError(f"a sensor has a name, not {body['sensor']!r}")
    return message.id, body["sensor"], float(body["celsius"])


def store(database: sqlite3.Connection, batch: Batch) -> None:
    """One transaction for the whole batch; without the messages that can't be stored, which are rejected."""
    bad_row = (KeyError, TypeError, ValueError, sqlite3.IntegrityError)
    try:
        with database:
            database.executemany(INSERT, map(row_of, batch))
    except bad_row:
        # One is bad, and undid all. Row by row, to find out which: slower, and still one transaction.
        with database:
            for message in batch:
                try:
                    database.execute(INSERT, row_of(message))
                except bad_row as error:
                    message.reject(f"{type(error).__name__}: {error}")


def connect(path: str) -> sqlite3.Connection:
    """The database; several processes may write to it, each waits for the others' transactions."""
    database = sqlite3.connect(path, timeout=30)
    database.execute(TABLE)
    return database


def consume(mesh: str, path: str, name: str, crash: bool) -> None:
    """A consumer: stores batches until it is told to stop."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # leave the blocks below in order
    database = connect(path)
    with Node(name, mesh=mesh) as node:
        for batch in node.pull("readings", prefetch=1000).batches(max_size=500, max_wait=0.01):
            with batch:  # acks at its end what is not rejected; an exception nacks it
                store(database, batch)
                if crash:
                    print(f"{name} crashes between the commit and the acks of {len(batch)} messages", flush=True)
                    os._exit(1)


def produce(mesh: str, path: str, fail: bool) -> None:
    """The producer: sends readings, and looks into the database when all are settled."""
    readings = [{"sensor": f"room-{number % 20}", "celsius": 15 + number % 100 / 10} for number in range(5000)]
    if fail:
        readings[1234]["celsius"] = 999.0
    with Node("producer", mesh=mesh) as node:
        queue = node.push("readings", retry=Retry(max_attempts=10))
        node.wait_for(pull="readings", count=2, timeout=30)  # not needed, but then both get some
        queue.send_many(readings)
        queue.flush(timeout=60)
        for letter in node.dead_letters("readings"):
            print(f"dead letter {letter.body}: {letter.reason}, {letter.error}")
        ledger = queue.ledger()
    rows, average = connect(path).execute("SELECT count(*), avg(celsius) FROM readings").fetchone()
    print(f"{rows} rows, {average:.2f} degrees on average", ledger, sep="\n")


def main(fail: bool) -> None:
    """Starts two consumers as processes of their own; all find each other through mDNS."""
    mesh = f"batches-{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "readings.db")
        roles = [["consumer-1", "--crash"] if fail else ["consumer-1"], ["consumer-2"]]
        consumers = [subprocess.Popen([sys.executable, __file__, "consumer", mesh, path, *role]) for role in roles]
        try:
            produce(mesh, path, fail)
        finally:
            for consumer in consumers:
                consumer.terminate()
            for consumer in consumers:
                consumer.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["consumer", mesh, path, name, *options]:
            consume(mesh, path, name, crash="--crash" in options)
        case arguments:
            main(fail="--fail" in arguments)
