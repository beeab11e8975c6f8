"""PUB and SUB: topics without silent loss (G6)."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from _thread import get_ident
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from meshmsg.checks import require_items
from meshmsg.driver import Driver
from meshmsg.engine.binding import freeze_where
from meshmsg.engine.broadcasting import MAX_WILL_BYTES, WILL, wrap_will
from meshmsg.engine.run import Details
from meshmsg.engine.subscription import Subscription
from meshmsg.engine.topic_buffer import TopicBuffer
from meshmsg.engine.topics import choose_topic, is_pattern, matches, require_pattern
from meshmsg.errors import ConfigurationError, NodeClosed, OutboxFull
from meshmsg.message import Event, Gap
from meshmsg.options import PubOptions, PullOptions, SubOptions, make_options
from meshmsg.sockets.consumer import Consumer
from meshmsg.sockets.here import require_here
from meshmsg.sockets.line import Line
from meshmsg.sockets.methods import find_kind
from meshmsg.sockets.sending import encode, encode_parts, make_details, require_size
from meshmsg.sockets.shown import Shown, of_node
from meshmsg.sockets.turns import yield_turn
from meshmsg.wire.codec import explain_encode_error, make_packer, renew_packer
from meshmsg.wire.large import LARGE_BYTES

logger = logging.getLogger("meshmsg.sockets")

# Bytes published in one turn, about: large bodies of one topic must not hold up the others for long.
TURN_BYTES = 2**20
# Messages published in one turn of the loop at most, if the application itself never waits.
SEND_BURST = 1024
# Larger bodies count as so many of this size.
SMALL = TURN_BYTES // SEND_BURST
# Topics that are known to fit a publisher's pattern; with more, they are checked again.
MAX_KNOWN = 10_000


class Pub(Shown):
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

    def __init__(
        self,
        driver: Driver,
        pattern: str,
        options: PubOptions,
        max_message_bytes: int,
        forget: Callable[[], object] = lambda: None,
    ) -> None:
        self.pattern = pattern
        self.options = options
        self._max_bytes = max_message_bytes
        self._driver = driver
        self._publisher = driver.engine.publisher
        self._groups = driver.engine.groups
        self._line = Line(driver, self._require_open)  # of those who wait until a group has room
        self._lines: dict[str, Line] = {}  # by topic, of those who wait for a slow subscriber
        self._pack = make_packer()
        self._blocks = options.block
        self._forget = forget  # called at the close: the pattern is free for other options
        self._topic = None if is_pattern(pattern) else pattern
        self._known = set() if self._topic is None else {self._topic}
        self._logs = self._publisher.logs
        # Bodies up to this many bytes are let in by count, while the burst lasts.
        self._small = min(SMALL, max_message_bytes)
        self._burst = 0
        self._burst_turn = -1  # in which it began
        self._closed = False

    async def send(
        self,
        body: Any,
        topic: str | None = None,
        headers: Mapping[str, Any] | None = None,
        key: str | None = None,
        priority: int = 0,
    ) -> None:
        """Publishes one message to everybody who subscribes now; waits for slow subscribers if ``block=True`` (G6).

        It waits for groups, too: until each that has members has room for a copy (G5, G7).

        Parameters
        ----------
        body:
            Anything MessagePack can carry, encoded before this returns.
        topic:
            Which topic, if this publishes to a pattern of them.
        headers:
            Small values beside the body, with str keys.
        key, priority:
            As for ``push``, within each group; other subscribers do not see them.

        Raises ``EncodeError``, ``BodyTooLarge``, ``ConfigurationError`` for a topic that does not fit, ``NodeClosed``.
        """
        try:
            encoded = self._pack(body)
        except Exception as error:
            raise explain_encode_error(body, error) from None
        if topic is None:
            name = self._topic or self._require_fitting(None)
        else:
            name = topic if type(topic) is str and topic in self._known else self._require_fitting(topic)
        size = len(encoded)
        if not self._burst or size > self._small or get_ident() != self._driver.owner:
            await self._let_in(encoded)
        self._burst -= 1
        if self._blocks and (self._lines or self._publisher.blocked(name)):
            await self._wait_for(name, size)
        if headers is None and key is None and not priority:
            if self._groups.busy and (self._line.busy or not self._groups.promise(name, size)):
                await self._wait_for_groups(name, size, None)
            log = self._logs.get(name)
            if log is not None and log.staged:
                log.staged.append(encoded)  # what ``publish`` does, without a call; a turn is to come
                if self._blocks:
                    log.staged_bytes += size
                return
            if not self._driver.scheduled:
                self._driver.wake()  # before it is published: in another loop this raises
            self._publisher.publish(name, encoded)
        else:
            details = make_details(self._pack, key, priority, None, None, headers, 0.0)
            if self._groups.busy and (self._line.busy or not self._groups.promise(name, size, details.headers)):
                await self._wait_for_groups(name, size, details.headers)
            self._driver.wake()
            self._publish_special(name, encoded, details)

    def send_nowait(
        self,
        body: Any,
        topic: str | None = None,
        headers: Mapping[str, Any] | None = None,
        key: str | None = None,
        priority: int = 0,
    ) -> None:
        """Like ``send``; raises ``OutboxFull`` where that would wait for a slow subscriber or group, or in line."""
        encoded = encode(self._pack, body)
        name = self._require_fitting(topic)
        self._check(encoded)
        if self._blocks and self._publisher.blocked(name):
            raise OutboxFull(self._describe_no_room(name))
        if name in self._lines or (self._groups.busy and self._line.busy):
            raise OutboxFull(f"other messages wait to be sent to {name!r}, and go first: await send()")
        details = make_details(self._pack, key, priority, None, None, headers, 0.0)
        if self._groups.busy and not self._groups.promise(name, len(encoded), details.headers):
            raise OutboxFull(self._describe_no_room(name))
        self._driver.wake()
        self._publish_special(name, encoded, details)

    def _publish_special(self, name: str, encoded: bytes, details: Details) -> None:
        number = self._publisher.publish(name, encoded, details.headers)
        if details.key is not None or details.priority:
            self._groups.mark(name, number, details.key, details.priority)

    async def send_many(self, bodies: Iterable[Any], topic: str | None = None) -> None:
        """Publishes many messages to one topic; faster than one ``send`` each.

        A body that cannot be sent raises ``EncodeError``; of a list or tuple nothing is published then, of an
        iterator what came more than a burst before it.
        """
        self._require_open()
        self._driver.require_loop()
        require_items("send_many(bodies)", bodies, "send() takes a single body")
        name = self._require_fitting(topic)
        for part in encode_parts(self._pack, bodies, SEND_BURST):
            await self._publish_part(name, part)

    async def _publish_part(self, name: str, part: list[bytes]) -> None:
        if sum(map(len, part)) > min(self._max_bytes, LARGE_BYTES):
            self._check(max(part, key=len))
        for stretch in cut(part, SEND_BURST):
            await yield_turn()
            self._require_open()
            rest = part[stretch]
            while rest:
                count = len(rest)
                if self._blocks:
                    await self._wait_for(name, len(rest[0]))
                    count = self._publisher.count_fitting(name, rest)
                if self._groups.busy:
                    count = 0 if self._line.busy else self._groups.promise_many(name, rest[:count])
                    if not count:
                        await self._wait_for_groups(name, len(rest[0]), None)
                        count = 1
                self._publisher.publish_many(name, rest[:count])
                rest = rest[count:]
                self._driver.wake()

    def delete_retained(self, topic: str | None = None) -> bool:
        """Takes a topic's retained value back: late joiners get none. Says whether there was one."""
        self._require_open()
        return self._publisher.delete_retained(self._require_fitting(topic))

    def lag(self) -> dict[str, dict[str, int]]:
        """By subscribing node and topic, how many messages it has yet to receive, as far as it said.

        Nodes that share a name have the beginning of their id behind it: ``"w (3f2a9c01d4b7)"``.
        """
        self._require_open()
        engine = self._driver.engine
        followers = engine.publisher.followers
        names = tell_apart({key: engine.peers.name_of(key) for key in followers})
        found: dict[str, dict[str, int]] = {}
        for key in followers:
            lags = engine.publisher.lags(key)
            ours = {topic: behind for topic, behind in lags.items() if matches(self.pattern, topic)}
            if ours:
                found[names[key]] = ours
        return found

    async def close(self) -> None:
        """Publishes no more to these topics. What was published can still be repaired while the node is open."""
        self._end()

    # -- for another face ------------------------------------------------------------------------------------

    def _end(self) -> None:
        """``close``, which waits for nothing."""
        require_here(self._driver)
        if not self._closed:
            self._closed = True
            self._burst = 0
            self._forget()
            self._driver.engine.close_pub(self.pattern)
            if self.options.will is not None:
                self._driver.engine.withdraw(WILL, self.pattern)
            self._driver.wake()  # whoever waits in send hears of it

    def _pass_on(self, name: str, bodies: list[bytes], details: Details | None, *, heedless: bool = False) -> int:
        """Publishes as many as there is room for now, and says how many; all of them if ``heedless``.

        With ``details`` there is one body. Everything has been checked.
        """
        headers = details.headers if details is not None else None
        if not heedless:
            if not self._has_room(name, len(bodies[0]), headers):
                return 0
            if self._blocks:
                bodies = bodies[: self._publisher.count_fitting(name, bodies)]
        count = len(bodies)
        if self._groups.busy:
            if details is not None:
                self._groups.promise(name, len(bodies[0]), headers)
            else:
                promised = self._groups.promise_many(name, bodies)
                count = count if heedless else promised
        if details is not None:
            self._publish_special(name, bodies[0], details)
        else:
            self._publisher.publish_many(name, bodies[:count])
        self._driver.wake()
        return count

    async def _wait_for_room(self, name: str, size: int, headers: dict[str, Any] | None) -> None:
        """Until a message can be published, or this is closed."""
        await self._driver.until(lambda: self._closed or self._has_room(name, size, headers))

    def _describe_no_room(self, name: str) -> str:
        """Why a message cannot be published now."""
        if self._blocks and self._publisher.blocked(name):
            behind = self._publisher.logs[name].describe_block()
            return f"a subscriber of {name!r} is {behind}: await send(), or widen it"
        return self._groups.describe_full(name)

    def _has_room(self, name: str, size: int, headers: dict[str, Any] | None) -> bool:
        if self._blocks and self._publisher.blocked(name):
            return False
        return not self._groups.busy or self._groups.takes(name, size, headers)

    # -- inside ----------------------------------------------------------------------------------------------

    def _title(self) -> str:
        return of_node(self.pattern, self._driver)

    def _state(self) -> str:
        return "closed" if self._closed else ""

    def _require_open(self) -> None:
        self._driver.require_usable()
        if self._closed:
            raise NodeClosed(f"pub({self.pattern!r}) is closed: open another one")

    def _check(self, encoded: bytes) -> None:
        self._pack = renew_packer(self._pack, len(encoded))
        self._require_open()
        require_size(encoded, self.pattern, self._max_bytes)

    def _require_fitting(self, topic: str | None) -> str:
        """The topic to publish to, once it is known to be one of these."""
        if isinstance(topic, str) and topic in self._known:
            return topic
        name = choose_topic(self.pattern, topic)
        if len(self._known) < MAX_KNOWN:
            self._known.add(name)
        return name

    async def _let_in(self, encoded: bytes) -> None:
        """Checks a body that is not small, and gives the loop a turn when the burst is used up."""
        self._check(encoded)
        self._driver.require_loop()
        share = -(-len(encoded) // SMALL)  # as many small ones
        while self._burst < share:
            self._driver.wake()
            await yield_turn()
            self._require_open()
            if self._burst_turn != self._driver.turns:  # else somebody else who waited here has used it up
                self._burst, self._burst_turn = max(SEND_BURST, share), self._driver.turns
        self._burst -= share - 1

    async def _wait_for(self, name: str, size: int) -> None:
        """Until no subscriber of a topic is too far behind for a body, and nobody else waits for that."""
        publisher = self._publisher
        line = self._lines.get(name)
        if line is None:
            if not publisher.blocked(name):
                return
            line = self._lines[name] = Line(self._driver, self._require_open)

        def room() -> tuple[int, int]:
            count, left = publisher.room(name)
            return count, left + size - 1 if left > 0 else 0  # it may go beyond

        try:
            await line.wait(size, room, lambda: not publisher.blocked(name))
        finally:
            if not line.busy:
                self._lines.pop(name, None)

    async def _wait_for_groups(self, name: str, size: int, headers: dict[str, Any] | None) -> None:
        """Until every group has room, which is taken then: the message must be published without another wait."""
        groups = self._groups
        await self._line.wait(
            size, lambda: groups.room(name, size, headers), lambda: groups.promise(name, size, headers)
        )


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
        forget: Callable[[Sub], object] = lambda sub: None,
    ) -> None:
        self.pattern = subscription.pattern
        self.gaps = 0  # messages that were lost, each told by a ``Gap``
        self.discarded = 0  # messages that had come, and that nobody took before the close
        self._subscription = subscription
        self._on_gap = on_gap
        self._forget = forget  # called when it is closed
        self._topics = TopicBuffer(subscription, options.prefetch, driver.engine.peers.name_of)
        self._topics.on_gap = self._note_gap
        self._topics.on_failed = self._note_failure
        taking = PullOptions(options.prefetch, options.concurrency, options.timeout, options.type)
        super().__init__(driver, self._topics, taking, f"sub({subscription.pattern!r})")
        self._name = subscription.pattern

    @property
    def conflated(self) -> int:
        """Messages that a newer value of their topic made needless (``latest=True``)."""
        return self._subscription.conflated

    def _state(self) -> str:
        lost = f", {self.gaps} lost" if self.gaps else ""
        return f"{'closed, ' if self._closed else ''}{self._inbox.waiting} waiting{lost}"

    @property
    def _finishes(self) -> bool:
        return self._workers is not None

    def _withdraw(self) -> None:
        self._driver.engine.close_sub(self._subscription)
        self._driver.wake()

    def _note_unstarted(self) -> None:
        self.discarded = self._topics.waiting
        if self.discarded:
            text = f"{self.discarded} messages had come, and were not taken before the close"
            self._driver.on_events([Event("sub.discarded", time.time(), queue=self.pattern, text=text)])

    def _leave(self) -> None:
        self._forget(self)

    def _arrived(self) -> None:
        self._topics.tell_gaps()
        super()._arrived()

    def _note_gap(self, gap: Gap) -> None:
        self.gaps += gap.missed
        text = f"{gap.missed} messages of {gap.topic!r} from {gap.publisher!r} are lost ({gap.start} to {gap.stop - 1})"
        self._driver.on_events([Event("gap", time.time(), gap.publisher, gap.publisher_id, gap.topic, text)])
        if self._on_gap is None:
            return
        try:
            result = self._on_gap(gap)
        except (Exception, asyncio.CancelledError):  # of something that it awaits no more
            logger.exception("on_gap of %s failed", self._label)
            return
        if inspect.iscoroutine(result):
            result.close()
            hint = "asyncio.create_task(...) in it runs one"
            logger.error("on_gap of %s returned a coroutine, which is not awaited: %s", self._label, hint)

    def _note_failure(self, message_id: str, error: str) -> None:
        logger.error("%s: message %s failed: %s", self._label, message_id, error)
        self._driver.on_events(
            [Event("message.failed", time.time(), queue=self.pattern, text=f"{message_id}: {error}")]
        )


def open_sub(
    driver: Driver, pattern: str, options: Mapping[str, Any], number: int, forget: Callable[[Sub], object]
) -> Sub:
    """A subscription, named by its number; raises ``UnknownOption``, ``ConfigurationError``."""
    require_pattern("sub(pattern)", pattern)
    chosen = dict(options)
    on_gap = chosen.pop("on_gap", None)
    require_on_gap(on_gap)
    checked = make_options(SubOptions, f"sub({pattern!r})", chosen)
    subscription = Subscription(
        pattern,
        latest=checked.latest,
        replay=checked.replay,
        buffer=checked.buffer,
        where=freeze_where(checked.where),
    )
    subscription.name = f"sub:{pattern}#{number}"
    sub = Sub(driver, subscription, checked, on_gap, forget)
    try:
        driver.engine.open_sub(subscription)
    except BaseException:  # one too many
        del driver.on_arrival[subscription.name]
        raise
    driver.wake()
    return sub


def require_on_gap(on_gap: Callable[[Gap], Any] | None) -> None:
    """Raises ``ConfigurationError`` for what cannot be called with a ``Gap``."""
    if on_gap is not None and (not callable(on_gap) or find_kind(on_gap) != "function"):
        raise ConfigurationError(f"sub(on_gap=) takes a plain function, not {on_gap!r}: it is called in the loop")


def require_will(pattern: str, will: Any) -> dict[str, Any]:
    """What to offer as a last will: the encoded body, as the texts that offers can have."""
    if is_pattern(pattern):
        raise ConfigurationError(f"pub({pattern!r}, will=...) needs one topic: open a pub of its own for it")
    encoded = encode(make_packer(), will)
    if len(encoded) > MAX_WILL_BYTES:
        raise ConfigurationError(
            f"pub({pattern!r}, will=...) has {len(encoded)} bytes; at most {MAX_WILL_BYTES}, for every peer keeps it"
        )
    return wrap_will(encoded)


def tell_apart(names: Mapping[str, str]) -> dict[str, str]:
    """By id what to call each node: its name, and the beginning of its id if it is not alone with that name.

    >>> tell_apart({"3f2a9c01d4b7e655": "w", "77d0c4ab9e1f0033": "w", "a1b2c3d4e5f60718": "hall"})
    {'3f2a9c01d4b7e655': 'w (3f2a9c01d4b7)', '77d0c4ab9e1f0033': 'w (77d0c4ab9e1f)', 'a1b2c3d4e5f60718': 'hall'}
    """
    counts = Counter(names.values())
    return {each: name if counts[name] == 1 else f"{name} ({each[:12]})" for each, name in names.items()}


def cut(part: Sequence[bytes], most: int) -> list[slice]:
    """Stretches of about ``TURN_BYTES``, and ``most`` messages."""
    cuts: list[slice] = []
    start = size = 0
    for index, body in enumerate(part):
        if index - start >= most or (size and size + len(body) > TURN_BYTES):
            cuts.append(slice(start, index))
            start, size = index, 0
        size += len(body)
    cuts.append(slice(start, len(part)))
    return cuts
