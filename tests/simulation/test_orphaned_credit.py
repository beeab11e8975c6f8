"""A producer dies while its messages fill a consumer's prefetch: their credit goes to the producers that live."""

from __future__ import annotations

import pytest

from meshmsg.testing import Cluster


@pytest.mark.guarantee("G1", "G5")
@pytest.mark.parametrize("concurrency", [1, 4])
def test_credit_of_a_dead_producer_goes_to_the_living(concurrency: int) -> None:
    cluster = Cluster(seed=1)
    consumer = cluster.node("consumer")
    pull = consumer.pull("jobs", prefetch=4, concurrency=concurrency, takes=1.0)
    victim = cluster.node("victim")
    victim.push("jobs").send_many(["lost with its producer"] * 12)
    cluster.run(0.5)
    assert pull.unsettled == concurrency
    cluster.crash(victim)
    jobs = cluster.node("producer").push("jobs")
    jobs.send("work")
    cluster.run(20.0)
    assert jobs.ledger().processed == 1
