"""An outbox that any thread may put messages into."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from meshmsg.engine.outbox import Outbox
from meshmsg.engine.run import Details
from meshmsg.errors import NodeClosed
from meshmsg.message import Ledger

NO_ROOM = -1
Entry = bytes | tuple[bytes, Details]


class SharedOutbox(Outbox):
    """Numbers and holds what threads send, until the loop takes it in at the beginning of its turn.

    Under the lock is what a number depends on: messages here, messages staged, messages numbered. Room is read
    under it too, so ``max_pending`` holds for all threads together (G5); the loop makes room without it, which a
    thread sees a moment late.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.lock = threading.RLock()
        self.now: Callable[[], float] = time.monotonic  # the driver's clock, once it runs
        self._incoming: list[Entry] = []
        self._incoming_bytes = 0
        self._detailed = False  # whether some of it is more than a body
        self._sealed = ""

    # -- any thread ------------------------------------------------------------------------------------------

    def put(self, body: bytes, details: Details | None = None) -> int:
        """Accepts a message and returns its number, or ``NO_ROOM``. Times in ``details`` count from now."""
        size = len(body)
        with self.lock:
            if self._sealed:
                raise NodeClosed(self._sealed)
            if self.room <= 0 or self.room_bytes < size:
                return NO_ROOM
            incoming = self._incoming
            number = self.next_id + len(self.staged) + len(incoming)
            if details is None:
                incoming.append(body)
            else:
                incoming.append((body, details))
                self._detailed = True
            self._incoming_bytes += size
            return number

    def put_many(self, bodies: list[bytes]) -> range:
        """Accepts as many of the bodies as there is room for, and returns their numbers."""
        with self.lock:
            if self._sealed:
                raise NodeClosed(self._sealed)
            fitting = bodies[: max(0, self.room)]
            size, room_bytes = sum(map(len, fitting)), self.room_bytes
            while size > room_bytes:
                size -= len(fitting.pop())
            number = self.next_id + len(self.staged) + len(self._incoming)
            self._incoming += fitting
            self._incoming_bytes += size
            return range(number, number + len(fitting))

    def seal(self, why: str) -> None:
        """Accepts nothing any more."""
        with self.lock:
            self._sealed = why

    @property
    def room(self) -> int:
        """How many more messages ``max_pending`` allows (G5)."""
        return super().room - len(self._incoming)

    @property
    def room_bytes(self) -> int:
        """How many more bytes of bodies ``max_pending_bytes`` allows (G5)."""
        return super().room_bytes - self._incoming_bytes

    # -- the loop's thread -----------------------------------------------------------------------------------

    def absorb(self, now: float) -> None:
        """Takes in what threads sent, then does as ever."""
        with self.lock:
            self._take_in(now)
            super().absorb(now)

    def push(self, body: bytes) -> int:
        """From the loop: after what threads were given numbers for."""
        with self.lock:
            self._take_in(self.now())
            return super().push(body)

    def push_many(self, bodies: list[bytes]) -> int:
        """From the loop: after what threads were given numbers for."""
        with self.lock:
            self._take_in(self.now())
            return super().push_many(bodies)

    def push_detailed(self, body: bytes, details: Details, now: float) -> int:
        """From the loop: after what threads were given numbers for."""
        with self.lock:
            self._take_in(now)
            return super().push_detailed(body, details, now)

    def ledger(self) -> Ledger:
        """The books, with everything that threads were given an id for."""
        self.absorb(self.now())
        return super().ledger()

    def _take_in(self, now: float) -> None:
        incoming = self._incoming
        if not incoming:
            return
        self._incoming, self._incoming_bytes = [], 0
        if not self._detailed:
            self.staged += incoming  # type: ignore[arg-type]  # nothing but bodies
            return
        self._detailed = False
        for entry in incoming:
            if isinstance(entry, bytes):
                self.staged.append(entry)
                continue
            body, details = entry
            if details.expires_at is not None:
                details.expires_at += now
            if details.due_at is not None:
                details.due_at += now
            super().push_detailed(body, details, now)
