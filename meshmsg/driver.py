"""The shell around the engine: collect → engine → send → deliver, and one timer.

One turn handles whatever came since the last one, so batches form by themselves: the busier the node, the larger
they are. The same driver runs under asyncio, under uvloop, and under the simulator's virtual clock.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from meshmsg.busy_poll import BusyPoll
from meshmsg.checks import require_number
from meshmsg.deadlines import Deadlines, TimedLoop, TimerHandle
from meshmsg.engine.effects import Dial, Effects, Outcome
from meshmsg.engine.engine import Engine
from meshmsg.engine.peers import SELF_LINK, SELF_ROUTE
from meshmsg.errors import ForkedProcess, MeshError, NodeClosed, WrongThread
from meshmsg.message import DeadLetter, Event

# Frames read in one turn: bounds how long a flood can keep timers and handlers waiting.
RECEIVE_LIMIT = 256
# What was sent on a link in the turn that ends it, such as the reason, gets this to leave.
LINGER_MS = 100
# An edge-triggered file descriptor that was missed is noticed after this at the latest (pyzmq#1203).
WATCHDOG_S = 1.0


class Loop(TimedLoop, Protocol):
    """The part of an event loop that the driver needs; the simulator has one of its own."""

    def call_soon(self, callback: Callable[[], Any], /) -> Any: ...


class Broadcast(Protocol):
    """The part of a transport's publishing and following that the driver needs."""

    @property
    def unread(self) -> bool: ...
    def open_broadcast(self) -> tuple[str, ...]: ...
    def publish(self, parts: Sequence[bytes | memoryview]) -> bool: ...
    def advance(self) -> None: ...
    def subscriptions(self) -> list[tuple[bytes, bool]]: ...
    def refusals(self) -> list[str]: ...
    def follow(self, number: int, endpoint: str, filters: Collection[bytes], marker: bytes) -> None: ...
    def refilter(self, number: int, filters: Collection[bytes], marker: bytes) -> None: ...
    def unfollow(self, number: int) -> None: ...
    def follow_events(self) -> list[tuple[int, Any]]: ...
    def receive_published(self, limit: int) -> list[tuple[int, Any]]: ...
    def more(self) -> bool: ...


class Links(Protocol):
    """The part of a transport that the driver needs."""

    @property
    def broadcast(self) -> Broadcast: ...
    @property
    def closed(self) -> bool: ...

    def dial(self, link: int, endpoint: str, identity: bytes) -> None: ...
    def hang_up(self, link: int, linger_ms: int) -> None: ...
    def send(self, link: int, frames: list[bytes]) -> bool: ...
    def receive(self, limit: int) -> list[tuple[bytes, list[bytes]]]: ...
    def link_events(self) -> list[tuple[int, Any]]: ...
    def more(self) -> bool: ...


class Driver:
    """Runs one engine over one transport in one loop. Sockets register what they want to hear of."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.closed = False
        self.owner = 0  # the thread that may use the node now; 0 for none
        self._retired = False  # nobody may use it, and it turns all the same
        self.unsent_frames = 0
        self.on_arrival: dict[str, Callable[[], None]] = {}  # by queue
        self.on_outcome: Callable[[Outcome], None] = lambda outcome: None
        self.on_answered: Callable[[list[tuple[Any, Any, MeshError | None]]], None] = lambda answers: None
        self.on_dead: Callable[[list[DeadLetter]], None] = lambda letters: None
        self.on_events: Callable[[list[Event]], None] = lambda events: None
        self.on_topology: list[Callable[[], None]] = []
        self.deadlines: Deadlines  # of who waits for something; from the start on
        self._topology = 0
        self._loop: Loop | None = None
        self._transport: Links | None = None
        self._busy_poll: BusyPoll | None = None
        self._broadcast: Broadcast | None = None  # opened when this node first publishes or follows
        self._publishes = False
        self.scheduled = False  # whether a turn is to come
        self._timer: TimerHandle | None = None
        self._timer_at = 0.0
        self.turns = 0  # taken so far; who gives way to others sees by it whether one was taken meanwhile
        self._time_is_due = True
        self._own: list[list[bytes]] = []  # frames of this node to itself
        self._conditions: dict[asyncio.Future[None], Callable[[], bool]] = {}
        self.endings: dict[asyncio.Future[Any], object] = {}  # what still cleans up, and whose that is; a close waits
        self.after_turn: dict[object, Callable[[], None]] = {}  # by who wants to be called after each turn, and the end
        self._pid = os.getpid()
        engine.wake = self.wake
        _drivers.add(self)

    def start(self, loop: Loop, transport: Links, busy_poll: BusyPoll | None = None) -> None:
        """Begins to turn."""
        self._loop = loop
        self.deadlines = Deadlines(loop)
        self._busy_poll = busy_poll
        self._transport = transport
        self.owner = threading.get_ident()
        self.wake()

    def now(self) -> float:
        """The loop's clock, in seconds; 0 before the start."""
        return self._loop.time() if self._loop is not None else 0.0

    def wake(self) -> None:
        """Asks for a turn; any number of calls until then make one turn."""
        if not self.scheduled and self._loop is not None:
            if isinstance(self._loop, asyncio.AbstractEventLoop) and not self._loop.is_running():
                self.require_loop()  # which takes longer to find out, and most turns are asked for in the loop
            self.scheduled = True
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        if self.scheduled:  # else something took it already
            self.turn()

    def turn(self) -> None:
        """Everything that has happened, in one batch; now, instead of when the loop gets to it."""
        self.scheduled = False
        self.turns += 1
        loop, transport = self._loop, self._transport
        if loop is None or transport is None or not (self.owner or self._retired):
            return
        now = loop.time()
        wake_at = None
        try:
            wake_at = self._collect_and_act(transport, now)
        except Exception as error:
            if transport.closed:
                return  # the process ends, and what nobody had closed was closed under this
            # A bug, here or in a hook: the loop reports it, and the node goes on (G11). The simulator's loop
            # has no such handler, and stops.
            report = getattr(loop, "call_exception_handler", None)
            if report is None:
                raise
            report({"message": f"meshmsg: node {self.engine.identity.name!r} failed in a turn", "exception": error})
        self._arm(loop, now, wake_at)
        if transport.more() or (self._broadcast is not None and self._broadcast.more()):
            self.wake()

    def _collect_and_act(self, transport: Links, now: float) -> float | None:
        engine = self.engine
        own, self._own = self._own, []
        for parts in own:
            engine.handle_parts(SELF_ROUTE, parts, now)
        # Asked for before the frames and handled after them: a goodbye explains why a link went down.
        link_events = transport.link_events()
        arrived = transport.receive(RECEIVE_LIMIT)
        for route, parts in arrived:
            engine.handle_parts(route, parts, now)
        has_arrivals = bool(arrived)
        for link, event in link_events:
            engine.handle_link(link, event.value, now)
        if self._broadcast is not None:
            has_arrivals |= self._collect_broadcast(self._broadcast, now)
        if self._time_is_due:
            self._time_is_due = False
            engine.handle_time(now)
        effects = engine.drain(now)
        self._send(engine, transport, effects)
        if self._publishes and self._broadcast is not None:
            self._broadcast.advance()  # behind the small messages of this turn
        if self._busy_poll is not None:
            self._busy_poll.note(has_arrivals, bool(effects.send or effects.publish))
        self._tell(engine, effects)
        return effects.wake_at

    def _collect_broadcast(self, broadcast: Broadcast, now: float) -> bool:
        engine = self.engine
        for text, subscribed in broadcast.subscriptions():
            engine.handle_filter(text, subscribed, now)
        refusals = broadcast.refusals()
        if refusals:
            engine.handle_refusals(refusals, now)
        for number, event in broadcast.follow_events():
            engine.handle_follow(number, event.value, now)
        arrived = broadcast.receive_published(RECEIVE_LIMIT)
        engine.subscriptions.behind = broadcast.unread
        for number, published in arrived:
            engine.handle_published(number, published, now)
        return bool(arrived)

    def open_broadcast(self) -> tuple[str, ...]:
        """Has this node's publisher listen, and returns where."""
        assert self._transport is not None, "a node that publishes has started"
        self._broadcast = self._transport.broadcast
        self._publishes = True
        return self._broadcast.open_broadcast()

    def _send_broadcast(self, transport: Links, effects: Effects) -> None:
        if self._publishes and self._broadcast is not None:
            for parts in effects.publish:
                self._broadcast.publish(parts)  # who misses it asks for it again
        if not effects.follow and not effects.unfollow:
            return
        if self._broadcast is None:
            self._broadcast = transport.broadcast
        for number in effects.unfollow:
            self._broadcast.unfollow(number)
        for number, endpoint, filters, marker in effects.follow:
            if endpoint is None:
                self._broadcast.refilter(number, filters, marker)
                continue
            try:
                self._broadcast.follow(number, endpoint, filters, marker)
            except (OSError, ValueError) as error:
                self.engine.handle_follow(number, f"failed: {error}", self.now())

    def _send(self, engine: Engine, transport: Links, effects: Effects) -> None:
        for dial in effects.dial:
            self._dial(transport, dial)
        for link, frames in effects.send:
            if link == SELF_LINK:
                self._own.append(frames)
                self.wake()
            elif not transport.send(link, frames):
                self.unsent_frames += 1
                engine.handle_unsent(link)  # it says everything again with the next beat
        for link in effects.hang_up:
            transport.hang_up(link, LINGER_MS)
        if effects.publish or effects.follow or effects.unfollow:
            self._send_broadcast(transport, effects)

    def _tell(self, engine: Engine, effects: Effects) -> None:
        if effects.answered:
            self.on_answered(effects.answered)
        for outcome in effects.settled:
            self.on_outcome(outcome)
        if effects.dead:
            self.on_dead(effects.dead)
        if effects.events:
            self.on_events(effects.events)
        for queue in effects.deliver:
            arrival = self.on_arrival.get(queue)
            if arrival is not None:
                arrival()
        if engine.topology != self._topology:
            self._topology = engine.topology
            for callback in self.on_topology:
                callback()
        if self._conditions or self.after_turn:
            self._check_conditions()

    def _dial(self, transport: Links, dial: Dial) -> None:
        try:
            transport.dial(dial.link, dial.endpoint, dial.identity)
        except (OSError, ValueError) as error:
            # An endpoint that makes no sense here costs its announcer's link, nothing else (G11).
            self.engine.handle_dial_refused(dial.link, dial.endpoint, str(error), self.now())
            self.wake()

    def _arm(self, loop: Loop, now: float, wake_at: float | None) -> None:
        """One timer, armed anew only when it must ring earlier or has rung."""
        when = now + WATCHDOG_S if wake_at is None else min(wake_at, now + WATCHDOG_S)
        if self._timer is not None and self._timer_at <= when:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = max(when, now)
        self._timer = loop.call_at(self._timer_at, self._ring)

    def _ring(self) -> None:
        # Some loops ring a moment early (uvloop counts milliseconds); the time is due all the same.
        self._timer = None
        self._time_is_due = True
        self.turn()

    # -- waiting ---------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Waits until a condition on the engine holds; False when ``timeout`` seconds passed first."""
        if timeout is not None:
            require_number("timeout=", timeout, at_least=0)
        if self.closed and not self._retired:  # nothing will change any more
            return condition()
        self.require_loop()
        if condition():
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._conditions[future] = condition
        if timeout is not None:
            self.deadlines.put(future, self.now() + timeout)
        self.wake()
        try:
            await future
        except TimeoutError:
            return condition()
        finally:
            self._conditions.pop(future, None)
            self.deadlines.discard(future)
        return True

    def _check_conditions(self) -> None:
        for callback in list(self.after_turn.values()):
            callback()
        for future, condition in list(self._conditions.items()):
            if not future.done() and ((self.closed and not self._retired) or condition()):
                future.set_result(None)
                self._conditions.pop(future, None)

    # -- guards ----------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """False before the start, after the close, and in a forked child."""
        return self.owner != 0

    @property
    def is_foreign_process(self) -> bool:
        """Whether this is a forked child of the process that made the node."""
        return os.getpid() != self._pid

    def require_process(self) -> None:
        """Raises ``ForkedProcess`` in a forked child."""
        name = self.engine.identity.name
        if self.is_foreign_process:
            raise ForkedProcess(
                f"node {name!r} belongs to process {self._pid}, this is its forked child {os.getpid()}: "
                'make a new Node here, or start processes with multiprocessing.get_context("spawn")'
            )

    def require_running(self) -> None:
        """Raises the exception that tells why this node cannot be used now, in any thread."""
        self.require_process()
        name = self.engine.identity.name
        if self.closed:
            raise NodeClosed(f"node {name!r} is closed: make a new Node")
        if not self.usable:
            raise NodeClosed(f"node {name!r} is not started: use `async with node:` (blocking: `with`), or start()")

    def require_usable(self) -> None:
        """Raises the exception that tells why this node cannot be used here and now."""
        self.require_running()
        if threading.get_ident() != self.owner:
            raise WrongThread(
                f"node {self.engine.identity.name!r} belongs to the thread of its event loop: use "
                "loop.call_soon_threadsafe or asyncio.run_coroutine_threadsafe; any thread may use a "
                "meshmsg.blocking.Node"
            )

    def retire(self) -> None:
        """Nobody may use the node any more; it turns on until ``stop``, to hear goodbyes answered."""
        self.closed = True
        self.owner = 0
        self._check_conditions()
        self._retired = True

    def require_loop(self) -> None:
        """Raises ``WrongThread`` in another event loop of the same thread, where waiting would be in vain.

        Plain code between two runs of the node's own loop may use it.
        """
        loop = self._loop
        if not isinstance(loop, asyncio.AbstractEventLoop):
            return
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not loop and (running is not None or loop.is_closed()):
            why = "has been closed" if loop.is_closed() else "does not run now"
            raise WrongThread(
                f"node {self.engine.identity.name!r} belongs to another event loop, which {why}: "
                "use it within the asyncio.run that started it"
            )

    def stop(self) -> None:
        """Turns no more."""
        self.closed = True
        self.owner = 0
        self._retired = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy_poll is not None:
            self._busy_poll.stop()
        self._check_conditions()
        if self._loop is not None:
            self.deadlines.stop()


_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()


def _disable_in_child() -> None:
    """libzmq aborts or hangs in a forked child (pyzmq#1504, libzmq#3223); so nothing there may touch it."""
    for driver in list(_drivers):
        driver.owner = 0
        driver._retired = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disable_in_child)
