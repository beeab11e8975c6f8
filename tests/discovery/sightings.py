"""What a discovery reported, with waiting for it, and strangers that announce what they like."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Self

from meshmsg.discovery import Candidate, MdnsDiscovery

TYPE = "_meshmsg._tcp.local."
A, PTR, TXT, AAAA, SRV = 1, 12, 16, 28, 33  # record types (RFC 1035, 3596, 2782)
CLASS_IN, CLASS_IN_UNIQUE = 1, 0x8001  # the second replaces what was announced before (RFC 6762, 10.2)


class Sightings:
    """Records what is reported; ``until`` waits, up to the test's own deadline."""

    def __init__(self) -> None:
        self.candidates: list[Candidate] = []
        self.gone: list[str] = []
        self._news = asyncio.Event()

    def found(self, candidate: Candidate) -> None:
        self.candidates.append(candidate)
        self._news.set()

    def lost(self, node_id: str) -> None:
        self.gone.append(node_id)
        self._news.set()

    @property
    def ids(self) -> set[str | None]:
        return {candidate.node_id for candidate in self.candidates}

    async def until(self, condition: Callable[[Self], bool], send: Callable[[], None] | None = None) -> None:
        """Wait for the condition; ``send`` is called at once and every 3 s, as packets may get lost."""
        while not condition(self):
            self._news.clear()
            if send is not None:
                send()
            try:
                async with asyncio.timeout(None if send is None else 3.0):
                    await self._news.wait()
            except TimeoutError:
                pass


def new_id() -> str:
    return uuid.uuid4().hex


def new_mdns(mesh: str, *, node_id: str | None = None, port: int = 41001, name: str = "") -> MdnsDiscovery:
    return MdnsDiscovery(mesh=mesh, node_id=node_id or new_id(), name=name, endpoints=[f"tcp://127.0.0.1:{port}"])


@asynccontextmanager
async def announced(discovery: MdnsDiscovery) -> AsyncIterator[Sightings]:
    """Start a discovery and close it at the end; gives what it sees."""
    sightings = Sightings()
    await discovery.start(sightings.found, sightings.lost)
    try:
        yield sightings
    finally:
        await discovery.close()


def txt(*entries: bytes) -> bytes:
    return b"".join(bytes([len(entry)]) + entry for entry in entries)


def good_txt(mesh: str, node_id: str, name: str = "") -> bytes:
    return txt(b"v=1", b"id=" + node_id.encode(), b"mesh=" + mesh.encode(), b"name=" + name.encode())


class Stranger:
    """Sends mDNS packets on loopback, with no other socket and no manners."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, packet: bytes) -> None:
        self._socket.sendto(packet, ("224.0.0.251", 5353))

    def announce(
        self,
        node_id: str,
        text: bytes,
        *,
        port: int = 41001,
        addresses: Iterable[str] = ("127.0.0.1",),
        ttl: int = 1200,
        address_ttl: int = 1200,
    ) -> None:
        """Announce an instance with all its records, as a meshmsg node does."""
        name = encode_name(f"{node_id}.{TYPE}")
        self.send_records(
            pointer(node_id, ttl),
            record(name, SRV, CLASS_IN_UNIQUE, ttl, struct.pack(">HHH", 0, 0, port) + name),
            record(name, TXT, CLASS_IN_UNIQUE, ttl, text),
            *(address_record(name, address, address_ttl) for address in addresses),
        )

    def send_records(self, *records: bytes) -> None:
        header = struct.pack(">HHHHHH", 0, 0x8400, 0, len(records), 0, 0)  # an answer, with authority
        self.send(header + b"".join(records))


def encode_name(name: str) -> bytes:
    """A DNS name, without compression."""
    labels = [label.encode() for label in name.removesuffix(".").split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def record(name: bytes, type_: int, class_: int, ttl: int, data: bytes) -> bytes:
    return name + struct.pack(">HHIH", type_, class_, ttl, len(data)) + data


def pointer(node_id: str, ttl: int = 1200) -> bytes:
    """The record that says that an instance exists."""
    return record(encode_name(TYPE), PTR, CLASS_IN, ttl, encode_name(f"{node_id}.{TYPE}"))


def address_record(name: bytes, address: str, ttl: int) -> bytes:
    packed = ipaddress.ip_address(address).packed
    return record(name, A if len(packed) == 4 else AAAA, CLASS_IN_UNIQUE, ttl, packed)
