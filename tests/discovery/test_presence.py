"""What follows from a node's own addresses and interfaces."""

from __future__ import annotations

import pytest

from meshmsg.discovery.announcement import Reach
from meshmsg.discovery.presence import Presence, check_presence


def presence(endpoints: list[str], interfaces: list[str]) -> Presence:
    return check_presence(mesh="lab", node_id="a1", name="n", endpoints=endpoints, interfaces=interfaces)


@pytest.mark.parametrize(
    ("endpoint", "interfaces", "reach"),
    [
        ("tcp://127.0.0.1:1", ["127.0.0.1"], Reach(loopback=True, network=False, ipv6=False)),
        ("tcp://[::1]:1", ["127.0.0.1"], Reach(loopback=True, network=False, ipv6=True)),
        ("tcp://10.0.0.1:1", ["10.0.0.1"], Reach(loopback=False, network=True, ipv6=False)),
        ("tcp://10.0.0.1:1", ["10.0.0.1", "127.0.0.1"], Reach(loopback=True, network=True, ipv6=False)),
        ("tcp://[2001:db8::1]:1", ["2001:db8::1"], Reach(loopback=False, network=True, ipv6=True)),
    ],
)
def test_a_node_dials_what_it_uses_itself(endpoint: str, interfaces: list[str], reach: Reach) -> None:
    assert presence([endpoint], interfaces).reach == reach


def test_at_most_eight_different_addresses_are_announced() -> None:
    endpoints = [f"tcp://127.0.0.{last}:41001" for last in (1, 1, *range(2, 20))]
    assert presence(endpoints, ["127.0.0.1"]).addresses == tuple(f"127.0.0.{last}" for last in range(1, 9))
