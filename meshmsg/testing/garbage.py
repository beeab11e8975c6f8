"""Frames that nobody should believe: noise, torn and twisted copies of real ones, and a liar's introduction (G11)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgpack

from meshmsg.errors import ProtocolError
from meshmsg.wire import frames

if TYPE_CHECKING:
    from meshmsg.testing.cluster import Cluster
    from meshmsg.testing.nodes import ClusterNode

KEPT = 50  # real frames that are remembered as models


class Garbage:
    """Throws frames at nodes. Strangers may say anything; under a peer's name comes only what cannot be read."""

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self.cluster = cluster
        self.chance = chance
        self.models: list[list[bytes]] = []
        self.thrown = 0

    def see(self, parts: list[bytes]) -> None:
        """Takes a real frame as a model."""
        if len(self.models) < KEPT:
            self.models.append(parts)

    def throw_at(self, node: ClusterNode) -> None:
        """A few frames arrive at a node, from nowhere or under the name of a peer."""
        known = [route for route, peer in node.engine.peers.by_route.items() if peer.node_id != node.key.split(".")[0]]
        if known and self.chance.random() < 0.3:
            self._put(node, self.chance.choice(known), self.make_unreadable())
            return
        self.thrown += 1
        route = f"stranger-{self.thrown}".encode()
        if self.chance.random() < 0.5:
            self._put(node, route, self._introduction(node))
        for _ in range(self.chance.randint(1, 8)):
            parts = self.make()
            if not _is_hello(parts):  # who can forge those needs keys to be kept out, not a parser
                self._put(node, route, parts)

    def make(self) -> list[bytes]:
        """Any frame: noise, or a real one with something changed."""
        chance = self.chance
        if not self.models or chance.random() < 0.3:
            return [chance.randbytes(chance.randint(0, 40)) for _ in range(chance.randint(0, 3))]
        parts = [bytearray(part) for part in chance.choice(self.models)]
        for _ in range(chance.randint(1, 4)):
            part = chance.choice(parts)
            way = chance.randrange(4)
            if way == 0 and part:
                part[chance.randrange(len(part))] = chance.randrange(256)
            elif way == 1:
                del part[chance.randint(0, len(part)) :]
            elif way == 2:
                part += chance.randbytes(chance.randint(1, 9))
            else:
                parts.append(bytearray(chance.randbytes(3)))
        return [bytes(part) for part in parts]

    def make_unreadable(self) -> list[bytes]:
        """A frame that no decoder accepts."""
        while True:
            parts = self.make()
            try:
                frames.decode(parts)
            except ProtocolError:
                return parts

    def _introduction(self, node: ClusterNode) -> list[bytes]:
        chance = self.chance
        hello: dict[str, Any] = {
            **frames.Hello("mallory", 1, "mallory", "default", (), {}, 1, chance.randrange(9), None, None)._asdict(),
            "endpoints": chance.choice(((), ("tcp://nowhere:1",), ("what is this",), (node.endpoint,))),
            "offers": {"pull": {"q0": {}, "q1": {}}},
            "answers": chance.choice((None, chance.randrange(9))),
        }
        return [msgpack.packb([frames.HELLO, hello])]

    def _put(self, node: ClusterNode, route: bytes, parts: list[bytes]) -> None:
        node.say(f"gets garbage from {route!r}")
        node.transport.inbox.append((route, parts))
        node.driver.wake()


def _is_hello(parts: list[bytes]) -> bool:
    try:
        return isinstance(frames.decode(parts), frames.Hello)
    except ProtocolError:
        return False
