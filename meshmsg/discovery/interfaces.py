"""This machine's network interfaces. The only file that imports netifaces, so that one file replaces it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence

import netifaces

from meshmsg.addresses import is_loopback
from meshmsg.errors import ConfigurationError

POLL_S = 5.0

# Bridges and cables of container engines and virtual machines, and tunnels: announcing there reaches nobody
# or the wrong ones. Names as Docker, Podman, libvirt, VMware, VirtualBox, LXC, Kubernetes, WireGuard,
# OpenVPN, macOS give.
_VIRTUAL = re.compile(
    r"(docker|br-|veth|virbr|vmnet|vboxnet|lxc|lxdbr|podman|cni|flannel|cali|kube|dummy|ifb"
    r"|tun|tap|utun|wg|ppp|awdl|llw|anpi|bridge)"
)


def local_addresses(*, loopback: bool, only: Sequence[str] = ()) -> list[str]:
    """IPv4 addresses of this machine's usable interfaces.

    With ``loopback=True`` those of loopback, which is where a node without a key stays (G12); with False
    those of the others. Interfaces of container engines, virtual machines and tunnels are left out unless
    there are no others (as in a container or a network namespace).

    ``only`` names the interfaces to take, by name (``"eth0"``) or address (``"192.168.1.5"``, also IPv6),
    virtual or not. Raises ``ConfigurationError`` for one that does not exist, listing those that do, and for
    one beyond loopback when ``loopback`` is True.

    >>> local_addresses(loopback=True)[0]
    '127.0.0.1'
    """
    table = _addresses_by_interface()
    if only:
        return _named_addresses(table, only, loopback=loopback)
    physical: list[str] = []
    virtual: list[str] = []
    for interface, addresses in table.items():
        wanted = [a for a in addresses if ":" not in a and is_loopback(a) == loopback]
        (virtual if _VIRTUAL.match(interface) else physical).extend(wanted)
    return physical or virtual


def present_addresses(wanted: Sequence[str]) -> list[str]:
    """Those of the wanted addresses that this machine has at the moment, in their order."""
    present = {address for addresses in _addresses_by_interface().values() for address in addresses}
    # Every address of 127.0.0.0/8 can be bound although only 127.0.0.1 is listed.
    return [address for address in wanted if address in present or is_loopback(address)]


def interface_of(address: str) -> str | None:
    """The name of the interface that has this address; for any loopback address the loopback interface's."""
    for interface, addresses in _addresses_by_interface().items():
        if address in addresses or (is_loopback(address) and any(map(is_loopback, addresses))):
            return interface
    return None


def describe_interfaces() -> str:
    """The interfaces and their addresses in one line, for error messages."""
    return ", ".join(f"{name} ({' '.join(found)})" for name, found in _addresses_by_interface().items() if found)


class Damper:
    """Believes a change only when two looks in a row show it, so that a flapping interface causes no stream
    of changes.

    >>> damper = Damper(["10.0.0.1"])
    >>> damper.look([]), damper.look(["10.0.0.1"]), damper.look([]), damper.look([])
    (None, None, None, [])
    """

    def __init__(self, settled: Sequence[str]) -> None:
        self._settled = list(settled)
        self._last = list(settled)

    def look(self, now: Sequence[str]) -> list[str] | None:
        """Take one observation; returns the new set when a change has settled, else None."""
        seen = list(now)
        settled = seen if seen == self._last and seen != self._settled else None
        self._last = seen
        if settled is not None:
            self._settled = settled
        return settled


async def follow_addresses(
    wanted: Sequence[str],
    changed: Callable[[list[str]], Awaitable[None]],
    *,
    look: Callable[[Sequence[str]], list[str]] = present_addresses,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Poll, until cancelled, which of the wanted addresses exist, and await ``changed(present)`` when that
    settled.

    zeroconf itself does not notice interfaces that come and go (python-zeroconf#1777).
    """
    damper = Damper(look(wanted))
    while True:
        await pause(POLL_S)
        settled = damper.look(look(wanted))
        if settled is not None:
            await changed(settled)


def _named_addresses(table: dict[str, list[str]], only: Sequence[str], *, loopback: bool) -> list[str]:
    if isinstance(only, str):
        raise ConfigurationError(f"interfaces must be a list of names or addresses, not one string: write [{only!r}]")
    chosen: list[str] = []
    for wanted in only:
        if wanted in table:
            found = [a for a in table[wanted] if ":" not in a]
        else:
            found = [wanted] if any(wanted in addresses for addresses in table.values()) else []
        if not found:
            raise ConfigurationError(
                f"no interface has the name or address {wanted!r}; there are {describe_interfaces()}"
            )
        if loopback and not all(map(is_loopback, found)):
            raise ConfigurationError(
                f"the interface {wanted!r} reaches beyond this machine, "
                "and without a key a node stays on loopback (G12)"
            )
        chosen.extend(found)
    return list(dict.fromkeys(chosen))


def _addresses_by_interface() -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for interface in netifaces.interfaces():
        try:
            families = netifaces.ifaddresses(interface)
        except ValueError:  # it went away between the two calls
            continue
        entries = [*families.get(netifaces.AF_INET, ()), *families.get(netifaces.AF_INET6, ())]
        # An IPv6 address carries its zone ("fe80::1%eth0"); those are link-local, which nobody else could
        # dial.
        table[interface] = [e["addr"] for e in entries if "addr" in e and "%" not in e["addr"]]
    return table
