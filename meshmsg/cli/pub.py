"""``meshmsg pub``: messages to a topic, from arguments or standard input."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import click

from meshmsg import MeshError, Node, Peer, WaitTimeout
from meshmsg.cli import exits
from meshmsg.cli.bodies import to_json
from meshmsg.cli.numbers import NOT_NEGATIVE, POSITIVE
from meshmsg.cli.push import LOOK_EVERY_S, NOTICE_AFTER_S, BadBody, Job, feed, read_headers
from meshmsg.cli.running import Stop, complain, run
from meshmsg.cli.session import Session, session_options
from meshmsg.engine.peers import LEFT
from meshmsg.engine.publisher import Follower
from meshmsg.engine.topics import matches, require_topic
from meshmsg.observe.events import EventStream
from meshmsg.sockets.pub_sub import Pub, tell_apart
from meshmsg.sockets.sending import encode
from meshmsg.wire.codec import make_packer

JOIN_EVERY_S = 0.1
CONFIRM_S = 0.5  # what a subscriber that is seen gets at most, for its subscription to arrive


@dataclass(slots=True)
class Publishing:
    """One use of ``meshmsg pub``."""

    node: Node
    pub: Pub
    job: Job
    subscribers: int
    keeps: bool  # something for late joiners, as long as this process lives
    events: EventStream
    seen: dict[str, str] = field(default_factory=dict)  # ids of subscribers, with their names
    followed: dict[str, Follower] = field(default_factory=dict)  # what subscribers said is known when they are gone
    lost: dict[str, int] = field(default_factory=dict)  # who vanished, and how many messages each had yet to receive
    reached: bool = True  # whether anybody subscribed when the last message was published

    async def wait_for_subscribers(self) -> bool:
        """Until there are enough; with ``--timeout`` false if they don't come."""
        loop = asyncio.get_running_loop()
        end = None if self.job.timeout_s is None else loop.time() + self.job.timeout_s
        notice_at = loop.time() + NOTICE_AFTER_S
        topic = self.pub.pattern
        while True:
            # What members of a group offer is all that it takes; a subscription has to have arrived at our socket.
            missing = max(0, self.subscribers - len(self._group_members()))
            try:
                await self.node.wait_for(sub=topic, count=missing, timeout=JOIN_EVERY_S)
                await self._wait_for_others()
                self._note_listeners()
                return True
            except WaitTimeout:
                now = loop.time()
            if end is not None and now >= end:
                return False
            if now >= notice_at:
                notice_at = float("inf")
                found = len(self._subscribers())
                seen = f"{len(self.node.peers())} nodes seen, subscribers: {found} of {self.subscribers}"
                click.echo(f"meshmsg: waiting: for subscribers of {topic!r}; {seen}", err=True)

    async def _wait_for_others(self) -> None:
        """Gives those who came at the same time a moment: they are seen, and their subscriptions yet to arrive."""
        with suppress(WaitTimeout):
            await self.node.wait_for(sub=self.pub.pattern, count=len(self._plain()), timeout=CONFIRM_S)

    def _note_listeners(self) -> None:
        """Who gets what is published now; who is seen only, and on the way here, has nothing of it."""
        engine = self.pub._driver.engine
        for key in engine.publisher.confirmed(self.pub.pattern):
            self.seen[key.partition(".")[0]] = engine.peers.name_of(key)
        self.seen.update((peer.id, peer.name) for peer in self._group_members())

    def _subscribers(self) -> dict[str, str]:
        """Who subscribes, in a group or not: names by id."""
        return {peer.id: peer.name for peer in (*self._plain(), *self._group_members())}

    def _plain(self) -> list[Peer]:
        topic = self.pub.pattern
        return [
            peer for peer in self.node.peers() if any(matches(pattern, topic) for pattern in peer.offers.get("sub", {}))
        ]

    def _group_members(self) -> list[Peer]:
        topic = self.pub.pattern
        return [
            peer
            for peer in self.node.peers()
            if any(matches(f"{each.get('pattern')}", topic) for each in peer.offers.get("group", {}).values())
        ]

    async def look_who_listens(self) -> None:
        """Whether anybody gets what was just published."""
        self._note_listeners()
        try:
            await self.node.wait_for(sub=self.pub.pattern, count=0 if self._group_members() else 1, timeout=0)
        except WaitTimeout:
            self.reached = False

    async def watch(self) -> None:
        """Looks again and again who vanishes."""
        while True:
            self.look_who_vanished()
            await asyncio.sleep(LOOK_EVERY_S)

    def look_who_vanished(self) -> None:
        """Notes who is gone without a goodbye and had yet to receive some: the publisher itself forgets it."""
        publisher, topic = self.pub._driver.engine.publisher, self.pub.pattern
        for key in publisher.confirmed(topic):
            follower = self.followed[key] = publisher.followers[key]
            if follower.start is None:  # it is back, and has said where it is
                self.lost.pop(key, None)
        while (event := self.events.poll()) is not None:
            if event.kind != "peer.down" or event.text == LEFT:
                continue
            for key in [key for key in self.followed if key.startswith(f"{event.peer_id}.")]:
                follower = self.followed.pop(key)
                behind = publisher.topics().get(topic, 0) - follower.positions.get(topic, 0)
                if behind:
                    self.lost[key] = behind
                    self.seen[event.peer_id] = event.peer

    async def settle(self) -> None:
        """Until all subscribers have everything, and groups have processed it, or time runs out."""
        async with asyncio.timeout(self.job.timeout_s):
            while True:
                await asyncio.sleep(LOOK_EVERY_S)  # first: what was just published is counted from the next turn on
                if not self.behind() and not self.pending():
                    return

    def behind(self) -> dict[str, int]:
        """How many messages each subscriber has yet to receive; only those that are behind."""
        lags = {name: sum(topics.values()) for name, topics in self.pub.lag().items()}
        return {name: behind for name, behind in lags.items() if behind}

    def vanished(self) -> dict[str, int]:
        """How many messages those had yet to receive who are gone without a goodbye."""
        self.look_who_vanished()
        names = tell_apart(self.seen)
        return {names[key.partition(".")[0]]: behind for key, behind in self.lost.items()}

    def pending(self) -> dict[str, int]:
        """How many messages each group has yet to process; only groups that have any."""
        return {queue: books.pending for queue, books in self.node.ledger().items() if books.pending}

    def report(self, session: Session, stop: Stop) -> int:
        """Prints how it went, and finds the exit code."""
        job, topic = self.job, self.pub.pattern
        behind, pending, vanished = self.behind(), self.pending(), self.vanished()
        if self.keeps:
            self.seen.update(self._subscribers())
        dead = sum(books.dead for books in self.node.ledger().values())
        if session.json:
            seen = sorted(tell_apart(self.seen).values())
            document = {"topic": topic, "published": job.sent, "subscribers": seen, "behind": {**vanished, **behind}}
            click.echo(to_json({**document, "pending": pending, "dead": dead}))
        late = [f"{name!r} has yet to receive {count}" for name, count in behind.items()]
        late += [f"{queue!r} has yet to process {count}" for queue, count in pending.items()]
        late += [
            f"{name!r} is gone without a goodbye and had yet to receive {count}" for name, count in vanished.items()
        ]
        if job.sent and not self.reached and not self.keeps and not vanished:
            late.append(f"nobody subscribes ({len(self.node.peers())} nodes seen in mesh {self.node.mesh!r})")
        late += [f"{dead} messages became dead letters of a group"] if dead else []
        for line in late:
            click.echo(f"meshmsg: pub {topic!r}: {job.sent} published, {line}", err=True)
        if job.bad is not None:
            return complain(job.bad, exits.USAGE)
        if stop.by_signal and (behind or pending):
            return exits.INTERRUPTED
        if dead:
            return exits.DEAD
        return exits.NOTHING if behind or pending or vanished else exits.OK

    async def run(self, session: Session, stop: Stop) -> int:
        """All of it."""
        found = await stop.unless(self.wait_for_subscribers())
        if found is None:
            return exits.INTERRUPTED
        if not found:
            return complain(self._describe_nobody(), exits.NOTHING)
        watching = asyncio.create_task(self.watch())
        fed = await stop.unless(_done(feed(self.job, self.pub)))
        await self.look_who_listens()
        try:
            settled = await stop.unless(_done(self.settle()))
        except TimeoutError:
            settled = None
        if self.keeps and settled and self.job.bad is None:
            click.echo(f"meshmsg: keeps what late joiners of {self.pub.pattern!r} get, until Ctrl-C", err=True)
            await stop.wait()
        watching.cancel()
        code = self.report(session, stop)
        return exits.INTERRUPTED if code == exits.OK and not fed else code

    def _describe_nobody(self) -> str:
        return (
            f"found {len(self._subscribers())} of {self.subscribers} subscribers of {self.pub.pattern!r} within "
            f"{self.job.timeout_s:g} s, nothing was published; {len(self.node.peers())} nodes seen in mesh "
            f"{self.node.mesh!r}; --subscribers 0 does not wait"
        )


async def check(bodies: Sequence[str], as_json: bool) -> None:
    """Raises ``BadBody`` if one of the arguments cannot be published: none is, then."""
    pack, number = make_packer(), 0
    async for body in Job(bodies, as_json, None, None, {}, None, wait=True).read():
        number += 1
        try:
            encode(pack, body)
        except MeshError as error:
            raise BadBody(f"body {number}: {error}") from None


async def _done(work: Any) -> bool:
    await work
    return True


@click.command("pub")
@click.argument("topic")
@click.argument("bodies", nargs=-1, metavar="[BODY]...")
@click.option(
    "-n", "--count", type=click.IntRange(min=1), help="Publish this many: BODYs in turns, or lines up to here."
)
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", callback=read_headers, help="Repeatable.")
@click.option("--rate", type=POSITIVE, metavar="N", help="At most N messages a second.")
@click.option("--retain", is_flag=True, help="Keep the last message for late joiners, until Ctrl-C.")
@click.option("--history", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Keep the last N messages for late joiners, until Ctrl-C.")  # fmt: skip
@click.option("--subscribers", type=click.IntRange(min=0), metavar="N",
              help="Wait for this many first.  [default: 1; 0 with --retain or --history]")  # fmt: skip
@click.option("--block/--no-block", default=True, show_default=True,
              help="Wait for slow subscribers, or have them lose what they cannot take.")  # fmt: skip
@click.option("--timeout", type=NOT_NEGATIVE, metavar="SECONDS",
              help="Wait this long at most for subscribers, and at the end for what is on its way.")  # fmt: skip
@session_options(json_help="Bodies are JSON; afterwards what was published and who has it, as one JSON object.")
def pub(
    session: Session,
    topic: str,
    bodies: tuple[str, ...],
    count: int | None,
    headers: dict[str, str],
    rate: float | None,
    retain: bool,
    history: int,
    subscribers: int | None,
    block: bool,
    timeout: float | None,
) -> None:
    """Publish messages to a topic, and wait until its subscribers have them.

    Each BODY is a message; without any, each line of standard input is. What is published goes to everybody who
    subscribes then, so this waits for one subscriber first. One that vanishes before it has everything, without a
    goodbye (killed, frozen, cut off), is named, and the exit code is 1. What this keeps for others (--retain,
    --history) is kept in this process, which stays until Ctrl-C.

    \b
    Examples:
      meshmsg pub sensors.attic.temperature 21.5
      tail -f access.log | meshmsg pub logs.web --subscribers 0
      meshmsg pub config.colors '{"sky": "blue"}' --json --retain
    """  # fmt: skip
    keeps = bool(retain or history)
    job = Job(bodies, session.json, count, rate, {"headers": headers} if headers else {}, timeout, wait=True)
    if not session.verbose:
        logging.getLogger("meshmsg.node").setLevel(logging.ERROR)

    async def serve(stop: Stop) -> int:
        require_topic("meshmsg pub", topic)
        if bodies:
            try:
                await check(bodies, session.json)
            except BadBody as error:
                return complain(error, exits.USAGE)
        async with session.make_node("pub", drain=0.0) as node:
            socket = node.pub(topic, retain=retain, history=history, block=block)
            wanted = (0 if keeps else 1) if subscribers is None else subscribers
            return await Publishing(node, socket, job, wanted, keeps, node.events()).run(session, stop)

    run(serve)
