"""``meshmsg push``: messages to a queue, from arguments or standard input."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from meshmsg import DeadLetter, Ledger, MeshError, Retry, WaitTimeout
from meshmsg.cli import exits
from meshmsg.cli.bodies import escape_control, parse_json, parse_text, to_json
from meshmsg.cli.lines_in import LinesIn
from meshmsg.cli.numbers import NOT_NEGATIVE, POSITIVE
from meshmsg.cli.running import Stop, complain, run, tell
from meshmsg.cli.session import Session, session_options
from meshmsg.sockets.pub_sub import Pub
from meshmsg.sockets.push_pull import Push

# After this long without an end, people are told what is waited for.
NOTICE_AFTER_S = 2.0
LOOK_EVERY_S = 0.02
MAX_LETTERS_SHOWN = 20
SECONDS = re.compile(r"\b(\d+\.\d{4,}) s\b")


class BadBody(Exception):
    """A line that is no JSON, or a body that cannot be sent."""


@dataclass(slots=True)
class Job:
    """What to send and how; afterwards, how it went."""

    bodies: Sequence[str]
    as_json: bool
    count: int | None
    rate: float | None
    details: dict[str, Any]
    timeout_s: float | None
    wait: bool
    letters: list[DeadLetter] = field(default_factory=list)
    bad: BadBody | None = None
    sent: int = 0

    async def read(self) -> AsyncIterator[Any]:
        """The bodies: arguments, in turns if there must be more of them, or lines of standard input."""
        number = 0
        if self.bodies:
            again = itertools.cycle(self.bodies) if self.count is not None else iter(self.bodies)
            for text in itertools.islice(again, self.count):
                number += 1
                yield self._parse(text.encode(errors="surrogateescape"), f"body {number}")
            return
        async for line in LinesIn():
            number += 1
            if not self.as_json or line.strip():
                yield self._parse(line, f"line {number}")
            if self.count is not None and number >= self.count:
                return

    def _parse(self, line: bytes, where: str) -> Any:
        if not self.as_json:
            return parse_text(line)
        try:
            return parse_json(line)
        except (ValueError, RecursionError) as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise BadBody(f"{where} is not JSON: {why}; without --json lines are sent as text") from None


async def feed(job: Job, push: Push | Pub) -> None:
    """Sends everything, at the rate that was asked for."""
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    try:
        async for body in job.read():
            if job.rate:
                await asyncio.sleep(max(0.0, started_at + job.sent / job.rate - loop.time()))
            async with asyncio.timeout(job.timeout_s):
                await push.send(body, **job.details)
            job.sent += 1
    except BadBody as error:
        job.bad = error
    except TimeoutError:  # nothing moves, and there is no room: the report will say so
        pass
    except MeshError as error:  # too large, nested too deep, no valid text
        job.bad = BadBody(f"message {job.sent + 1}: {error}")


async def settle(job: Job, push: Push) -> None:
    """Waits until everything is processed or dead, or without ``--wait`` until consumers have it all."""
    loop = asyncio.get_running_loop()
    deadline = None if job.timeout_s is None else loop.time() + job.timeout_s
    notice_at: float | None = loop.time() + NOTICE_AFTER_S
    while deadline is None or loop.time() < deadline:
        ends = [when for when in (deadline, notice_at) if when is not None]
        try:
            if not job.wait:
                await _until_handed_over(push, min(ends, default=None))
            else:
                await push.flush(timeout=max(0.0, min(ends) - loop.time()) if ends else None)
            return
        except WaitTimeout as error:
            if notice_at is not None and loop.time() >= notice_at:
                notice_at = None
                tell(f"meshmsg: waiting: {round_seconds(str(error))}")


def round_seconds(text: str) -> str:
    """A text with seconds as people write them; the library tells what it was given, which was worked out here.

    >>> round_seconds("1 messages are pending after 1.9999956730025588 s")
    '1 messages are pending after 2 s'
    """
    return SECONDS.sub(lambda found: f"{round(float(found[1]), 2):g} s", text)


async def _until_handed_over(push: Push, deadline: float | None) -> None:
    loop = asyncio.get_running_loop()
    while (books := push.ledger()).ready or books.scheduled:
        if deadline is not None and loop.time() >= deadline:
            raise WaitTimeout(f"{books.ready + books.scheduled} messages have no consumer yet")
        await asyncio.sleep(LOOK_EVERY_S)


def report(session: Session, job: Job, push: Push, stop: Stop) -> int:
    """Prints how it went, and finds the exit code."""
    books = push.ledger()
    waiting = books.pending if job.wait else books.ready + books.scheduled
    if session.json:
        letters = [
            {"id": each.id, "reason": each.reason, "error": each.error, "attempts": len(each.attempts)}
            for each in job.letters
        ]
        click.echo(to_json({"queue": push.queue, "ledger": books._asdict(), "dead_letters": letters}))
    if waiting or books.dead or sys.stderr.isatty():
        click.echo(describe_books(push.queue, books), err=True)
    for letter in job.letters[:MAX_LETTERS_SHOWN]:
        tell(escape_control(f"  dead letter {letter.id} ({letter.reason}): {letter.error}"))
    if len(job.letters) > MAX_LETTERS_SHOWN:
        click.echo(f"  and {len(job.letters) - MAX_LETTERS_SHOWN} more dead letters", err=True)
    if job.bad is not None:
        return complain(job.bad, exits.USAGE)
    if stop.by_signal and waiting:
        return exits.INTERRUPTED
    if books.dead:
        return exits.DEAD
    return exits.NOTHING if waiting else exits.OK


def describe_books(queue: str, books: Ledger) -> str:
    """A ledger in one line."""
    parts = [f"{books.accepted} accepted", f"{books.processed} processed", f"{books.dead} dead"]
    held = f" ({books.ready} ready, {books.in_flight} in flight, {books.scheduled} scheduled)" if books.pending else ""
    return f"meshmsg: push {queue!r}: {', '.join(parts)}, {books.pending} pending{held}"


def read_headers(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """``NAME=VALUE`` options as a dict; raises ``click.BadParameter``."""
    headers = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{each!r} is not NAME=VALUE")
        headers[name] = value
    return headers


@click.command("push")
@click.argument("queue")
@click.argument("bodies", nargs=-1, metavar="[BODY]...")
@click.option("-n", "--count", type=click.IntRange(min=1), help="Send this many: BODYs in turns, or lines up to here.")
@click.option("--key", help="Messages of one key are processed one after another, in order.")
@click.option("--priority", type=click.IntRange(0, 255), default=0, show_default=True, help="Higher goes first.")
@click.option("--ttl", type=NOT_NEGATIVE, metavar="SECONDS", help="Unprocessed by then, it is dead.")
@click.option("--delay", type=NOT_NEGATIVE, metavar="SECONDS", help="Not handed out before.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", callback=read_headers, help="Repeatable.")
@click.option("--rate", type=POSITIVE, metavar="N", help="At most N messages a second.")
@click.option("--attempts", type=click.IntRange(min=1), default=5, show_default=True, help="Then it is a dead letter.")
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Stay until all is processed, or only until consumers have it.",
)
@click.option("--timeout", type=NOT_NEGATIVE, metavar="SECONDS", help="Wait this long at most, at the end.")
@session_options(json_help="Bodies are JSON; afterwards the ledger and the dead letters, as one JSON object.")
def push(
    session: Session,
    queue: str,
    bodies: tuple[str, ...],
    count: int | None,
    key: str | None,
    priority: int,
    ttl: float | None,
    delay: float | None,
    headers: dict[str, str],
    rate: float | None,
    attempts: int,
    wait: bool,
    timeout: float | None,
) -> None:
    """Send messages to a queue, and wait until they are processed.

    Each BODY is a message; without any, each line of standard input is. Messages wait in this process, which has no
    store, so it stays until a consumer has processed them (exit code 0), or they are dead letters (3). With --timeout
    it gives up and says what was pending (1). With --no-wait it stays only until consumers have everything: failures
    are not retried then.

    \b
    Examples:
      meshmsg push thumbnails a.jpg b.jpg
      find . -name '*.jpg' | meshmsg push thumbnails --timeout 60
      echo '{"path": "a.jpg"}' | meshmsg push thumbnails --json --key a.jpg
    """  # fmt: skip
    details: dict[str, Any] = {}
    for name, value in (("key", key), ("priority", priority), ("ttl", ttl), ("delay", delay), ("headers", headers)):
        if value or (value is not None and name in ("key", "ttl", "delay")):
            details[name] = value
    job = Job(bodies, session.json, count, rate, details, timeout, wait)

    # The report says what is pending; the node need not say it again.
    if not session.verbose:
        logging.getLogger("meshmsg.node").setLevel(logging.ERROR)

    async def serve(stop: Stop) -> int:
        async with session.make_node("push", drain=0.0) as node:
            push = node.push(queue, retry=Retry(max_attempts=attempts), on_dead_letter=job.letters.append)
            await stop.unless(feed(job, push))
            await stop.unless(settle(job, push))
            return report(session, job, push, stop)

    run(serve)
