"""An outbox that any thread may put messages into."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from meshmsg.engine.outbox import SMALL, Outbox
from meshmsg.engine.run import Details, Run
from meshmsg.errors import NodeClosed
from meshmsg.message import Ledger
from meshmsg.options import PushOptions

NO_ROOM = -1


class SharedOutbox(Outbox):
    """Numbers and holds what threads send, until the loop takes it in at the beginning of its turn.

    Whatever gives numbers or takes room does so under the lock, so ``max_pending`` holds for all threads together
    (G5). The loop makes room without the lock, which a thread sees a moment late.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.lock = threading.RLock()
        self.now: Callable[[], float] = time.monotonic  # the driver's clock, once it runs
        self._incoming: list[bytes] = []
        self._details: dict[int, Details] = {}  # by place in ``_incoming``; of the few that have some
        self._next_number = 0  # valid while there is credit
        self._credit = 0  # small bodies that fit without another look at the room
        self._drops = self.options.overflow == "drop_oldest"
        self._sealed = ""
        self._taking_in = False

    def adopt(self, options: PushOptions) -> None:
        """From the loop: takes the options of the queue's owner."""
        with self.lock:
            self._credit = 0
            super().adopt(options)
            self._drops = options.overflow == "drop_oldest"

    # -- any thread ------------------------------------------------------------------------------------------

    def put(self, body: bytes, details: Details | None = None) -> int:
        """Accepts a message and returns its number, or ``NO_ROOM``. Times in ``details`` count from now."""
        with self.lock:
            if (not self._credit or len(body) > SMALL) and not self._look_for_room(len(body)):
                return NO_ROOM
            self._credit -= 1
            number = self._next_number
            self._next_number = number + 1
            if details is not None:
                self._details[len(self._incoming)] = details
            self._incoming.append(body)
            return number

    def put_many(self, bodies: list[bytes]) -> range:
        """Accepts as many of the bodies as there is room for, and returns their numbers."""
        with self.lock:
            if not self._look_for_room(len(bodies[0])):
                return range(0)
            fitting = bodies[: max(1, self._credit)]
            if max(map(len, fitting)) > SMALL:
                fitting = fitting[:1]
            first = self._next_number
            self._incoming += fitting
            self._credit = 0
            return range(first, first + len(fitting))

    def seal(self, why: str) -> None:
        """Accepts nothing any more."""
        with self.lock:
            self._sealed = why
            self._credit = 0

    @property
    def room(self) -> int:
        """How many more messages ``max_pending`` allows (G5)."""
        return super().room - len(self._incoming)

    @property
    def room_bytes(self) -> int:
        """How many more bytes of bodies ``max_pending_bytes`` allows (G5)."""
        return super().room_bytes - sum(map(len, self._incoming))

    def fits(self, size: int) -> bool:
        """Whether a body keeps within both limits, and does not come between numbers that threads were given."""
        return not self._taking_in and super().fits(size)

    def _look_for_room(self, size: int) -> bool:
        """Whether a body fits; finds out how many small ones after it will do so unasked, and their numbers."""
        if self._sealed:
            raise NodeClosed(self._sealed)
        if self._drops:  # the loop drops what is too much when it takes this in, so only the loop's lag is limited
            room = self.options.max_pending - len(self._incoming)
            room_bytes = self.options.max_pending_bytes - sum(map(len, self._incoming))
        else:
            room, room_bytes = self.room, self.room_bytes
        if room <= 0 or room_bytes < size:
            return False
        # One of them is the body that is asked for, whatever its size.
        self._credit = max(1, min(room, (room_bytes - size) // SMALL))
        self._next_number = self.next_id + len(self.staged) + len(self._incoming)
        return True

    # -- the loop's thread -----------------------------------------------------------------------------------

    def absorb(self, now: float) -> None:
        """Takes in what threads sent, then does as ever."""
        with self.lock:
            self._take_in(now)
            super().absorb(now)

    def push_many(self, bodies: list[bytes], size: int) -> int:
        """From the loop: after what threads were given numbers for."""
        with self.lock:
            self._take_in(self.now())
            self._credit = 0
            return super().push_many(bodies, size)

    def push_detailed(self, body: bytes, details: Details, now: float, topic: str | None = None) -> int:
        """From the loop: after what threads were given numbers for."""
        with self.lock:
            self._take_in(now)
            self._credit = 0
            return super().push_detailed(body, details, now, topic)

    def revive(self, run: Run, now: float) -> None:
        """From the loop: takes room."""
        with self.lock:
            self._credit = 0
            super().revive(run, now)

    def ledger(self) -> Ledger:
        """The books, with everything that threads were given an id for."""
        self.absorb(self.now())
        return super().ledger()

    def _take_in(self, now: float) -> None:
        if not self._incoming:
            return
        incoming, self._incoming = self._incoming, []
        all_details, self._details = self._details, {}
        if not all_details and not self._drops:
            super().push_many(incoming, sum(map(len, incoming)))
            return
        self._taking_in = True  # a dead letter may look for room here meanwhile
        try:
            self._take_in_each(incoming, all_details, now)
        finally:
            self._taking_in = False

    def _take_in_each(self, incoming: list[bytes], all_details: dict[int, Details], now: float) -> None:
        for place, body in enumerate(incoming):
            details = all_details.get(place)
            if details is not None:
                if details.expires_at is not None:
                    details.expires_at += now
                if details.due_at is not None:
                    details.due_at += now
            if self._drops and not super().fits(len(body)) and not self.drop_for(len(body), now):
                self.turn_away(body, details, now)
            elif details is None:
                super().push_many([body], len(body))
            else:
                super().push_detailed(body, details, now)
