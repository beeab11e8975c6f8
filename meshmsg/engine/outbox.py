"""A queue's outbox: every accepted message is ready, scheduled, in flight, processed or dead, and nowhere else.

Hot path: ``push`` appends to a list. Everything else happens once a turn, in runs.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from meshmsg.engine.balance import STRATEGIES
from meshmsg.engine.lane import OutLane, verdict_name
from meshmsg.engine.retry import backoff
from meshmsg.engine.run import Details, Run
from meshmsg.errors import ProtocolError
from meshmsg.message import Attempt, Ledger, Reason
from meshmsg.options import PushOptions
from meshmsg.wire import frames

# Messages a run holds at most: keeps splitting a long backlog cheap.
MAX_RUN = 1024
# Bytes of bodies in one frame: large enough to be cheap, small enough not to stall heartbeats behind it.
MAX_FRAME_BYTES = 256 * 1024
# Settled messages that may wait in a heap until they are due; more only if as many are pending.
MAX_SETTLED = 256
# Suspects with one consumer at a time, see ``_suspect_room``.
SUSPECT_WINDOW = 16


class Outbox:
    """The messages of one queue in one producer.

    ``bury`` is called with ``(run, reason, error)`` for each message that dies.
    """

    def __init__(
        self,
        queue: str,
        options: PushOptions,
        generator: random.Random,
        bury: Callable[[Outbox, Run, Reason, str], None],
        wall_offset: float = 0.0,
    ) -> None:
        self.queue = queue
        self.options = options
        self.wall_offset = wall_offset  # wall clock minus the engine's clock, for histories
        self._room = options.max_pending  # messages that may still be accepted
        self._room_bytes = options.max_pending_bytes
        self.processed = 0
        self.dead = 0
        self.redelivered = 0
        self.next_id = 0  # of the first message that is still staged
        self.staged: list[bytes] = []
        self.staged_bytes = 0
        self.lanes: dict[int, OutLane] = {}
        self.watched: set[int] = set()
        self.outcomes: list[int] = []  # watched ones that were processed
        self.dirty = False  # something happened since the last dispatch
        self.changed: Callable[[Outbox], None] = lambda outbox: None  # told once when it becomes dirty
        self._generator = generator
        self._bury = bury
        self._share = STRATEGIES[options.balance]
        self._ready: dict[int, deque[Run]] = {0: deque()}  # by priority
        self._suspects: deque[Run] = deque()
        self.waiting = 0  # messages in these two; dropped ones count until somebody passes them over
        self._scheduled: list[tuple[float, int, Run]] = []
        self._expiring: list[tuple[float, int, Run]] = []
        self._keys: dict[str, deque[Run]] = {}  # a key is here while one of its messages is under way
        self._turns = 0
        self._routable_at = 0.0  # when a consumer was last there

    def adopt(self, options: PushOptions) -> None:
        """Takes the options of a queue's owner, after dead letters opened it without any."""
        self._room += options.max_pending - self.options.max_pending
        self._room_bytes += options.max_pending_bytes - self.options.max_pending_bytes
        self._share = STRATEGIES[options.balance]
        self.options = options
        self.mark()

    def mark(self) -> None:
        """Has something to be dispatched, or for another time than before."""
        if not self.dirty:
            self.dirty = True
            self.changed(self)

    # -- accepting -------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more messages ``max_pending`` allows (G5)."""
        return self._room - len(self.staged)

    @property
    def room_bytes(self) -> int:
        """How many more bytes of bodies ``max_pending_bytes`` allows (G5)."""
        return self._room_bytes - self.staged_bytes

    @property
    def pending(self) -> int:
        """Messages accepted and neither processed nor dead."""
        return self.options.max_pending - self.room

    @property
    def pending_bytes(self) -> int:
        """Bytes of their bodies."""
        return self.options.max_pending_bytes - self.room_bytes

    def fits(self, size: int) -> bool:
        """Whether a body of this size keeps within both limits."""
        return self.room > 0 and self.room_bytes >= size

    def push(self, body: bytes) -> int:
        """Accepts a plain message and returns its number. The caller has looked at the room."""
        return self.push_many([body], len(body))

    def push_many(self, bodies: list[bytes], size: int) -> int:
        """Accepts plain messages, of so many bytes together, and returns the number of the first."""
        first = self.next_id + len(self.staged)
        self.staged += bodies
        self.staged_bytes += size
        self.mark()
        return first

    def push_detailed(self, body: bytes, details: Details, now: float, topic: str | None = None) -> int:
        """Accepts a message with a key, a priority, headers, a delay or a time to live."""
        self.absorb(now)
        run = Run(self.next_id, [body], now, details, topic=topic)
        self.next_id += 1
        self._room -= 1
        self._room_bytes -= len(body)
        if details.expires_at is not None:
            heapq.heappush(self._expiring, (details.expires_at, run.first_id, run))
        self._admit(run, now)
        return run.first_id

    def revive(self, run: Run, now: float) -> None:
        """Takes a dead letter back: a new life with all its attempts and no time to live, under its old id."""
        before = run.require_details()
        details = Details(before.key, before.priority, before.headers)
        details.history = before.history
        details.redelivered = before.redelivered or bool(before.history)
        self.dead -= 1
        self._room -= 1
        self._room_bytes -= len(run.bodies[0])
        # A run of its own: the old one may still be in a queue or heap, to be passed over.
        self._admit(Run(run.first_id, run.bodies, now, details, topic=run.topic), now)

    def absorb(self, now: float) -> None:
        """Turns what was staged since the last turn into ready runs."""
        staged = self.staged
        if not staged:
            return
        size = self.staged_bytes
        self.staged, self.staged_bytes = [], 0
        self._room -= len(staged)
        self._room_bytes -= size
        ready = self._ready[0]
        for start in range(0, len(staged), MAX_RUN):
            part = staged[start : start + MAX_RUN] if len(staged) > MAX_RUN else staged
            if self.options.ttl is None:
                ready.append(Run(self.next_id, part, now, None, size if part is staged else None))
                self.waiting += len(part)
                self.next_id += len(part)
                continue
            for body in part:
                run = Run(self.next_id, [body], now, Details(expires_at=now + self.options.ttl))
                heapq.heappush(self._expiring, (now + self.options.ttl, run.first_id, run))
                ready.append(run)
                self.waiting += 1
                self.next_id += 1
        self.mark()

    def _admit(self, run: Run, now: float) -> None:
        """Puts a single message where it waits: schedule, line of its key, or ready."""
        details = run.details
        assert details is not None
        self.mark()
        if details.due_at is not None and details.due_at > now:
            heapq.heappush(self._scheduled, (details.due_at, run.first_id, run))
            return
        if details.key is not None:
            line = self._keys.get(details.key)
            if line is not None:
                line.append(run)
                return
            self._keys[details.key] = deque()
            details.owns_key = True
        self._enqueue(run)

    def _enqueue(self, run: Run, *, first: bool = False) -> None:
        """Ready to go; ``first`` for what was under way before."""
        self.mark()
        self.waiting += len(run)
        details = run.details
        if details is not None and details.losses:
            self._suspects.append(run)
            return
        line = self._ready.setdefault(details.priority if details else 0, deque())
        if first:
            line.appendleft(run)
        else:
            line.append(run)

    def drop_for(self, size: int, now: float) -> None:
        """Makes room for a body by dropping the oldest waiting messages, lowest priority first (``overflow``).

        What is with consumers is not dropped: with all of it there, the outbox holds more for a while.
        """
        self.absorb(now)
        while not self.fits(size):
            run = self._take_suspect() or next(self._take(1, now, lowest_first=True), None)
            if run is None:
                return
            self._die(run, "overflow", f"the outbox of {self.queue!r} was full", now)

    def _take_suspect(self) -> Run | None:
        """The next suspect, if nothing else that waits is older or less urgent."""
        heads = [(priority, line[0].first_id) for priority, line in self._ready.items() if line]
        while self._suspects:
            run = self._suspects[0]
            details = run.require_details()
            if not details.settled and heads and min(heads) < (details.priority, run.first_id):
                return None
            self._suspects.popleft()
            self.waiting -= 1
            if not details.settled:
                return run
        return None

    # -- lanes -----------------------------------------------------------------------------------------------

    def open_lane(self, lane: OutLane) -> None:
        """A consumer appeared."""
        self.lanes[lane.number] = lane
        self.mark()

    def close_lane(self, number: int, verdict: str, now: float, *, said_all: bool = False) -> None:
        """A consumer is lost. It cannot say what it had started, so all it held counts as one attempt (G4).

        If it ``said_all`` before it left, what it had not received by then was not started for certain.
        """
        lane = self.lanes.pop(number, None)
        if lane is None:
            return
        self._routable_at = now
        self.mark()
        if said_all:
            self._take_back([(run, 0.0) for run in self._singles(lane.settle(lane.received, lane.next_seq))], now)
        for run in self._singles(lane.settle(0, lane.next_seq)):
            details = run.require_details()
            details.losses += 1
            self._failed(run, lane.peer_name, verdict, f"consumer {lane.peer_name!r} was lost ({verdict})", None, now)

    def on_ack(self, lane: OutLane, ack: frames.Ack, now: float) -> bool:
        """Applies a consumer's state; returns whether it held verdicts that were news."""
        if ack.floor > lane.next_seq or ack.received > lane.next_seq:
            raise ProtocolError(f"an ACK up to {ack.floor} of {lane.next_seq} messages sent")
        # First, because floor and ranges cover judged messages too.
        news = bool(ack.verdicts) and self._on_verdicts(lane, ack, now)
        if ack.ranges:
            self._processed([run for _, run in lane.settle_ranges(ack.ranges)])
        if ack.floor > lane.floor:
            self._processed(lane.settle(0, ack.floor))
        if self._expiring or self._scheduled:
            self._forget_settled()
        lane.received = max(lane.received, ack.received)
        if lane.grant(ack.limit, ack.returns):
            self.mark()
        return news

    def _on_verdicts(self, lane: OutLane, ack: frames.Ack, now: float) -> bool:
        verdicts = {verdict[0]: verdict[1:] for verdict in ack.verdicts}
        returned: list[tuple[Run, float]] = []
        settled = lane.settle_ranges([(seq, seq + 1) for seq in sorted(verdicts)])
        for seq, run in settled:
            kind, delay, text = verdicts[seq]
            if kind == frames.RETURNED:
                returned.append((run, delay or 0.0))
            else:
                self._judged(run, lane.peer_name, kind, delay, text, now)
        self._take_back(returned, now)
        return bool(settled)

    def _forget_settled(self) -> None:
        """Settled messages leave the heaps early: a long time to live must not keep them in memory (G5)."""
        for heap in (self._expiring, self._scheduled):
            if len(heap) > MAX_SETTLED + 2 * self.pending:
                heap[:] = [entry for entry in heap if not entry[2].require_details().settled]
                heapq.heapify(heap)

    def _take_back(self, runs: list[tuple[Run, float]], now: float) -> None:
        """What was never started costs no attempt (G4); but it was on the way once. Each goes again after a delay."""
        for run, delay in reversed(runs):
            details = run.require_details()
            details.redelivered = True
            if details.expires_at is not None and details.expires_at <= now + delay:
                self._die(run, "expired", "its time to live ended on the way", now)
            elif delay:
                heapq.heappush(self._scheduled, (now + delay, run.first_id, run))
                self.mark()
            else:
                self._enqueue(run, first=True)

    def _processed(self, runs: list[Run]) -> None:
        for run in runs:
            count = len(run)
            self.processed += count
            self._room += count
            self._room_bytes += run.bytes
            self.mark()
            if run.details is not None:
                run.details.settled = True
                self._release_key(run.details)
            if self.watched:
                known = self.watched.intersection(range(run.first_id, run.first_id + count))
                self.outcomes.extend(known)
                self.watched -= known

    def _judged(self, run: Run, consumer: str, kind: int, delay: float | None, text: str, now: float) -> None:
        if kind == frames.REJECTED:
            self._note(run, consumer, "rejected", text, now)
            self._die(run, "rejected", text, now)
        elif kind == frames.EXPIRED:
            self._note(run, consumer, "expired", text, now)
            self._die(run, "expired", text, now)
        else:
            details = run.require_details()  # its consumer lived to say so: not what kills consumers
            details.losses, details.trial = 0, False
            self._failed(run, consumer, verdict_name(kind), text, delay, now)

    def _failed(self, run: Run, consumer: str, verdict: str, text: str, delay: float | None, now: float) -> None:
        """One attempt is used up: again later, or dead (G4)."""
        details = run.require_details()
        details.attempts += 1
        details.redelivered = True
        self._note(run, consumer, verdict, text, now)
        retry = self.options.retry
        if details.attempts >= retry.max_attempts:
            self._die(run, "attempts", text, now)
            return
        if delay is None:
            first_loss = details.losses == 1 and details.attempts == 1
            lost = details.losses > 0
            delay = 0.0 if first_loss else backoff(retry, details.attempts, self._generator, lost=lost)
        if details.expires_at is not None and details.expires_at <= now + delay:
            self._die(run, "expired", f"its time to live ends before the next attempt; last error: {text}", now)
            return
        self.redelivered += 1
        self.mark()
        if delay > 0:
            heapq.heappush(self._scheduled, (now + delay, run.first_id, run))
        else:
            self._enqueue(run, first=True)

    def _note(self, run: Run, consumer: str, verdict: str, text: str, now: float) -> None:
        run.require_details().history.append(Attempt(consumer, now + self.wall_offset, verdict, text))

    def _die(self, run: Run, reason: Reason, error: str, now: float) -> None:
        for single in self._singles([run]):
            details = single.require_details()
            details.settled = True
            self.dead += 1
            self._room += 1
            self._room_bytes += len(single.bodies[0])
            self.mark()
            self._release_key(details)
            self._bury(self, single, reason, error)

    def _release_key(self, details: Details) -> None:
        """The next message of this key may go (G3)."""
        if details.key is None or not details.owns_key:
            return
        details.owns_key = False
        line = self._keys[details.key]
        while line:
            run = line.popleft()
            heir = run.require_details()
            if not heir.settled:
                heir.owns_key = True
                self._enqueue(run)
                return
        del self._keys[details.key]

    @staticmethod
    def _singles(runs: Iterable[Run]) -> Iterator[Run]:
        for run in runs:
            while len(run) > 1:
                yield run.split(1)
            yield run

    # -- time ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Moves what is due to ready, and what is over to the dead letters."""
        while self._scheduled and self._scheduled[0][0] <= now:
            _, _, run = heapq.heappop(self._scheduled)
            details = run.require_details()
            if details.settled:
                continue
            if details.redelivered:
                self._enqueue(run, first=True)  # it still owns its key
            else:
                details.due_at = None
                self._admit(run, now)
        while self._expiring and self._expiring[0][0] <= now:
            _, _, run = heapq.heappop(self._expiring)
            details = run.require_details()
            due = details.expires_at is not None and details.expires_at <= now  # not after a redrive
            if due and not details.settled and not details.in_flight:
                self._die(run, "expired", "its time to live ended before a consumer took it", now)
        if self.options.unroutable_after is not None and not self.lanes:
            self._bury_unroutable(now)

    def _bury_unroutable(self, now: float) -> None:
        patience = self.options.unroutable_after
        assert patience is not None
        error = self._explain_unroutable(patience)
        for line in (*self._ready.values(), self._suspects):  # more of a key may become ready meanwhile
            while line and max(line[0].accepted_at, self._routable_at) + patience <= now:
                run = line.popleft()
                self.waiting -= len(run)
                if not (run.details and run.details.settled):
                    self._die(run, "unroutable", error, now)

    def _explain_unroutable(self, patience: float) -> str:
        return f"no node pulled {self.queue!r} for {patience:g} s; start one, or raise unroutable_after="

    def wake_at(self) -> float | None:
        """When ``tick`` next has something to do."""
        times = [heap[0][0] for heap in (self._scheduled, self._expiring) if heap]
        if self.options.unroutable_after is not None and not self.lanes:
            starts = [line[0].accepted_at for line in (*self._ready.values(), self._suspects) if line]
            times += [max(start, self._routable_at) + self.options.unroutable_after for start in starts]
        return min(times, default=None)

    # -- dispatch --------------------------------------------------------------------------------------------

    def dispatch(self, now: float) -> list[tuple[OutLane, list[Run]]]:
        """Hands ready messages to lanes with credit; each result goes out as frames of its lane."""
        self.dirty = False
        open_lanes = [lane for lane in self.lanes.values() if lane.open and lane.credit > 0]
        if not open_lanes:
            return []
        out: list[tuple[OutLane, list[Run]]] = []
        if self._suspects:
            out += self._dispatch_suspects(open_lanes, now)
        # What was just handed out is not in the lanes' own counts yet, so their credit must not be spent again.
        given = {lane.number for lane, _ in out}
        lanes = [lane for lane in open_lanes if not lane.trial.suspects and lane.number not in given]
        waiting = self.waiting - len(self._suspects)
        if not lanes or not waiting:
            return out
        self._turns += 1
        if len(lanes) > 1:  # rotated, so that remainders don't always start with the oldest lane
            turn = self._turns % len(lanes)
            lanes = lanes[turn:] + lanes[:turn]
        shares = self._share(
            waiting, [lane.in_flight for lane in lanes], [lane.credit for lane in lanes], self._generator
        )
        for lane, share in zip(lanes, shares, strict=True):
            if share:
                runs = list(self._take(share, now, lane.max_body_bytes))
                if runs:
                    out.append((lane, runs))
        if any(lane.max_body_bytes is not None for lane in lanes):
            out += self._dispatch_passed_over(lanes, out, now)
        return out

    def _dispatch_passed_over(
        self, lanes: list[OutLane], out: list[tuple[OutLane, list[Run]]], now: float
    ) -> Iterator[tuple[OutLane, list[Run]]]:
        """What was too large for the consumer whose share it was goes to whoever takes it and has credit left."""
        given = {lane.number: sum(map(len, runs)) for lane, runs in out}
        for lane in lanes:
            credit = lane.credit - given.get(lane.number, 0)
            if credit > 0 and self.waiting > len(self._suspects):
                runs = list(self._take(credit, now, lane.max_body_bytes))
                if runs:
                    yield lane, runs

    def _dispatch_suspects(self, lanes: list[OutLane], now: float) -> list[tuple[OutLane, list[Run]]]:
        out: list[tuple[OutLane, list[Run]]] = []
        for lane in sorted(lanes, key=lambda lane: lane.in_flight):
            runs: list[Run] = []
            passed: list[Run] = []  # too large for this consumer
            taken = 0
            while self._suspects and taken < lane.credit:
                run = self._suspects[0]
                if run.details is not None and run.details.settled:
                    self._suspects.popleft()
                    self.waiting -= 1
                    continue
                if lane.max_body_bytes is not None and run.bytes > lane.max_body_bytes:
                    passed.append(self._suspects.popleft())
                    continue
                room = self._suspect_room(run)
                if lane.trial.suspects + taken >= room:
                    break
                run.require_details().trial = room == 1
                runs.append(self._suspects.popleft())
                self.waiting -= 1
                taken += 1
            self._suspects.extendleft(reversed(passed))
            if runs:
                out.append((lane, runs))
        return out

    def _suspect_room(self, run: Run) -> int:
        """How many of our suspects a consumer may hold with this one.

        What a lost consumer held is suspect: one of it may have killed it. Suspects go out in small windows and,
        when they have seen two losses or have one attempt left, alone; so the attempts of the poison message run
        out, and only its. A consumer that has one of another producer on trial sends them back unstarted.
        """
        details = run.require_details()
        alone = details.losses > 1 or details.attempts + 1 >= self.options.retry.max_attempts
        return 1 if alone else SUSPECT_WINDOW

    def _take(
        self, count: int, now: float, max_body_bytes: int | None = None, *, lowest_first: bool = False
    ) -> Iterator[Run]:
        """Takes up to ``count`` ready messages, highest priority first, in the order they became ready.

        Larger ones than ``max_body_bytes`` stay where they are.
        """
        for priority in sorted(self._ready, reverse=not lowest_first):
            line = self._ready[priority]
            passed: list[Run] = []
            while line and count:
                run = line[0]
                if run.details is not None and run.details.settled:
                    line.popleft()
                    self.waiting -= 1
                    continue
                fitting = len(run) if max_body_bytes is None else run.count_fitting(max_body_bytes)
                if not fitting:
                    passed.append(line.popleft() if len(run) == 1 else run.split(1))
                    continue
                if len(run) <= min(fitting, count):
                    line.popleft()
                else:
                    run = run.split(min(fitting, count))
                count -= len(run)
                self.waiting -= len(run)
                yield run
            line.extendleft(reversed(passed))
            if not line and priority:
                del self._ready[priority]

    # -- looking ---------------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """The books of this queue at this moment (G1)."""
        in_flight = sum(lane.in_flight for lane in self.lanes.values())
        ready = self._count_live(run for line in (*self._ready.values(), self._suspects) for run in line)
        ready += len(self.staged)
        return Ledger(
            accepted=self.next_id + len(self.staged),
            processed=self.processed,
            dead=self.dead,
            pending=self.pending,
            ready=ready,
            in_flight=in_flight,
            scheduled=self.pending - ready - in_flight,
            redelivered=self.redelivered,
        )

    def check(self) -> None:
        """Counts everything anew and compares, for the simulator."""
        for lane in self.lanes.values():
            lane.check()
        books = self.ledger()
        waiting = sum(len(run) for line in (*self._ready.values(), self._suspects) for run in line)
        assert self.waiting == waiting, f"{self.queue}: counts {self.waiting} waiting, holds {waiting}"
        scheduled = self._count_live(run for _, _, run in self._scheduled)
        scheduled += self._count_live(run for line in self._keys.values() for run in line)
        assert self.staged_bytes == sum(map(len, self.staged)), f"{self.queue}: {self.staged_bytes} bytes staged"
        assert books.accepted == books.processed + books.dead + books.pending, f"{self.queue}: {books}"
        assert books.scheduled == scheduled, f"{self.queue}: {books} but {scheduled} scheduled"
        held = self.held_ids()
        assert len(held) == len(set(held)) == books.pending, f"{self.queue}: {books} but {len(held)} held"

    def held_ids(self) -> list[int]:
        """Numbers of every pending message, for the simulator's own books."""
        lines: list[Iterable[Run]] = [*self._ready.values(), self._suspects, *self._keys.values()]
        lines.append(run for _, _, run in self._scheduled)
        lines.append(run for lane in self.lanes.values() for _, run in lane.records)
        return [
            number
            for line in lines
            for run in line
            if not (run.details and run.details.settled)
            for number in range(run.first_id, run.first_id + len(run))
        ] + list(range(self.next_id, self.next_id + len(self.staged)))

    @staticmethod
    def _count_live(runs: Iterable[Run]) -> int:
        return sum(len(run) for run in runs if not (run.details and run.details.settled))
