"""What kind of address a text is; for all who read, bind and dial them."""

from __future__ import annotations

import ipaddress


def is_address(text: str, version: int | None = None) -> bool:
    """Whether this is an IP address, of version 4 or 6 if one is asked for, and not a name that has to be looked up.

    >>> is_address("::1"), is_address("::1", 4), is_address("localhost")
    (True, False, False)
    """
    try:
        return ipaddress.ip_address(text).version == version or version is None
    except ValueError:
        return False


def is_loopback(address: str) -> bool:
    """Whether an IP address is one of this machine's loopback; False for anything that is no IP address.

    >>> is_loopback("127.0.0.2"), is_loopback("::1"), is_loopback("192.168.1.5"), is_loopback("localhost")
    (True, True, False, False)
    """
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
