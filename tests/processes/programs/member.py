"""A node that does what standard input tells it, and tells on standard output what happens: a JSON object a line.

Its settings are the arguments of ``Node``; ``journal``, the file that gets a line for every message whose handling
starts, finishes or is cancelled, written before the message is acked; and perhaps ``namespace``, the network namespace
that it lives in.

A command is ``{"number": 1, "do": "send", ...}``; what it returns comes back as ``{"answers": 1, ...}``. The node's
events come as ``{"event": kind, ...}``. When standard input ends, the node leaves at once.

What a message's body asks of its handler (``do``):

======== ==========================================================
work     take ``seconds``, without blocking the loop
gate     wait until a command opens the gate
block    block the whole loop until the file ``until`` exists
kill     kill this process with SIGKILL
fail     raise
======== ==========================================================

``attempts`` limits that to a message's first attempts; after them it is handled at once.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from meshmsg import Context, Gap, Message, Node, RequestError, Retry

LOOK_AGAIN_S = 0.01
PR_SET_PDEATHSIG = 1  # linux/prctl.h
CLONE_NEWNET = 0x40000000  # linux/sched.h


def say(**what: Any) -> None:
    """One line for whoever started this process."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Journal:
    """A file that several processes append to; a line is written whole or, if the process dies before, not at all."""

    def __init__(self, path: str, name: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._name = name

    def note(self, phase: str, message: Message) -> None:
        """What happens to a message now."""
        body = message.body
        number = body.get("n") if isinstance(body, dict) else None
        self._write(phase, message.id, number, message.attempt, message.redelivered)

    def note_call(self, phase: str, number: int, context: Context) -> None:
        """What happens to a request now; its id says where it runs and for whom."""
        self._write(phase, f"{context.caller.name}>{context.service}.{context.method}", number, 1, False)

    def _write(self, phase: str, id: str, number: int | None, attempt: int, redelivered: bool) -> None:
        line = [self._name, os.getpid(), phase, id, number, attempt, redelivered, time.monotonic()]
        os.write(self._file, json.dumps(line).encode() + b"\n")


class Heard:
    """What a subscription got: runs of consecutive numbers in the order of their arrival, and gaps."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], list[list[int]]] = {}  # by publisher's id and topic
        self.gaps: list[Gap] = []
        self.bodies: list[Any] = []  # of messages without a number, such as last wills
        self.count = 0
        self.changed = asyncio.Event()

    def note(self, message: Message) -> None:
        """One message."""
        is_will = "will" in message.headers
        if is_will or not isinstance(message.body, dict):
            self.bodies.append([message.sender, message.topic, message.body, dict(message.headers)])
        publisher, _, rest = message.id.partition("/")
        topic, _, number = rest.rpartition("/")
        runs = self.runs.setdefault((publisher, topic), [])
        if is_will:
            assert number.startswith("will.")
        elif runs and runs[-1][1] == int(number):
            runs[-1][1] += 1
        else:
            runs.append([int(number), int(number) + 1])
        self.count += 1
        self.changed.set()

    def note_gap(self, gap: Gap) -> None:
        """Messages that will not come."""
        self.gaps.append(gap)
        self.count += gap.missed
        self.changed.set()


class TopicCommands:
    """Commands of a member about publishing and subscribing."""

    node: Node

    def __init__(self) -> None:
        self._pubs: dict[str, Any] = {}
        self._heard: dict[str, Heard] = {}

    async def open_pub(self, pattern: str, **options: Any) -> dict[str, Any]:
        """Opens topics to publish to."""
        self._pubs[pattern] = self.node.pub(pattern, **options)
        return {}

    async def publish_numbers(
        self,
        pattern: str,
        count: int,
        topic: str | None = None,
        first: int = 0,
        pause: float | None = None,
        burst: int = 10,
        padding: int = 0,
    ) -> dict[str, Any]:
        """Publishes numbers, with a pause after each burst; one of no seconds is a turn of the loop."""
        body = {"padding": "x" * padding} if padding else {}
        for number in range(first, first + count):
            await self._pubs[pattern].send({"n": number, **body}, topic=topic)
            if pause is not None and number % burst == 0:
                await asyncio.sleep(pause)
        return {}

    async def lag(self, pattern: str) -> dict[str, Any]:
        """As the publisher sees its subscribers."""
        return {"lag": self._pubs[pattern].lag()}

    async def open_sub(self, pattern: str, **options: Any) -> dict[str, Any]:
        """Subscribes, and notes what comes."""
        heard = self._heard[pattern] = Heard()

        async def note(message: Message) -> None:
            heard.note(message)

        self.node.sub(pattern, on_gap=heard.note_gap, **options)(note)
        return {}

    async def heard(self, pattern: str, count: int = 0) -> dict[str, Any]:
        """What a subscription got, once that is ``count`` messages, lost ones included."""
        heard = self._heard[pattern]
        while heard.count < count:
            heard.changed.clear()
            await heard.changed.wait()
        return {
            "runs": [[publisher, topic, runs] for (publisher, topic), runs in heard.runs.items()],
            "gaps": [[gap.publisher, gap.topic, gap.start, gap.stop] for gap in heard.gaps],
            "bodies": heard.bodies,
        }

    async def broadcasts(self) -> dict[str, Any]:
        """Where the other nodes can be heard, by name."""
        return {
            "endpoints": {
                peer.name: peer.offers["broadcast"]["xpub"]["endpoints"]
                for peer in self.node.peers()
                if "broadcast" in peer.offers
            }
        }


class Desk:
    """A service whose methods take as long as they are told, and write down what becomes of each request."""

    def __init__(self, node: Node, journal: Journal, gate: asyncio.Event) -> None:
        self._node = node
        self._journal = journal
        self._gate = gate

    async def work(self, number: int, seconds: float, context: Context) -> str:
        """Takes so long; gives the name of this node."""
        return await self._run(number, asyncio.sleep(seconds), context)

    async def gate(self, number: int, context: Context) -> str:
        """Waits until a command opens the gate."""
        return await self._run(number, self._gate.wait(), context)

    async def relay(self, number: int, services: list[str], context: Context) -> str:
        """Asks the first of these services, which asks the next; the last one waits at its gate."""
        service, *others = services
        dealer = self._node.dealer(service, timeout=None)
        asked = dealer.request("relay", number, others) if others else dealer.request("gate", number)
        return await self._run(number, asked, context)

    async def count(self, stop: int, context: Context) -> AsyncIterator[int]:
        """Numbers, as fast as they are taken."""
        self._journal.note_call("start", 0, context)
        try:
            for number in range(stop):
                yield number
            self._journal.note_call("finish", stop, context)
        except (asyncio.CancelledError, GeneratorExit):
            self._journal.note_call("cancelled", number, context)
            raise

    async def _run(self, number: int, work: Coroutine[Any, Any, Any], context: Context) -> str:
        self._journal.note_call("start", number, context)
        if context.remaining is not None:
            self._journal.note_call("limited", number, context)
        try:
            await work
        except asyncio.CancelledError:
            self._journal.note_call("cancelled", number, context)
            raise
        self._journal.note_call("finish", number, context)
        return self._node.name


class RequestCommands:
    """Commands of a member about requests."""

    node: Node
    _journal: Journal
    _gate: asyncio.Event

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Task[Any]] = {}

    async def open_router(self, service: str = "desk", **options: Any) -> dict[str, Any]:
        """Offers a ``Desk`` from now on."""
        self.node.router(service, **options).offer(Desk(self.node, self._journal, self._gate))
        return {}

    async def request(
        self, method: str, args: list[Any], service: str = "desk", label: str = "", timeout: float | None = None,
        peer: str | None = None, dealer: dict[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Makes one request; ``label`` names it for ``give_up``."""
        options: dict[str, Any] = dealer or {}
        asked = self.node.dealer(service, **options).request(method, *args, timeout=timeout, peer=peer)
        task = self._asked[label] = asyncio.ensure_future(asked)
        return {"outcome": await self._outcome(task)}

    async def request_many(
        self, method: str, count: int, args: list[Any], service: str = "desk", first: int = 0, burst: int = 10,
        pause: float = 0, timeout: float | None = None, dealer: dict[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Makes ``count`` requests with a number as their first argument, side by side, a pause after each burst."""
        options: dict[str, Any] = dealer or {}
        desk = self.node.dealer(service, **options)
        tasks = []
        for number in range(first, first + count):
            tasks.append(asyncio.ensure_future(desk.request(method, number, *args, timeout=timeout)))
            if pause and len(tasks) % burst == 0:
                await asyncio.sleep(pause)
        return {"outcomes": [await self._outcome(task) for task in tasks]}

    async def give_up(self, label: str) -> dict[str, Any]:
        """Cancels who waits for a request."""
        self._asked[label].cancel()
        return {}

    async def stream(self, stop: int, service: str = "desk", pause: float = 0) -> dict[str, Any]:
        """Reads a stream of numbers; what came, as the first number, the last, and whether none was missing."""
        seen: list[int] = []
        outcome = None
        try:
            async for number in self.node.dealer(service).stream("count", stop):
                seen.append(number)
                if number == 0:
                    say(event="streaming")
                if pause:
                    await asyncio.sleep(pause)
        except RequestError as error:
            outcome = [type(error).__name__, error.peer]
        return {"count": len(seen), "whole": seen == list(range(len(seen))), "outcome": outcome}

    async def open_files(self, directory: str, writable: bool = False) -> dict[str, Any]:
        """Offers the files of a directory."""
        self.node.router("files").files(directory, writable=writable)
        return {}

    async def send_half(self, source: str) -> dict[str, Any]:
        """Sends a file, and dies by SIGKILL when half of it is handed over."""

        def die(done: int, total: int) -> None:
            if done > total / 2:
                os.kill(os.getpid(), signal.SIGKILL)

        await self.node.dealer("files").send_file(source, progress=die)
        return {}

    @staticmethod
    async def _outcome(task: asyncio.Task[Any]) -> list[Any]:
        """``["ok", result]``, or the error's type and the peer that it is about."""
        try:
            return ["ok", await task]
        except RequestError as error:
            return [type(error).__name__, error.peer]
        except asyncio.CancelledError:
            return ["given up", None]


class Member(TopicCommands, RequestCommands):
    """The node, and the commands it knows: every public method with the command's arguments as its own."""

    def __init__(self, name: str, journal: str, **settings: Any) -> None:
        TopicCommands.__init__(self)
        RequestCommands.__init__(self)
        self.node = Node(name, **settings)
        self._journal = Journal(journal, name)
        self._gate = asyncio.Event()
        self._pushes: dict[str, Any] = {}

    async def pull(self, queue: str = "work", **options: Any) -> dict[str, Any]:
        """Consumes a queue from now on."""
        self.node.pull(queue, **options)(self._handle)
        return {}

    async def push(self, queue: str = "work", retry: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """Opens a queue to send to."""
        self._pushes[queue] = self.node.push(queue, retry=Retry(**(retry or {})), **options)
        return {}

    async def send(self, bodies: list[Any], queue: str = "work", **options: Any) -> dict[str, Any]:
        """Sends, one after the other."""
        return {"ids": [await self._pushes[queue].send(body, **options) for body in bodies]}

    async def load(
        self, count: int, queue: str = "work", seconds: float = 0, pause: float = 0, first: int = 0, burst: int = 10
    ) -> dict[str, Any]:
        """Sends ``count`` bodies that take ``seconds`` each, with a pause after each burst."""
        ids = []
        for number in range(first, first + count):
            ids.append(await self._pushes[queue].send({"n": number, "do": "work", "seconds": seconds}))
            if pause and len(ids) % burst == 0:
                await asyncio.sleep(pause)
        return {"ids": ids}

    async def group(self, group: str, pattern: str = "orders.**", **options: Any) -> dict[str, Any]:
        """Consumes what is published to these topics from now on, as a member of a group."""
        self.node.sub(pattern, group=group, **options)(self._handle)
        return {}

    async def pub(self, pattern: str, retry: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """Opens topics to publish to."""
        self._pubs[pattern] = self.node.pub(pattern, retry=Retry(**(retry or {})), **options)
        return {}

    async def publish_work(
        self, pattern: str, topics: list[str], count: int, first: int = 0, seconds: float = 0, pause: float = 0
    ) -> dict[str, Any]:
        """Publishes ``count`` bodies that take ``seconds`` each, to one topic after the other, ten between pauses."""
        for number in range(first, first + count):
            body = {"n": number, "do": "work", "seconds": seconds}
            await self._pubs[pattern].send(body, topic=topics[number % len(topics)])
            if pause and number % 10 == 0:
                await asyncio.sleep(pause)
        return {}

    async def settle(self) -> dict[str, Any]:
        """Waits until nothing is pending in any queue, and tells all books."""
        while any(books.pending for books in self.node.ledger().values()):
            await asyncio.sleep(LOOK_AGAIN_S)
        return {"ledgers": {queue: books._asdict() for queue, books in self.node.ledger().items()}}

    async def open_gate(self) -> dict[str, Any]:
        """Lets every handler pass that waits, now or later."""
        self._gate.set()
        return {}

    async def flush(self, queue: str = "work") -> dict[str, Any]:
        """Waits until nothing is pending."""
        await self._pushes[queue].flush()
        return await self.ledger(queue)

    async def ledger(self, queue: str = "work") -> dict[str, Any]:
        """The queue's books, and whether they agree."""
        books = self.node.ledger()[queue]
        return {**books._asdict(), "balanced": books.balanced}

    async def dead(self) -> dict[str, Any]:
        """The dead letters."""
        return {
            "letters": [
                {
                    "id": letter.id,
                    "body": letter.body,
                    "reason": letter.reason,
                    "error": letter.error,
                    "verdicts": [attempt.verdict for attempt in letter.attempts],
                }
                for letter in self.node.dead_letters()
            ]
        }

    async def see(self, count: int) -> dict[str, Any]:
        """Waits until this many other nodes are there, and lists them."""
        while len(self.node.peers()) < count:
            await asyncio.sleep(LOOK_AGAIN_S)
        return await self.peers()

    async def peers(self) -> dict[str, Any]:
        """The other nodes, and for how many seconds each is silent."""
        return {"peers": [[peer.name, peer.id, peer.silent_for] for peer in self.node.peers()]}

    async def wait_for(self, **what: Any) -> dict[str, Any]:
        """As the node's own."""
        await self.node.wait_for(**what)
        return {}

    async def close(self, drain: float | None = None) -> dict[str, Any]:
        """Leaves the mesh; the process ends after the answer."""
        began = time.monotonic()
        ledgers = await self.node.close(drain)
        took_s = time.monotonic() - began
        return {"took_s": took_s, "ledgers": {queue: books._asdict() for queue, books in ledgers.items()}}

    async def _handle(self, message: Message) -> None:
        self._journal.note("start", message)
        try:
            await self._obey(message)
        except asyncio.CancelledError:
            self._journal.note("cancelled", message)
            raise
        self._journal.note("finish", message)

    async def _obey(self, message: Message) -> None:
        body = message.body
        if not isinstance(body, dict) or message.attempt > body.get("attempts", message.attempt):
            return
        match body.get("do"):
            case "work":
                if body["seconds"]:
                    await asyncio.sleep(body["seconds"])
            case "gate":
                await self._gate.wait()
            case "block":
                while not Path(body["until"]).exists():
                    time.sleep(LOOK_AGAIN_S)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise RuntimeError("the body says so")

    async def tell_events(self) -> None:
        """Passes on what the node says about its peers, until it ends."""
        async for event in self.node.events():
            say(
                event=event.kind,
                peer=event.peer,
                peer_id=event.peer_id,
                queue=event.queue,
                text=event.text,
                at=time.monotonic(),
            )

    async def answer(self, number: int, command: Coroutine[Any, Any, dict[str, Any]]) -> None:
        """Carries a command out; ``error`` says why it could not."""
        try:
            say(answers=number, **await command)
        except Exception as error:
            say(answers=number, error=f"{type(error).__name__}: {error}")


async def main(settings: dict[str, Any]) -> None:
    """Until a ``close`` was answered or standard input ends."""
    began = time.monotonic()
    member = Member(**settings)
    loop = asyncio.get_running_loop()
    telling = loop.create_task(member.tell_events())
    await asyncio.sleep(0)  # it listens before anything happens
    await member.node.start()
    say(event="started", id=member.node.id, endpoint=member.node.endpoints[0], began=began, at=time.monotonic())
    reader = asyncio.StreamReader(limit=2**26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        command = json.loads(line)
        number, do = command.pop("number"), command.pop("do")
        task = loop.create_task(member.answer(number, getattr(member, do)(**command)))
        if do == "close":
            await task
            break
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    for task in tasks:
        task.cancel()
    await member.node.close(drain=0)
    await telling


def run(settings: dict[str, Any], stdin: Connection, stdout: Connection, errors: Path) -> None:
    """All that a process does which was forked for a member."""
    if sys.platform == "linux":
        # Nobody outlives the test that started it, not even stopped.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with stdin, stdout, errors.open("wb") as stderr:
        for number, file in enumerate((stdin, stdout, stderr)):
            os.dup2(file.fileno(), number)
    # What else it inherited would keep its parent alive, which ends when the last of these pipes is closed.
    os.closerange(3, 1024)
    sys.stdin, sys.stdout = open(0), open(1, "w", closefd=False)
    namespace = settings.pop("namespace", None)
    if namespace is not None:
        enter(namespace)
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(settings))


def enter(namespace: str) -> None:
    """Moves this process to another network namespace, as ``ip netns exec`` does."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
