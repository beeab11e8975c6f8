"""The part of a publishing seed whose messages are also work: groups, with members that come, leave and die."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from meshmsg.engine.binding import Binding, Where
from meshmsg.message import Message
from meshmsg.options import Retry

if TYPE_CHECKING:
    from meshmsg.testing.cluster import Cluster
    from meshmsg.testing.nodes import ClusterNode

PATTERNS = ("a", "a.*", "a.**", "**", "b.*.y")
CONDITIONS: tuple[Where, ...] = ((), (), (), (("express", True),), (("express", 1),), (("express", True), ("to", "x")))
KINDS = ("ok",) * 20 + ("bad", "reject", "flaky", "flaky")
GROUP_SHARE = 0.3  # of messages that have a key, a priority or headers, each


class GroupSwarm:
    """What one seed drew of groups. It has a generator of its own, so that topics do not depend on it."""

    def __init__(
        self, seed: int, cluster: Cluster, faults: set[str], handle: Callable[..., None], *, all_well: bool
    ) -> None:
        self.cluster = cluster
        self.faults = faults
        self.handle = handle
        self.all_well = all_well  # nothing fails but poison
        self.chance = chance = random.Random(f"groups of {seed}")
        self.healthy = False
        self.poisons = 1 if "poison" in faults else 0
        self.bindings: dict[str, Binding] = {}
        self.durable: dict[str, float] = {}  # by queue: the share of members that say so
        for _ in range(chance.choice((1, 2, 3))):
            binding = Binding(chance.choice("gh"), chance.choice(PATTERNS), chance.choice(CONDITIONS))
            self.bindings[binding.queue] = binding
            self.durable[binding.queue] = chance.choice((0.0, 0.0, 0.5, 1.0, 1.0))
        self.abandoned = {queue for queue in self.bindings if chance.random() < 0.5}  # nobody looks after them

    def draw_options(self) -> dict[str, Any]:
        """How one publisher keeps and tries what groups get."""
        chance = self.chance
        attempts = 5 if "poison" in self.faults else chance.choice((1, 3, 5))
        return {
            "retry": Retry(attempts, chance.choice((0.02, 0.2)), max_backoff=1.0),
            "max_pending": chance.choice((2, 20, 10_000, 10_000)),
            "dead_letter_to": "graveyard" if chance.random() < 0.15 else None,
        }

    def draw_message(self, serial: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """A body, and what else is said of it."""
        chance = self.chance
        kind = "ok" if self.all_well else chance.choice(KINDS)
        if self.poisons and not self.healthy and chance.random() < 0.1:
            self.poisons -= 1
            kind = "poison"
        extras: dict[str, Any] = {}
        if chance.random() < GROUP_SHARE:
            extras["key"] = chance.choice("xy")
        if chance.random() < GROUP_SHARE:
            extras["priority"] = chance.choice((1, 5))
        if chance.random() < 2 * GROUP_SHARE:
            express = chance.choice((True, True, False, 1, "yes"))
            extras["headers"] = {"express": express, "to": chance.choice("xy")}
        return {"n": serial, "kind": kind}, extras

    # -- members ---------------------------------------------------------------------------------------------

    def cast(self, nodes: list[ClusterNode], work_s: float) -> None:
        """Some nodes are members, some of them from the start; they close, and come back or not."""
        chance = self.chance
        for queue in self.bindings:
            for node in chance.sample(nodes, min(len(nodes), chance.choice((1, 2, 3)))):
                self._at(chance.choice((0.0, 0.0, chance.uniform(0.0, work_s))), partial(self.join, node, queue))
            for _ in range(chance.choice((0, 1, 3))):
                self._at(chance.uniform(0.1, work_s), partial(self._part, queue, chance.random() < 0.3))

    def _at(self, when: float, action: Callable[[], Any]) -> None:
        self.cluster.clock.call_at(when, action)

    def join(self, node: ClusterNode, queue: str) -> None:
        """A node becomes a member, if it is none."""
        if node.alive and not node.leaving:
            node.loop.call_soon(lambda: self._join_now(node, queue))

    def _join_now(self, node: ClusterNode, queue: str) -> None:
        if node.leaving or node.driver.closed or queue in node.pulls:
            return
        chance, binding = self.chance, self.bindings[queue]
        fails = "failing" in self.faults and chance.random() < 0.3
        pace_s = chance.choice((0.0, 0.0, 0.002, 0.02, 0.3 if "slow" in self.faults else 0.05))

        def handle(message: Message) -> None:
            self.handle(node, message, fails=fails and not self.healthy)

        node.group(
            binding.pattern,
            binding.group,
            handle,
            durable=chance.random() < self.durable[queue],
            where=dict(binding.where),
            prefetch=chance.choice((1, 2, 5, 30, 256)),
            concurrency=chance.choice((1, 1, 3)),
            takes=lambda: (0.01 if self.healthy else 1.0) * pace_s * 2 * chance.random(),
        )

    def _members(self, queue: str) -> list[ClusterNode]:
        nodes = self.cluster.nodes
        return [node for node in nodes if node.alive and not node.leaving and queue in node.pulls]

    def _part(self, queue: str, all_of_them: bool) -> None:
        """A member closes, or all do."""
        members = self._members(queue)
        for node in members if all_of_them else members[:1]:
            node.loop.call_soon(partial(self._part_now, node, queue))
            if self.chance.random() < 0.7:
                self._at(self.cluster.now + self.chance.choice((0.0, 0.001, 0.5, 2.0)), partial(self.join, node, queue))

    def _part_now(self, node: ClusterNode, queue: str) -> None:
        if queue in node.pulls and not self.healthy:  # its loop may have been blocked until the heal
            node.pulls[queue].close()

    def heal(self) -> None:
        """Whoever is a member from here on is well; most groups have one."""
        self.healthy = True
        lonely = [queue for queue in self.bindings if not self._members(queue)]
        lonely = [queue for queue in lonely if queue not in self.abandoned or self.durable[queue]]
        if lonely:
            living = [node for node in self.cluster.nodes if node.alive and not node.leaving]
            medic = self.chance.choice(living) if living else self.cluster.node("medic")
            for queue in lonely:
                self.join(medic, queue)
