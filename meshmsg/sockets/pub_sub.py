"""PUB and SUB: topics without silent loss (G6)."""

from __future__ import annotations

import inspect
import logging
import time
from _thread import get_ident
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from meshmsg.driver import Driver
from meshmsg.engine.subscription import Subscription
from meshmsg.engine.topic_buffer import TopicBuffer
from meshmsg.engine.topics import is_pattern, matches, require_topic
from meshmsg.errors import ConfigurationError, NodeClosed, OutboxFull
from meshmsg.message import Event, Gap
from meshmsg.options import PubOptions, PullOptions, SubOptions, require_items, require_number
from meshmsg.sockets.consumer import Consumer
from meshmsg.sockets.here import require_here
from meshmsg.sockets.sending import encode, encode_all, freeze_headers, require_size
from meshmsg.sockets.turns import yield_turn
from meshmsg.wire.codec import explain_encode_error, make_packer

logger = logging.getLogger("meshmsg.sockets")

# Messages published in one turn of the loop at most, if the application itself never waits.
SEND_BURST = 1024
# Bytes published in one turn, about: large bodies of one topic must not hold up the others for long.
TURN_BYTES = 2**20
# Topics that are known to fit a publisher's pattern; with more, they are checked again.
MAX_KNOWN = 10_000


class Pub:
    """A topic, or a pattern of topics, to publish to. ``node.pub(pattern, ...)`` makes it.

    Examples
    --------
    >>> from meshmsg import Node
    >>> async with Node("kitchen") as node:
    ...     temperature = node.pub("sensors.kitchen.temperature", retain=True)
    ...     await temperature.send(21.5)
    ...     sub = node.sub("sensors.*.temperature", replay="latest")
    ...     message = await sub.get(timeout=5)
    ...     print(message.topic, message.body)
    sensors.kitchen.temperature 21.5
    """

    def __init__(self, driver: Driver, pattern: str, options: PubOptions, max_message_bytes: int) -> None:
        self.pattern = pattern
        self.options = options
        self._driver = driver
        self._publisher = driver.engine.publisher
        self._pack = make_packer()
        self._max_bytes = max_message_bytes
        self._topic = None if is_pattern(pattern) else pattern
        self._known = set() if self._topic is None else {self._topic}
        self._burst = 0
        self._burst_bytes = 0
        self._closed = False

    async def send(self, body: Any, topic: str | None = None, headers: Mapping[str, Any] | None = None) -> None:
        """Publishes one message to everybody who subscribes now; waits for slow subscribers if ``block=True`` (G6).

        Parameters
        ----------
        body:
            Anything MessagePack can carry, encoded before this returns.
        topic:
            Which topic, if this publishes to a pattern of them.
        headers:
            Small values beside the body, with str keys.

        Raises ``EncodeError``, ``BodyTooLarge``, ``ConfigurationError`` for a topic that does not fit, ``NodeClosed``.
        """
        try:
            encoded = self._pack(body)
        except Exception as error:
            raise explain_encode_error(body, error) from None
        name = self._topic if topic is None else topic
        if name not in self._known:
            name = self._require_fitting(topic)
        assert name is not None
        size = len(encoded)
        if not self._burst or self._burst_bytes < size or get_ident() != self._driver.owner:
            await self._begin_burst(encoded)
        self._burst -= 1
        self._burst_bytes -= size
        publisher = self._publisher
        if self.options.block:
            await self._wait_for(name)
        publisher.publish(name, encoded, None if headers is None else freeze_headers(self._pack, headers))
        if not self._driver.scheduled:
            self._driver.wake()

    def send_nowait(self, body: Any, topic: str | None = None, headers: Mapping[str, Any] | None = None) -> None:
        """Like ``send``; raises ``OutboxFull`` where that would wait for a slow subscriber."""
        encoded = encode(self._pack, body)
        name = self._require_fitting(topic)
        self._check(encoded)
        if self._publisher.blocked(name):
            raise OutboxFull(f"a subscriber of {name!r} is {self.options.window} messages behind: await send()")
        self._publisher.publish(name, encoded, None if headers is None else freeze_headers(self._pack, headers))
        self._driver.wake()

    async def send_many(self, bodies: Iterable[Any], topic: str | None = None) -> None:
        """Publishes many messages to one topic; faster than one ``send`` each.

        A body that cannot be sent raises ``EncodeError``; of a list or tuple nothing is published then, of an
        iterator what came more than a burst before it.
        """
        self._require_open()
        require_items("send_many(bodies)", bodies, "send() takes a single body")
        name = self._require_fitting(topic)
        encoded_all = encode_all(self._pack, bodies, 0) if isinstance(bodies, (list, tuple)) else None
        source = iter(bodies if encoded_all is None else ())
        published = 0
        while True:
            if encoded_all is not None:
                part = encoded_all[published : published + SEND_BURST]
            else:
                part = encode_all(self._pack, list(islice(source, SEND_BURST)), published)
            if not part:
                return
            published += len(part)
            await self._publish_part(name, part)

    async def _publish_part(self, name: str, part: list[bytes]) -> None:
        if sum(map(len, part)) > self._max_bytes:
            self._check(max(part, key=len))
        for start in _cut(part):
            await yield_turn()
            if self.options.block:
                await self._wait_for(name)
            self._require_open()
            self._publisher.publish_many(name, part[start])
            self._driver.wake()

    def delete_retained(self, topic: str | None = None) -> bool:
        """Takes a topic's retained value back: late joiners get none. Says whether there was one."""
        self._require_open()
        return self._publisher.delete_retained(self._require_fitting(topic))

    def lag(self) -> dict[str, dict[str, int]]:
        """By subscribing node and topic, how many messages it has yet to receive, as far as it said."""
        self._require_open()
        engine = self._driver.engine
        found: dict[str, dict[str, int]] = {}
        for key in engine.publisher.followers:
            lags = engine.publisher.lags(key)
            ours = {topic: behind for topic, behind in lags.items() if matches(self.pattern, topic)}
            if ours:
                found[engine.peers.name_of(key)] = ours
        return found

    def close(self) -> None:
        """Publishes no more to these topics. What was published can still be repaired while the node is open."""
        require_here(self._driver)
        if not self._closed:
            self._closed = True
            self._driver.engine.close_pub(self.pattern)
            self._driver.wake()

    # -- inside ----------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        self._driver.require_usable()
        if self._closed:
            raise NodeClosed(f"pub({self.pattern!r}) is closed: open another one")

    def _check(self, encoded: bytes) -> None:
        self._require_open()
        require_size(encoded, self.pattern, self._max_bytes)

    def _require_fitting(self, topic: str | None) -> str:
        """The topic to publish to, once it is known to be one of these."""
        if topic is None:
            if self._topic is None:
                raise ConfigurationError(f"pub({self.pattern!r}) has many topics: say which, send(body, topic=...)")
            return self._topic
        if topic not in self._known:
            require_topic("send(topic=)", topic)
            if not matches(self.pattern, topic):
                raise ConfigurationError(
                    f"{topic!r} is no topic of pub({self.pattern!r}): open a pub of its own for it"
                )
            if len(self._known) < MAX_KNOWN:
                self._known.add(topic)
        return topic

    async def _begin_burst(self, encoded: bytes) -> None:
        self._check(encoded)
        await yield_turn()
        self._require_open()
        self._burst, self._burst_bytes = SEND_BURST, max(TURN_BYTES, len(encoded))

    async def _wait_for(self, name: str) -> None:
        """Until no subscriber of a topic is too far behind."""
        while self._publisher.blocked(name):
            self._burst = 0
            await self._driver.until(lambda: not self._publisher.blocked(name))
            self._require_open()


class Sub(Consumer):
    """The messages of a topic, or of a pattern of topics. ``node.sub(pattern, ...)`` makes it.

    Iterate it, take ``batches()``, or decorate a handler with it. Its messages want no verdict: there is no second
    attempt, and what a handler raises is logged and an event (``message.failed``). With ``group=`` they do, see there.
    """

    def __init__(
        self,
        driver: Driver,
        subscription: Subscription,
        options: SubOptions,
        on_gap: Callable[[Gap], Any] | None,
    ) -> None:
        self.pattern = subscription.pattern
        self.gaps = 0  # messages that could not be had any more
        self._subscription = subscription
        self._on_gap = on_gap
        self._topics = TopicBuffer(subscription, options.prefetch, driver.engine.peers.name_of)
        self._topics.on_gap = self._note_gap
        self._topics.on_failed = self._note_failure
        taking = PullOptions(options.prefetch, options.concurrency, options.timeout, options.type)
        super().__init__(driver, self._topics, taking, f"sub({subscription.pattern!r})")

    async def close(self, drain: float = 0.0) -> None:
        """Hears of these topics no more; what was not taken is gone. Handlers get ``drain`` seconds to end."""
        require_number("close(drain=)", drain, at_least=0)
        require_here(self._driver)
        if self._closed:
            return
        self._closed = True
        if self._handoff is not None:
            self._handoff.close()
        await self._end(drain)
        self._driver.engine.close_sub(self._subscription)
        self._driver.wake()

    def _arrived(self) -> None:
        self._topics.tell_gaps()
        super()._arrived()

    def _note_gap(self, gap: Gap) -> None:
        self.gaps += gap.missed
        text = f"{gap.missed} messages of {gap.topic!r} from {gap.publisher!r} are lost ({gap.start} to {gap.stop - 1})"
        self._driver.on_events([Event("gap", time.time(), peer=gap.publisher, queue=gap.topic, text=text)])
        if self._on_gap is None:
            return
        try:
            self._on_gap(gap)
        except Exception:
            logger.exception("on_gap of %s failed", self.label)

    def _note_failure(self, message_id: str, error: str) -> None:
        logger.error("%s: message %s failed: %s", self.label, message_id, error)
        self._driver.on_events(
            [Event("message.failed", time.time(), queue=self.pattern, text=f"{message_id}: {error}")]
        )


def require_on_gap(on_gap: Callable[[Gap], Any] | None) -> None:
    """Raises ``ConfigurationError`` for what cannot be called with a ``Gap``."""
    if on_gap is not None and (not callable(on_gap) or inspect.iscoroutinefunction(on_gap)):
        raise ConfigurationError(f"sub(on_gap=) takes a plain function, not {on_gap!r}: it is called in the loop")


def _cut(part: Sequence[bytes]) -> list[slice]:
    """Stretches of about ``TURN_BYTES``."""
    cuts: list[slice] = []
    start = size = 0
    for index, body in enumerate(part):
        if size and size + len(body) > TURN_BYTES:
            cuts.append(slice(start, index))
            start, size = index, 0
        size += len(body)
    cuts.append(slice(start, len(part)))
    return cuts
