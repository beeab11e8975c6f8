"""``meshmsg reply``: offers a method that is a command of the shell, or a constant."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any

import click

from meshmsg import Context, RemoteError, Unavailable
from meshmsg.cli import exits
from meshmsg.cli.bodies import parse_json, parse_text, to_json
from meshmsg.cli.numbers import POSITIVE
from meshmsg.cli.requesting import parse_value
from meshmsg.cli.running import Stop, complain, run, tell
from meshmsg.cli.session import Session, session_options

MAX_COMPLAINT = 900  # characters of a command's standard error that its caller gets
KEPT_BYTES = 2**16  # of it that are shown here, and of a pipe that are read at a time
PLAIN_LINE = re.compile(r"\s*([\w./][\w./+-]*)(?:[ \t][^|&;(\n]*)?")
NOT_EXECUTABLE = 126  # as a shell has it
NOT_FOUND = 127
MAX_OUTPUT_BYTES = 64 * 2**20  # what a node sends as one result, unless it was made with another max_message_bytes=


def describe_request(context: Context, args: Sequence[Any], kwargs: dict[str, Any]) -> bytes:
    """What a command reads: one line of JSON."""
    request = {
        "args": list(args),
        "kwargs": kwargs,
        "headers": dict(context.headers),
        "caller": context.caller.name,
        "remaining": context.remaining,
    }
    return to_json(request).encode() + b"\n"


def find_fault(words: Sequence[str]) -> tuple[str, int] | None:
    """Why a command cannot be run, and the exit code that a shell has for it; None if nothing is known against it.

    Of a line for the shell only the first word is looked at, and only if nothing behind it runs all the same.
    """
    name = words[0]
    if len(words) == 1:
        match = PLAIN_LINE.fullmatch(name)
        if match is None or os.name == "nt":
            return None
        name = match[1]
    if shutil.which(name) is not None:
        return None
    if os.path.dirname(name):
        if os.path.exists(name):
            return f"{name}: it cannot be run: it is no file, or lacks the permission (chmod +x)", NOT_EXECUTABLE
        return f"{name}: there is no such command", NOT_FOUND
    if len(words) == 1 and not subprocess.call(['command -v "$0"', name], shell=True, stdout=subprocess.DEVNULL):
        return None  # the shell's own
    return f"{name}: there is no such command on PATH", NOT_FOUND


class Command:
    """A command that is run once a request."""

    def __init__(
        self, words: Sequence[str], *, as_json: bool, concurrency: int, max_bytes: int = MAX_OUTPUT_BYTES
    ) -> None:
        self._words = words
        self._as_json = as_json
        self._max_bytes = max_bytes
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="meshmsg-reply")

    async def run(self, request: bytes) -> Any:
        """Its output as a result; raises ``RemoteError`` if it fails. Who is cancelled kills it."""
        # One word is a line for the shell. Nothing of a request gets there: requests are read, not spelt out.
        line: Any = self._words[0] if len(self._words) == 1 else list(self._words)
        try:
            process = subprocess.Popen(
                line,
                shell=isinstance(line, str),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C lets what runs end
            )
        except OSError as error:
            raise RemoteError(f"{self._words[0]}: {error.strerror}", code="no_command", type="OSError") from error
        try:
            output, complaints = await asyncio.get_running_loop().run_in_executor(
                self._threads, talk, process, request, self._max_bytes
            )
        except asyncio.CancelledError:
            kill(process)
            raise
        if process.returncode:
            raise self._fail(process.returncode, complaints)
        click.echo(complaints, nl=False, err=True)
        return self._read(output)

    def _fail(self, code: int, complaints: bytes) -> RemoteError:
        text = complaints.decode(errors="replace").strip()[-MAX_COMPLAINT:]
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        return RemoteError(f"{how}: {text}" if text else how, code=f"exit_{code}", type="CommandFailed")

    def _read(self, output: bytes) -> Any:
        if not self._as_json:
            return parse_text(output.removesuffix(b"\n").removesuffix(b"\r"))
        try:
            return parse_json(output)
        except (ValueError, RecursionError) as error:
            raise RemoteError(f"the command's output is not JSON: {error}", type="CommandFailed") from None

    def close(self) -> None:
        """Nothing runs any more."""
        self._threads.shutdown(wait=False)


def talk(process: subprocess.Popen[bytes], request: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    """Gives a command its request; returns its output, and the end of what it said on standard error.

    ``Popen.communicate`` would keep all of both. Raises ``RemoteError`` as soon as the output is too large to be sent:
    the command is killed.
    """
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    complaints = bytearray()
    helpers = [
        threading.Thread(target=hand_over, args=(process.stdin, request), daemon=True),
        threading.Thread(target=keep_end, args=(process.stderr, complaints), daemon=True),
    ]
    for helper in helpers:
        helper.start()
    output = bytearray()
    with process.stdout as pipe:
        while data := os.read(pipe.fileno(), KEPT_BYTES):
            output += data
            if len(output) > max_bytes:
                kill(process)
                process.wait()
                text = f"the command's output is more than can be sent ({max_bytes} bytes): it was stopped"
                raise RemoteError(text, code="output_too_large", type="CommandFailed")
    for helper in helpers:
        helper.join()
    process.wait()
    return bytes(output), bytes(complaints)


def hand_over(pipe: IO[bytes], request: bytes) -> None:
    """Writes all of a command's input, or as much as it reads."""
    with suppress(OSError), pipe:
        pipe.write(request)


def keep_end(pipe: IO[bytes], kept: bytearray) -> None:
    """Reads a pipe to its end, and keeps the last bytes, with a mark if there were others."""
    cut = False
    with pipe:
        while data := os.read(pipe.fileno(), KEPT_BYTES):
            kept += data
            cut = cut or len(kept) > KEPT_BYTES
            del kept[:-KEPT_BYTES]
    if cut:
        kept[:0] = b"[...]"


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a command with all that it started."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    else:
        process.kill()


class Replies:
    """Counts answers; at the last one that is wanted, asks for the end."""

    def __init__(self, stop: Stop, most: int | None) -> None:
        self._stop = stop
        self._most = most
        self._begun = 0
        self._ended = 0

    def begin(self) -> None:
        """One request more; raises ``Unavailable`` if it is one too many."""
        if self._most is not None and self._begun >= self._most:
            raise Unavailable("meshmsg reply has answered as often as it was to")
        self._begun += 1

    def end(self) -> None:
        """One answer more."""
        self._ended += 1
        if self._ended == self._most:
            self._stop.request()


@click.command("reply")
@click.argument("service")
@click.argument("method")
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]", type=click.UNPROCESSED)
@click.option("--value", metavar="JSON", help="Answer with this instead; text where it is none.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="Leave after this many answers.")
@click.option("--concurrency", type=click.IntRange(min=1), default=4, show_default=True, help="Commands at once.")
@click.option("--timeout", type=POSITIVE, metavar="SECONDS",
              help="A command that runs longer is killed.")  # fmt: skip
@session_options(json_help="The command's output is JSON, not text.")
def reply(
    session: Session,
    service: str,
    method: str,
    command: tuple[str, ...],
    value: str | None,
    count: int | None,
    concurrency: int,
    timeout: float | None,
) -> None:
    """Offer a method that runs a command, or returns a constant.

    COMMAND runs once a request. It reads a line of JSON, {"args": […], "kwargs": {…}, "headers": {…}, "caller": …,
    "remaining": seconds or null}, and what it prints is the result. If it fails, so does the request: with code exit_N
    and what it said on standard error. Who gives up kills it, and so does output of more than 64 MiB, with code
    output_too_large. A single word runs in the shell, several as they are. A command that is not there is told at the
    start, with the exit code 127; one that cannot be run, with 126.
    Ctrl-C takes no more requests, and lets what runs end.

    \b
    Examples:
      meshmsg reply math add --json -- jq '.args[0] + .args[1]'
      meshmsg reply host uptime -- uptime
      meshmsg reply config get --value '{"color": "blue"}'
    """
    if bool(command) == (value is not None):
        raise click.UsageError("give either a command, after --, or --value")
    fault = find_fault(command) if command else None
    if fault is not None:
        sys.exit(complain(*fault))
    constant = None if value is None else parse_value(value, "--value")

    async def serve(stop: Stop) -> int:
        replies = Replies(stop, count)
        runner = Command(command, as_json=session.json, concurrency=concurrency)
        async with session.make_node("reply") as node:
            router = node.router(service, concurrency=concurrency, timeout=timeout, tracebacks=False)

            async def answer(*args: Any, _context: Context, **kwargs: Any) -> Any:
                replies.begin()
                try:
                    return await runner.run(describe_request(_context, args, kwargs)) if command else constant
                finally:
                    replies.end()

            router.method(answer, name=method)
            tell(f"meshmsg: {service}.{method} is offered until Ctrl-C")
            await stop.wait()
            await router.close()
        runner.close()
        return exits.OK

    run(serve)
