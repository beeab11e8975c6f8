"""Simulated publishing and following: an XPUB a process, and a SUB with one connection for each that is followed.

A connection keeps its order in both directions: what is published to the subscriber, and the filters that it sets. A
publisher whose queue for a subscriber is full drops whole messages for that one. The two ends of a connection notice
its end at different times, so that a publisher may for a while send to nobody, or have two of one subscriber.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from meshmsg.errors import NodeClosed
from meshmsg.transport.interface import LinkEvent, Published
from meshmsg.transport.pacing import Pacing, Part
from meshmsg.wire.frames import PIECE_BYTES

if TYPE_CHECKING:
    from meshmsg.testing.network import Network, SimulatedTransport

HIGH_WATER = 1000  # messages on their way to one subscriber
TURN_PIECES = 4  # leave in one turn
STUCK_S = (2.0, 6.0)  # bounds of how long an end of a connection that is stuck waits before it gives up
RETRY_S = (0.1, 2.0)  # the pause before a connection is made anew: the first, and the longest
CONNECT_AGAIN_S = 0.5  # while nobody says no
RESEND_S = 0.2  # TCP tries again what a cut held up, this long after the heal at most
BURST = 5  # messages that a full queue drops in a row at most


class Channel:
    """One connection of a subscriber to a publisher; each end has its own idea of whether it stands."""

    def __init__(self, subscriber: SimulatedBroadcast, following: Following, latency: float) -> None:
        self.subscriber = subscriber
        self.following = following
        self.latency = latency
        self.publisher: SimulatedBroadcast | None = None  # once it is up
        self.is_over = False  # for the subscriber
        self.is_gone = False  # for the publisher
        self.filters: set[bytes] = set()  # as the publisher's end knows them
        self.down: deque[tuple[float, Published]] = deque()  # on the way to the subscriber
        self.up: deque[tuple[float, bytes, bool]] = deque()  # on the way to the publisher
        self.last_down = 0.0
        self.last_up = 0.0
        self.delivering = {"down": False, "up": False}  # whether the clock will call
        self.dropping = 0  # of the next messages
        self.stuck = False
        self.changes = 0  # of it, so that an old timeout can tell


class Following:
    """What is followed at one publisher, over one channel after the other."""

    def __init__(self, number: int, endpoint: str, filters: Collection[bytes], marker: bytes) -> None:
        self.number = number
        self.endpoint = endpoint
        self.filters = frozenset(filters)
        self.marker = marker
        self.channel: Channel | None = None
        self.retry_s = RETRY_S[0]


class SimulatedBroadcast:
    """A process's publishing and following, as ``meshmsg.driver.Broadcast`` wants it."""

    def __init__(self, broadcasts: Broadcasts, transport: SimulatedTransport) -> None:
        self.transport = transport
        self.channels: dict[Channel, None] = {}  # of its subscribers
        self.followings: dict[int, Following] = {}
        self.changes: deque[tuple[bytes, bool]] = deque()
        self.events: list[tuple[int, LinkEvent]] = []
        self.inbox: deque[tuple[int, Published]] = deque()
        self.endpoint: str | None = None
        self._broadcasts = broadcasts
        self._pacing = Pacing(self._send)

    def open_broadcast(self) -> tuple[str, ...]:
        """Listens, at another port of the transport's host."""
        if self.transport.closed:
            raise NodeClosed("the transport is closed; make a new one")
        if self.endpoint is None:
            self.endpoint = self._broadcasts.listen(self)
            self._pacing = Pacing(self._send, TURN_PIECES * self._broadcasts.piece_bytes)
        return (self.endpoint,)

    def publish(self, parts: Sequence[Part]) -> bool:
        """Sends to every subscriber with a filter that the topic begins with; False if one of them misses it."""
        assert self.endpoint is not None, "publish() before open_broadcast()"
        return self._pacing.publish(parts)

    def _send(self, parts: Sequence[Part]) -> bool:
        topic, header, bodies = parts
        return self._broadcasts.publish(self, (bytes(topic), bytes(header), bodies))

    def advance(self) -> None:
        """Sends some of the pieces that wait."""
        self._pacing.advance()

    def flush(self) -> None:
        """Sends what waits: the process leaves properly."""
        self._pacing.flush()

    def subscriptions(self) -> list[tuple[bytes, bool]]:
        """Filters that were added by anybody, or removed by the last who had them."""
        changes = list(self.changes)
        self.changes.clear()
        return changes

    def refusals(self) -> list[str]:
        """Nobody is cut off here."""
        return []

    def follow(self, number: int, endpoint: str, filters: Collection[bytes], marker: bytes) -> None:
        """Follows a publisher until ``unfollow``."""
        if self.transport.closed:
            raise NodeClosed("the transport is closed; make a new one")
        if number in self.followings:
            raise ValueError(f"{number} is followed; every publisher takes a new number")
        self.followings[number] = Following(number, endpoint, filters, marker)
        self._broadcasts.connect(self, self.followings[number])

    def refilter(self, number: int, filters: Collection[bytes], marker: bytes) -> None:
        """Sets new filters, then the new marker, then takes back the old ones and the old marker."""
        following = self.followings.get(number)
        if following is None:
            return
        if marker == following.marker:
            raise ValueError(f"the marker {marker!r} is in use; every change of filters takes a new one")
        new, old = frozenset(filters), following.filters
        changes = [*((each, True) for each in sorted(new - old)), (marker, True)]
        changes += [*((each, False) for each in sorted(old - new)), (following.marker, False)]
        following.filters, following.marker = new, marker
        if following.channel is not None:
            self._broadcasts.change(following.channel, changes)

    def unfollow(self, number: int) -> None:
        """Stops; what was not received is lost."""
        following = self.followings.pop(number, None)
        if following is not None:
            self.inbox = deque(item for item in self.inbox if item[0] != number)
            self._broadcasts.hang_up(following)

    def follow_events(self) -> list[tuple[int, LinkEvent]]:
        """UP and DOWN, again and again."""
        events, self.events = self.events, []
        return events

    def receive_published(self, limit: int) -> list[tuple[int, Published]]:
        """Up to ``limit`` messages that have arrived."""
        return [self.inbox.popleft() for _ in range(min(limit, len(self.inbox)))]

    @property
    def unread(self) -> bool:
        """Whether something was left to read."""
        return bool(self.inbox)

    def more(self) -> bool:
        """Whether something was left to read, or to send."""
        return bool(self.inbox or self.changes or self._pacing)


class Broadcasts:
    """All publishers of a network and the connections to them; ``Network.broadcasts``.

    ``drops`` is the share of messages that begin a burst of losses, as a full queue does; ``high_water`` is how many
    messages are on their way to one subscriber at most; ``published`` and ``dropped`` count for each subscriber. A
    payload over ``piece_bytes`` travels in pieces, which are lost one by one; it is set before anybody publishes.
    ``loses`` says of a message whether a subscriber misses it, beside those that are drawn.
    """

    def __init__(self, network: Network, generator: random.Random) -> None:
        self.drops = 0.0
        self.high_water = HIGH_WATER
        self.piece_bytes = PIECE_BYTES
        self.loses: Callable[[Published], bool] = lambda parts: False
        self.published = 0
        self.dropped = 0
        self._network = network
        self._clock = network.clock
        self._generator = generator
        self._publishers: dict[str, SimulatedBroadcast] = {}
        self._hosts: dict[str, str] = {}  # by endpoint, also of the dead
        self._channels: dict[Channel, None] = {}  # that either end still has

    # -- processes -------------------------------------------------------------------------------------------

    def listen(self, broadcast: SimulatedBroadcast) -> str:
        """A publisher's endpoint; the port of a dead process can be had again."""
        endpoint = f"{broadcast.transport.endpoint}1"
        self._publishers[endpoint] = broadcast
        self._hosts[endpoint] = broadcast.transport.host
        return endpoint

    def close(self, broadcast: SimulatedBroadcast) -> None:
        """The process is no more; the other ends of its connections notice if there is a way."""
        if broadcast.endpoint is not None:
            del self._publishers[broadcast.endpoint]
        for following in broadcast.followings.values():
            self.hang_up(following)
        broadcast.followings = {}
        for channel in list(broadcast.channels):
            channel.is_gone = True
            self._reset_soon(channel)
        broadcast.channels = {}

    def look_at(self, broadcast: SimulatedBroadcast) -> None:
        """The process stopped or goes on."""
        for channel in list(self._channels):
            if broadcast in (channel.subscriber, channel.publisher):
                self._look(channel)

    def look_at_hosts(self, one: str, other: str) -> None:
        """Something changed on the way between two hosts."""
        for channel in self.between(one, other):
            self._look(channel)

    def between(self, one: str, other: str) -> Iterator[Channel]:
        """The connections of two hosts, whoever made them."""
        for channel in list(self._channels):
            if channel.publisher is not None:
                hosts = {channel.subscriber.transport.host, channel.publisher.transport.host}
                if hosts == {one, other}:
                    yield channel

    def reset(self, subscriber: str, publisher: str) -> None:
        """Resets the connections that one host made to another."""
        for channel in self.between(subscriber, publisher):
            if channel.subscriber.transport.host == subscriber:
                self._reset_soon(channel)

    # -- connections -----------------------------------------------------------------------------------------

    def connect(self, subscriber: SimulatedBroadcast, following: Following) -> None:
        """Begins to connect, and goes on until it is done with."""
        latency = self._between(*self._network.latency)
        channel = following.channel = Channel(subscriber, following, latency)

        def attempt() -> None:
            if following.channel is not channel:
                return
            publisher = self._publishers.get(following.endpoint)
            here, there = subscriber.transport.host, self._hosts.get(following.endpoint, "")
            cut = self._network.is_cut(here, there) or self._network.is_cut(there, here)
            if cut or subscriber.transport.frozen or (publisher is not None and publisher.transport.frozen):
                self._clock.call_later(CONNECT_AGAIN_S, attempt)
            elif publisher is None:
                self._retry(channel)
            else:
                self._come_up(channel, publisher)

        self._clock.call_later(2 * latency, attempt)

    def _come_up(self, channel: Channel, publisher: SimulatedBroadcast) -> None:
        following = channel.following
        channel.publisher = publisher
        publisher.channels[channel] = None
        self._channels[channel] = None
        following.retry_s = RETRY_S[0]
        self._tell(channel, LinkEvent.UP)
        self.change(channel, [*((each, True) for each in sorted(following.filters)), (following.marker, True)])
        self._look(channel)

    def _retry(self, channel: Channel) -> None:
        following, subscriber = channel.following, channel.subscriber
        pause_s, following.retry_s = following.retry_s, min(2 * following.retry_s, RETRY_S[1])
        following.channel = None

        def again() -> None:
            if following.channel is None and subscriber.followings.get(following.number) is following:
                self.connect(subscriber, following)

        loop = subscriber.transport.loop
        loop.call_at(loop.time() + pause_s, again)

    def hang_up(self, following: Following) -> None:
        """The subscriber ends a connection."""
        channel, following.channel = following.channel, None
        if channel is not None:
            channel.is_over = True
            channel.down.clear()
            self._reset_soon(channel)

    def _look(self, channel: Channel) -> None:
        """Something changed on a connection's way."""
        stuck = self._is_stuck(channel)
        if stuck != channel.stuck:
            channel.stuck = stuck
            channel.changes += 1
            if stuck:  # each end finds out for itself, if it lasts
                for end in (self._end, self._part):
                    wait = self._between(*STUCK_S)
                    self._clock.call_later(wait, partial(self._give_up, channel, channel.changes, end))
        if channel.is_over or channel.is_gone:
            self._reset_soon(channel)
        resend = self._between(channel.latency, channel.latency + RESEND_S)
        if channel.down and not channel.delivering["down"]:
            self._call(channel, "down", self._clock.now + resend)
        if channel.up and not channel.delivering["up"]:
            self._call(channel, "up", self._clock.now + resend)

    @staticmethod
    def _give_up(channel: Channel, changes: int, end: Callable[[Channel], None]) -> None:
        if channel.changes == changes:
            end(channel)

    def _is_stuck(self, channel: Channel) -> bool:
        """Whether nothing passes in one of the directions. A kernel answers for a process that is frozen."""
        return self._is_blocked(channel, "up") or self._is_blocked(channel, "down")

    def _is_blocked(self, channel: Channel, direction: str) -> bool:
        if channel.publisher is None:
            return True
        here, there = channel.subscriber.transport.host, channel.publisher.transport.host
        return self._network.is_cut(*((here, there) if direction == "up" else (there, here)))

    def _reset_soon(self, channel: Channel) -> None:
        """Who has ended tells the other one, if there is a way, or the kernel of who is dead does when it is asked."""
        if channel.publisher is None or self._is_stuck(channel):
            return

        def reset() -> None:
            if not self._is_stuck(channel):
                self._end(channel)
                self._part(channel)

        self._clock.call_later(channel.latency + self._between(0.0, 0.003), reset)

    def _end(self, channel: Channel) -> None:
        """The subscriber notices that it is over. A part of what was on the way has arrived before."""
        if channel.is_over:
            return
        channel.is_over = True
        self._forget(channel)
        arrived = 0 if self._is_blocked(channel, "down") else round(self._generator.random() * len(channel.down))
        for _ in range(arrived):
            channel.subscriber.inbox.append((channel.following.number, channel.down.popleft()[1]))
        channel.down.clear()
        self._tell(channel, LinkEvent.DOWN)
        self._retry(channel)
        self._look_again(channel)

    def _part(self, channel: Channel) -> None:
        """The publisher notices that it is over, and removes the filters that nobody else has."""
        if channel.is_gone:
            return
        channel.is_gone = True
        self._forget(channel)
        publisher = channel.publisher
        assert publisher is not None
        publisher.channels.pop(channel, None)
        for each in sorted(channel.filters):
            self._remove(channel, each)
        channel.up.clear()
        publisher.transport.wake()
        self._look_again(channel)

    def _look_again(self, channel: Channel) -> None:
        if not (channel.is_over and channel.is_gone):
            self._reset_soon(channel)

    def _forget(self, channel: Channel) -> None:
        if channel.is_over and channel.is_gone:
            self._channels.pop(channel, None)

    def _tell(self, channel: Channel, event: LinkEvent) -> None:
        channel.subscriber.events.append((channel.following.number, event))
        channel.subscriber.transport.wake()

    # -- what passes -----------------------------------------------------------------------------------------

    def publish(self, publisher: SimulatedBroadcast, parts: Published) -> bool:
        """One message for all who want it, except for those whose queue is full."""
        complete = True
        topic = parts[0]
        for channel in publisher.channels:
            if not any(map(topic.startswith, channel.filters)):
                continue
            self.published += 1
            if self._is_full(channel) or self.loses(parts):
                self.dropped += 1
                complete = False
                continue
            channel.last_down = self._arrival(channel.latency, channel.last_down)
            if not channel.is_over:
                channel.down.append((channel.last_down, parts))
                if not channel.delivering["down"]:
                    self._call(channel, "down", channel.last_down)
        return complete

    def _is_full(self, channel: Channel) -> bool:
        if not channel.dropping and self.drops and self._generator.random() < self.drops:
            channel.dropping = 1 + int(self._generator.random() * BURST)
        if channel.dropping:
            channel.dropping -= 1
            return True
        return len(channel.down) >= self.high_water

    def change(self, channel: Channel, changes: Sequence[tuple[bytes, bool]]) -> None:
        """The subscriber sets and removes filters, in this order."""
        if channel.publisher is None or channel.is_gone:
            return  # they are set when it is up; or this end does not know yet that it is over
        for text, added in changes:
            channel.last_up = self._arrival(channel.latency, channel.last_up)
            channel.up.append((channel.last_up, text, added))
        if not channel.delivering["up"]:
            self._call(channel, "up", channel.up[0][0])

    def _arrival(self, latency: float, last: float) -> float:
        jitter = self._network.jitter
        return max(last, self._clock.now + latency + (jitter * self._generator.random() if jitter else 0.0))

    def _call(self, channel: Channel, direction: str, when: float) -> None:
        channel.delivering[direction] = True
        deliver = self._deliver_down if direction == "down" else self._deliver_up
        self._clock.call_at(when, lambda: deliver(channel))

    def _deliver_down(self, channel: Channel) -> None:
        channel.delivering["down"] = False
        subscriber, waiting = channel.subscriber, channel.down
        if channel.is_over or subscriber.transport.frozen or self._is_blocked(channel, "down"):
            return
        while waiting and waiting[0][0] <= self._clock.now:
            subscriber.inbox.append((channel.following.number, waiting.popleft()[1]))
        subscriber.transport.wake()
        if waiting:
            self._call(channel, "down", waiting[0][0])

    def _deliver_up(self, channel: Channel) -> None:
        channel.delivering["up"] = False
        publisher, waiting = channel.publisher, channel.up
        if publisher is None or channel.is_gone or publisher.transport.frozen or self._is_blocked(channel, "up"):
            return
        while waiting and waiting[0][0] <= self._clock.now:
            _, text, added = waiting.popleft()
            if added:
                channel.filters.add(text)
                publisher.changes.append((text, True))
            else:
                self._remove(channel, text)
        publisher.transport.wake()
        if waiting:
            self._call(channel, "up", waiting[0][0])

    def _remove(self, channel: Channel, text: bytes) -> None:
        channel.filters.discard(text)
        publisher = channel.publisher
        assert publisher is not None
        if not any(text in other.filters for other in publisher.channels if other is not channel):
            publisher.changes.append((text, False))

    def _between(self, low: float, high: float) -> float:
        return low + (high - low) * self._generator.random()
