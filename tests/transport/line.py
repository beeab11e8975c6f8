"""A slow line between two nodes, made of a TCP proxy."""

from __future__ import annotations

import asyncio


class SlowLine:
    """Something between two nodes that passes on so many bytes a second, and all of them on the way back."""

    def __init__(self, endpoint: str, bytes_per_second: int) -> None:
        self.port = int(endpoint.rpartition(":")[2])
        self.bytes_per_second = bytes_per_second
        self.tasks: list[asyncio.Task[None]] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def open(self) -> str:
        self.server = await asyncio.start_server(self._connect, "127.0.0.1", 0, limit=2**16)
        return f"tcp://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers = [writer, there[1]]
        self.tasks = [
            asyncio.create_task(self._pass(reader, there[1], self.bytes_per_second)),
            asyncio.create_task(self._pass(there[0], writer, 2**40)),
        ]

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: int) -> None:
        try:
            while data := await reader.read(2**14):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(len(data) / rate)
        except ConnectionError:
            pass
        writer.close()

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.server.close()
        await self.server.wait_closed()
