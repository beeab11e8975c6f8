"""Endpoints that libzmq gets to see: numeric addresses only, and several of them on one port."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Sequence

import zmq

from meshmsg.addresses import is_address, is_loopback
from meshmsg.errors import AddressUnavailable, ConfigurationError
from meshmsg.transport.tuning import Socket

PORT_TRIES = 20
_DIALLABLE = re.compile(r"tcp://(?:\[(?P<six>[^\[\]]+)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})")


def is_diallable(endpoint: str) -> bool:
    """Whether this is ``tcp://`` with a numeric address and a port.

    libzmq resolves names in its I/O thread, where a slow name server would hold up every other link, so names
    have to be resolved before they get here.

    >>> is_diallable("tcp://127.0.0.1:41001"), is_diallable("tcp://[::1]:41001"), is_diallable("tcp://example:80")
    (True, True, False)
    """
    match = _DIALLABLE.fullmatch(endpoint)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        return False
    return is_address(match["six"], 6) if match["six"] else is_address(match["four"], 4)


def stays_here(endpoint: str) -> bool:
    """Whether a diallable endpoint is on this machine's loopback.

    >>> stays_here("tcp://127.0.0.1:41001"), stays_here("tcp://[::1]:41001"), stays_here("tcp://192.168.1.5:41001")
    (True, True, False)
    """
    match = _DIALLABLE.fullmatch(endpoint)
    return match is not None and is_loopback(match["six"] or match["four"])


def has_route(endpoint: str) -> bool:
    """Whether this machine knows a way to a diallable endpoint's host; nothing is sent to find out."""
    match = _DIALLABLE.fullmatch(endpoint)
    if match is None:
        return False
    family = socket.AF_INET6 if match["six"] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((match["six"] or match["four"], int(match["port"])))
        except OSError:
            return False
    return True


def uses_ipv6(endpoint: str) -> bool:
    """Whether the endpoint's host is written in brackets."""
    return endpoint.startswith("tcp://[")


def bind_all(socket: Socket, addresses: Sequence[str], port: int = 0) -> tuple[str, ...]:
    """Bind a socket to one port on every address and return the endpoints. Port 0 finds a free one.

    Raises ``AddressUnavailable``, with nothing left bound, and ``ConfigurationError`` for what is no address.
    """
    if not addresses:
        raise ConfigurationError('no address to bind; give at least one, for example "127.0.0.1"')
    for address in addresses:
        if not (is_address(address, 4) or is_address(address, 6)):
            raise ConfigurationError(f'{address!r} is no IP address; write one such as "127.0.0.1" or "::1"')
    tries = PORT_TRIES if port == 0 and len(addresses) > 1 else 1
    for attempt in range(1, tries + 1):
        try:
            return _bind_once(socket, addresses, port)
        except _Refused as refusal:
            # A port that is free on the first address may be taken on the next: then another one is tried.
            if refusal.error.errno == errno.EADDRINUSE and attempt < tries:
                continue
            raise _unavailable(refusal.address, port, refusal.error) from refusal.error
    raise AssertionError("unreachable: the last attempt returns or raises")


class _Refused(Exception):
    def __init__(self, address: str, error: zmq.ZMQError) -> None:
        super().__init__(address)
        self.address = address
        self.error = error


def _bind_once(socket: Socket, addresses: Sequence[str], port: int) -> tuple[str, ...]:
    bound: list[str] = []
    for address in addresses:
        host = f"[{address}]" if ":" in address else address
        # Set per address: with it on, libzmq would bind IPv4 through an IPv6 socket, which not every system
        # has.
        socket.setsockopt(zmq.IPV6, 1 if ":" in address else 0)
        try:
            socket.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            for endpoint in bound:
                socket.unbind(endpoint)
            raise _Refused(address, error) from error
        if not port:
            port = _port_of(socket)
        bound.append(f"tcp://{host}:{port}")
    return tuple(bound)


def _port_of(socket: Socket) -> int:
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rstrip(b"\0").rpartition(b":")[2])


def _unavailable(address: str, port: int, error: zmq.ZMQError) -> AddressUnavailable:
    number = error.errno or 0
    if number == errno.EADDRINUSE:
        problem = f"port {port} of {address} is in use" if port else f"no free port on {address}"
        advice = "choose another port, or port 0 for any free one"
    elif number == errno.EADDRNOTAVAIL:
        problem = f"no interface of this machine has the address {address}"
        advice = "bind one that it has, for example 127.0.0.1"
    elif number == errno.EACCES:
        problem = f"this user may not bind port {port} of {address}"
        advice = "choose a port from 1024 on, or port 0 for any free one"
    else:
        problem = f"cannot bind {address}: {os.strerror(number)}"
        advice = "check the address"
    return AddressUnavailable(number, f"{problem}; {advice}")
