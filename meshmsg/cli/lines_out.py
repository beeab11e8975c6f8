"""Lines to standard output, of which one knows that somebody has them."""

from __future__ import annotations

import array
import asyncio
import os
import select
import stat
import sys

from meshmsg.cli.running import Stop

# POSIX: a pipe that polls as writable takes this many bytes without blocking.
PIPE_BYTES = 4096
EAGER_LOOKS = 20  # how often a pipe is looked at in turns of the loop before it is looked at less often
SHORTEST_PAUSE_S = 0.0005
LONGEST_PAUSE_S = 0.01
# What a slow reader gets to take the last line after Ctrl-C.
LAST_LINE_S = 1.0


class OutputClosed(Exception):
    """Whoever read our output is gone, or was too slow at the end, and did not take this line."""


class LinesOut:
    """Writes lines to a file descriptor; ``write`` returns when the line is out.

    For a file or a terminal that is when the system has it. For a pipe it is when the reader has taken it from the
    pipe (on Linux, which tells), so ``meshmsg pull jobs | head -1`` keeps exactly the one line that ``head`` read:
    what is in a pipe that nobody reads any more is lost, and must not be acked. When the reader leaves, ``stop`` is
    requested, also while nothing is written.
    """

    def __init__(self, stop: Stop, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._stop = stop
        self._closed = False
        self._watched = False
        try:
            self._is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode) and sys.platform != "win32"
        except OSError:
            self._is_pipe = False

    def start(self) -> None:
        """Begins to watch for the reader's end."""
        if self._is_pipe:
            # A pipe's writing end becomes readable, in the selector's eyes, when the reading end is closed.
            try:
                asyncio.get_running_loop().add_reader(self._descriptor, self._reader_left)
                self._watched = True
            except (OSError, NotImplementedError):
                pass

    def close(self) -> None:
        """Stops watching."""
        if self._watched:
            self._watched = False
            asyncio.get_running_loop().remove_reader(self._descriptor)

    async def write(self, line: bytes) -> None:
        """Writes one line and waits until it is out; raises ``OutputClosed`` if nobody takes it."""
        data = memoryview(line + b"\n")
        try:
            while data:
                if self._is_pipe:
                    await self._until_writable()
                    written = os.write(self._descriptor, data[:PIPE_BYTES])
                else:
                    written = os.write(self._descriptor, data)
                data = data[written:]
        except BrokenPipeError:
            self._reader_left()
            raise OutputClosed from None
        if self._is_pipe:
            await self._until_read()

    def _reader_left(self) -> None:
        self.close()
        self._closed = True
        self._stop.request()

    async def _until_writable(self) -> None:
        if select.select([], [self._descriptor], [], 0)[1]:
            return
        loop = asyncio.get_running_loop()
        writable: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self._descriptor, _finish, writable)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({writable, stopping}, return_when=asyncio.FIRST_COMPLETED)
            async with asyncio.timeout(LAST_LINE_S if stopping.done() else None):
                await writable
        except TimeoutError:
            raise OutputClosed from None
        finally:
            stopping.cancel()
            loop.remove_writer(self._descriptor)

    async def _until_read(self) -> None:
        """Nothing tells when a pipe has been emptied, so this looks; a busy reader is looked at eagerly."""
        looks, pause_s, waited_s = 0, 0.0, 0.0
        while self._unread():
            if self._closed or waited_s > LAST_LINE_S:
                raise OutputClosed
            await asyncio.sleep(pause_s)
            looks += 1
            if looks > EAGER_LOOKS:
                pause_s = min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, pause_s * 1.5))
            if self._stop.requested:
                waited_s += pause_s

    def _unread(self) -> int:
        if sys.platform != "linux":  # elsewhere a pipe's writing end does not tell
            return 0
        import fcntl
        import termios

        count = array.array("i", [0])
        try:
            fcntl.ioctl(self._descriptor, termios.FIONREAD, count, True)
        except OSError:
            return 0
        return count[0]


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
