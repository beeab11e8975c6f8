"""The part of a seed that requests and serves, beside the queues of the same nodes and under the same faults."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from meshmsg.errors import NoResponders, Overloaded, RemoteError, RequestError
from meshmsg.options import Retry
from meshmsg.testing.broken import GuaranteeBroken
from meshmsg.testing.request_books import find_leftovers

if TYPE_CHECKING:
    from meshmsg.testing.cluster import Cluster
    from meshmsg.testing.nodes import ClusterNode
    from meshmsg.testing.requests import ClusterCall, ClusterDealer, ClusterRequest, ClusterRouter

SERVICES = ("front", "back")
NOBODYS = "nobodys"
PLAIN = ("echo", "echo", "slow", "fail", "busy", "hang", "relay", "relay_both")
STREAMS = ("count", "count", "count_and_fail", "count_forever", "both")
DONE_S = 30.0  # after the heal, every request has its outcome within this time
REST_S = 15.0  # and nothing is kept of any, once all deadlines are over
MAX_TIMEOUT_S = 3.0
# With these alone nobody is lost, and nobody gives anybody up.
NOBODY_LOST = frozenset(("delay", "slow", "failing", "duplicates", "close_pull", "redrive", "same_name", "crowding"))


class RequestSwarm:
    """What one seed drew of requests. It has a generator of its own, so that queues do not depend on it."""

    def __init__(
        self, seed: int, cluster: Cluster, faults: set[str], kill: Callable[[ClusterNode, float], None]
    ) -> None:
        self.cluster = cluster
        self.faults = faults
        self.kill = kill
        self.chance = chance = random.Random(f"requests of {seed}")
        self.healthy = False
        self.made: list[ClusterCall] = []
        self.nodes: list[ClusterNode] = []
        self.slow_s = chance.choice((0.01, 0.1, 1.0))
        self.closes = chance.random() < 0.5
        cluster.books.requests.only_losses = not faults <= NOBODY_LOST or self.closes
        self.options = [self._draw_options() for _ in range(3)]

    def _draw_options(self) -> dict[str, Any]:
        chance = self.chance
        return {
            "timeout": chance.choice((0.05, 0.5, 2.0, MAX_TIMEOUT_S, None)),
            "balance": chance.choice(("fastest", "least_outstanding", "round_robin", "random")),
            "idempotent": chance.choice((False, False, True, ("echo", "slow"))),
            "retry": Retry(chance.choice((1, 2, 5)), 0.05, max_backoff=1.0),
            "hedge_after": chance.choice((None, None, 0.0, 0.05, "p95")),
        }

    # -- the cast --------------------------------------------------------------------------------------------

    def cast(self, nodes: list[ClusterNode], work_s: float) -> None:
        """Some of the nodes serve, all of them ask, and there may be more of them."""
        chance = self.chance
        self.nodes = [*nodes, *(self.cluster.node(f"r{number}") for number in range(chance.choice((0, 0, 1, 2))))]
        for service in SERVICES:
            for node in chance.sample(self.nodes, chance.randint(1, min(3, len(self.nodes)))):
                self._at(
                    chance.choice((0.0, 0.0, 0.0, chance.uniform(0.0, work_s))), partial(self._serve, node, service)
                )
        for _ in range(chance.choice((3, 10, 25))):
            self._at(chance.uniform(0.1, work_s), partial(self._ask, chance.choice((1, 1, 3, 20))))
        changes = [self._toggle, self._survey, self._cancel]
        for action in [*changes, self._close] if self.closes else changes:
            for _ in range(chance.choice((0, 1, 3))):
                self._at(chance.uniform(0.1, work_s), action)

    def _at(self, when: float, action: Callable[[], Any]) -> None:
        self.cluster.clock.call_at(when, action)

    def _serve(self, node: ClusterNode, service: str) -> None:
        chance = self.chance
        options = {
            "concurrency": chance.choice((1, 2, 64)),
            "max_queue": chance.choice((0, 2, 1000, 1000)),
            "takes": lambda: self._pause() if chance.random() < 0.2 else 0.0,
        }
        handler = self._handle_plainly if chance.random() < 0.2 else self._handle

        def open_router() -> None:
            if service not in node.routers:
                node.router(service, handler, **options)

        node.soon(open_router)

    # -- handlers --------------------------------------------------------------------------------------------

    def _pause(self) -> float:
        return (0.01 if self.healthy else 1.0) * self.slow_s * 2 * self.chance.random()

    def _handle_plainly(self, request: ClusterRequest) -> Any:
        """A plain function, which answers everything alike."""
        if request.method == "fail":
            raise ValueError("no good")
        return [request.method, request.args]

    async def _handle(self, request: ClusterRequest) -> Any:
        method = request.method
        if method in ("slow", "busy", "sum_slowly"):
            await request.sleep(self._pause())
        if method == "busy":
            raise Overloaded("too much", self.chance.choice((None, 0.1)))
        if method == "fail":
            raise self.chance.choice((ValueError("no good"), RemoteError("sold out", "out_of_stock")))
        if method == "poison":
            self.kill(request.node, 1.0)
            return None
        if method == "hang":
            await request.sleep(1e6)
        if method.startswith("relay"):
            return await self._relay(request)
        if method.startswith("count"):
            return await self._count(request)
        if method in ("sum", "sum_slowly", "both"):
            return await self._sum(request)
        return request.args

    async def _relay(self, request: ClusterRequest) -> Any:
        """Asks the other service, with what is left of the time."""
        dealer = request.node.dealer("back", **self.options[0])
        asked = self._note(dealer.request(self._method_behind(request), request.serial, timeout=MAX_TIMEOUT_S))
        if request.method == "relay_both":
            self._note(dealer.request("slow", request.serial, timeout=MAX_TIMEOUT_S))  # nobody awaits this one
        return await asked

    def _method_behind(self, request: ClusterRequest) -> str:
        return self.chance.choice(("echo", "slow", "fail") + (("hang",) if request.remaining is not None else ()))

    async def _count(self, request: ClusterRequest) -> None:
        forever = request.method == "count_forever"
        for number in range(10_000 if forever else request.args[0]):
            await request.send([request.serial, number])
            if forever or self.chance.random() < 0.05:
                await request.sleep(0.02 + self._pause())
        if request.method == "count_and_fail":
            raise ValueError("no good")

    async def _sum(self, request: ClusterRequest) -> Any:
        total, early = 0, self.chance.random() < 0.1
        while items := await request.take():
            total += sum(items)
            if request.method == "both":
                await request.send(*items)
            if request.method == "sum_slowly" or self.chance.random() < 0.05:
                await request.sleep(self._pause())
            if early:
                break
        return total

    # -- work ------------------------------------------------------------------------------------------------

    def _ask(self, count: int) -> None:
        chance = self.chance
        nodes = [node for node in self.nodes if node.alive and not node.leaving]
        if not nodes:
            return
        node = chance.choice(nodes)
        service = NOBODYS if chance.random() < 0.05 else chance.choice(("front", "front", "back"))
        kinds = [chance.choice(("plain", "plain", "plain", "stream", "items"))] * count
        options = chance.choice(self.options)
        node.soon(lambda: self._ask_now(node.dealer(service, **options), kinds))

    def _ask_now(self, dealer: ClusterDealer, kinds: list[str]) -> None:
        chance = self.chance
        method = self._choose_method(dealer.service)
        extras: dict[str, Any] = {}
        if chance.random() < 0.2:
            extras["headers"] = {"trace": "1"}
        if chance.random() < 0.2:
            extras["key"] = chance.choice("xyz")
        if chance.random() < 0.1:
            extras["peer"] = chance.choice(self.nodes).name
        timeout = chance.choice((0.3, 2.0, MAX_TIMEOUT_S))
        for kind in kinds:
            if kind == "plain":
                if dealer.options.timeout is None and method in ("hang", "relay", "relay_both"):
                    extras["timeout"] = timeout
                if "headers" in extras:
                    extras["headers"] = {"trace": (1, True, 1.0, 1)[len(self.made) % 4]}
                self._note(dealer.request(method, len(self.made), **extras))
            elif kind == "items":
                sent = range(chance.choice((0, 3, 40, 300)))
                way = chance.choice(("sum", "sum_slowly"))
                self._note(dealer.request(way, items=sent, **{**extras, "timeout": timeout}))
            else:
                self._stream(dealer, timeout, extras)

    def _stream(self, dealer: ClusterDealer, timeout: float, extras: dict[str, Any]) -> None:
        chance = self.chance
        method = chance.choice(STREAMS)
        pace_s = chance.choice((0.0, 0.0, 0.01, 0.1))
        more: dict[str, Any] = {"takes": lambda: (0.01 if self.healthy else 1.0) * pace_s, "timeout": timeout}
        if method == "both":
            more["items"] = range(chance.choice((0, 3, 40, 300)))
        elif method != "count_forever" and chance.random() < 0.3:
            more["timeout"] = None
        count = chance.choice((0, 1, 15, 16, 17, 60, 300))
        self._note(dealer.stream(method, count, **{**extras, **more}))

    def _choose_method(self, service: str) -> str:
        methods = [method for method in PLAIN if service == "front" or not method.startswith("relay")]
        if "poison" in self.faults and not self.healthy and self.chance.random() < 0.1:
            return "poison"
        return self.chance.choice(methods)

    def _note(self, made: ClusterCall) -> ClusterCall:
        self.made.append(made)
        return made

    # -- changes ---------------------------------------------------------------------------------------------

    def _routers(self) -> list[ClusterRouter]:
        nodes = [node for node in self.nodes if node.alive and not node.leaving]
        return [router for node in nodes for router in node.routers.values()]

    def _toggle(self) -> None:
        routers = self._routers()
        if routers:
            router = self.chance.choice(routers)
            router.node.soon(lambda: None if router.closed else router.set_serving(not router.serving))

    def _close(self) -> None:
        routers = self._routers()
        if not routers:
            return
        router = self.chance.choice(routers)
        drain = self.chance.choice((0.0, 0.05, 5.0))
        router.node.soon(lambda: router.close(drain))
        if self.chance.random() < 0.7:
            when = self.cluster.now + self.chance.choice((0.0, 0.001, 0.5))
            self._at(when, partial(self._serve, router.node, router.service))

    def _survey(self) -> None:
        nodes = [node for node in self.nodes if node.alive and not node.leaving]
        if nodes:
            node, service = self.chance.choice(nodes), self.chance.choice(SERVICES)
            node.soon(partial(self._survey_now, node, service))

    def _survey_now(self, node: ClusterNode, service: str) -> None:
        try:
            self.made += node.dealer(service).survey(self.chance.choice(("echo", "slow", "hang")), timeout=1.0)
        except NoResponders:
            return

    def _cancel(self) -> None:
        waiting = [made for made in self.made if not made.answered and not made.cancelled]
        if waiting:
            for made in self.chance.sample(waiting, min(len(waiting), self.chance.choice((1, 5, 100)))):
                made.node.soon(made.cancel)

    # -- the end ---------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """From here on everybody is quick, and both services are there."""
        self.healthy = True
        self._open_all()

    def _open_all(self) -> None:
        for service in SERVICES:
            routers = [router for router in self._routers() if router.service == service]
            for router in routers:
                router.node.soon(partial(router.set_serving, True))
            if not routers:
                self.cluster.node(f"{service}{len(self.cluster.nodes)}").router(service, self._handle)

    def check_rest(self) -> None:
        """Every request has its outcome, nothing is kept of any, and new ones bring a result."""
        cluster, books = self.cluster, self.cluster.books.requests
        if not cluster.run_until(books.is_answered, DONE_S):
            raise GuaranteeBroken("G8", f"{DONE_S:g} s after the heal: {books.pending_now()}")
        self._open_all()  # also of those who closed it as they came back
        cluster.run(MAX_TIMEOUT_S)
        self._wait_for_rest()
        asked = []
        for node in self.nodes:
            if node.alive and not node.leaving:
                for service in SERVICES:
                    asked.append(
                        node.dealer(service, idempotent=True, timeout=MAX_TIMEOUT_S).request("echo", node.name)
                    )
        cluster.run(MAX_TIMEOUT_S + 0.1)  # deadlines of runs are looked at when they are due
        for made in asked:
            if isinstance(made.error, RequestError) and not isinstance(made.error, Overloaded):
                raise GuaranteeBroken("G8", f"{made.name} of {made.node.name} failed, and all is well: {made.error}")
        self._wait_for_rest()

    def _wait_for_rest(self) -> None:
        cluster, books = self.cluster, self.cluster.books.requests
        living = {node.key for node in cluster.nodes if node.alive}
        nodes = [node for node in cluster.nodes if node.alive]
        end = cluster.now + REST_S
        while cluster.now < end and (books.unfinished() or any(find_leftovers(node, living) for node in nodes)):
            cluster.run(0.5)
        books.check_rest(cluster.nodes)
