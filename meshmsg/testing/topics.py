"""Publishing and subscribing in a simulated cluster; ``ClusterNode.pub`` and ``ClusterNode.sub`` make them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from meshmsg.engine.broadcasting import WILL, wrap_will
from meshmsg.engine.subscription import FIRST_WILL, Delivery, Subscription
from meshmsg.engine.subscription import Gap as Missed
from meshmsg.engine.topic_buffer import Publication, TopicBuffer
from meshmsg.engine.topic_log import TopicOptions
from meshmsg.engine.topics import choose_topic, matches
from meshmsg.errors import OutboxFull
from meshmsg.message import Gap, Message
from meshmsg.options import PubOptions, SubOptions
from meshmsg.wire.codec import explain_encode_error, make_packer

if TYPE_CHECKING:
    from meshmsg.testing.nodes import ClusterNode


class ClusterPub:
    """A topic or a pattern of topics to publish to, in a cluster."""

    def __init__(self, node: ClusterNode, pattern: str, options: PubOptions) -> None:
        self.node = node
        self.pattern = pattern
        self.options = options
        self.closed = False
        self._pack = make_packer()
        self.open()

    def open(self) -> None:
        """Begins to publish; a restart of the node does so again."""
        node, options = self.node, self.options
        node.engine.publisher.piece_bytes = node.cluster.network.broadcasts.piece_bytes
        node.engine.declare_pub(self.pattern, TopicOptions.of(options), options.for_groups())
        if "broadcast" not in node.engine.identity.offers:
            node.engine.offer("broadcast", "xpub", {"endpoints": list(node.driver.open_broadcast())})
        node.engine.offer_pub(self.pattern)
        if options.will is not None:
            node.engine.offer(WILL, self.pattern, wrap_will(self._pack(options.will)))
            node.cluster.books.wills.on_make(self)
        node.driver.wake()

    def send(
        self,
        body: Any,
        topic: str | None = None,
        headers: Mapping[str, Any] | None = None,
        key: str | None = None,
        priority: int = 0,
    ) -> int:
        """Publishes one message and returns its number; ``OutboxFull`` where ``Pub.send`` would wait."""
        node = self.node
        node.require_alive()
        name = choose_topic(self.pattern, topic)
        try:
            encoded = self._pack(body)
        except Exception as error:
            raise explain_encode_error(body, error) from None
        if node.engine.publisher.blocked(name):
            behind = node.engine.publisher.logs[name].describe_block()
            raise OutboxFull(f"a subscriber of {name!r} is {behind}; let time pass")
        said = dict(headers) if headers else None
        if not node.engine.groups.promise(name, len(encoded), said):
            raise OutboxFull(f"{node.engine.groups.describe_full(name)}; let time pass")
        number = node.engine.publisher.publish(name, encoded, said)
        if key is not None or priority:
            node.engine.groups.mark(name, number, key, priority)
        node.cluster.books.groups.mark(node, name, number, key, priority)
        node.cluster.books.topics.on_publish(self, name, number, body, said)
        if node.cluster.traces:
            node.say(f"publish {name}/{number} {_shorten(body)}")
        node.driver.wake()
        return number

    def fits(self, topic: str) -> bool:
        """Whether a topic is one of these."""
        return matches(self.pattern, topic)

    def delete_retained(self, topic: str | None = None) -> bool:
        """Takes a topic's retained value back; says whether there was one."""
        return self.node.engine.publisher.delete_retained(choose_topic(self.pattern, topic))

    def close(self) -> None:
        """Publishes no more; what was published can still be repaired."""
        if not self.closed and self.node.alive:
            self.closed = True
            self.node.say(f"close pub {self.pattern}")
            self.node.pubs.remove(self)
            self.node.engine.close_pub(self.pattern)
            if self.options.will is not None:
                self.node.engine.withdraw(WILL, self.pattern)
            self.node.driver.wake()


class WatchedSubscription(Subscription):
    """Remembers the gaps that it handed out with the publisher's whole key, which an application does not see."""

    def __init__(self, pattern: str, options: SubOptions) -> None:
        super().__init__(pattern, latest=options.latest, replay=options.replay, buffer=options.buffer)
        self.gaps: deque[Missed] = deque()

    def take(self, limit: int) -> list[Delivery | Missed]:
        """Hands out what waits."""
        taken = super().take(limit)
        self.gaps.extend(item for item in taken if isinstance(item, Missed))
        return taken


class ClusterSub:
    """A subscription in a cluster, with an application that takes its messages one after the other.

    ``received`` lists the bodies it took and ``gaps`` what it was told to miss, since the node started.
    """

    def __init__(
        self,
        node: ClusterNode,
        number: int,
        pattern: str,
        handler: Callable[[Message], Any] | None,
        options: SubOptions,
        takes: float | Callable[[], float],
    ) -> None:
        self.node = node
        self.name = f"sub:{pattern}#{number}"
        self.pattern = pattern
        self.options = options
        self.takes = takes
        self.handler = handler
        self.closed = False
        self.received: list[Any] = []
        self.gaps: list[Gap] = []
        self.subscription: WatchedSubscription
        self.buffer: TopicBuffer
        self.open()

    def open(self) -> None:
        """Begins to subscribe; a restart of the node does so again."""
        node, options = self.node, self.options
        self.received, self.gaps = [], []
        node.engine.publisher.piece_bytes = node.cluster.network.broadcasts.piece_bytes
        self._busy = False
        self.subscription = WatchedSubscription(self.pattern, options)
        self.subscription.name = self.name
        self.buffer = TopicBuffer(self.subscription, options.prefetch, node.engine.peers.name_of)
        self.buffer.on_gap = self._on_gap
        node.engine.open_sub(self.subscription)
        node.driver.on_arrival[self.name] = self._on_arrival
        node.cluster.books.topics.on_subscribe(self)
        node.driver.wake()

    def close(self) -> None:
        """Subscribes no more; what was not taken is gone."""
        node = self.node
        if self.closed or not node.alive:
            return
        node.say(f"close sub {self.pattern}")
        self.closed = True
        node.subs.remove(self)
        node.cluster.books.topics.on_unsubscribe(self)
        node.driver.on_arrival.pop(self.name, None)
        node.engine.close_sub(self.subscription)
        node.driver.wake()

    @property
    def waiting(self) -> int:
        """Messages that it has not taken yet."""
        return self.buffer.waiting

    def _on_arrival(self) -> None:
        self.buffer.tell_gaps()
        self._pump()

    def _pump(self) -> None:
        loop, buffer = self.node.loop, self.buffer
        while not self._busy and not self.closed and not loop.ended:
            if loop.held:
                loop.call_soon(self._pump)
                return
            messages = buffer.take(1, loop.time()).messages
            if not messages:
                return
            self._take(messages[0])

    def _take(self, message: Message) -> None:
        node = self.node
        publication = message._lane
        assert isinstance(publication, Publication)
        if message._number >= FIRST_WILL:
            node.cluster.books.wills.on_will(self, publication.publisher, message)
            said = f"last will {message.topic}"
        else:
            node.cluster.books.topics.on_take(self, publication.publisher, message)
            said = f"take {message.topic}/{message._number}"
        if node.cluster.traces:
            node.say(f"{said} of {message.sender} {_shorten(message.body)}")
        self.received.append(message.body)
        life = node.life
        if self.handler is not None:
            self.handler(message)
        if node.life != life or node.loop.ended:
            return
        seconds = self.takes() if callable(self.takes) else self.takes
        if seconds > 0:
            self._busy = True
            buffer = self.buffer
            node.loop.call_at(node.loop.time() + seconds, lambda: self._go_on(buffer))

    def _go_on(self, buffer: TopicBuffer) -> None:
        if buffer is self.buffer:
            self._busy = False
            self._pump()

    def _on_gap(self, gap: Gap) -> None:
        node, missed = self.node, self.subscription.gaps.popleft()
        self.gaps.append(gap)
        node.cluster.books.topics.on_gap(self, missed, gap)
        if node.cluster.traces:
            node.say(f"gap {gap.topic}/{gap.start} to {gap.stop - 1} of {gap.publisher}")


def _shorten(body: Any) -> str:
    text = f"{body!r}"
    return text if len(text) < 60 else f"{text[:57]}..."
