"""Whatever a neighbour writes to a node's port costs that neighbour its link, and nobody else anything (G11)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from meshmsg.wire import frames
from tests.processes.books import accepted_ids, check_outcomes
from tests.processes.crew import Crew, Member
from tests.processes.strangers import Stranger, connections, introduction, malformed

pytestmark = pytest.mark.guarantee("G11")

MOST_MEMORY_KB = 300_000  # a node has about 50 MB, and the giants here say they have gigabytes


def check_that_work_goes_on(crew: Crew, producer: Member, consumer: Member, first: int) -> list[str]:
    """The two that were there before still work together, over the links they had."""
    ids: list[str] = producer.ask("load", count=50, first=first)["ids"]
    producer.ask("flush")
    assert crew.journal.ids("finish") >= set(ids)
    for member in (producer, consumer):
        names = {producer.name, consumer.name}
        lost = [event for event in member.events("peer.down") if event["peer"] in names]
        assert member.code is None and not lost, lost
        assert peak_memory_kb(member) < MOST_MEMORY_KB
    return ids


def peak_memory_kb(member: Member) -> int:
    """The most memory the process ever had."""
    if sys.platform != "linux":
        return 0
    status = Path(f"/proc/{member.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def pair(crew: Crew) -> tuple[Member, Member]:
    """A producer and a consumer that know each other."""
    producer = crew.producer(push={"retry": {"backoff": 0.02}})
    consumer = crew.consumer("consumer", pull={"prefetch": 20})
    producer.ask("wait_for", pull="work")
    return producer, consumer


def test_garbage_and_half_a_handshake(crew: Crew) -> None:
    producer, consumer = pair(crew)
    endpoints = [member.started()["endpoint"] for member in (producer, consumer)]
    with connections(endpoints[0]), connections(endpoints[1]):
        ids = check_that_work_goes_on(crew, producer, consumer, first=0)
        newcomer = crew.consumer("newcomer")
        newcomer.ask("see", count=2)
    check_outcomes(crew.journal, {producer: ids}, hostile=True)


def test_messages_that_break_the_protocol(crew: Crew) -> None:
    producer, consumer = pair(crew)
    ids: list[str] = []
    for member in (producer, consumer):
        messages = malformed(crew.mesh)
        for parts in messages.values():
            with Stranger(member.started()["endpoint"]) as stranger:
                stranger.send(parts)
        # One that goes on and on, until it is heard behind all the noise.
        with Stranger(member.started()["endpoint"]) as stranger:
            for parts in [*messages.values()] * 20:
                stranger.send(parts)
            stranger.say(introduction(f"{crew.mesh}-other", ()))
            member.event("mesh.other", peer="stranger")
        assert member.events("frame.refused")
        ids += check_that_work_goes_on(crew, producer, consumer, first=len(ids))
    check_outcomes(crew.journal, {producer: ids}, hostile=True)


def test_frames_before_hello_and_under_a_false_name(crew: Crew) -> None:
    producer, consumer = pair(crew)
    ids: list[str] = []
    for member in (producer, consumer):
        with Stranger(member.started()["endpoint"]) as stranger:
            stranger.say(frames.Bye("left"))
            stranger.say(frames.LaneState(1, "work", 0, 0, 1, 0, 0))
            stranger.say(frames.Data(1, 0, 0, 0, 1, [[0, 1, None]], b""), (b"\xc0",))
            stranger.say(frames.Ack(1, 9, 99, 0, 9, [], [], 0))
            stranger.say(introduction(crew.mesh, (), version=99))
            assert "version 99" in member.event("frame.refused")["text"]
            # The node's own id, and an address that is the other node's.
            stranger.say(introduction(crew.mesh, (), node_id=member.started()["id"]))
            member.event("node.id_clash", peer="stranger")
            stranger.say(introduction(crew.mesh, (producer.started()["endpoint"],)))
            stranger.say(introduction(f"{crew.mesh}-other", ()))
            member.event("mesh.other", peer="stranger")
        ids += check_that_work_goes_on(crew, producer, consumer, first=len(ids))
    check_outcomes(crew.journal, {producer: ids}, hostile=True)


@pytest.mark.guarantee("G5")
def test_a_producer_that_sends_beyond_its_credit(crew: Crew) -> None:
    producer, consumer = pair(crew)
    with Stranger(consumer.started()["endpoint"]) as stranger:
        stranger.become_a_peer(crew.mesh, {"push": {"work": {}}})
        consumer.event("peer.up", peer="stranger")
        stranger.say(frames.LaneState(1, "work", 0, 0, 1000, 0, 0))
        # All credit was with the producer, which does not use it and gives some back.
        credit = stranger.hear(lambda frame: isinstance(frame, frames.Ack) and frame.limit > 0)
        assert isinstance(credit, frames.Ack) and credit.limit <= 20
        stranger.say(frames.Data(1, 0, 0, 0, 1000, [[0, 1000, None]], b""), (b"\xc0",) * 1000)
        stranger.hear(lambda frame: isinstance(frame, frames.Bye))
        assert "limit" in consumer.event("frame.refused")["text"]
        consumer.event("peer.down", peer="stranger")
    ids = check_that_work_goes_on(crew, producer, consumer, first=0)
    assert crew.journal.ids("start") == set(ids)
    check_outcomes(crew.journal, {producer: ids}, hostile=True)


@pytest.mark.guarantee("G1", "G2")
def test_a_consumer_that_acks_what_it_never_got(crew: Crew) -> None:
    producer = crew.producer(push={"retry": {"backoff": 0.02}})
    with Stranger(producer.started()["endpoint"]) as stranger:
        stranger.become_a_peer(crew.mesh, {"pull": {"work": {}}})
        lane = stranger.hear(lambda frame: isinstance(frame, frames.LaneState))
        assert isinstance(lane, frames.LaneState)
        # Endless credit, of which the producer takes what its outbox has.
        stranger.say(frames.Ack(lane.lane, 0, 2**62, 0, 0, [], [], 0))
        held = producer.ask("send", bodies=[{"n": number} for number in range(100)])
        stranger.hear(lambda frame: isinstance(frame, frames.Data))
        assert producer.ask("ledger")["in_flight"] == 100
        stranger.say(frames.Ack(lane.lane, 1000, 2**62, 0, 1000, [], [], 0))
        producer.event("peer.down", peer="stranger")
        consumer = crew.consumer("consumer", pull={"prefetch": 20})
        # It holds nothing any more, and none of its acks counted.
        assert producer.ask("flush")["processed"] == 100
    assert crew.journal.ids("finish", name="consumer") == set(held["ids"])
    ids = check_that_work_goes_on(crew, producer, consumer, first=100)
    check_outcomes(crew.journal, {producer: accepted_ids(held, {"ids": ids})}, hostile=True)
