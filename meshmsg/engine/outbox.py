"""A queue's outbox: every accepted message is ready, scheduled, in flight, processed or dead, and nowhere else.

Hot path: ``push`` appends to a list. Everything else happens once a turn, in runs.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from meshmsg.engine.balance import STRATEGIES
from meshmsg.engine.lane import OutLane, verdict_name
from meshmsg.engine.retry import backoff
from meshmsg.engine.run import Details, Run
from meshmsg.engine.waiting import Aside, count_live, rank_of, singles, skim, sweep_line, take_ready
from meshmsg.errors import ProtocolError
from meshmsg.message import Attempt, Ledger, Reason
from meshmsg.options import PushOptions
from meshmsg.wire import frames

# Messages a run holds at most: keeps splitting a long backlog cheap.
MAX_RUN = 1024
# Bytes of bodies in one frame: large enough to be cheap, small enough not to stall heartbeats behind it.
MAX_FRAME_BYTES = 256 * 1024
# Settled messages that may still be in lines and heaps; more only if as many are pending.
MAX_SETTLED = 256
# Bodies up to this many bytes may be let in by count, see ``Outbox.burst``.
SMALL = 4096
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
        self.first_id = 0  # of the first message ever; those below belong to outboxes that are over
        self._inherited: set[int] = set()  # dead letters of these that were redriven here
        self.staged: list[bytes] = []
        self.staged_bytes = 0
        self.lanes: dict[int, OutLane] = {}
        self.watched: set[int] = set()
        self.outcomes: list[int] = []  # watched ones that were processed
        self.burst = 0  # so many small bodies certainly fit; whoever takes room counts it down
        self.dirty = False  # something happened since the last dispatch
        self.changed: Callable[[Outbox], None] = lambda outbox: None  # told once when it becomes dirty
        self._generator = generator
        self._bury = bury
        self._share = STRATEGIES[options.balance]
        self._ready: dict[int, deque[Run]] = {0: deque()}  # by priority
        self._suspects: deque[Run] = deque()
        self.waiting = 0  # messages in these two; dropped ones count until somebody passes them over
        self._aside = Aside()
        self._turns = 0
        self._routable_at = 0.0  # when a consumer was last there

    def adopt(self, options: PushOptions) -> None:
        """Takes the options of a queue's owner, after dead letters opened it without any."""
        self._room += options.max_pending - self.options.max_pending
        self._room_bytes += options.max_pending_bytes - self.options.max_pending_bytes
        self.burst = 0
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
        self._count_down(len(bodies), size)
        self.mark()
        return first

    def _count_down(self, count: int, size: int) -> None:
        self.burst = max(0, self.burst - max(count, -(-size // SMALL)))

    def push_detailed(self, body: bytes, details: Details, now: float, topic: str | None = None) -> int:
        """Accepts a message with a key, a priority, headers, a delay or a time to live."""
        self.absorb(now)
        run = Run(self.next_id, [body], now, details, topic=topic)
        self.next_id += 1
        self._room -= 1
        self._room_bytes -= len(body)
        self._count_down(1, len(body))
        if details.expires_at is not None:
            self._aside.expiring.push(details.expires_at, run)
        self._admit(run, now)
        return run.first_id

    def turn_away(self, body: bytes, details: Details | None, now: float, topic: str | None = None) -> int:
        """Accepts a message for which ``drop_for`` found no room, as a dead letter; returns its number (G1).

        Its end is told as that of a watched one: who sent it cannot have begun to watch it.
        """
        self.absorb(now)
        run = Run(self.next_id, [body], now, details, topic=topic)
        self.next_id += 1
        self._room -= 1
        self._room_bytes -= len(body)
        self.watched.add(run.first_id)
        self._die(run, "overflow", f"the outbox of {self.queue!r} was full of what consumers hold", now)
        return run.first_id

    def revive(self, run: Run, now: float) -> None:
        """Takes a dead letter back: a new life with all its attempts and no time to live, under its old id."""
        before = run.require_details()
        details = Details(before.key, before.priority, before.headers)
        details.history = before.history
        details.redelivered = before.redelivered or bool(before.history)
        if run.first_id < self.first_id and run.first_id not in self._inherited:
            self._inherited.add(run.first_id)
        else:
            self.dead -= 1
        self._room -= 1
        self._room_bytes -= len(run.bodies[0])
        self._count_down(1, len(run.bodies[0]))
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
                self._aside.expiring.push(now + self.options.ttl, run)
                ready.append(run)
                self.waiting += 1
                self.next_id += 1
        self.mark()

    def _admit(self, run: Run, now: float) -> None:
        """Puts a single message where it waits: first for its key, then until it is due."""
        self.mark()
        details = run.require_details()
        if details.key is not None and not self._aside.keys.enter(run, details.key):
            self._note_aside(run)
        else:
            self._begin(run, now)

    def _begin(self, run: Run, now: float) -> None:
        """A message that waits for no other one any more."""
        due_at = run.require_details().due_at
        if due_at is not None and due_at > now:
            self._schedule(run, due_at)
        else:
            self._enqueue(run)

    def _schedule(self, run: Run, due_at: float) -> None:
        self._aside.scheduled.push(due_at, run)
        self._note_aside(run)
        self.mark()

    def _note_aside(self, run: Run) -> None:
        self._aside.note(run, MAX_SETTLED + 2 * self.pending)

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

    def drop_for(self, size: int, now: float) -> bool:
        """Makes room for a body by dropping the oldest messages, lowest priority first (``overflow``).

        What is with consumers is not dropped; False if that leaves no room.
        """
        self.absorb(now)
        if self.room_bytes < size:
            held = sum([run.bytes for lane in self.lanes.values() for _, run in lane.records])
            if self.options.max_pending_bytes - held < size:
                return False  # whatever else is dropped
        while self.room <= 0 or self.room_bytes < size:
            run = self._take_oldest()
            if run is None:
                return False
            self._die(run, "overflow", f"the outbox of {self.queue!r} was full", now)
        self._forget_settled()
        return True

    def _take_oldest(self) -> Run | None:
        """The message to drop next: ready, scheduled or in line for its key."""
        found = self._aside.find_oldest()
        lines = (*self._ready.values(), self._suspects)
        self.waiting -= sum([skim(line) for line in lines])
        oldest = min([line for line in lines if line], key=lambda line: rank_of(line[0]), default=None)
        if oldest is None or (found is not None and rank_of(found) < rank_of(oldest[0])):
            return found  # if it is ready by now, it is passed over there
        self.waiting -= 1
        return oldest.popleft() if len(oldest[0]) == 1 else oldest[0].split(1)

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
            self._take_back([(run, 0.0) for run in singles(lane.settle(lane.received, lane.next_seq))], now)
        for run in singles(lane.settle(0, lane.next_seq)):
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
            self._processed([run for _, run in lane.settle_ranges(ack.ranges)], now)
        if ack.floor > lane.floor:
            self._processed(lane.settle(0, ack.floor), now)
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
        """What is settled leaves lines and heaps early: a long wait must not keep it in memory (G5)."""
        if self._aside.settled <= MAX_SETTLED + 2 * self.pending:
            return
        self._aside.sweep()
        self.waiting -= sum([sweep_line(line) for line in (*self._ready.values(), self._suspects)])

    def _take_back(self, runs: list[tuple[Run, float]], now: float) -> None:
        """What was never started costs no attempt (G4); but it was on the way once. Each goes again after a delay."""
        for run, delay in reversed(runs):
            details = run.require_details()
            details.redelivered = True
            if details.expires_at is not None and details.expires_at <= now + delay:
                self._die(run, "expired", "its time to live ended on the way", now)
            elif delay:
                self._schedule(run, now + delay)
            else:
                self._enqueue(run, first=True)

    def _processed(self, runs: list[Run], now: float) -> None:
        for run in runs:
            count = len(run)
            self.processed += count
            self._room += count
            self._room_bytes += run.bytes
            self.mark()
            if run.details is not None:
                self._settle(run.details, now)
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
        if delay > 0:
            self._schedule(run, now + delay)
        else:
            self._enqueue(run, first=True)

    def _note(self, run: Run, consumer: str, verdict: str, text: str, now: float) -> None:
        run.require_details().history.append(Attempt(consumer, now + self.wall_offset, verdict, text))

    def _die(self, run: Run, reason: Reason, error: str, now: float) -> None:
        for single in singles([run]):
            details = single.require_details()
            self.dead += 1
            self._room += 1
            self._room_bytes += len(single.bodies[0])
            self.mark()
            self._settle(details, now)
            self._bury(self, single, reason, error)

    def _settle(self, details: Details, now: float) -> None:
        """A message has its end: the next one of its key may go (G3)."""
        details.settled = True
        self._aside.settled += 1
        if details.owns_key:
            heir = self._aside.keys.release(details)
            if heir is not None:
                self._begin(heir, now)

    # -- time ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Moves what is due to ready, and what is over to the dead letters."""
        for run in self._aside.scheduled.pop_until(now):
            details = run.require_details()
            details.due_at = None
            self._enqueue(run, first=details.redelivered)
        for run in self._aside.expiring.pop_until(now):
            details = run.require_details()
            if not details.in_flight:
                self._die(run, "expired", "its time to live ended before a consumer took it", now)
        self._forget_settled()
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
        times = [when for when in (self._aside.scheduled.soonest, self._aside.expiring.soonest) if when is not None]
        if self.options.unroutable_after is not None and not self.lanes:
            starts = [line[0].accepted_at for line in (*self._ready.values(), self._suspects) if line]
            times += [max(start, self._routable_at) + self.options.unroutable_after for start in starts]
        return min(times, default=None)

    # -- dispatch --------------------------------------------------------------------------------------------

    def dispatch(self, now: float) -> list[tuple[OutLane, list[Run]]]:
        """Hands ready messages to lanes with credit; each result goes out as frames of its lane."""
        self.dirty = False
        if not self.waiting:
            return []
        open_lanes = [lane for lane in self.lanes.values() if lane.open and lane.credit > 0]
        if not open_lanes:
            return []
        out: list[tuple[OutLane, list[Run]]] = []
        if self._suspects:
            out += self._dispatch_suspects(open_lanes)
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
                runs = self._take(share, lane.max_body_bytes)
                if runs:
                    out.append((lane, runs))
        if any(lane.max_body_bytes is not None for lane in lanes):
            out += self._dispatch_passed_over(lanes, out)
        return out

    def _dispatch_passed_over(
        self, lanes: list[OutLane], out: list[tuple[OutLane, list[Run]]]
    ) -> Iterator[tuple[OutLane, list[Run]]]:
        """What was too large for the consumer whose share it was goes to whoever takes it and has credit left."""
        given = {lane.number: sum(map(len, runs)) for lane, runs in out}
        for lane in lanes:
            credit = lane.credit - given.get(lane.number, 0)
            if credit > 0 and self.waiting > len(self._suspects):
                runs = self._take(credit, lane.max_body_bytes)
                if runs:
                    yield lane, runs

    def _dispatch_suspects(self, lanes: list[OutLane]) -> list[tuple[OutLane, list[Run]]]:
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

    def _take(self, count: int, max_body_bytes: int | None) -> list[Run]:
        runs, gone = take_ready(self._ready, count, max_body_bytes)
        self.waiting -= gone
        return runs

    # -- looking ---------------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """The books of this queue at this moment (G1)."""
        in_flight = sum(lane.in_flight for lane in self.lanes.values())
        ready = count_live(run for line in (*self._ready.values(), self._suspects) for run in line)
        ready += len(self.staged)
        return Ledger(
            accepted=self.next_id - self.first_id + len(self._inherited) + len(self.staged),
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
        idle = not (self.pending or self.waiting or self.staged or self.staged_bytes or self._aside.scheduled)
        ready = (*self._ready.values(), self._suspects)
        if idle and not any(
            (*ready, *self._aside.keys.lines.values(), *[lane.records for lane in self.lanes.values()])
        ):
            assert self.ledger().balanced, f"{self.queue} holds nothing: {self.ledger()}"
            return
        waiting = sum([len(run) for line in ready for run in line])
        assert self.waiting == waiting, f"{self.queue}: counts {self.waiting} waiting, holds {waiting}"
        assert self.staged_bytes == sum(map(len, self.staged)), f"{self.queue}: {self.staged_bytes} bytes staged"
        books, held = self.ledger(), self.held_ids()
        assert books.balanced and len(held) == len(set(held)) == books.pending, f"{self.queue}: {books}, held {held}"

    def held_ids(self) -> list[int]:
        """Numbers of every pending message, for the simulator's own books."""
        lines: list[Iterable[Run]] = [*self._ready.values(), self._suspects, self._aside.keys, self._aside.scheduled]
        lines.append(run for lane in self.lanes.values() for _, run in lane.records)
        return [
            number
            for line in lines
            for run in line
            if not (run.details and run.details.settled)
            for number in range(run.first_id, run.first_id + len(run))
        ] + list(range(self.next_id, self.next_id + len(self.staged)))
