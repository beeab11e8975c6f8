"""Writing and reading announcements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.addresses import is_loopback
from meshmsg.discovery.announcement import (
    MAX_ADDRESSES,
    MAX_TXT_BYTES,
    Ignored,
    Reach,
    decode_text,
    encode_text,
    node_id_of,
    read_announcement,
)
from meshmsg.discovery.candidate import Candidate
from meshmsg.discovery.endpoint import split_endpoint
from tests.discovery.sightings import good_txt, txt

LOOPBACK_ONLY = Reach(loopback=True, network=False, ipv6=True)
EVERYWHERE = Reach(loopback=True, network=True, ipv6=True)
NETWORK_ONLY = Reach(loopback=False, network=True, ipv6=False)


def wire(entries: dict[str, str]) -> bytes:
    return txt(*(f"{key}={value}".encode() for key, value in entries.items()))


def read(text: bytes, addresses: list[str], *, port: int | None = 41001, reach: Reach = EVERYWHERE) -> Candidate:
    return read_announcement(node_id="a1", text=text, port=port, addresses=addresses, mesh="lab", reach=reach)


def test_what_is_written_can_be_read() -> None:
    text = wire(encode_text(mesh="lab", node_id="a1", name="Küche", run="7f"))
    assert read(text, ["127.0.0.1"]) == Candidate("a1", ("tcp://127.0.0.1:41001",), "Küche")


@given(st.text(max_size=300), st.text(min_size=1, max_size=60))
def test_every_name_and_mesh_fits(name: str, mesh: str) -> None:
    text = wire(encode_text(mesh=mesh, node_id="a" * 63, name=name, run="0123abcd"))
    assert len(text) <= MAX_TXT_BYTES
    candidate = read_announcement(node_id="a" * 63, text=text, port=1, addresses=["::1"], mesh=mesh, reach=EVERYWHERE)
    assert candidate.name.isprintable()


@given(st.binary(max_size=MAX_TXT_BYTES + 50))
def test_any_bytes_are_read_or_ignored(text: bytes) -> None:
    try:
        entries = decode_text(text)
    except Ignored:
        return
    assert sum(map(len, entries)) <= len(text) <= MAX_TXT_BYTES


@given(st.binary(max_size=80), st.lists(st.ip_addresses().map(str) | st.text(max_size=5), max_size=30))
def test_any_announcement_leads_to_loopback_or_nowhere(tail: bytes, addresses: list[str]) -> None:
    try:
        candidate = read(good_txt("lab", "a1") + tail, [*addresses, "127.0.0.3"], reach=LOOPBACK_ONLY)
    except Ignored:
        return
    assert 1 <= len(candidate.endpoints) <= MAX_ADDRESSES
    assert all(is_loopback(split_endpoint(endpoint)[0]) for endpoint in candidate.endpoints)


def test_the_order_of_addresses_does_not_matter() -> None:
    text = good_txt("lab", "a1")
    there = read(text, ["10.0.0.1", "127.0.0.1", "10.0.0.1"])
    assert there == read(text, ["127.0.0.1", "10.0.0.1"])
    many = [f"10.0.0.{last}" for last in (3, 1, 7, 5, 2, 8, 6, 4)]
    assert list(read(text, many).endpoints) == [f"tcp://10.0.0.{last}:41001" for last in range(1, 9)]


@pytest.mark.parametrize("port", [None, 0, -1, 65536])
def test_absurd_ports(port: int | None) -> None:
    with pytest.raises(Ignored, match="its port is"):
        read(good_txt("lab", "a1"), ["127.0.0.1"], port=port)


@pytest.mark.parametrize(
    ("reach", "address", "admitted"),
    [
        (EVERYWHERE, "192.168.1.5", True),
        (EVERYWHERE, "127.0.0.1", True),
        (EVERYWHERE, "2001:db8::1", True),
        (EVERYWHERE, "fe80::1", False),  # link-local: which interface?
        (EVERYWHERE, "fe80::1%2", False),
        (EVERYWHERE, "240.0.0.1", False),
        (EVERYWHERE, "255.255.255.255", False),
        (EVERYWHERE, "224.0.0.251", False),
        (EVERYWHERE, "0.0.0.0", False),
        (EVERYWHERE, "0.0.0.1", False),
        (EVERYWHERE, "::", False),
        (EVERYWHERE, "ff02::fb", False),
        (EVERYWHERE, "::ffff:10.0.0.1", False),
        (EVERYWHERE, "no address", False),
        (LOOPBACK_ONLY, "192.168.1.5", False),
        (LOOPBACK_ONLY, "127.200.0.1", True),
        (LOOPBACK_ONLY, "::1", True),
        (NETWORK_ONLY, "127.0.0.1", False),  # another machine's loopback is not ours
        (NETWORK_ONLY, "2001:db8::1", False),
        (NETWORK_ONLY, "169.254.3.4", True),  # two machines on one cable
    ],
)
def test_reach(reach: Reach, address: str, admitted: bool) -> None:
    assert reach.admits(address) is admitted


@pytest.mark.parametrize(
    ("name", "node_id"),
    [
        ("a1._meshmsg._tcp.local.", "a1"),
        ("A1._meshmsg._tcp.local.", None),
        ("a1._other._tcp.local.", None),
        ("a1.b._meshmsg._tcp.local.", None),
        ("._meshmsg._tcp.local.", None),
        ("a" * 64 + "._meshmsg._tcp.local.", None),
        ("a1\n._meshmsg._tcp.local.", None),
        ("a1", None),
        ("", None),
    ],
)
def test_instance_names(name: str, node_id: str | None) -> None:
    assert node_id_of(name) == node_id
