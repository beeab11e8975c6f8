"""A service in the middle of an upgrade, in the simulator: some who serve it do not have a method yet (G8)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshmsg.engine.served import Served
from meshmsg.errors import NoSuchMethod
from meshmsg.testing import Cluster, ClusterNode, ClusterRouter

pytestmark = pytest.mark.guarantee("G8")

OLD: set[str] = set()  # names of nodes without the method "new"


@pytest.fixture(autouse=True)
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has routers of old nodes refuse the new method, as those of a node do, before anything begins."""
    OLD.clear()
    begin = ClusterRouter._begin

    def begin_or_refuse(self: ClusterRouter, served: Served) -> None:
        node = self.node
        if served.method != "new" or node.name not in OLD:
            begin(self, served)
            return
        text = f"{served.service}.new: no such method: it has old"
        node.cluster.books.requests.records[served.args[-1]].codes.add("no_such_method")
        node.engine.serving.fail(served, "no_such_method", "", text, never_ran=True)
        node.driver.wake()
        node.loop.call_soon(self._pump)

    monkeypatch.setattr(ClusterRouter, "_begin", begin_or_refuse)


def make_service(cluster: Cluster, *names: str, **options: Any) -> list[ClusterNode]:
    nodes = [cluster.node(name) for name in names]
    for node in nodes:
        node.router("s", **options)
    return nodes


@pytest.mark.parametrize("balance", ["fastest", "least_outstanding", "round_robin", "random"])
@pytest.mark.parametrize("idempotent", [False, True])
def test_every_request_finds_the_one_that_has_the_method(balance: str, idempotent: bool) -> None:
    cluster = Cluster(seed=5)
    caller = cluster.node("caller")
    make_service(cluster, "b", "c", "d", "e")
    OLD.update("bde")
    cluster.run(0.5)
    dealer = caller.dealer("s", balance=balance, idempotent=idempotent)
    asked = []
    for _ in range(30):
        asked += [dealer.request("new", 1), dealer.request("old", 2), dealer.stream("new", 3)]
        cluster.run(0.01)
    cluster.run(0.5)
    assert [call.error for call in asked] == [None] * len(asked)
    OLD.add("c")
    late = dealer.request("new", 1)
    cluster.run(0.5)
    assert isinstance(late.error, NoSuchMethod)
    cluster.run(12.0)
    cluster.books.requests.check_rest(cluster.nodes)


@pytest.mark.parametrize("seed", range(10))
def test_an_upgrade_under_load_with_full_queues_and_a_crash(seed: int) -> None:
    """As long as somebody has it, nobody hears that there is no such method; the books watch that none runs twice."""
    chance = random.Random(f"upgrade {seed}")
    cluster = Cluster(seed=seed, traces=False)
    callers = [cluster.node(name) for name in ("x", "y")]
    servers = make_service(
        cluster, "b", "c", "d", "e", takes=lambda: chance.uniform(0.0, 0.05), concurrency=2, max_queue=3
    )
    OLD.update("bcd")
    cluster.run(0.5)
    asked = []
    for step in range(100):
        for caller in callers:
            options = {"idempotent": chance.random() < 0.5, "hedge_after": chance.choice((None, 0.02))}
            key = chance.choice((None, "k"))
            asked.append(caller.dealer("s", timeout=2.0, **options).request("new", step, key=key))
        cluster.run(0.02)
        if step == 30:
            OLD.discard("b")
        elif step == 50:
            cluster.crash(servers[0])
        elif step == 60:
            servers[3].routers["s"].set_serving(False)
            OLD.clear()
    cluster.run(15.0)
    codes = {getattr(call.error, "code", "") for call in asked}
    assert "no_such_method" not in codes and sum(call.error is None for call in asked) > 150
    cluster.books.requests.check_rest(cluster.nodes)
