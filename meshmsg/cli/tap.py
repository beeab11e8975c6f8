"""``meshmsg tap``: what goes through topics, watched from the side."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Literal

import click

from meshmsg import Message, NodeClosed, WaitTimeout
from meshmsg.cli import exits
from meshmsg.cli.bodies import describe_publication, escape_invisible, to_json, to_single_line
from meshmsg.cli.lines_out import LinesOut, OutputClosed
from meshmsg.cli.numbers import NOT_NEGATIVE
from meshmsg.cli.pull import close_on
from meshmsg.cli.running import Stop, complain, run
from meshmsg.cli.session import Session, session_options
from meshmsg.message import Gap
from meshmsg.sockets.pub_sub import Sub

Replay = Literal["none", "latest", "history"]

MAX_WAITING = 10_000  # lines; a tap that is read too slowly skips, so that no publisher ever waits for it
LINES = 500  # that are written at once


class Tape:
    """Lines between the subscription, which is always emptied at once, and an output that may be slow."""

    def __init__(self, as_json: bool, most: int | None) -> None:
        self.as_json = as_json
        self.left = most  # messages that are wanted yet
        self.messages = 0
        self.ended = False
        self.changed = asyncio.Event()
        self._lines: deque[bytes] = deque()
        self._skipped = 0

    def add_message(self, message: Message) -> None:
        """A message as a line."""
        if self.left == 0:
            return
        self.messages += 1
        if self.left is not None:
            self.left -= 1
        if self.as_json:
            self._add(to_json(describe_publication(message)).encode())
        else:
            number = message.id.rpartition("/")[2]
            start = f"{escape_invisible(f'{message.topic}')}  {escape_invisible(message.sender)}  #{number}  "
            self._add(start.encode() + to_single_line(message.body))

    def add_gap(self, gap: Gap) -> None:
        """A gap as a line."""
        if self.as_json:
            lost = {"missed": gap.missed, "start": gap.start, "stop": gap.stop}
            self._add(to_json({"topic": gap.topic, "sender": gap.publisher, "gap": lost}).encode())
        else:
            numbers = f"#{gap.start} to #{gap.stop - 1}"
            start = f"{escape_invisible(gap.topic)}  {escape_invisible(gap.publisher)}"
            self._add(f"{start}  gap: {gap.missed} are lost, {numbers}".encode())

    def _add(self, line: bytes) -> None:
        if len(self._lines) >= MAX_WAITING:
            self._lines.popleft()
            self._skipped += 1
        self._lines.append(line)
        self.changed.set()

    def end(self) -> None:
        """Nothing more comes."""
        self.ended = True
        self.changed.set()

    def read(self) -> list[bytes]:
        """What waits, up to ``LINES``, and first how much was skipped."""
        lines: list[bytes] = []
        if self._skipped:
            skipped, self._skipped = self._skipped, 0
            text = to_json({"skipped": skipped}) if self.as_json else f"-- {skipped} lines skipped: read too slowly --"
            lines.append(text.encode())
        while self._lines and len(lines) < LINES:
            lines.append(self._lines.popleft())
        return lines


async def record(sub: Sub, tape: Tape, timeout_s: float | None) -> None:
    """Takes everything at once, whatever becomes of it."""
    try:
        while tape.left != 0:
            tape.add_message(await sub.get(timeout_s))
            while sub.unsettled:
                tape.add_message(await sub.get(0))
            await asyncio.sleep(0)
    except (NodeClosed, WaitTimeout):
        pass
    finally:
        tape.end()


async def play(tape: Tape, output: LinesOut) -> None:
    """Writes lines as fast as they are read."""
    while True:
        tape.changed.clear()
        lines = tape.read()
        if lines:
            await output.write(b"\n".join(lines))
        elif tape.ended:
            return
        else:
            await tape.changed.wait()


async def watch(sub: Sub, tape: Tape, timeout_s: float | None, stop: Stop) -> int:
    """Prints until there is enough, nothing comes, the reader leaves, or somebody says stop."""
    output = LinesOut(stop)
    output.start()
    closing = asyncio.ensure_future(close_on(stop, sub))
    recording = asyncio.ensure_future(record(sub, tape, timeout_s))
    try:
        await play(tape, output)
    except OutputClosed:
        pass
    finally:
        closing.cancel()
        recording.cancel()
        output.close()
    if not tape.messages and not stop.requested and timeout_s is not None:
        return complain(f"no message of {sub.pattern!r} came within {timeout_s:g} s", exits.NOTHING)
    if tape.left:
        return exits.INTERRUPTED if stop.by_signal else exits.NOTHING
    return exits.OK


@click.command("tap")
@click.argument("pattern")
@click.option("-n", "--count", type=click.IntRange(min=1), help="Leave after this many messages.")
@click.option("--timeout", type=NOT_NEGATIVE, metavar="SECONDS", help="Leave after this long without one.")
@click.option("--replay", type=click.Choice(["none", "latest", "history"]), default="none", show_default=True,
              help="What of the past to begin with, as far as publishers keep it.")  # fmt: skip
@session_options(json_help="One JSON object a message, gap or skip.")
def tap(session: Session, pattern: str, count: int | None, timeout: float | None, replay: Replay) -> None:
    """Watch topics from the side: every message with its number, every gap.

    A line has the topic, the publisher, the message's number among those of this publisher and topic, and the body.
    A tap takes no work from a group, and a publisher with block=True does not wait for its output: what is read too
    slowly is skipped, and counted. Publishers that count subscribers do count a tap.

    \b
    Examples:
      meshmsg tap '**'
      meshmsg tap 'orders.**' --json | jq 'select(.gap)'
    """

    async def serve(stop: Stop) -> int:
        async with session.make_node("tap") as node:
            tape = Tape(session.json, count)
            sub = node.sub(pattern, replay=replay, on_gap=tape.add_gap)
            return await watch(sub, tape, timeout, stop)

    run(serve)
