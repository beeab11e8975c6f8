"""A simulated network with seeded faults, and the transport over it.

It breaks the way TCP under ZeroMQ does. A link is one connection from a dialler to an endpoint. It keeps its order and
loses nothing while it stands; when it ends, what was on its way is lost from some point on. Frames of different
links overtake one another freely.

A crash is noticed within milliseconds, because the other system resets the connection. A frozen process and a cut
cable send no reset: libzmq's heartbeats fail after ``HEARTBEAT_TIMEOUT_S``, and that needs both directions.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from meshmsg.errors import NodeClosed
from meshmsg.testing.broadcasts import Broadcasts, SimulatedBroadcast
from meshmsg.testing.clock import ProcessLoop, VirtualClock
from meshmsg.transport.interface import LinkEvent

HEARTBEAT_TIMEOUT_S = 1.5  # without an answer a link is down; plus up to one heartbeat, until it was asked
HEARTBEAT_S = 0.5
DIAL_TIMEOUT_S = 2.0
RESEND_S = 0.2  # TCP tries again what a cut held up, this long after the heal at most
LINGER_WORKS = 0.9  # how often what was sent before a hang-up with time to linger all arrives
DUPLICATE_WITHIN = 4  # a repeated frame comes right after itself, or this many frames later at most


class SimulatedLink:
    """One connection, from one transport to another. It is dialled, up, or over."""

    def __init__(self, source: SimulatedTransport, number: int, endpoint: str, route: bytes) -> None:
        self.source = source
        self.number = number
        self.endpoint = endpoint
        self.route = route
        self.target: SimulatedTransport | None = None
        self.is_up = False
        self.is_over = False
        self.latency = 0.0
        self.last_arrival = 0.0
        self.early: list[list[bytes]] = []  # sent before it came up
        self.on_the_way: deque[tuple[float, list[bytes]]] = deque()
        self.copies: list[list[Any]] = []  # [frames to wait for, a frame to repeat]
        self.delivering = False  # whether the clock will call for the next arrival
        self.impaired = False  # heartbeats do not come through at the moment
        self.impairments = 0  # counts changes of it, so that an old timeout can tell
        self.deliver: Callable[[], None] = partial(source.network.deliver, self)


class SimulatedTransport:
    """A process's inbox and links, as ``meshmsg.driver.Links`` wants them. ``Network.open`` makes it."""

    def __init__(self, network: Network, loop: ProcessLoop, host: str, endpoint: str) -> None:
        self.network = network
        self.loop = loop
        self.host = host
        self.endpoint = endpoint
        self.wake: Callable[[], None] = lambda: None
        self.links: dict[int, SimulatedLink] = {}
        self.incoming: dict[SimulatedLink, None] = {}
        self.inbox: deque[tuple[bytes, list[bytes]]] = deque()
        self.events: list[tuple[int, LinkEvent]] = []
        self.broadcast = SimulatedBroadcast(network.broadcasts, self)
        self.frozen = False
        self.closed = False

    def dial(self, link: int, endpoint: str, identity: bytes) -> None:
        """Opens a link; a ``LinkEvent`` says what came of it. Raises ``NodeClosed`` after ``close``."""
        if self.closed:
            raise NodeClosed("the transport is closed; make a new one")
        if link in self.links:
            raise ValueError(f"link {link} is open; every dial takes a new number")
        self.links[link] = SimulatedLink(self, link, endpoint, identity)
        self.network.connect(self.links[link])

    def hang_up(self, link: int, linger_ms: int = 0) -> None:
        """Closes a link without an event. With time to linger, what was sent arrives, as a rule."""
        found = self.links.pop(link, None)
        if found is not None:
            self.network.hang_up(found, lingers=linger_ms > 0)

    def send(self, link: int, frames: list[bytes]) -> bool:
        """Hands over one frame; False if the link is gone or has no room."""
        found = self.links.get(link)
        return found is not None and self.network.send(found, frames)

    def receive(self, limit: int) -> list[tuple[bytes, list[bytes]]]:
        """Up to ``limit`` frames that have arrived, as ``(route, parts)``."""
        inbox = self.inbox
        if not inbox:
            return []
        if len(inbox) <= limit:
            received = list(inbox)
            inbox.clear()
            return received
        return [inbox.popleft() for _ in range(limit)]

    def more(self) -> bool:
        """Whether ``receive`` left something."""
        return bool(self.inbox)

    def link_events(self) -> list[tuple[int, LinkEvent]]:
        """What became of links since the last call."""
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        """Leaves properly: what was sent arrives, if there is a way."""
        self.broadcast.flush()
        self.network.close(self, keep=1.0)


class Network:
    """Connects simulated processes. All chance comes from ``generator``.

    Parameters
    ----------
    latency:
        Bounds of a link's latency in seconds; each link draws its own.
    jitter:
        Each frame takes up to this much longer, in seconds; it never overtakes another of its link.
    duplicates:
        Share of frames that arrive a second time on the same link, soon after.
    crowding:
        Share of frames that a link refuses for want of room.

    Examples
    --------
    >>> network = Network(VirtualClock(), random.Random(1))
    >>> network.cut("a", "b", one_way=True)
    >>> network.is_cut("a", "b"), network.is_cut("b", "a")
    (True, False)
    >>> network.heal()
    >>> network.is_cut("a", "b")
    False
    """

    def __init__(
        self,
        clock: VirtualClock,
        generator: random.Random,
        *,
        latency: tuple[float, float] = (0.0002, 0.002),
        jitter: float = 0.0005,
        duplicates: float = 0.0,
        crowding: float = 0.0,
    ) -> None:
        self.clock = clock
        self.latency = latency
        self.jitter = jitter
        self.duplicates = duplicates
        self.crowding = crowding
        self.frames = 0
        self.on_frame: Callable[[SimulatedLink, list[bytes]], Any] | None = None  # sees each frame that is sent
        self._random = generator.random
        self.broadcasts = Broadcasts(self, generator)
        self._listeners: dict[str, SimulatedTransport] = {}
        self._hosts: dict[str, str] = {}  # by endpoint, also of the dead
        self._cuts: set[tuple[str, str]] = set()

    # -- processes -------------------------------------------------------------------------------------------

    def open(self, loop: ProcessLoop, host: str, endpoint: str) -> SimulatedTransport:
        """A process of ``host`` listens at ``endpoint``. A port of a dead process can be had again."""
        if endpoint in self._listeners:
            raise ValueError(f"{endpoint} is taken by a process of {self._listeners[endpoint].host!r}")
        transport = self._listeners[endpoint] = SimulatedTransport(self, loop, host, endpoint)
        self._hosts[endpoint] = host
        return transport

    def close(self, transport: SimulatedTransport, keep: float | None) -> None:
        """The process ends. ``keep`` is the share of what it sent that still arrives; None draws it."""
        transport.closed = True
        self._listeners.pop(transport.endpoint, None)
        self.broadcasts.close(transport.broadcast)
        for link in list(transport.links.values()):
            self.end(link, keep=keep)
        for link in list(transport.incoming):
            if not self._blocked(link.target, link.source):
                self._reset_soon(link)  # else the heartbeats find out
            self._look_at(link)

    def crash(self, transport: SimulatedTransport) -> None:
        """The process dies on the spot (SIGKILL). Of what it sent, some is lost."""
        self.close(transport, keep=None)
        transport.inbox.clear()

    def freeze(self, transport: SimulatedTransport) -> None:
        """The process stops (SIGSTOP), its I/O thread included."""
        transport.frozen = True
        self._look_at_all(transport)

    def thaw(self, transport: SimulatedTransport) -> None:
        """The process goes on."""
        transport.frozen = False
        self._look_at_all(transport)

    # -- paths -----------------------------------------------------------------------------------------------

    def cut(self, source: str, target: str, *, one_way: bool = False) -> None:
        """Nothing passes between two hosts, or with ``one_way`` nothing from ``source`` to ``target``."""
        self._cuts.add((source, target))
        if not one_way:
            self._cuts.add((target, source))
        self._look_at_hosts(source, target)

    def heal(self, source: str | None = None, target: str | None = None) -> None:
        """Everything passes again, or everything between two hosts."""
        for one, other in sorted(self._cuts):
            if source is None or {one, other} == {source, target}:
                self._cuts.discard((one, other))
                self._look_at_hosts(one, other)

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing passes from one host to the other."""
        return (source, target) in self._cuts

    def disconnect(self, source: str, target: str) -> None:
        """Resets the connections that ``source`` dialled to ``target``; new ones can be made at once."""
        for link in list(self._links()):
            if link.source.host == source and link.target is not None and link.target.host == target:
                self._reset_soon(link)
        self.broadcasts.reset(source, target)

    def hang_up(self, link: SimulatedLink, *, lingers: bool) -> None:
        """Its own side ends a connection."""
        self.end(link, keep=1.0 if lingers and self._random() < LINGER_WORKS else None)

    def reset(self, link: SimulatedLink) -> None:
        """Resets one connection now; some or all of what is on its way is lost."""
        self._break(link)

    def _links(self) -> Iterator[SimulatedLink]:
        for transport in self._listeners.values():
            yield from transport.links.values()

    def _blocked(self, source: SimulatedTransport | None, target: SimulatedTransport | None) -> bool:
        return source is None or target is None or (source.host, target.host) in self._cuts

    def _look_at_hosts(self, source: str, target: str) -> None:
        for link in list(self._links()):
            if link.target is not None and {link.source.host, link.target.host} == {source, target}:
                self._look_at(link)
        self.broadcasts.look_at_hosts(source, target)

    def _look_at_all(self, transport: SimulatedTransport) -> None:
        for link in (*transport.links.values(), *transport.incoming):
            self._look_at(link)
        self.broadcasts.look_at(transport.broadcast)

    # -- links -----------------------------------------------------------------------------------------------

    def connect(self, link: SimulatedLink) -> None:
        """Begins to connect."""
        link.latency = self._between(*self.latency)
        started = self.clock.now

        def attempt() -> None:
            if link.is_over:
                return
            target = self._listeners.get(link.endpoint)
            here, there = link.source.host, self._hosts.get(link.endpoint, "")
            if self.is_cut(here, there) or self.is_cut(there, here) or (target is not None and target.frozen):
                # Nobody says no: TCP tries again and again, until the time is up.
                if self.clock.now - started >= DIAL_TIMEOUT_S:
                    self._fail(link, LinkEvent.FAILED)
                else:
                    self.clock.call_later(0.5, attempt)
            elif target is None:
                self._fail(link, LinkEvent.REFUSED)
            elif link.source.frozen:
                self.clock.call_later(0.5, attempt)
            else:
                self._come_up(link, target)

        self.clock.call_later(2 * link.latency, attempt)

    def _fail(self, link: SimulatedLink, how: LinkEvent) -> None:
        link.is_over = True
        link.source.links.pop(link.number, None)
        self._tell(link, how)

    def _come_up(self, link: SimulatedLink, target: SimulatedTransport) -> None:
        link.is_up = True
        link.target = target
        target.incoming[link] = None
        self._tell(link, LinkEvent.UP)
        early, link.early = link.early, []
        for frames in early:
            self._put_on_the_way(link, frames)
        self._look_at(link)

    def _tell(self, link: SimulatedLink, event: LinkEvent) -> None:
        link.source.events.append((link.number, event))
        link.source.wake()

    def _look_at(self, link: SimulatedLink) -> None:
        """Something on the link's way changed: does it still live, and can what waits go on?"""
        target = link.target
        if link.is_over or target is None:
            return
        there, back = self._blocked(link.source, target), self._blocked(target, link.source)
        if target.closed and not back:
            self._reset_soon(link)
        impaired = there or back or target.frozen or link.source.frozen
        if impaired != link.impaired:
            link.impaired = impaired
            link.impairments += 1
            if impaired:
                count = link.impairments
                wait = HEARTBEAT_TIMEOUT_S + self._between(0.0, HEARTBEAT_S)
                self.clock.call_later(wait, lambda: self._heartbeats_failed(link, count))
        if link.on_the_way and not there and not link.delivering:
            self._deliver_at(link, self.clock.now + self._between(link.latency, link.latency + RESEND_S))

    def _heartbeats_failed(self, link: SimulatedLink, count: int) -> None:
        if link.impairments == count and not link.is_over:
            self._break(link)

    def _reset_soon(self, link: SimulatedLink) -> None:
        self.clock.call_later(link.latency + self._between(0.0, 0.003), lambda: self._break(link))

    def _break(self, link: SimulatedLink) -> None:
        if not link.is_over:
            link.source.links.pop(link.number, None)
            self.end(link, keep=None)
            self._tell(link, LinkEvent.DOWN)

    def end(self, link: SimulatedLink, keep: float | None) -> None:
        """The connection is over. Of what is on its way a part still arrives, from the front: the rest is lost."""
        link.is_over = True
        waiting = link.on_the_way
        share = self._random() if keep is None else keep
        if link.target is None or link.target.closed or self._blocked(link.source, link.target):
            share = 0.0
        for _ in range(len(waiting) - round(share * len(waiting))):
            waiting.pop()
        if link.target is not None:
            link.target.incoming.pop(link, None)
        if waiting and not link.delivering:
            self._deliver_at(link, self.clock.now + link.latency)

    # -- frames ----------------------------------------------------------------------------------------------

    def send(self, link: SimulatedLink, frames: list[bytes]) -> bool:
        """One frame leaves; False when the link has no room."""
        if self.crowding and self._random() < self.crowding:
            return False
        self.frames += 1
        if self.on_frame is not None:
            self.on_frame(link, frames)
        if not link.is_up:
            link.early.append(frames)
        else:
            self._put_on_the_way(link, frames)
        return True

    def _put_on_the_way(self, link: SimulatedLink, frames: list[bytes]) -> None:
        arrival = self.clock.now + link.latency
        if self.jitter:
            arrival += self.jitter * self._random()
        if arrival < link.last_arrival:
            arrival = link.last_arrival
        link.last_arrival = arrival
        link.on_the_way.append((arrival, frames))
        if self.duplicates:
            self._repeat(link, frames, arrival)
        if not link.delivering:
            self._deliver_at(link, arrival)

    def _repeat(self, link: SimulatedLink, frames: list[bytes], arrival: float) -> None:
        """Sends copies whose turn it is behind a frame, perhaps one of that frame itself."""
        if self._random() < self.duplicates:
            link.copies.append([1 + int(self._random() * DUPLICATE_WITHIN), frames])
        for copy in link.copies:
            copy[0] -= 1
            if not copy[0]:
                link.on_the_way.append((arrival, copy[1]))
        link.copies = [copy for copy in link.copies if copy[0]]

    def _deliver_at(self, link: SimulatedLink, when: float) -> None:
        link.delivering = True
        self.clock.call_at(when, link.deliver)

    def deliver(self, link: SimulatedLink) -> None:
        """Everything of one link that has arrived by now."""
        link.delivering = False
        target, waiting, now = link.target, link.on_the_way, self.clock.now
        if target is None or target.closed or not waiting or (self._cuts and self._blocked(link.source, target)):
            return
        if target.frozen and not link.is_over:
            return  # it waits in the other system's buffers, and is read or lost when the link's fate is known
        while waiting and waiting[0][0] <= now:
            target.inbox.append((link.route, waiting.popleft()[1]))
        target.wake()
        if waiting:
            self._deliver_at(link, waiting[0][0])

    def _between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()
