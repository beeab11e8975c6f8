"""Topics between fifty processes: each message to each of them, also while some are killed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.processes.crew import Crew, Member
from tests.processes.test_pub_sub import TOPIC, check, publisher

MANY = 50
# Each of them knows the one in the middle, and nobody else: a full mesh of fifty has links of no use here.
ALONE: dict[str, Any] = {"mdns": False}


def around(crew: Crew, middle: Member) -> list[Member]:
    """Fifty processes that start at once."""
    seeds = [middle.started()["endpoint"]]
    return [crew.start(f"number-{number}", seeds=seeds) for number in range(MANY)]


@pytest.mark.guarantee("G6")
def test_one_publisher_reaches_fifty_processes_though_some_are_killed(crew: Crew) -> None:
    crew.settings = ALONE
    out = publisher(crew, pub={"history": 10_000})
    hearers = around(crew, out)
    for hearer in hearers:
        hearer.tell("open_sub", pattern=TOPIC)
    out.ask("wait_for", sub=TOPIC, count=MANY)
    load = out.tell("publish_numbers", pattern=TOPIC, count=2000, pause=0.005)
    for hearer in hearers[:5]:
        hearer.ask("heard", pattern=TOPIC, count=1)
        hearer.kill()
    assert out.answered(load) is None, "they were killed while it published"
    out.answer(load)
    asked = {hearer: hearer.tell("heard", pattern=TOPIC, count=2000) for hearer in hearers[5:]}
    for hearer, number in asked.items():
        assert check(hearer.answer(number), out.started()["id"], "publisher", 2000) == 0


@pytest.mark.guarantee("G6")
def test_one_process_hears_fifty_publishers_though_some_are_killed(crew: Crew) -> None:
    crew.settings = ALONE
    hearer = crew.start("hearer")
    hearer.ask("open_sub", pattern=TOPIC)
    publishers = around(crew, hearer)
    for each in publishers:
        each.tell("open_pub", pattern=TOPIC, history=10_000)
    ready = {each: each.tell("wait_for", sub=TOPIC) for each in publishers}
    for each, number in ready.items():
        each.answer(number)
    loads = {each: each.tell("publish_numbers", pattern=TOPIC, count=100, pause=0.05) for each in publishers}
    hearer.ask("heard", pattern=TOPIC, count=1)
    for each in publishers[:5]:
        each.kill()
        assert each.answered(loads[each]) is None, "it was killed while it published"
    heard = hearer.ask("heard", pattern=TOPIC, count=100 * (MANY - 5))
    for each in publishers[5:]:
        while not any(key == each.started()["id"][:12] and runs[-1][1] == 100 for key, _, runs in heard["runs"]):
            heard = hearer.ask("heard", pattern=TOPIC)
        assert check(heard, each.started()["id"], each.name, 100) == 0
