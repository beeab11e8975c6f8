"""Neighbours that mean no good, or are badly broken: what they write to a node's port, before and after HELLO."""

from __future__ import annotations

import random
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import zmq

from meshmsg.transport.segments import split_frame
from meshmsg.wire import frames
from tests.processes.crew import DEADLINE_S

# The greeting of ZMTP 3.0 without its end, and something else that people connect to open ports with.
HALF_A_GREETING = b"\xff" + b"\0" * 7 + b"\x01\x7f\x03\x00NULL"
HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextmanager
def connections(endpoint: str) -> Iterator[None]:
    """TCP clients that write garbage, or stop in the middle of the handshake, and stay."""
    port = int(endpoint.rpartition(":")[2])
    noise = random.Random(1).randbytes(65536)
    clients = []
    try:
        for data in (b"", HTTP, noise, HALF_A_GREETING, b"\xff" * 65536):
            client = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
            clients.append(client)
            try:
                client.sendall(data)
            except ConnectionError:  # thrown out before it had said everything
                pass
        yield
    finally:
        for client in clients:
            client.close()


def malformed(mesh: str) -> dict[str, list[bytes]]:
    """Messages that break the protocol, by what is wrong with them."""
    hello = introduction(mesh, endpoints=())
    wrong: list[Any] = [None, -1, 2**63, [[]], {"a": {"b": 1}}, "\0" * 70_000]
    known = hello._asdict()
    noise = random.Random(2)
    return {
        **{f"noise {size}": [noise.randbytes(size)] for size in (1, 2, 3, 10, 100, 10_000)},
        "two parts of noise": [noise.randbytes(20), noise.randbytes(20)],
        "an empty part": [b""],
        "a hundred parts": [b"\x91\x01"] * 100,
        "deep nesting": [b"\x91" * 100_000 + b"\xc0"],
        "an array of 4 billion": [b"\xdd\xff\xff\xff\xff"],
        "a string of 4 GB": [b"\x92\x01\xdb\xff\xff\xff\xff"],
        "a giant header": [pack([frames.BYE, "x" * (5 * 2**20)])],
        "no kind": [pack({"kind": "HELLO"})],
        "another version": frames.encode(hello._replace(version=99)),
        "no version": [pack([frames.HELLO, {}])],
        "no fields": [pack([frames.HELLO, {"version": 1}])],
        **{
            f"{field} is {value!r}": [pack([frames.HELLO, {**known, field: value}])]
            for field in known
            for value in wrong
            if value is not None or field not in ("expects", "answers")
        },
    }


def pack(value: object) -> bytes:
    """Anything as MessagePack."""
    packed: bytes = msgpack.Packer().pack(value)
    return packed


def introduction(mesh: str, endpoints: tuple[str, ...], **fields: Any) -> frames.Hello:
    """A correct HELLO of a node that nobody knows."""
    hello = frames.Hello(uuid.uuid4().hex, 1, "stranger", mesh, endpoints, {}, 1, 1, None, None)
    return hello._replace(**fields)


class Stranger:
    """Speaks ZeroMQ, and whatever the test wants over it; with an inbox of its own, so that it can become a peer."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox = self._context.socket(zmq.ROUTER)
        self._inbox.linger = 0
        self._inbox.rcvtimeo = round(DEADLINE_S * 1000)
        self.port = self._inbox.bind_to_random_port("tcp://127.0.0.1")
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.routing_id = b"stranger-" + uuid.uuid4().bytes
        self._dealer.linger = 2000
        self._dealer.sndtimeo = round(DEADLINE_S * 1000)
        self._dealer.connect(endpoint)

    def send(self, parts: list[bytes]) -> None:
        """Sends one message, cut into segments as the transport does."""
        segments = [segment for part in parts for segment in (split_frame(part) if len(part) > 1000 else [part])]
        self._dealer.send_multipart(segments)

    def say(self, frame: frames.Frame, bodies: tuple[bytes, ...] = ()) -> None:
        """Sends one correct frame."""
        self.send(frames.encode(frame, bodies))

    def hear(self, accepts: Callable[[frames.Frame], bool]) -> frames.Frame:
        """Waits for a frame that is accepted; passes over others."""
        while True:
            _, *parts = self._inbox.recv_multipart()
            frame = frames.decode(parts)
            if frame is not None and accepts(frame):
                return frame

    def become_a_peer(self, mesh: str, offers: dict[str, dict[str, dict[str, object]]]) -> None:
        """Introduces itself, and answers the introduction that comes back: both directions are proven."""
        hello = introduction(mesh, (f"tcp://127.0.0.1:{self.port}",), offers=offers)
        self.say(hello)
        theirs = self.hear(lambda frame: isinstance(frame, frames.Hello))
        assert isinstance(theirs, frames.Hello)
        self.say(hello._replace(answers=theirs.token))

    def close(self) -> None:
        """Hangs up, after what was sent has left."""
        self._dealer.close()
        self._inbox.close()
        self._context.term()

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
