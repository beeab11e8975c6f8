"""The processes of what meshmsg is compared with: ``python rivals.py LIBRARY-ROLE OPTIONS``.

Each library in the plain way its documentation shows, with buffers of 1000 messages where it has such a number
(that is libzmq's default). All of them speak TCP on 127.0.0.1 only. As in ``meshmsg.cli.bench_baseline``, the
producer's time ends when the consumer has answered that it got the last message.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from meshmsg.cli.bench_processes import commands, commands_in_loop, say
from meshmsg.cli.bench_zenoh import open_session

BUFFER_MESSAGES = 1000
TIMEOUT_S = 60.0

Options = dict[str, Any]


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago, for libraries that do not tell which one they chose."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Handled:
    """Counts what a consumer got, and says so together with the processor time it took."""

    def __init__(self) -> None:
        self.count = 0
        self._cpu_start = 0.0

    def begin(self) -> None:
        """A round begins."""
        self._cpu_start = time.process_time()

    def end(self, count: int) -> None:
        """A round of so many messages is over."""
        self.count += count
        say(handled=self.count, cpu_s=time.process_time() - self._cpu_start)


class Stopwatch:
    """Times a producer's round, and says how long it took."""

    def __init__(self) -> None:
        self._cpu_start = time.process_time()
        self._start = time.perf_counter()

    def end(self) -> None:
        """The consumer has answered."""
        elapsed = time.perf_counter() - self._start
        say(seconds=elapsed, cpu_s=time.process_time() - self._cpu_start)


# -- zmq.asyncio: PUSH and PULL, awaited -----------------------------------------------------------------------


async def _consume_zmq_asyncio() -> None:
    import zmq
    import zmq.asyncio

    with zmq.asyncio.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as reply:
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        reply_port = reply.bind_to_random_port("tcp://127.0.0.1")
        say(endpoint=f"tcp://127.0.0.1:{port}", reply=f"tcp://127.0.0.1:{reply_port}")
        handled = Handled()
        async for command in commands_in_loop():
            handled.begin()
            for _ in range(command["count"]):
                await pull.recv()
            await reply.send(b".")
            handled.end(command["count"])


async def _produce_zmq_asyncio(options: Options) -> None:
    import zmq
    import zmq.asyncio

    with zmq.asyncio.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as reply:
        push.connect(options["endpoint"])
        reply.connect(options["reply"])
        body = b"x" * options["size"]
        say(ready=True)
        async for command in commands_in_loop():
            watch = Stopwatch()
            for _ in range(command["count"]):
                await push.send(body)
            await reply.recv()
            watch.end()


def consume_zmq_asyncio(options: Options) -> None:
    """zmq.asyncio's consumer."""
    asyncio.run(_consume_zmq_asyncio())


def produce_zmq_asyncio(options: Options) -> None:
    """zmq.asyncio's producer."""
    asyncio.run(_produce_zmq_asyncio(options))


# -- pynng: nanomsg-next-generation's push and pull ------------------------------------------------------------


def consume_pynng(options: Options) -> None:
    """pynng's consumer."""
    import pynng

    endpoint, reply_endpoint = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    with (
        pynng.Pull0(listen=endpoint, recv_buffer_size=BUFFER_MESSAGES) as pull,
        pynng.Push0(listen=reply_endpoint) as reply,
    ):
        say(endpoint=endpoint, reply=reply_endpoint)
        handled = Handled()
        for command in commands():
            handled.begin()
            for _ in range(command["count"]):
                pull.recv()
            reply.send(b".")
            handled.end(command["count"])


def produce_pynng(options: Options) -> None:
    """pynng's producer."""
    import pynng

    with (
        pynng.Push0(dial=options["endpoint"], send_buffer_size=BUFFER_MESSAGES) as push,
        pynng.Pull0(dial=options["reply"]) as reply,
    ):
        body = b"x" * options["size"]
        say(ready=True)
        for command in commands():
            watch = Stopwatch()
            for _ in range(command["count"]):
                push.send(body)
            reply.recv()
            watch.end()


# -- zenoh: a publisher and a subscriber, peer to peer ---------------------------------------------------------


def consume_zenoh(options: Options) -> None:
    """zenoh's consumer: a callback, its fastest way."""
    import zenoh

    endpoint = f"tcp/127.0.0.1:{free_port()}"
    received = 0
    wanted = 0
    complete = threading.Event()

    def on_sample(sample: Any) -> None:
        nonlocal received
        received += 1
        if received == wanted:
            complete.set()

    with open_session(zenoh, listen=[endpoint], connect=[]) as session:
        session.declare_subscriber("bench/work", on_sample)
        reply = session.declare_publisher("bench/reply")
        say(endpoint=endpoint)
        handled = Handled()
        for command in commands():
            handled.begin()
            wanted += command["count"]
            if received < wanted:
                complete.wait(TIMEOUT_S)
            complete.clear()
            reply.put(b".")
            handled.end(command["count"] - (wanted - received))


def produce_zenoh(options: Options) -> None:
    """zenoh's producer: it waits when buffers are full, where zenoh's own default is to drop."""
    import zenoh

    answered = threading.Event()
    with open_session(zenoh, listen=[], connect=[options["endpoint"]]) as session:
        session.declare_subscriber("bench/reply", lambda sample: answered.set())
        publisher = session.declare_publisher(
            "bench/work",
            congestion_control=zenoh.CongestionControl.BLOCK,
            reliability=zenoh.Reliability.RELIABLE,
        )
        while not publisher.matching_status.matching:
            threading.Event().wait(0.01)
        body = b"x" * options["size"]
        say(ready=True)
        for command in commands():
            answered.clear()
            watch = Stopwatch()
            for _ in range(command["count"]):
                publisher.put(body)
            answered.wait(TIMEOUT_S)
            watch.end()


ROLES: dict[str, Callable[[Options], None]] = {
    "zmq.asyncio consume": consume_zmq_asyncio,
    "zmq.asyncio produce": produce_zmq_asyncio,
    "pynng consume": consume_pynng,
    "pynng produce": produce_pynng,
    "zenoh consume": consume_zenoh,
    "zenoh produce": produce_zenoh,
}


if __name__ == "__main__":
    ROLES[sys.argv[1]](json.loads(sys.argv[2]))
