"""Two hosts on one machine: network namespaces with a cable between them that can be cut. Needs root, and `ip`."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from types import TracebackType
from typing import Self

ADDRESSES = ("10.213.7.1", "10.213.7.2")  # seen only inside the two namespaces
MULTICAST = "224.0.0.0/4"


def why_not() -> str | None:
    """What keeps this machine from having two hosts; None if nothing does."""
    if shutil.which("ip") is None:
        return "there is no `ip` command (Debian: iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with Hosts() as hosts:
            subprocess.run([*hosts.prefix(0), "true"], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` says: {error.stderr.strip()}"
    return None


def run_ip(*arguments: str) -> None:
    """One `ip` command."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Hosts:
    """Two namespaces, named as nothing else is, and gone with the ``with`` block."""

    def __init__(self) -> None:
        token = uuid.uuid4().hex[:8]
        self.names = (f"meshmsg-{token}-a", f"meshmsg-{token}-b")
        self.devices = (f"mm{token}a", f"mm{token}b")  # an interface's name has at most 15 letters
        self._made: list[str] = []

    def prefix(self, host: int) -> list[str]:
        """What runs a command on a host."""
        return ["ip", "netns", "exec", self.names[host]]

    def cut(self, host: int) -> None:
        """Takes a host's end of the cable down."""
        run_ip("-n", self.names[host], "link", "set", self.devices[host], "down")

    def heal(self, host: int) -> None:
        """Takes it up again; the kernel forgot the route for multicast meanwhile."""
        run_ip("-n", self.names[host], "link", "set", self.devices[host], "up")
        run_ip("-n", self.names[host], "route", "replace", MULTICAST, "dev", self.devices[host])

    def drop(self, host: int) -> None:
        """Loses, without a word, whatever this host sends to the other one; what it receives arrives."""
        run_ip("-n", self.names[host], "route", "add", "blackhole", f"{ADDRESSES[1 - host]}/32")

    def stop_dropping(self, host: int) -> None:
        """Ends that."""
        run_ip("-n", self.names[host], "route", "del", "blackhole", f"{ADDRESSES[1 - host]}/32")

    def reset(self, host: int) -> bool:
        """Breaks every TCP connection to the other host; false where the kernel cannot."""
        command = [*self.prefix(host), "ss", "--kill", "--tcp", "dst", ADDRESSES[1 - host]]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        # It also complains of connections that are over already.
        return "not supported" not in result.stderr

    def __enter__(self) -> Self:
        try:
            for name in self.names:
                run_ip("netns", "add", name)
                self._made.append(name)
            (first, second), (left, right) = self.names, self.devices
            run_ip("-n", first, "link", "add", left, "type", "veth", "peer", "name", right, "netns", second)
            for host, name in enumerate(self.names):
                run_ip("-n", name, "address", "add", f"{ADDRESSES[host]}/24", "dev", self.devices[host])
                run_ip("-n", name, "link", "set", "lo", "up")
                self.heal(host)
        except BaseException:
            self._remove()
            raise
        return self

    def _remove(self) -> None:
        # The cable goes with the namespaces, and those with the last process in them.
        for name in self._made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()
