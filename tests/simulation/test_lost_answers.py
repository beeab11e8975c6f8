"""A peer comes back, and the answer to its HELLO is lost: it is said again as soon as there is a link to say it on."""

from __future__ import annotations

from functools import partial

import pytest

from meshmsg.testing import Cluster, ClusterNode
from meshmsg.wire import frames

pytestmark = pytest.mark.guarantee("G1")


def reaches(a: ClusterNode, b: ClusterNode) -> bool:
    """Whether both know that both directions are proven."""
    seen = [one.engine.peers.by_id.get(other.engine.identity.node_id) for one, other in ((a, b), (b, a))]
    return all(peer is not None and peer.state == "alive" and peer.link is not None for peer in seen)


def count_dials(node: ClusterNode) -> int:
    return node.engine.peers._next_link - 1


def has_dialled(node: ClusterNode, count: int) -> bool:
    return count_dials(node) == count


def refuse_an_answer(node: ClusterNode) -> list[frames.Hello]:
    """The next HELLO of this node that answers one finds no room in its link; returns where it is noted."""
    refused: list[frames.Hello] = []
    send = node.transport.send

    def refuse(link: int, parts: list[bytes]) -> bool:
        frame = frames.decode(parts)
        if not refused and isinstance(frame, frames.Hello) and frame.answers is not None:
            refused.append(frame)
            return False
        return send(link, parts)

    node.transport.send = refuse  # type: ignore[method-assign]
    return refused


def test_connections_that_break_in_both_directions_need_one_dial_each() -> None:
    """Often one side answers over its own connection, which is broken too and does not know it yet."""
    for seed in range(100):
        cluster = Cluster(seed, traces=False)
        a, b = cluster.node("a"), cluster.node("b")
        cluster.run(0.5)
        for round_ in range(1, 6):
            cluster.disconnect(a, b)
            cluster.disconnect(b, a)
            cluster.run(0.05)
            assert reaches(a, b), f"seed {seed}"
            assert (count_dials(a), count_dials(b)) == (1 + round_, 1 + round_), f"seed {seed}"


def test_who_was_frozen_and_loses_its_own_connection_as_it_goes_on() -> None:
    for seed in range(100):
        cluster = Cluster(seed, traces=False)
        a, b = cluster.node("a"), cluster.node("b")
        cluster.run(0.5)
        cluster.freeze(b)
        assert cluster.run_until(partial(has_dialled, a, 2), 3.0), f"seed {seed}"
        cluster.thaw(b)
        cluster.disconnect(b, a)
        cluster.run(0.05)
        assert reaches(a, b), f"seed {seed}"
        assert (count_dials(a), count_dials(b)) == (2, 2), f"seed {seed}"


def test_an_answer_that_found_no_room_is_said_again_with_the_next_beat() -> None:
    cluster = Cluster(seed=1)
    a, b = cluster.node("a"), cluster.node("b")
    cluster.run(0.5)
    refused = refuse_an_answer(b)
    cluster.disconnect(a, b)
    cluster.run(0.1)
    assert refused and not reaches(a, b)
    cluster.run(cluster.liveness.heartbeat)
    assert reaches(a, b)
    assert (count_dials(a), count_dials(b)) == (2, 1)
