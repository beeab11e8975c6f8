"""Runs the demo: starts the processes, collects what they send back, kills one of them, ends them all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from meshmsg import MeshError, Message, Node
from meshmsg.cli.demo.child import FILES, REPORTS, RESULTS, Orders
from meshmsg.cli.demo.children import Child, end_all
from meshmsg.cli.demo.files import measure_all
from meshmsg.cli.demo.producer import POISON
from meshmsg.cli.demo.show import Note, Outcome, Producer, Show, Worker
from meshmsg.cli.running import Stop

JOIN_TIMEOUT_S = 30.0
STUCK_AFTER_S = 120.0  # one enormous file may take its time
DRAW_EVERY_S = 0.1


class DemoFailed(MeshError):
    """The demo could not go on; the text says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, to which files, with how many processes."""

    mesh: str
    folder: Path
    title: str  # what people call the folder
    names: tuple[bytes, ...]
    workers: int
    producers: int
    kill: bool
    nap_s: float
    interfaces: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    unencrypted: bool = False


class View(Protocol):
    """Draws the show."""

    def draw(self, show: Show, now: float) -> None: ...
    def tell(self, note: Note) -> None: ...


class Stage:
    """One run of the demo."""

    def __init__(self, plan: Plan, view: View) -> None:
        self._plan = plan
        self._view = view
        self._show = Show(len(plan.names), view.tell)
        self._children: dict[str, Child] = {}
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._news = asyncio.Event()  # something moved
        self._failure: str | None = None
        self._ending = False
        self._tasks: list[asyncio.Task[None]] = []

    def _now(self) -> float:
        return self._loop.time() - self._started_at

    async def run(self, stop: Stop) -> Outcome | None:
        """The whole demo; None if it was interrupted. Raises ``DemoFailed``."""
        plan = self._plan
        try:
            async with self._make_node() as node:
                self._consume(node)
                self._spawn(self._draw())
                finished = await stop.unless(self._play(node))
                self._ending = True
                for worker in self._show.workers.values():
                    if worker.state in ("working", "silent"):
                        worker.state, worker.held = "left", 0
                await end_all(list(self._children.values()))
        finally:
            self._ending = True
            for task in self._tasks:
                task.cancel()
            await end_all(list(self._children.values()))
        if not finished:
            return None
        seconds = self._now()
        self._view.draw(self._show, seconds)
        alone, unreadable = await asyncio.to_thread(measure_all, plan.folder, plan.names)
        return Outcome(self._show, seconds, alone, unreadable, POISON)

    def _make_node(self) -> Node:
        plan = self._plan
        return Node(
            "demo",
            mesh=plan.mesh,
            interfaces=plan.interfaces or None,
            seeds=plan.seeds,
            unencrypted=plan.unencrypted,
            drain=0.0,
        )

    async def _play(self, node: Node) -> bool:
        await self._start_children()
        await self._join(node)
        while not self._show.finished:
            try:
                async with asyncio.timeout(STUCK_AFTER_S):
                    await self._next_news()
            except TimeoutError:
                raise DemoFailed(f"nothing moved for {STUCK_AFTER_S:.0f} s; {self._show.ledger}") from None
        self._show.note("every message is processed or dead", self._now())
        return True

    async def _next_news(self) -> None:
        """Waits until something moves; raises ``DemoFailed`` if it is a process that broke."""
        if self._failure is None:
            self._news.clear()
            await self._news.wait()
        if self._failure is not None:
            raise DemoFailed(self._failure)

    # -- processes -------------------------------------------------------------------------------------------

    async def _start_children(self) -> None:
        plan = self._plan
        names = [os.fsdecode(name) for name in plan.names]
        for index in range(plan.workers):
            child = await self._start("worker", index, [], None)
            self._show.workers[child.name] = Worker(child.name, child.pid)
        for index in range(plan.producers):
            share = names[index :: plan.producers]
            child = await self._start("producer", index, share, len(share) // 3 if index == 0 else None)
            self._show.producers[child.name] = Producer(child.name, child.pid)

    async def _start(self, role: str, index: int, files: list[str], poison_at: int | None) -> Child:
        plan = self._plan
        orders = Orders(
            name=f"{role}-{index + 1}",
            mesh=plan.mesh,
            interfaces=list(plan.interfaces),
            seeds=list(plan.seeds),
            unencrypted=plan.unencrypted,
            folder=str(plan.folder),
            files=files,
            poison_at=poison_at,
            nap_s=plan.nap_s,
            workers=plan.workers,
        )
        child = self._children[orders["name"]] = await Child.start(role, orders)
        self._spawn(self._watch(child))
        return child

    async def _join(self, node: Node) -> None:
        plan = self._plan
        producers = self._show.producers.values()
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await node.wait_for(pull=FILES, count=plan.workers)
                # Everybody sees everybody before anybody begins: a producer that comes late would miss the one killed.
                while not all(producer.ready for producer in producers):
                    await self._next_news()
        except TimeoutError:
            if self._failure is not None:
                raise DemoFailed(self._failure) from None
            found = ", ".join(sorted(peer.name for peer in node.peers())) or "nobody"
            raise DemoFailed(
                f"after {JOIN_TIMEOUT_S:.0f} s mDNS on loopback had found {found} of {', '.join(self._children)}: "
                "multicast seems to be blocked here (a firewall, a container)"
            ) from None
        count = plan.workers + plan.producers + 1
        self._show.note(f"{count} processes have found each other through mDNS on loopback", self._now())
        for producer in producers:
            self._children[producer.name].go()

    async def _watch(self, child: Child) -> None:
        """A child that ends by itself is not part of the show."""
        code = await child.wait()
        if self._ending or child.killed:
            return
        said = "\n".join(child.complaints)
        text = f"{child.name} (pid {child.pid}) ended by itself with exit code {code}" + (f":\n{said}" if said else "")
        workers_left = any(
            each.role == "worker" and each.process.returncode is None for each in self._children.values()
        )
        if child.role == "producer" or not workers_left:
            self._failure = text
        self._show.note(text, self._now())
        self._news.set()

    def _may_kill(self, name: str) -> bool:
        plan = self._plan
        wanted = plan.kill and plan.workers > 1 and self._show.kill is None
        return wanted and self._show.half_done and self._children[name].process.returncode is None

    # -- what comes back -------------------------------------------------------------------------------------

    def _consume(self, node: Node) -> None:
        @node.pull(RESULTS)
        async def on_result(message: Message) -> None:
            self._show.add_result(message.body, self._now())
            self._news.set()
            name = message.body["worker"]
            if self._may_kill(name):
                # The worst moment: its result is here, and it has not acked the file yet. So the file is done twice.
                self._show.add_kill(name, self._now())
                self._children[name].kill()

        @node.pull(REPORTS)
        async def on_report(message: Message) -> None:
            before = self._show.ledger
            self._show.add_report(message.body, self._now())
            if "ready" in message.body or self._show.finished or self._show.ledger != before:
                self._news.set()

        events = node.events()

        async def listen() -> None:
            async for event in events:
                if event.kind.startswith("peer.") and not self._ending:
                    self._show.add_peer_event(event.kind, event.peer, event.text, self._now())

        self._spawn(listen())

    async def _draw(self) -> None:
        while True:
            self._view.draw(self._show, self._now())
            await asyncio.sleep(DRAW_EVERY_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.ensure_future(work))
