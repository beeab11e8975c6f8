"""Scatter, gather: a question to everybody, and an answer made of theirs, within a time.

Problem
    Data is spread over several nodes, so each knows a part of the answer. All are asked at a time. One that is slow or
    dead must not hold up the others, and nobody should take what the others know for the whole answer.
Guarantee
    Every node that serves when the question is asked gives exactly one outcome: its part, or an error that says why
    not (G8), within the survey's time limit. So the answer says which parts are in it and which are missing.
How it fails
    ``--fail`` has one shard hang and another one killed (SIGKILL) while it thinks. The dead one is known at once
    (``PeerLost``), the one that hangs when the time is over (``DeadlineExceeded``), and is told to stop. The answer
    counts what the other shards have, and names both.
What to change
    ``count``, and how parts are put together. Here a shard says which part it holds, so the asker knows what is missing
    although it never heard of the shard. Without that, ``wait_for(router=, count=)`` says how many there must be.
    Where any one node can answer, it is ``request``; where the parts are *work*, it is fan_out_fan_in.py.

Run it: ``python scatter_gather.py [--fail]``
"""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from meshmsg import Context, Node

SHARDS = 5
PATIENCE_S = 3.0
WORDS = ["return", "class", "yield"]


class Shard:
    """A node that holds some of the files, and knows what is in them."""

    def __init__(self, part: int) -> None:
        self.part = part
        self.called_off = 0
        paths = sorted(Path(ast.__file__).parent.glob("*.py"))[part:60:SHARDS]
        self.texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]

    async def count(self, word: str, context: Context) -> dict[str, int]:
        """How often the files of this shard have a word."""
        if context.headers.get("fails") == self.part:
            os.kill(os.getpid(), signal.SIGKILL)
        if context.headers.get("hangs") == self.part:
            try:
                await asyncio.sleep(3600)
            finally:
                self.called_off += 1
        return {"part": self.part, "files": len(self.texts), "count": sum(text.count(word) for text in self.texts)}

    async def given_up(self) -> int:
        """How many questions were called off here."""
        return self.called_off


def hold(mesh: str, part: int) -> None:
    """A shard: answers until it is told to stop (SIGTERM)."""
    node = Node(f"shard-{part}", mesh=mesh)
    node.router("files").offer(Shard(part))
    node.run()


async def ask(mesh: str, fail: bool) -> None:
    """Asks all shards, one question after the other."""
    async with Node("asker", mesh=mesh) as node:
        files = node.dealer("files")
        await node.wait_for(router="files", count=SHARDS, timeout=30)
        for word in WORDS:
            headers = {"fails": 1, "hangs": 3} if fail and word == WORDS[-1] else None
            parts: dict[int, dict[str, int]] = {}
            excuses: list[str] = []
            # Answers come in the order in which they are ready; a program may stop when it has enough.
            async for answer in files.survey("count", word, timeout=PATIENCE_S, headers=headers):
                if answer.error is None:
                    parts[answer.value["part"]] = answer.value
                else:
                    excuses.append(f"{answer.peer}: {type(answer.error).__name__}")
            total = sum(part["count"] for part in parts.values())
            missing = sorted(set(range(SHARDS)) - set(parts))
            print(f"{word}: {total} in {sum(part['files'] for part in parts.values())} files; missing parts: {missing}")
            for excuse in excuses:
                print(f"  {excuse}")
        if fail:
            print(f"shard-3 called off {await files.given_up(peer='shard-3')} question")


def main(fail: bool) -> None:
    """Starts the shards as processes of their own; all find each other through mDNS."""
    mesh = f"scatter-gather-{os.getpid()}"
    shards = [subprocess.Popen([sys.executable, __file__, "shard", mesh, str(part)]) for part in range(SHARDS)]
    try:
        asyncio.run(ask(mesh, fail))
    finally:
        for shard in shards:
            shard.terminate()
        for shard in shards:
            shard.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["shard", mesh, part]:
            hold(mesh, int(part))
        case arguments:
            main(fail="--fail" in arguments)
