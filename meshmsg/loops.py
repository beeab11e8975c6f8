"""Event loops that can watch ZeroMQ's sockets."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from meshmsg.errors import ConfigurationError, MissingExtra
from meshmsg.options import require_bool


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
