"""The part of a seed that publishes and subscribes, beside the queues of the same nodes and under the same faults."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from meshmsg.errors import NameClash, OutboxFull
from meshmsg.testing.broken import GuaranteeBroken
from meshmsg.testing.group_swarm import GroupSwarm
from meshmsg.wire.frames import PIECE_BYTES

if TYPE_CHECKING:
    from meshmsg.testing.cluster import Cluster
    from meshmsg.testing.nodes import ClusterNode
    from meshmsg.testing.topics import ClusterPub, ClusterSub

TOPICS = ("a", "a.b", "a.c", "b.x.y", "ab")
PUBLISHED = ("a", "a.*", "b.**", "**", "ab")
PRESENCE = "p.w"  # nobody says anything, but for the last wills
SUBSCRIBED = ("a", "a.b", "a.*", "a.**", "**", "b.*.y", "*.b", "ab")
CONFIRM_S = 30.0  # after the heal, everybody is confirmed within this time
REST_S = 600.0  # and has accounted for everything
LOOK_EVERY_S = 0.1
# With these a goodbye may not be heard, or its subscriber gives the publisher up before.
UNHEARD = frozenset(
    "freeze stall partition one_way disconnect garbage jump lost_acks crowding delay port_reuse stale_discovery".split()
)
LARGE = b"\0" * 300_000  # a few of these are all that a publisher keeps without a history


class TopicSwarm:
    """What one seed drew of topics. It has a generator of its own, so that queues do not depend on it."""

    def __init__(self, seed: int, cluster: Cluster, faults: set[str], groups: GroupSwarm | None = None) -> None:
        self.cluster = cluster
        self.groups = groups
        self.faults = faults
        self.chance = chance = random.Random(f"topics of {seed}")
        self.offer_chance = random.Random(f"offers of {seed}")
        self.options = {pattern: self._draw_options() for pattern in PUBLISHED}
        self.will_chance = random.Random(f"wills of {seed}")
        if groups is not None:
            for options in self.options.values():
                options.update(groups.draw_options())
        for pattern in ("a", "ab"):
            self.options[pattern]["will"] = self.will_chance.choice((None, ["gone", pattern]))
        self.options[PRESENCE] = {"retain": True, "will": "gone"}
        self.subs: list[ClusterSub] = []
        self.healthy = False
        self.serial = 0
        self.large = chance.random() < 0.15
        self.piece_chance = random.Random(f"pieces of {seed}")
        broadcasts = cluster.network.broadcasts
        sizes = (PIECE_BYTES, PIECE_BYTES) if self.large else (PIECE_BYTES, PIECE_BYTES, 40, 1000)
        broadcasts.piece_bytes = self.piece_chance.choice(sizes)
        broadcasts.drops = chance.choice((0.0, 0.0, 0.02, 0.3))
        broadcasts.high_water = chance.choice((1, 10, 1000))
        cluster.books.topics.gaps_are_due = "jump" not in faults
        cluster.books.wills.goodbyes_arrive = not faults & UNHEARD

    def _draw_options(self) -> dict[str, Any]:
        chance = self.chance
        history = chance.choice((0, 0, 1, 5, 1000))
        return {
            "retain": chance.random() < 0.4,
            "history": history,
            "history_s": chance.choice((None, None, 1.0)) if history else None,
            "block": chance.random() < 0.25,
            "window": chance.choice((1, 4, 50)),
            "window_bytes": chance.choice((100, 2**26, 2**26)),
        }

    # -- the cast --------------------------------------------------------------------------------------------

    def cast(self, nodes: list[ClusterNode], work_s: float) -> None:
        """Some of the nodes publish, some subscribe, and there may be more of them."""
        chance = self.chance
        nodes = [*nodes, *(self.cluster.node(f"t{number}") for number in range(chance.choice((0, 0, 1, 2))))]
        if self.groups is not None:
            self.groups.cast(nodes, work_s)
        for node in chance.sample(nodes, chance.randint(1, min(3, len(nodes)))):
            for _ in range(chance.randint(1, 2)):
                self._publish_later(node, chance.choice((0.0, 0.0, chance.uniform(0.0, work_s))))
        self._cast_wills(nodes)
        for _ in range(chance.choice((1, 2, 4))):
            when = chance.choice((0.0, 0.0, chance.uniform(0.0, work_s)))
            self._at(when, partial(self._open_sub, chance.choice(nodes)))
        for _ in range(chance.choice((2, 10, 30))):
            self._at(chance.uniform(0.0, work_s), partial(self._publish, chance.choice((1, 1, 5, 40))))
        for action in (self._close_sub, self._close_pub, self._break_connections, self._delete_retained):
            for _ in range(chance.choice((0, 0, 1, 3))):
                self._at(chance.uniform(0.1, work_s), action)

    def _cast_wills(self, nodes: list[ClusterNode]) -> None:
        chance = self.will_chance
        if chance.random() < 0.4:
            for node in chance.sample(nodes, min(len(nodes), chance.choice((1, 2)))):
                self._publish_later(node, 0.0, PRESENCE)
            for node in chance.sample(nodes, min(len(nodes), 2)):
                options = {"latest": chance.random() < 0.3, "buffer": chance.choice((1, 1000))}
                node.soon(partial(self._watch, node, chance.choice((PRESENCE, "p.*", "**")), options))

    def _watch(self, node: ClusterNode, pattern: str, options: dict[str, Any]) -> None:
        self.subs.append(node.sub(pattern, **options))

    def _at(self, when: float, action: Callable[[], Any]) -> None:
        self.cluster.clock.call_at(when, action)

    def _publish_later(self, node: ClusterNode, when: float, pattern: str | None = None) -> None:
        pattern = pattern or self.chance.choice(PUBLISHED)

        def open_pub() -> None:
            try:
                node.pub(pattern, **self.options[pattern])
            except NameClash:
                return

        self._at(when, lambda: node.soon(open_pub))

    def _open_sub(self, node: ClusterNode) -> None:
        chance = self.chance
        pace_s = chance.choice((0.0, 0.0, 0.01, 0.1, 0.5))
        options: dict[str, Any] = {
            "latest": chance.random() < 0.25,
            "replay": chance.choice(("none", "latest", "history")),
            "buffer": chance.choice((1, 3, 20, 65_536)),
            "takes": lambda: (0.001 if self.healthy else 1.0) * pace_s,
        }
        pattern = chance.choice(SUBSCRIBED)
        node.soon(lambda: self.subs.append(node.sub(pattern, **options)))
        for _ in range(self.offer_chance.choice((0, 0, 1, 3))):
            later = self.cluster.now + self.offer_chance.choice((0.0, 0.0, 0.001, 1.0))
            self._at(later, partial(self._offer_something, node))

    def _offer_something(self, node: ClusterNode) -> None:
        """What a node opens besides its subscriptions makes new offers, of which a publisher may see only the last."""
        node.soon(lambda: node.engine.offer("note", "something", {}))

    # -- work and faults -------------------------------------------------------------------------------------

    def _pubs(self) -> list[ClusterPub]:
        return [pub for node in self.cluster.nodes if node.alive and not node.leaving for pub in node.pubs]

    def _publish(self, count: int) -> None:
        chance, pubs = self.chance, [pub for pub in self._pubs() if pub.pattern != PRESENCE]
        if not pubs:
            return
        pub = chance.choice(pubs)
        topics = [topic for topic in TOPICS if pub.fits(topic)]
        picked = chance.choices(topics, k=count) if chance.random() < 0.5 else [chance.choice(topics)] * count
        pub.node.soon(lambda: self._send(pub, picked))

    def _send(self, pub: ClusterPub, topics: list[str]) -> None:
        if pub.closed:
            return
        for topic in topics:
            self.serial += 1
            body: Any = [self.serial, LARGE] if self.large and self.serial % 2 else self._enlarge(self.serial)
            extras: dict[str, Any] = {"headers": {"n": self.serial} if self.chance.random() < 0.1 else None}
            if self.groups is not None:
                body, extras = self.groups.draw_message(self.serial)
            try:
                pub.send(body, topic, **extras)
            except OutboxFull:
                return

    def _enlarge(self, serial: int) -> Any:
        """A body that is now and then one of a few pieces or many, where pieces are small."""
        piece_bytes = self.cluster.network.broadcasts.piece_bytes
        if piece_bytes == PIECE_BYTES or self.piece_chance.random() < 0.8:
            return serial
        return [serial, bytes(piece_bytes * self.piece_chance.choice((1, 2, 10, 30)))]

    def _close_sub(self) -> None:
        subs = [sub for sub in self.subs if not sub.closed and sub.node.alive and not sub.node.leaving]
        if not subs:
            return
        sub = self.chance.choice(subs)
        sub.node.soon(sub.close)
        if self.chance.random() < 0.7:
            when = self.cluster.now + self.chance.choice((0.0, 0.001, 0.5))
            self._at(when, partial(self._open_sub, sub.node))

    def _close_pub(self) -> None:
        pubs = self._pubs()
        if pubs:
            pub = self.chance.choice(pubs)
            pub.node.soon(pub.close)
            if self.chance.random() < 0.8:
                self._publish_later(pub.node, self.cluster.now + self.chance.choice((0.0, 0.001, 0.5)))

    def _delete_retained(self) -> None:
        for pub in self._pubs():
            pub.node.soon(partial(pub.node.engine.publisher.delete_retained, self.chance.choice(TOPICS)))

    def _break_connections(self) -> None:
        """Broadcast connections of two nodes end, and nothing else does."""
        nodes = [node for node in self.cluster.nodes if node.alive]
        for one in nodes:
            for other in nodes:
                if one is not other and self.chance.random() < 0.3:
                    self.cluster.network.broadcasts.reset(one.host, other.host)

    # -- the end ---------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """From here on nothing is dropped, and applications are quick."""
        self.healthy = True
        self.cluster.network.broadcasts.drops = 0.0
        self.cluster.network.broadcasts.high_water = 1000
        if self.groups is not None:
            self.groups.heal()

    def check_rest(self) -> None:
        """Everybody is confirmed, gets one more message of every topic, and has accounted for all of them."""
        cluster, books = self.cluster, self.cluster.books.topics
        groups, wills = cluster.books.groups, cluster.books.wills
        cluster.run(2.0)  # whoever died last is back
        if not self._wait(lambda: not books.unconfirmed() and not groups.unjoined(cluster.nodes), CONFIRM_S):
            late = [*books.unconfirmed(), *groups.unjoined(cluster.nodes)]
            raise GuaranteeBroken("G6", f"{CONFIRM_S:g} s after the heal: {late}")
        for pub in self._pubs():
            self._send(pub, [topic for topic in TOPICS if pub.fits(topic)])
        if not self._wait(lambda: not books.outstanding() and not wills.outstanding(), REST_S):
            late = [*books.outstanding(), *wills.outstanding()]
            raise GuaranteeBroken("G6", f"{REST_S:g} s after the last message: {late}")
        cluster.run(3.0)
        if self.groups is not None:
            cluster.settle()
            if not self._wait(lambda: not groups.former(cluster.nodes), CONFIRM_S):
                raise GuaranteeBroken("G7", f"{CONFIRM_S:g} s later: {groups.former(cluster.nodes)}")
        books.check_rest()

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Lets time pass until a condition holds; it is looked at now and then, as that takes a while."""
        end = self.cluster.now + timeout_s
        while not condition():
            if self.cluster.now >= end:
                return False
            self.cluster.run(LOOK_EVERY_S)
        return True
