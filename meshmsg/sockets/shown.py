"""How what applications hold looks when it is printed: ``<Push 'orders' of node 'web': 3 pending, 2 in flight>``."""

from __future__ import annotations

from meshmsg.driver import Driver


class Shown:
    """Its ``repr`` has its kind, what tells it apart from others of that kind, and how it is doing.

    Any thread may ask, also before the start, after the close, and in a forked child. It costs little and never raises:
    what the loop changes in the middle of it is left out.
    """

    def __repr__(self) -> str:
        kind = type(self).__name__
        try:
            title = f"{kind} {self._title()}"
        except Exception:  # one that was never made whole, such as a copy
            return f"<{kind}>"
        try:
            state = self._state()
        except Exception:  # such as "dictionary changed size during iteration"
            state = ""
        return f"<{title}: {state}>" if state else f"<{title}>"

    def _title(self) -> str:
        raise NotImplementedError

    def _state(self) -> str:
        """In a few words; nothing if there is nothing to tell."""
        return ""


def of_node(name: str, driver: Driver) -> str:
    """The title of a socket: its queue, pattern or service, its node, and why that cannot be used if it cannot."""
    life = describe_life(driver)
    return f"{name!r} of node {driver.engine.identity.name!r}{f' ({life})' if life else ''}"


def counted(number: int, noun: str) -> str:
    """``1 peer``, ``2 peers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe_life(driver: Driver) -> str:
    """Why a node cannot be used, in a word or two; nothing if it can."""
    if driver.is_foreign_process:
        return "of another process"
    if driver.closed:
        return "closed"
    return "" if driver.usable else "not started"
