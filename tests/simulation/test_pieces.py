"""Large messages in the simulator: their pieces are lost one by one, and what dies half-way is never half a message."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from meshmsg.testing import Cluster, ClusterNode, ClusterSub
from meshmsg.testing.broadcasts import TURN_PIECES

pytestmark = pytest.mark.guarantee("G6")

LARGE = bytes(2000)
PIECES = 21  # that a body with it has


def in_pieces(seed: int) -> tuple[Cluster, ClusterNode]:
    """A publisher whose payloads over 100 bytes leave in pieces."""
    cluster = Cluster(seed=seed)
    cluster.network.broadcasts.piece_bytes = 100
    return cluster, cluster.node("p")


def confirmed(cluster: Cluster) -> None:
    cluster.run(1.0)
    assert not cluster.books.topics.unconfirmed()


def rest(cluster: Cluster) -> None:
    for _ in range(20):
        cluster.run(3.0)
        if not cluster.books.topics.outstanding():
            break
    cluster.books.topics.check_rest()


def numbers(sub: ClusterSub) -> list[int]:
    return [body[0] for body in sub.received]


def test_a_small_message_passes_the_pieces_of_another_topic() -> None:
    cluster, node = in_pieces(1)
    large, small = node.pub("large"), node.pub("small")
    order: list[tuple[str | None, Any]] = []
    cluster.node("s").sub("**", handler=lambda message: order.append((message.topic, message.body[0])))
    confirmed(cluster)
    large.send([0, LARGE])
    large.send([1])
    node.driver.turn()
    assert cluster.network.broadcasts.published == TURN_PIECES
    small.send([0])
    node.driver.turn()
    large.send([2])
    rest(cluster)
    assert order == [("small", 0), ("large", 0), ("large", 1), ("large", 2)]
    assert cluster.network.broadcasts.published == PIECES + 2  # two small ones of a topic waited, and left together
    assert node.engine.publisher.repaired == 0


@pytest.mark.parametrize("lost", range(PIECES))
def test_any_lost_piece_is_repaired(lost: int) -> None:
    cluster, node = in_pieces(2)
    pub = node.pub("large")
    subs = [cluster.node(name).sub("large") for name in ("s", "t")]
    confirmed(cluster)
    numbered = count()
    cluster.network.broadcasts.loses = lambda parts: next(numbered) == 2 * lost  # of two subscribers the first
    pub.send([0, LARGE])
    rest(cluster)
    pub.send([1])
    rest(cluster)
    assert [numbers(sub) for sub in subs] == [[0, 1], [0, 1]]
    assert node.engine.publisher.repaired == 1


@pytest.mark.parametrize("turns", [1, 2, 5])
@pytest.mark.parametrize("how", ["crash", "leave", "freeze", "disconnect"])
def test_an_end_half_way(how: str, turns: int) -> None:
    cluster, node = in_pieces(3)
    pub = node.pub("large")
    sub = cluster.node("s").sub("large")
    confirmed(cluster)
    pub.send([0, LARGE])
    for _ in range(turns):
        node.driver.turn()
    if how == "crash":
        cluster.crash(node)
        cluster.run(1.0)
        cluster.restart(node, same_id=True)
    elif how == "leave":
        cluster.leave(node)
        cluster.run(5.0)
        assert numbers(sub) == [0]
        return
    elif how == "freeze":
        cluster.freeze(sub.node)
        cluster.run(1.0)
        cluster.thaw(sub.node)
    else:
        cluster.network.disconnect("s", "p")
    cluster.run(10.0)
    confirmed(cluster)
    pub.send([1, LARGE])
    rest(cluster)
    # With its publisher a message may be gone. Then it is not there, or known to be missing, and never a part of it.
    assert numbers(sub) == [0, 1] or (how == "crash" and numbers(sub) == [1])


def test_a_node_hears_itself_without_a_socket() -> None:
    cluster, node = in_pieces(4)
    pub, sub = node.pub("large"), node.sub("large")
    cluster.run(1.0)
    pub.send([0, LARGE])
    cluster.run(1.0)
    assert numbers(sub) == [0]
    assert cluster.network.broadcasts.published == 0
