"""What the baseline's processes run: bare pyzmq, blocking, bytes, no acks, no repairs.

``python -m meshmsg.cli.bench_baseline ROLE OPTIONS``. With ``bench_request_baseline`` the only file outside
``transport`` that imports zmq: a baseline that went through meshmsg's own transport would not be one.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import cycle, islice
from typing import Any

import zmq

from meshmsg.cli.bench_processes import commands, say

Options = dict[str, Any]

HIGH_WATER_BYTES = 64 * 10**6
TIME_BYTES = 8


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


# -- one to many: pub-sub --------------------------------------------------------------------------------------


def publish(context: zmq.Context[zmq.Socket[bytes]], options: Options) -> None:
    """Publishes as many messages as it is told to. An XPUB is a PUB that tells who subscribes; both send alike."""
    with context.socket(zmq.XPUB) as pub:
        pub.setsockopt(zmq.XPUB_VERBOSE, 1)
        pub.setsockopt(zmq.XPUB_NODROP, 1)  # as libzmq's own default loses messages here
        pub.setsockopt(zmq.SNDHWM, high_water(options["size"]))
        port = pub.bind_to_random_port("tcp://127.0.0.1")
        messages = [make_frames(topic, options) for topic in options["topics"]]
        say(endpoint=f"tcp://127.0.0.1:{port}")
        for command in commands():
            if "subscribers" in command:
                for _ in range(command["subscribers"]):
                    pub.recv()
                say(found=command["subscribers"])
            elif "count" in command:
                began = time.monotonic()
                publish_all(pub, messages, command["count"])
                say(began=began)
            else:
                say(cpu_s=time.process_time())


def publish_all(pub: zmq.Socket[bytes], messages: list[list[bytes]], count: int) -> None:
    """So many messages, topic after topic in turns."""
    if len(messages[0]) == 1:
        for (message,) in islice(cycle(messages), count):
            pub.send(message)
    else:
        for frames in islice(cycle(messages), count):
            pub.send_multipart(frames)


def follow(context: zmq.Context[zmq.Socket[bytes]], options: Options) -> None:
    """Receives as many messages as it is told to."""
    with context.socket(zmq.SUB) as sub:
        sub.setsockopt(zmq.RCVHWM, high_water(options["size"]))
        sub.subscribe(options["prefix"].encode())
        sub.connect(options["endpoint"])
        receive = sub.recv if options["frames"] == 1 else sub.recv_multipart
        handled = 0
        say(ready=True)
        for command in commands():
            cpu_start = time.process_time()
            for _ in range(command["count"]):
                receive()
            ended = time.monotonic()
            handled += command["count"]
            say(ended=ended, handled=handled, gaps=0, cpu_s=time.process_time() - cpu_start)


def pace(context: zmq.Context[zmq.Socket[bytes]], options: Options) -> None:
    """Publishes small messages at their times, and large ones of another topic in between if it is told to."""
    with context.socket(zmq.XPUB) as pub:
        port = pub.bind_to_random_port("tcp://127.0.0.1")
        large = b"large " + b"x" * options["large"]
        padding = b"x" * (options["size"] - TIME_BYTES)
        say(endpoint=f"tcp://127.0.0.1:{port}")
        pub.recv()
        pub.recv()
        say(found=1)
        for command in commands():
            start = time.monotonic()
            interval_s, every = options["interval_s"], command["every"]
            for number in range(command["count"]):
                due = start + number * interval_s
                time.sleep(max(0.0, due - time.monotonic()))
                if every and number % every == 0:
                    pub.send(large)
                pub.send(b"small " + int(due * 1e9).to_bytes(TIME_BYTES, "big") + padding)


def clock(context: zmq.Context[zmq.Socket[bytes]], options: Options) -> None:
    """Says how long after its time each small message came, in nanoseconds."""
    with context.socket(zmq.SUB) as sub:
        sub.subscribe(b"large")
        sub.subscribe(b"small")
        sub.connect(options["endpoint"])
        say(ready=True)
        for command in commands():
            times_ns: list[int] = []
            while len(times_ns) < command["count"]:
                message = sub.recv()
                if message.startswith(b"small"):
                    times_ns.append(time.monotonic_ns() - int.from_bytes(message[6 : 6 + TIME_BYTES], "big"))
            say(times_ns=times_ns)


def make_frames(topic: str, options: Options) -> list[bytes]:
    """A message, made once. The topic begins its first frame, which is faster than a frame of its own."""
    frames = options["frames"]
    sizes = [options["size"] // frames] * frames
    sizes[-1] += options["size"] - sum(sizes)
    first, *rest = (b"x" * size for size in sizes)
    return [topic.encode() + b" " + first, *rest]


def high_water(size: int) -> int:
    """Messages of a size that may wait in one socket: more than a round has, but for large ones."""
    return max(2, HIGH_WATER_BYTES // size)


ROLES = {
    "consume": consume,
    "produce": produce,
    "respond": respond,
    "request": request,
    "publish": publish,
    "follow": follow,
    "pace": pace,
    "clock": clock,
}


def main() -> None:
    """Runs the role that the command line names."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ROLES[sys.argv[1]](context, json.loads(sys.argv[2]))
    context.destroy(linger=0)


if __name__ == "__main__":
    main()
