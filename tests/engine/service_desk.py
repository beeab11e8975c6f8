"""A node that serves, for the tests of what a server keeps of its calls."""

from __future__ import annotations

from typing import Any

from meshmsg.engine.served import Served, Serving
from meshmsg.options import RouterOptions
from meshmsg.wire import items

PLAIN: list[Any] = [[], {}]  # no arguments


class Desk:
    """A node that serves ``math``, and its callers' words to it."""

    def __init__(self, **options: Any) -> None:
        self.serving = Serving()
        self.math = self.serving.open("math", RouterOptions(**options))
        self.now = 100.0
        self.next_number: dict[str, int] = {}

    def call(
        self,
        *bodies: Any,
        peer: str = "a.1",
        service: str = "math",
        method: str = "add",
        remaining: float | None = None,
        flags: int = 0,
        window: int = 0,
        headers: dict[str, Any] | None = None,
        size_bytes: int = 0,
    ) -> int:
        """One run of calls; returns the first number."""
        given_bodies = list(bodies) or [PLAIN]
        first = self.next_number.get(peer, 0)
        self.next_number[peer] = first + len(given_bodies)
        item = [items.CALL, first, len(given_bodies), service, method, remaining, flags, window, headers]
        assert items.check_items([item]) == len(given_bodies)
        self.serving.on_call(peer, peer.partition(".")[0], item, given_bodies, self.now, size_bytes)
        self.serving.check()
        return first

    def take(self) -> Served:
        served = self.math.take(self.now)
        assert served is not None
        return served

    def take_all(self) -> list[Served]:
        taken = []
        while (served := self.math.take(self.now)) is not None:
            taken.append(served)
        return taken

    def told(self, peer: str = "a.1") -> list[list[Any]]:
        """What one caller is told in this turn; the others must be told nothing."""
        output = self.serving.take_output()
        assert set(output) <= {peer}
        told, bodies = output.get(peer, ([], []))
        assert items.check_items(told) == len(bodies)
        self.serving.check()
        return told

    def fault(self, peer: str = "a.1") -> dict[str, Any]:
        """The only thing that one caller is told."""
        [item] = self.told(peer)
        assert item[0] == items.FAULT
        names = ("op", "number", "code", "type", "message", "traceback", "retry_after", "flags")
        return dict(zip(names, item, strict=True))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.serving.tick(self.now)
        self.serving.check()

    def at_rest(self) -> bool:
        """Whether nothing is kept of any call."""
        serving, math = self.serving, self.math
        serving.check()
        serving.take_output()
        return not serving.calls and serving.wake_at() is None and math.running == math.waiting == 0
