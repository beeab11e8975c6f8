"""Publishing and following over ZeroMQ: one XPUB that is bound, a SUB per publisher that is followed.

Read from the event loop as in ``zmq.py``, by the same rule: a descriptor is edge-triggered, and using its socket
may silence it, so a read goes on until nothing is left, or ``more`` says that it did not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

import zmq

from meshmsg.errors import ConfigurationError, NodeClosed, TooManyLinks
from meshmsg.transport.descriptors import require_room
from meshmsg.transport.following import RETRY_MIN_S, Connection, Following
from meshmsg.transport.interface import LinkEvent, Published
from meshmsg.transport.pacing import Pacing, Part
from meshmsg.transport.publishing import PublishingSocket
from meshmsg.transport.tuning import Context, Tuning, explain

logger = logging.getLogger("meshmsg.transport")

# One receive stops here at the latest, so that the loop is not held up by large messages.
RECEIVE_BYTES = 512 * 1024
# Nobody is read further than this while others wait: so large messages of one publisher don't hold up the others'.
SHARE_BYTES = 64 * 1024
SHARE_MESSAGES = 64
# A read is skipped if the descriptor was silent; should it ever be silent wrongly, every so many are made anyway.
LOOK_EVERY = 16
# Changes of subscriptions that are read at once.
SUBSCRIPTIONS_LIMIT = 1000
# Time for the handshake after the connection took its time.
DIAL_GRACE = 1.5


class ZmqBroadcast:
    """What a node publishes and follows; implements ``Broadcast``, whose methods are documented there.

    ``ZmqTransport.broadcast`` makes it, closes it, and lends it its context, loop and ``wake``.

    Attributes
    ----------
    refused:
        How many messages of publishers were dropped, as they did not have three parts or were too large.
    """

    def __init__(
        self,
        context: Context,
        tuning: Tuning,
        addresses: Sequence[str],
        may_dial: Callable[[str], bool],
        require_process: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], None],
    ) -> None:
        self._context = context
        self._tuning = tuning
        self._addresses = tuple(addresses)
        self._may_dial = may_dial
        self._require_process = require_process
        self._loop = loop
        self._wake = wake
        self._publishing: PublishingSocket | None = None
        self._pacing: Pacing | None = None  # what is to be published through it
        self._asked = False  # whether there may be subscriptions to read
        self._looking = False  # whether a look for them is due, at the end of this turn of the loop
        self._followings: dict[int, Following] = {}
        self._readable: dict[int, None] = {}  # followings that may have messages, in the order of their turns
        self._reported: set[int] = set()  # followings whose monitor has something to read
        self._events: list[tuple[int, LinkEvent]] = []
        self._passes = 0  # how often receive_published was called
        self._closed = False
        self.refused = 0

    # --- publishing -----------------------------------------------------------------------------------------

    def open_broadcast(self) -> tuple[str, ...]:
        """Bind the publisher's end, once, and return its endpoints.

        Raises ``AddressUnavailable`` when an address cannot be had; then it may be tried again.
        """
        self._require_open()
        if self._publishing is None:
            self._publishing = PublishingSocket(self._context, self._addresses, self._tuning)
            self._pacing = Pacing(self._publishing.send)
            self._loop.add_reader(self._publishing.descriptor, self._on_asked)
            self._loop.call_soon(self._on_asked)  # the descriptor is silent until the first read
        return self._publishing.endpoints

    def publish(self, parts: Sequence[Part]) -> bool:
        """Send to whoever asked for it, at once or by and by; false if somebody began to miss messages."""
        self._require_process()
        if self._pacing is None:
            self._require_open()
            raise ConfigurationError("publish() before open_broadcast()")
        if not self._looking:
            self._look_later()
        return self._pacing.publish(parts)

    def advance(self) -> None:
        """Send what is due in one turn of what waits."""
        if self._pacing:
            self._require_process()
            if not self._looking:
                self._look_later()
            self._pacing.advance()

    def subscriptions(self) -> list[tuple[bytes, bool]]:
        """Filters that subscribers added (true) or nobody has any more (false), since the last call."""
        self._require_process()
        if self._publishing is None or not self._asked:
            return []
        changes, complete = self._publishing.read(SUBSCRIPTIONS_LIMIT)
        self._asked = not complete
        return changes

    def refusals(self) -> list[str]:
        """Subscribers that lost their connections since the last call as they asked for too much, in words."""
        return [] if self._publishing is None else self._publishing.filters.take_refusals()

    @property
    def crowded(self) -> int:
        """How often a subscriber began to miss messages because its queue was full."""
        return 0 if self._publishing is None else self._publishing.crowded

    # --- following ------------------------------------------------------------------------------------------

    def follow(self, number: int, endpoint: str, filters: Collection[bytes], marker: bytes) -> None:
        """Follow a publisher until ``unfollow``; an endpoint out of reach FAILED (G12), and is not followed.

        Raises ``TooManyLinks`` when the process has too few file descriptors left.
        """
        self._require_open()
        if number in self._followings:
            raise ValueError(f"{number} is followed; every publisher takes a new number")
        if not self._may_dial(endpoint):
            logger.debug("follow %d: %r is no numeric tcp:// endpoint within reach", number, endpoint)
            self._events.append((number, LinkEvent.FAILED))
            self._loop.call_soon(self._wake)
            return
        require_room(len(self._followings))
        following = self._followings[number] = Following(endpoint, filters, marker)
        self._connect(number, following)

    def refilter(self, number: int, filters: Collection[bytes], marker: bytes) -> None:
        """Replace filters and marker of a publisher that is followed. Unknown numbers are fine."""
        self._require_process()
        following = self._followings.get(number)
        if following is not None:
            following.refilter(filters, marker)
            if following.connection is not None:
                self._readable[number] = None  # using the socket may have silenced its descriptor

    def unfollow(self, number: int) -> None:
        """Stop, without an event; what was not read is lost. Unknown numbers are fine."""
        self._require_process()
        following = self._followings.pop(number, None)
        if following is not None:
            self._forget_timer(following)
            self._disconnect(number, following)

    def receive_published(self, limit: int) -> list[tuple[int, Published]]:
        """Up to ``limit`` messages as ``(number, (topic, header, bodies))``; publishers take turns."""
        self._require_process()
        self._passes += 1
        if not self._passes % LOOK_EVERY:
            self._readable |= dict.fromkeys(
                number for number, following in self._followings.items() if following.connection is not None
            )
        messages: list[tuple[int, Published]] = []
        readable = self._readable
        left = limit
        left_bytes = RECEIVE_BYTES
        while readable and left > 0 and left_bytes > 0:
            number = next(iter(readable))
            del readable[number]
            count, size, complete = self._read_share(number, min(left, SHARE_MESSAGES), messages)
            left -= count
            left_bytes -= size
            if not complete:
                readable[number] = None  # at the end of the line
        return messages

    @property
    def unread(self) -> bool:
        """Whether the last ``receive_published`` may have left something."""
        return bool(self._readable)

    def more(self) -> bool:
        """Whether there may be more to read, or is more to send, of which no wake will tell."""
        return self._asked or bool(self._readable) or bool(self._pacing)

    def follow_events(self) -> list[tuple[int, LinkEvent]]:
        """UP when a publisher's connection stands, DOWN when it has ended; it is made anew until ``unfollow``."""
        self._require_process()
        events, self._events = self._events, []
        if self._reported:
            reported, self._reported = sorted(self._reported), set()
            for number in reported:
                events += self._read_events(number)
        return events

    def close(self, linger_ms: int = 0) -> None:
        """Close everything, without waiting; what was published has ``linger_ms`` to leave. Again is fine."""
        self._closed = True
        self._asked = False
        self._events.clear()
        for number in list(self._followings):
            self.unfollow(number)
        publishing, self._publishing = self._publishing, None
        pacing, self._pacing = self._pacing, None
        if publishing is not None:
            if pacing is not None and linger_ms:
                pacing.flush()
            self._forget_reader(publishing.descriptor)
            publishing.close(linger_ms)

    # --- what the loop calls --------------------------------------------------------------------------------

    def _on_asked(self) -> None:
        self._asked = self._publishing is not None
        self._wake()

    def _look_later(self) -> None:
        """Sending takes in the news that the descriptor would have told of."""
        self._looking = True
        self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        if self._publishing is not None and self._publishing.has_subscriptions():
            self._on_asked()

    def _on_readable(self, number: int) -> None:
        self._readable[number] = None
        self._wake()

    def _on_monitor(self, number: int) -> None:
        self._reported.add(number)
        self._wake()

    def _on_timer(self, number: int) -> None:
        """The end of a dial, or of the pause after one that failed or a connection that ended."""
        following = self._followings[number]
        following.timer = None
        # In a loop that was held up, the timer may come before the news that the connection stands.
        self._events += self._read_events(number)
        connection = following.connection
        if following.timer is not None or (connection is not None and connection.up and not connection.ended):
            self._wake()
        elif connection is not None and connection.has_messages():
            self._on_readable(number)  # what it brought before its end is read first
            self._retry_later(number, following)
        else:
            self._disconnect(number, following)
            self._connect(number, following)

    # --- the rest -------------------------------------------------------------------------------------------

    def _connect(self, number: int, following: Following) -> None:
        try:
            require_room(len(self._followings))
            connection = Connection(self._context, following, self._tuning)
        except (TooManyLinks, zmq.ZMQError) as error:
            reason = explain(error) if isinstance(error, zmq.ZMQError) else str(error)
            logger.warning("cannot follow %s now, trying again: %s", following.endpoint, reason)
            self._retry_later(number, following)
            return
        following.connection = connection
        self._loop.add_reader(connection.descriptor, self._on_readable, number)
        self._loop.add_reader(connection.monitor_descriptor, self._on_monitor, number)
        # Both descriptors are silent until they were once read until there was nothing more.
        self._readable[number] = None
        self._reported.add(number)
        self._loop.call_soon(self._wake)
        # libzmq has no timeout for a server that speaks ZMTP 1.0, nor an event when connect itself fails.
        following.timer = self._loop.call_later(DIAL_GRACE * self._tuning.dial_timeout_s, self._on_timer, number)

    def _disconnect(self, number: int, following: Following) -> None:
        connection, following.connection = following.connection, None
        self._readable.pop(number, None)
        self._reported.discard(number)
        if connection is not None:
            # Readers go before the sockets: a closed descriptor's number may belong to the next socket.
            self._forget_reader(connection.descriptor)
            self._forget_reader(connection.monitor_descriptor)
            connection.close()

    def _read_share(self, number: int, limit: int, messages: list[tuple[int, Published]]) -> tuple[int, int, bool]:
        """Read what one publisher may have in one go: how many, their size, and whether nothing was left."""
        connection = self._followings[number].connection
        assert connection is not None
        read = connection.read
        limit_bytes = self._tuning.max_message_bytes
        count = total = 0
        try:
            while count < limit and total < SHARE_BYTES:
                published, size = read(limit_bytes)
                count += 1
                total += size
                if published is not None:
                    messages.append((number, published))
                else:
                    self.refused += 1
        except zmq.Again:
            # libzmq has looked for news before it said so: what comes from now on makes the descriptor readable.
            return count, total, True
        return count, total, False

    def _read_events(self, number: int) -> list[tuple[int, LinkEvent]]:
        """UP and DOWN; a dial that failed is only tried again."""
        following = self._followings.get(number)
        if following is None or following.connection is None:
            return []
        events: list[tuple[int, LinkEvent]] = []
        for event in following.connection.read_events():
            self._forget_timer(following)
            if event is LinkEvent.UP:
                following.retry_s = RETRY_MIN_S
            else:
                self._retry_later(number, following)
            if event is not LinkEvent.FAILED:
                events.append((number, event))
        return events

    def _retry_later(self, number: int, following: Following) -> None:
        following.timer = self._loop.call_later(following.next_retry_s(), self._on_timer, number)

    def _forget_timer(self, following: Following) -> None:
        if following.timer is not None:
            following.timer.cancel()
            following.timer = None

    def _forget_reader(self, descriptor: int) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(descriptor)

    def _require_open(self) -> None:
        self._require_process()
        if self._closed:
            raise NodeClosed("the transport is closed; make a new one")
