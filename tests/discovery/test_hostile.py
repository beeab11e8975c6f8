"""Announcements by strangers: what is not believed, and that nothing else comes of it (G11, G12).

Packets from one socket arrive in order, so once an honest announcement sent last is reported, everything
before it has been dealt with.
"""

from __future__ import annotations

import random

import pytest

from meshmsg.discovery import Candidate, known
from tests.discovery.sightings import (
    CLASS_IN,
    PTR,
    TYPE,
    Sightings,
    Stranger,
    announced,
    encode_name,
    good_txt,
    new_id,
    new_mdns,
    pointer,
    record,
    txt,
)

MESH = new_id()


async def honest_end(stranger: Stranger, observer: Sightings) -> str:
    """Send a good announcement and wait until it is reported."""
    node_id = new_id()
    await observer.until(lambda seen: node_id in seen.ids, lambda: stranger.announce(node_id, good_txt(MESH, node_id)))
    return node_id


def bad_texts(node_id: str) -> dict[str, bytes]:
    good = good_txt(MESH, node_id)
    own = b"id=" + node_id.encode()
    mesh = b"mesh=" + MESH.encode()
    return {
        "empty": b"",
        "cut short": good[:-3] + b"\xff",
        "too long": good + txt(*[b"x" * 200] * 3),
        "no version": txt(own, mesh),
        "other version": txt(b"v=2", own, mesh),
        "no mesh": txt(b"v=1", own),
        "mesh without value": txt(b"v=1", own, b"mesh"),
        "other mesh": txt(b"v=1", own, mesh + b"2"),
        "mesh in no UTF-8": txt(b"v=1", own, b"mesh=\xff\xfe"),
        "two meshes, the first counts": txt(b"v=1", own, b"mesh=", mesh),
        "somebody else's id": txt(b"v=1", b"id=" + new_id().encode(), mesh),
    }


@pytest.mark.guarantee("G11")
@pytest.mark.parametrize("case", bad_texts("any"))
async def test_a_bad_txt_record_is_ignored(case: str) -> None:
    with Stranger() as stranger:
        async with announced(new_mdns(MESH)) as observer:
            bad = new_id()
            stranger.announce(bad, bad_texts(bad)[case])
            end = await honest_end(stranger, observer)
    assert observer.ids == {end}


@pytest.mark.guarantee("G12")
@pytest.mark.parametrize(
    "addresses",
    [
        [],
        ["0.0.0.0"],
        ["0.0.0.1"],
        ["224.0.0.251"],
        ["255.255.255.255"],
        ["192.0.2.7", "10.0.0.1"],
        ["2001:db8::1"],
        ["::ffff:127.0.0.1"],
        ["::1"],  # loopback, but this observer has no IPv6 endpoint itself
    ],
    ids=" ".join,
)
async def test_addresses_beyond_loopback_are_ignored(addresses: list[str]) -> None:
    with Stranger() as stranger:
        async with announced(new_mdns(MESH)) as observer:
            bad = new_id()
            stranger.announce(bad, good_txt(MESH, bad), addresses=addresses)
            end = await honest_end(stranger, observer)
    assert observer.ids == {end}


@pytest.mark.guarantee("G12")
async def test_of_mixed_addresses_only_loopback_is_taken() -> None:
    node_id = new_id()
    with Stranger() as stranger:
        async with announced(new_mdns(MESH)) as observer:
            await observer.until(
                lambda seen: bool(seen.candidates),
                lambda: stranger.announce(
                    node_id, good_txt(MESH, node_id), addresses=["192.0.2.7", "127.0.0.1", "2001:db8::1"]
                ),
            )
    assert observer.candidates == [Candidate(node_id, ("tcp://127.0.0.1:41001",))]


@pytest.mark.guarantee("G11")
async def test_many_addresses_are_cut_to_eight() -> None:
    node_id = new_id()
    with Stranger() as stranger:
        async with announced(new_mdns(MESH)) as observer:
            addresses = [f"127.0.0.{last}" for last in range(1, 101)]
            await observer.until(
                lambda seen: bool(seen.candidates),
                lambda: stranger.announce(node_id, good_txt(MESH, node_id), addresses=addresses),
            )
    assert len(observer.candidates[-1].endpoints) == 8


@pytest.mark.guarantee("G11")
async def test_port_zero_is_ignored() -> None:
    with Stranger() as stranger:
        async with announced(new_mdns(MESH)) as observer:
            bad = new_id()
            stranger.announce(bad, good_txt(MESH, bad), port=0)
            end = await honest_end(stranger, observer)
    assert observer.ids == {end}


@pytest.mark.guarantee("G11")
async def test_a_name_cannot_disturb_a_terminal() -> None:
    node_id = new_id()
    with Stranger() as stranger:
        async with announced(new_mdns(MESH)) as observer:
            await observer.until(
                lambda seen: bool(seen.candidates),
                lambda: stranger.announce(node_id, good_txt(MESH, node_id, "a\x1b[2J\r\nb\u202ec\ud7ff" + "x" * 90)),
            )
    name = observer.candidates[0].name
    assert name.startswith("a[2Jbc")
    assert name.isprintable()
    assert len(name) <= 64


@pytest.mark.guarantee("G11")
async def test_bad_instance_names_cost_nothing() -> None:
    names = ["UPPER", "with.dots", "with space", "-dash", "nul\0", "ümlaut", "x" * 63, "_meshmsg._tcp", "a_b"]
    with Stranger() as stranger:
        async with announced(new_mdns(MESH)) as observer:
            for name in names:
                stranger.send_records(pointer(name))
            for name in (TYPE, "elsewhere.local.", "."):
                target = encode_name(name)
                stranger.send_records(record(encode_name(TYPE), PTR, CLASS_IN, 1200, target))
            end = await honest_end(stranger, observer)
    assert observer.ids == {end}


@pytest.mark.guarantee("G11")
async def test_garbage_packets_cost_nothing() -> None:
    noise = random.Random(1)
    with Stranger() as stranger:
        async with announced(new_mdns(MESH)) as observer:
            for size in (0, 1, 11, 12, 13, 100, 1400, 8000, 20000):
                stranger.send(noise.randbytes(size))
                # A header that promises many answers, then noise, then names that point at themselves.
                stranger.send(b"\0\0\x84\0\0\0\xff\xff\0\0\0\0" + noise.randbytes(size))
                stranger.send(b"\0\0\x84\0\0\0\0\x01\0\0\0\0" + b"\xc0\x0c" * (size // 2))
            end = await honest_end(stranger, observer)
    assert observer.ids == {end}


@pytest.mark.guarantee("G11")
async def test_a_flood_of_invented_nodes_ends_at_the_cap(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(known, "MAX_CANDIDATES", 5)
    discovery = new_mdns(MESH)
    with Stranger() as stranger:
        async with announced(discovery) as observer:
            kept = [await honest_end(stranger, observer) for _ in range(5)]
            for _ in range(20):
                refused = new_id()
                stranger.announce(refused, good_txt(MESH, refused))
            stranger.send_records(pointer(new_id()))  # unfinished, but not worth a look-up
            # An old one leaves: there is room for one again.
            await observer.until(
                lambda seen: seen.gone == kept[:1],
                lambda: stranger.announce(kept[0], good_txt(MESH, kept[0]), ttl=0, address_ttl=0),
            )
            assert discovery._responder is not None and not discovery._responder._look_ups
            last = await honest_end(stranger, observer)
    assert [candidate.node_id for candidate in observer.candidates] == [*kept, last]
    assert caplog.text.count("5 nodes are announced; further ones are ignored") == 1


@pytest.mark.guarantee("G11")
async def test_unfinished_announcements_start_a_bounded_number_of_look_ups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meshmsg.discovery.responder.MAX_LOOK_UPS", 3)
    discovery = new_mdns(MESH)
    with Stranger() as stranger:
        async with announced(discovery) as observer:
            for _ in range(10):
                stranger.send_records(pointer(new_id()))
            end = await honest_end(stranger, observer)
            assert discovery._responder is not None
            assert len(discovery._responder._look_ups) == 3
    assert observer.ids == {end}


@pytest.mark.guarantee("G11")
async def test_a_stolen_name_cannot_make_a_stream_of_reports() -> None:
    victim = new_id()
    with Stranger() as stranger:
        async with announced(new_mdns(MESH)) as observer:
            for port in range(41001, 41101):
                stranger.announce(victim, good_txt(MESH, victim), port=port)
            end = await honest_end(stranger, observer)
    of_victim = [candidate for candidate in observer.candidates if candidate.node_id == victim]
    assert 1 <= len(of_victim) <= 4, "the first, the next, and one a second"
    assert observer.ids == {victim, end}


@pytest.mark.guarantee("G11")
async def test_a_known_node_that_turns_bad_is_lost() -> None:
    node_id = new_id()
    with Stranger() as stranger:
        async with announced(new_mdns(MESH)) as observer:
            await observer.until(
                lambda seen: node_id in seen.ids, lambda: stranger.announce(node_id, good_txt(MESH, node_id))
            )
            await observer.until(
                lambda seen: seen.gone == [node_id], lambda: stranger.announce(node_id, good_txt(new_id(), node_id))
            )
