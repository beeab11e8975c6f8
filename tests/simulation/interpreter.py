"""Runs scenarios: text files of commands and of what they lead to.

A file is a row of blocks. A block is a few commands, a line ``----``, and the lines that the cluster's log gained by
them; a blank line ends it. Lines that start with ``#`` are for the reader. With ``MESHMSG_REWRITE_SCENARIOS=1`` the
tests write what happened into the files instead of comparing, so that a change can be read as a diff.

Commands, with names of nodes in small letters, queues and topics in capitals; ``drop`` loses that share of what is
published on its way to each subscriber:

    node a [endpoint=E] [name=N]           a push Q [attempts= backoff= jitter= ttl= balance= ...]
    a send Q BODY... [key= priority= ttl= delay=]
    b pull Q [prefetch= concurrency= takes= batch= fails=yes]    b close Q
    run SECONDS    settle    crash b    restart b [same_id=yes] [endpoint=E]    leave b [drain=]
    freeze b    thaw b    stall b SECONDS    jump b SECONDS    cut a b [one_way=yes]    disconnect a b    heal
    ledger a    dead a    redrive a    peers a
    a pub T [retain=yes history=N history_s= block=yes window= will=BODY max_pending= attempts= backoff=]    a unpub T
    a publish T BODY... [size=BYTES key= priority= headers=NAME:VALUE]    lag a    drop SHARE
    b sub T [latest=yes replay=latest|history buffer= takes=]    b heard
    b group T GROUP [durable=yes where=NAME:VALUE prefetch= concurrency= takes= fails=yes]    b ungroup T GROUP
    b router S [concurrency= max_queue=]    b unserve S [drain=]    b serving S yes|no
    a request S METHOD [ARGUMENT...] [timeout= idempotent=yes hedge_after= attempts= peer= key=]
    a stream S METHOD [ARGUMENT...] [timeout= takes=]    a got NUMBER    a survey S METHOD [ARGUMENT...] [timeout=]
    a cancel NUMBER    a kept

A router's methods: ``echo``; ``slow SECONDS``; ``fail``; ``hang``; ``kill``, which kills its process; ``count N``, a
stream; ``first N``, the same and then it fails; ``relay S METHOD [ARGUMENT...]``, which requests that. ``got`` tells
what came of a stream, ``kept`` what a node keeps of requests that are over. A pull's handler, and a group's, does what
the body says: ``bad`` fails, ``reject`` rejects, ``poison`` kills its process, all else is acked. ``heard`` counts what
became of subscriptions' messages.
Every link takes one millisecond and discovery 50, so that times are round.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from meshmsg.errors import NoResponders, OutboxFull, Reject, RemoteError
from meshmsg.message import Message
from meshmsg.options import Retry
from meshmsg.testing import Cluster, ClusterCall, ClusterNode, ClusterRequest
from meshmsg.testing.request_books import find_leftovers

NUMBERS = {"prefetch", "concurrency", "batch", "priority", "max_pending", "attempts"} | {
    "history",
    "window",
    "window_bytes",
    "buffer",
    "size",
    "max_queue",
}
HEADERS = {"headers", "where"}
SECONDS = {"takes", "ttl", "delay", "backoff", "unroutable_after", "drain", "history_s", "timeout", "hedge_after"}


class Scenario:
    """One cluster, and the commands that drive it."""

    def __init__(self) -> None:
        self.cluster = Cluster(seed=1, network={"latency": (0.001, 0.001), "jitter": 0.0}, discovery=(0.05, 0.05))
        self.nodes: dict[str, ClusterNode] = {}
        self.asked: dict[int, ClusterCall] = {}
        self.shown = 0

    def run(self, lines: list[str]) -> list[str]:
        """Runs a block's commands; returns what they led to."""
        output: list[str] = []
        for line in lines:
            words = shlex.split(line)
            options = dict(word.split("=", 1) for word in words if "=" in word)
            plain = [word for word in words if "=" not in word]
            if plain[0] in self.nodes:
                plain[0], plain[1] = plain[1], plain[0]
            command: Callable[..., Iterator[str] | None] = getattr(self, f"do_{plain[0]}")
            said = list(command(*plain[1:], **{name: convert(name, value) for name, value in options.items()}) or ())
            output += [*self.news(), *said]
        return output

    def news(self) -> list[str]:
        """What the log gained since the last look."""
        lines = self.cluster.log[self.shown :]
        self.shown += len(lines)
        return [f"{float(line[:9]):7.3f}{line[9:]}" for line in lines]

    # -- nodes and sockets -----------------------------------------------------------------------------------

    def do_node(self, label: str, *, name: str | None = None, endpoint: str | None = None) -> None:
        if endpoint in self.nodes:
            endpoint = self.nodes[endpoint].endpoint
        self.nodes[label] = self.cluster.node(name or label, endpoint=endpoint)

    def do_push(
        self,
        label: str,
        queue: str,
        attempts: int = 5,
        backoff: float = 0.5,
        jitter: Literal["full", "none"] = "none",
        **options: Any,
    ) -> None:
        self.nodes[label].push(queue, retry=Retry(attempts, backoff, jitter=jitter), **options)

    def do_send(self, label: str, queue: str, *bodies: str, **options: Any) -> None:
        for body in bodies:
            self.nodes[label].pushes[queue].send(body, **options)

    def do_pull(self, label: str, queue: str, fails: str = "", **options: Any) -> None:
        handle = partial(self._handle, self.nodes[label], bool(fails))
        self.nodes[label].pull(queue, None if "batch" in options else handle, **options)

    def _handle(self, node: ClusterNode, fails: bool, message: Message) -> None:
        body = str(message.body)
        if body.startswith("poison"):
            self.cluster.crash(node)
        elif body.startswith("reject"):
            raise Reject("no use")
        elif body.startswith("bad") or fails:
            raise ValueError("no good")

    def do_close(self, label: str, queue: str) -> None:
        self.nodes[label].pulls[queue].close()

    # -- topics ----------------------------------------------------------------------------------------------

    def do_pub(
        self,
        label: str,
        pattern: str,
        retain: str = "",
        block: str = "",
        attempts: int = 5,
        backoff: float = 0.5,
        **options: Any,
    ) -> None:
        retry = Retry(attempts, backoff, jitter="none")
        self.nodes[label].pub(pattern, retain=bool(retain), block=bool(block), retry=retry, **options)

    def do_unpub(self, label: str, pattern: str) -> None:
        next(pub for pub in self.nodes[label].pubs if pub.pattern == pattern).close()

    def do_forget(self, label: str, topic: str) -> None:
        next(pub for pub in self.nodes[label].pubs if pub.fits(topic)).delete_retained(topic)

    def do_publish(self, label: str, topic: str, *bodies: str, size: int = 0, **options: Any) -> Iterator[str]:
        pub = next(pub for pub in self.nodes[label].pubs if pub.fits(topic))
        for body in bodies:
            try:
                pub.send(body.ljust(size, "."), topic, **options)
            except OutboxFull as error:
                yield f"{body} has to wait: {error}"

    def do_group(
        self, label: str, pattern: str, group: str, durable: str = "", fails: str = "", **options: Any
    ) -> None:
        node = self.nodes[label]
        node.group(pattern, group, partial(self._handle, node, bool(fails)), durable=bool(durable), **options)

    def do_ungroup(self, label: str, pattern: str, group: str) -> None:
        pulls = [pull for pull in self.nodes[label].pulls.values() if pull.binding is not None]
        for pull in pulls:
            if pull.binding is not None and (pull.binding.group, pull.binding.pattern) == (group, pattern):
                pull.close()

    def do_heard(self, label: str) -> Iterator[str]:
        for sub in self.nodes[label].subs:
            took, passed = len(sub.received), sub.subscription.conflated
            missed = sum(gap.missed for gap in sub.gaps)
            yield f"{sub.pattern}: took {took}, passed over {passed}, missed {missed}, waiting {sub.waiting}"

    def do_sub(self, label: str, pattern: str, latest: str = "", **options: Any) -> None:
        self.nodes[label].sub(pattern, latest=bool(latest), **options)

    def do_drop(self, share: str) -> None:
        self.cluster.network.broadcasts.drops = float(share)

    def do_lag(self, label: str) -> Iterator[str]:
        publisher = self.nodes[label].engine.publisher
        for peer in publisher.followers:
            yield f"{peer}: {publisher.lags(peer) or 'nothing'}"

    # -- requests --------------------------------------------------------------------------------------------

    def do_router(self, label: str, service: str, **options: Any) -> None:
        self.nodes[label].router(service, self._serve, **options)

    async def _serve(self, request: ClusterRequest) -> Any:
        arguments = [str(each) for each in request.args]
        if request.method == "slow":
            await request.sleep(float(arguments[0]))
        elif request.method == "hang":
            await request.sleep(1e6)
        elif request.method == "fail":
            raise RemoteError("no good", "broken")
        elif request.method == "kill":
            self.cluster.crash(request.node)
        elif request.method in ("count", "first"):
            for number in range(int(arguments[0])):
                await request.send(number)
                if number % 100 == 0:
                    request.node.say(f"sent item {number}")
            if request.method == "first":
                raise RemoteError("no good", "broken")
        elif request.method == "relay":
            return await request.node.dealer(arguments[0]).request(arguments[1], *arguments[2:], timeout=60.0)
        return " ".join(arguments)

    def do_unserve(self, label: str, service: str, drain: float = 5.0) -> None:
        self.nodes[label].routers[service].close(drain)

    def do_serving(self, label: str, service: str, answer: str) -> None:
        self.nodes[label].routers[service].set_serving(answer == "yes")

    def do_request(
        self,
        label: str,
        service: str,
        method: str,
        *arguments: str,
        idempotent: str = "",
        attempts: int = 5,
        hedge_after: float | None = None,
        **options: Any,
    ) -> None:
        retry = Retry(attempts, 0.1, max_backoff=1.0, jitter="none")
        dealer = self.nodes[label].dealer(service, retry=retry, idempotent=bool(idempotent), hedge_after=hedge_after)
        made = dealer.request(method, *arguments, **options)
        self.asked[made.serial] = made

    def do_stream(self, label: str, service: str, method: str, *arguments: str, **options: Any) -> None:
        made = self.nodes[label].dealer(service).stream(method, *arguments, **options)
        self.asked[made.serial] = made

    def do_survey(self, label: str, service: str, method: str, *arguments: str, **options: Any) -> Iterator[str]:
        try:
            asked = self.nodes[label].dealer(service).survey(method, *arguments, **options)
        except NoResponders as error:
            yield f"{error}"
        else:
            self.asked |= {made.serial: made for made in asked}

    def do_cancel(self, label: str, number: str) -> None:
        assert self.asked[int(number)].node is self.nodes[label]
        self.asked[int(number)].cancel()

    def do_got(self, label: str, number: str) -> Iterator[str]:
        made = self.asked[int(number)]
        assert made.node is self.nodes[label]
        yield f"{len(made.received)} items, {made.error or ('complete' if made.done else 'goes on')}"

    def do_kept(self, label: str) -> Iterator[str]:
        living = {node.key for node in self.cluster.nodes if node.alive}
        yield ", ".join(find_leftovers(self.nodes[label], living)) or "nothing"

    # -- time and faults -------------------------------------------------------------------------------------

    def do_run(self, seconds: str) -> None:
        self.cluster.run(float(seconds))

    def do_settle(self) -> None:
        self.cluster.settle()

    def do_crash(self, label: str) -> None:
        self.cluster.crash(self.nodes[label])

    def do_restart(self, label: str, same_id: str = "", endpoint: str | None = None) -> None:
        if endpoint == "same":
            endpoint = self.nodes[label].endpoint
        self.cluster.restart(self.nodes[label], same_id=bool(same_id), endpoint=endpoint)

    def do_leave(self, label: str, drain: float = 5.0) -> None:
        self.cluster.leave(self.nodes[label], drain)

    def do_freeze(self, label: str) -> None:
        self.cluster.freeze(self.nodes[label])

    def do_thaw(self, label: str) -> None:
        self.cluster.thaw(self.nodes[label])

    def do_stall(self, label: str, seconds: str) -> None:
        self.cluster.stall(self.nodes[label], float(seconds))

    def do_jump(self, label: str, seconds: str) -> None:
        self.cluster.jump(self.nodes[label], float(seconds))

    def do_cut(self, one: str, other: str, one_way: str = "") -> None:
        self.cluster.cut(self.nodes[one], self.nodes[other], one_way=bool(one_way))

    def do_disconnect(self, one: str, other: str) -> None:
        self.cluster.disconnect(self.nodes[one], self.nodes[other])

    def do_heal(self) -> None:
        self.cluster.heal()

    # -- looking ---------------------------------------------------------------------------------------------

    def do_ledger(self, label: str) -> Iterator[str]:
        for queue, books in self.nodes[label].ledger().items():
            assert books.balanced
            yield (
                f"{queue}: accepted {books.accepted} = processed {books.processed} + dead {books.dead} + pending "
                f"{books.pending} (ready {books.ready}, in flight {books.in_flight}, scheduled {books.scheduled}); "
                f"redelivered {books.redelivered}"
            )

    def do_dead(self, label: str) -> Iterator[str]:
        for letter in self.nodes[label].dead_letters():
            yield f"{letter.id} {letter.body!r} {letter.reason}: {letter.error}"
            for attempt in letter.attempts:
                yield f"    {attempt.time:.3f} {attempt.consumer} {attempt.verdict}: {attempt.error}"

    def do_redrive(self, label: str) -> None:
        self.nodes[label].redrive()

    def do_peers(self, label: str) -> Iterator[str]:
        yield " ".join(self.nodes[label].peers()) or "nobody"


def convert(name: str, value: str) -> Any:
    """An option's value in its type."""
    if name in HEADERS:
        return dict(pair.split(":", 1) for pair in value.split(","))
    if name in NUMBERS:
        return int(value)
    return float(value) if name in SECONDS else value


def replay(text: str) -> str:
    """Runs a scenario's commands and returns its text with what they led to this time."""
    scenario = Scenario()
    output: list[str] = []
    commands: list[str] = []
    in_result = False
    for line in [*text.splitlines(), ""]:
        if in_result:
            if not line:
                output += ["----", *scenario.run(commands), ""]
                commands, in_result = [], False
        elif line == "----":
            in_result = True
        else:
            output.append(line)
            if line and not line.startswith("#"):
                commands.append(line)
    while output and not output[-1]:
        output.pop()
    return "\n".join(output) + "\n"
