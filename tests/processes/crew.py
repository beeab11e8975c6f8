"""The processes of one test: started, told what to do, killed, and in the end collected, each by its own pid.

Nothing here sleeps. ``Crew.until`` reads what the processes say until a condition holds, and fails with their last
words when it does not hold before a generous deadline.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import re
import selectors
import signal
import time
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.processes.programs import member as program

# Never the measure of anything: only what a busy machine may take before a test says what it waited for in vain.
DEADLINE_S = 40.0
LOOK_AGAIN_S = 0.02  # at files, which a selector cannot watch
# Settings of all nodes in tests that wait for a silence: half the defaults.
IMPATIENT: dict[str, Any] = {"heartbeat": 0.25, "suspect_after": 0.75, "gone_after": 1.0}


@functools.cache
def forks() -> ForkServerContext:
    """Starts members: a process that has imported all they need, which takes far longer than a fork, is forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([program.__name__])
    return context


class Entry(NamedTuple):
    """A line of the journal: a message's handling by one consumer starts, finishes or is cancelled."""

    name: str
    pid: int
    phase: str
    id: str
    number: int | None
    attempt: int
    redelivered: bool
    at: float


class Journal:
    """The file that all consumers of a crew append to; see ``programs/member.py``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._read_to = 0
        self._entries: list[Entry] = []

    @property
    def entries(self) -> list[Entry]:
        """Every line so far."""
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read_to += len(whole)
        self._entries += [Entry(*json.loads(line)) for line in whole.splitlines()]
        return self._entries

    def of(self, phase: str, *, name: str | None = None, pid: int | None = None) -> list[Entry]:
        """The lines of one phase, of one consumer if it is named."""
        return [
            entry
            for entry in self.entries
            if entry.phase == phase and name in (None, entry.name) and pid in (None, entry.pid)
        ]

    def ids(self, phase: str, *, name: str | None = None) -> set[str]:
        """Ids of the messages in these lines."""
        return {entry.id for entry in self.of(phase, name=name)}


class Member:
    """One process with a node in it."""

    def __init__(self, crew: Crew, name: str, settings: dict[str, Any], errors: Path) -> None:
        self.crew = crew
        self.name = name
        self.said: list[dict[str, Any]] = []
        self.errors = errors
        self._commands = 0
        self._unread = b""
        errors.touch()
        (its_stdin, stdin), (stdout, its_stdout) = os.pipe(), os.pipe()
        os.set_blocking(stdout, False)
        self.stdin, self.stdout = open(stdin, "wb"), open(stdout, "rb")
        with Connection(its_stdin, writable=False) as given, Connection(its_stdout, readable=False) as taken:
            self.process = forks().Process(target=program.run, args=(settings, given, taken, errors), daemon=True)
            self.process.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, once it has ended."""
        return self.process.exitcode

    def read(self) -> bool:
        """Takes in what it said; false when it will say nothing more."""
        try:
            data = os.read(self.stdout.fileno(), 2**20)
        except BlockingIOError:
            return True
        lines = (self._unread + data).split(b"\n")
        self._unread = lines.pop()
        self.said += map(json.loads, lines)
        return bool(data)

    # -- telling ---------------------------------------------------------------------------------------------

    def tell(self, do: str, **arguments: Any) -> int:
        """Gives it a command; ``answer`` waits for what comes of it."""
        self._commands += 1
        line = json.dumps({"number": self._commands, "do": do, **arguments})
        self.stdin.write(line.encode() + b"\n")
        self.stdin.flush()
        return self._commands

    def answered(self, number: int) -> dict[str, Any] | None:
        """The answer to a command, if it has come."""
        return next((line for line in self.said if line.get("answers") == number), None)

    def answer(self, number: int) -> dict[str, Any]:
        """Waits for the answer to a command."""
        command = f"the answer of {self.name} to command {number}"
        self.crew.until(lambda: self.answered(number) is not None or self._is_mute(), command)
        answer = self.answered(number)
        assert answer is not None, f"{self.name} ended before {command}: {self.errors.read_text()}"
        assert "error" not in answer, f"{command} is an error: {answer['error']}"
        return answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Gives a command and waits for its answer."""
        return self.answer(self.tell(do, **arguments))

    def _is_mute(self) -> bool:
        return self.stdout.fileno() not in self.crew.watched

    # -- listening -------------------------------------------------------------------------------------------

    def started(self) -> dict[str, Any]:
        """Waits until its node runs; its ``id`` and ``endpoint``."""
        return self.event("started")

    def events(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """The node's events so far of one kind, with these fields."""
        return [
            line
            for line in self.said
            if line.get("event") == kind and all(line.get(name) == value for name, value in fields.items())
        ]

    def event(self, kind: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Waits for the first (or a later) event of a kind."""
        what = f"event {kind} {fields or ''} number {count} of {self.name}"
        self.crew.until(lambda: len(self.events(kind, **fields)) >= count or self._is_mute(), what)
        found = self.events(kind, **fields)
        assert len(found) >= count, f"{self.name} ended before {what}: {self.errors.read_text()}"
        return found[count - 1]

    # -- ending ----------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL, and waits until the system says that it is dead."""
        self.process.kill()
        self.process.join(DEADLINE_S)
        assert self.code is not None

    def freeze(self) -> None:
        """SIGSTOP."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def exit_code(self) -> int:
        """Waits until it ended by itself, and says how."""
        self.crew.until(lambda: self.code is not None, f"the end of {self.name}")
        assert self.code is not None
        return self.code

    def collect(self) -> None:
        """Ends it whatever state it is in, and lets go of its pipes."""
        if self.code is None:
            self.kill()
        try:
            self.stdin.close()
        except BrokenPipeError:  # what was written last went nowhere
            pass
        self.stdout.close()


class Crew:
    """All members of one test, in a mesh of their own; leaving the ``with`` block ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mesh = f"test-{uuid.uuid4().hex[:12]}"
        self.journal = Journal(folder / "journal")
        self.settings: dict[str, Any] = {}  # of every member to come
        self.members: list[Member] = []
        self.watched: set[int] = set()
        self._selector = selectors.DefaultSelector()

    def start(self, name: str, **settings: Any) -> Member:
        """Starts a process with a node; the settings are those of ``programs/member.py``."""
        settings = {"mesh": self.mesh, "journal": str(self.journal.path), **self.settings, **settings, "name": name}
        member = Member(self, name, settings, self.folder / f"{len(self.members)}-{name}.errors")
        self.members.append(member)
        self._selector.register(member.stdout, selectors.EVENT_READ, member)
        self.watched.add(member.stdout.fileno())
        return member

    def consumer(self, name: str, *, pull: dict[str, Any] | None = None, **settings: Any) -> Member:
        """Starts a node that pulls; ``pull`` are the options of ``node.pull``."""
        member = self.start(name, **settings)
        member.tell("pull", **(pull or {}))
        return member

    def producer(self, name: str = "producer", *, push: dict[str, Any] | None = None, **settings: Any) -> Member:
        """Starts a node that pushes; ``push`` are the options of ``node.push``."""
        member = self.start(name, **settings)
        member.tell("push", **(push or {}))
        return member

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Reads what the members say until the condition holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            failed = [member.name for member in self.members if (member.code or 0) > 0]
            assert not failed, f"{', '.join(failed)} failed, waiting for {what}\n{self.report()}"
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {DEADLINE_S:g} s in vain for {what}\n{self.report()}")
            self._listen()

    def _listen(self) -> None:
        for key, _ in self._selector.select(LOOK_AGAIN_S):
            member: Member = key.data
            if not member.read():
                self._selector.unregister(member.stdout)
                self.watched.discard(member.stdout.fileno())

    def report(self) -> str:
        """The last words of every member."""
        lines = []
        for member in self.members:
            lines.append(f"--- {member.name}, pid {member.pid}, exit code {member.code}")
            lines += [json.dumps(line)[:300] for line in member.said[-12:]]
            lines.append(member.errors.read_text()[-3000:])
        lines.append(f"--- journal: {len(self.journal.entries)} lines")
        lines += map(str, self.journal.entries[-5:])
        return "\n".join(lines)

    def complaints(self) -> list[str]:
        """Errors that members left behind: a process that goes on after one is no better for it."""
        texts = {member.name: member.errors.read_text() for member in self.members}
        return [f"{name}: {text}" for name, text in texts.items() if re.search(r"^(ERROR|CRITICAL|Fatal)", text, re.M)]

    def collect(self) -> None:
        """Ends every member."""
        for member in self.members:
            member.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.collect()
        self._selector.close()
        if error is None:
            assert not self.complaints(), "\n".join(self.complaints())
