"""A lane: one producer's numbered stream to one consumer, with its credit. Both halves live here.

Sequence numbers are the lane's own and never reused; message ids belong to the outbox and stay over retries, as
QUIC keeps packet numbers apart from stream offsets (RFC 9000, section 12.3). State that travels is absolute, so a
lost or repeated frame changes nothing that the next one doesn't repair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from meshmsg.engine.run import Run
from meshmsg.errors import ProtocolError
from meshmsg.wire import frames

# In flight on one lane at most, whatever credit the peer gives: stays far below the sockets' high-water mark,
# so that libzmq neither blocks nor drops on this path.
MAX_IN_FLIGHT = 16_384
MAX_TEXT = 1000  # characters of a verdict's text
MAX_TEXTS = 256 * 1024  # characters of all such texts in one frame


class Trial:
    """What one consumer's process holds of this node's suspects, over all queues; see ``Outbox._suspect_room``."""

    __slots__ = ("suspects",)

    def __init__(self) -> None:
        self.suspects = 0


class OutLane:
    """The producer's half: what is in flight to one consumer."""

    __slots__ = (
        "in_flight",
        "leaving",
        "limit",
        "max_body_bytes",
        "next_seq",
        "number",
        "open",
        "peer",
        "peer_name",
        "received",
        "records",
        "resent",
        "returns",
        "stated_want",
        "suspects",
        "trial",
    )

    def __init__(self, number: int, peer: str, peer_name: str, trial: Trial | None = None) -> None:
        self.trial = trial or Trial()
        self.number = number
        self.peer = peer
        self.peer_name = peer_name
        self.next_seq = 0
        self.received = 0  # the consumer said that it has got everything below
        self.limit = 0  # may send up to this sequence number, exclusive
        self.returns = 0  # how often credit was given back; credit granted before the last time is void
        self.records: deque[tuple[int, Run]] = deque()  # (first sequence number, run), ascending
        self.in_flight = 0
        self.suspects = 0  # how many of them were in a lost consumer's hands before
        self.open = True  # False while the peer is suspect: no new work
        self.leaving = False  # the consumer stopped; the lane ends when nothing is in flight any more
        self.max_body_bytes: int | None = None  # the consumer takes no larger ones; None if it takes all of ours
        # From which message, and when: guards against resending twice for one gap.
        self.resent: tuple[int, float] = (-1, 0.0)
        self.stated_want = -1

    @property
    def credit(self) -> int:
        """How many more messages may be sent now."""
        return min(self.limit - self.next_seq, MAX_IN_FLIGHT - self.in_flight)

    @property
    def floor(self) -> int:
        """Everything below is settled and known to be."""
        return self.records[0][0] if self.records else self.next_seq

    def append(self, run: Run) -> int:
        """Puts a run in flight and returns its first sequence number."""
        first_seq = self.next_seq
        self.records.append((first_seq, run))
        self.next_seq += len(run)
        self.in_flight += len(run)
        if run.details is not None:
            run.details.in_flight = True
            self._count_suspects(run.details.losses > 0)
        return first_seq

    def settle(self, start: int, stop: int) -> list[Run]:
        """Takes what is still in flight in ``[start, stop)`` out of the lane."""
        return [run for _, run in self.settle_ranges(((start, stop),))]

    def settle_ranges(self, ranges: Iterable[Sequence[int]]) -> list[tuple[int, Run]]:
        """Takes what is in flight in ascending ranges out of the lane, with its first numbers; only this splits runs.

        One pass for all of them: a consumer may settle every other one of thousands of messages, over and over (G11).
        """
        settled: list[tuple[int, Run]] = []
        before: list[tuple[int, Run]] = []
        records = self.records
        for start, stop in ranges:
            while records and records[0][0] < stop:
                first, run = records.popleft()
                last = first + len(run)
                if last <= start:
                    before.append((first, run))
                    continue
                if first < start:
                    before.append((first, run.split(start - first)))
                    first = start
                if last > stop:
                    settled.append((first, run.split(stop - first)))
                    records.appendleft((stop, run))
                    break
                settled.append((first, run))
        records.extendleft(reversed(before))
        for _, run in settled:
            self.in_flight -= len(run)
            if run.details is not None:
                run.details.in_flight = False
                self._count_suspects(-(run.details.losses > 0))
        return settled

    def _count_suspects(self, more: int) -> None:
        self.suspects += more
        self.trial.suspects += more

    def grant(self, limit: int, returns: int) -> bool:
        """Takes a consumer's absolute credit; says whether it is news. Older grants than the last return are void."""
        if returns != self.returns or limit <= self.limit:
            return False
        self.limit = limit
        return True

    def give_back(self) -> None:
        """Returns unused credit, so that a consumer with little of it can serve a busier producer."""
        self.returns += 1
        self.limit = self.next_seq

    def check(self) -> None:
        """The lane's own invariants, for the simulator."""
        expected = lost = 0
        last = -1
        for first, run in self.records:
            assert first > last and len(run), f"lane {self.number} has records out of order"
            last = first + len(run) - 1
            expected += len(run)
            if run.details is not None:
                assert not run.details.settled, f"lane {self.number} holds message {run.first_id}, which is settled"
                lost += run.details.losses > 0
        assert self.in_flight == expected, f"lane {self.number} counts {self.in_flight}, holds {expected}"
        assert self.suspects == lost, f"lane {self.number} counts {self.suspects} suspects, holds {lost}"
        assert last < self.next_seq <= self.limit, f"lane {self.number} sent past its credit"


class TrialSeat:
    """At most one message on trial in a process, so that no other dies of it; see ``Outbox._suspect_room``."""

    __slots__ = ("_lane", "_seq")

    def __init__(self) -> None:
        self._lane: InLane | None = None
        self._seq = 0

    def take(self, lane: InLane, seq: int) -> bool:
        """Seats a message, unless another one sits there and has no verdict yet."""
        if self._lane is not None and not self._lane.has_verdict(self._seq):
            return False
        self._lane, self._seq = lane, seq
        return True


class InLane:
    """The consumer's half: what was received, what has its verdict. It is the ``Settler`` of its messages."""

    __slots__ = (
        "alive",
        "changed",
        "dirty",
        "done",
        "extended",
        "flags",
        "floor",
        "granted_at",
        "guard",
        "limit",
        "number",
        "peer",
        "prefix",
        "queue",
        "received",
        "returns",
        "sender",
        "verdicts",
        "want",
    )

    def __init__(self, number: int, peer: str, sender: str, queue: str, changed: Callable[[InLane], None]) -> None:
        self.number = number
        self.peer = peer
        self.sender = sender
        self.queue = queue
        self.prefix = f"{peer.partition('.')[0][:12]}/{queue}/"
        self.changed = changed
        self.dirty = False
        self.received = 0  # the sequence number expected next
        self.limit = 0
        self.returns = 0
        self.floor = 0  # everything below has its verdict
        self.done: set[int] = set()  # and these above it
        self.verdicts: dict[int, tuple[int, float | None, str]] = {}  # not acks, until the producer knows them
        self.want = 0  # how much waits at the producer
        self.flags = 0
        self.granted_at = 0
        self.alive = True  # False: the producer is gone or gave the lane up; verdicts lead nowhere
        self.extended: Callable[[InLane, int], None] | None = None
        self.guard: Callable[[], None] | None = None  # raises where messages cannot be settled

    @property
    def settled(self) -> int:
        """How many messages have their verdict."""
        return self.floor + len(self.done)

    @property
    def unsettled(self) -> int:
        """How many messages this consumer holds."""
        return self.received - self.floor - len(self.done)

    @property
    def outstanding(self) -> int:
        """What counts against the prefetch: messages held, and credit that may turn into some."""
        return self.limit - self.settled

    def has_verdict(self, seq: int) -> bool:
        """Whether a message is settled."""
        return seq < self.floor or seq in self.done

    def message_id(self, number: int) -> str:
        """The id of the sender's message with this number."""
        return f"{self.prefix}{number}"

    def require_usable(self) -> None:
        """Raises the exception that tells why a message cannot be settled here and now."""
        if self.guard is not None:
            self.guard()

    def accept(self, first_seq: int, count: int) -> int:
        """Counts an arriving batch; returns how many of its first messages were seen before.

        Raises ``ProtocolError`` when the peer sent past its credit (G5, G11).
        """
        if first_seq > self.received:
            self.flags |= frames.GAP
            self.mark()
            return count
        if first_seq + count > self.limit:
            raise ProtocolError(f"lane {self.number} got message {first_seq + count - 1}, limit {self.limit}")
        seen = min(self.received - first_seq, count)
        self.received += count - seen
        return seen

    def ack(self, seq: int) -> None:
        """Done, successfully."""
        if seq == self.floor:
            self.floor = seq + 1
            if self.done:
                self._advance()
        else:
            self.done.add(seq)
        if not self.dirty:
            self.dirty = True
            self.changed(self)

    def ack_run(self, start: int, stop: int) -> None:
        """Done, successfully, all of ``[start, stop)``; what has its verdict already keeps it."""
        if start == self.floor and not self.done:
            self.floor = stop
            self.mark()
            return
        for seq in range(start, stop):
            if seq >= self.floor and seq not in self.done:
                self.ack(seq)

    def nack(self, seq: int, delay: float | None, error: str) -> None:
        """Failed; wants another attempt."""
        self.judge(seq, frames.NACKED, delay, error)

    def reject(self, seq: int, reason: str) -> None:
        """Can never succeed."""
        self.judge(seq, frames.REJECTED, None, reason)

    def judge(self, seq: int, kind: int, delay: float | None, text: str) -> None:
        """Any verdict but an ack; it is repeated until the producer's floor says that it was heard."""
        # File names bring lone surrogates into error texts; those cannot travel, and must not stop the rest.
        self.verdicts[seq] = (kind, delay, text[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()[:MAX_TEXT])
        self.ack(seq)

    def extend(self, seq: int) -> None:
        """Restarts the handler's timeout, if there is one."""
        if self.extended is not None:
            self.extended(self, seq)

    def heard(self, floor: int) -> None:
        """The producer knows every verdict below ``floor``; they need not be repeated."""
        if self.verdicts:
            for seq in [seq for seq in self.verdicts if seq < floor]:
                del self.verdicts[seq]

    def mark(self) -> None:
        """Has something to say to the producer."""
        if not self.dirty:
            self.dirty = True
            self.changed(self)

    def state(self) -> frames.Ack:
        """Everything the producer needs to know, absolute."""
        return frames.Ack(
            self.number,
            self.received,
            self.limit,
            self.returns,
            self.floor,
            list(self._ranges()) if self.done else [],
            self._stated_verdicts() if self.verdicts else [],
            self.flags,
        )

    def check(self) -> None:
        """The lane's own invariants, for the simulator."""
        assert self.floor <= self.received <= self.limit, f"lane {self.number}: {self.state()}"
        if self.done:
            assert self.floor < min(self.done) <= max(self.done) < self.received, f"lane {self.number}: {self.done}"

    def _stated_verdicts(self) -> list[list[Any]]:
        # All of them, since the floor covers them too; with very many, their texts are cut to keep the frame small.
        cut = MAX_TEXTS // len(self.verdicts)
        return [[seq, kind, delay, text[:cut]] for seq, (kind, delay, text) in self.verdicts.items()]

    def _advance(self) -> None:
        while self.floor in self.done:
            self.done.remove(self.floor)
            self.floor += 1

    def _ranges(self) -> Iterator[list[int]]:
        start = stop = -1
        for seq in sorted(self.done):
            if seq != stop:
                if stop >= 0:
                    yield [start, stop]
                start = seq
            stop = seq + 1
        yield [start, stop]


def verdict_name(kind: Any) -> str:
    """A verdict kind in words, for histories."""
    names = {
        frames.NACKED: "nacked",
        frames.REJECTED: "rejected",
        frames.EXPIRED: "expired",
        frames.RETURNED: "returned",
    }
    return names.get(kind, "unknown")
