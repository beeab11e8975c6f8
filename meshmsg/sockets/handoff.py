"""Handing messages to threads, and bringing their verdicts back: in bursts, not one hop through the loop a message."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from meshmsg.driver import Driver
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.lane import InLane
from meshmsg.engine.topic_buffer import Source, TopicBuffer
from meshmsg.message import Arrival, Batch, Message, Settler, describe_error
from meshmsg.wire import frames

logger = logging.getLogger("meshmsg.sockets")

EXTENDED = -1  # beside the kinds of verdicts in ``wire.frames``
# The main thread waits in steps of this many seconds, so that it sees every signal: one that comes between the
# interpreter's last look and the wait itself does not end the wait, and on Windows none does.
STEP_S = 0.25
# Messages of topics that are lent ahead of the threads' asking, and their bytes; no more than the subscription's buffer
# in any case. The others stay in that, where they are counted, and newer ones can replace them.
AHEAD = 256
AHEAD_BYTES = 2**20
LATE = "the consumer was closed, and this message was not settled"


class Hand:
    """What one iteration is at: the message or batch that it handed out last."""

    __slots__ = ("item",)

    def __init__(self) -> None:
        self.item: Message | Batch | None = None

    @property
    def unsettled(self) -> list[Message]:
        """Messages in it that have no verdict."""
        item = self.item
        messages = item.messages if isinstance(item, Batch) else [item] if item is not None else []
        return [message for message in messages if not message.settled]

    def drop(self) -> None:
        """The iteration goes on or ends after the close of its consumer: nobody else settles what it was at."""
        for message in self.unsettled:
            message.nack(error=LATE)


class Bell:
    """Has a function called in the loop, once for all rings until then; any thread may ring."""

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Callable[[], None]) -> None:
        self.rung = False  # look here before calling ``ring``: that is cheaper
        self._loop = loop
        self._function = answer

    def ring(self) -> None:
        """Asks for an answer, unless one is to come anyway."""
        if self.rung:
            return
        self.rung = True
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:
            pass  # the loop is closed: whoever waits for an answer is told so by the node

    def _answer(self) -> None:
        # First: what is put down from now on needs a ring of its own.
        self.rung = False
        self._function()


Ack = tuple[InLane, int]
Verdict = Ack | tuple[InLane, int, int, float | None, str]  # lane, sequence number, kind, delay, text


class Handoff:
    """One queue's messages, on loan to threads: whatever the inbox receives may be taken by any of them.

    A message is started when a thread takes it (G4). What nobody took goes back to the inbox when the pull is
    closed. Of topics only so much is lent as the threads take soon; whoever finds too little asks for more.
    Verdicts collect until the loop has its next turn. ``deque``'s ``append`` and ``popleft`` are atomic,
    so no lock is on this path. A thread that waits does so on a lock of its own, its ticket: nothing that Ctrl-C
    may interrupt it in could leave a lock taken that the loop needs.
    """

    def __init__(self, driver: Driver, inbox: Source, loop: asyncio.AbstractEventLoop) -> None:
        self.driver = driver
        self.closed = False
        self.room = True  # whether more may come before anything is settled, or, of topics, taken
        self.more = False  # whether messages wait that are not lent, or a gap behind those that are
        self.hands: set[Hand] = set()  # of iterations
        self.over = False  # whether what an iteration leaves behind is lost unless it nacks it
        self.on_starved: Callable[[], None] = lambda: None  # a thread waits, and producers may not send
        self._starved = False
        self._finishing = False
        self._inbox = inbox
        self._topics = inbox if isinstance(inbox, TopicBuffer) else None
        self._wanted = 0  # messages that a thread waits for
        self._lent: deque[Message] = deque()
        # Of topics. A loan counts until all of it is taken: where it ends, in messages since the beginning; its bytes.
        self._loans: deque[tuple[int, int]] = deque()
        self._lent_count = 0  # since the beginning
        self._lent_bytes = 0
        self.verdicts: deque[Verdict] = deque()
        self._given_up: set[InLane] = set()  # by their producers, who send what has not started elsewhere
        self._tickets: deque[threading.Lock] = deque()  # of the threads that wait; to release one wakes its thread
        self.bell = Bell(loop, self._answer)
        self._make_lane = ThreadLane if self._topics is None else ThreadPublication
        inbox.on_given_up = self._give_up
        if self._topics is not None:
            self._topics.lent = self._lent.__len__
        elif isinstance(inbox, Inbox):
            inbox.on_recall = self._recall

    # -- for any thread --------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Message]:
        """``take`` until the end, with less ado a message."""
        lent, driver = self._lent, self.driver
        hand = self.open_hand()
        try:
            while True:
                try:
                    message = lent.popleft() if driver.owner else self.take()
                except IndexError:
                    message = self.take()
                if message is None:
                    return
                arrival = message._arrival
                if (arrival.expires_at is None and arrival.lane.lane.alive) or self._may_start(message):  # type: ignore[attr-defined]  # a ThreadLane
                    hand.item = message
                    yield message
        finally:
            self.close_hand(hand)

    def open_hand(self) -> Hand:
        """An iteration begins."""
        hand = Hand()
        self.hands.add(hand)
        return hand

    def close_hand(self, hand: Hand) -> None:
        """It has ended."""
        self.hands.discard(hand)
        if self.over and self.driver.owner:
            hand.drop()

    def take(self, deadline: float | None = None) -> Message | None:
        """The next message, which is started now; None when the pull is closed or the (monotonic) deadline passed."""
        while True:
            if not self.driver.owner:
                self.driver.require_process()
            try:
                message = self._lent.popleft()
            except IndexError:
                if not self._wait(deadline):
                    return None
                continue
            if self._may_start(message):
                return message

    def take_many(self, limit: int, max_wait_s: float) -> list[Message]:
        """Up to ``limit`` messages; having one, waits ``max_wait_s`` for others, as long as others may come."""
        messages: list[Message] = []
        while not messages:
            if not self.driver.owner:
                self.driver.require_process()
            if not self._wait(None):
                break
            if max_wait_s:
                # Nothing is taken out yet: who is interrupted here holds none.
                self._wait(time.monotonic() + max_wait_s, limit, while_room=True)
            now = time.monotonic()
            try:
                while len(messages) < limit and (message := self.take(now)) is not None:
                    messages.append(message)
            except BaseException:
                self._put_back(messages)
                raise
        return messages

    def _put_back(self, messages: list[Message]) -> None:
        """What a thread took and did not start goes to the next one, in order."""
        self._lent.extendleft(reversed(messages))
        if self.closed:
            for message in self._drain():
                lane = lane_behind(message._lane)
                self.verdicts.append((lane, message._seq, frames.RETURNED, None, "the consumer left"))
            if self.driver.owner:
                self.bell.ring()
        else:
            self._wake(len(messages))

    def _drain(self) -> Iterator[Message]:
        """Everything on loan that no thread was fast enough to take."""
        while True:
            try:
                yield self._lent.popleft()
            except IndexError:
                return

    def settle(self, lane: InLane, seq: int, kind: int, delay: float | None = None, text: str = "") -> None:
        """Puts a verdict other than an ack down for the loop."""
        if not self.driver.owner:
            self.driver.require_process()
        self.verdicts.append((lane, seq, kind, delay, text))
        if not self.bell.rung:
            self.bell.ring()

    def _may_start(self, message: Message) -> bool:
        arrival = message._arrival
        lane = lane_behind(arrival.lane)
        if lane.alive and arrival.expires_at is None:
            return True
        if lane in self._given_up:
            self.verdicts.append((lane, message._seq))  # nobody will hear it, but it is held no longer
            self.bell.ring()
            return False
        if arrival.expires_at is None or time.monotonic() < arrival.expires_at:
            return True
        self.settle(lane, message._seq, frames.EXPIRED, None, "its time to live ended in the consumer's buffer")
        return False

    def _wait(self, deadline: float | None, count: int = 1, *, while_room: bool = False) -> bool:
        """Waits for ``count`` messages in the hands of nobody; whether there are some."""
        asked = False
        while len(self._lent) < count and not self.closed and (self.room or not while_room):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            ticket = threading.Lock()
            ticket.acquire()
            self._tickets.append(ticket)
            self._wanted = max(count, self._wanted)
            if self.more:
                self.bell.ring()
            if not self.room and not asked:
                asked = self._starved = True
                self.bell.ring()
            try:
                # Once more, because what came before there was a ticket has woken nobody.
                if len(self._lent) < count and not self.closed and (self.room or not while_room):
                    acquire(ticket, left)
            except BaseException:
                if not self._drop(ticket):
                    self._wake(1)  # somebody else must hear what this thread was woken for
                raise
            self._drop(ticket)
        return bool(self._lent)

    def _drop(self, ticket: threading.Lock) -> bool:
        try:
            self._tickets.remove(ticket)
        except ValueError:
            return False
        return True

    def _wake(self, count: int) -> None:
        for _ in range(count):
            try:
                self._tickets.popleft().release()
            except IndexError:
                return

    # -- for the loop ----------------------------------------------------------------------------------------

    def lend(self) -> None:
        """Gives what has arrived to the threads."""
        if self._given_up:
            self._given_up = {lane for lane in self._given_up if lane.unsettled}
        if not self.closed:
            # Some loops' clocks stand still while they wait, so threads get deadlines on a clock that does not.
            offset = time.monotonic() - self.driver.now()
            shared: ThreadLane | None = None
            for arrival in self._take_back():
                if shared is None or arrival.lane is not shared.lane:
                    shared = self._make_lane(self, arrival.lane)
                arrival.lane = shared
                if arrival.expires_at is not None:
                    arrival.expires_at += offset
                self._lent.extend(arrival.open())
            # Threads take what they have been lent, and then see that this is the end.
            self.closed = self._finishing and not self.more
        self._look_for_room()
        self._wake(len(self._tickets) if self.closed else min(len(self._tickets), len(self._lent)))

    def _take_back(self) -> Iterable[Arrival]:
        topics = self._topics
        if topics is None:
            return self._inbox.take_back()
        # Before the look at who waits: who comes to wait after it sees this, and asks.
        self.more = topics.has_more
        waiting, have = len(self._tickets), len(self._lent)
        wanted = max(waiting, self._wanted) if waiting else 0
        self._wanted = 0
        subscription, before = topics.subscription, topics.taken_bytes
        # With the newest values alone wanted, one that lies here would only grow old.
        ahead = 0 if subscription.latest else AHEAD
        most = min(max(ahead, wanted), subscription.buffer)
        most_bytes = subscription.buffer_bytes
        if wanted <= max(waiting, have):  # else a batch is to be filled
            most_bytes = min(AHEAD_BYTES, most_bytes)
        lent = topics.lend(
            most - have, most_bytes - self._count_lent_bytes(have), waiting - have, over_gaps=not have or wanted > have
        )
        if lent:
            self._lent_count += sum(map(len, lent))
            self._lent_bytes += topics.taken_bytes - before
            self._loans.append((self._lent_count, topics.taken_bytes - before))
        self.more = topics.has_more
        # A batch that has to fill waits in vain: the buffer's worth is lent.
        self.room = not (wanted > have and self.more and not lent)
        return lent

    def _count_lent_bytes(self, have: int) -> int:
        """Bytes of the topics' messages on loan, about."""
        taken = self._lent_count - have
        while self._loans and self._loans[0][0] <= taken:
            self._lent_bytes -= self._loans.popleft()[1]
        return self._lent_bytes

    def apply(self) -> None:
        """Passes the verdicts on to their lanes. The first one on a message counts, whoever gave it."""
        verdicts = self.verdicts
        lane: InLane | None = None
        start = stop = -1  # acks of neighbours are passed on as one
        for _ in range(len(verdicts)):
            verdict = verdicts.popleft()
            if len(verdict) != 2:
                self._judge(*verdict)
            elif verdict[1] == stop and verdict[0] is lane:
                stop += 1
            else:
                if lane is not None:
                    lane.ack_run(start, stop)
                lane, start = verdict
                stop = start + 1
        if lane is not None:
            lane.ack_run(start, stop)

    @staticmethod
    def _judge(lane: InLane, seq: int, kind: int, delay: float | None, text: str) -> None:
        try:
            if kind == EXTENDED:
                lane.extend(seq)
            elif seq >= lane.floor and seq not in lane.done:
                lane.judge(seq, kind, delay, text)
        except Exception as error:
            # One verdict that makes no sense must not cost the others behind it.
            logger.exception("a verdict on message %d of %r failed", seq, lane.queue)
            if kind != EXTENDED:
                lane.judge(seq, frames.NACKED, None, f"its verdict failed: {describe_error(error)}")

    @property
    def waiting(self) -> int:
        """Messages on loan that no thread has taken yet."""
        return len(self._lent)

    def finish(self) -> None:
        """Lets threads take what there is of topics, and then go."""
        self._finishing = True
        self.lend()

    def close(self) -> None:
        """Lends no more, takes back what nobody started, and lets every waiting thread go."""
        self.closed = True
        self.apply()
        self._recall()
        self._wake(len(self._tickets))

    def pause(self, paused: bool) -> None:
        """While every thread hangs, what none of them took goes to other consumers (G4)."""
        if isinstance(self._inbox, Inbox):
            self._recall()
            self._inbox.pause(paused)

    def _recall(self) -> None:
        """Takes what nobody started back into the inbox."""
        offset = time.monotonic() - self.driver.now()
        back: list[Arrival] = []
        for message in self._drain():
            arrival = message._alone()  # apart from those that threads hold, and settle by way of this hand-off
            arrival.lane = lane_behind(arrival.lane)
            if arrival.expires_at is not None:
                arrival.expires_at -= offset
            back.append(arrival)
        self._inbox.arrivals.extendleft(reversed(back))

    def _answer(self) -> None:
        self.apply()
        self.driver.turn()  # the verdicts leave now, and credit goes with them
        if self._topics is not None:
            self.lend()
        else:
            self._look_for_room()
        if self._starved:
            self._starved = False
            self.on_starved()

    def _give_up(self, lane: InLane) -> None:
        self._given_up.add(lane)

    def _look_for_room(self) -> None:
        if self._topics is None:
            self.room = self._inbox.has_room
        if not self.room:
            self._wake(len(self._tickets))  # who waits for a batch to fill waits in vain


class ThreadLane:
    """The ``Settler`` of messages on loan: what a thread says of them goes to the lane by way of the hand-off."""

    __slots__ = ("_handoff", "lane", "queue", "sender")

    def __init__(self, handoff: Handoff, lane: Any) -> None:
        self._handoff = handoff
        self.lane = lane
        self.sender = lane.sender
        self.queue = lane.queue

    def message_id(self, number: int) -> str:
        text: str = self.lane.message_id(number)
        return text

    def require_usable(self) -> None:
        """Any thread may settle a message on loan."""

    def ack(self, seq: int) -> None:
        handoff = self._handoff
        if not handoff.driver.owner:
            handoff.driver.require_process()
        handoff.verdicts.append((self.lane, seq))
        if not handoff.bell.rung:
            handoff.bell.ring()

    def ack_run(self, start: int, stop: int) -> None:
        for seq in range(start, stop):
            self.ack(seq)

    def nack(self, seq: int, delay: float | None, error: str) -> None:
        self._handoff.settle(self.lane, seq, frames.NACKED, delay, error)

    def reject(self, seq: int, reason: str) -> None:
        self._handoff.settle(self.lane, seq, frames.REJECTED, None, reason)

    def extend(self, seq: int) -> None:
        self._handoff.settle(self.lane, seq, EXTENDED)


def lane_behind(settler: Settler) -> InLane:
    """The lane that a message on loan came on."""
    assert isinstance(settler, ThreadLane), "what is on loan has one of these"
    lane: InLane = settler.lane
    return lane


class ThreadPublication(ThreadLane):
    """For messages that nobody waits to hear of: only what went wrong with them does."""

    __slots__ = ()

    def ack(self, seq: int) -> None:
        if not self._handoff.driver.owner:
            self._handoff.driver.require_process()

    def ack_run(self, start: int, stop: int) -> None:
        self.ack(start)


def acquire(ticket: threading.Lock, timeout_s: float | None) -> bool:
    """Takes a lock within ``timeout_s`` seconds; a signal is handled soon, whenever it comes."""
    if threading.current_thread() is not threading.main_thread():
        return ticket.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left = STEP_S if deadline is None else min(STEP_S, max(0.0, deadline - time.monotonic()))
        if ticket.acquire(timeout=left):
            return True
        if deadline is not None and time.monotonic() >= deadline:
            return False
