"""What the baseline's processes run: bare pyzmq, blocking, bytes, no acks.

``python -m meshmsg.cli.bench_baseline ROLE OPTIONS``. The only file outside ``transport`` that imports zmq: a
baseline that went through meshmsg's own transport would not be one.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import zmq

from meshmsg.cli.bench_processes import commands, say

Options = dict[str, Any]


def consume(context: zmq.Context[zmq.Socket[bytes]], options: Options) -> None:
    """Receives as many messages as it is told to, then answers once."""
    with context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as reply:
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        reply_port = reply.bind_to_random_port("tcp://127.0.0.1")
        say(endpoint=f"tcp://127.0.0.1:{port}", reply=f"tcp://127.0.0.1:{reply_port}")
        handled = 0
        for command in commands():
            cpu_start = time.process_time()
            for _ in range(command["count"]):
                pull.recv()
            reply.send(b".")
            handled += command["count"]
            say(handled=handled, cpu_s=time.process_time() - cpu_start)


def produce(context: zmq.Context[zmq.Socket[bytes]], options: Options) -> None:
    """Sends as many messages as it is told to; its time ends when the consumer has said that it got the last one."""
    with context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as reply:
        push.connect(options["endpoint"])
        reply.connect(options["reply"])
        body = b"x" * options["size"]
        say(ready=True)
        for command in commands():
            cpu_start = time.process_time()
            start = time.perf_counter()
            for _ in range(command["count"]):
                push.send(body)
            reply.recv()
            elapsed = time.perf_counter() - start
            say(seconds=elapsed, cpu_s=time.process_time() - cpu_start)


def respond(context: zmq.Context[zmq.Socket[bytes]], options: Options) -> None:
    """Sends every request back."""
    with context.socket(zmq.REP) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        say(endpoint=f"tcp://127.0.0.1:{port}")
        for command in commands():
            say(ready=True)
            for _ in range(command["count"]):
                socket.send(socket.recv())


def request(context: zmq.Context[zmq.Socket[bytes]], options: Options) -> None:
    """Sends one request after the other and says how long each took, in nanoseconds."""
    with context.socket(zmq.REQ) as socket:
        socket.connect(options["endpoint"])
        body = b"x" * options["size"]
        say(ready=True)
        for command in commands():
            times_ns = []
            for _ in range(command["count"]):
                start = time.perf_counter_ns()
                socket.send(body)
                socket.recv()
                times_ns.append(time.perf_counter_ns() - start)
            say(times_ns=times_ns)


ROLES = {"consume": consume, "produce": produce, "respond": respond, "request": request}


def main() -> None:
    """Runs the role that the command line names."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ROLES[sys.argv[1]](context, json.loads(sys.argv[2]))
    context.destroy(linger=0)


if __name__ == "__main__":
    main()
