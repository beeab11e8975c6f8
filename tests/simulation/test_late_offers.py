"""A queue that is opened while two nodes introduce themselves: between HELLO and its answer nobody is linked yet."""

from __future__ import annotations

import pytest

from meshmsg.testing import Cluster


@pytest.mark.guarantee("G1")
@pytest.mark.parametrize("seed", range(5))
def test_a_pull_that_opens_during_the_handshake_is_heard_of(seed: int) -> None:
    for milliseconds in range(0, 150, 1):
        cluster = Cluster(seed, traces=False)
        jobs = cluster.node("producer").push("jobs")
        jobs.send("work")
        consumer = cluster.node("consumer")
        cluster.run(milliseconds / 1000)
        consumer.pull("jobs")
        cluster.run(2.0)
        assert jobs.ledger().processed == 1, f"opened {milliseconds} ms after the start, and nobody knows"
