"""The node: the composition root, and the only file that wires rooms together."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

from meshmsg.addresses import is_loopback
from meshmsg.busy_poll import BusyPoll
from meshmsg.checks import (
    refuse_unbuilt,
    require_bool,
    require_int,
    require_items,
    require_name,
    require_number,
    require_strings,
)
from meshmsg.discovery import Candidate, Discovery, MdnsDiscovery, StaticDiscovery
from meshmsg.driver import Driver
from meshmsg.engine.broadcasting import WILL
from meshmsg.engine.conversing import ROUTER
from meshmsg.engine.engine import PAUSED, Engine
from meshmsg.engine.outbox import MAX_FRAME_BYTES
from meshmsg.engine.peers import Identity
from meshmsg.engine.topics import require_pattern
from meshmsg.errors import ConfigurationError, MeshError, NodeClosed
from meshmsg.loops import choose_loop, require_reader_loop, serve
from meshmsg.message import DeadLetter, Event, Ledger, Peer
from meshmsg.observe.events import EventHub, EventStream
from meshmsg.options import (
    MAX_COUNT,
    DealerKeywords,
    GroupKeywords,
    LivenessOptions,
    PubKeywords,
    PullKeywords,
    PushKeywords,
    RouterKeywords,
    SubKeywords,
)
from meshmsg.reach import choose_addresses, require_reach
from meshmsg.sockets.background import Background
from meshmsg.sockets.bare import BarePush
from meshmsg.sockets.bare_pub_sub import BARE_SUB, BarePub
from meshmsg.sockets.dealer import Dealer
from meshmsg.sockets.group_sub import GroupSub
from meshmsg.sockets.here import require_here, require_loop_here
from meshmsg.sockets.pub_sub import Pub, Sub, require_will
from meshmsg.sockets.push_pull import Pull, Push
from meshmsg.sockets.queues import Queues
from meshmsg.sockets.raw import RawSockets, count_losses
from meshmsg.sockets.router import Router
from meshmsg.sockets.services import Services
from meshmsg.sockets.shown import Shown, counted, describe_life
from meshmsg.sockets.topics import Topics
from meshmsg.sockets.wait_for import wait_for_nodes
from meshmsg.transport.zmq import ZmqTransport
from meshmsg.unclosed import forget, remember, warn_of_loss
from meshmsg.wire.frames import MAX_HEADER_BYTES

logger = logging.getLogger("meshmsg.node")

DEFAULT_DRAIN_S = 5.0
# Longer than an answer over loopback or a local network takes. Who is woken more often than that is busy for half of
# the time anyway, since to be woken and to work with cold caches takes so long.
BUSY_POLL_S = 0.0003
MAX_BUSY_POLL_S = 0.1  # whoever wants more means microseconds
# What peers get to take back what is on its way to a leaving consumer, and what all of leaving may take, mostly their
# answer to its goodbye. With what goodbyes get to leave the process, less than the second that ``close`` may take
# beyond its drain (G10).
RETURN_S, GOODBYE_S = 0.3, 0.7
LINGER_MS = 200


class Node(Shown):
    """One process's place in a mesh.

    Parameters
    ----------
    name:
        For people; need not be unique, nodes are told apart by an id of their own.
    mesh:
        Nodes of one mesh see each other and nobody else.
    seeds:
        Addresses to dial besides what mDNS finds: ``"tcp://host:port"`` or ``"host:port"``.
    mdns:
        Whether to announce and look for nodes through multicast DNS.
    interfaces:
        Interface names or addresses. The default is loopback: without a key a node talks to its own machine (G12).
    unencrypted:
        Allows interfaces beyond loopback although this version cannot encrypt yet. For test networks only.
    port:
        TCP port of the node's inbox; 0 lets the system choose.
    heartbeat, suspect_after, gone_after, stall_after:
        Seconds, see ``LivenessOptions``.
    max_message_bytes:
        Largest encoded body to send, in bytes. What is taken may be larger by 4 MiB, for the headers of frames.
    max_dead_letters:
        Dead letters kept in memory; the oldest go first, with an event.
    drain:
        Seconds that leaving the ``with`` block waits for pending work (G10).
    busy_poll:
        Seconds that the event loop stays awake for an answer in a quick exchange, where the last ones came sooner: one
        request or acked message after the other takes a third less time then, and keeps the processor busy while it
        waits, though anybody else who needs it goes first. 0 for a loop that always sleeps.
    secret, store:
        Not built yet: refused.

    Examples
    --------
    >>> async with Node("camera") as node:
    ...     print(node.name, node.mesh, node.peers())
    camera default []
    """

    def __init__(
        self,
        name: str,
        *,
        mesh: str = "default",
        seeds: Sequence[str] = (),
        mdns: bool = True,
        interfaces: Sequence[str] | None = None,
        unencrypted: bool = False,
        port: int = 0,
        heartbeat: float = 0.5,
        suspect_after: float = 1.5,
        gone_after: float = 2.0,
        stall_after: float = 30.0,
        max_message_bytes: int = 64 * 2**20,
        max_dead_letters: int = 10_000,
        drain: float = DEFAULT_DRAIN_S,
        busy_poll: float = BUSY_POLL_S,
        secret: None = None,
        store: None = None,
    ) -> None:
        refuse_unbuilt("Node", secret=secret, store=store)
        self.name = require_name("Node(name)", name)
        self.mesh = require_name("Node(mesh=)", mesh)
        require_int("Node(max_message_bytes=)", max_message_bytes, at_least=1024, at_most=MAX_COUNT)
        require_int("Node(max_dead_letters=)", max_dead_letters, at_least=1)
        require_int("Node(port=)", port, at_least=0, at_most=65535)
        require_number("Node(drain=)", drain, at_least=0)
        require_number("Node(busy_poll=)", busy_poll, at_least=0, at_most=MAX_BUSY_POLL_S)
        require_bool("Node(mdns=)", mdns)
        require_bool("Node(unencrypted=)", unencrypted)
        require_items("Node(seeds=)", seeds, 'write seeds=["tcp://host:port"]')
        self.drain = drain
        self._busy_poll_s = busy_poll
        self._interfaces = choose_addresses(interfaces, unencrypted)
        self._seeds = StaticDiscovery(seeds) if seeds else None
        if self._seeds is not None:
            require_reach(self._seeds.endpoints, self._interfaces)
        self._mdns = mdns
        self._port = port
        self._max_message_bytes = max_message_bytes
        liveness = LivenessOptions(heartbeat, suspect_after, gone_after, stall_after)
        identity = Identity(uuid.uuid4().hex, time.time_ns(), name, mesh)
        identity.max_body_bytes = max(max_message_bytes, MAX_FRAME_BYTES)
        self._engine = Engine(
            identity,
            generator=random.Random(),
            liveness=liveness,
            max_dead_letters=max_dead_letters,
        )
        self._driver = Driver(self._engine)
        self._driver.on_dead = self._handle_dead
        self._hub = EventHub(name, guard=partial(require_loop_here, self._driver))
        self._driver.on_events = self._hub.publish
        self._transport: ZmqTransport | None = None
        self._discoveries: list[Discovery] = []
        self._discovering = Background(name)
        self._hooks = Background(name, self._driver.wake)
        self._queues = Queues(self._driver, max_message_bytes)
        self._driver.on_outcome = self._queues.handle_outcome
        self._topics = Topics(self._driver, max_message_bytes)
        self._services = Services(self._driver, max_message_bytes)
        self._raws: RawSockets | None = None
        self._books: dict[str, Ledger] | None = None  # the last ones, after the close
        self._closing: asyncio.Task[dict[str, Ledger]] | None = None
        self._draining: asyncio.Task[None] | None = None

    # -- life ------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """What tells this node apart from all others; new at every start."""
        return self._engine.identity.node_id

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where other nodes reach this one, once it is started."""
        return self._engine.identity.endpoints

    async def start(self) -> Self:
        """Binds, announces, connects. ``async with node:`` does it too. Raises ``AddressUnavailable``."""
        self._driver.require_process()
        if self._driver.closed:
            raise NodeClosed(f"node {self.name!r} is closed: make a new Node")
        if self._transport is not None:
            raise NodeClosed(f"node {self.name!r} is started already")
        loop = asyncio.get_running_loop()
        require_reader_loop(loop)
        transport = ZmqTransport(
            addresses=self._interfaces,
            port=self._port,
            max_message_bytes=max(self._max_message_bytes, MAX_FRAME_BYTES) + MAX_HEADER_BYTES,
            heartbeat_interval_s=self._engine.liveness.heartbeat,
            heartbeat_timeout_s=self._engine.liveness.suspect_after,
        )
        identity = self._engine.identity
        try:
            identity.endpoints = transport.bind()
        except BaseException:
            transport.close()
            raise
        self._transport = transport
        self._engine.set_wall_offset(time.time() - loop.time())
        remember(self)
        self._driver.start(loop, transport, BusyPoll(loop, self._busy_poll_s) if self._busy_poll_s else None)
        transport.start(loop, self._driver.turn)
        if all(map(is_loopback, self._interfaces)):
            logger.info("node %r talks to its own machine only (loopback), at %s", self.name, identity.endpoints[0])
        if self._mdns:
            found = MdnsDiscovery(
                mesh=self.mesh,
                node_id=identity.node_id,
                name=self.name,
                endpoints=identity.endpoints,
                interfaces=self._interfaces,
            )
            self._discoveries.append(found)
        if self._seeds is not None:
            self._discoveries.append(self._seeds)
        for discovery in self._discoveries:
            self._discovering.spawn(self._discover(discovery))
        self._raws = RawSockets(self._driver, transport, self._interfaces)
        self._queues.connect(self._raws)
        self._topics.connect(self._raws)
        self._services.connect()
        return self

    async def _discover(self, discovery: Discovery) -> None:
        try:
            await discovery.start(self._handle_found, self._handle_lost)
        except MeshError as error:
            # Seeds, or nodes that dial this one, may do.
            self._hub.publish([Event("discovery.failed", time.time(), text=str(error))])

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._driver.is_foreign_process:  # a forked child that ends leaves its parent's node alone
            await self.close()

    async def close(self, drain: float | None = None) -> dict[str, Ledger]:
        """Leaves: consumes no more, drains for ``drain`` seconds, says goodbye, returns the ledgers (G10).

        Draining waits for running handlers, which may still send to queues that are open, and for pending work: of
        queues, groups, and requests of this node, of which those without an answer are ``Cancelled`` then; and for the
        hooks of dead letters, of which those that still run at the end are cancelled, and counted in the log. All ends
        within ``drain`` plus a second, whatever the peers do. A second call waits for the first one.
        """
        if self._closing is None:
            seconds = self.drain if drain is None else drain
            require_number("close(drain=)", seconds, at_least=0)
            if self._transport is not None and not self._driver.closed:
                self._driver.require_usable()
                self._driver.require_loop()
            self._closing = asyncio.ensure_future(self._close(seconds))
        self._hooks.leave_out(asyncio.current_task())  # a hook may close its node
        return await asyncio.shield(self._closing)

    async def _close(self, drain: float) -> dict[str, Ledger]:
        if self._transport is None:
            self._driver.stop()
            self._hub.close()
            return self.ledger()
        self._draining = asyncio.ensure_future(self._drain(drain))
        await asyncio.wait({self._draining})
        if not self._draining.cancelled() and self._draining.exception() is not None:
            logger.error("node %r: draining failed", self.name, exc_info=self._draining.exception())
        # Not before: what is pending may still wait for a consumer to be found.
        unannounced = asyncio.gather(*(each.close() for each in self._discoveries), return_exceptions=True)
        await self._queues.close_bare()
        self._topics.close()
        loop = asyncio.get_running_loop()
        patience = loop.time() + GOODBYE_S
        await self._driver.until(lambda: not self._engine.leaving, RETURN_S)
        self._take_last()
        self._engine.close()
        self._driver.turn()
        self._books = self._engine.ledger()
        self._driver.retire()
        self._queues.close()
        self._discovering.cancel()
        # A peer whose link to this node broke before it read the goodbye would take it for a crash.
        await self._driver.until(
            lambda: self._engine.parted and not self._cleaning_up, max(0.0, patience - loop.time())
        )
        if cut := self._hooks.cancel():
            logger.warning("node %r closed and cut off %d hooks that still ran", self.name, cut)
        self._driver.stop()
        await unannounced
        self._transport.close(linger_ms=LINGER_MS)
        forget(self)
        self._hub.close()
        for queue, books in self._books.items():
            if books.pending:
                logger.warning("node %r closed with %d messages of %r pending", self.name, books.pending, queue)
        return self._books

    async def _drain(self, drain: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain
        await asyncio.gather(
            self._services.drain(drain),
            self._queues.drain(drain),
            *(sub.close(drain) for sub in self._topics.subs),
        )
        engine = self._engine
        engine.finish_publishing()
        self._driver.wake()
        left = max(0.0, deadline - loop.time())
        await self._driver.until(
            lambda: (
                engine.published
                and not self._cleaning_up
                and not engine.calls.pending
                and not any(box.pending for box in engine.outboxes.values())
            ),
            left,
        )

    @property
    def _cleaning_up(self) -> bool:
        """Whether hooks of dead letters are not done yet, or generators of ``items=`` that clean up."""
        return bool(self._hooks or self._driver.endings)

    def _take_last(self) -> None:
        """For another face, of which threads may have published what the loop has yet to hear of."""

    def _hurry(self) -> None:
        """Ends the drain of a ``close`` that is under way: what is pending stays so."""
        require_here(self._driver)
        if self._draining is not None:
            self._draining.cancel()

    def run(self, *, uvloop: bool | None = None) -> dict[str, Ledger]:
        """Starts the node and blocks until SIGINT or SIGTERM, then drains and closes; returns the ledgers.

        ``uvloop=True`` insists on uvloop (extra ``speed``), False on asyncio; None takes uvloop if it is installed.
        A second signal closes at once.
        """
        return serve(self.start, self._hurry, self.close, choose_loop(uvloop))

    # -- sockets ---------------------------------------------------------------------------------------------

    @overload
    def push(self, queue: str, *, reliable: Literal[False]) -> BarePush: ...
    @overload
    def push(self, queue: str, **options: Unpack[PushKeywords]) -> Push: ...
    def push(self, queue: str, **options: Any) -> Push | BarePush:
        """The producer's end of a queue; the same queue with the same options is the same socket.

        Takes the options of ``PushOptions``: ``retry``, ``balance``, ``max_pending``, ``max_pending_bytes``,
        ``overflow``, ``ttl``, ``unroutable_after``, ``dead_letter_to``, ``reliable``; and ``on_dead_letter``, a
        function or coroutine function. Raises ``UnknownOption``, ``ConfigurationError``, ``NameClash``.
        """
        self._require_open()
        return self._queues.push(queue, options)

    def pull(self, queue: str, **options: Unpack[PullKeywords]) -> Pull:
        """The consumer's end of a queue: a decorator for a handler, or an async iterator.

        Takes the options of ``PullOptions``: ``prefetch`` (256), ``concurrency`` (1), ``timeout`` (seconds a handler
        may take), ``type``, ``reliable``. Raises ``UnknownOption``, ``ConfigurationError``, ``NameClash``.
        """
        self._require_open()
        return self._queues.pull(queue, options)

    @overload
    def pub(self, pattern: str, *, reliable: Literal[False]) -> BarePub: ...
    @overload
    def pub(self, pattern: str, **options: Unpack[PubKeywords]) -> Pub: ...
    def pub(self, pattern: str, **options: Any) -> Pub | BarePub:
        """Topics to publish to: one (``"sensors.attic"``) or all that match (``"sensors.**"``).

        The same pattern with the same options is the same socket. Takes the options of ``PubOptions``: ``retain``,
        ``history``, ``history_bytes``, ``history_s``, ``block``, ``window``, ``will``, ``reliable``; and, for groups,
        some of ``push``. Raises ``UnknownOption``, ``ConfigurationError``, and ``NameClash`` if one of the topics has
        other options already.
        """
        self._require_open()
        will = options.get("will")
        if will is None:
            return self._topics.pub(pattern, options)
        with self._engine.reserving_offer(WILL, require_pattern("pub(pattern)", pattern), require_will(pattern, will)):
            return self._topics.pub(pattern, options)

    @overload
    def sub(self, pattern: str, *, group: str, **options: Unpack[GroupKeywords]) -> GroupSub: ...
    @overload
    def sub(self, pattern: str, *, group: None = None, **options: Unpack[SubKeywords]) -> Sub: ...
    def sub(self, pattern: str, *, group: str | None = None, **options: Any) -> Sub | GroupSub:
        """The messages of a topic, or of all that match: ``*`` is one segment, ``**`` any number (G6).

        A decorator for a handler, or an async iterator. Takes the options of ``SubOptions``: ``latest``, ``replay``,
        ``buffer``, ``prefetch``, ``concurrency``, ``timeout``, ``type``, ``where``, ``reliable``; and ``on_gap``, a
        function that is called with each ``Gap``. Each call is a subscription of its own. Raises ``UnknownOption``,
        ``ConfigurationError``.

        With ``group=`` this node is a member of a group: one member processes each message, with acks, retries and
        dead letters as in PUSH/PULL, and every group gets all (G7). ``GroupOptions`` has the options of that.
        """
        self._require_open()
        if group is not None:
            return self._queues.join(pattern, {"group": group, **options})
        if options.get("reliable") is not False:
            return self._topics.sub(pattern, options)
        with self._engine.reserving_offer(BARE_SUB, require_pattern("sub(pattern)", pattern), {}):
            return self._topics.sub(pattern, options)

    def router(self, service: str, **options: Unpack[RouterKeywords]) -> Router:
        """A service that other nodes may request: ``@router.method`` offers a function (G8).

        Takes the options of ``RouterOptions``: ``concurrency`` (64), ``max_queue`` (1000), ``max_queue_bytes``
        (64 MiB), ``timeout``, ``tracebacks``; and ``interceptors``, coroutine functions ``(context, proceed)``. Other
        nodes hear of it with its first method. Raises ``UnknownOption``, ``ConfigurationError``, ``NameClash``.
        """
        self._require_open()
        require_name("router(service)", service)
        with self._engine.reserving_offer(ROUTER, service, PAUSED):  # which its first method makes
            return self._services.router(service, options)

    def dealer(self, service: str, **options: Unpack[DealerKeywords]) -> Dealer:
        """The client's end of a service: ``await dealer.request(method, ...)`` asks one of those who offer it (G8).

        Takes the options of ``DealerOptions``: ``timeout`` (10 s), ``balance``, ``idempotent``, ``retry``,
        ``hedge_after``, ``max_pending``; and ``interceptors``, coroutine functions ``(outgoing, proceed)``. Raises
        ``UnknownOption``, ``ConfigurationError``.
        """
        self._require_open()
        return self._services.dealer(service, options)

    def raw(self, kind: int, name: str) -> Any:
        """A plain pyzmq socket that discovery keeps connected, with no layer on top.

        ``kind`` is ``zmq.PUSH``, ``zmq.SUB`` and so on. PULL, PUB, XPUB, ROUTER and REP bind and are offered to the
        mesh under ``name``; their counterparts connect to every node that offers one, as nodes come and go.
        Use the socket in this thread, and close it when done: peers hear of that within about a second, and what they
        send to it until then is lost. Raises ``ConfigurationError``, also for a PAIR, and ``NameClash``.

        Of the asyncio face only: the loop's thread connects and disconnects the socket, and no other may use it.
        """
        require_name("raw(name)", name)
        self._driver.require_usable()
        assert self._raws is not None, "a usable node has started its sockets"
        return self._raws.open(kind, name).socket

    # -- looking ---------------------------------------------------------------------------------------------

    async def wait_for(
        self,
        *,
        pull: str | None = None,
        push: str | None = None,
        sub: str | None = None,
        pub: str | None = None,
        group: str | None = None,
        router: str | None = None,
        peer: str | None = None,
        count: int = 1,
        timeout: float | None = None,
    ) -> None:
        """Waits until ``count`` living nodes pull a queue, push to it, or bear a name; raises ``WaitTimeout``.

        Those who pull a queue in another way than this node pushes to it, reliably or not, do not count. With ``sub``
        or ``group``: until so many get what is published here to a topic, or as members of a group. With
        ``pub``: until so many publish to a topic and have confirmed this node's subscriptions to it. With ``router``:
        until so many serve it. Use it instead of sleeping for slow joiners. This node counts too, except for ``peer``.
        """
        self._driver.require_usable()
        given = {"pull": pull, "push": push, "sub": sub, "pub": pub, "group": group, "router": router, "peer": peer}
        await wait_for_nodes(self._driver, self._queues, self._topics, given, count, timeout)

    def peers(self) -> list[Peer]:
        """The other nodes of the mesh that are connected both ways."""
        require_here(self._driver)
        return self._engine.list_peers(self._driver.now())

    def ledger(self) -> dict[str, Ledger]:
        """The books of every queue this node sends to (G1); after the close, the last ones."""
        require_here(self._driver)
        return self._books if self._books is not None else self._engine.ledger()

    def dead_letters(self, queue: str | None = None) -> list[DeadLetter]:
        """The dead letters that are kept, oldest first; of one queue, or of all."""
        require_here(self._driver)
        if queue is not None:
            require_name("dead_letters(queue)", queue)
        return self._engine.dead_letters.letters(queue)

    def redrive(self, *ids: str, queue: str | None = None) -> list[str]:
        """Sends dead letters again, under their ids and with all their attempts; returns the ids that went.

        Without ids, all of ``queue``, or all there are; those that find no room in the outbox stay. Of a queue without
        dead letters none go, and nobody asks whether there is such a queue: one that is closed and empty is forgotten,
        its dead letters are not. Raises ``ConfigurationError`` for an id that ``dead_letters`` does not list, and
        nothing goes then.
        """
        self._driver.require_usable()
        if ids and queue is not None:
            raise ConfigurationError("redrive takes ids or queue=, not both")
        require_strings("redrive(*ids)", ids, "write redrive(letter.id)")
        for each in ids:
            if self._engine.dead_letters.find(each) is None:
                raise ConfigurationError(f"no dead letter {each!r} is kept: node.dead_letters() lists those that are")
        moved = self._engine.redrive(ids or [letter.id for letter in self.dead_letters(queue)])
        self._driver.wake()
        return moved

    def counters(self) -> dict[str, int]:
        """How often what is seldom an event happened since the start, by name; ``docs/guarantees.md`` lists them.

        Such as ``refused_frames`` (G11), ``repaired_messages`` (G6), ``late_replies`` (G8), ``dropped_dead_letters``.
        """
        require_here(self._driver)
        others = {"unsent_frames": self._driver.unsent_frames, **count_losses(self._raws)}
        return {**self._engine.counters(), **others}

    def events(self) -> EventStream:
        """An async iterator over what happens from now on: peers, dead letters, refused frames."""
        require_loop_here(self._driver)
        return self._hub.open()

    # -- inside ----------------------------------------------------------------------------------------------

    def _title(self) -> str:
        return f"{self.name!r} in mesh {self.mesh!r}"

    def _state(self) -> str:
        return describe_life(self._driver) or counted(len(self._engine.peers.by_id) - 1, "peer")

    def _warn_if_open(self) -> None:
        """The process ends, and nobody closed it: says so, and what is lost."""
        if not self._driver.is_foreign_process:
            books = self._engine.ledger() if self._books is None else self._books
            warn_of_loss(self.name, books, "async with node:")

    def _require_open(self) -> None:
        if self._driver.closed or self._closing is not None:
            raise NodeClosed(f"node {self.name!r} is closed: make a new Node")
        if self._transport is not None:
            self._driver.require_usable()

    def _handle_found(self, candidate: Candidate) -> None:
        if self._driver.usable:
            self._engine.handle_discovered(candidate.node_id, candidate.endpoints, self._driver.now())
            self._driver.wake()

    def _handle_lost(self, node_id: str) -> None:
        self._engine.handle_withdrawn(node_id)

    def _handle_dead(self, letters: list[DeadLetter]) -> None:
        for letter in letters:
            text = f"{letter.id} ({letter.reason}): {letter.error}"
            self._hub.publish([Event("dead_letter", letter.died_at, queue=letter.queue, text=text)])
            for awaitable in self._queues.handle_dead(letter):
                self._hooks.spawn(awaitable)
