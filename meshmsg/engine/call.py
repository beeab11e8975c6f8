"""One request, as the caller's table keeps it."""

from __future__ import annotations

from typing import Any

from meshmsg.engine.providers import Clients, Provider
from meshmsg.engine.streams import InStream, OutStream
from meshmsg.errors import BodyTooLarge, DeadlineExceeded, NoResponders, PeerLost, RequestError
from meshmsg.options import DealerOptions
from meshmsg.wire import items

_NOBODY: frozenset[str] = frozenset()


class Call:
    """One request. ``sink`` is the socket's own, ``body`` the encoded arguments; ``peer`` names the only one to ask."""

    __slots__ = (
        "attempts",
        "avoid",
        "awaited",
        "body",
        "came",
        "deadline",
        "done",
        "down",
        "flags",
        "headers",
        "hedges",
        "key",
        "known",
        "lacking",
        "method",
        "number",
        "options",
        "peer",
        "provider",
        "refusal",
        "refused",
        "repeatable",
        "sent_at",
        "service",
        "sink",
        "spoke",
        "timeout",
        "up",
    )

    def __init__(
        self,
        service: str,
        method: str,
        body: bytes,
        timeout: float | None,
        options: DealerOptions,
        sink: Any,
        *,
        repeatable: bool = False,
        headers: dict[str, Any] | None = None,
        key: str | None = None,
        peer: str | None = None,
        down: InStream | None = None,
        up: OutStream | None = None,
    ) -> None:
        self.service = service
        self.method = method
        self.body = body
        self.timeout = timeout
        self.options = options
        self.sink = sink
        self.repeatable = repeatable
        self.headers = headers
        self.key = key
        self.peer = peer
        self.down = down
        self.up = up
        self.flags = (items.WANTS_ITEMS if down is not None else 0) | (items.SENDS_ITEMS if up is not None else 0)
        self.known: Clients  # of its service; Calls.start sets it
        self.number = -1  # of the newest attempt
        self.provider: Provider | None = None
        self.sent_at = 0.0
        self.hedges: dict[int, tuple[Provider, float]] | None = None  # other attempts under way, by number
        self.attempts = 0
        self.avoid: set[str] = set()  # keys of providers that are asked again only if there is nobody else
        self.awaited: Provider | None = None  # was suspect, and this waited for what becomes of it
        self.lacking = _NOBODY  # keys of those that had no such method; a later retry may find them upgraded
        self.refused = 0  # attempts that never ran, and went elsewhere at once
        self.refusal: tuple[RequestError, float | None] | None = None  # the last failure that a retry may mend
        self.deadline: float | None = None
        self.spoke = False  # the server has items of this side, or their end; nobody else can have them
        self.came = 0  # items of the server
        self.done = False

    @property
    def tries(self) -> int:
        """How many attempts there were, without those that never ran and led to somebody else at once."""
        return self.attempts - len(self.lacking) - self.refused

    def start_clock(self, now: float) -> None:
        """Its time begins now, if it has not begun."""
        if self.deadline is None and self.timeout is not None:
            self.deadline = now + self.timeout

    def is_from(self, number: int, peer: str) -> bool:
        """Whether an attempt is under way at the peer with this key."""
        if number == self.number:
            return self.provider is not None and self.provider.key == peer
        return self.hedges is not None and number in self.hedges and self.hedges[number][0].key == peer

    def make_late(self, *, waited: bool = False) -> DeadlineExceeded:
        """The error of a call whose time is over; ``waited``: before anybody who serves could be asked."""
        name = f"{self.service}.{self.method}"
        if waited:
            return DeadlineExceeded(f"{name} was not sent within {self.timeout:g} s: nobody to ask was heard of")
        came = f"{self.came} item{'s' * (self.came != 1)} and no end" if self.came else "no answer"
        error = DeadlineExceeded(f"{name} brought {came} within {self.timeout:g} s")
        error.peer = self.provider.name if self.provider is not None else None
        return error

    def make_unheard(self, *, too_large: bool) -> NoResponders:
        """The error of a call that nobody can be asked; ``too_large``: for its size, although there is somebody."""
        if too_large:
            text = f"whoever serves {self.service!r} now takes fewer than these {len(self.body)} bytes of arguments"
        else:
            text = self.known.providers.explain_nobody(self.service, self.peer, self.awaited)
        return NoResponders(text)

    def make_lost(self, name: str, why: str) -> PeerLost:
        """The error of a call whose provider's life ended."""
        return PeerLost(f"{self.service}.{self.method}: {name!r} is gone ({why}) and may have run it or not")

    def make_too_large(self, name: str, limit_bytes: int | None) -> BodyTooLarge:
        """The error of a call whose provider does not read arguments as large as these."""
        text = f"{name!r} takes {limit_bytes} bytes of arguments, got {len(self.body)}: raise"
        text += " Node(max_message_bytes=) there, or have the method take them as a stream (items=)"
        return BodyTooLarge(f"{self.service}.{self.method}: {text}")
