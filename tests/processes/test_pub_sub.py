"""Topics between processes that are killed, frozen and cut off: in order, each message once, every loss told."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import pytest
import zmq

from tests.processes.crew import DEADLINE_S, IMPATIENT, Crew, Member
from tests.processes.hosts import ADDRESSES, Hosts, why_not

TOPIC = "numbers"


def publisher(crew: Crew, name: str = "publisher", *, pub: dict[str, Any] | None = None, **settings: Any) -> Member:
    """A process that publishes to ``TOPIC``."""
    member = crew.start(name, **settings)
    member.tell("open_pub", pattern=TOPIC, **(pub or {}))
    return member


def subscriber(crew: Crew, name: str = "subscriber", *, sub: dict[str, Any] | None = None, **settings: Any) -> Member:
    """A process that subscribes to ``TOPIC``."""
    member = crew.start(name, **settings)
    member.ask("open_sub", pattern=TOPIC, **(sub or {}))
    return member


def check(heard: dict[str, Any], publisher_id: str, name: str, stop: int, *, topic: str = TOPIC) -> int:
    """Nothing twice, nothing out of order, and every number below ``stop`` came or is in a gap; how many are lost."""
    (runs,) = [each for key, its, each in heard["runs"] if (key, its) == (publisher_id[:12], topic)]
    gaps = [[start, end] for who, its, start, end in heard["gaps"] if (who, its) == (name, topic)]
    pieces = sorted([*runs, *gaps])
    assert runs == sorted(runs), "out of order"
    assert all(left[1] == right[0] for left, right in itertools.pairwise(pieces)), f"{runs} and {gaps}"
    assert pieces[0][0] == 0 and pieces[-1][1] == stop, f"{runs} and {gaps}"
    return sum(end - start for start, end in gaps)


@pytest.mark.guarantee("G6")
@pytest.mark.parametrize("history", [100_000, 0])
def test_a_subscriber_frozen_beyond_all_buffers_is_repaired_or_told(crew: Crew, history: int) -> None:
    crew.settings = IMPATIENT
    out = publisher(crew, pub={"history": history})
    frozen, other = subscriber(crew, "frozen"), subscriber(crew, "other")
    out.ask("wait_for", sub=TOPIC, count=2)
    out.ask("publish_numbers", pattern=TOPIC, count=100)
    frozen.ask("heard", pattern=TOPIC, count=100)
    frozen.freeze()
    # More broadcasts and bytes than what the sockets' high-water marks and the kernel hold.
    out.ask("publish_numbers", pattern=TOPIC, first=100, count=8000, padding=4096, pause=0, burst=1)
    other.ask("heard", pattern=TOPIC, count=8100)
    out.event("peer.down", peer="frozen")
    frozen.thaw()
    heard = frozen.ask("heard", pattern=TOPIC, count=8100)
    lost = check(heard, out.started()["id"], "publisher", 8100)
    assert bool(lost) is (history == 0)
    # A burst of eight times the sockets' marks may cost also those who take all; not with a history, and never unsaid.
    others = check(other.ask("heard", pattern=TOPIC), out.started()["id"], "publisher", 8100)
    assert others == 0 or history == 0
    out.ask("wait_for", sub=TOPIC, count=2)
    out.ask("publish_numbers", pattern=TOPIC, first=8100, count=100)
    assert check(frozen.ask("heard", pattern=TOPIC, count=8200), out.started()["id"], "publisher", 8200) == lost


@pytest.mark.guarantee("G6")
def test_a_publisher_that_blocks_waits_for_a_frozen_subscriber_until_it_is_suspect(crew: Crew) -> None:
    crew.settings = IMPATIENT
    out = publisher(crew, pub={"block": True, "window": 1000})
    frozen = subscriber(crew, "frozen")
    out.ask("wait_for", sub=TOPIC)
    frozen.freeze()
    load = out.tell("publish_numbers", pattern=TOPIC, count=5000)
    out.event("peer.suspect", peer="frozen")
    out.answer(load)
    frozen.thaw()
    check(frozen.ask("heard", pattern=TOPIC, count=5000), out.started()["id"], "publisher", 5000)


@pytest.mark.guarantee("G6")
def test_publishers_are_killed_and_replaced(crew: Crew) -> None:
    hearer = subscriber(crew)
    for round_number in range(3):
        name = f"publisher-{round_number}"
        out = publisher(crew, name)
        out.ask("wait_for", sub=TOPIC)
        out.ask("publish_numbers", pattern=TOPIC, count=100)
        load = out.tell("publish_numbers", pattern=TOPIC, first=100, count=100_000, pause=0.002)
        wait_for_messages(crew, hearer, out, 300)
        assert out.answered(load) is None
        out.kill()
        hearer.event("peer.down", peer=name)
        heard = hearer.ask("heard", pattern=TOPIC)
        (runs,) = [runs for key, _, runs in heard["runs"] if key == out.started()["id"][:12]]
        # Nobody has what it took along; what arrived has no hole that was not told.
        ends = [runs[-1][1], *(gap[3] for gap in heard["gaps"] if gap[0] == name)]
        check(heard, out.started()["id"], name, max(ends))


def wait_for_messages(crew: Crew, hearer: Member, out: Member, count: int) -> None:
    """Until more than so many of a publisher have arrived."""
    crew.until(lambda: sum_of(hearer, out) > count, "messages in the middle of which to kill")


def sum_of(hearer: Member, out: Member) -> int:
    """How many messages of a publisher have arrived."""
    key = out.started()["id"][:12]
    runs = [runs for each, _, runs in hearer.ask("heard", pattern=TOPIC)["runs"] if each == key]
    return sum(stop - start for each in runs for start, stop in each)


@pytest.mark.guarantee("G6")
def test_a_subscriber_is_killed_and_another_one_gets_the_history(crew: Crew) -> None:
    out = publisher(crew, pub={"history": 100_000})
    for round_number in range(3):
        hearer = subscriber(crew, f"subscriber-{round_number}", sub={"replay": "history"})
        out.ask("wait_for", sub=TOPIC)
        load = out.tell("publish_numbers", pattern=TOPIC, first=round_number * 1000, count=1000, pause=0.001)
        half = hearer.ask("heard", pattern=TOPIC, count=round_number * 1000 + 500)
        runs = half["runs"][0][2]
        assert (len(runs), runs[0][0], half["gaps"]) == (1, 0, [])
        hearer.kill()
        out.event("peer.down", round_number + 1)
        out.answer(load)
    last = subscriber(crew, "last", sub={"replay": "history"})
    assert check(last.ask("heard", pattern=TOPIC, count=3000), out.started()["id"], "publisher", 3000) == 0


@pytest.mark.guarantee("G6")
def test_a_last_will_comes_when_its_publisher_is_killed_or_frozen(crew: Crew) -> None:
    crew.settings = IMPATIENT
    hearer = subscriber(crew)
    hearer.ask("open_sub", pattern="presence.*", replay="latest")
    members = [publisher(crew, f"publisher-{end}") for end in ("killed", "frozen", "closed")]
    for member in members:
        topic = f"presence.{member.name.partition('-')[2]}"
        member.ask("open_pub", pattern=topic, will={"state": "gone"}, retain=True)
        member.ask("wait_for", sub=topic)
    killed, frozen, closed = members
    killed.kill()
    frozen.freeze()
    closed.ask("close")
    hearer.event("peer.down", peer="publisher-frozen")
    hearer.event("peer.down", peer="publisher-closed")
    hearer.ask("heard", pattern="presence.*", count=2)
    heard = hearer.ask("heard", pattern="presence.*")
    assert all(not runs for _, _, runs in heard["runs"]), "a last will takes no number"
    wills = {topic: (body, headers) for _, topic, body, headers in heard["bodies"]}
    gone = ({"state": "gone"}, {"will": True})
    assert wills == {"presence.killed": gone, "presence.frozen": gone}
    frozen.thaw()


@contextmanager
def plain_sub(endpoint: str, topic: bytes) -> Iterator[zmq.Socket[bytes]]:
    """A SUB socket of pyzmq, and nothing of meshmsg."""
    context = zmq.Context()
    try:
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        socket.setsockopt(zmq.SUBSCRIBE, topic)
        socket.connect(endpoint)
        yield socket
    finally:
        context.destroy(linger=0)


def test_a_plain_zeromq_subscriber_reads_the_stream(crew: Crew) -> None:
    out = crew.start("publisher")
    out.tell("open_pub", pattern="sensors.*")
    onlooker = crew.start("onlooker")
    onlooker.ask("wait_for", peer="publisher")
    crew.until(lambda: bool(onlooker.ask("broadcasts")["endpoints"]), "where to listen")
    ((endpoint, *_),) = onlooker.ask("broadcasts")["endpoints"].values()
    with plain_sub(endpoint, b"sensors.attic") as socket:
        # Nobody confirms a plain subscriber: it hears what comes once its filter has arrived.
        numbers: list[int] = []
        load = out.tell("publish_numbers", pattern="sensors.*", topic="sensors.attic", count=2000, pause=0.002)
        while len(numbers) < 200:
            topic, header, payload = socket.recv_multipart()
            kind, publisher_id, _, first_seq, total, headers = msgpack.unpackb(header, strict_map_key=False)
            assert (topic, kind, publisher_id, headers) == (b"sensors.attic", 32, out.started()["id"], None)
            bodies = msgpack.unpackb(payload) if total > 1 else [msgpack.unpackb(payload)]
            assert bodies == [{"n": number} for number in range(first_seq, first_seq + total)]
            numbers += range(first_seq, first_seq + total)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        out.answer(load)


# --- two hosts ----------------------------------------------------------------------------------------------


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


@pytest.mark.guarantee("G6")
@pytest.mark.parametrize("end", [0, 1], ids=["publisher's end", "subscriber's end"])
@pytest.mark.parametrize("history", [100_000, 0])
def test_a_cable_is_cut_until_both_give_up_and_then_healed(crew: Crew, hosts: Hosts, end: int, history: int) -> None:
    crew.settings = IMPATIENT
    out = publisher(crew, pub={"history": history}, **place(hosts, 0))
    hearer = subscriber(crew, **place(hosts, 1))
    out.ask("wait_for", sub=TOPIC)
    out.ask("publish_numbers", pattern=TOPIC, count=100)
    hearer.ask("heard", pattern=TOPIC, count=100)
    hosts.cut(end)
    out.ask("publish_numbers", pattern=TOPIC, first=100, count=20_000)
    out.event("peer.down", peer="subscriber")
    hearer.event("peer.down", peer="publisher")
    hosts.heal(end)
    out.event("peer.up", 2, peer="subscriber")
    lost = check(hearer.ask("heard", pattern=TOPIC, count=20_100), out.started()["id"], "publisher", 20_100)
    assert bool(lost) is (history == 0)
    out.ask("publish_numbers", pattern=TOPIC, first=20_100, count=100)
    assert check(hearer.ask("heard", pattern=TOPIC, count=20_200), out.started()["id"], "publisher", 20_200) == lost


@pytest.mark.guarantee("G6")
def test_a_short_cut_costs_nothing(crew: Crew, hosts: Hosts) -> None:
    patience: dict[str, Any] = {"suspect_after": 10, "gone_after": 15}
    out = publisher(crew, **patience, **place(hosts, 0))
    hearer = subscriber(crew, **patience, **place(hosts, 1))
    out.ask("wait_for", sub=TOPIC)
    out.ask("publish_numbers", pattern=TOPIC, count=100)
    hearer.ask("heard", pattern=TOPIC, count=100)
    hosts.cut(1)
    out.ask("publish_numbers", pattern=TOPIC, first=100, count=500)
    hosts.heal(1)
    assert check(hearer.ask("heard", pattern=TOPIC, count=600), out.started()["id"], "publisher", 600) == 0
    assert not out.events("peer.down")
