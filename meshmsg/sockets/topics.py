"""A node's publishing and subscribing sockets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from meshmsg.driver import Driver
from meshmsg.engine.broadcasting import WILL
from meshmsg.engine.topic_log import TopicOptions
from meshmsg.engine.topics import matches, require_pattern
from meshmsg.errors import ConfigurationError, NameClash
from meshmsg.options import PubOptions, SubOptions, describe_difference, make_options
from meshmsg.sockets.bare_pub_sub import BARE_SUB, BarePub, BareTopics, open_bare_sub
from meshmsg.sockets.pub_sub import Pub, Sub, open_sub, require_will
from meshmsg.sockets.raw import RawSockets


class Topics:
    """Opens them, and gives each pattern one ``Pub``. The node has checked that it is open."""

    def __init__(self, driver: Driver, max_message_bytes: int) -> None:
        self.subs: list[Sub] = []
        self._driver = driver
        self._engine = driver.engine
        self._max_message_bytes = max_message_bytes
        self._pubs: dict[str, Pub] = {}
        self._bare_pubs: dict[str, BarePub] = {}
        self._bare = BareTopics(driver)
        self._sub_count = 0
        self._connected = False

    def connect(self, raws: RawSockets) -> None:
        """The node has started."""
        self._connected = True
        self._offer(self._pubs.values())
        self._bare.connect(raws)
        if self._bare_pubs:
            self._bare.listen()
        for sub in self.subs:
            sub._start()

    def close(self) -> None:
        """The node is closed."""
        self._bare.close()

    def pub(self, pattern: str, options: Mapping[str, Any]) -> Pub | BarePub:
        """The same pattern with the same options is the same socket."""
        require_pattern("pub(pattern)", pattern)
        chosen = make_options(PubOptions, f"pub({pattern!r})", options)
        if not chosen.reliable:
            return self._pub_bare(pattern, options)
        name = self._engine.identity.name
        if pattern in self._bare_pubs:
            raise NameClash(f"node {name!r} already publishes to {pattern!r} with reliable=False: close that first")
        pub = self._pubs.get(pattern)
        if pub is not None:
            if options and pub.options != chosen:
                others = describe_difference(pub.options, chosen)
                raise NameClash(
                    f"node {name!r} already publishes to {pattern!r} with other options ({others}): "
                    "open it once, and hand the socket around"
                )
            return pub
        if chosen.will is not None:
            require_will(pattern, chosen.will)
        self._engine.declare_pub(pattern, TopicOptions.of(chosen), chosen.for_groups())
        forget = partial(self._pubs.pop, pattern, None)
        pub = self._pubs[pattern] = Pub(self._driver, pattern, chosen, self._max_message_bytes, forget)
        if self._connected:
            self._offer([pub])
        return pub

    def _pub_bare(self, pattern: str, options: Mapping[str, Any]) -> BarePub:
        if len(options) > 1:
            others = ", ".join(sorted(set(options) - {"reliable"}))
            raise ConfigurationError(
                f"pub({pattern!r}, reliable=False) is bare ZeroMQ and has no {others}: "
                "leave that out, or reliable=False at both ends"
            )
        if pattern in self._pubs:
            name = self._engine.identity.name
            raise NameClash(f"node {name!r} already publishes to {pattern!r} reliably: close that first")
        bare = self._bare_pubs.get(pattern)
        if bare is None:
            forget = partial(self._bare_pubs.pop, pattern, None)
            bare = BarePub(self._driver, pattern, self._bare, self._max_message_bytes, forget)
            self._bare_pubs[pattern] = bare
            if self._connected:
                self._bare.listen()
        return bare

    def count_subscribers(self, topic: str) -> int:
        """How many living nodes get what is published here to a topic, reliably or not, as this node does."""
        if not self._is_bare(topic):
            return self._engine.count("sub", topic)
        living = {peer.node_id for peer in self._engine.peers.by_id.values() if peer.state == "alive"}
        return len(self._bare.subscribers(topic) & living)

    def describe_subscribers(self, topic: str) -> str:
        """In words, why nobody gets a topic: nothing here publishes to it, or others want it in another way."""
        opened = [*self._pubs, *self._bare_pubs]
        if not any(matches(pattern, topic) for pattern in opened):
            known = ", ".join(map(repr, opened[:5])) or "nothing"
            return f"this node publishes {known}, which is not {topic!r}: only what is published here is counted"
        bare = self._is_bare(topic)
        peers = self._engine.peers.by_id.values()
        wanting = [
            peer.name for peer in peers if any(matches(each, topic) for each in peer.offers.get(_other(bare), ()))
        ]
        if not wanting or self.count_subscribers(topic):
            return ""
        theirs, ours = ("reliably", "has reliable=False") if bare else ("with reliable=False", "is reliable")
        names = ", ".join(map(repr, wanting[:5]))
        verb = "subscribes" if len(wanting) == 1 else "subscribe"
        return f"{names} {verb} to it {theirs}, this pub {ours}: both ends need the same"

    def describe_publishers(self, topic: str) -> str:
        """In words, why no publisher of a topic has confirmed this node's subscriptions to it."""
        if not self._engine.subscriptions.match(topic):
            return f"no reliable sub() of this node matches {topic!r}; groups are waited for at their publishers"
        peers = self._engine.peers.by_id.values()
        publishing = [peer.name for peer in peers if any(matches(each, topic) for each in peer.offers.get("pub", ()))]
        if publishing:
            return (
                f"published by {', '.join(map(repr, publishing[:5]))}, who have not confirmed all subscriptions to it"
            )
        return f"nobody publishes to it reliably ({len(peers) - 1} peers seen)"

    def _is_bare(self, topic: str) -> bool:
        if not any(matches(pattern, topic) for pattern in self._bare_pubs):
            return False
        return not any(matches(pattern, topic) for pattern in self._pubs)

    def _offer(self, pubs: Iterable[Pub]) -> None:
        """Tells the mesh what is published here, and where it can be followed."""
        for pub in pubs:
            if "broadcast" not in self._engine.identity.offers:
                endpoints = list(self._driver.open_broadcast())
                self._engine.offer("broadcast", "xpub", {"endpoints": endpoints})
            self._engine.offer_pub(pub.pattern)
            if pub.options.will is not None:
                self._engine.offer(WILL, pub.pattern, require_will(pub.pattern, pub.options.will))
        self._driver.wake()

    def sub(self, pattern: str, options: Mapping[str, Any]) -> Sub:
        """Each call is a subscription of its own."""
        self._sub_count += 1
        if options.get("reliable") is False:
            require_pattern("sub(pattern)", pattern)
            if "on_gap" in options:
                raise ConfigurationError(f"sub({pattern!r}, reliable=False) is bare ZeroMQ and hears of no gaps")
            chosen = make_options(SubOptions, f"sub({pattern!r})", options)
            sub: Sub = open_bare_sub(self._driver, pattern, chosen, self._sub_count, self._bare, self.subs.remove)
        else:
            sub = open_sub(self._driver, pattern, options, self._sub_count, self.subs.remove)
        self.subs.append(sub)
        return sub


def _other(bare: bool) -> str:
    """What those offer who do not hear such a publisher."""
    return "sub" if bare else BARE_SUB
