"""The cluster's books of last wills: given once for each time that a publisher went, and never after a goodbye."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshmsg.engine.broadcasting import WILL, WILL_HEADER
from meshmsg.engine.peers import LEFT
from meshmsg.engine.subscription import Subscription
from meshmsg.engine.topics import matches
from meshmsg.message import Event, Message
from meshmsg.testing.broken import GuaranteeBroken

if TYPE_CHECKING:
    from meshmsg.testing.nodes import ClusterNode
    from meshmsg.testing.topics import ClusterPub, ClusterSub


class WillBooks:
    """Hears of wills that are made, of ends, and of wills that subscribers were given."""

    def __init__(self) -> None:
        self.goodbyes_arrive = False  # True while nothing may keep a goodbye from being heard
        self._made: dict[tuple[str, str], list[Any]] = {}  # by publisher's life and topic: bodies
        self._left: set[str] = set()  # lives that ended with a goodbye
        self._losses: dict[tuple[str, str], int] = {}  # by life and other node: how often that went without a goodbye
        self._taken: dict[tuple[Subscription, str, str], int] = {}  # by publisher's node and topic
        self._due: dict[tuple[ClusterSub, str, str], Subscription] = {}  # by publisher's life and topic

    def on_make(self, pub: ClusterPub) -> None:
        """A publisher tells its last will."""
        self._made.setdefault((pub.node.key, pub.pattern), []).append(pub.options.will)

    def on_event(self, node: ClusterNode, event: Event) -> None:
        """A node noticed the end of another one."""
        if event.kind == "peer.down" and event.text != LEFT:
            self._losses[node.key, event.peer_id] = self._losses.get((node.key, event.peer_id), 0) + 1

    def on_crash(self, node: ClusterNode, subs: list[ClusterSub]) -> None:
        """A node is about to die: who heard of its will and is confirmed has to be given it."""
        for topic in node.engine.identity.offers.get(WILL, {}):
            for sub in subs:
                there = sub.node.alive and not sub.node.leaving and not sub.closed and sub.node is not node
                if there and matches(sub.pattern, topic) and self._is_heard(node, sub, topic):
                    self._due[sub, node.key, topic] = sub.subscription

    @staticmethod
    def _is_heard(node: ClusterNode, sub: ClusterSub, topic: str) -> bool:
        engine = sub.node.engine
        peer = engine.peers.find(node.key)
        follower = node.engine.publisher.followers.get(sub.node.key)
        return (
            peer is not None
            and peer.state != "new"
            and topic in peer.offers.get(WILL, {})
            and node.key in engine.subscriptions.receptions
            and follower is not None
            and follower.confirmed >= sub.subscription.version
        )

    def on_left(self, node: ClusterNode) -> None:
        """A node has said goodbye and is gone."""
        self._left.add(node.key)

    def on_will(self, sub: ClusterSub, key: str, message: Message) -> None:
        """An application was given a last will."""
        topic = message.topic or ""
        name = f"{sub.node.name}, {sub.name}: the will {message.id}"
        if message.body not in self._made.get((key, topic), ()) or dict(message.headers) != {WILL_HEADER: True}:
            raise GuaranteeBroken("G6", f"{name} is nobody's: {message.body!r}, {message.headers}")
        if not matches(sub.pattern, topic):
            raise GuaranteeBroken("G6", f"{name} is none of its topics")
        if key in self._left and self.goodbyes_arrive:
            raise GuaranteeBroken("G6", f"{name} is of a node that said goodbye")
        node_id = key.partition(".")[0]
        place = (sub.subscription, node_id, topic)
        taken = self._taken[place] = self._taken.get(place, 0) + 1
        losses = self._losses.get((sub.node.key, node_id), 0)
        if taken > losses:
            raise GuaranteeBroken("G6", f"{name} is number {taken}, and {node_id} was lost {losses} times")
        self._due.pop((sub, key, topic), None)

    def outstanding(self) -> list[str]:
        """Wills that living subscriptions have yet to be given."""
        return [
            f"{sub.node.name}, {sub.name}: the will of {key} for {topic}"
            for (sub, key, topic), subscription in self._due.items()
            if sub.node.alive and not sub.node.leaving and not sub.closed and sub.subscription is subscription
        ]
