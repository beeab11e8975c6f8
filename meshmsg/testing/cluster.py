"""A mesh of simulated nodes in one process and in virtual time, with faults on demand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

from meshmsg.checks import require_name
from meshmsg.errors import ConfigurationError
from meshmsg.options import LivenessOptions
from meshmsg.testing.books import Books, GuaranteeBroken
from meshmsg.testing.clock import VirtualClock
from meshmsg.testing.network import Network
from meshmsg.testing.nodes import ClusterNode

GOODBYE_S = 0.3  # what peers get to take back what is on its way to a leaving consumer, and to answer its goodbye
LEAVE_POLL_S = 0.05
# Every machine recounts itself after so many steps; applications are checked at every one.
AUDIT_EVERY = 40


class Cluster:
    """Nodes, queues and handlers that run at once and behave the same every time, faults included.

    It is the real engine under the real driver; only sockets, clock and discovery are simulated. While it runs, it
    holds what it sees against the guarantees G1 to G8, and raises ``GuaranteeBroken`` where one fails.

    Parameters
    ----------
    seed:
        Everything left to chance comes from it: the same seed is the same run.
    network:
        Options of ``Network`` by name: ``latency``, ``jitter``, ``duplicates``, ``crowding``.
    liveness:
        Heartbeats and patience, as of ``Node``.
    discovery:
        Bounds in seconds of how long it takes until two nodes find each other.
    traces:
        Whether ``log`` is kept.

    Examples
    --------
    A consumer dies with a message in its hands, and another one gets it:

    >>> cluster = Cluster(seed=1)
    >>> a = cluster.node("a")
    >>> b = cluster.node("b")
    >>> jobs = a.push("jobs")
    >>> broken = b.pull("jobs", lambda message: cluster.crash(b))
    >>> message_id = jobs.send({"path": "a.jpg"})
    >>> cluster.run(1.0)
    >>> jobs.ledger().processed
    0
    >>> healthy = cluster.node("c").pull("jobs")
    >>> cluster.run(1.0)
    >>> jobs.ledger().processed, healthy.processed
    (1, [{'path': 'a.jpg'}])
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        network: dict[str, float | tuple[float, float]] | None = None,
        liveness: LivenessOptions | None = None,
        discovery: tuple[float, float] = (0.01, 0.1),
        traces: bool = True,
    ) -> None:
        self.generator = random.Random(seed)
        self.clock = VirtualClock()
        self.network = Network(self.clock, random.Random(self.generator.random()), **(network or {}))  # type: ignore[arg-type]  # its own options
        self.liveness = liveness or LivenessOptions()
        self.discovery = discovery
        self.traces = traces
        self.books = Books()
        self.nodes: list[ClusterNode] = []
        self._lines: list[tuple[float, str, str]] = []
        self._ports = itertools.count(1)
        self._incarnations = itertools.count(1)
        self._names: dict[str, int] = {}

    # -- nodes -----------------------------------------------------------------------------------------------

    def node(self, name: str, *, endpoint: str | None = None) -> ClusterNode:
        """Starts a node; others find it a moment later. ``endpoint`` may be that of a process that is dead."""
        require_name("node(name)", name)
        host = f"{name}~{len(self.nodes)}"  # of two nodes with one name, a cut hits the one that is meant
        node = ClusterNode(self, name, host, endpoint or f"tcp://node-{next(self._ports)}:1")
        self.nodes.append(node)
        self._boot(node, self._new_id(name))
        return node

    def restart(self, node: ClusterNode, *, same_id: bool = False, endpoint: str | None = None) -> None:
        """Starts a node again after its end, with the sockets it had and nothing in them.

        It has the name it had and a new id; with ``same_id`` the old id and a new incarnation, as a node with a
        store does.
        """
        if node.alive:
            raise ConfigurationError(f"node {node.name!r} runs; crash or leave comes before restart")
        node.endpoint = endpoint or f"tcp://node-{next(self._ports)}:1"
        self._boot(node, node.engine.identity.node_id if same_id else self._new_id(node.name))

    def _new_id(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}-{count}"

    def _boot(self, node: ClusterNode, node_id: str) -> None:
        self.say(node.name, f"starts as {node_id}")
        node.boot(node_id, next(self._incarnations), self.generator.getrandbits(32))
        for other in self.nodes:
            if other is not node and other.alive:
                self.discover(node, node_id, other)
                self.discover(other, other.engine.identity.node_id, node)

    def discover(self, found: ClusterNode, node_id: str, by: ClusterNode) -> None:
        """Discovery tells one node of another in a moment; that one may be gone by then."""
        endpoint, life = found.endpoint, by.life

        def tell() -> None:
            if by.alive and by.life == life:
                by.engine.handle_discovered(node_id, (endpoint,), by.loop.time())
                by.driver.wake()

        self.clock.call_later(self.generator.uniform(*self.discovery), tell)

    def forget(self, node_id: str) -> None:
        """Discovery loses sight of a node id everywhere."""
        for node in self.nodes:
            if node.alive:
                node.engine.handle_withdrawn(node_id)

    # -- time ------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Seconds since the cluster was made."""
        return self.clock.now

    def run(self, seconds: float) -> None:
        """Lets time pass, and checks the guarantees as it does."""
        self._run_until(None, seconds)

    def run_until(self, condition: Callable[[], bool], timeout: float = 60.0) -> bool:
        """Lets time pass until a condition holds; False when ``timeout`` seconds passed first."""
        return self._run_until(condition, timeout)

    def settle(self, timeout: float = 120.0) -> None:
        """Lets time pass until nothing is pending anywhere. Raises ``GuaranteeBroken`` if that takes too long (G1)."""
        if not self._run_until(self._is_settled, timeout):
            raise GuaranteeBroken("G1", f"after {timeout:g} s still pending: {self.pending()}")

    def pending(self) -> dict[str, int]:
        """How many messages wait for their end, by ``node/queue``; those that have any."""
        return {
            f"{node.name}/{queue}": outbox.pending
            for node in self.nodes
            if node.alive
            for queue, outbox in node.engine.outboxes.items()
            if outbox.pending
        }

    def _is_settled(self) -> bool:
        """Whether nothing is pending; asked after every step, so it looks no further than the first that is."""
        for node in self.nodes:
            if node.alive:
                for outbox in node.engine.outboxes.values():
                    if outbox.pending:
                        return False
        return True

    def _run_until(self, condition: Callable[[], bool] | None, seconds: float) -> bool:
        end = self.clock.now + seconds
        audit_every = max(AUDIT_EVERY, len(self.nodes) ** 2 // 2)  # it grows with the square of a large mesh
        next_audit = self.clock.steps + audit_every
        while condition is None or not condition():
            if not self.clock.step(end, audit_every if condition is None else 1):
                self.clock.run_until(end)
                self.audit()
                return condition is not None and condition()
            if self.clock.steps >= next_audit:
                self.audit()
                next_audit = self.clock.steps + audit_every
        self.audit()
        return True

    def audit(self) -> None:
        """Every node recounts itself, and its books are compared with those of the applications."""
        for node in self.nodes:
            if node.alive and (node.driver.scheduled or node.audited != node.loop.turns):  # else nothing has changed
                node.audited = node.loop.turns
                try:
                    node.engine.check()
                except AssertionError as error:
                    raise GuaranteeBroken("check", f"{node.name}: {error}") from error
                if not node.driver.scheduled:  # else it has news that its application does not know yet
                    self.books.audit(node)
        self.books.requests.audit(self.clock.now, self.liveness.heartbeat)

    # -- faults ----------------------------------------------------------------------------------------------

    def crash(self, node: ClusterNode) -> None:
        """Its process dies at once, as by SIGKILL."""
        if node.alive:
            self.say(node.name, "crashes")
            self.books.wills.on_crash(node, list(self.books.topics.views))
            self.network.crash(node.transport)
            node.end()

    def leave(self, node: ClusterNode, drain: float = 5.0) -> None:
        """It begins to close as ``Node.close(drain=)`` does; at the latest ``drain`` plus a second later it is gone."""
        if not node.alive or node.leaving:
            return
        self.say(node.name, "leaves")
        node.leaving = True
        pulls = list(node.pulls.values())
        specs = dict(node.pulls)
        for pull in pulls:
            pull.close()
        node.pulls = specs  # for a restart
        routers = dict(node.routers)
        for router in routers.values():
            router.close(drain)
            router.closed = False
        node.routers = routers

        def busy() -> bool:
            return any(pull.unsettled for pull in pulls) or any(router.running for router in routers.values())

        steps = self._leave(node, busy, node.loop.time() + drain)
        life = node.life

        def go_on() -> None:
            if node.life == life and node.alive and next(steps, None) is not None:
                node.loop.call_at(node.loop.time() + LEAVE_POLL_S, go_on)

        node.loop.call_soon(go_on)

    def _leave(self, node: ClusterNode, busy: Callable[[], bool], deadline: float) -> Iterator[bool]:
        """Yields while it waits: for its handlers, its own work, producers that take back theirs, and farewells."""
        loop = node.loop
        while busy() and loop.time() < deadline:
            yield True
        while any(outbox.pending for outbox in node.engine.outboxes.values()) and loop.time() < deadline:
            yield True
        node.engine.finish_publishing()
        node.driver.wake()
        while not node.engine.published and loop.time() < deadline:
            yield True
        patience = loop.time() + GOODBYE_S
        while node.engine.leaving and loop.time() < patience:
            yield True
        node.engine.close()
        node.driver.turn()
        node.driver.retire()
        while not node.engine.parted and loop.time() < patience:
            yield True
        self.books.requests.check_closed(node)
        self.books.wills.on_left(node)
        self.say(node.name, "is gone")
        self.network.close(node.transport, keep=1.0)
        node.end()

    def freeze(self, node: ClusterNode) -> None:
        """Its process stops, as by SIGSTOP: nothing in it runs, not even libzmq's heartbeats."""
        self.say(node.name, "freezes")
        self.network.freeze(node.transport)
        node.loop.hold("frozen")
        node.frozen_at = self.now

    def thaw(self, node: ClusterNode) -> None:
        """Its process goes on, as by SIGCONT."""
        if node.alive:
            self.say(node.name, "thaws")
            self.network.thaw(node.transport)
            node.loop.release("frozen")
            if self.now - node.frozen_at >= self.liveness.gone_after:
                self.books.on_thaw(node)

    def stall(self, node: ClusterNode, seconds: float) -> None:
        """Its loop is blocked for a while: the process lives and its links stay up, but it makes no progress."""
        self.say(node.name, f"stalls for {seconds:g} s")
        loop = node.loop
        reason = f"stalled until {self.clock.now + seconds}"
        loop.hold(reason)
        self.clock.call_later(seconds, lambda: loop.release(reason))

    def jump(self, node: ClusterNode, seconds: float) -> None:
        """Its clock leaps ahead."""
        self.say(node.name, f"its clock jumps by {seconds:g} s")
        node.loop.jump(seconds)

    def cut(self, one: ClusterNode, other: ClusterNode, *, one_way: bool = False) -> None:
        """Nothing passes between two nodes; with ``one_way``, nothing from the first to the second."""
        self.say(one.name, f"cut {'to' if one_way else 'from'} {other.name}")
        self.network.cut(one.host, other.host, one_way=one_way)

    def disconnect(self, one: ClusterNode, other: ClusterNode) -> None:
        """Resets the connection from one node to another; they may connect again at once."""
        self.say(one.name, f"connection to {other.name} is reset")
        self.network.disconnect(one.host, other.host)

    def heal(self) -> None:
        """Every cut is mended, every node that is frozen or stalls goes on. The dead stay dead."""
        self.say("network", "heals")
        self.network.heal()
        for node in self.nodes:
            if node.alive:
                if node.transport.frozen:
                    self.thaw(node)
                node.loop.release()

    # -- the log ---------------------------------------------------------------------------------------------

    @property
    def log(self) -> list[str]:
        """What happened, a line each: seconds, node, event."""
        return [f"{when:9.4f} {who}: {text}" for when, who, text in self._lines]

    def say(self, who: str, text: str) -> None:
        """Adds a line to the log."""
        if self.traces:
            self._lines.append((self.clock.now, who, text))
