"""Requests that are made while the only provider is suspect: its connection broke, or it says nothing for a while."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshmsg.errors import DeadlineExceeded, NoResponders
from meshmsg.testing import Cluster, ClusterCall, ClusterDealer, ClusterNode
from tests.simulation.test_requests import connected, rest, serve

pytestmark = pytest.mark.guarantee("G8")

Ask = Callable[[ClusterDealer], ClusterCall]

KINDS: dict[str, tuple[Ask, object]] = {
    "request": (lambda dealer: dealer.request("echo", 1), [1]),
    "idempotent": (lambda dealer: dealer.request("echo", 1, idempotent=True), [1]),
    "without limit": (lambda dealer: dealer.request("echo", 1, timeout=None), [1]),
    "peer": (lambda dealer: dealer.request("echo", 1, peer="b"), [1]),
    "key": (lambda dealer: dealer.request("echo", 1, key="ada"), [1]),
    "stream": (lambda dealer: dealer.stream("count", 100), list(range(100))),
    "items": (lambda dealer: dealer.request("sum", items=range(100)), 4950),
    "no items": (lambda dealer: dealer.request("sum", items=()), 0),
    "both ways": (lambda dealer: dealer.stream("double", items=range(100)), list(range(0, 200, 2))),
}


def serving(**options: object) -> tuple[Cluster, ClusterNode, ClusterNode]:
    cluster, [a, b] = connected("ab", **options)
    b.router("s", serve)
    cluster.run(0.1)
    return cluster, a, b


def is_suspect(a: ClusterNode, b: ClusterNode) -> bool:
    return a.engine.peers.by_id[b.engine.identity.node_id].state == "suspect"


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_made_while_the_connection_is_broken_gets_its_result(kind: str) -> None:
    ask, value = KINDS[kind]
    cluster, a, b = serving()
    cluster.disconnect(a, b)
    assert cluster.run_until(lambda: is_suspect(a, b), 1.0)
    call = ask(a.dealer("s"))
    cluster.run(0.0)
    assert is_suspect(a, b) and not call.done and not b.routers["s"].served
    assert cluster.run_until(lambda: call.done, 0.1)
    assert call.result() == value
    assert len(b.routers["s"].served) == 1, "and ran once"
    rest(cluster)


@pytest.mark.parametrize("both", [False, True])
def test_whenever_a_connection_breaks_no_request_notices(both: bool) -> None:
    cluster, a, b = serving(traces=False)
    dealer = a.dealer("s")
    asked = []
    for round_ in range(40):
        cluster.disconnect(a, b)
        if both:
            cluster.disconnect(b, a)
        for step in range(16):
            asked += [ask(dealer) for ask, _ in KINDS.values()] if step == round_ % 16 else [dealer.request("echo", 1)]
            cluster.run(0.0005)
        cluster.run(0.5)
    assert [call for call in asked if call.error is not None] == []
    assert len(b.routers["s"].served) == len(asked)
    rest(cluster)


@pytest.mark.parametrize("kind", KINDS)
def test_when_the_process_is_gone_that_is_known_at_once(kind: str) -> None:
    cluster, a, b = serving()
    cluster.crash(b)
    assert cluster.run_until(lambda: is_suspect(a, b), 1.0)
    call = KINDS[kind][0](a.dealer("s"))
    cluster.run(0.0)
    assert not call.done
    assert cluster.run_until(lambda: call.done, 0.1)
    assert isinstance(call.error, NoResponders)
    rest(cluster)


def test_who_restarts_meanwhile_is_another_life_and_gets_nothing() -> None:
    cluster, a, b = serving()
    cluster.crash(b)
    assert cluster.run_until(lambda: is_suspect(a, b), 1.0)
    call = a.dealer("s").request("echo", 1)
    cluster.run(0.0)
    cluster.restart(b)
    cluster.run(1.0)
    assert isinstance(call.error, NoResponders) and not b.routers["s"].served
    rest(cluster)


def test_a_cut_is_waited_for_until_the_provider_is_given_up() -> None:
    cluster, a, b = serving()
    cluster.cut(a, b)
    assert cluster.run_until(lambda: is_suspect(a, b), 3.0)
    impatient, patient = a.dealer("s").request("echo", 1, timeout=0.1), a.dealer("s").stream("count", 3)
    cluster.run(0.2)
    assert isinstance(impatient.error, DeadlineExceeded)
    assert not patient.done
    cluster.run(2.0)
    assert isinstance(patient.error, NoResponders)
    cluster.heal()
    cluster.run(12.0)
    again = a.dealer("s").request("echo", 2)
    rest(cluster)
    assert again.value == [2] and b.routers["s"].served == [("echo", [2])]


def test_a_cut_that_heals_in_time() -> None:
    cluster, a, b = serving()
    cluster.cut(a, b)
    assert cluster.run_until(lambda: is_suspect(a, b), 3.0)
    calls = [ask(a.dealer("s")) for ask, _ in KINDS.values()]
    cluster.run(0.1)
    cluster.heal()
    cluster.run(2.0)
    assert [call.value for call in calls] == [value for _, value in KINDS.values()]
    assert len(b.routers["s"].served) == len(calls)
    rest(cluster)


def test_a_provider_whose_loop_is_blocked_is_waited_for() -> None:
    """It lives, so its requests are late and not refused: as those that were made before it was noticed."""
    cluster, a, b = serving()
    cluster.stall(b, 5.0)
    before = a.dealer("s").request("echo", 1, timeout=3.0)
    cluster.run(2.0)
    assert is_suspect(a, b)
    late, in_time = a.dealer("s").request("echo", 2, timeout=1.0), a.dealer("s").request("echo", 3)
    cluster.run(1.5)
    assert isinstance(before.error, DeadlineExceeded) and isinstance(late.error, DeadlineExceeded)
    assert late.error.peer is None and "was not sent" in str(late.error)
    cluster.run(3.0)
    assert in_time.value == [3]
    assert [args for _, args in b.routers["s"].served] == [[3]]
    rest(cluster)


def test_others_are_asked_meanwhile_except_for_a_key_or_a_peer() -> None:
    cluster, [a, b, c] = connected("abc")
    for node in (b, c):
        node.router("s", serve)
    cluster.run(0.1)
    cluster.stall(b, 4.0)
    cluster.run(2.0)
    dealer = a.dealer("s")
    free = [dealer.request("echo", number) for number in range(10)]
    keyed = [dealer.request("echo", number, key=f"{number}") for number in range(20)]
    named = dealer.request("echo", 0, peer="b")
    cluster.run(0.1)
    assert all(call.value for call in free)
    assert 0 < sum(call.done for call in keyed) < 20 and not named.done
    cluster.run(3.0)
    assert all(call.value for call in [*keyed, named])
    assert len(b.routers["s"].served) == 1 + 20 - len([1 for _, args in c.routers["s"].served[10:]])
    rest(cluster)


def test_a_caller_that_leaves_or_gives_up_while_it_waits() -> None:
    cluster, a, b = serving()
    cluster.stall(b, 5.0)
    cluster.run(2.0)
    dealer = a.dealer("s")
    given_up, left = dealer.request("echo", 1), dealer.stream("count", 3)
    cluster.run(0.1)
    given_up.cancel()
    cluster.run(0.1)
    cluster.leave(a, drain=0.5)
    cluster.run(2.0)
    assert left.done and left.error is not None and left.error.code == "cancelled"  # type: ignore[attr-defined]
    cluster.run(5.0)
    assert not b.routers["s"].served
    rest(cluster)
