"""What can be configured, checked when it is given: one frozen dataclass a subject."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict, TypeVar

from meshmsg.checks import (
    find_group_fault,
    require_bool,
    require_choice,
    require_int,
    require_known,
    require_number,
    require_queue,
    require_strings,
    require_where,
)
from meshmsg.errors import ConfigurationError, UnknownOption

Balance = Literal["least_outstanding", "round_robin", "random"]
Overflow = Literal["wait", "drop_oldest"]

MAX_COUNT = 2**62  # of messages or bytes, as on the wire; peers are told of some of these numbers
MAX_FACTOR = 1000
MAX_PREFETCH = 10**6  # credit has to fit into a frame
MAX_REQUEST_ATTEMPTS = 5  # as in gRPC
OptionsT = TypeVar("OptionsT")


def _require_count(where: str, value: object, *, at_least: int) -> None:
    require_int(where, value, at_least=at_least, at_most=MAX_COUNT)


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed message is tried again, and how often (G4).

    Parameters
    ----------
    max_attempts:
        Attempts before the message becomes a dead letter; at least 1. Default 5 (Kafka's share groups use 5).
    backoff:
        Seconds before the second attempt, doubled by ``factor`` for each one after it.
    factor:
        Growth of the backoff, from 1 to 1000.
    max_backoff:
        Cap of the backoff in seconds.
    jitter:
        ``"full"`` draws the delay from ``U(0, backoff)``, ``"none"`` waits all of it. Full jitter is the
        variant with the least total work in AWS's "Exponential Backoff and Jitter" (Brooker, 2015).

    >>> Retry(max_attempts=3, backoff=0.1).ceiling(2)
    0.2
    """

    max_attempts: int = 5
    backoff: float = 0.5
    factor: float = 2.0
    max_backoff: float = 60.0
    jitter: Literal["full", "none"] = "full"

    def __post_init__(self) -> None:
        _require_count("Retry(max_attempts=)", self.max_attempts, at_least=1)
        require_number("Retry(backoff=)", self.backoff, at_least=0)
        require_number("Retry(factor=)", self.factor, at_least=1, at_most=MAX_FACTOR)
        require_number("Retry(max_backoff=)", self.max_backoff, at_least=0)
        require_choice("Retry(jitter=)", self.jitter, ("full", "none"))

    def ceiling(self, attempts: int) -> float:
        """Seconds that the delay after this many failed attempts can take at most."""
        # The exponent is bounded so that a long-lived message cannot overflow a float.
        return min(self.max_backoff, self.backoff * self.factor ** min(attempts - 1, 64))


@dataclass(frozen=True, slots=True)
class PushOptions:
    """Options of ``node.push(queue, ...)``: what a producer does with its work."""

    retry: Retry = field(default_factory=Retry)
    balance: Balance = "least_outstanding"
    max_pending: int = 10_000
    max_pending_bytes: int = 256 * 2**20
    overflow: Overflow = "wait"
    ttl: float | None = None
    unroutable_after: float | None = None
    dead_letter_to: str | None = None
    reliable: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.retry, Retry):
            raise ConfigurationError(f"retry= takes a Retry, not {self.retry!r}: retry=Retry(max_attempts=3)")
        require_choice("balance=", self.balance, ("least_outstanding", "round_robin", "random"))
        _require_count("max_pending=", self.max_pending, at_least=1)
        _require_count("max_pending_bytes=", self.max_pending_bytes, at_least=1)
        require_choice("overflow=", self.overflow, ("wait", "drop_oldest"))
        if self.ttl is not None:
            require_number("ttl=", self.ttl, at_least=0)
        if self.unroutable_after is not None:
            require_number("unroutable_after=", self.unroutable_after, at_least=0)
        if self.dead_letter_to is not None:
            require_queue("dead_letter_to=", self.dead_letter_to)
        require_bool("reliable=", self.reliable)


class PushKeywords(TypedDict, total=False):
    """The keywords of ``node.push``; ``PushOptions`` has their defaults."""

    retry: Retry
    balance: Balance
    max_pending: int
    max_pending_bytes: int
    overflow: Overflow
    ttl: float | None
    unroutable_after: float | None
    dead_letter_to: str | None
    on_dead_letter: Callable[[Any], Any] | None
    reliable: Literal[True]


class SendKeywords(TypedDict, total=False):
    """The keywords of ``send``, for those who pass them on."""

    key: str | None
    priority: int
    ttl: float | None
    delay: float | None
    headers: Mapping[str, Any] | None


class PullKeywords(TypedDict, total=False):
    """The keywords of ``node.pull``; ``PullOptions`` has their defaults."""

    prefetch: int
    concurrency: int
    timeout: float | None
    type: Any
    reliable: bool


@dataclass(frozen=True, slots=True)
class PullOptions:
    """Options of ``node.pull(queue, ...)``: how a consumer takes work.

    Parameters
    ----------
    prefetch:
        Messages that it holds without a verdict at most, started or not (G5).
    concurrency:
        Handlers that run at a time. One that does not end at its timeout keeps its place until it does.
    timeout:
        Seconds that a handler may take; None for no limit. It is for handlers: it does not limit what ``get``, an
        iteration or ``batches`` has handed out.
    type:
        What bodies are decoded into; one that does not fit is rejected.
    reliable:
        False for bare ZeroMQ PULL: no acks, no retries. Its producers have to say so, too.
    """

    prefetch: int = 256
    concurrency: int = 1
    timeout: float | None = None
    type: Any = None
    reliable: bool = True

    def __post_init__(self) -> None:
        require_int("prefetch=", self.prefetch, at_least=1, at_most=MAX_PREFETCH)
        require_int("concurrency=", self.concurrency, at_least=1, at_most=MAX_PREFETCH)
        if self.timeout is not None:
            require_number("timeout=", self.timeout, above=0)
        require_bool("reliable=", self.reliable)


class PubKeywords(TypedDict, total=False):
    """The keywords of ``node.pub``; ``PubOptions`` has their defaults."""

    retain: bool
    history: int
    history_bytes: int
    history_s: float | None
    block: bool
    window: int
    window_bytes: int
    will: Any
    reliable: Literal[True]
    retry: Retry
    max_pending: int
    max_pending_bytes: int
    dead_letter_to: str | None


@dataclass(frozen=True, slots=True)
class PubOptions:
    """Options of ``node.pub(pattern, ...)``: what a publisher keeps, and whether it waits (G6).

    Parameters
    ----------
    retain:
        Keep each topic's last message for whoever joins later.
    history:
        Messages of each topic that late joiners may ask for; 0 for none. A thousand, up to 1 MiB, are kept for repairs
        in any case.
    history_bytes:
        Bytes of bodies that the history of one topic takes at most.
    history_s:
        Seconds after which a message leaves the history; None for never.
    block:
        Let ``send`` wait for a subscriber that is ``window`` messages behind, or ``window_bytes``, instead of having it
        lose some.
    window, window_bytes:
        Messages of a topic, and bytes of their bodies and headers, that the slowest subscriber may be behind; they
        count with ``block``, and one message may go beyond the bytes. Behind is what it has yet to receive: what waits
        in its ``buffer`` it has. So handlers set the pace only with a small ``buffer`` there.
    will:
        A body that every subscriber of the topic gets when this node is gone without a goodbye: crashed, killed, or out
        of reach. It has the header ``will``. Needs one topic, and has 4 KiB at most.
    reliable:
        False for bare ZeroMQ PUB: no repair, no past, no ``Gap``. Its subscribers have to say so, too.
    retry, max_pending, max_pending_bytes, dead_letter_to:
        As for ``push``, for each group that subscribes here (G7). A group whose pattern reaches into several pubs of
        this node is one queue: the pub that was opened first decides.
    """

    retain: bool = False
    history: int = 0
    history_bytes: int = 64 * 2**20
    history_s: float | None = None
    block: bool = False
    window: int = 10_000
    window_bytes: int = 64 * 2**20
    will: Any = None
    reliable: bool = True
    retry: Retry = field(default_factory=Retry)
    max_pending: int = 10_000
    max_pending_bytes: int = 256 * 2**20
    dead_letter_to: str | None = None

    def __post_init__(self) -> None:
        require_bool("retain=", self.retain)
        _require_count("history=", self.history, at_least=0)
        _require_count("history_bytes=", self.history_bytes, at_least=1)
        if self.history_s is not None:
            require_number("history_s=", self.history_s, above=0)
        require_bool("block=", self.block)
        _require_count("window=", self.window, at_least=1)
        _require_count("window_bytes=", self.window_bytes, at_least=1)
        require_bool("reliable=", self.reliable)
        self.for_groups()

    def for_groups(self) -> PushOptions:
        """How a group's messages are kept and tried."""
        return PushOptions(
            retry=self.retry,
            max_pending=self.max_pending,
            max_pending_bytes=self.max_pending_bytes,
            dead_letter_to=self.dead_letter_to,
        )


Replay = Literal["none", "latest", "history"]


class SubKeywords(TypedDict, total=False):
    """The keywords of ``node.sub``; ``SubOptions`` has their defaults."""

    latest: bool
    replay: Replay
    buffer: int
    prefetch: int
    concurrency: int
    timeout: float | None
    type: Any
    reliable: bool
    where: Mapping[str, str | int | float | bool] | None
    on_gap: Callable[[Any], Any] | None


@dataclass(frozen=True, slots=True)
class SubOptions:
    """Options of ``node.sub(pattern, ...)``: how a subscriber takes messages (G6).

    Parameters
    ----------
    latest:
        Only the newest value of each topic waits; older ones that were not taken are passed over (conflation).
    replay:
        What of the past a new subscription gets: ``"none"``, each topic's ``"latest"`` retained value, or its
        ``"history"``, as far as the publisher keeps them.
    buffer:
        Messages that wait here at most. What does not fit stays with its publisher, and is lost with a ``Gap`` when
        that keeps it no longer. A publisher with ``block`` waits for what stays with it, not for what waits here.
    prefetch, concurrency, timeout, type:
        As for ``pull``.
    reliable:
        False for bare ZeroMQ SUB, which hears publishers that are opened so: what does not fit is lost without a word.
    where:
        Only messages whose headers hold these values; looked at here, as they come: others take no room in ``buffer``.
    """

    latest: bool = False
    replay: Replay = "none"
    buffer: int = 65_536
    prefetch: int = 256
    concurrency: int = 1
    timeout: float | None = None
    type: Any = None
    reliable: bool = True
    where: Mapping[str, str | int | float | bool] | None = None

    def __post_init__(self) -> None:
        require_bool("reliable=", self.reliable)
        require_where("where=", self.where)
        if self.latest and self.where:
            raise ConfigurationError(
                "latest=True keeps the newest message of a topic, whatever its headers: "
                "leave out where=, or publish what differs to topics of its own"
            )
        require_bool("latest=", self.latest)
        require_choice("replay=", self.replay, ("none", "latest", "history"))
        _require_count("buffer=", self.buffer, at_least=1)
        PullOptions(self.prefetch, self.concurrency, self.timeout)


class GroupKeywords(TypedDict, total=False):
    """The keywords of ``node.sub`` with ``group=``; ``GroupOptions`` has their defaults."""

    durable: bool
    where: Mapping[str, str | int | float | bool] | None
    prefetch: int
    concurrency: int
    timeout: float | None
    type: Any


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """Options of ``node.sub(pattern, group=...)``: one member of each group processes each message (G7).

    Parameters
    ----------
    group:
        The members of one group share the work; every group gets all of it.
    durable:
        Publishers keep collecting for the group while it has no members, up to their ``max_pending``; then the oldest
        become dead letters. One that starts meanwhile does not know the group. The last member to leave decides:
        joining without it, and leaving, ends a durable group.
    where:
        Only messages whose headers hold these values; looked at by the publisher.
    prefetch, concurrency, timeout, type:
        As for ``pull``.
    """

    group: str
    durable: bool = False
    where: Mapping[str, str | int | float | bool] | None = None
    prefetch: int = 256
    concurrency: int = 1
    timeout: float | None = None
    type: Any = None

    def __post_init__(self) -> None:
        fault = find_group_fault(self.group)
        if fault is not None:
            raise ConfigurationError(f"group= takes a name, got {reprlib.repr(self.group)}: {fault}")
        require_bool("durable=", self.durable)
        require_where("where=", self.where)
        self.for_pull()

    def for_pull(self) -> PullOptions:
        """How a member takes its work."""
        return PullOptions(self.prefetch, self.concurrency, self.timeout, self.type)


class RouterKeywords(TypedDict, total=False):
    """The keywords of ``node.router``; ``RouterOptions`` has their defaults."""

    concurrency: int
    max_queue: int
    max_queue_bytes: int
    timeout: float | None
    tracebacks: bool
    interceptors: Iterable[Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """Options of ``node.router(service, ...)``: how requests are served (G8).

    Parameters
    ----------
    concurrency:
        Requests that run at a time.
    max_queue:
        Requests that wait beyond these; more get ``Overloaded`` at once, with a time to come back.
    max_queue_bytes:
        Bytes that the arguments of those that wait take at most, as they travel; one request may always wait.
    timeout:
        Seconds that a method may run, if its caller gives it longer; None for as long as the caller waits.
    tracebacks:
        Whether callers get the text of a traceback.
    """

    concurrency: int = 64
    max_queue: int = 1000
    max_queue_bytes: int = 64 * 2**20
    timeout: float | None = None
    tracebacks: bool = True

    def __post_init__(self) -> None:
        _require_count("concurrency=", self.concurrency, at_least=1)
        _require_count("max_queue=", self.max_queue, at_least=0)
        _require_count("max_queue_bytes=", self.max_queue_bytes, at_least=1)
        if self.timeout is not None:
            require_number("timeout=", self.timeout, above=0)
        require_bool("tracebacks=", self.tracebacks)


RequestBalance = Literal["fastest", "least_outstanding", "round_robin", "random"]


class DealerKeywords(TypedDict, total=False):
    """The keywords of ``node.dealer``; ``DealerOptions`` has their defaults."""

    timeout: float | None
    balance: RequestBalance
    idempotent: bool | Iterable[str]
    retry: Retry
    hedge_after: float | Literal["p95"] | None
    max_pending: int
    interceptors: Iterable[Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class DealerOptions:
    """Options of ``node.dealer(service, ...)``: how requests are made (G8).

    Parameters
    ----------
    timeout:
        Seconds that a request may take, if it does not say so itself; None for no limit. A request that is made while
        serving another never gets longer than that one has left.
    balance:
        ``"fastest"`` takes the better of two random providers by recent response times and open requests (peak EWMA and
        power of two choices, as Finagle does); or ``"least_outstanding"``, ``"round_robin"``, ``"random"``.
    idempotent:
        Methods that may run twice: True for all, or their names. Only these are retried and hedged.
    retry:
        How often and when an idempotent request is tried again after ``PeerLost``, ``Overloaded``, ``Unavailable``; at
        most 5 attempts, and at most 20 % of the traffic plus 10 a second (gRPC's and Finagle's limits).
    hedge_after:
        Seconds after which an idempotent request also goes to a second provider, ``"p95"`` for the time that 95 % of
        the last requests took; the first answer counts. None for never.
    max_pending:
        Requests that are under way at most; ``request`` waits for room. The default is less than what a router takes
        by default (64 that run, and 1,000 that wait), so that one dealer alone never gets ``Overloaded`` there.
    """

    timeout: float | None = 10.0
    balance: RequestBalance = "fastest"
    idempotent: bool | Iterable[str] = False
    retry: Retry = field(default_factory=lambda: Retry(backoff=0.05, max_backoff=1.0))
    hedge_after: float | Literal["p95"] | None = None
    max_pending: int = 1000

    def __post_init__(self) -> None:
        if self.timeout is not None:
            require_number("timeout=", self.timeout, above=0)
        require_choice("balance=", self.balance, ("fastest", "least_outstanding", "round_robin", "random"))
        if not isinstance(self.idempotent, bool):
            require_strings("idempotent=", self.idempotent, 'True, or names: idempotent=["get"]')
            object.__setattr__(self, "idempotent", frozenset(self.idempotent))
        if not isinstance(self.retry, Retry) or self.retry.max_attempts > MAX_REQUEST_ATTEMPTS:
            raise ConfigurationError(
                f"retry= takes a Retry of at most {MAX_REQUEST_ATTEMPTS} attempts, got {self.retry!r}"
            )
        if self.hedge_after is not None and self.hedge_after != "p95":
            require_number("hedge_after=", self.hedge_after, at_least=0)
        _require_count("max_pending=", self.max_pending, at_least=1)

    def may_repeat(self, method: str) -> bool:
        """Whether a method was declared idempotent."""
        return self.idempotent if isinstance(self.idempotent, bool) else method in self.idempotent


@dataclass(frozen=True, slots=True)
class LivenessOptions:
    """How soon a silent peer is suspected, and how soon it is given up.

    Parameters
    ----------
    heartbeat:
        Seconds between two heartbeats to each peer.
    suspect_after:
        Seconds of silence after which a peer gets no new work.
    gone_after:
        Seconds without a sign of the peer's process after which its work goes elsewhere.
    stall_after:
        Seconds that a process may live without progress (its loop blocked) before its work goes elsewhere.
    """

    heartbeat: float = 0.5
    suspect_after: float = 1.5
    gone_after: float = 2.0
    stall_after: float = 30.0

    def __post_init__(self) -> None:
        require_number("heartbeat=", self.heartbeat, above=0)
        require_number("suspect_after=", self.suspect_after, above=0)
        require_number("gone_after=", self.gone_after, above=0)
        require_number("stall_after=", self.stall_after, above=0)
        if not self.heartbeat < self.suspect_after <= self.gone_after <= self.stall_after:
            raise ConfigurationError(
                "liveness needs heartbeat < suspect_after <= gone_after <= stall_after, got "
                f"{self.heartbeat}, {self.suspect_after}, {self.gone_after}, {self.stall_after}"
            )


# Keywords that stand beside these options, and are taken out before: whoever mistypes another one is told of them too.
_BESIDES: dict[type[Any], list[str]] = {
    PushOptions: ["on_dead_letter"],
    SubOptions: ["on_gap", "group", "durable"],
    RouterOptions: ["interceptors"],
    DealerOptions: ["interceptors"],
}


def _names_of(options: type[Any]) -> list[str]:
    return [each.name for each in fields(options)]


def _list_misplaced() -> dict[type[Any], dict[str, str]]:
    """By options, names that others have, and where these belong."""
    of_pub = dict.fromkeys(_names_of(PubOptions), "it is one of pub()")
    of_sub = dict.fromkeys([*_names_of(SubOptions), *_names_of(GroupOptions), "on_gap"], "it is one of sub()")
    without_group = "only subscriptions without group= have it"
    of_plain = dict.fromkeys([*_names_of(SubOptions), "on_gap"], without_group)
    of_plain["reliable"] = f"a group is always reliable, and {without_group}"
    of_member = {"durable": "only members of a group have it, as in sub(pattern, group=..., durable=True)"}
    return {PubOptions: of_sub, SubOptions: of_pub | of_member, GroupOptions: of_pub | of_plain}


_MISPLACED = _list_misplaced()


def make_options(options: type[OptionsT], where: str, given: Mapping[str, Any]) -> OptionsT:
    """Builds an options dataclass from keywords; an unknown one names the closest that exists, or whose it is."""
    known = _names_of(options)
    for name in given:
        if name not in known and name in _MISPLACED.get(options, ()):
            raise UnknownOption(f"{where} has no option {name!r}: {_MISPLACED[options][name]}")
    require_known(where, given, known + _BESIDES.get(options, []))
    return options(**given)


def describe_difference(known: Any, given: Any) -> str:
    """What differs between the options that something has and those that it is opened with again.

    >>> describe_difference(PushOptions(ttl=5), PushOptions(max_pending=7))
    'max_pending=10000, not 7; ttl=5, not None'
    """
    pairs = [(each.name, getattr(known, each.name), getattr(given, each.name)) for each in fields(known)]
    return "; ".join(f"{name}={one!r:.200}, not {two!r:.200}" for name, one, two in pairs if one != two)
