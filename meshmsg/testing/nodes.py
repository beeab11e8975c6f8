"""A simulated cluster's nodes and sockets: the real engine and driver, with applications that need no loop."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from meshmsg.checks import require_name
from meshmsg.driver import Driver
from meshmsg.engine.binding import Binding, freeze_where
from meshmsg.engine.effects import Outcome
from meshmsg.engine.engine import Engine
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.outbox import Outbox
from meshmsg.engine.peers import Identity
from meshmsg.engine.publisher import Broadcast
from meshmsg.engine.run import Details
from meshmsg.engine.topics import require_pattern
from meshmsg.errors import ConfigurationError, NodeClosed, OutboxFull, Reject
from meshmsg.message import Batch, DeadLetter, Event, Ledger, Message, describe_error
from meshmsg.options import DealerOptions, PubOptions, PushOptions, Replay, RouterOptions, SubOptions, make_options
from meshmsg.testing.clock import ProcessLoop
from meshmsg.testing.network import SimulatedTransport
from meshmsg.testing.requests import ClusterDealer, ClusterRequest, ClusterRouter, settle
from meshmsg.testing.topics import ClusterPub, ClusterSub
from meshmsg.wire.codec import explain_encode_error, make_packer

if TYPE_CHECKING:
    from meshmsg.testing.cluster import Cluster

Handler = Callable[[Any], Any]


class ClusterPush:
    """The producer's end of a queue in a cluster; ``ClusterNode.push`` makes it."""

    def __init__(self, node: ClusterNode, queue: str, options: PushOptions) -> None:
        self.node = node
        self.queue = queue
        self.options = options
        self._pack = make_packer()
        self.outbox: Outbox = node.engine.open_push(queue, options)

    def send(
        self,
        body: Any,
        *,
        key: str | None = None,
        priority: int = 0,
        ttl: float | None = None,
        delay: float | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """Accepts one message and returns its id; ``OutboxFull`` when there is no room, as ``send_nowait`` says."""
        node = self.node
        node.require_alive()
        outbox, now = self.outbox, node.loop.time()
        turned_away = False
        try:
            encoded = self._pack(body)
        except Exception as error:
            raise explain_encode_error(body, error) from None
        if not outbox.fits(len(encoded)):
            if self.options.overflow == "wait":
                raise OutboxFull(f"the outbox of {self.queue!r} holds {outbox.pending} messages; let time pass")
            turned_away = not outbox.drop_for(len(encoded), now)
        ttl_s = self.options.ttl if ttl is None else ttl
        if key is None and not priority and ttl is None and delay is None and headers is None:
            details = None
            number = outbox.turn_away(encoded, None, now) if turned_away else outbox.push(encoded)
        else:
            details = Details(
                key,
                priority,
                dict(headers) if headers else None,
                None if ttl_s is None else now + ttl_s,
                None if delay is None else now + delay,
            )
            accept = outbox.turn_away if turned_away else outbox.push_detailed
            number = accept(encoded, details, now)
        node.cluster.books.on_accept(node, self, number, key, priority, ttl_s, delay)
        if node.cluster.traces:
            said = ttl if details is None else ttl_s
            node.say(f"send {self.queue}/{number} {_describe_send(body, key, priority, said, delay)}")
        node.driver.wake()
        return f"{node.prefix}/{self.queue}/{number}"

    def send_many(self, bodies: Iterable[Any]) -> list[str]:
        """Accepts many plain messages and returns their ids."""
        return [self.send(body) for body in bodies]

    def ledger(self) -> Ledger:
        """Where this queue's messages are."""
        return self.outbox.ledger()


class ClusterPull:
    """The consumer's end of a queue in a cluster; ``ClusterNode.pull`` makes it.

    ``processed`` lists the bodies whose handler ended well, in that order.
    """

    def __init__(
        self,
        node: ClusterNode,
        queue: str,
        handler: Handler | None,
        *,
        prefetch: int,
        concurrency: int,
        takes: float | Callable[[], float],
        batch: int | None,
        binding: Binding | None = None,
        durable: bool = False,
    ) -> None:
        self.node = node
        self.binding = binding  # of a member of a group
        self.durable = durable
        self.queue = queue
        self.prefetch = prefetch
        self.concurrency = concurrency
        self.takes = takes
        self.batch = batch
        self.handler = handler
        self.processed: list[Any] = []
        self.hands: list[Message] = []  # what its handlers are at
        self.closed = False
        self.inbox: Inbox
        self.open()

    def open(self) -> None:
        """Begins to consume; a restart of the node does so again."""
        node = self.node
        self.closed = False
        self.hands = []
        self._busy = 0
        if self.binding is not None:
            self.inbox = node.engine.open_group(self.binding, self.prefetch, durable=self.durable)
            node.cluster.books.groups.on_join(self)
        else:
            self.inbox = node.engine.open_pull(self.queue, self.prefetch)
        node.driver.on_arrival[self.queue] = self._pump
        node.driver.wake()

    def close(self) -> None:
        """Consumes no more: what was not started goes back to its producers."""
        if self.closed or not self.node.alive:
            return
        self.node.say(f"close pull {self.queue}")
        self.closed = True
        if self.binding is not None:
            self.node.cluster.books.groups.on_part(self)
        self.node.engine.close_pull(self.queue)
        self.node.driver.on_arrival.pop(self.queue, None)
        if self.node.pulls.get(self.queue) is self:
            del self.node.pulls[self.queue]
        self.node.driver.wake()

    @property
    def unsettled(self) -> int:
        """Messages that were started and have no verdict yet."""
        return sum(1 for message in self.hands if not message.settled)

    def _pump(self) -> None:
        """Starts what can be started."""
        loop = self.node.loop
        while self._busy < self.concurrency and not self.closed and not loop.ended:
            if loop.held:
                loop.call_soon(self._pump)
                return
            messages = self.inbox.take(self.batch or 1, loop.time()).messages
            if not messages:
                return
            self._begin(messages)

    def _begin(self, messages: list[Message]) -> None:
        node, inbox = self.node, self.inbox
        life = node.life
        self._busy += 1
        self.hands += messages
        for message in messages:
            if node.cluster.traces:
                node.say(f"start {_describe_message(message)}")
            node.cluster.books.on_start(node, self, message)
        error: Exception | None = None
        try:
            if self.handler is not None:
                _call(self.handler, Batch(messages) if self.batch else messages[0])
        except Exception as caught:  # whatever a handler raises is its verdict
            error = caught
        if node.life != life or node.loop.ended:
            return  # it killed its own process
        seconds = self.takes() if callable(self.takes) else self.takes
        if seconds > 0 or node.loop.held:
            end = node.loop.time() + seconds
            node.loop.call_at(end, lambda: self._end(inbox, messages, error, pump=True))
        else:
            self._end(inbox, messages, error, pump=False)

    def _end(self, inbox: Inbox, messages: list[Message], error: Exception | None, *, pump: bool) -> None:
        node = self.node
        if node.driver.closed:
            return  # it has said goodbye: nobody hears its verdicts any more
        for message in messages:
            if not message.settled:
                if error is None:
                    message.ack()
                elif isinstance(error, Reject):
                    message.reject(str(error) or "rejected")
                else:
                    message.nack(error=describe_error(error))
            verdict = node.cluster.books.on_verdict(message)
            if verdict == "ack":
                self.processed.append(message.body)
            if node.cluster.traces:
                node.say(f"{verdict} {_describe_message(message)}")
        if inbox is self.inbox:
            self._busy -= 1
            self.hands = [message for message in self.hands if message not in messages]
        if pump:
            self._pump()


class ClusterNode:
    """One simulated process with its node; ``Cluster.node`` makes it.

    ``events`` lists what the node told its operator, ``letters`` every dead letter it ever had.
    """

    def __init__(self, cluster: Cluster, name: str, host: str, endpoint: str) -> None:
        self.cluster = cluster
        self.name = name
        self.host = host
        self.endpoint = endpoint
        self.life = 0  # counts its processes
        self.key = ""  # names this life of the node
        self.audited = -1  # what had run in its loop when it was last audited
        self.alive = False
        self.leaving = False
        self.frozen_at = 0.0  # when it last stood still
        self.pushes: dict[str, ClusterPush] = {}
        self.pulls: dict[str, ClusterPull] = {}
        self.pubs: list[ClusterPub] = []
        self.subs: list[ClusterSub] = []
        self.sub_count = 0
        self.routers: dict[str, ClusterRouter] = {}
        self.serving_now: ClusterRequest | None = None  # whose handler runs at the moment
        self.pack = make_packer()
        self.events: list[Event] = []
        self.letters: list[DeadLetter] = []
        self.engine: Engine
        self.driver: Driver
        self.loop: ProcessLoop
        self.transport: SimulatedTransport

    # -- what an application does ----------------------------------------------------------------------------

    def push(self, queue: str, **options: Any) -> ClusterPush:
        """The producer's end of a queue; takes the options of ``Node.push``."""
        self.require_alive()
        require_name("push(queue)", queue)
        if queue not in self.pushes:
            self.pushes[queue] = ClusterPush(self, queue, make_options(PushOptions, f"push({queue!r})", options))
            self.driver.wake()
        return self.pushes[queue]

    def pull(
        self,
        queue: str,
        handler: Handler | None = None,
        *,
        prefetch: int = 256,
        concurrency: int = 1,
        takes: float | Callable[[], float] = 0.0,
        batch: int | None = None,
    ) -> ClusterPull:
        """Consumes a queue with a handler, as ``Node.pull`` does; without one, every message is acked.

        The handler is called when a message starts, and its verdict is given ``takes`` seconds later; a function is
        asked each time. With ``batch`` it gets a ``Batch`` of up to so many messages. A coroutine function will do if
        it awaits nothing that needs an event loop.
        """
        self.require_alive()
        require_name("pull(queue)", queue)
        if queue in self.pulls:
            raise ConfigurationError(f"node {self.name!r} pulls {queue!r} already; close that pull first")
        pull = ClusterPull(self, queue, handler, prefetch=prefetch, concurrency=concurrency, takes=takes, batch=batch)
        self.pulls[queue] = pull
        return pull

    def pub(self, pattern: str, **options: Any) -> ClusterPub:
        """Topics to publish to; takes the options of ``Node.pub``."""
        self.require_alive()
        require_pattern("pub(pattern)", pattern)
        pub = ClusterPub(self, pattern, make_options(PubOptions, f"pub({pattern!r})", options))
        self.pubs.append(pub)
        return pub

    def sub(
        self,
        pattern: str,
        handler: Handler | None = None,
        *,
        latest: bool = False,
        replay: Replay = "none",
        buffer: int = 65_536,
        prefetch: int = 256,
        takes: float | Callable[[], float] = 0.0,
    ) -> ClusterSub:
        """Hears of topics, as ``Node.sub`` does; its application takes a message every ``takes`` seconds.

        The handler, if there is one, is a plain function that is called with each message.
        """
        self.require_alive()
        require_pattern("sub(pattern)", pattern)
        options = {"latest": latest, "replay": replay, "buffer": buffer, "prefetch": prefetch}
        self.sub_count += 1
        chosen = make_options(SubOptions, f"sub({pattern!r})", options)
        sub = ClusterSub(self, self.sub_count, pattern, handler, chosen, takes)
        self.subs.append(sub)
        return sub

    def group(
        self,
        pattern: str,
        group: str,
        handler: Handler | None = None,
        *,
        durable: bool = False,
        where: Mapping[str, Any] | None = None,
        prefetch: int = 256,
        concurrency: int = 1,
        takes: float | Callable[[], float] = 0.0,
    ) -> ClusterPull:
        """Subscribes as a member of a group, as ``Node.sub(pattern, group=...)`` does; else as ``pull``."""
        self.require_alive()
        require_pattern("group(pattern)", pattern)
        binding = Binding(group, pattern, freeze_where(where))
        if binding.queue in self.pulls:
            raise ConfigurationError(f"node {self.name!r} is a member of {binding.queue!r} already; close that first")
        member = ClusterPull(
            self,
            binding.queue,
            handler,
            prefetch=prefetch,
            concurrency=concurrency,
            takes=takes,
            batch=None,
            binding=binding,
            durable=durable,
        )
        self.pulls[binding.queue] = member
        return member

    def router(
        self,
        service: str,
        handler: Handler | None = None,
        *,
        takes: float | Callable[[], float] = 0.0,
        **options: Any,
    ) -> ClusterRouter:
        """Serves requests with a handler that gets each as a ``ClusterRequest``; takes the options of ``Node.router``.

        A plain function answers ``takes`` seconds later with what it returns or raises. A coroutine function may await
        ``request.sleep``, ``request.send``, ``request.take`` and requests of this node's own. Without one, the answer
        is the arguments.
        """
        self.require_alive()
        require_name("router(service)", service)
        router = ClusterRouter(
            self, service, handler, make_options(RouterOptions, f"router({service!r})", options), takes
        )
        self.routers[service] = router
        return router

    def dealer(self, service: str, **options: Any) -> ClusterDealer:
        """The client's end of a service; takes the options of ``Node.dealer`` but ``interceptors``."""
        self.require_alive()
        require_name("dealer(service)", service)
        return ClusterDealer(self, service, make_options(DealerOptions, f"dealer({service!r})", options))

    def ledger(self) -> dict[str, Ledger]:
        """The books of every queue that this node sends to."""
        return self.engine.ledger()

    def dead_letters(self, queue: str | None = None) -> list[DeadLetter]:
        """The dead letters that are kept, oldest first."""
        return self.engine.dead_letters.letters(queue)

    def redrive(self, *ids: str) -> list[str]:
        """Sends dead letters again, all of them without ids; returns the ids of those that went."""
        self.require_alive()
        moved = self.engine.redrive(ids or [letter.id for letter in self.dead_letters()])
        for message_id in moved:
            self.say(f"redrive {message_id}")
            self.cluster.books.on_redrive(self, message_id)
        self.driver.wake()
        return moved

    def peers(self) -> list[str]:
        """Names of the nodes that are connected both ways, sorted."""
        return sorted(peer.name for peer in self.engine.list_peers(self.loop.time()))

    # -- its process -----------------------------------------------------------------------------------------

    @property
    def prefix(self) -> str:
        """What its messages' ids begin with."""
        return self.engine.identity.node_id[:12]

    def require_alive(self) -> None:
        """Raises ``NodeClosed`` unless its process lives and has not said goodbye."""
        if not self.alive or self.driver.closed:
            raise NodeClosed(f"node {self.name!r} does not run: cluster.restart(node) starts it again")

    def soon(self, action: Callable[[], Any]) -> None:
        """Does something in its loop, if it is still there then."""
        if self.alive and not self.leaving:
            self.loop.call_soon(lambda: None if self.leaving or self.driver.closed else action())

    def boot(self, node_id: str, incarnation: int, seed: int) -> None:
        """Starts a process, with the sockets that the one before had."""
        cluster = self.cluster
        self.life += 1
        self.alive, self.leaving = True, False
        self.key = f"{node_id}.{incarnation}"
        self.audited = -1
        self.loop = ProcessLoop(cluster.clock)
        self.transport = cluster.network.open(self.loop, self.host, self.endpoint)
        identity = Identity(node_id, incarnation, self.name, "default", (self.endpoint,))
        self.engine = Engine(identity, generator=random.Random(seed), liveness=cluster.liveness)
        self.driver = Driver(self.engine)
        self.driver.on_outcome = self._on_outcome
        self.driver.on_dead = self._on_dead
        self.driver.on_events = self._on_events
        self.driver.on_answered = partial(settle, self)
        self.engine._broadcaster.on_collected = self._on_collected
        self.transport.wake = self.driver.wake
        self.driver.start(self.loop, self.transport)
        for push in self.pushes.values():
            push.outbox = self.engine.open_push(push.queue, push.options)
        for pull in self.pulls.values():
            pull.open()
        for pub in self.pubs:
            pub.open()
        for sub in self.subs:
            sub.open()
        self.serving_now = None
        for router in self.routers.values():
            router.open()

    def end(self) -> None:
        """Its process is no more."""
        self.alive = False
        self.driver.stop()
        self.loop.end()

    def say(self, text: str) -> None:
        """A line for the cluster's log."""
        self.cluster.say(self.name, text)

    def _on_collected(self, broadcasts: list[Broadcast]) -> None:
        self.engine.groups.take(broadcasts)
        self.cluster.books.on_groups(self, broadcasts)

    def _on_outcome(self, outcome: Outcome) -> None:
        if outcome.letter is None:
            self.cluster.books.on_processed(self, outcome.queue, outcome.number)

    def _on_dead(self, letters: list[DeadLetter]) -> None:
        self.letters += letters
        for letter in letters:
            queue, _, number = letter.id.partition("/")[2].rpartition("/")
            if self.cluster.traces:
                self.say(f"dead {queue}/{number}: {letter.reason}, {letter.error}")
            self.cluster.books.on_dead(self, queue, int(number), letter)

    def _on_events(self, events: list[Event]) -> None:
        self.events += events
        for event in events:
            self.cluster.books.on_event(self, event)
        if self.cluster.traces:
            for event in events:
                self.say(" ".join(filter(None, (event.kind, event.peer, event.text))))

    def __repr__(self) -> str:
        return f"<ClusterNode {self.name} {'alive' if self.alive else 'down'}>"


def _call(handler: Handler, argument: Any) -> None:
    result = handler(argument)
    if not inspect.iscoroutine(result):
        return
    try:
        result.send(None)
    except StopIteration:
        return
    result.close()
    raise ConfigurationError(
        f"{getattr(handler, '__name__', handler)} awaits something that needs an event loop; a cluster in virtual "
        "time has none: use takes= for how long a message takes"
    )


def _describe_send(body: Any, key: str | None, priority: int, ttl: float | None, delay: float | None) -> str:
    said = [f"{body!r}"]
    for name, value in (("key", key), ("priority", priority or None), ("ttl", ttl), ("delay", delay)):
        if value is not None:
            said.append(f"{name}={value}")
    return " ".join(said)


def _describe_message(message: Message) -> str:
    said = f"{message.id} {message.body!r}"
    if message.attempt > 1:
        said += f" attempt={message.attempt}"
    return f"{said} redelivered" if message.redelivered else said
