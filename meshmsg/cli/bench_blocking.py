"""What the measured processes of the blocking face run: ``python -m meshmsg.cli.bench_blocking ROLE OPTIONS``."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import Any

from meshmsg.blocking import Node, Pull
from meshmsg.cli.bench_ours import CHUNK, QUEUE, TIMEOUT_S, make_body
from meshmsg.cli.bench_processes import commands, say

Options = dict[str, Any]


class Counter:
    """Counts handled messages in one thread for another one that waits for so many."""

    def __init__(self) -> None:
        self.handled = 0
        self._wanted = 0
        self._reached = threading.Event()

    def add(self, count: int) -> None:
        """So many more were handled."""
        self.handled += count
        if self.handled >= self._wanted:
            self._reached.set()

    def wait(self, count: int) -> None:
        """Waits for so many more than ever wanted before."""
        self._reached.clear()
        self._wanted += count
        if self.handled < self._wanted:
            self._reached.wait(TIMEOUT_S)


def consume(options: Options) -> None:
    """Handles as many messages as it is told to expect, in a thread that iterates over the queue."""
    counter = Counter()
    with Node("consumer", mesh=options["mesh"], mdns=False, uvloop=options.get("uvloop", False)) as node:
        prefetch = options.get("prefetch")
        pull = node.pull(QUEUE, **({} if prefetch is None else {"prefetch": prefetch}))
        handle = handle_batches if options.get("batches") else handle_one_by_one
        thread = threading.Thread(target=handle, args=(pull, counter))
        thread.start()
        say(endpoint=node.endpoints[0])
        for command in commands():
            cpu_start = time.process_time()
            counter.wait(command["count"])
            say(handled=counter.handled, cpu_s=time.process_time() - cpu_start)
    thread.join()


def handle_one_by_one(pull: Pull, counter: Counter) -> None:
    """Acks message by message, until the pull is closed."""
    for message in pull:
        with message:
            counter.add(1 if message.body["valid"] else 0)


def handle_batches(pull: Pull, counter: Counter) -> None:
    """Acks batch by batch, until the pull is closed."""
    for batch in pull.batches():
        with batch:
            counter.add(sum(message.body["valid"] for message in batch))


def produce(options: Options) -> None:
    """Sends as many messages as it is told to, and says how long that took, from the first send to the last ack."""
    ways = {"mesh": options["mesh"], "seeds": [options["endpoint"]], "uvloop": options.get("uvloop", False)}
    with Node("producer", mdns=False, **ways) as node:
        push = node.push(QUEUE)
        body = make_body(options["size"])
        node.wait_for(pull=QUEUE, timeout=TIMEOUT_S)
        say(ready=True)
        for command in commands():
            count = command["count"]
            cpu_start = time.process_time()
            start = time.perf_counter()
            if options.get("batches"):
                bodies = [body] * CHUNK
                for _ in range(count // CHUNK):
                    push.send_many(bodies)
                push.send_many(bodies[: count % CHUNK])
            else:
                for _ in range(count):
                    push.send(body)
            push.flush(timeout=TIMEOUT_S)
            elapsed = time.perf_counter() - start
            cpu_s = time.process_time() - cpu_start
            say(seconds=elapsed, cpu_s=cpu_s, processed=push.ledger().processed)


ROLES = {"consume": consume, "produce": produce}


def main() -> None:
    """Runs the role that the command line names."""
    logging.getLogger("meshmsg").setLevel(logging.ERROR)
    ROLES[sys.argv[1]](json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
