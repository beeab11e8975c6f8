"""The node for threads: an asyncio node in a thread of its own, and a hand-over that works in bursts."""

from __future__ import annotations

import asyncio
import atexit
import queue
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Literal, NoReturn, ParamSpec, Protocol, Self, TypeVar, Unpack, overload

from meshmsg import node as asynchronous
from meshmsg.blocking.calls import SharedDealer
from meshmsg.blocking.dealer import Dealer, InterceptedDealer, require_plain_interceptors
from meshmsg.blocking.hooks import Hooks
from meshmsg.blocking.loop import LoopThread
from meshmsg.blocking.outbox import SharedOutbox
from meshmsg.blocking.pub_sub import GroupMember, Pub, Sub, UnreliablePub
from meshmsg.blocking.pull import Pull
from meshmsg.blocking.push import Push, UnreliablePush
from meshmsg.blocking.router import Router
from meshmsg.checks import require_number
from meshmsg.errors import ConfigurationError, NodeClosed
from meshmsg.loops import choose_loop
from meshmsg.message import DeadLetter, Event, Ledger, Peer
from meshmsg.observe.events import EventStream
from meshmsg.options import (
    DealerKeywords,
    GroupKeywords,
    PubKeywords,
    PullKeywords,
    PushKeywords,
    RouterKeywords,
    SubKeywords,
)
from meshmsg.sockets import pub_sub, push_pull
from meshmsg.sockets.bare import BarePush
from meshmsg.sockets.bare_pub_sub import BarePub
from meshmsg.sockets.call_threads import PlainInterceptor
from meshmsg.sockets.group_sub import GroupSub
from meshmsg.sockets.handoff import STEP_S, Bell
from meshmsg.sockets.pub_sub import require_on_gap
from meshmsg.sockets.shown import Shown
from meshmsg.unclosed import forget, warn_of_loss

ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")

HOOKS_S = 0.5  # what the thread of the hooks gets to end when no call is left
STOP_S = 1.0  # what the loop gets to end after the node has closed
EXIT_S = 1.5  # what a node that nobody closed gets at the end of the process


class Socket(Protocol):
    """What a node opens: it gets to know the loop's thread at the start."""

    def _connect(self, loop: LoopThread) -> None: ...


class Events(Iterator[Event]):
    """What happens from now on; iterate it, or ``get`` one. ``close`` or the node's end ends it."""

    def __init__(self, stream: EventStream, loop: LoopThread) -> None:
        self._stream = stream
        self._loop = loop

    def get(self, timeout: float | None = None) -> Event:
        """The next event; raises ``WaitTimeout`` after ``timeout`` seconds, ``NodeClosed`` at the end."""
        try:
            return self._loop.wait(self._stream.get(timeout))
        except NodeClosed:
            event = self._stream.poll() if self._loop.ended.is_set() else None  # unread when the node closed
            if event is None:
                raise
            return event

    def __next__(self) -> Event:
        try:
            return self.get()
        except NodeClosed:
            raise StopIteration from None

    def close(self) -> None:
        """Ends the iteration after what still waits."""
        self._loop.call(self._stream.close)

    def __repr__(self) -> str:
        return repr(self._stream).replace(type(self._stream).__name__, type(self).__name__, 1)


class Node(Shown):
    """One process's place in a mesh, for programs without an event loop; any thread may use it.

    Takes the parameters of ``meshmsg.Node``, and ``uvloop``: True insists on uvloop for the loop's thread (extra
    ``speed``), None takes it if it is installed; the default is asyncio's own loop.

    Examples
    --------
    >>> from meshmsg.blocking import Node
    >>> with Node("camera") as node:
    ...     jobs = node.push("thumbnails")
    ...     @node.pull("thumbnails")
    ...     def resize(message):
    ...         print("resizing", message.body)
    ...     message_id = jobs.deliver("a.jpg", timeout=10)
    resizing a.jpg
    """

    def __init__(self, name: str, *, uvloop: bool | None = False, **options: Any) -> None:
        self._node = _SharedNode(name, **options)
        self._uvloop = uvloop
        self._loop: LoopThread | None = None
        self._hooks = self._node.hooks
        self._sockets: list[Socket] = []
        self._pushes: dict[str, Push | UnreliablePush] = {}
        self._lock = threading.RLock()
        self._books: dict[str, Ledger] | None = None

    # -- life ------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """For people; need not be unique."""
        return self._node.name

    @property
    def mesh(self) -> str:
        """Nodes of one mesh see each other and nobody else."""
        return self._node.mesh

    @property
    def id(self) -> str:
        """What tells this node apart from all others; new at every start."""
        return self._node.id

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where other nodes reach this one, once it is started."""
        return self._node.endpoints

    def start(self) -> Self:
        """Binds, announces, connects. ``with node:`` does it too. Raises ``AddressUnavailable``."""
        driver = self._node.driver
        driver.require_process()
        with self._lock:
            if self._books is not None or driver.closed:
                raise NodeClosed(f"node {self.name!r} is closed: make a new Node")
            if self._loop is not None:
                raise NodeClosed(f"node {self.name!r} is started already")
            loop = self._make_loop(choose_loop(self._uvloop))
            try:
                loop.call(self._connect, loop)
                loop.wait(self._node.start())
            except BaseException:
                loop.stop(STOP_S)
                raise
            self._loop = loop
        _open_nodes.add(self)
        return self

    def _make_loop(self, factory: Callable[[], asyncio.AbstractEventLoop] | None) -> LoopThread:
        return LoopThread(self.name, factory, self._node.driver.require_process)

    def _connect(self, loop: LoopThread) -> None:
        loop.on_failure = self._fail
        self._hooks.on_idle = Bell(loop.loop, self._node.driver.wake).ring  # whoever waits for that looks again
        for socket in self._sockets:
            socket._connect(loop)
        self._sockets.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._node.driver.is_foreign_process:  # a forked child that ends leaves its parent's node alone
            self.close()

    def close(self, drain: float | None = None) -> dict[str, Ledger]:
        """Leaves: takes no more work, gives pending work ``drain`` seconds, says goodbye, returns the ledgers (G10).

        The drain is for the calls of hooks, too: how many are not done then is in the log. Ends within ``drain`` plus a
        second, whatever the peers do. A second call waits for the first one.
        """
        self._node.driver.require_process()
        self._hooks.note_close()
        if drain is not None:
            require_number("close(drain=)", drain, at_least=0)
        with self._lock:
            loop = self._loop
            if loop is None:  # it was never started: a loop for the end only
                loop = self._loop = self._make_loop(None)
        if self._books is None:
            try:
                loop.wait(self._node.close(drain))
            except NodeClosed:
                pass  # the loop has ended meanwhile, and the books are there all the same
            self._finish(loop)
        assert self._books is not None, "the close has finished"
        return self._books

    def _finish(self, loop: LoopThread) -> None:
        self._hooks.close(HOOKS_S)
        loop.stop(STOP_S)
        with self._lock:
            if self._books is None:
                # Only after the seal is it certain that no thread was given an id that the books don't have.
                self._seal("is closed: make a new Node")
                self._books = self._node.count_books()
        _open_nodes.discard(self)

    def _seal(self, why: str) -> None:
        for box in self._node.outboxes.values():
            box.seal(f"node {self.name!r} {why}")
            box.now = time.monotonic  # the loop's clock may be gone

    def _fail(self) -> None:
        """The loop died: nobody may wait for it in vain."""
        self._seal("failed: its log has the reason; make a new Node")
        self._node.abandon()

    def run(self, *, uvloop: bool | None = None) -> dict[str, Ledger]:
        """Starts the node and blocks until SIGINT or SIGTERM, then drains and closes; returns the ledgers.

        ``uvloop`` as for the node; None leaves the choice to the node. A second signal closes at once. Only the
        main thread can do this, because only it gets signals.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ConfigurationError("run() needs the main thread, which alone gets signals: use start() and close()")
        self._uvloop = self._uvloop if uvloop is None else uvloop
        news: queue.SimpleQueue[int] = queue.SimpleQueue()  # its put is safe in a signal handler, an Event's set is not

        def on_signal(number: int, frame: FrameType | None) -> None:
            news.put(number)

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            loop = self.start()._started_loop()
            _wait_for(news)
            loop.submit(self._node.close(), lambda: news.put(0))
            if _wait_for(news):
                loop.call(self._node._hurry)
                _wait_for(news)
            self._finish(loop)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.close()

    # -- sockets ---------------------------------------------------------------------------------------------

    @overload
    def push(self, queue: str, *, reliable: Literal[False]) -> UnreliablePush: ...
    @overload
    def push(self, queue: str, **options: Unpack[PushKeywords]) -> Push: ...
    def push(self, queue: str, **options: Any) -> Push | UnreliablePush:
        """The producer's end of a queue; see ``meshmsg.Node.push`` for the options.

        ``on_dead_letter`` is a plain function here, and is called in a thread of its own.
        """
        # One that a bare queue is given is left in, to be refused with what else such a queue does not have.
        hook = options.pop("on_dead_letter", None) if options.get("reliable") is not False else None
        self._node.driver.require_process()
        with self._lock:
            inner, box = self._call(self._node.open_push, queue, options)
            push = self._pushes.get(queue)
            if push is None or not push._is_of(inner):
                if isinstance(inner, BarePush):
                    push = UnreliablePush(inner, self._node.driver)
                else:
                    assert box is not None, "a reliable push has one"
                    push = Push(inner, box, self._node.driver, self._hooks, self._forget_push)
                self._pushes[queue] = push
                self._add(push)
        if hook is not None and isinstance(push, Push):
            push.on_dead_letter(hook)
        return push

    def _forget_push(self, push: Push) -> None:
        with self._lock:
            if self._pushes.get(push.queue) is push:
                del self._pushes[push.queue]

    def pull(self, queue: str, **options: Unpack[PullKeywords]) -> Pull:
        """The consumer's end of a queue: a decorator for a plain function, or an iterator.

        Takes the options of ``meshmsg.Node.pull``.
        """
        self._node.driver.require_process()
        with self._lock:
            pull = Pull(self._call(self._node.pull, queue, **options), self._node.driver)
            self._add(pull)
        return pull

    @overload
    def pub(self, pattern: str, *, reliable: Literal[False]) -> UnreliablePub: ...
    @overload
    def pub(self, pattern: str, **options: Unpack[PubKeywords]) -> Pub: ...
    def pub(self, pattern: str, **options: Any) -> Pub | UnreliablePub:
        """Topics to publish to: one (``"sensors.attic"``) or all that match (``"sensors.**"``).

        Takes the options of ``meshmsg.Node.pub``.
        """
        self._node.driver.require_process()
        with self._lock:
            pub, is_new = self._call(self._node.open_pub, pattern, options)
            if is_new:
                self._add(pub)
        return pub

    @overload
    def sub(self, pattern: str, *, group: str, **options: Unpack[GroupKeywords]) -> GroupMember: ...
    @overload
    def sub(self, pattern: str, *, group: None = None, **options: Unpack[SubKeywords]) -> Sub: ...
    def sub(self, pattern: str, *, group: str | None = None, **options: Any) -> Sub | GroupMember:
        """The messages of a topic, or of all that match: a decorator for a plain function, or an iterator (G6, G7).

        Takes the options of ``meshmsg.Node.sub``; ``on_gap`` is called in a thread of its own.
        """
        self._node.driver.require_process()
        on_gap = options.get("on_gap")
        require_on_gap(on_gap)
        if on_gap is not None:
            options["on_gap"] = partial(self._hooks.put, on_gap)
        with self._lock:
            inner: pub_sub.Sub | GroupSub = self._call(self._node.sub, pattern, group=group, **options)  # type: ignore[arg-type]  # overloaded
            driver = self._node.driver
            sub = GroupMember(inner, driver) if isinstance(inner, GroupSub) else Sub(inner, driver)
            self._add(sub)
        return sub

    def router(self, service: str, **options: Unpack[RouterKeywords]) -> Router:
        """A service that other nodes may request: ``@router.method`` offers a plain function or generator (G8).

        Takes the options of ``meshmsg.Node.router``; ``interceptors`` are plain functions ``(context, proceed)``, and
        run in threads.
        """
        self._node.driver.require_process()
        if "interceptors" in options:
            where = f"router({service!r}, interceptors=)"
            plain = require_plain_interceptors(where, options["interceptors"], "context")
            options["interceptors"] = [PlainInterceptor(each) for each in plain]
        with self._lock:
            router = Router(self._call(self._node.router, service, **options), self._node.driver)
            self._add(router)
        return router

    def dealer(self, service: str, **options: Unpack[DealerKeywords]) -> Dealer:
        """The client's end of a service: ``dealer.request(method, ...)`` asks one of those who offer it (G8).

        Takes the options of ``meshmsg.Node.dealer``; ``interceptors`` are plain functions ``(outgoing, proceed)``, and
        run in the thread that makes the request.
        """
        driver = self._node.driver
        driver.require_process()
        where = f"dealer({service!r}, interceptors=)"
        interceptors = require_plain_interceptors(where, options.pop("interceptors", ()), "outgoing")
        with self._lock:
            inner = self._call(self._node.dealer, service, **options)
            assert isinstance(inner, SharedDealer), "what this node makes"
            dealer = InterceptedDealer(inner, driver, interceptors) if interceptors else Dealer(inner, driver)
            self._add(dealer)
        return dealer

    def raw(self, kind: int, name: str) -> NoReturn:
        """Not in this face: raises ``ConfigurationError``.

        A ZeroMQ socket is for one thread at a time. Its user may stay in ``recv`` for any time, where discovery could
        not connect it to a node that comes; and a lock around it would make it no plain socket any more.
        """
        raise ConfigurationError(
            f"raw({name!r}) is for meshmsg.Node alone: a plain ZeroMQ socket cannot be connected while another thread "
            "uses it; here, push, pull, pub and sub with reliable=False are bare ZeroMQ that any thread may use"
        )

    def _add(self, socket: Socket) -> None:
        if self._loop is None:
            self._sockets.append(socket)  # until the start
        else:
            socket._connect(self._loop)

    # -- looking ---------------------------------------------------------------------------------------------

    def wait_for(
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
        waiting = self._node.wait_for(
            pull=pull, push=push, sub=sub, pub=pub, group=group, router=router, peer=peer, count=count, timeout=timeout
        )
        try:
            self._node.driver.require_running()
        except BaseException:
            waiting.close()
            raise
        self._started_loop().wait(waiting)

    def peers(self) -> list[Peer]:
        """The other nodes of the mesh that are connected both ways."""
        return self._call(self._node.peers)

    def ledger(self) -> dict[str, Ledger]:
        """The books of every queue this node sends to (G1); after the close, the last ones."""
        return self._books if self._books is not None else self._call(self._node.ledger)

    def dead_letters(self, queue: str | None = None) -> list[DeadLetter]:
        """The dead letters that are kept, oldest first; of one queue, or of all."""
        return self._call(self._node.dead_letters, queue)

    def redrive(self, *ids: str, queue: str | None = None) -> list[str]:
        """Sends dead letters again, under their ids and with all their attempts; returns the ids that went.

        Without ids, all of ``queue``, or all there are; those that find no room in the outbox stay. Of a queue without
        dead letters none go, and nobody asks whether there is such a queue: one that is closed and empty is forgotten,
        its dead letters are not. Raises ``ConfigurationError`` for an id that ``dead_letters`` does not list, and
        nothing goes then.
        """
        self._node.driver.require_running()
        return self._call(self._node.redrive, *ids, queue=queue)

    def counters(self) -> dict[str, int]:
        """What happened since the start that is no event each time; see ``meshmsg.Node.counters``."""
        return self._call(self._node.counters)

    def events(self) -> Events:
        """An iterator over what happens from now on: peers, dead letters, refused frames."""
        self._node.driver.require_running()
        return Events(self._call(self._node.events), self._started_loop())

    # -- inside ----------------------------------------------------------------------------------------------

    def _title(self) -> str:
        return self._node._title()

    def _state(self) -> str:
        return self._node._state()

    def _call(
        self, function: Callable[ParametersT, ResultT], *arguments: ParametersT.args, **keywords: ParametersT.kwargs
    ) -> ResultT:
        """In the loop's thread while there is one; before the start and after the close, here."""
        loop = self._loop
        if loop is None:
            self._node.driver.require_process()
            return function(*arguments, **keywords)
        return loop.call(function, *arguments, **keywords)

    def _started_loop(self) -> LoopThread:
        assert self._loop is not None, "a running node has a loop"
        return self._loop

    def _close_at_exit(self) -> None:
        """The process ends and nobody closed the node: says goodbye, and says what is lost."""
        loop = self._loop
        if loop is None or self._node.driver.is_foreign_process:
            return
        try:
            loop.call(self._node._hurry)
            loop.wait(self._node.close(0.0), EXIT_S)
            self._finish(loop)
        except Exception as error:
            warnings.warn(f"node {self.name!r} could not be closed at exit: {error!r}", RuntimeWarning, stacklevel=2)
        warn_of_loss(self.name, self.ledger(), "with node:")


class _SharedNode(asynchronous.Node):
    """The asyncio node inside: with outboxes that threads may fill, and a way out when its loop is gone."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.hooks = Hooks(name)
        self._engine.make_outbox = SharedOutbox
        self._services.make_dealer = SharedDealer
        self.driver = self._driver
        self._pubs: dict[str, Pub | UnreliablePub] = {}

    def open_push(self, queue: str, options: dict[str, Any]) -> tuple[push_pull.Push | BarePush, SharedOutbox | None]:
        """As ``push``; also the outbox for threads to fill, unless it is a bare one."""
        push: push_pull.Push | BarePush = self.push(queue, **options)
        if isinstance(push, BarePush):
            return push, None
        box = self._engine.outboxes[queue]
        assert isinstance(box, SharedOutbox), "what this node makes"
        box.now = self._driver.now
        box.seal("")  # by a push that was closed before this one
        return push, box

    def open_pub(self, pattern: str, options: dict[str, Any]) -> tuple[Pub | UnreliablePub, bool]:
        """As ``pub``, for threads; also whether it is a new one."""
        inner: pub_sub.Pub | BarePub = self.pub(pattern, **options)
        pub = self._pubs.get(pattern)
        if pub is not None and pub._is_of(inner):
            return pub, False
        pub = UnreliablePub(inner, self.driver) if isinstance(inner, BarePub) else Pub(inner, self.driver)
        self._pubs[pattern] = pub
        return pub, True

    @property
    def _holding_pubs(self) -> list[Pub]:
        """Those that hold for the loop what threads publish."""
        return [pub for pub in self._pubs.values() if isinstance(pub, Pub)]

    async def _close(self, drain: float) -> dict[str, Ledger]:
        if self.driver.usable:  # what threads published before is part of the drain
            for pub in self._holding_pubs:
                pub._hand_over()
        return await super()._close(drain)

    @property
    def _cleaning_up(self) -> bool:
        return self.hooks.busy

    def _take_last(self) -> None:
        """Between the last message that a thread may publish and the goodbye."""
        for pub in self._holding_pubs:
            pub._seal(f"node {self.name!r} is closed: make a new Node")

    @property
    def outboxes(self) -> dict[str, SharedOutbox]:
        """By queue, those that threads send to; groups have theirs from what is published."""
        return {queue: box for queue, box in self._engine.outboxes.items() if isinstance(box, SharedOutbox)}

    def count_books(self) -> dict[str, Ledger]:
        """Of every queue, once no thread can change them any more."""
        return {queue: box.ledger() for queue, box in self._engine.outboxes.items()}

    def abandon(self) -> None:
        """The loop ended unasked: nothing turns any more, and whoever waits for messages waits no more."""
        self._driver.closed = True
        self._driver.owner = 0
        for consumer in (*self._queues.consumers, *self._topics.subs):
            consumer._abandon()
        if self._transport is not None:
            self._transport.close(linger_ms=0)
        forget(self)

    def _warn_if_open(self) -> None:
        """The node around it closes it at the end of the process, and says what is lost."""


def _wait_for(news: queue.SimpleQueue[int]) -> int:
    """The next item; signals get through."""
    while True:
        try:
            return news.get(timeout=STEP_S)
        except queue.Empty:
            pass


_open_nodes: weakref.WeakSet[Node] = weakref.WeakSet()


@atexit.register
def _close_open_nodes() -> None:
    for node in list(_open_nodes):
        node._close_at_exit()
