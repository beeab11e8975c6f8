"""A service as its server sees it: the calls that wait for a worker, each with its caller, and what became of all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from meshmsg.engine.streams import InStream, OutStream
from meshmsg.options import RouterOptions

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 0.05, 5.0
PACE_OVER_S = 10.0  # a service's pace is what it did lately
MAX_GIVEN_UP = 64  # in a queue, before it is worth taking them out


class Caller:
    """One life of a node that calls: what it waits for, and what it is about to be told."""

    __slots__ = ("bodies", "calls", "items", "key", "name", "next_number", "numbers", "results")

    def __init__(self, key: str, name: str) -> None:
        self.key = key
        self.name = name
        self.calls: dict[int, Served] = {}  # by number
        self.next_number = 0  # numbers below are used up
        self.numbers: list[int] = []  # of the calls answered in this turn, with their results
        self.results: list[bytes] = []
        self.items: list[list[Any]] = []  # everything else to tell it
        self.bodies: list[bytes] = []

    @property
    def silent(self) -> bool:
        """Whether there is nothing to tell it."""
        return not self.numbers and not self.items


class CallRun:
    """Calls that came together, and what they share."""

    __slots__ = (
        "caller",
        "counted_from",
        "deadline",
        "first",
        "flags",
        "headers",
        "length",
        "method",
        "open",
        "received_at",
        "service",
        "size_bytes",
        "timed",
    )

    def __init__(
        self,
        caller: Caller,
        service: Service,
        method: str,
        first: int,
        length: int,
        deadline: float | None,
        headers: dict[str, Any] | None,
        flags: int,
        received_at: float,
    ) -> None:
        self.caller = caller
        self.service = service
        self.method = method
        self.first = first
        self.length = length
        self.deadline = deadline
        self.headers = headers
        self.flags = flags
        self.received_at = received_at
        self.size_bytes = 0  # of the arguments of each, on average
        self.counted_from = first  # those below are for workers that are free, and count for nothing in the queue
        self.open = 0  # how many have no answer yet
        self.timed = deadline is not None  # whether the deadline is still watched


class Served:
    """One call in the server's hands. What it shares with those that came along is in its run.

    ``queued`` until a worker takes it, ``running`` until it is answered or nobody wants the result any more, then
    ``done``; ``cancelled`` says why, if it was the latter.
    """

    __slots__ = ("args", "cancelled", "kwargs", "number", "on_cancel", "out", "run", "state", "up")

    def __init__(self, run: CallRun, number: int, args: list[Any], kwargs: dict[str, Any]) -> None:
        self.run = run
        self.number = number
        self.args = args
        self.kwargs = kwargs
        self.state: Literal["queued", "running", "done"] = "queued"
        self.cancelled: str | None = None
        self.on_cancel: Callable[[], None] | None = None  # called once, if it is cancelled while it runs
        self.up: InStream | None = None  # the caller's items
        self.out: OutStream | None = None  # items for the caller

    @property
    def queue_bytes(self) -> int:
        """What it counts for while it waits."""
        run = self.run
        return run.size_bytes if self.number >= run.counted_from else 0

    @property
    def peer(self) -> str:
        """Key of the caller's life."""
        return self.run.caller.key

    @property
    def peer_name(self) -> str:
        """Name of the caller's node."""
        return self.run.caller.name

    @property
    def service(self) -> str:
        """Name of the service."""
        return self.run.service.name

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.run.method

    @property
    def deadline(self) -> float | None:
        """When nobody wants the answer any more, in the engine's time; None for never."""
        return self.run.deadline

    @property
    def headers(self) -> dict[str, Any] | None:
        """What the caller gave beside the arguments; shared with the calls that came along."""
        return self.run.headers

    @property
    def flags(self) -> int:
        """The streams that belong to it: ``items.WANTS_ITEMS``, ``items.SENDS_ITEMS``."""
        return self.run.flags

    @property
    def received_at(self) -> float:
        """When it came, in the engine's time."""
        return self.run.received_at


class Service:
    """What a node offers under one name."""

    def __init__(self, name: str, options: RouterOptions, expire: Callable[[Served], None]) -> None:
        self.name = name
        self.options = options
        self.serving = True  # what others are told; whoever asks nevertheless is served
        self.queue: deque[Served] = deque()  # in order; some may be given up
        self.waiting = 0  # those in the queue that are not
        self.waiting_bytes = 0  # of their arguments
        self.running = 0
        self.count_busy: Callable[[], int] | None = None  # how many workers are, as far as they know it themselves
        self.apart: Service | None = None  # with workers of its own, for some methods
        self.apart_methods: frozenset[str] = frozenset()
        self.requests = 0  # that arrived, refused ones too
        self.started = 0
        self.errors = 0  # answered with an error by who ran them, or for arguments that cannot be read
        self.overloaded = 0  # refused for want of room
        self.cancelled = 0  # by the caller, or by its end
        self.expired = 0  # past their deadline
        self.last_error: str | None = None
        self._expire = expire
        self._last_began = 0.0
        self._waiting_from: tuple[float, int] = (0.0, 0)  # since when calls wait, and how many had started before

    def take(self, now: float) -> Served | None:
        """The next call to run, if one waits whose answer somebody still wants."""
        while self.queue:
            served = self.queue.popleft()
            if served.state != "queued":
                continue
            run = served.run
            deadline = run.deadline
            if deadline is not None and deadline <= now:
                self._expire(served)
                continue
            served.state = "running"
            self.waiting -= 1
            if served.number >= run.counted_from:
                self.waiting_bytes -= run.size_bytes
            self.running += 1
            self.started += 1
            self._last_began = now
            return served
        return None

    def set_apart(self, methods: Iterable[str], options: RouterOptions) -> Service:
        """Calls of these methods get a queue and workers of their own, and are answered however much there is to do."""
        self.apart = Service(self.name, options, self._expire)
        self.apart_methods = frozenset(methods)
        return self.apart

    @property
    def busy(self) -> int:
        """How many workers take nothing now: a method that hangs may go on when nobody wants its answer any more."""
        return max(self.running, self.count_busy()) if self.count_busy is not None else self.running

    def admit(self, length: int, size_bytes: int) -> tuple[int, int]:
        """How many calls of a run it takes, whose arguments are so large each, and how many of these begin at once."""
        free = self.options.concurrency - self.busy - self.waiting
        at_once = max(0, free)
        taken = min(length, max(0, free + self.options.max_queue))
        if taken > at_once and size_bytes:
            fit = max(0, self.options.max_queue_bytes - self.waiting_bytes) // size_bytes
            taken = at_once + min(taken - at_once, fit if self.waiting_bytes else max(1, fit))
        return taken, min(taken, at_once)

    def enqueue(self, calls: Sequence[Served], now: float) -> None:
        """Calls wait for a worker."""
        if not self.waiting:
            self._waiting_from = (now, self.started)
        self.queue.extend(calls)
        self.waiting += len(calls)
        if calls and calls[-1].number >= calls[-1].run.counted_from:
            self.waiting_bytes += sum(served.queue_bytes for served in calls)

    def leave(self, served: Served) -> None:
        """A call is done: answered, or not wanted any more."""
        if served.state == "running":
            self.running -= 1
        else:
            self.waiting -= 1
            self.waiting_bytes -= served.queue_bytes
        served.state = "done"
        if len(self.queue) > 2 * self.waiting + MAX_GIVEN_UP:  # while every worker hangs, nobody takes them out
            self.queue = deque(each for each in self.queue if each.state == "queued")

    def estimate_wait(self, now: float) -> float:
        """Seconds until what waits now has begun, at the pace since there was no queue.

        Not from what a method takes and how many may run: those that compute run one after another all the same. Where
        nothing waits, what was begun last has time to end: as much as it has had.
        """
        if not self.waiting:
            return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, now - self._last_began))
        since, before = self._waiting_from
        elapsed, started = now - since, self.started - before
        if elapsed > PACE_OVER_S:
            self._waiting_from = (now - elapsed / 2, self.started - started // 2)
        wait_s = self.waiting * elapsed / started if started else elapsed
        return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, wait_s))

    def check(self) -> None:
        """Own invariants, for the simulator."""
        queued = size_bytes = 0
        for served in self.queue:
            if served.state == "queued":
                queued += 1
                size_bytes += served.queue_bytes
        assert self.waiting == queued, f"{self.name} counts {self.waiting} waiting calls, {queued} are"
        assert self.running >= 0, f"{self.name} counts {self.running} running calls"
        assert self.waiting_bytes == size_bytes, f"{self.name} counts {self.waiting_bytes} bytes, {size_bytes} wait"
        if self.apart is not None:
            self.apart.check()
        assert self.waiting + self.running <= self.options.concurrency + self.options.max_queue
