"""The demo's processes: started, killed, and never left behind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import deque
from typing import Any

from meshmsg.cli.demo.child import Orders, start_command

END_WITHIN_S = 3.0
STDERR_LINES = 15


class Child:
    """One process. Its standard input is its leash: when that closes, it leaves."""

    def __init__(self, role: str, orders: Orders, process: asyncio.subprocess.Process) -> None:
        self.role = role
        self.name = orders["name"]
        self.process = process
        self.killed = False
        self.complaints: deque[str] = deque(maxlen=STDERR_LINES)
        self._listening = asyncio.ensure_future(self._listen())

    @classmethod
    async def start(cls, role: str, orders: Orders) -> Child:
        """Starts it, in a group of its own: a Ctrl-C at the terminal is for the parent only."""
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        process = await asyncio.create_subprocess_exec(
            *start_command(role),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **options,
        )
        child = cls(role, orders, process)
        assert process.stdin is not None
        process.stdin.write(json.dumps(orders).encode() + b"\n")
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def go(self) -> None:
        """Tells it to begin."""
        if self.process.stdin is not None and not self.process.stdin.is_closing():
            self.process.stdin.write(b"go\n")

    def kill(self) -> None:
        """SIGKILL; nothing in it runs any more."""
        self.killed = True
        if self.process.returncode is None:
            self.process.kill()

    async def wait(self) -> int:
        """Waits for its end; the exit code, negative for a signal."""
        return await self.process.wait()

    async def end(self) -> None:
        """Lets go of the leash, waits a little, then kills what is left."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            async with asyncio.timeout(END_WITHIN_S):
                await self.process.wait()
        except TimeoutError:
            self.kill()
            await self.process.wait()
        await self._listening

    async def _listen(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.complaints.append(line.decode(errors="replace").rstrip())


async def end_all(children: list[Child]) -> None:
    """Ends all of them side by side, by their process handles and nothing else."""
    await asyncio.gather(*(child.end() for child in children), return_exceptions=True)
