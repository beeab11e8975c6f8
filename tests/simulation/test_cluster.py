"""The cluster as its users see it, and proof that its books would notice what must not happen."""

from __future__ import annotations

import collections
from typing import Any

import pytest

from meshmsg.errors import ConfigurationError, NodeClosed, OutboxFull, Reject
from meshmsg.message import Batch, Message
from meshmsg.options import Retry
from meshmsg.testing import Cluster, ClusterNode, ClusterPull, ClusterPush, GuaranteeBroken
from meshmsg.testing.swarm import Swarm


def pair(**pull_options: Any) -> tuple[Cluster, ClusterNode, ClusterNode, ClusterPush, ClusterPull]:
    cluster = Cluster(seed=1)
    a, b = cluster.node("a"), cluster.node("b")
    jobs, pull = a.push("q", retry=Retry(3, 0.1)), b.pull("q", **pull_options)
    return cluster, a, b, jobs, pull


# --- leaving ------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G10")
@pytest.mark.parametrize("drain", [0.0, 1.0])
def test_who_leaves_properly_is_never_suspected(drain: float) -> None:
    """Its goodbye and the end of its links come over different connections, which overtake one another freely."""
    for seed in range(70):
        cluster = Cluster(seed=seed)
        nodes = [cluster.node(name) for name in "abcd"]
        jobs = nodes[0].push("q")
        for node in nodes[1:]:
            node.pull("q", takes=0.05)
        for number in range(20):
            jobs.send(number)
        cluster.run(0.3)
        for leaving in (nodes[1], nodes[0]):
            cluster.leave(leaving, drain)
            cluster.run(0.25)
        cluster.run(drain + 3.0)
        for node in nodes[2:]:
            seen = [(event.kind, event.peer, event.text) for event in node.events if event.peer in ("a", "b")]
            assert sorted(each for each in seen if each[0] != "peer.up") == [
                ("peer.down", "a", "left"),
                ("peer.down", "b", "left"),
            ], f"seed {seed}"


@pytest.mark.guarantee("G10")
@pytest.mark.parametrize("drain", [0.0, 1.0])
@pytest.mark.parametrize("fault", ["freeze", "stall", "cut"])
def test_peers_that_do_not_answer_delay_nobodys_leave(fault: str, drain: float) -> None:
    """The wait for producers to take back what is theirs and the wait for answers to goodbyes share one deadline."""
    cluster = Cluster(seed=1)
    producer, middle, consumer = (cluster.node(name) for name in ("producer", "middle", "consumer"))
    jobs = producer.push("in")
    middle.pull("in", takes=0.5)
    results = middle.push("out")
    consumer.pull("out", takes=0.5)
    jobs.send_many(range(10))
    results.send_many(range(10))
    cluster.run(0.6)
    for other in (producer, consumer):
        if fault == "cut":
            cluster.cut(middle, other)
        elif fault == "stall":
            cluster.stall(other, 30.0)
        else:
            cluster.freeze(other)
    cluster.leave(middle, drain)
    cluster.run(drain + 0.5)
    assert not middle.alive
    assert results.ledger().balanced and results.ledger().pending > 0


@pytest.mark.guarantee("G4", "G10")
def test_what_never_reached_a_consumer_that_left_costs_no_attempt() -> None:
    cluster = Cluster(seed=1)
    producer, leaving = cluster.node("producer"), cluster.node("leaving")
    jobs = producer.push("q", retry=Retry(1))
    leaving.pull("q")
    cluster.run(0.5)
    cluster.cut(producer, leaving, one_way=True)
    jobs.send_many(range(5))
    cluster.run(0.01)
    assert jobs.ledger().in_flight == 5
    cluster.leave(leaving, 0.0)
    staying = cluster.node("staying").pull("q")
    cluster.run(2.0)
    assert sorted(staying.processed) == [0, 1, 2, 3, 4] and not producer.dead_letters()


# --- handlers -----------------------------------------------------------------------------------------------


def test_what_a_handler_does_is_its_verdict() -> None:
    def handler(message: Message) -> None:
        if message.body == "reject":
            raise Reject("no use")
        if message.body == "fail":
            raise ValueError("no good")

    cluster, a, _, jobs, pull = pair(handler=handler)
    for body in ("fine", "reject", "fail"):
        jobs.send(body)
    cluster.settle()
    assert pull.processed == ["fine"]
    assert {letter.body: (letter.reason, letter.error) for letter in a.dead_letters()} == {
        "reject": ("rejected", "no use"),
        "fail": ("attempts", "ValueError: no good"),
    }


def test_a_coroutine_function_is_a_handler_too() -> None:
    seen = []

    async def handler(message: Message) -> None:
        seen.append(message.body)

    cluster, *_, jobs, pull = pair(handler=handler)
    jobs.send("x")
    cluster.settle()
    assert seen == pull.processed == ["x"]


def test_a_handler_that_needs_a_loop_is_told_so() -> None:
    import asyncio

    async def handler(message: Message) -> None:
        await asyncio.sleep(0)

    cluster, a, _, jobs, _ = pair(handler=handler)
    jobs.send("x")
    cluster.settle()
    assert "needs an event loop" in a.dead_letters()[0].error


def test_batches() -> None:
    sizes = []

    def handler(batch: Batch) -> None:
        sizes.append(len(batch))
        batch[0].nack()

    cluster, *_, jobs, pull = pair(handler=handler, batch=4)
    jobs.send_many(range(10))
    cluster.run(0.15)
    assert sizes[:3] == [4, 4, 2] and 0 not in pull.processed


def test_messages_take_their_time() -> None:
    cluster, *_, jobs, pull = pair(takes=1.0, concurrency=2)
    jobs.send_many(range(4))
    cluster.run(1.5)
    assert pull.processed == [0, 1] and pull.unsettled == 2
    cluster.run(1.0)
    assert pull.processed == [0, 1, 2, 3]


def test_a_handler_may_keep_a_message_and_settle_it_later() -> None:
    kept: list[Message] = []

    def handler(message: Message) -> None:
        kept.append(message)
        message.nack(delay=5.0)

    cluster, *_, jobs, _ = pair(handler=handler)
    jobs.send("x")
    cluster.run(1.0)
    assert jobs.ledger().scheduled == 1


# --- nodes --------------------------------------------------------------------------------------------------


def test_a_full_outbox_and_a_dead_node_say_so() -> None:
    cluster = Cluster()
    a = cluster.node("a")
    jobs = a.push("q", max_pending=1)
    jobs.send(1)
    with pytest.raises(OutboxFull):
        jobs.send(2)
    with pytest.raises(ConfigurationError):
        cluster.restart(a)
    cluster.crash(a)
    with pytest.raises(NodeClosed):
        jobs.send(3)


def test_a_restarted_node_has_its_sockets_and_nothing_in_them() -> None:
    cluster, a, b, jobs, pull = pair()
    jobs.send("lost")
    cluster.crash(a)
    cluster.crash(b)
    cluster.run(1.0)
    cluster.restart(a)
    cluster.restart(b)
    jobs.send("kept")
    cluster.settle()
    assert pull.processed == ["kept"] and jobs.ledger().accepted == 1


def test_waiting_for_a_condition() -> None:
    cluster, a, _, jobs, pull = pair()
    assert cluster.run_until(lambda: a.peers() == ["b"], timeout=1.0)
    assert not cluster.run_until(lambda: bool(pull.processed), timeout=0.5)
    jobs.send("x")
    assert cluster.run_until(lambda: bool(pull.processed))
    assert cluster.now < 1.0


def test_work_that_cannot_end_is_an_error() -> None:
    cluster = Cluster()
    cluster.node("a").push("q").send("x")
    with pytest.raises(GuaranteeBroken, match="still pending"):
        cluster.settle(timeout=5.0)


def test_the_log_reads_like_a_story() -> None:
    cluster, _, b, jobs, _ = pair()
    jobs.send("x", key="k")
    cluster.settle()
    cluster.crash(b)
    text = "\n".join(cluster.log)
    for line in ("a: starts as a", "a: send q/0 'x' key=k", "b: start a/q/0 'x'", "b: ack a/q/0 'x'", "b: crashes"):
        assert line in text


# --- the books notice ---------------------------------------------------------------------------------------


def expect(number: str, cluster: Cluster, seconds: float = 3.0) -> None:
    with pytest.raises(GuaranteeBroken) as caught:
        cluster.run(seconds)
    assert caught.value.number == number, caught.value


def test_a_lost_message_is_noticed() -> None:
    cluster, a, _, jobs, _ = pair(takes=0.5)
    jobs.send_many(range(5))
    cluster.run(0.2)
    a.engine.outboxes["q"].lanes.clear()
    expect("check", cluster)


def test_an_invented_message_is_noticed() -> None:
    cluster, a, _, _, _ = pair()
    a.engine.outboxes["q"].push(b"\x01")
    a.driver.wake()
    expect("G1", cluster)


def test_a_message_handed_out_twice_is_noticed() -> None:
    cluster, _, _, jobs, pull = pair(takes=0.5)
    jobs.send_many(range(3))
    cluster.run(0.2)
    pull.inbox.arrivals.appendleft(pull.hands[0]._alone())
    expect("G2", cluster)


def test_disorder_is_noticed() -> None:
    cluster, _, _, jobs, pull = pair(takes=0.5)
    jobs.send_many(range(4))
    cluster.run(0.2)
    inbox = pull.inbox
    apart = [arrival.part(index, index + 1) for arrival in inbox.take_back() for index in range(len(arrival))]
    inbox.arrivals.extend(reversed(apart))
    expect("G3", cluster)


def test_a_key_out_of_turn_is_noticed() -> None:
    cluster, a, _, jobs, _ = pair(takes=0.5)
    for number in range(3):
        jobs.send(number, key="k")
    cluster.run(0.2)
    outbox = a.engine.outboxes["q"]
    outbox._enqueue(outbox._aside.keys.lines["k"].popleft())
    a.driver.wake()
    expect("G3", cluster)


def test_too_much_prefetch_is_noticed() -> None:
    cluster, _, _, jobs, pull = pair(takes=0.5, prefetch=2)
    cluster.run(0.2)
    pull.prefetch = 1
    jobs.send_many(range(4))
    expect("G5", cluster)


# --- the faults happen --------------------------------------------------------------------------------------


def test_seeds_reach_the_rare_ways() -> None:
    """Otherwise thousands of green seeds would mean little."""
    seen: collections.Counter[str] = collections.Counter()
    for seed in range(70):
        swarm = Swarm(seed)
        swarm.run()
        for node in swarm.cluster.nodes:
            seen.update(event.kind for event in node.events)
            seen.update(f"down: {event.text}" for event in node.events if event.kind == "peer.down")
            seen.update(f"dead: {letter.reason}" for letter in node.letters)
            dropped = [letter for letter in node.letters if letter.reason == "overflow"]
            seen["turned away"] += sum(1 for letter in dropped if "consumers hold" in letter.error)
            seen["dropped with a key"] += sum(1 for letter in dropped if letter.key is not None)
            seen["dropped after an attempt"] += sum(1 for letter in dropped if letter.attempts)
            seen["refused frames"] += node.engine.refused_frames
            seen["lost lanes"] += node.engine.counters()["lane_losses"]
            seen["unsent frames"] += node.driver.unsent_frames
        for account in swarm.cluster.books.accounts.values():
            seen["redelivered"] += account.outbox.redelivered
            seen["repeated starts"] += account.repetitions
            seen["redriven"] += account.redriven
            seen["returns of credit"] += sum(lane.returns for lane in account.outbox.lanes.values())
    rare = [
        *("peer.up", "peer.back", "peer.suspect", "name.shared", "node.misdirected", "frame.refused"),
        *("down: crashed", "down: restarted", "down: silent", "down: stalled", "down: left", "down: protocol error"),
        *("dead: attempts", "dead: expired", "dead: overflow", "dead: rejected", "dead: unroutable"),
        *("turned away", "dropped with a key", "dropped after an attempt"),
        *(
            "refused frames",
            "lost lanes",
            "unsent frames",
            "redelivered",
            "repeated starts",
            "redriven",
            "returns of credit",
        ),
    ]
    assert [way for way in rare if not seen[way]] == []
