"""Seeds: what people write, and what they are told about mistakes."""

from __future__ import annotations

import asyncio

import pytest

from meshmsg.discovery import Candidate, StaticDiscovery, static
from meshmsg.errors import ConfigurationError
from tests.discovery.sightings import Sightings


async def test_each_seed_is_one_candidate_without_id() -> None:
    seen = Sightings()
    discovery = StaticDiscovery(["tcp://127.0.0.1:41001", "127.0.0.2:41002", "127.0.0.2:41002", "[::1]:41003"])
    await discovery.start(seen.found, seen.lost)
    assert seen.candidates == [
        Candidate(None, ("tcp://127.0.0.1:41001",)),
        Candidate(None, ("tcp://127.0.0.2:41002",)),
        Candidate(None, ("tcp://[::1]:41003",)),
    ]
    await discovery.close()
    assert not seen.gone


async def test_a_name_is_looked_up_until_that_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[list[str] | OSError] = [OSError("no name server yet"), ["127.0.0.3", "::1", "127.0.0.3"]]

    async def getaddrinfo(host: str, port: int, **options: object) -> list[tuple[object, ...]]:
        assert (host, port) == ("lab.example", 41002)
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return [(None, None, None, "", (address, port)) for address in answer]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(static, "FIRST_PAUSE_S", 0.001)
    seen = Sightings()
    discovery = StaticDiscovery(["lab.example:41002"])
    await discovery.start(seen.found, seen.lost)
    await seen.until(lambda seen: bool(seen.candidates))
    assert seen.candidates == [Candidate(None, ("tcp://127.0.0.3:41002", "tcp://[::1]:41002"))]
    await discovery.close()


async def test_no_seeds_is_no_error() -> None:
    seen = Sightings()
    await StaticDiscovery([]).start(seen.found, seen.lost)
    assert not seen.candidates


@pytest.mark.parametrize("seed", ["a-b_c.example.:1", " host:65535 ", "tcp://1.2.3.4:80", "tcp://[2001:db8::1]:80"])
def test_good_seeds(seed: str) -> None:
    assert StaticDiscovery([seed]).endpoints[0].startswith("tcp://")


@pytest.mark.parametrize(
    ("seed", "problem"),
    [
        ("", "has no port"),
        ("host", "has no port"),
        ("tcp://host", "has no port"),
        ("[::1]", "has no port"),
        (":41001", "has no host"),
        ("tcp://:41001", "has no host"),
        ("host:0", "number from 1 to 65535"),
        ("host:65536", "number from 1 to 65535"),
        ("host:-1", "number from 1 to 65535"),
        ("host:http", "number from 1 to 65535"),
        ("host:", "number from 1 to 65535"),
        ("host:²", "number from 1 to 65535"),
        ("host:" + "9" * 5000, "number from 1 to 65535"),
        ("ipc:///tmp/a:1", "uses ipc, only tcp"),
        ("udp://host:1", "uses udp, only tcp"),
        ("*:41001", "bad host name"),
        ("tcp://0.0.0.0:41001", "bound but not dialled"),
        ("tcp://[::]:41001", "bound but not dialled"),
        ("256.1.1.1:1", "bad IPv4 address"),
        ("1.2.3:1", "bad IPv4 address"),
        ("::1:41001", "needs brackets"),
        ("[::zz]:1", "bad IPv6 address"),
        ("a host:1", "bad host name"),
        ("host;rm:1", "bad host name"),
        ("a..b:1", "bad host name"),
        (41001, "is not a string"),
    ],
)
def test_bad_seeds_are_named_with_the_right_form(seed: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        StaticDiscovery(["good:1", seed])
    assert repr(seed) in str(caught.value)
    assert '"tcp://HOST:PORT"' in str(caught.value)


def test_one_string_is_not_a_list_of_seeds() -> None:
    with pytest.raises(ConfigurationError, match=r"write seeds=\['a:1'\]"):
        StaticDiscovery("a:1")
