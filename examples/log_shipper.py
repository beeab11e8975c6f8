"""Log shipper: follows log files and brings their lines into one database, each line once.

    python log_shipper.py collect lines.db              # on whatever machine is to have the lines
    python log_shipper.py ship /var/log/app/*.log       # wherever logs are written; starts before or after
    python log_shipper.py show lines.db ERROR           # what came, with a word in it

Shippers and collectors find each other. Start several collectors on one database, and lines go to whichever is free.

No line is lost, whatever dies. A shipper notes how far it came in each file (beside it, in ``NAME.shipped``) once all
up to there is in the database; a collector acks lines after it has committed them (G1). A crash on either side sends
some lines again, and the database knows them by where they stood: host, file and offset. (A message's id would not do:
a shipper that starts anew sends a line as a new message.) Without a collector, shippers wait and read no further.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from meshmsg import Message
from meshmsg.blocking import Node, Push

QUEUE = "log-lines"
CHUNK_BYTES = 256 * 1024  # read, sent and remembered at a time
LOOK_AGAIN_S = 0.5
TABLE = "CREATE TABLE IF NOT EXISTS lines (source TEXT, offset INTEGER, line TEXT, PRIMARY KEY (source, offset))"
INSERT = "INSERT INTO lines VALUES (?, ?, ?) ON CONFLICT DO NOTHING"


def read_position(path: Path) -> tuple[Path, int, int]:
    """Where to go on: the file that says so, the log's inode, and the offset. A log that was rotated starts anew."""
    notes = path.with_name(f"{path.name}.shipped")
    inode, size = path.stat().st_ino, path.stat().st_size
    noted = json.loads(notes.read_text()) if notes.exists() else {}
    offset = noted.get("offset", 0)
    return notes, inode, offset if noted.get("inode") == inode and offset <= size else 0


def write_position(notes: Path, inode: int, offset: int) -> None:
    """Replaces the old position in one step, so that a crash leaves one of the two."""
    fresh = notes.with_name(f"{notes.name}.new")
    fresh.write_text(json.dumps({"inode": inode, "offset": offset}))
    os.replace(fresh, notes)


def ship_chunk(queue: Push, path: Path) -> int:
    """Ships what is new in a file, up to a chunk of it; returns the number of bytes."""
    notes, inode, offset = read_position(path)
    with path.open("rb") as file:
        file.seek(offset)
        chunk = file.read(CHUNK_BYTES)
    whole = chunk.rfind(b"\n") + 1  # a line without its end is still being written,
    if not whole and len(chunk) == CHUNK_BYTES:
        whole = CHUNK_BYTES  # unless it is endless
    if whole:
        source = f"{socket.gethostname()}:{path.absolute()}#{inode}"
        bodies, start = [], offset
        for line in chunk[:whole].splitlines(keepends=True):
            bodies.append([source, start, line.decode("utf-8", "replace").rstrip("\r\n")])
            start += len(line)
        queue.send_many(bodies)  # waits while as much is on its way as the queue may hold
        queue.flush()  # a collector has committed all of it: only now may we forget where it began
        write_position(notes, inode, offset + whole)
    return whole


def ship(mesh: str, names: list[str], once: bool) -> None:
    """Follows files; with ``once``, until nothing in them is new."""
    with Node(f"shipper-{socket.gethostname()}", mesh=mesh) as node:
        queue = node.push(QUEUE)
        while True:
            shipped = sum(ship_chunk(queue, Path(name)) for name in names)
            if not shipped:
                if once:
                    break
                time.sleep(LOOK_AGAIN_S)
        print(f"{queue.ledger().processed} lines shipped, {len(node.dead_letters())} refused")


def row_of(message: Message) -> tuple[Any, ...]:
    """A message as a row; raises for what no shipper would send."""
    source, offset, line = message.body
    if not (isinstance(source, str) and isinstance(line, str) and 0 <= offset < 2**63):
        raise ValueError("not a line")
    return source, offset, line


def collect(mesh: str, path: str) -> None:
    """Stores lines until it is told to stop: a transaction for each batch, acked after its commit."""
    database = sqlite3.connect(path, timeout=30)
    database.execute(TABLE)
    with Node(f"collector-{socket.gethostname()}", mesh=mesh) as node:
        for batch in node.pull(QUEUE, prefetch=2000).batches(max_size=1000):
            with batch:
                rows = []
                for message in batch:
                    try:
                        rows.append(row_of(message))
                    except (TypeError, ValueError) as error:
                        message.reject(f"{message.body!r} from {message.sender}: {error}")
                with database:
                    database.executemany(INSERT, rows)
            print(f"{len(rows)} lines from {', '.join({message.sender for message in batch})}", flush=True)


def show(path: str, word: str) -> None:
    """Prints the lines that contain a word, file by file and in order."""
    query = "SELECT source, line FROM lines WHERE instr(line, ?) ORDER BY source, offset"
    for source, line in sqlite3.connect(path).execute(query, [word]):
        print(f"{source}: {line}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mesh", default="logs", help="shippers and collectors of one mesh see each other")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("collect").add_argument("database")
    shipping = verbs.add_parser("ship")
    shipping.add_argument("files", nargs="+")
    shipping.add_argument("--once", action="store_true", help="end when nothing is new, instead of following")
    showing = verbs.add_parser("show")
    showing.add_argument("database")
    showing.add_argument("word", nargs="?", default="")
    arguments = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # like Ctrl-C: leave the `with` blocks in order
    match arguments.verb:
        case "collect":
            collect(arguments.mesh, arguments.database)
        case "ship":
            ship(arguments.mesh, arguments.files, arguments.once)
        case "show":
            show(arguments.database, arguments.word)


if __name__ == "__main__":
    main()
