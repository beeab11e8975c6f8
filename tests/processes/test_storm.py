"""Everything at once: consumers are killed, frozen, thawed and sent away, and producers frozen, in a seeded order."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.processes.books import check_outcomes
from tests.processes.crew import Crew, Member

STEPS = 8
LOAD: dict[str, Any] = {"count": 1500, "seconds": 0.004, "pause": 0.005}  # of each producer


class Storm:
    """What happens to the members of a crew, drawn by chance."""

    def __init__(self, crew: Crew, seed: int) -> None:
        self.crew = crew
        self.chance = random.Random(seed)
        push = {"retry": {"backoff": 0.02, "max_backoff": 0.2}}
        self.producers = [crew.producer(f"producer-{index}", push=push) for index in range(2)]
        self.consumers = [self.start_consumer() for _ in range(3)]
        self.frozen: list[Member] = []
        self.done: list[str] = []

    def start_consumer(self) -> Member:
        """One more, under a name of its own."""
        return self.crew.consumer(f"consumer-{len(self.crew.members)}", pull={"concurrency": 4, "prefetch": 64})

    def blow(self) -> None:
        """Does something to somebody."""
        deed = self.chance.choice([self.kill, self.freeze, self.dismiss, self.thaw, self.freeze_producer])
        self.done.append(deed.__name__)
        deed()

    def kill(self) -> None:
        self.take_consumer().kill()
        self.consumers.append(self.start_consumer())

    def freeze(self) -> None:
        member = self.take_consumer()
        member.freeze()
        self.frozen.append(member)
        self.consumers.append(self.start_consumer())

    def dismiss(self) -> None:
        self.take_consumer().tell("close", drain=self.chance.choice([0, 0.05, 5]))
        self.consumers.append(self.start_consumer())

    def freeze_producer(self) -> None:
        if self.running_producers() == self.producers:
            member = self.chance.choice(self.producers)
            member.freeze()
            self.frozen.append(member)

    def thaw(self) -> None:
        if self.chance.random() < 0.5:
            self.wait_until_given_up()
        for member in self.frozen:
            member.thaw()
            if member not in self.producers:
                self.consumers.append(member)
        self.frozen.clear()

    def wait_until_given_up(self) -> None:
        """Until the producers that run have noticed which of the consumers they know stands still."""
        for producer in self.running_producers():
            for member in self.frozen:
                if producer.events("peer.up", peer=member.name):
                    producer.event("peer.down", peer=member.name)

    def wait_for_work(self, loads: dict[Member, int]) -> None:
        """Until some more of it is done, or all of it that can be."""
        journal = self.crew.journal
        goal = len(journal.entries) + self.chance.randrange(100, 400)
        self.crew.until(
            lambda: len(journal.entries) >= goal or all(p.answered(loads[p]) for p in self.running_producers()),
            f"line {goal} of the journal, or the end of all work",
        )

    def running_producers(self) -> list[Member]:
        """Those that are not frozen."""
        return [producer for producer in self.producers if producer not in self.frozen]

    def take_consumer(self) -> Member:
        """One that runs, and has begun to."""
        member = self.consumers.pop(self.chance.randrange(len(self.consumers)))
        member.started()
        return member


@pytest.mark.guarantee("G1", "G2", "G4")
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_lost_in_a_storm(crew: Crew, seed: int) -> None:
    storm = Storm(crew, seed)
    loads = {producer: producer.tell("load", **LOAD) for producer in storm.producers}
    for _ in range(STEPS):
        storm.wait_for_work(loads)
        storm.blow()
    storm.wait_until_given_up()
    storm.thaw()
    accepted = {producer: producer.answer(load)["ids"] for producer, load in loads.items()}
    ledgers = [producer.ask("flush") for producer in storm.producers]
    check_outcomes(crew.journal, accepted)
    print(storm.done, ledgers)
