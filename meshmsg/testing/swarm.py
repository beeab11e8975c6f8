"""One seed, one run: a random cluster, random work, and the faults that this seed drew (swarm testing).

Each seed switches on some kinds of faults and leaves the others out, so that no kind hides another (Groce et al.,
"Swarm Testing", 2012). When the faults end, everything heals, and all that was accepted must find its end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from meshmsg.checks import GROUP_PREFIX
from meshmsg.errors import OutboxFull, Reject
from meshmsg.message import DeadLetter, Message
from meshmsg.options import LivenessOptions, Retry
from meshmsg.testing.books import GuaranteeBroken
from meshmsg.testing.cluster import Cluster
from meshmsg.testing.garbage import Garbage
from meshmsg.testing.group_swarm import GroupSwarm
from meshmsg.testing.network import SimulatedLink
from meshmsg.testing.nodes import ClusterNode
from meshmsg.testing.request_swarm import RequestSwarm
from meshmsg.testing.topic_swarm import TopicSwarm
from meshmsg.wire import frames

WORK_S = 6.0  # work is sent and faults happen in this time
NOTICE_S = 8.0  # and every death is noticed by everybody, whatever it interrupted
SETTLE_S = 200.0  # after the heal, everything must have its end within this time
TOPICS_EVERY = 3  # every third seed publishes and subscribes, too
GROUPS_EVERY = 6  # and every other one of these has groups
REQUESTS_EVERY = 6  # and the one after every other of these requests and serves
CLOSING_EVERY = 4  # every fourth seed closes queues that it sends to, and opens them again
FULL_EVERY = 5  # every fifth seed sends, a little at a time, more than its outboxes hold and consumers take
MAX_STEPS = 100_000  # more than ten times what a run takes: something goes round in circles
FAULTS = tuple(
    "crash freeze stall disconnect partition one_way delay lost_acks duplicates crowding slow failing poison jump "
    "leave close_pull port_reuse same_name stale_discovery garbage redrive".split()
)
# With these alone, nothing but a start that failed costs an attempt.
HARMLESS = set("jump delay slow failing duplicates leave close_pull redrive same_name stale_discovery".split())
# With these alone, what dies of its attempts was poison.
BESIDE_POISON = set("poison jump slow duplicates same_name stale_discovery".split())
# These hold frames up on their way, for as long as they last.
HOLDING = set("freeze stall partition one_way".split())


class Swarm:
    """What one seed drew. ``run`` lets it happen, and raises ``GuaranteeBroken`` if a promise does not hold."""

    def __init__(self, seed: int, *, faults: set[str] | None = None, traces: bool = False) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        chance = self.chance
        # Some seeds draw from a set of faults that promises more, so that there are enough of them.
        choices = chance.choice((FAULTS, FAULTS, FAULTS, sorted(HARMLESS), sorted(BESIDE_POISON)))
        share = chance.choice((0.1, 0.25, 0.5))
        drawn = {fault for fault in choices if chance.random() < share}
        self.faults = drawn if faults is None else faults
        latency = (0.005, 0.25) if "delay" in self.faults else chance.choice(((0.0002, 0.002), (0.001, 0.02)))
        self.cluster = Cluster(
            seed,
            network={
                "latency": latency,
                "jitter": latency[1] * chance.random(),
                "duplicates": 0.1 if "duplicates" in self.faults else 0.0,
                "crowding": 0.03 if "crowding" in self.faults else 0.0,
            },
            liveness=LivenessOptions(stall_after=chance.choice((4.0, 30.0))),
            traces=traces,
        )
        self.cluster.clock.max_steps = MAX_STEPS
        # On a slow network the news of a leave may be overtaken by that of its connections.
        self.cluster.books.strict_attempts = self.faults <= HARMLESS and not {"delay", "leave"} <= self.faults
        if not self.faults & HOLDING:
            self.cluster.books.travel_s = 3 * latency[1] + 0.1
        self.cluster.books.only_nodes_speak = "garbage" not in self.faults
        self.garbage = Garbage(self.cluster, chance)
        self.queues = [f"q{number}" for number in range(chance.randint(1, 3))]
        self.producers: list[ClusterNode] = []
        self.consumers: list[ClusterNode] = []
        self.healthy = False  # set at the heal: from then on nobody makes trouble, but poison and what always fails
        self.acks_to_lose = 4 if "lost_acks" in self.faults else 0
        self.serial = 0
        if self.faults & {"garbage", "lost_acks"}:
            self.cluster.network.on_frame = self._on_frame
        self.full = seed % FULL_EVERY == 2
        # A redriven letter may open a queue that was forgotten, and the books take that for another one.
        closes = seed % CLOSING_EVERY == 1 and "redrive" not in self.faults
        self.closing = random.Random(f"{seed} closing") if closes else None
        self.groups: GroupSwarm | None = None
        if seed % GROUPS_EVERY == 0:
            all_well = self.faults <= BESIDE_POISON
            self.groups = GroupSwarm(seed, self.cluster, self.faults, self._handle, all_well=all_well)
        self.topics: TopicSwarm | None = None
        if seed % TOPICS_EVERY == 0:
            self.topics = TopicSwarm(seed, self.cluster, self.faults, self.groups)
        self.requests = None
        if seed % REQUESTS_EVERY == 1:
            self.requests = RequestSwarm(seed, self.cluster, self.faults, self._kill)

    # -- the cast --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Everything, from the first node to the last check."""
        self._cast()
        self._plan_work()
        self._plan_faults()
        if self.topics is not None:
            self.topics.cast([*self.producers, *self.consumers], WORK_S)
        if self.requests is not None:
            self.requests.cast([*self.producers, *self.consumers], WORK_S)
        self.cluster.run(WORK_S)
        self._heal()
        self.cluster.run(0.1)  # what was held up is sent now
        self.cluster.settle(SETTLE_S)
        if self.topics is not None:
            self.topics.check_rest()
        if self.requests is not None:
            self.requests.check_rest()
        self._check_rest()

    def _cast(self) -> None:
        chance = self.chance
        self.push_options = options = {queue: self._push_options() for queue in self.queues}
        for number in range(chance.randint(1, 2)):
            node = self.cluster.node(f"p{number}")
            self.producers.append(node)
            for queue in self.queues:
                node.push(queue, **options[queue])
        for number in range(chance.randint(1, 3)):
            self._add_consumer(f"c{number}")
        if chance.random() < 0.15:  # a node that sends to itself, too
            self._consume(self.producers[0])

    def _push_options(self) -> dict[str, Any]:
        chance = self.chance
        attempts, backoff = chance.choice((1, 3, 5, 5)), chance.choice((0.02, 0.2))
        options: dict[str, Any] = {
            "retry": Retry(attempts, backoff, max_backoff=1.0, jitter=chance.choice(("full", "none"))),
            "balance": chance.choice(("least_outstanding", "least_outstanding", "round_robin", "random")),
            "max_pending": chance.choice((5, 40, 10_000, 10_000)),
            "overflow": chance.choice(("wait", "wait", "drop_oldest")),
        }
        if "poison" in self.faults:
            options["retry"] = Retry(5, backoff, max_backoff=1.0)
        if chance.random() < 0.1:
            options["ttl"] = chance.uniform(0.5, 3.0)
        if chance.random() < 0.1:
            options["unroutable_after"] = chance.uniform(0.5, 3.0)
        if chance.random() < 0.15:
            options["dead_letter_to"] = "graveyard"
        if self.full and chance.random() < 0.8:
            options |= {"max_pending": chance.choice((2, 3, 8)), "overflow": "drop_oldest"}
        return options

    def _add_consumer(self, name: str, endpoint: str | None = None) -> ClusterNode:
        node = self.cluster.node(name, endpoint=endpoint)
        self.consumers.append(node)
        self._consume(node)
        return node

    def _consume(self, node: ClusterNode) -> None:
        for queue in (*self.queues, "graveyard"):
            if queue not in node.pulls and self.chance.random() < 0.8:
                self._open_pull(node, queue)

    def _open_pull(self, node: ClusterNode, queue: str) -> None:
        chance = self.chance
        if queue.startswith(GROUP_PREFIX):
            assert self.groups is not None
            self.groups.join(node, queue)
            return
        fails = "failing" in self.faults and chance.random() < 0.3
        pace = chance.choice((0.0, 0.0, 0.002, 0.02))
        if "slow" in self.faults:
            pace = chance.choice((0.0, 0.05, 0.3))
        if self.full:
            pace = chance.choice((0.02, 0.1, 0.5))

        def handle(message: Message) -> None:
            self._handle(node, message, fails=fails and not self.healthy)

        def takes() -> float:
            return (0.01 if self.healthy else 1.0) * pace * 2 * chance.random()

        batch = chance.choice((None, None, None, 7)) if "poison" not in self.faults else None
        node.pull(
            queue,
            self._handle_batch if batch else handle,
            prefetch=chance.choice((1, 2, 5, 30, 256)),
            concurrency=chance.choice((1, 1, 3)),
            takes=takes,
            batch=batch,
        )

    def _handle_batch(self, batch: Any) -> None:
        for message in batch:
            if message.body["kind"] == "bad":
                message.nack(error="bad")
            elif message.body["kind"] == "reject":
                message.reject("no use")

    def _handle(self, node: ClusterNode, message: Message, *, fails: bool) -> None:
        kind = message.body["kind"]
        if kind == "poison":
            self._kill(node, restart_within=1.0)
        elif kind == "reject":
            raise Reject("no use")
        elif kind == "bad" or fails or (kind == "flaky" and self.chance.random() < 0.4):
            message.nack(self.chance.choice((None, None, 0.0, 0.1)), kind)

    # -- work ------------------------------------------------------------------------------------------------

    def _plan_work(self) -> None:
        chance = self.chance
        total = chance.choice((20, 80, 250))
        if self.requests is not None or self.groups is not None:
            total //= 6
        self.extras = chance.choice((0.0, 0.2, 0.9))  # share of messages that are more than a body
        poisons = chance.randint(1, 2) if "poison" in self.faults else 0
        while total > 0 or poisons:
            burst = min(total, chance.choice((1, 1, 3) if self.full else (1, 3, 20, 100)))
            kinds = [chance.choice(("ok",) * 20 + ("bad", "reject", "flaky", "flaky")) for _ in range(burst)]
            if self.faults <= BESIDE_POISON:
                kinds = ["ok"] * burst
            if poisons:
                kinds.insert(chance.randint(0, burst), "poison")
                poisons -= 1
            total -= burst
            node = chance.choice(self.producers)
            queue = chance.choice(self.queues)
            self._at(chance.uniform(0.0, WORK_S * 0.8), partial(self._send_burst, node, queue, kinds))

        if self.closing is not None and not any("dead_letter_to" in each for each in self.push_options.values()):
            for _ in range(self.closing.choice((1, 4, 12))):
                self._at(self.closing.uniform(0.1, WORK_S), self._close_push)

    def _close_push(self) -> None:
        assert self.closing is not None
        node, queue = self.closing.choice(self.producers), self.closing.choice(self.queues)
        pause_s = self.closing.choice((0.0, 0.01, 0.3))

        def close() -> None:
            if node.alive and not node.leaving and queue in node.pushes:
                node.say(f"close push {queue}")
                del node.pushes[queue]
                node.engine.close_push(queue)
                node.driver.wake()
                self._at(self.cluster.now + pause_s, lambda: node.loop.call_soon(reopen))

        def reopen() -> None:
            if node.alive and not node.leaving and queue not in node.pushes and queue in node.engine.outboxes:
                node.say(f"open push {queue}")
                node.push(queue, **self.push_options[queue])

        if node.alive:
            node.loop.call_soon(close)

    def _send_burst(self, node: ClusterNode, queue: str, kinds: list[str]) -> None:
        if node.alive and not node.leaving:
            node.loop.call_soon(lambda: self._send_now(node, queue, kinds))

    def _send_now(self, node: ClusterNode, queue: str, kinds: list[str]) -> None:
        chance = self.chance
        if node.leaving or queue not in node.pushes:
            return
        for kind in kinds:
            self.serial += 1
            options: dict[str, Any] = {}
            if chance.random() < self.extras:
                options = {
                    "key": chance.choice((None, "x", "x", "y")),
                    "priority": chance.choice((0, 0, 0, 1, 5)),
                    "ttl": chance.choice((None, None, None, chance.uniform(0.0, 3.0))),
                    "delay": chance.choice((None, None, None, chance.uniform(0.0, 2.0))),
                    "headers": chance.choice((None, None, {"trace": "1"})),
                }
            try:
                node.pushes[queue].send({"n": self.serial, "kind": kind}, **options)
            except OutboxFull:
                return

    # -- faults ----------------------------------------------------------------------------------------------

    def _at(self, when: float, action: Callable[[], Any]) -> None:
        self.cluster.clock.call_at(when, action)

    def _plan_faults(self) -> None:
        timed = sorted(self.faults - {"delay", "lost_acks", "duplicates", "crowding", "slow", "failing", "poison"})
        for fault in timed:
            action = getattr(self, f"_fault_{fault}")
            for _ in range(self.chance.choice((1, 2, 4))):
                self._at(self.chance.uniform(0.1, WORK_S), action)

    def _pick(self) -> ClusterNode | None:
        nodes = [node for node in self.cluster.nodes if node.alive and not node.leaving]
        return self.chance.choice(nodes) if nodes else None

    def _pick_two(self) -> tuple[ClusterNode, ClusterNode] | None:
        nodes = [node for node in self.cluster.nodes if node.alive]
        if len(nodes) < 2:
            return None
        one, other = self.chance.sample(nodes, 2)
        return one, other

    def _kill(self, node: ClusterNode, restart_within: float) -> None:
        self.cluster.crash(node)
        restart = self._restart if self.healthy else self._restart_unless_healthy
        self._at(self.cluster.now + self.chance.uniform(0.02, restart_within), partial(restart, node))

    def _restart_unless_healthy(self, node: ClusterNode) -> None:
        if not self.healthy:  # at the heal everybody who should be there is started
            self._restart(node)

    def _restart(self, node: ClusterNode) -> None:
        if not node.alive:
            self.cluster.restart(node, same_id=self.chance.random() < 0.5)

    def _fault_crash(self) -> None:
        node = self._pick()
        if node is not None:
            self._kill(node, restart_within=4.0)

    def _fault_freeze(self) -> None:
        node = self._pick()
        if node is not None:
            self.cluster.freeze(node)
            self._at(self.cluster.now + self.chance.uniform(0.1, 5.0), lambda: self.cluster.thaw(node))

    def _fault_stall(self) -> None:
        node = self._pick()
        if node is not None:
            self.cluster.stall(node, self.chance.uniform(0.1, 6.0))

    def _fault_disconnect(self) -> None:
        pair = self._pick_two()
        if pair is not None:
            self.cluster.disconnect(*pair)

    def _cut(self, *, one_way: bool) -> None:
        pair = self._pick_two()
        if pair is not None:
            one, other = pair
            self.cluster.cut(one, other, one_way=one_way)
            end = self.cluster.now + self.chance.uniform(0.1, 4.0)
            self._at(end, lambda: self.cluster.network.heal(one.host, other.host))

    def _fault_partition(self) -> None:
        self._cut(one_way=False)

    def _fault_one_way(self) -> None:
        self._cut(one_way=True)

    def _fault_jump(self) -> None:
        node = self._pick()
        if node is not None:
            self.cluster.jump(node, self.chance.choice((0.1, 1.0, 3.0, 60.0)) * self.chance.random())

    def _fault_leave(self) -> None:
        node = self._pick()
        if node is not None:
            drain = self.chance.choice((0.0, 1.0, 5.0))
            self.cluster.leave(node, drain)
            self._at(self.cluster.now + drain + 1.0, partial(self._require_gone, node, node.life))
            self.cluster.forget(node.engine.identity.node_id)
            self._at(self.cluster.now + self.chance.uniform(0.5, 8.0), partial(self._restart_unless_healthy, node))

    def _require_gone(self, node: ClusterNode, life: int) -> None:
        if node.alive and node.life == life and not self.faults & {"freeze", "stall"}:
            raise GuaranteeBroken("G10", f"{node.name} has not left in the time it was given and a second")

    def _fault_close_pull(self) -> None:
        node = self._pick()
        if node is None or not node.pulls:
            return
        queue = self.chance.choice(sorted(node.pulls))
        reopens_after = self.chance.choice((None, 0.0, 0.0, 0.001, 0.1, 1.0))
        if "disconnect" in self.faults and self.chance.random() < 0.5:
            # Then a producer may see neither the closing nor the opening, but only what was offered before and after.
            for producer in self.producers:
                self.cluster.disconnect(node, producer)
            wait = self.cluster.network.latency[0] + 0.004
            self._at(self.cluster.now + wait, partial(self._close_pull, node, queue, reopens_after))
        else:
            self._close_pull(node, queue, reopens_after)

    def _close_pull(self, node: ClusterNode, queue: str, reopens_after: float | None) -> None:
        if node.alive and not node.leaving and queue in node.pulls:
            node.pulls[queue].close()
            if reopens_after is not None:
                self._at(self.cluster.now + reopens_after, partial(self._reopen_pull, node, queue))

    def _reopen_pull(self, node: ClusterNode, queue: str) -> None:
        if node.alive and not node.leaving and queue not in node.pulls:
            self._open_pull(node, queue)

    def _fault_port_reuse(self) -> None:
        node = self._pick()
        if node is not None:
            endpoint = node.endpoint
            self._kill(node, restart_within=4.0)
            self._add_consumer(f"squatter{len(self.consumers)}", endpoint)

    def _fault_same_name(self) -> None:
        if len(self.consumers) < 6:
            self._add_consumer(self.chance.choice(self.consumers).name)

    def _fault_stale_discovery(self) -> None:
        node, other = self.chance.choice(self.cluster.nodes), self._pick()
        if other is not None and other is not node:
            self.cluster.discover(node, node.engine.identity.node_id, other)

    def _fault_garbage(self) -> None:
        node = self._pick()
        if node is not None:
            self.garbage.throw_at(node)

    def _fault_redrive(self) -> None:
        node = self._pick()
        if node is not None:
            node.loop.call_soon(lambda: node.redrive() if node.alive and not node.leaving else None)

    def _on_frame(self, link: SimulatedLink, parts: list[bytes]) -> None:
        self.garbage.see(parts)
        if self.acks_to_lose and parts[0][1] == frames.ACK and self.chance.random() < 0.1:
            self.acks_to_lose -= 1
            self.cluster.clock.call_soon(lambda: self.cluster.network.reset(link))

    # -- the end ---------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        cluster = self.cluster
        self.healthy = True
        self.acks_to_lose = 0
        cluster.network.duplicates = cluster.network.crowding = 0.0
        cluster.heal()
        if self.topics is not None:
            self.topics.heal()
        if self.requests is not None:
            self.requests.heal()
        for node in cluster.nodes:
            if not node.alive and node in self.consumers:
                self._restart(node)
        for queue in (*self.queues, "graveyard"):
            if not any(node.alive and not node.leaving and queue in node.pulls for node in self.consumers):
                node = cluster.node(f"nurse{len(cluster.nodes)}")
                self.consumers.append(node)
                node.pull(queue, partial(self._handle, node, fails=False))
        for node in cluster.nodes:
            for other in cluster.nodes:
                if node.alive and other.alive and node is not other:
                    cluster.discover(node, node.engine.identity.node_id, other)

    def _check_rest(self) -> None:
        cluster = self.cluster
        cluster.run(3.0)
        alive = [node for node in cluster.nodes if node.alive]
        if not cluster.run_until(lambda: not self._orphans(), NOTICE_S):
            raise GuaranteeBroken("lanes", f"dead producers still hold credit: {self._orphans()}")
        before = cluster.network.frames
        cluster.run(2.0)
        spoken = cluster.network.frames - before
        # A heartbeat every half second to every other node, and as much again for lanes that compare notes.
        if spoken > 12 * len(alive) * len(alive) + 50:
            raise GuaranteeBroken("livelock", f"{spoken} frames in 2 s between {len(alive)} nodes at rest")
        for node in alive:
            for pull in node.pulls.values():
                if pull.unsettled or pull.inbox.waiting:
                    raise GuaranteeBroken("G1", f"{node.name} still holds {pull.unsettled} messages of {pull.queue}")
            self._check_lanes(node)
            if self.faults <= BESIDE_POISON:
                self._check_innocents(node)

    def _orphans(self) -> list[tuple[str, str, int]]:
        """Lanes that consumers hold for producers which are dead: what they hold of the prefetch nobody can use."""
        living = {node.key for node in self.cluster.nodes if node.alive}
        return [
            (node.name, peer, number)
            for node in self.cluster.nodes
            if node.alive
            for inbox in node.engine.inboxes.values()
            for peer, number in inbox.lanes
            if peer not in living
        ]

    def _check_lanes(self, node: ClusterNode) -> None:
        """At rest both ends of a lane agree, and neither keeps what the other needs no more."""
        outboxes = {
            (other.key, queue): outbox
            for other in self.cluster.nodes
            if other.alive
            for queue, outbox in other.engine.outboxes.items()
        }
        for inbox in node.engine.inboxes.values():
            for (peer, number), lane in inbox.lanes.items():
                outbox = outboxes.get((peer, inbox.queue))
                if outbox is None or number not in outbox.lanes:
                    raise GuaranteeBroken("lanes", f"{node.name} holds lane {number} of {inbox.queue}, {peer} does not")
                if lane.verdicts:
                    raise GuaranteeBroken("lanes", f"{node.name} still tells {peer} {lane.verdicts} of {inbox.queue}")
                theirs = outbox.lanes[number]
                if (theirs.next_seq, theirs.returns) != (lane.received, lane.returns):
                    raise GuaranteeBroken("lanes", f"{node.name} and {peer} disagree on lane {number}: {lane.state()}")

    def _check_innocents(self, node: ClusterNode) -> None:
        for letter in node.letters:
            if _died_of_losses(letter) and letter.body["kind"] != "poison":
                raise GuaranteeBroken("G4", f"{letter.id} died beside a poison message: {letter}")


def _died_of_losses(letter: DeadLetter) -> bool:
    return letter.reason == "attempts"
