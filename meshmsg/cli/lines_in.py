"""Lines of standard input, without ever blocking the loop or changing the terminal."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator

CHUNK_BYTES = 64 * 1024


class LinesIn:
    """Lines of a file descriptor, without their ends; iterate once.

    A daemon thread reads: the loop cannot watch regular files, and non-blocking reads would be non-blocking for
    every program on the same terminal. It reads one chunk ahead, so a slow consumer slows the writer.
    """

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._taken = threading.Semaphore(1)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), name="meshmsg-stdin", daemon=True).start()
        rest = b""
        while chunk := await self._chunks.get():
            self._taken.release()
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                yield line.removesuffix(b"\r")
        if rest:
            yield rest

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        chunk = b"?"
        while chunk:
            self._taken.acquire()
            try:
                chunk = os.read(self._descriptor, CHUNK_BYTES)
            except OSError:  # closed, as under some supervisors
                chunk = b""
            try:
                loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
            except RuntimeError:  # the loop is closed: nobody wants it any more
                return
