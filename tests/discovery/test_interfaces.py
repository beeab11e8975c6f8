"""Choosing this machine's addresses, and following them with damping."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import netifaces
import pytest

from meshmsg.discovery import interfaces, local_addresses
from meshmsg.discovery.interfaces import (
    Damper,
    describe_interfaces,
    follow_addresses,
    interface_of,
    present_addresses,
)
from meshmsg.errors import ConfigurationError

LOOPBACK = {"lo": ["127.0.0.1", "::1"]}
LAPTOP = {
    **LOOPBACK,
    "eth0": ["192.168.1.5", "2001:db8::5", "fe80::5%eth0"],
    "wlan0": ["10.1.1.5"],
    "docker0": ["172.17.0.1"],
    "br-5c2f": ["172.18.0.1"],
    "veth12ab": [],
    "tun0": ["10.8.0.6"],
}
CONTAINER = {**LOOPBACK, "veth0": ["10.200.0.2"]}


def install(monkeypatch: pytest.MonkeyPatch, table: dict[str, list[str]]) -> None:
    """Give this machine other interfaces."""

    def addresses_of(interface: str) -> dict[int, list[dict[str, str]]]:
        if interface == "gone":
            raise ValueError("You must specify a valid interface name.")
        families: dict[int, list[dict[str, str]]] = {}
        for address in table[interface]:
            family = netifaces.AF_INET6 if ":" in address else netifaces.AF_INET
            families.setdefault(family, []).append({"addr": address})
        return families

    monkeypatch.setattr(interfaces.netifaces, "interfaces", lambda: [*table, "gone"])
    monkeypatch.setattr(interfaces.netifaces, "ifaddresses", addresses_of)


def test_this_machine_has_a_loopback() -> None:
    assert "127.0.0.1" in local_addresses(loopback=True)
    assert interface_of("127.0.0.1") == interface_of("127.3.2.1") is not None
    assert "127.0.0.1" in describe_interfaces()


@pytest.mark.guarantee("G12")
def test_loopback_is_only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, LAPTOP)
    assert local_addresses(loopback=True) == ["127.0.0.1"]


def test_virtual_interfaces_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, LAPTOP)
    assert local_addresses(loopback=False) == ["192.168.1.5", "10.1.1.5"]


def test_virtual_interfaces_are_better_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, CONTAINER)
    assert local_addresses(loopback=False) == ["10.200.0.2"]


def test_no_network_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, LOOPBACK)
    assert local_addresses(loopback=False) == []


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        (["eth0"], ["192.168.1.5"]),
        (["docker0", "10.1.1.5", "wlan0"], ["172.17.0.1", "10.1.1.5"]),
        (["2001:db8::5"], ["2001:db8::5"]),
        (["lo", "eth0"], ["127.0.0.1", "192.168.1.5"]),
    ],
)
def test_an_explicit_choice(monkeypatch: pytest.MonkeyPatch, only: list[str], chosen: list[str]) -> None:
    install(monkeypatch, LAPTOP)
    assert local_addresses(loopback=False, only=only) == chosen


@pytest.mark.parametrize("unknown", ["eth1", "192.168.1.6", "veth12ab", "fe80::5", "fe80::5%eth0", ""])
def test_an_unknown_interface_is_told_the_known_ones(monkeypatch: pytest.MonkeyPatch, unknown: str) -> None:
    install(monkeypatch, LAPTOP)
    with pytest.raises(ConfigurationError, match=r"lo \(127\.0\.0\.1 ::1\), eth0 \(192\.168\.1\.5") as caught:
        local_addresses(loopback=False, only=["eth0", unknown])
    assert f"name or address {unknown!r}" in str(caught.value)


def test_one_string_is_not_a_list_of_interfaces() -> None:
    with pytest.raises(ConfigurationError, match=r"write \['eth0'\]"):
        local_addresses(loopback=False, only="eth0")


@pytest.mark.guarantee("G12")
def test_without_a_key_no_other_interface_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, LAPTOP)
    assert local_addresses(loopback=True, only=["lo"]) == ["127.0.0.1"]
    with pytest.raises(ConfigurationError, match=r"'eth0' reaches beyond this machine.*G12"):
        local_addresses(loopback=True, only=["lo", "eth0"])


def test_present_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, LAPTOP)
    wanted = ["10.1.1.5", "10.9.9.9", "127.0.0.1", "127.0.0.9"]
    assert present_addresses(wanted) == ["10.1.1.5", "127.0.0.1", "127.0.0.9"]


def test_a_change_counts_once_it_lasted_two_looks() -> None:
    damper = Damper(["a", "b"])
    looks = [["a", "b"], ["a"], ["a", "b"], ["a"], [], [], [], ["a", "b"], ["a", "b"], ["a", "b"]]
    assert [damper.look(look) for look in looks] == [
        None, None, None, None, None, [], None, None, ["a", "b"], None,
    ]  # fmt: skip


async def test_following_reports_settled_changes_only() -> None:
    looks = [["a", "b"], ["a"], ["a", "b"], ["a"], ["a"], ["a"], ["a", "b"], ["a", "b"]]
    changes: list[list[str]] = []
    pauses: list[float] = []

    def look(wanted: Sequence[str]) -> list[str]:
        assert wanted == ["a", "b"]
        return looks.pop(0)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if not looks:
            raise asyncio.CancelledError

    async def changed(present: list[str]) -> None:
        changes.append(present)

    with pytest.raises(asyncio.CancelledError):
        await follow_addresses(["a", "b"], changed, look=look, pause=pause)
    assert changes == [["a"], ["a", "b"]]
    assert set(pauses) == {interfaces.POLL_S}
