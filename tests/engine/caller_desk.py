"""A node that calls, for the tests of the caller's table: whom it asks, and what they answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from meshmsg.engine.calls import Call, Calls
from meshmsg.engine.streams import InStream, OutStream
from meshmsg.errors import MeshError
from meshmsg.options import DealerOptions, Retry
from meshmsg.wire import items

NO_JITTER = Retry(5, 0.1, max_backoff=1.0, jitter="none")


class CallerDesk:
    """A node that calls ``math`` at the given providers; each of them has the key ``NAME.1``."""

    def __init__(self, *names: str, seed: int = 0) -> None:
        self.calls = Calls(random.Random(seed), self._send, lambda key: self.limits.get(key))
        self.limits: dict[str, int] = {}
        self.now = 100.0
        self.said: list[tuple[str, list[Any], list[bytes]]] = []  # (provider, item, bodies)
        self.outcomes: dict[Call, list[tuple[Any, MeshError | None]]] = {}
        self.made: list[Call] = []
        for name in names:
            self.offer(name)

    def _send(self, key: str, said: list[list[Any]], bodies: Sequence[bytes]) -> None:
        left = list(bodies)
        assert items.check_items(said) == len(left)
        for item in said:
            count = items.bodies_of(item)
            self.said.append((key.removesuffix(".1"), item, left[:count]))
            del left[:count]

    def offer(self, name: str, *, serving: bool = True, alive: bool = True, suspect: bool = False) -> None:
        details = {} if serving else {"serving": False}
        self.calls.on_peer(f"{name}.1", name, {"math": details}, alive=alive, suspect=suspect)

    def call(
        self,
        method: str = "add",
        *,
        timeout: float | None = 10.0,
        repeatable: bool = False,
        body: bytes = b"\x92\x90\x80",
        down: bool = False,
        up: bool = False,
        peer: str | None = None,
        key: str | None = None,
        service: str = "math",
        headers: dict[str, Any] | None = None,
        **options: Any,
    ) -> Call:
        """Makes a request; it leaves with ``turn``."""
        chosen = DealerOptions(**{"retry": NO_JITTER, **options})
        call = Call(
            service, method, body, timeout, chosen, None, repeatable=repeatable, headers=headers, key=key, peer=peer,
            down=InStream() if down else None, up=OutStream() if up else None,
        )  # fmt: skip
        self.made.append(call)
        self.calls.start(call)
        return call

    def turn(self, seconds: float = 0.0) -> None:
        """Time passes, as an engine lets it: timers first, then everything leaves."""
        self.now += seconds
        self.calls.tick(self.now)
        self.calls.dispatch(self.now)
        for call, value, error in self.calls.answered:
            self.outcomes.setdefault(call, []).append((value, error))
        self.calls.answered = []
        self.calls.check()
        assert all(len(found) == 1 for found in self.outcomes.values()), "a call with two outcomes"

    def asked(self) -> list[tuple[str, int]]:
        """Who was sent which call since the last look; a run counts once a call."""
        found = []
        for name, item, _ in self.said:
            if item[0] == items.CALL:
                found += [(name, item[1] + place) for place in range(item[2])]
        self.said.clear()
        return found

    def cancelled(self) -> list[tuple[str, int]]:
        """Who was told to stop which call since the last look."""
        found = [(name, number) for name, item, _ in self.said if item[0] == items.CANCEL for number in item[1]]
        self.said.clear()
        return found

    def ask(self, **how: Any) -> tuple[Call, str, int]:
        """Makes a request and has it leave: the call, who was asked, and under which number."""
        self.said.clear()
        call = self.call(**how)
        self.turn()
        [(name, number)] = self.asked()
        return call, name, number

    def reply(self, name: str, number: int, value: Any = "yes") -> None:
        self.calls.on_results(f"{name}.1", [number], [value], self.now)
        self.turn()

    def fail(
        self,
        name: str,
        number: int,
        code: str,
        *,
        never_ran: bool = False,
        retry_after: float | None = None,
        raised: str = "",
    ) -> None:
        """A FAULT comes: the server's own word, or with ``raised`` what a method raised."""
        flags = items.NEVER_RAN if never_ran else 0
        self.calls.on_fault(f"{name}.1", [items.FAULT, number, code, raised, "no", None, retry_after, flags], self.now)
        self.turn()

    def lose(self, name: str) -> None:
        self.calls.on_peer_gone(f"{name}.1", name, "crashed", self.now)
        self.turn()

    def outcome(self, call: Call) -> Any:
        """The value, or raises the error."""
        assert call.done, "no outcome yet"
        [(value, error)] = self.outcomes[call]
        if error is not None:
            raise error
        return value

    def at_rest(self) -> bool:
        """Whether nothing is kept of any call, once every deadline is over."""
        self.turn(60.0)
        calls = self.calls
        owed = [each.pending for each in calls.clients("math").providers.everybody()]
        return not calls.pending and not any(owed) and calls.wake_at(1e9) == 1e9 and not calls.timers.deadlines
