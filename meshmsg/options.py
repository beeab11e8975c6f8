"""What can be configured, checked when it is given: one frozen dataclass a subject."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict, TypeVar

from meshmsg.errors import ConfigurationError, UnknownOption

Balance = Literal["least_outstanding", "round_robin", "random"]
Overflow = Literal["wait", "drop_oldest"]

MAX_NAME_BYTES = 200
MAX_NUMBER = 10**9  # in seconds about 32 years: what no clock can reach is a mistake
MAX_FACTOR = 1000
MAX_PREFETCH = 10**6  # credit has to fit into a frame
GROUP_PREFIX = "group:"  # of the queues that groups of subscribers have
MAX_GROUP_BYTES = 100
MAX_QUEUE_NAME = 400  # characters of a group's queue: its name, condition and pattern
OptionsT = TypeVar("OptionsT")


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
        require_int("Retry(max_attempts=)", self.max_attempts, at_least=1)
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
        require_int("max_pending=", self.max_pending, at_least=1)
        require_int("max_pending_bytes=", self.max_pending_bytes, at_least=1)
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
    """Options of ``node.pull(queue, ...)``: how a consumer takes work."""

    prefetch: int = 256
    concurrency: int = 1
    timeout: float | None = None
    type: Any = None
    reliable: bool = True

    def __post_init__(self) -> None:
        require_int("prefetch=", self.prefetch, at_least=1, at_most=MAX_PREFETCH)
        require_int("concurrency=", self.concurrency, at_least=1)
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
        Let ``send`` wait for a subscriber that is ``window`` messages behind, instead of having it lose some.
    window:
        Messages of a topic that the slowest subscriber may be behind; counts with ``block``.
    will:
        A body that every subscriber of the topic gets when this node is gone without a goodbye: crashed, killed, or out
        of reach. It has the header ``will``. Needs one topic, and has 4 KiB at most.
    reliable:
        False for bare ZeroMQ PUB: no repair, no past, no ``Gap``. Its subscribers have to say so, too.
    retry, max_pending, max_pending_bytes, dead_letter_to:
        As for ``push``, for each group that subscribes here (G7). Of several pubs that a group overlaps, the one that
        was opened first decides.
    """

    retain: bool = False
    history: int = 0
    history_bytes: int = 64 * 2**20
    history_s: float | None = None
    block: bool = False
    window: int = 10_000
    will: Any = None
    reliable: bool = True
    retry: Retry = field(default_factory=Retry)
    max_pending: int = 10_000
    max_pending_bytes: int = 256 * 2**20
    dead_letter_to: str | None = None

    def __post_init__(self) -> None:
        require_bool("retain=", self.retain)
        require_int("history=", self.history, at_least=0)
        require_int("history_bytes=", self.history_bytes, at_least=1)
        if self.history_s is not None:
            require_number("history_s=", self.history_s, above=0)
        require_bool("block=", self.block)
        require_int("window=", self.window, at_least=1)
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
        that keeps it no longer.
    prefetch, concurrency, timeout, type:
        As for ``pull``.
    reliable:
        False for bare ZeroMQ SUB, which hears publishers that are opened so: what does not fit is lost without a word.
    where:
        Only messages whose headers hold these values; looked at here, after the way.
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
        require_int("buffer=", self.buffer, at_least=1)
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
        become dead letters. What the last member said counts.
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


def make_options(options: type[OptionsT], where: str, given: Mapping[str, Any]) -> OptionsT:
    """Builds an options dataclass from keywords; an unknown one names the closest that exists."""
    require_known(where, given, [each.name for each in fields(options)])  # type: ignore[arg-type]  # always a dataclass
    return options(**given)


def require_known(where: str, given: Iterable[str], known: list[str]) -> None:
    """Checks the names of keywords."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise UnknownOption(f"{where} has no option {name!r}: {hint}")


def refuse_unbuilt(where: str, **options: object) -> None:
    """Refuses options that are promised for later: whoever relies on one must hear that it does nothing yet."""
    for name, value in options.items():
        if value is not None:
            raise ConfigurationError(f"{where}({name}=) is not built yet in this version: leave it out")


def require_name(where: str, name: object) -> str:
    """A queue, topic or mesh name: 1 to 200 bytes of printable UTF-8 without white space."""
    if not isinstance(name, str):
        raise ConfigurationError(f"{where} takes a name (str), not {type(name).__name__} {name!r}")
    if not name or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise ConfigurationError(f"{where} takes a name of 1 to {MAX_NAME_BYTES} bytes, got {name[:50]!r}")
    if not name.isprintable() or any(letter.isspace() for letter in name):
        raise ConfigurationError(f"{where} takes printable characters without white space, got {name!r}")
    return name


def require_queue(where: str, name: object) -> str:
    """A queue's name; those of groups are made by ``sub(group=)`` alone."""
    queue = require_name(where, name)
    if queue.startswith(GROUP_PREFIX):
        raise ConfigurationError(
            f"{where} takes no name that begins with {GROUP_PREFIX!r}, got {queue!r}: such queues belong to groups of "
            "subscribers; node.sub(pattern, group=...) consumes one, node.pub(pattern) fills it"
        )
    return queue


def find_group_fault(group: object) -> str | None:
    """What is wrong with a group's name; None if nothing is."""
    if not isinstance(group, str):
        return f"it is a {type(group).__name__}, not a text"
    if not 0 < len(group.encode("utf-8", "replace")) <= MAX_GROUP_BYTES:
        return f"1 to {MAX_GROUP_BYTES} bytes are allowed"
    if not group.isprintable() or any(letter.isspace() or letter in "@{" for letter in group):
        return "it holds white space, '@', '{' or what cannot be printed"
    return None


def require_where(where: str, condition: object) -> None:
    """Checks a condition on headers: names, each with the value that it must have."""
    if condition is None:
        return
    if not isinstance(condition, Mapping) or not condition:
        raise ConfigurationError(f'{where} takes a dict such as {{"region": "eu"}}, got {reprlib.repr(condition)}')
    for name, value in condition.items():
        if not isinstance(name, str) or not isinstance(value, (str, int, float)) or not _travels(name, value):
            raise ConfigurationError(
                f"{where} takes names of headers with a str, number or bool each, got {name!r}: {reprlib.repr(value)}"
            )


def _travels(name: str, value: str | int | float) -> bool:
    try:
        (name + value if isinstance(value, str) else name).encode()
    except UnicodeEncodeError:
        return False
    return isinstance(value, str) or abs(value) < 2**63  # which no NaN is, either


def require_items(where: str, items: object, hint: str) -> None:
    """Checks that something can be iterated and is meant to be: not a text, whose items are letters, nor a dict."""
    is_one = isinstance(items, (str, bytes, bytearray, memoryview, Mapping))
    if is_one or not (hasattr(items, "__iter__") or hasattr(items, "__getitem__")):
        raise ConfigurationError(f"{where} takes a list, not {type(items).__name__} {reprlib.repr(items)}: {hint}")


def require_strings(where: str, items: Iterable[object], hint: str) -> None:
    """Checks a list, and that each of its items is a str."""
    require_items(where, items, hint)
    for each in items:
        if not isinstance(each, str):
            raise ConfigurationError(f"{where} takes str, not {type(each).__name__} {reprlib.repr(each)}: {hint}")


def require_int(where: str, value: object, *, at_least: int, at_most: int | None = None) -> None:
    """Checks a whole number and its bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigurationError(f"{where} takes a whole number, not {type(value).__name__} {value!r}")
    if value < at_least:
        raise ConfigurationError(f"{where} takes {at_least} or more, got {value}")
    if at_most is not None and value > at_most:
        raise ConfigurationError(f"{where} takes at most {at_most}, got {_show(value)}")


def require_number(
    where: str,
    value: object,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float = MAX_NUMBER,
) -> None:
    """Checks a finite number and its bounds; seconds mostly, so that one of these is the upper one."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigurationError(f"{where} takes a number, not {type(value).__name__} {value!r}")
    if value != value or value in (float("inf"), float("-inf")):
        raise ConfigurationError(f"{where} takes a finite number, got {value}")
    if at_least is not None and value < at_least:
        raise ConfigurationError(f"{where} takes {at_least} or more, got {value}")
    if above is not None and value <= above:
        raise ConfigurationError(f"{where} takes more than {above}, got {value}")
    if value > at_most:
        raise ConfigurationError(f"{where} takes at most {at_most}, got {_show(value)}")


def _show(number: float) -> str:
    try:
        return reprlib.repr(number)
    except ValueError:  # Python prints no whole number of more than 4300 digits
        return "far more"


def require_choice(where: str, value: object, choices: tuple[str, ...]) -> None:
    """Checks that a value is one of a few words."""
    if value not in choices:
        raise ConfigurationError(f"{where} takes one of {', '.join(map(repr, choices))}, got {value!r}")


def require_bool(where: str, value: object) -> None:
    """Checks a flag."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{where} takes True or False, got {value!r}")
