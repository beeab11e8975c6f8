"""What a node announces in DNS-SD, and the reading of what strangers announce: bounded, and trusting nothing.

An announcement is an instance named after the node id under ``_meshmsg._tcp.local.`` (RFC 6763), with SRV
(one port), A and AAAA records, and a TXT record: ``v`` (version of this format), ``id``, ``mesh``, ``name``
(for people) and ``run`` (a random word for each start).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from meshmsg.discovery.candidate import Candidate
from meshmsg.discovery.endpoint import join_endpoint
from meshmsg.errors import ConfigurationError

SERVICE_TYPE = "_meshmsg._tcp.local."
VERSION = b"1"

MAX_TXT_BYTES = 512
MAX_FIELD_BYTES = 200  # of mesh and name; an entry of a TXT record holds 255 bytes with its key (RFC 6763, 6.1)
MAX_NAME_CHARACTERS = 64
MAX_ADDRESSES = 8

# DNS compares names without regard to case, so ids are lower case; 63 is the longest label (RFC 1035, 2.3.4).
_NODE_ID = re.compile(r"[0-9a-z][0-9a-z-]{0,62}")


class Ignored(ValueError):
    """An announcement that is not for us, or not to be believed; the text says why."""


@dataclass(frozen=True, slots=True)
class Reach:
    """The addresses that this node dials: only those of a kind that it uses itself.

    So a node that is on loopback only, as every node without a key is, never dials another machine, whatever
    somebody announces (G12); and a node that is not on loopback is not sent to ports of its own machine.
    """

    loopback: bool
    network: bool
    ipv6: bool

    def admits(self, address: str) -> bool:
        """Whether an announced address may be dialled."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        if parsed.version == 6 and not self.ipv6:
            return False
        if parsed.is_loopback:
            return self.loopback
        # Multicast, 0.0.0.0/8 (this host, RFC 6890) and what is set aside, also IPv4 written as IPv6.
        if parsed.is_multicast or parsed.is_reserved or parsed.packed[0] == 0:
            return False
        # An IPv6 link-local address needs the zone of an interface here, which AAAA does not carry.
        return self.network and not (parsed.version == 6 and parsed.is_link_local)


def check_node_id(node_id: str) -> str:
    """The id, if it can stand as an instance name; raises ``ConfigurationError`` otherwise."""
    if not isinstance(node_id, str) or not _NODE_ID.fullmatch(node_id):
        raise ConfigurationError(
            f"node_id must be 1 to 63 of 0-9, a-z and '-', for example uuid4().hex, not {node_id!r}"
        )
    return node_id


def check_mesh(mesh: str) -> str:
    """The mesh name, if it can be announced; raises ``ConfigurationError`` otherwise."""
    if not isinstance(mesh, str) or not 1 <= len(mesh.encode(errors="replace")) <= MAX_FIELD_BYTES:
        raise ConfigurationError(f"a mesh name has 1 to {MAX_FIELD_BYTES} bytes in UTF-8, not {mesh!r}")
    return mesh


def node_id_of(instance_name: str) -> str | None:
    """The node id in a full instance name, or None if the name is not of our form."""
    node_id, dot, service_type = instance_name.partition(".")
    if dot and service_type == SERVICE_TYPE and _NODE_ID.fullmatch(node_id):
        return node_id
    return None


def encode_text(*, mesh: str, node_id: str, name: str, run: str) -> dict[str, str]:
    """The entries of our TXT record; a long name is cut.

    ``run`` only makes the packets of two starts differ: listeners drop a packet equal to one that they heard
    less than 0.8 s ago, which would hide a node that comes back quickly with its old id and port.
    """
    shown = name.encode(errors="replace")[:MAX_FIELD_BYTES].decode(errors="ignore")
    return {"v": VERSION.decode(), "id": node_id, "mesh": mesh, "name": shown, "run": run}


def decode_text(text: bytes) -> dict[bytes, bytes]:
    """The entries of a TXT record, keys in lower case; of equal keys the first counts (RFC 6763, 6.4)."""
    if len(text) > MAX_TXT_BYTES:
        raise Ignored(f"its TXT record has {len(text)} bytes, over {MAX_TXT_BYTES}")
    entries: dict[bytes, bytes] = {}
    position = 0
    while position < len(text):
        end = position + 1 + text[position]
        if end > len(text):
            raise Ignored("its TXT record is cut short")
        key, _, value = text[position + 1 : end].partition(b"=")
        entries.setdefault(key.lower(), value)
        position = end
    return entries


def read_announcement(
    *, node_id: str, text: bytes, port: int | None, addresses: Iterable[str], mesh: str, reach: Reach
) -> Candidate:
    """The candidate that an announcement describes; raises ``Ignored`` if it is not for us."""
    entries = decode_text(text)
    if entries.get(b"v") != VERSION:
        raise Ignored(f"it has version {entries.get(b'v', b'')!r}, not {VERSION!r}")
    if entries.get(b"mesh") != mesh.encode():
        raise Ignored("it is of another mesh")
    if entries.get(b"id") != node_id.encode():
        raise Ignored("the id in its TXT record is not its instance's name")
    if port is None or not 1 <= port <= 65535:
        raise Ignored(f"its port is {port}")
    usable = {address for address in addresses if reach.admits(address)}
    if not usable:
        raise Ignored("it has no address that this node may dial")
    # A fixed order, as the cache's order changes with every packet and must not look like a change.
    endpoints = tuple(join_endpoint(address, port) for address in sorted(usable)[:MAX_ADDRESSES])
    return Candidate(node_id, endpoints, _displayable(entries.get(b"name", b"")))


def _displayable(name: bytes) -> str:
    """A stranger's name without what could confuse a terminal or a log."""
    shown = name.decode(errors="replace")[:MAX_NAME_CHARACTERS]
    return "".join(character for character in shown if character.isprintable())
