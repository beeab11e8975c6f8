"""Two hosts that find each other through mDNS, and the cable between them: cut for a moment, for long, one way only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes.books import accepted_ids, check_outcomes
from tests.processes.crew import IMPATIENT, Crew, Member
from tests.processes.hosts import ADDRESSES, Hosts, why_not

QUICK_RETRY = {"retry": {"backoff": 0.02, "max_backoff": 0.2}}


@pytest.fixture
def hosts(crew: Crew) -> Iterator[Hosts]:
    reason = why_not()
    if reason is not None:
        if os.environ.get("MESHMSG_REQUIRE_NETNS") == "1":
            pytest.fail(f"MESHMSG_REQUIRE_NETNS=1, but {reason}")
        pytest.skip(reason)
    with Hosts() as hosts:
        yield hosts
        crew.collect()  # processes go before the ground they stand on


def place(hosts: Hosts, host: int) -> dict[str, Any]:
    """Settings of a node on one of the hosts."""
    return {"namespace": hosts.names[host], "interfaces": [ADDRESSES[host]], "unencrypted": True}


def send_and_wait(crew: Crew, producer: Member, count: int, first: int) -> list[str]:
    """Sends messages and waits until each has been handled."""
    ids: list[str] = producer.ask("load", count=count, first=first)["ids"]
    crew.until(lambda: crew.journal.ids("finish") >= set(ids), "work across the cable")
    return ids


@pytest.mark.guarantee("G1")
def test_two_hosts_find_each_other_and_work(crew: Crew, hosts: Hosts) -> None:
    producer = crew.producer(**place(hosts, 0))
    consumers = [crew.consumer(f"consumer-{host}", **place(hosts, host)) for host in (0, 1)]
    producer.ask("wait_for", pull="work", count=2)
    assert consumers[1].started()["endpoint"].startswith(f"tcp://{ADDRESSES[1]}:")
    load = producer.ask("load", count=500, seconds=0.001)
    producer.ask("flush")
    assert all(crew.journal.ids("finish", name=consumer.name) for consumer in consumers)
    check_outcomes(crew.journal, {producer: load["ids"]})


@pytest.mark.guarantee("G1", "G2")
@pytest.mark.parametrize("end", [0, 1], ids=["producer's end", "consumer's end"])
def test_a_cable_is_cut_until_both_give_up_and_then_healed(crew: Crew, hosts: Hosts, end: int) -> None:
    crew.settings = IMPATIENT
    producer = crew.producer(push=QUICK_RETRY, **place(hosts, 0))
    consumer = crew.consumer("consumer", pull={"prefetch": 20}, **place(hosts, 1))
    before = send_and_wait(crew, producer, 50, first=0)
    load = producer.tell("load", count=300, first=50, seconds=0.005, pause=0.01, burst=20)
    crew.until(lambda: len(crew.journal.of("finish")) > 80, "work in the middle of which to cut")
    hosts.cut(end)
    # Nobody crashed, and the reason says so: neither a missing route nor a dial without an answer is a refusal.
    assert producer.event("peer.down", peer="consumer")["text"] == "silent"
    assert consumer.event("peer.down", peer="producer")["text"] == "silent"
    hosts.heal(end)
    middle = producer.answer(load)["ids"]
    producer.event("peer.up", 2, peer="consumer")
    ledger = producer.ask("flush")
    after = send_and_wait(crew, producer, 50, first=350)
    producer.ask("flush")
    assert ledger["redelivered"] > 0
    check_outcomes(crew.journal, {producer: [*before, *middle, *after]})


@pytest.mark.guarantee("G1", "G2")
def test_one_direction_is_lost_until_the_peer_is_given_up(crew: Crew, hosts: Hosts) -> None:
    crew.settings = IMPATIENT
    producer = crew.producer(push=QUICK_RETRY, **place(hosts, 0))
    crew.consumer("consumer", pull={"prefetch": 20}, **place(hosts, 1))
    before = send_and_wait(crew, producer, 50, first=0)
    load = producer.tell("load", count=300, first=50, seconds=0.005, pause=0.01, burst=20)
    crew.until(lambda: len(crew.journal.of("finish")) > 80, "work in the middle of which to cut")
    hosts.drop(1)  # the consumer still hears the producer, but its verdicts are lost
    producer.event("peer.down", peer="consumer")
    hosts.stop_dropping(1)
    middle = producer.answer(load)["ids"]
    producer.event("peer.up", 2, peer="consumer")
    producer.ask("flush")
    check_outcomes(crew.journal, {producer: [*before, *middle]})


@pytest.mark.guarantee("G1", "G2")
def test_broken_connections_are_not_lost_peers(crew: Crew, hosts: Hosts) -> None:
    producer = crew.producer(**place(hosts, 0))
    consumer = crew.consumer("consumer", pull={"prefetch": 20}, **place(hosts, 1))
    ids = send_and_wait(crew, producer, 50, first=0)
    for broken in range(1, 6):
        # What is sent now waits in the kernel, and ends there with the connection.
        hosts.drop(0)
        ids += producer.ask("load", count=30, first=len(ids))["ids"]
        hosts.stop_dropping(0)
        if not hosts.reset(broken % 2):
            pytest.skip("this kernel cannot break connections (INET_DIAG_DESTROY)")
        producer.event("peer.back", broken)
    ledger = producer.ask("flush")
    # What was on its way was sent again on the same lane: to the consumer it is all the first time.
    assert (ledger["processed"], ledger["redelivered"]) == (200, 0)
    assert not producer.events("peer.down") and not consumer.events("peer.down")
    assert {entry.attempt for entry in crew.journal.entries} == {1}
    check_outcomes(crew.journal, {producer: ids})


@pytest.mark.guarantee("G1", "G2")
def test_a_short_cut_costs_nothing(crew: Crew, hosts: Hosts) -> None:
    # So patient that a busy machine cannot make the cut a long one.
    patience: dict[str, Any] = {"suspect_after": 10, "gone_after": 15}
    producer = crew.producer(**patience, **place(hosts, 0))
    crew.consumer("consumer", pull={"prefetch": 20}, **patience, **place(hosts, 1))
    before = send_and_wait(crew, producer, 50, first=0)
    hosts.cut(1)
    number = producer.tell("load", count=100, first=50)
    middle = producer.answer(number)["ids"]  # accepted although nobody can be reached
    assert producer.ask("ledger")["pending"] == 100
    hosts.heal(1)
    ledger = producer.ask("flush")
    assert (ledger["processed"], ledger["redelivered"]) == (150, 0)
    assert not producer.events("peer.down")
    assert {entry.attempt for entry in crew.journal.entries} == {1}
    check_outcomes(crew.journal, {producer: accepted_ids({"ids": [*before, *middle]})})
