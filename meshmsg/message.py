"""What applications hold in their hands: messages, batches, dead letters, ledgers, events."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, cast

from meshmsg.checks import require_number
from meshmsg.errors import AlreadySettled, ConfigurationError, DeadLettered, NodeClosed, Reject

Reason = Literal["rejected", "attempts", "expired", "unroutable", "overflow"]


class Settler(Protocol):
    """Where a message's verdict goes: the receiving half of the lane it came on."""

    @property
    def sender(self) -> str: ...
    @property
    def queue(self) -> str: ...
    def message_id(self, number: int) -> str: ...
    def require_usable(self) -> None: ...
    def ack(self, seq: int) -> None: ...
    def ack_run(self, start: int, stop: int) -> None: ...
    def nack(self, seq: int, delay: float | None, error: str) -> None: ...
    def reject(self, seq: int, reason: str) -> None: ...
    def extend(self, seq: int) -> None: ...


class Arrival:
    """Messages that came together and what they share; ``bodies[i]`` has ``first_seq + i`` and ``first_number + i``.

    What a consumer buffers. A ``Message`` is made of one only when somebody wants to hold it.
    """

    __slots__ = ("bodies", "details", "expires_at", "first_number", "first_seq", "lane")

    def __init__(
        self,
        lane: Settler,
        first_seq: int,
        first_number: int,
        bodies: list[Any],
        details: dict[str, Any] | None = None,
        expires_at: float | None = None,
    ) -> None:
        self.lane = lane
        self.first_seq = first_seq
        self.first_number = first_number
        self.bodies = bodies
        self.details = details  # such as its attempt; a message with any but its topic came alone
        self.expires_at = expires_at

    def __len__(self) -> int:
        return len(self.bodies)

    def open(self) -> Iterator[Message]:
        """Each as a message of its own, which holds its body from here on: one in hand must not keep all in memory."""
        bodies, self.bodies = self.bodies, []
        return map(Message, repeat(self), range(len(bodies)), bodies)

    def part(self, start: int, stop: int) -> Arrival:
        """Some of them, as if they had come apart from the others."""
        bodies = self.bodies[start:stop]
        return Arrival(
            self.lane, self.first_seq + start, self.first_number + start, bodies, self.details, self.expires_at
        )


class Message:
    """One message in a consumer's hands. It wants exactly one verdict: ack, nack or reject (G1, G2).

    Used as a context manager it acks at the end; an exception nacks and goes on, ``Reject`` rejects and ends there.

    >>> from meshmsg.testing import make_message
    >>> message = make_message({"path": "a.jpg"}, queue="thumbnails")
    >>> with message:
    ...     print(message.body["path"], message.queue, message.attempt)
    a.jpg thumbnails 1
    >>> message.settled
    True
    """

    __slots__ = ("_arrival", "_index", "body", "settled")

    def __init__(self, arrival: Arrival, index: int, body: Any) -> None:
        self._arrival = arrival
        self._index = index
        self.body = body
        self.settled = False

    def _alone(self) -> Arrival:
        """Back to how it came, without those that came with it."""
        arrival = self._arrival
        return Arrival(arrival.lane, self._seq, self._number, [self.body], arrival.details, arrival.expires_at)

    @property
    def _lane(self) -> Settler:
        return self._arrival.lane

    @property
    def _seq(self) -> int:
        return self._arrival.first_seq + self._index

    @property
    def _number(self) -> int:
        return self._arrival.first_number + self._index

    @property
    def _details(self) -> dict[str, Any]:
        return self._arrival.details or {}

    @property
    def id(self) -> str:
        """``node/queue/number``: stable over retries, restarts of consumers, and redrives."""
        return self._lane.message_id(self._number)

    @property
    def sender(self) -> str:
        """Name of the node that sent it."""
        return self._lane.sender

    @property
    def queue(self) -> str:
        """The queue it came through."""
        return self._lane.queue

    @property
    def topic(self) -> str | None:
        """The topic it was published to; None for work that was pushed."""
        return self._details.get("t")

    @property
    def attempt(self) -> int:
        """1 for the first attempt; a nack, a timeout and the loss of a consumer each count one (G4)."""
        return cast(int, self._details.get("a", 1))

    @property
    def redelivered(self) -> bool:
        """Whether it was sent to a consumer before (G2)."""
        return bool(self._details.get("r"))

    @property
    def key(self) -> str | None:
        """The key whose messages are processed in order, or None (G3)."""
        return self._details.get("k")

    @property
    def priority(self) -> int:
        """0 unless the sender said otherwise; higher goes first."""
        return cast(int, self._details.get("p", 0))

    @property
    def headers(self) -> Mapping[str, Any]:
        """What the sender put beside the body; empty by default."""
        return self._details.get("h") or {}

    def ack(self) -> None:
        """It is done. Raises ``AlreadySettled`` at a second verdict."""
        if self.settled:
            self._refuse_second_verdict()
        self._lane.require_usable()
        self._lane.ack(self._seq)
        self.settled = True

    def nack(self, delay: float | None = None, error: str | BaseException = "nack") -> None:
        """It failed: again after the queue's backoff, or after ``delay`` seconds; ``error`` is kept (G4)."""
        if self.settled:
            self._refuse_second_verdict()
        if delay is not None:
            # A sender takes a verdict with any other delay for a breach of protocol.
            delay = _require_delay(delay)
        text = _require_text("nack(error=)", error)
        self._lane.require_usable()
        self._lane.nack(self._seq, delay, text)
        self.settled = True

    def reject(self, reason: str | BaseException = "rejected") -> None:
        """It can never succeed: a dead letter at once, with this text as its error."""
        if self.settled:
            self._refuse_second_verdict()
        text = _require_text("reject(reason=)", reason)
        self._lane.require_usable()
        self._lane.reject(self._seq, text)
        self.settled = True

    def extend(self) -> None:
        """Starts the handler's ``timeout`` anew. Without a ``timeout`` no extension is ever needed."""
        self._lane.require_usable()
        self._lane.extend(self._seq)

    def _refuse_second_verdict(self) -> None:
        raise AlreadySettled(f"message {self.id} already has its verdict; give each message exactly one")

    def __enter__(self) -> Message:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            if not self.settled:
                self.ack()
            return False
        if not self.settled:
            _judge_in_passing(self, error)
        return _is_all(error, Reject)

    def __repr__(self) -> str:
        settled = ", settled" if self.settled else ""
        return f"<Message {self.id!r} from {self.sender!r}: attempt {self.attempt}{settled}>"


class Batch(Sequence[Message]):
    """Messages taken together; as a context manager it acks or nacks all that have no verdict yet.

    It costs less than as many messages: who works on ``bodies`` never makes any, and neighbours settle as one range.
    """

    __slots__ = ("_acked", "_arrivals", "_messages")

    def __init__(self, messages: list[Message] | None = None, arrivals: Sequence[Arrival] = ()) -> None:
        self._messages = messages
        self._arrivals = arrivals
        self._acked = False

    @property
    def messages(self) -> list[Message]:
        """The messages, in order."""
        if self._messages is None:
            self._messages = list(chain.from_iterable(arrival.open() for arrival in self._arrivals))
            if self._acked:
                for message in self._messages:
                    message.settled = True
        return self._messages

    @property
    def bodies(self) -> list[Any]:
        """The bodies, in order."""
        if self._messages is not None:
            return [message.body for message in self._messages]
        return list(chain.from_iterable(arrival.bodies for arrival in self._arrivals))

    def ack(self) -> None:
        """Acks every message that has no verdict yet."""
        if self._messages is None:
            if not self._acked:
                self._ack_arrivals()
            return
        if self._messages:
            self._messages[0]._lane.require_usable()
        for message in self._messages:
            if not message.settled:
                message._lane.ack(message._seq)
                message.settled = True

    def _ack_arrivals(self) -> None:
        for arrival in self._arrivals:
            arrival.lane.require_usable()
            arrival.lane.ack_run(arrival.first_seq, arrival.first_seq + len(arrival))
        self._acked = True

    def nack(self, delay: float | None = None, error: str | BaseException = "nack") -> None:
        """Nacks every message that has no verdict yet."""
        for message in self.messages:
            if not message.settled:
                message.nack(delay, error)

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            self.ack()
            return False
        for message in self.messages:
            if not message.settled:
                _judge_in_passing(message, error)
        return _is_all(error, Reject)

    def __len__(self) -> int:
        return sum(map(len, self._arrivals)) if self._messages is None else len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __getitem__(self, index: Any) -> Any:
        return self.messages[index]

    def __repr__(self) -> str:
        queues = {arrival.lane.queue for arrival in self._arrivals} or {each.queue for each in self._messages or ()}
        return f"<Batch of {len(self)} from {', '.join(map(repr, sorted(queues))) or 'nowhere'}>"


class Gap(NamedTuple):
    """Messages that a subscriber will never get: ``missed`` of a topic, from ``start`` to before ``stop`` (G6).

    ``publisher`` is a name, which several nodes may have; ``publisher_id`` is the id of one (``Peer.id``).
    """

    topic: str
    publisher: str
    missed: int
    start: int
    stop: int
    publisher_id: str = ""


class Attempt(NamedTuple):
    """One attempt at a message: which consumer, when (Unix seconds), and how it ended."""

    consumer: str
    time: float
    verdict: str
    error: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that will not be tried again, with its reason and history (G1)."""

    id: str
    queue: str
    body: Any
    headers: Mapping[str, Any]
    key: str | None
    reason: Reason
    error: str
    attempts: tuple[Attempt, ...]
    accepted_at: float
    died_at: float
    topic: str | None = None  # if it was published, and went to a group

    def __repr__(self) -> str:
        tried = "1 attempt" if len(self.attempts) == 1 else f"{len(self.attempts)} attempts"
        said = f", {reprlib.repr(self.error)}" if self.error else ""
        return f"<DeadLetter {self.id!r}: {self.reason}{said}, {tried}, body {reprlib.repr(self.body)}>"


class Ledger(NamedTuple):
    """Where the messages of a queue are: ``accepted = processed + dead + pending``, always.

    ``pending`` splits into ``ready`` (waits for a consumer or for credit), ``in_flight`` (with a consumer) and
    ``scheduled`` (waits for its delay or backoff, or for the message before it of the same key).

    ``redelivered`` is no part of the sum: it counts attempts that failed (a nack, a timeout, a lost consumer) and after
    which the message is tried again. One that makes a dead letter does not count, nor does what a consumer returned
    unstarted, although ``message.redelivered`` is set for that, too.

    >>> Ledger(accepted=3, processed=1, dead=0, pending=2, ready=2).balanced
    True
    """

    accepted: int = 0
    processed: int = 0
    dead: int = 0
    pending: int = 0
    ready: int = 0
    in_flight: int = 0
    scheduled: int = 0
    redelivered: int = 0

    def __str__(self) -> str:
        """The equation, as people read it.

        >>> print(Ledger(accepted=3, processed=1, dead=0, pending=2, ready=2))
        3 accepted = 1 processed + 0 dead + 2 pending; 0 redelivered
        """
        sides = f"{self.accepted} accepted = {self.processed} processed + {self.dead} dead + {self.pending} pending"
        return f"{sides}; {self.redelivered} redelivered"

    @property
    def balanced(self) -> bool:
        """Whether the books agree."""
        inside = self.ready + self.in_flight + self.scheduled
        return self.accepted == self.processed + self.dead + self.pending and self.pending == inside


@dataclass(frozen=True, slots=True)
class Event:
    """Something rare that an operator wants to know; ``kind`` is one of the names in ``docs/guarantees.md``."""

    kind: str
    time: float
    peer: str = ""
    peer_id: str = ""
    queue: str = ""
    text: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node as this one sees it."""

    id: str
    name: str
    state: Literal["alive", "suspect"]
    endpoints: tuple[str, ...]
    offers: Mapping[str, Any]
    silent_for: float

    def __repr__(self) -> str:
        where = ", ".join(self.endpoints) or "nowhere"
        return f"<Peer {self.name!r} ({self.id[:12]}) at {where}: {self.state}, silent for {self.silent_for:.1f} s>"

    @property
    def pulls(self) -> tuple[str, ...]:
        """Queues it consumes."""
        return tuple(self.offers.get("pull", ()))

    @property
    def pushes(self) -> tuple[str, ...]:
        """Queues it produces for."""
        return tuple(self.offers.get("push", ()))


def judge_by_error(message: Message, error: BaseException) -> None:
    """The verdict that an exception stands for: rejected if trying again cannot help, else nacked.

    It cannot help after ``Reject``, nor after ``DeadLettered``: what the handler passed on is a dead letter there,
    and another attempt would only make another one. A group (as of a ``TaskGroup``) of nothing else is the same.
    """
    if _is_all(error, (Reject, DeadLettered)):
        message.reject(_explain(error) or "rejected")
    else:
        message.nack(error=describe_error(error))


def describe_error(error: BaseException) -> str:
    """An exception as one line of at most 1,000 characters, for verdicts and dead letters."""
    said = say(error)
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return text if len(text) <= 1000 else text[:997] + "..."


def say(error: BaseException) -> str:
    """An exception's own words; one that cannot even say them must not cost a message its verdict."""
    try:
        return str(error)
    except Exception:
        return ""


def _is_all(error: BaseException | None, kinds: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    """Whether an error is of these kinds, or a group of such errors only."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_all(each, kinds) for each in error.exceptions)
    return isinstance(error, kinds)


def _explain(error: BaseException) -> str:
    """What those who rejected a message said about it."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(filter(None, map(_explain, error.exceptions)))
    return say(error) if isinstance(error, Reject) else describe_error(error)


def _judge_in_passing(message: Message, error: BaseException) -> None:
    """``judge_by_error`` while the error goes on; that the node is closed by now must not hide it."""
    try:
        judge_by_error(message, error)
    except NodeClosed:
        pass


def _require_delay(delay: object) -> float:
    require_number("nack(delay=)", delay, at_least=0)
    assert isinstance(delay, (int, float))
    return float(delay)


def _require_text(where: str, text: object) -> str:
    if isinstance(text, str):
        return text
    if isinstance(text, BaseException):
        return describe_error(text)
    raise ConfigurationError(f"{where} takes a text or an exception, not {type(text).__name__} {text!r}")
