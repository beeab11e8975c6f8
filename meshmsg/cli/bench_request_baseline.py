"""The baseline of ``meshmsg bench request``: DEALER and ROUTER of ``zmq.asyncio``, as one writes them oneself.

``python -m meshmsg.cli.bench_request_baseline ROLE OPTIONS``. A future for each request, found by its number; bodies in
MessagePack. No deadline, no retry, no checks, and nobody notices when the other side is gone.
"""

from __future__ import annotations

import asyncio
import time
from itertools import count as numbers
from typing import Any

import msgpack
import zmq
import zmq.asyncio

from meshmsg.cli.bench_ours import make_body, run_role
from meshmsg.cli.bench_processes import commands_in_loop, say
from meshmsg.cli.bench_request_ours import obey

ONE, MANY, END = b"1", b"*", b"."

Options = dict[str, Any]
Socket = zmq.asyncio.Socket


class Server:
    """A ROUTER that gives every body back, or many times as a stream."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._streams: set[asyncio.Task[None]] = set()
        self.handled = 0

    async def run(self) -> None:
        """Serves until it is cancelled. A plain method runs right here, a stream in a task of its own."""
        while True:
            peer, number, kind, packed = await self._socket.recv_multipart()
            arguments = msgpack.unpackb(packed)
            if kind == ONE:
                result = await self._echo(*arguments)
                await self._socket.send_multipart([peer, number, ONE, msgpack.packb(result)])
            else:
                task = asyncio.create_task(self._repeat(peer, number, *arguments))
                self._streams.add(task)
                task.add_done_callback(self._streams.discard)

    async def _echo(self, body: Any) -> Any:
        self.handled += 1
        return body

    async def _repeat(self, peer: bytes, number: bytes, body: Any, count: int) -> None:
        for _ in range(count):
            self.handled += 1
            await self._socket.send_multipart([peer, number, MANY, msgpack.packb(body)])
        await self._socket.send_multipart([peer, number, END, b""])


async def serve(options: Options) -> None:
    """The server's process."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # waits for room, instead of dropping what does not fit
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    server = Server(socket)
    running = asyncio.create_task(server.run())
    say(endpoint=f"tcp://127.0.0.1:{port}")
    async for _ in commands_in_loop():
        say(cpu_s=time.process_time(), handled=server.handled)
    running.cancel()
    context.destroy(linger=0)


class Client:
    """A DEALER whose answers find the requests that wait for them."""

    def __init__(self, socket: Socket, body: Any) -> None:
        self._socket = socket
        self._body = body
        self._numbers = numbers()
        self._futures: dict[bytes, asyncio.Future[Any]] = {}
        self._streams: dict[bytes, asyncio.Queue[Any]] = {}

    async def run(self) -> None:
        """Hands out what arrives, until it is cancelled."""
        while True:
            number, kind, packed = await self._socket.recv_multipart()
            if kind == ONE:
                self._futures.pop(number).set_result(msgpack.unpackb(packed))
            elif kind == MANY:
                self._streams[number].put_nowait(msgpack.unpackb(packed))
            else:
                self._streams[number].put_nowait(None)

    async def request(self) -> Any:
        """One request and its answer."""
        number = next(self._numbers).to_bytes(8, "big")
        future = self._futures[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_multipart([number, ONE, msgpack.packb((self._body,))])
        return await future

    async def stream(self, count: int) -> int:
        """Asks for a stream, and counts its items."""
        number = next(self._numbers).to_bytes(8, "big")
        items = self._streams[number] = asyncio.Queue()
        await self._socket.send_multipart([number, MANY, msgpack.packb((self._body, count))])
        received = 0
        while (item := await items.get()) is not None:
            received += item["valid"]
        del self._streams[number]
        return received


async def ask(options: Options) -> None:
    """The client's process."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(options["endpoint"])
    client = Client(socket, make_body(options["size"]))
    running = asyncio.create_task(client.run())
    await obey(client.request, client.stream, as_stream=options["stream"])
    running.cancel()
    context.destroy(linger=0)


ROLES = {"serve": serve, "ask": ask}


if __name__ == "__main__":
    run_role(ROLES)
