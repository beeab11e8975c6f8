"""Requests between processes that are killed, frozen, sent away, or cut off: one outcome each, and none runs twice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes.crew import IMPATIENT, Crew, Member
from tests.processes.hosts import ADDRESSES, Hosts, why_not


def server(
    crew: Crew, name: str, *, service: str = "desk", router: dict[str, Any] | None = None, **settings: Any
) -> Member:
    """A process that offers a ``Desk``."""
    member = crew.start(name, **settings)
    member.ask("open_router", service=service, **(router or {}))
    return member


def client(crew: Crew, servers: int, name: str = "client", **settings: Any) -> Member:
    """A process that makes requests, and has found the servers."""
    member = crew.start(name, **settings)
    member.ask("wait_for", router="desk", count=servers)
    return member


def wait_for(crew: Crew, phase: str, count: int, *, name: str | None = None) -> None:
    """Until so many requests have come so far."""
    crew.until(lambda: len(crew.journal.of(phase, name=name)) >= count, f"{count} x {phase} at {name or 'anybody'}")


def check_runs(crew: Crew, *, most: int = 1) -> None:
    """No request began more often than it may."""
    starts = Counter((entry.id, entry.number) for entry in crew.journal.of("start"))
    twice = [(call, count) for call, count in starts.items() if count > most]
    assert not twice, f"ran more than {most} times: {twice[:5]}"


# --- servers -------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G8")
def test_a_killed_server_is_known_at_once_and_idempotent_requests_go_elsewhere(crew: Crew) -> None:
    doomed = server(crew, "doomed")
    asker = client(crew, 1)
    plain = asker.tell("request_many", method="gate", count=20, args=[])
    wait_for(crew, "start", 20)
    again = asker.tell("request_many", method="gate", count=20, first=100, args=[], dealer={"idempotent": True})
    wait_for(crew, "start", 40)
    other = server(crew, "other")
    asker.ask("wait_for", router="desk", count=2)
    other.ask("open_gate")
    doomed.kill()
    assert asker.answer(plain)["outcomes"] == [["PeerLost", "doomed"]] * 20
    assert asker.answer(again)["outcomes"] == [["ok", "other"]] * 20
    # Its connection broke, and that said it; nobody had to wait until it had been silent for long enough.
    assert asker.event("peer.down", peer="doomed")["text"] == "crashed"
    numbers = Counter(entry.number for entry in crew.journal.of("start"))
    assert numbers == {**dict.fromkeys(range(20), 1), **dict.fromkeys(range(100, 120), 2)}


@pytest.mark.guarantee("G8")
def test_servers_are_killed_and_replaced_under_load(crew: Crew) -> None:
    servers = [server(crew, f"server-{index}") for index in range(3)]
    plain, again = client(crew, 3, "plain"), client(crew, 3, "again")
    load: dict[str, Any] = {"method": "work", "count": 600, "args": [0.05], "burst": 20, "pause": 0.02, "timeout": 30}
    loads = [plain.tell("request_many", **load), again.tell("request_many", **load, dealer={"idempotent": True})]
    for killed in range(2):
        wait_for(crew, "finish", 200 + 300 * killed)
        servers[killed].kill()
        servers.append(server(crew, f"server-{len(servers)}"))
    outcomes = Counter(outcome for outcome, _ in plain.answer(loads[0])["outcomes"])
    assert outcomes["PeerLost"] > 0 and outcomes["ok"] + outcomes["PeerLost"] == 600, outcomes
    assert Counter(outcome for outcome, _ in again.answer(loads[1])["outcomes"]) == {"ok": 600}
    starts = Counter((entry.id.partition(">")[0], entry.number) for entry in crew.journal.of("start"))
    assert max(count for (name, _), count in starts.items() if name == "plain") == 1
    # What has a result has run.
    assert len({entry.number for entry in crew.journal.of("finish") if entry.id.startswith("again")}) == 600


@pytest.mark.guarantee("G8")
def test_a_frozen_server_costs_a_deadline_and_is_avoided(crew: Crew) -> None:
    crew.settings = IMPATIENT
    frozen, other = server(crew, "frozen"), server(crew, "other")
    asker = client(crew, 2)
    other.ask("open_gate")
    waiting = asker.tell("request", method="gate", args=[0], peer="frozen")
    wait_for(crew, "start", 1, name="frozen")
    frozen.freeze()
    late = asker.ask("request", method="work", args=[1, 0], peer="frozen", timeout=0.3)
    assert late["outcome"] == ["DeadlineExceeded", "frozen"]
    asker.event("peer.suspect", peer="frozen")
    answers = asker.ask("request_many", method="work", count=50, first=100, args=[0])["outcomes"]
    assert answers == [["ok", "other"]] * 50
    assert asker.answer(waiting)["outcome"] == ["PeerLost", "frozen"]
    frozen.thaw()
    # It hears that it was given up, and stops what nobody wants.
    crew.until(lambda: bool(crew.journal.of("cancelled", name="frozen")), "the end of what the frozen server ran")
    asker.ask("wait_for", router="desk", count=2)
    assert asker.ask("request", method="work", args=[2, 0], peer="frozen")["outcome"] == ["ok", "frozen"]
    check_runs(crew)


@pytest.mark.guarantee("G8", "G10")
def test_servers_leave_under_load_and_no_request_notices(crew: Crew) -> None:
    servers = [server(crew, f"server-{index}", router={"concurrency": 4}) for index in range(2)]
    asker = client(crew, 2)
    # Not idempotent: what has begun must end where it is, and the rest of the queue must be handed on.
    load = asker.tell("request_many", method="work", count=800, args=[0.01], burst=20, pause=0.02, timeout=30)
    for left in range(2):
        wait_for(crew, "finish", 100 + 250 * left)
        servers.append(server(crew, f"server-{len(servers)}", router={"concurrency": 4}))
        asker.event("peer.up", peer=servers[-1].name)
        servers[left].ask("close", drain=10)
        assert servers[left].exit_code() == 0
    assert Counter(outcome for outcome, _ in asker.answer(load)["outcomes"]) == {"ok": 800}
    check_runs(crew)
    assert not crew.journal.of("cancelled")


# --- three hops ----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("how", ["given up", "deadline", "caller killed", "middle killed"])
def test_the_end_of_a_request_stops_what_runs_for_it_three_hops_away(crew: Crew, how: str) -> None:
    hops = ["first", "second", "third"]
    members = {hop: server(crew, hop, service=hop) for hop in hops}
    asker = crew.start("client")
    for member, hop in ((asker, "first"), (members["first"], "second"), (members["second"], "third")):
        member.ask("wait_for", router=hop)
    timeout = 1.0 if how == "deadline" else None
    args = [7, ["second", "third"]]
    asked = asker.tell("request", method="relay", service="first", args=args, label="it", timeout=timeout)
    wait_for(crew, "start", 3)
    if how == "given up":
        asker.ask("give_up", label="it")
        assert asker.answer(asked)["outcome"] == ["given up", None]
    elif how == "deadline":
        # The others asked without a limit of their own: the time is this one's.
        assert asker.answer(asked)["outcome"] == ["DeadlineExceeded", "first"]
        assert {entry.name for entry in crew.journal.of("limited")} == set(hops)
    elif how == "caller killed":
        asker.kill()
    else:
        members["second"].kill()
        # For the caller the first server has failed: it is not the one that is gone.
        assert asker.answer(asked)["outcome"] == ["RemoteError", "first"]
    stopped = {"third"} if how == "middle killed" else set(hops)
    crew.until(lambda: {entry.name for entry in crew.journal.of("cancelled")} >= stopped, f"{stopped} to be cancelled")
    assert not crew.journal.of("finish")
    check_runs(crew)


# --- streams -------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G5", "G8")
@pytest.mark.parametrize("who", ["server", "reader"])
def test_a_stream_ends_after_a_whole_prefix_when_one_side_is_lost(crew: Crew, who: str) -> None:
    crew.settings = IMPATIENT
    source = server(crew, "server")
    reader = client(crew, 1)
    stream = reader.tell("stream", stop=10**9, pause=0.001)
    reader.event("streaming")
    if who == "server":
        source.kill()
    else:
        reader.freeze()
        source.event("peer.down", peer="client")
        # Nobody takes what it makes, so it was stopped; and it was not far ahead.
        (stopped,) = crew.journal.of("cancelled")
        reader.thaw()
    read = reader.answer(stream)
    assert read["whole"] and read["outcome"] == ["PeerLost", "server"]
    if who == "reader":
        assert stopped.number is not None and read["count"] <= stopped.number + 1 <= read["count"] + 2 * 256


# --- two hosts -----------------------------------------------------------------------------------------------


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


@pytest.mark.guarantee("G8")
def test_a_cable_is_cut_until_both_give_up_and_then_healed(crew: Crew, hosts: Hosts) -> None:
    crew.settings = IMPATIENT
    far = server(crew, "far", **place(hosts, 1))
    asker = client(crew, 1, **place(hosts, 0))
    before = asker.ask("request_many", method="work", count=50, args=[0])["outcomes"]
    waiting = asker.tell("request_many", method="gate", count=10, first=100, args=[])
    wait_for(crew, "start", 60)
    hosts.cut(1)
    under_way = asker.tell("request_many", method="work", count=50, first=200, args=[0])
    assert asker.event("peer.down", peer="far")["text"] == "silent"
    far.event("peer.down", peer="client")
    assert asker.answer(waiting)["outcomes"] == [["PeerLost", "far"]] * 10
    assert asker.answer(under_way)["outcomes"] == [["PeerLost", "far"]] * 50
    crew.until(lambda: len(crew.journal.of("cancelled")) == 10, "the end of what nobody waits for")
    hosts.heal(1)
    asker.ask("wait_for", router="desk")
    after = asker.ask("request_many", method="work", count=50, first=300, args=[0])["outcomes"]
    assert before == after == [["ok", "far"]] * 50
    check_runs(crew)


@pytest.mark.guarantee("G8")
def test_a_short_cut_and_broken_connections_cost_no_request(crew: Crew, hosts: Hosts) -> None:
    # So patient that a busy machine cannot make the cut a long one.
    patience: dict[str, Any] = {"suspect_after": 10, "gone_after": 15}
    server(crew, "far", **patience, **place(hosts, 1))
    asker = client(crew, 1, **patience, **place(hosts, 0))
    asker.ask("request_many", method="work", count=50, args=[0])
    hosts.cut(1)
    middle = asker.tell("request_many", method="work", count=100, first=100, args=[0])
    asker.ask("peers")  # they have been made
    hosts.heal(1)
    assert asker.answer(middle)["outcomes"] == [["ok", "far"]] * 100
    for broken in range(1, 4):
        # What is asked now waits in the kernel, and ends there with the connection.
        hosts.drop(0)
        lost = asker.tell("request_many", method="work", count=30, first=1000 * broken, args=[0])
        asker.ask("peers")
        hosts.stop_dropping(0)
        if not hosts.reset(broken % 2):
            pytest.skip("this kernel cannot break connections (INET_DIAG_DESTROY)")
        assert asker.answer(lost)["outcomes"] == [["ok", "far"]] * 30
        # They may have arrived just before the reset: until the link is there again nobody serves what is asked next.
        asker.event("peer.back", broken)
    assert not asker.events("peer.down")
    check_runs(crew)
