"""Running a verb's coroutine: signals, errors and exit codes, the same for all verbs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, TypeVar

import click

from meshmsg import ConfigurationError, MeshError
from meshmsg.cli import exits
from meshmsg.cli.bodies import escape_lines

ResultT = TypeVar("ResultT")


class Stop:
    """The wish to end: SIGINT, SIGTERM, or the verb's own."""

    def __init__(self) -> None:
        self.by_signal = False
        self._event = asyncio.Event()

    @property
    def requested(self) -> bool:
        """Whether somebody wants this to end."""
        return self._event.is_set()

    def request(self) -> None:
        """Asks for the end."""
        self._event.set()

    async def wait(self) -> None:
        """Waits until somebody asks."""
        await self._event.wait()

    async def unless(self, work: Coroutine[Any, Any, ResultT]) -> ResultT | None:
        """Runs ``work`` to its end, or cancels it when the stop comes first; None then."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            return None
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def on_signal(self) -> None:
        """The first signal asks for the end, the second one does not wait for it."""
        if self.by_signal:
            os._exit(exits.INTERRUPTED)
        self.by_signal = True
        self.request()


def run(verb: Callable[[Stop], Awaitable[int]]) -> NoReturn:
    """Runs a verb and exits with the code that it returns."""
    # ZeroMQ needs add_reader, which Windows' default loop does not have (pyzmq#1423).
    factory = asyncio.SelectorEventLoop if sys.platform == "win32" else None
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            code = runner.run(_with_signals(verb))
    except ConfigurationError as error:
        code = complain(error, exits.USAGE)
    except MeshError as error:
        code = complain(error, exits.FAILED)
    except BrokenPipeError:
        # The reader of our output has what it wanted. Python would complain at exit about what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = exits.OK
    sys.exit(code)


def complain(error: object, code: int) -> int:
    """Prints an error for people to standard error; returns the code."""
    tell(f"meshmsg: {error}")
    return code


def tell(text: str) -> None:
    """Prints lines for people to standard error; what others said in them cannot steer the terminal."""
    click.echo(escape_lines(text), err=True)


async def _with_signals(verb: Callable[[Stop], Awaitable[int]]) -> int:
    loop = asyncio.get_running_loop()
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop.on_signal)
        except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
            try:
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.on_signal))
            except ValueError:
                pass
    return await verb(stop)
