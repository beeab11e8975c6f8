"""Endpoints such as ``tcp://127.0.0.1:41001``: read from people, written for the transport."""

from __future__ import annotations

import re

from meshmsg.addresses import is_address
from meshmsg.errors import ConfigurationError

EXAMPLE = "tcp://192.168.1.20:41001"

_SCHEME = "tcp://"
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_LOOKS_LIKE_IPV4 = re.compile(r"[0-9.]+")


def split_endpoint(text: str) -> tuple[str, int]:
    """Host and port of ``"tcp://host:port"`` or ``"host:port"``; an IPv6 host is written in brackets.

    Raises ``ConfigurationError`` naming the text, what is wrong with it and the right form.

    >>> split_endpoint("tcp://[::1]:41001")
    ('::1', 41001)
    """
    if not isinstance(text, str):
        raise _refusal(text, "is not a string")
    rest = text.strip()
    if "://" in rest:
        if not rest.startswith(_SCHEME):
            raise _refusal(text, f"uses {rest.split('://')[0]}, only tcp is possible")
        rest = rest.removeprefix(_SCHEME)
    host, colon, port_text = rest.rpartition(":")
    if not colon or port_text.endswith("]"):
        raise _refusal(text, "has no port")
    return _read_host(text, host), _read_port(text, port_text)


def join_endpoint(host: str, port: int) -> str:
    """The endpoint of a host and a port.

    >>> join_endpoint("::1", 41001)
    'tcp://[::1]:41001'
    """
    return f"{_SCHEME}[{host}]:{port}" if ":" in host else f"{_SCHEME}{host}:{port}"


def _read_host(text: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not is_address(host, 6):
            raise _refusal(text, f"has a bad IPv6 address, {host!r}")
    elif ":" in host:
        raise _refusal(text, "looks like an IPv6 address, which needs brackets: tcp://[::1]:41001")
    elif not host:
        raise _refusal(text, "has no host")
    elif _LOOKS_LIKE_IPV4.fullmatch(host):
        if not is_address(host, 4):
            raise _refusal(text, f"has a bad IPv4 address, {host!r}")
    elif not _HOST_NAME.fullmatch(host):
        raise _refusal(text, f"has a bad host name, {host!r}")
    if host in ("0.0.0.0", "::"):
        raise _refusal(text, f"has the host {host}, which can be bound but not dialled")
    return host


def _read_port(text: str, port_text: str) -> int:
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 1 <= int(port_text) <= 65535):
        raise _refusal(text, f"has the port {port_text!r}, which is no number from 1 to 65535")
    return int(port_text)


def _refusal(text: object, problem: str) -> ConfigurationError:
    return ConfigurationError(f'the address {text!r} {problem}; write "tcp://HOST:PORT", for example "{EXAMPLE}"')
