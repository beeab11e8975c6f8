"""Event loops that can watch ZeroMQ's sockets, and serving in one until a signal comes."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from meshmsg.checks import require_bool
from meshmsg.errors import ConfigurationError, MissingExtra

ResultT = TypeVar("ResultT")


def require_reader_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Raises ``ConfigurationError`` for a loop that cannot."""
    if sys.platform == "win32" and isinstance(loop, asyncio.ProactorEventLoop):
        raise ConfigurationError(
            "Windows' default event loop cannot watch ZeroMQ's sockets: use node.run(), or "
            "asyncio.run(main(), loop_factory=asyncio.SelectorEventLoop)"
        )


def choose_loop(uvloop: bool | None) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop if wanted or there; on Windows a selector loop, because ZeroMQ needs ``add_reader`` (pyzmq#1423)."""
    if uvloop is not None:
        require_bool("uvloop=", uvloop)
    if uvloop is not False and sys.platform != "win32":
        try:
            import uvloop as uvloop_module
        except ImportError:
            if uvloop:
                raise MissingExtra('run(uvloop=True) needs uvloop: pip install "meshmsg[speed]"') from None
        else:
            return uvloop_module.new_event_loop
    return asyncio.SelectorEventLoop if sys.platform == "win32" else None


def serve(
    start: Callable[[], Awaitable[Any]],
    hurry: Callable[[], None],
    close: Callable[[], Awaitable[ResultT]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
) -> ResultT:
    """Starts, blocks until SIGINT or SIGTERM, and closes; a second signal hurries the close.

    Raises ``ConfigurationError`` outside of the main thread, and in a running loop.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError(
            "run() needs the main thread, which alone gets signals: in another one, use "
            "asyncio.run with `async with node:`, or meshmsg.blocking.Node"
        )
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise ConfigurationError("run() makes a loop of its own: inside a running one, use `async with node:`")
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_serve(start, hurry, close))


async def _serve(
    start: Callable[[], Awaitable[Any]], hurry: Callable[[], None], close: Callable[[], Awaitable[ResultT]]
) -> ResultT:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            hurry()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, on_signal)
        except (NotImplementedError, RuntimeError):  # Windows, or not the main thread
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(on_signal))
    await start()
    await stop.wait()
    return await close()
