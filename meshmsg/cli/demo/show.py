"""What the demo knows at any moment: who works, what is done, what happened. No I/O; the views draw it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from meshmsg import Ledger
from meshmsg.cli.demo.files import Measured, Totals, add_up

RATE_OVER_S = 1.0

State = Literal["starting", "working", "silent", "killed", "lost", "left"]


class Note(NamedTuple):
    """Something that happened, and when, in seconds since the start."""

    time_s: float
    text: str


@dataclass(slots=True)
class Worker:
    """One worker as the picture shows it."""

    name: str
    pid: int
    state: State = "starting"
    done: int = 0
    held: int = 0
    failed: int = 0
    retried: int = 0
    recent: deque[float] = field(default_factory=deque)

    def rate(self, now: float) -> float:
        """Files a second, over the last second."""
        while self.recent and self.recent[0] < now - RATE_OVER_S:
            self.recent.popleft()
        return len(self.recent) / min(RATE_OVER_S, max(now, 0.1))


@dataclass(slots=True)
class Producer:
    """One producer, with the last ledger it reported."""

    name: str
    pid: int
    ledger: Ledger = field(default_factory=Ledger)
    ready: bool = False  # it sees all workers
    final: bool = False


@dataclass(slots=True)
class Kill:
    """The worker that was killed, and what came of it."""

    worker: str
    pid: int
    at_s: float
    noticed_after_ms: float | None = None
    redelivered: int = 0
    recovered_after_ms: float | None = None


class Show:
    """The whole picture. ``now`` is in seconds since the start."""

    def __init__(self, total: int, on_note: Callable[[Note], None] = lambda note: None) -> None:
        self.total = total
        self.workers: dict[str, Worker] = {}
        self.producers: dict[str, Producer] = {}
        self.measured: dict[bytes, Measured] = {}
        self.twice: list[bytes] = []
        self.letters: list[Mapping[str, Any]] = []
        self.kill: Kill | None = None
        self.notes: list[Note] = []
        self._ids: set[str] = set()
        self._on_note = on_note

    @property
    def ledger(self) -> Ledger:
        """The books of all producers together."""
        return Ledger(*map(sum, zip(*(producer.ledger for producer in self.producers.values()), strict=True)))

    @property
    def finished(self) -> bool:
        """Whether every producer has handed in its last ledger."""
        return bool(self.producers) and all(producer.final for producer in self.producers.values())

    @property
    def half_done(self) -> bool:
        """Whether half of the files have their result."""
        return len(self.measured) * 2 >= self.total

    def note(self, text: str, now: float) -> None:
        """Something worth a line."""
        self.notes.append(Note(now, text))
        self._on_note(self.notes[-1])

    def add_result(self, body: Mapping[str, Any], now: float) -> None:
        """A worker measured a file. One that comes again, under its message's id, is counted but not added."""
        worker = self.workers[body["worker"]]
        worker.done += 1
        worker.recent.append(now)
        if worker.state == "starting":
            worker.state = "working"
        if body["attempt"] > 1:
            worker.retried += 1
        if self.kill is not None and body["redelivered"]:
            self.kill.redelivered += 1
            if self.kill.recovered_after_ms is None:
                self.kill.recovered_after_ms = (now - self.kill.at_s) * 1000
        if body["id"] in self._ids:
            self.twice.append(body["name"])
            return
        self._ids.add(body["id"])
        self.measured[body["name"]] = Measured(*body["measured"])

    def add_report(self, body: Mapping[str, Any], now: float) -> None:
        """A child tells about itself; one that is handed over again may come late, so a final ledger stays."""
        if "worker" in body:
            worker = self.workers[body["worker"]]
            if worker.state in ("starting", "working"):
                worker.state, worker.held, worker.failed = "working", body["held"], body["failed"]
            return
        producer = self.producers[body["producer"]]
        if "ready" in body:
            producer.ready = True
        elif not producer.final:
            producer.ledger, producer.final = Ledger(**body["ledger"]), body["final"]
        known = {letter["id"] for letter in self.letters}
        for letter in body.get("letters", ()):
            if letter["id"] in known:
                continue
            self.letters.append(letter)
            name = letter["name"].decode(errors="replace")
            self.note(f"dead letter {name}: {len(letter['attempts'])} attempts, {letter['error']}", now)

    def add_kill(self, worker: str, now: float) -> None:
        """A worker gets SIGKILL."""
        row = self.workers[worker]
        row.state = "killed"
        self.kill = Kill(worker, row.pid, now)
        self.note(f"{worker} (pid {row.pid}) is killed with SIGKILL, after a result and before its ack", now)

    def add_peer_event(self, kind: str, name: str, text: str, now: float) -> None:
        """The mesh says something about a peer."""
        worker = self.workers.get(name)
        if worker is None:
            return
        if kind == "peer.down":
            if self.kill is not None and self.kill.worker == name and self.kill.noticed_after_ms is None:
                self.kill.noticed_after_ms = (now - self.kill.at_s) * 1000
                self.note(f"the mesh sees {name} gone ({text}), {self.kill.noticed_after_ms:.0f} ms later", now)
            elif worker.state != "left":
                worker.state = "lost"
                self.note(f"{name} is gone: {text}", now)
            worker.held = 0
        elif kind == "peer.suspect" and worker.state == "working":
            worker.state = "silent"
        elif kind == "peer.back" and worker.state == "silent":
            worker.state = "working"


@dataclass(slots=True)
class Outcome:
    """How it ended, beside what one plain process makes of the same files (``alone``)."""

    show: Show
    seconds: float
    alone: Mapping[bytes, Measured]
    unreadable: set[bytes]
    poison: bytes

    @property
    def mesh_totals(self) -> Totals:
        """What the mesh made of the files."""
        return add_up(self.show.measured)

    @property
    def alone_totals(self) -> Totals:
        """What one process makes of them."""
        return add_up(self.alone)

    @property
    def differing(self) -> list[bytes]:
        """Files of which the two say different things."""
        names = sorted({*self.show.measured, *self.alone})
        return [name for name in names if self.show.measured.get(name) != self.alone.get(name)]

    @property
    def problems(self) -> list[str]:
        """What does not add up; empty if all is well."""
        books = self.show.ledger
        died = {letter["name"] for letter in self.show.letters}
        names = ", ".join(name.decode(errors="replace") for name in self.differing[:5])
        differ = (
            f"the totals differ from those of one process, in {len(self.differing)} files: {names}; "
            "did they change meanwhile?"
        )
        checks = {
            differ: self.mesh_totals == self.alone_totals,
            "the ledger is not balanced": books.balanced,
            "messages are pending": not books.pending,
            "not every file and the synthetic task were accepted": books.accepted == self.show.total + 1,
            "processed messages and results are not the same number": books.processed == len(self.show.measured),
            "the dead letters are not the synthetic task and the unreadable files": died
            == {self.poison, *self.unreadable},
        }
        return [problem for problem, holds in checks.items() if not holds]
