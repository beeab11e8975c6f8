"""Binding several addresses on one port, when not every port is free everywhere."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import zmq

from meshmsg.errors import AddressUnavailable
from meshmsg.transport.endpoints import PORT_TRIES, bind_all


class Machine:
    """A stand-in for a socket, on which some ports are taken; it hands out 1001, 1002 and so on."""

    def __init__(self, taken: set[str], error: int = errno.EADDRINUSE) -> None:
        self.taken = taken
        self.error = error
        self.bound: list[str] = []
        self.port = 1000

    def setsockopt(self, option: int, value: int) -> None:
        assert option == zmq.IPV6

    def getsockopt(self, option: int) -> bytes:
        assert option == zmq.LAST_ENDPOINT
        return self.bound[-1].encode() + b"\0"

    def bind(self, endpoint: str) -> None:
        if endpoint.endswith("*"):
            self.port += 1
            endpoint = endpoint.replace("*", str(self.port))
        if endpoint in self.taken:
            raise zmq.ZMQError(self.error)
        self.bound.append(endpoint)

    def unbind(self, endpoint: str) -> None:
        self.bound.remove(endpoint)


def bind(machine: Any, port: int = 0) -> tuple[str, ...]:
    return bind_all(machine, ["10.0.0.1", "::1"], port)


def test_another_port_is_tried_when_one_address_has_it_taken() -> None:
    machine = Machine({"tcp://[::1]:1001", "tcp://[::1]:1002"})
    assert bind(machine) == ("tcp://10.0.0.1:1003", "tcp://[::1]:1003")
    assert machine.bound == ["tcp://10.0.0.1:1003", "tcp://[::1]:1003"]


def test_it_gives_up_with_nothing_bound() -> None:
    machine = Machine({f"tcp://[::1]:{port}" for port in range(1001, 1100)})
    with pytest.raises(AddressUnavailable, match="no free port on ::1; choose another port"):
        bind(machine)
    assert machine.bound == []
    assert machine.port == 1000 + PORT_TRIES


def test_a_given_port_is_tried_once() -> None:
    machine = Machine({"tcp://[::1]:70"})
    with pytest.raises(AddressUnavailable, match="port 70 of ::1 is in use") as failure:
        bind(machine, 70)
    assert failure.value.errno == errno.EADDRINUSE
    assert machine.bound == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errno.EACCES, "may not bind port 70 of ::1; .*1024"),
        (errno.EADDRNOTAVAIL, "no interface of this machine has the address ::1; .*127.0.0.1"),
        (errno.ENOBUFS, "cannot bind ::1: .*; check the address"),
    ],
)
def test_each_reason_comes_with_a_next_step(error: int, text: str) -> None:
    with pytest.raises(AddressUnavailable, match=text):
        bind(Machine({"tcp://[::1]:70"}, error), 70)
