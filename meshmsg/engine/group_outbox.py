"""The outbox of a group: what was published to its topics, until one member has processed it (G7)."""

from __future__ import annotations

import random
from collections.abc import Callable

from meshmsg.engine.outbox import MAX_RUN, Outbox
from meshmsg.engine.run import Details, Run
from meshmsg.message import Ledger, Reason
from meshmsg.options import PushOptions


class GroupOutbox(Outbox):
    """An outbox that is filled once a turn, with copies of what was published in it.

    What ``send`` has let through counts from then on, as ``promised``: the room is taken, and ``max_pending`` holds
    for all topics and publishers of a node together (G5). ``group`` names it in texts.
    """

    def __init__(
        self,
        queue: str,
        options: PushOptions,
        generator: random.Random,
        bury: Callable[[Outbox, Run, Reason, str], None],
        wall_offset: float,
        *,
        group: str,
        first_id: int,
    ) -> None:
        super().__init__(queue, options, generator, bury, wall_offset)
        self.group = group
        self.promised = 0
        self._promised_bytes = 0
        self.first_id = self.next_id = first_id

    # -- room ------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more messages ``max_pending`` allows (G5)."""
        return super().room - self.promised

    @property
    def room_bytes(self) -> int:
        """How many more bytes of bodies ``max_pending_bytes`` allows (G5)."""
        return super().room_bytes - self._promised_bytes

    def takes(self, size: int) -> bool:
        """Whether a body fits; an empty outbox takes one of any size, which would wait for ever otherwise."""
        room = self._room - self.promised  # nothing is ever staged here
        fits = room > 0 and self._room_bytes - self._promised_bytes >= size
        return fits or room == self.options.max_pending

    def promise(self, size: int) -> bool:
        """A message of this size is published in this turn, if there is room for it; says whether there is."""
        if not self.takes(size):
            return False
        self.promised += 1
        self._promised_bytes += size
        return True

    def keep_promises(self) -> None:
        """Everything that was promised comes now."""
        self.promised = self._promised_bytes = 0

    # -- accepting -------------------------------------------------------------------------------------------

    def take_plain(self, topic: str, bodies: list[bytes], now: float) -> None:
        """Accepts messages of one topic. The list stays its owner's; a run of its own shrinks as it is sent."""
        size = sum(map(len, bodies))
        if self.room < len(bodies) or self.room_bytes < size:
            for body in bodies:
                self.take_special(topic, body, Details(), now)
            return
        for start in range(0, len(bodies), MAX_RUN):
            run = Run(self.next_id, bodies[start : start + MAX_RUN], now, topic=topic)
            self.next_id += len(run)
            self._room -= len(run)
            self._room_bytes -= run.bytes
            self._enqueue(run)

    def take_special(self, topic: str, body: bytes, details: Details, now: float) -> None:
        """Accepts one message, with headers, a key or a priority; without room, the oldest that waits goes for it."""
        if self.takes(len(body)) or self.drop_for(len(body), now):
            self.push_detailed(body, details, now, topic)
        else:
            self.turn_away(body, details, now, topic)

    # -- looking ---------------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """The books of this group at this moment (G1)."""
        books = super().ledger()
        return books._replace(
            accepted=books.accepted + self.promised,
            ready=books.ready + self.promised,
            scheduled=books.scheduled - self.promised,
        )

    def held_ids(self) -> list[int]:
        """Numbers of every pending message, for the simulator's own books."""
        return super().held_ids() + list(range(self.next_id, self.next_id + self.promised))

    def _explain_unroutable(self, patience: float) -> str:
        return f"no member of {self.group} came for {patience:g} s; start one, or let it subscribe with durable=True"
