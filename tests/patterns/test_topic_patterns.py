"""The patterns of topics as real meshes of processes, undisturbed and with their failures."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from meshmsg import Node
from tests.patterns.programs import DEADLINE_S, PATTERNS, run_pattern

FAILURE = pytest.mark.parametrize("failure", ["", "--fail"])
TICKS = 5000


def find_all(pattern: str, output: str) -> list[tuple[str, ...]]:
    """The groups of each line that matches."""
    found = [match.groups() for match in re.finditer(pattern, output, re.MULTILINE)]
    assert found, f"no {pattern!r} in:\n{output}"
    return found


@pytest.mark.guarantee("G6")
@FAILURE
def test_publish_subscribe_gives_everybody_all_or_says_what_is_missing(failure: str) -> None:
    output = run_pattern("publish_subscribe.py", *failure.split())
    reports = {
        name: (int(received), int(missing), [int(count) for count in told.split(",") if count])
        for name, received, missing, told in find_all(
            r"^(\w+) \(\S+\): (\d+) ticks; (\d+) missing, told \[(.*)\]$", output
        )
    }
    expected = {"archive": (3 * TICKS, 0, []), "jeweller": (2 * TICKS, 0, []), "ticker": (TICKS, 0, [])}
    if failure:
        received, missing, told = reports.pop("slow")
        assert missing == sum(told) > 0
        assert received + missing == TICKS
    assert reports == expected


@pytest.mark.guarantee("G1", "G6")
@FAILURE
def test_last_value_cache_has_all_values_for_whoever_comes(failure: str) -> None:
    output = run_pattern("last_value_cache.py", *failure.split())
    found = find_all(r"^(\w+): all settings are 100, the first it saw were \[(.*)\]", output)
    first = {row[0]: row[1] for row in found}
    assert first.keys() == {"early", "late"}
    assert first["late"] == "100, 100, 100, 100"
    ((redelivered,),) = find_all(r"^400 accepted = 400 processed \+ 0 dead \+ 0 pending; (\d+) redelivered", output)
    assert (int(redelivered) > 0) is bool(failure)
    assert ("the keeper dies with settings.shop.theme = 50 stored" in output) is bool(failure)


@pytest.mark.guarantee("G1", "G2", "G3", "G7")
@FAILURE
def test_consumer_groups_each_handle_all_although_a_member_is_killed(failure: str) -> None:
    output = run_pattern("consumer_group.py", *failure.split())
    assert find_all(r"^(\w+) handled (\d+) orders", output) == [("billing", "200"), ("shipping", "150")]
    ((twice, disorders),) = find_all(r"^(\d+) handled twice, (\d+) out of a customer's order", output)
    assert disorders == "0"
    books = {
        queue: (int(accepted), int(processed), int(dead), int(redelivered))
        for queue, accepted, processed, dead, redelivered in find_all(
            r"^group:(\S+) (\d+) accepted = (\d+) processed \+ (\d+) dead \+ 0 pending; (\d+) redelivered", output
        )
    }
    assert books["shipping@orders.eu"] == (150, 150, 0, 0)
    assert books["billing@orders.**"][:3] == (200, 200, 0)
    if failure:
        assert "killing billing-1 before it can ack" in output
        assert int(twice) >= 1  # its result had arrived, its ack had not
        assert books["billing@orders.**"][3] >= 1
    else:
        assert (twice, books["billing@orders.**"][3]) == ("0", 0)


@pytest.mark.guarantee("G6")
@FAILURE
def test_presence_tells_who_is_there_and_who_is_gone(failure: str) -> None:
    output = run_pattern("presence.py", *failure.split())
    told = find_all(r"^presence\.(\w+) is (\w+)( \(its last will\))?$", output)
    assert {(name, state) for name, state, _ in told[:3]} == {("ada", "idle"), ("grace", "idle"), ("edsger", "idle")}
    gone = [("grace", "gone", " (its last will)")] if failure else []
    assert told[3:] == [("ada", "busy", None), *gone, ("edsger", "left", None)]
    ((late,),) = find_all(r"^a late watcher sees (.*)$", output)
    assert "'presence.ada': 'busy'" in late
    assert ("presence.grace" in late) is not bool(failure)


@pytest.mark.skipif(sys.platform == "win32", reason="no process can be frozen there")
@pytest.mark.guarantee("G6")
async def test_who_was_only_frozen_is_there_again() -> None:
    mesh = f"presence-frozen-{os.getpid()}"
    member = subprocess.Popen([sys.executable, str(PATTERNS / "presence.py"), "member", mesh, "ada"])
    try:
        async with Node("watcher", mesh=mesh, suspect_after=0.75, gone_after=1.0) as node:
            states = node.sub("presence.ada", replay="latest")

            async def see(state: str) -> None:
                while (await states.get(timeout=DEADLINE_S)).body != state:
                    pass

            await see("idle")
            member.send_signal(signal.SIGSTOP)
            await see("gone")
            member.send_signal(signal.SIGCONT)
            await see("idle")
    finally:
        member.kill()
        member.wait()


@pytest.mark.guarantee("G6")
@FAILURE
def test_event_log_replay_builds_the_same_state_everywhere(failure: str) -> None:
    output = run_pattern("event_log_replay.py", *failure.split())
    states = {name: state for name, state, _ in find_all(r"^(\w+): (\{.*\}); (\d+) events came again", output)}
    cents = [sum(number % 100 - 30 for number in range(3000) if number % 4 == account) for account in range(4)]
    expected = str(dict(zip("abcd", cents, strict=True)))
    assert states == {"first": expected, "second": expected, "late": expected}
    again = {name: int(count) for name, _, count in find_all(r"^(\w+): (\{.*\}); (\d+) events came again", output)}
    if failure:
        assert "first dies after 1000 events" in output
        assert "the log dies with event 1500 written and not published" in output
        # It saw the log's first life, and the beginning of the second.
        assert 1000 <= again["second"] <= 1500
    else:
        assert set(again.values()) == {0}
