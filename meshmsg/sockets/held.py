"""Messages that an application has taken out of a consumer and not settled: they stop the flow, and end with it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from meshmsg.driver import Driver
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.lane import InLane
from meshmsg.message import Event
from meshmsg.sockets.handoff import LATE, Hand, lane_behind
from meshmsg.wire import frames

# After so long without a verdict, a consumer that asks for more is told why it gets none. Whoever works on all that it
# may hold for longer than that hears it too, once.
STALLED_S = 2.0

logger = logging.getLogger("meshmsg.sockets")


class Held:
    """What one consumer without a handler holds. ``is_empty`` says whether nothing waits to be taken."""

    def __init__(self, driver: Driver, inbox: Inbox, label: Callable[[], str], is_empty: Callable[[], bool]) -> None:
        self.over = False  # whether it is too late for verdicts on anything but what iterations are at
        self._driver = driver
        self._inbox = inbox
        self._label = label
        self._is_empty = is_empty
        self._timer: asyncio.TimerHandle | None = None
        self._received = 0  # when the timer was set; none can have come since without a verdict
        self._told = False
        self._hurried = False

    # -- while it consumes -----------------------------------------------------------------------------------

    @property
    def stalls(self) -> bool:
        """Whether no message comes before one of those that were taken has its verdict (G5)."""
        inbox = self._inbox
        held = inbox.unsettled
        if not held or not self._is_empty():
            return False
        if held >= inbox.prefetch:
            return True
        # With several producers, each has a share of the prefetch.
        return any(lane.alive and lane.want and lane.limit == lane.received for lane in inbox.lanes.values())

    def watch(self) -> None:
        """Somebody waits for a message; called in the loop. One timer at a time, and only while it is in vain."""
        if self._timer is None and not self._told and self.stalls:
            self._received = self._inbox.received
            self._timer = asyncio.get_running_loop().call_later(STALLED_S, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._driver.usable or self._inbox.closing:
            return
        if self._inbox.received != self._received:
            self.watch()
        elif self.stalls:
            self._told = True
            text = f"no verdict came for {STALLED_S:g} s; {self.describe()}"
            logger.warning("%s: %s", self._label(), text)
            self._driver.on_events([Event("consumer.stuck", time.time(), queue=self._inbox.queue, text=text)])

    def describe(self) -> str:
        """In words, why no message comes; empty if that is not because of those that were taken."""
        if not self.stalls:
            return ""
        count = self._inbox.unsettled
        taken = "1 message was" if count == 1 else f"{count} messages were"
        return (
            f"{taken} taken and not settled, and no more come before one is (prefetch={self._inbox.prefetch}): "
            "give each message its verdict, such as with `with message:`"
        )

    # -- at the close ----------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Ends a ``wait`` that is under way."""
        self._hurried = True
        self._driver.wake()

    async def wait(self, drain: float) -> None:
        """Gives the application ``drain`` seconds for its verdicts (G10)."""
        if self._timer is not None:
            self._timer.cancel()
        inbox = self._inbox
        if inbox.unsettled and drain:
            await self._driver.until(lambda: self._hurried or not inbox.unsettled, drain)

    def give_back(self, hands: Iterable[Hand]) -> None:
        """Nacks what was taken and has no verdict, but not what iterations are at: they nack that when they go on.

        So a loop that is told to end may still finish its round. A nack, as for a handler that is cancelled, and not a
        return that costs no attempt: whoever has taken a message has started on it, and one that ends its consumers
        each time must come to an end itself (G4).
        """
        self.over = True
        if self._driver.closed:
            return  # the goodbye says it all
        left = set()
        for message in [message for hand in tuple(hands) for message in hand.unsettled]:
            lane = message._lane
            if isinstance(lane, InLane):
                message._arrival, message._index = message._alone(), 0
                message._arrival.lane = LeftLane(self._driver, lane)
            else:  # a thread has it, and a second verdict of such a one does nothing
                lane = lane_behind(lane)
            left.add((lane, message._seq))
        count = 0
        for lane in self._inbox.lanes.values():
            for seq in range(lane.floor, lane.received):
                if not lane.has_verdict(seq) and (lane, seq) not in left:
                    lane.judge(seq, frames.NACKED, None, LATE)
                    count += 1
        if count:
            logger.warning("%s was closed, and nacked %d that were taken and not settled", self._label(), count)


class LeftLane:
    """The ``Settler`` of a message that an iteration was at when its consumer was closed: its lane, but no guard."""

    __slots__ = ("_driver", "lane", "queue", "sender")

    def __init__(self, driver: Driver, lane: InLane) -> None:
        self._driver = driver
        self.lane = lane
        self.sender = lane.sender
        self.queue = lane.queue

    def message_id(self, number: int) -> str:
        return self.lane.message_id(number)

    def require_usable(self) -> None:
        """The consumer is closed, but its node need not be."""
        self._driver.require_usable()

    def ack(self, seq: int) -> None:
        self.lane.ack(seq)

    def ack_run(self, start: int, stop: int) -> None:
        self.lane.ack_run(start, stop)

    def nack(self, seq: int, delay: float | None, error: str) -> None:
        self.lane.nack(seq, delay, error)

    def reject(self, seq: int, reason: str) -> None:
        self.lane.reject(seq, reason)

    def extend(self, seq: int) -> None:
        self.lane.extend(seq)
