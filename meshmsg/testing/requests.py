"""Serving and requesting in a simulated cluster; ``ClusterNode.router`` and ``ClusterNode.dealer`` make them."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from meshmsg.engine.calls import Call
from meshmsg.engine.faults import name_type
from meshmsg.engine.served import Served, Service
from meshmsg.engine.streams import InStream, OutStream
from meshmsg.errors import DeadlineExceeded, MeshError, NoResponders, Overloaded, RequestError, Unavailable
from meshmsg.options import DealerOptions, RouterOptions
from meshmsg.testing.coroutines import Run, Wait
from meshmsg.wire.codec import explain_encode_error, make_packer
from meshmsg.wire.items import WANTS_ITEMS

if TYPE_CHECKING:
    from meshmsg.testing.nodes import ClusterNode

Handler = Callable[["ClusterRequest"], Any]
Pace = float | Callable[[], float]


class Sleep(Wait):
    """Ends after some virtual time."""

    def __init__(self, node: ClusterNode, seconds: float) -> None:
        super().__init__(node.loop)
        node.loop.call_at(node.loop.time() + seconds, self.end)


class ClusterRequest:
    """A request in the hands of a handler; the cluster's kind of ``Context``."""

    def __init__(self, router: ClusterRouter, served: Served, serial: int) -> None:
        self.router = router
        self.node = router.node
        self.served = served
        self.serial = serial  # of the cluster's books
        self.method = served.method
        self.args: list[Any] = served.args[:-1]
        self.kwargs = served.kwargs
        self.headers = dict(served.headers or {})
        self.caller = served.peer_name
        self.run: Run | None = None
        self.received = 0  # of the caller's items

    @property
    def cancelled(self) -> str | None:
        """Why nobody wants the answer any more; None as long as somebody does."""
        return self.served.cancelled

    @property
    def remaining(self) -> float | None:
        """Seconds until nobody waits for the answer; None for no limit."""
        deadline = self.served.deadline
        return None if deadline is None else deadline - self.node.loop.time()

    def sleep(self, seconds: float) -> Sleep:
        """``await`` it to let virtual time pass."""
        return Sleep(self.node, seconds)

    async def send(self, *items: Any) -> None:
        """Sends items of a stream, each when there is room for it."""
        out, node = self.served.out, self.node
        assert out is not None, f"{self.method} was requested without stream()"
        for item in items:
            while out.room < 1 and out.cut is None:
                stirred = Wait(node.loop)
                out.wake = stirred.end
                await stirred
            if out.cut is not None:
                return
            node.engine.serving.send_items(self.served, [self.router.pack(item)])
            node.cluster.books.requests.on_item(self, item)
            node.driver.wake()

    async def take(self) -> list[Any]:
        """Items of the caller's stream, as many as have come; an empty list at the end."""
        up, node = self.served.up, self.node
        assert up is not None, f"{self.method} was requested without items="
        while not up.waiting and not up.ended:
            stirred = Wait(node.loop)
            up.wake = stirred.end
            await stirred
        items = up.take_all()
        node.cluster.books.requests.on_take(self, items)
        if node.engine.serving.grant(self.served):
            node.driver.wake()
        return items


class ClusterRouter:
    """A service in a cluster.

    ``served`` lists ``(method, args)`` of what its handler began, since the node started.
    """

    def __init__(
        self, node: ClusterNode, service: str, handler: Handler | None, options: RouterOptions, takes: Pace
    ) -> None:
        self.node = node
        self.service = service
        self.handler = handler
        self.options = options
        self.takes = takes
        self.pack = make_packer()
        self.serving = True
        self.closed = False
        self.served: list[tuple[str, list[Any]]] = []
        self.running: dict[Served, ClusterRequest] = {}
        self.offered: Service
        self.open()

    def open(self) -> None:
        """Begins to serve; a restart of the node does so again."""
        node = self.node
        self.served, self.running = [], {}
        self.offered = node.engine.open_router(self.service, self.options)
        node.cluster.books.requests.on_open(self)
        node.driver.on_arrival[f"router:{self.service}"] = self._pump
        if not self.serving:
            node.engine.set_serving(self.service, False)
        node.driver.wake()

    def set_serving(self, serving: bool) -> None:
        """Tells everybody whether it takes requests."""
        if self.closed or not self.node.alive:
            return
        self.serving = serving
        self.node.say(f"router {self.service} is {'serving' if serving else 'not serving'}")
        self.node.engine.set_serving(self.service, serving)
        self.node.driver.wake()

    def close(self, drain: float = 5.0) -> None:
        """Serves no more: what waits goes elsewhere, what runs gets ``drain`` seconds."""
        node = self.node
        if self.closed or not node.alive:
            return
        node.say(f"close router {self.service}")
        self.closed = True
        if node.routers.get(self.service) is self:
            del node.routers[self.service]
        node.engine.close_router(self.service)
        node.driver.on_arrival.pop(f"router:{self.service}", None)
        node.driver.wake()
        if self.running:
            node.loop.call_at(node.loop.time() + drain, self._give_up)

    def _give_up(self) -> None:
        """What still runs is stopped."""
        for served, request in list(self.running.items()):
            text = f"{served.service}.{served.method} was stopped: the service closes, and it took too long"
            self._fail(request, Unavailable(text))
            if request.run is not None:
                request.run.stop()
        self.node.driver.wake()

    # -- serving ---------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        node = self.node
        loop = node.loop
        while len(self.running) < self.options.concurrency and not loop.ended and not node.driver.closed:
            if loop.held:
                loop.call_soon(self._pump)
                return
            served = self.offered.take(loop.time())
            node.driver.wake()  # it may have found some whose time is over
            if served is None:
                return
            self._begin(served)

    def _begin(self, served: Served) -> None:
        node = self.node
        request = ClusterRequest(self, served, served.args[-1])
        self.running[served] = request
        self.served.append((served.method, request.args))
        if node.cluster.traces:
            node.say(f"serve {self._name(request)} of {served.peer_name} {_shorten(request.args)}")
        node.cluster.books.requests.on_begin(request)
        served.on_cancel = lambda: self._stop_soon(request)
        handler: Handler = self.handler or _echo
        around = partial(self._inside, request)
        life = node.life
        try:
            result = around(lambda: handler(request))
        except Exception as error:  # whatever a handler raises is its answer
            if node.life == life and not node.loop.ended:
                self._wait_and_end(request, None, error)
            return
        if node.life != life or node.loop.ended:
            return  # it killed its own process
        if inspect.iscoroutine(result):
            request.run = Run(node.loop, result, partial(self._end, request), around)
            request.run.step()
        else:
            self._wait_and_end(request, result, None)

    def _inside(self, request: ClusterRequest, step: Callable[[], Any]) -> Any:
        """Runs some of a handler: what it requests has the deadline of what it serves."""
        node = self.node
        outer, node.serving_now = node.serving_now, request
        try:
            return step()
        finally:
            node.serving_now = outer

    def _wait_and_end(self, request: ClusterRequest, value: Any, error: Exception | None) -> None:
        seconds = self.takes() if callable(self.takes) else self.takes
        loop = self.node.loop
        if seconds > 0 or loop.held:
            loop.call_at(loop.time() + seconds, lambda: self._end(request, value, error))
        else:
            self._end(request, value, error)

    def _stop_soon(self, request: ClusterRequest) -> None:
        self.node.loop.call_soon(lambda: self._stop(request))

    def _stop(self, request: ClusterRequest) -> None:
        """Nobody wants the answer: the handler is cancelled."""
        if self.running.pop(request.served, None) is None:
            return
        if self.node.cluster.traces:
            self.node.say(f"stop {self._name(request)}: {request.cancelled}")
        if request.run is not None:
            request.run.stop()
        self._pump()

    def _end(self, request: ClusterRequest, value: Any, error: Exception | None) -> None:
        node, served = self.node, request.served
        if node.driver.closed or self.running.pop(served, None) is None:
            return  # nobody hears it any more
        if error is None:
            self._answer(request, value)
        else:
            self._fail(request, error)
        node.driver.wake()
        node.loop.call_soon(self._pump)

    def _answer(self, request: ClusterRequest, value: Any) -> None:
        node, served = self.node, request.served
        try:
            body = self.pack(value)
        except Exception as reason:
            self._fail(request, explain_encode_error(value, reason))
            return
        self._say_end(request, "" if served.flags & WANTS_ITEMS else _shorten(value))
        if served.flags & WANTS_ITEMS:
            node.cluster.books.requests.on_answer(request, None)
            node.engine.serving.end(served)
        else:
            node.cluster.books.requests.on_answer(request, value)
            node.engine.serving.reply(served, body)

    def _fail(self, request: ClusterRequest, error: Exception) -> None:
        self.running.pop(request.served, None)
        own = isinstance(error, RequestError) and error.service is None
        code = error.code if own and isinstance(error, RequestError) else "error"
        self._say_end(request, f"{code} {error}")
        self.node.cluster.books.requests.on_fault(request, code)
        pause = error.retry_after if isinstance(error, Overloaded) else None
        self.node.engine.serving.fail(request.served, code, name_type(error), str(error), None, pause)

    def _say_end(self, request: ClusterRequest, text: str) -> None:
        if self.node.cluster.traces:
            why = f" (too late: {request.cancelled})" if request.cancelled else ""
            self.node.say(f"answer {self._name(request)} {text}".rstrip() + why)

    def _name(self, request: ClusterRequest) -> str:
        return f"{self.service}.{request.method}#{request.serial}"


class ClusterCall(Wait):
    """A request that was made: ``done``, then ``value`` or ``error``; of a stream, the items ``received``.

    In a coroutine of the cluster, ``await`` it.
    """

    def __init__(self, dealer: ClusterDealer, call: Call, serial: int, takes: Pace) -> None:
        super().__init__(dealer.node.loop)
        self.node = dealer.node
        self.call = call
        self.serial = serial
        self.life = dealer.node.life
        self.value: Any = None
        self.error: MeshError | None = None
        self.cancelled = False
        self.received: list[Any] = []
        self.to_send: deque[Any] | None = None
        self._takes = takes
        self._busy = False
        self._answered = False

    @property
    def name(self) -> str:
        """For the log."""
        return f"{self.call.service}.{self.call.method}#{self.serial}"

    @property
    def done(self) -> bool:
        """Whether it has its outcome, and the application has taken what came before it."""
        return self.ended

    @property
    def answered(self) -> bool:
        """Whether its outcome is there."""
        return self._answered

    def result(self) -> Any:
        """The value, or the items of a stream; raises the error."""
        if self.error is not None:
            raise self.error
        return self.value

    def cancel(self) -> None:
        """Nobody waits for the outcome any more."""
        if self._answered or self.cancelled or self.node.life != self.life or not self.node.alive:
            return
        self.cancelled = True
        if self.node.cluster.traces:
            self.node.say(f"cancel {self.name}")
        self.node.engine.calls.cancel(self.call)
        self.node.cluster.books.requests.on_cancel(self)
        self.node.driver.wake()

    def forsake(self) -> None:
        """Who awaited it was cancelled."""
        self.cancel()

    def settle(self, value: Any, error: MeshError | None) -> None:
        """The driver brings its outcome."""
        self._answered = True
        self.value, self.error = value, error
        if self.node.cluster.traces:
            said = f"{error.code} {error}" if isinstance(error, RequestError) else f"{error or _shorten(value)}"
            peer = getattr(error, "peer", None)
            self.node.say(f"outcome {self.name} {said}" + (f" ({peer})" if peer else ""))
        if self.call.down is None:
            self.end()
        else:
            self.read()

    # -- streams ---------------------------------------------------------------------------------------------

    def stir(self) -> None:
        """Items came, or the end; called in the middle of an engine's turn."""
        self.loop.call_soon(self.read)

    def stir_items(self) -> None:
        """The server takes more, or nothing any more; called in the middle of an engine's turn."""
        self.loop.call_soon(self.pump)

    def read(self) -> None:
        """The application takes the next item, and the next one when it is through with this."""
        down, node = self.call.down, self.node
        assert down is not None, "a stream"
        while down.waiting and not self._busy and not self.cancelled and not self.loop.ended:
            if self.loop.held:
                self.loop.call_soon(self.read)
                return
            item = down.take()
            node.cluster.books.requests.on_receive(self, item)
            self.received.append(item)
            node.engine.calls.grant(self.call)
            node.driver.wake()
            seconds = self._takes() if callable(self._takes) else self._takes
            if seconds > 0:
                self._busy = True
                self.loop.call_at(self.loop.time() + seconds, self._go_on)
        if self._answered and not down.waiting and not self._busy:
            if self.error is None:
                self.value = self.received
            self.end()

    def _go_on(self) -> None:
        self._busy = False
        self.read()

    def pump(self) -> None:
        """Sends what the server takes of this side's items."""
        up, items = self.call.up, self.to_send
        if up is None or items is None or self.cancelled or up.cut is not None or up.room < 1:
            return
        calls, books = self.node.engine.calls, self.node.cluster.books.requests
        batch = [items.popleft() for _ in range(min(up.room, len(items)))]
        if batch:
            calls.send_items(self.call, [self.node.pack(item) for item in batch])
            books.on_up_items(self, batch)
        if not items:
            self.to_send = None
            calls.end_items(self.call)
            books.on_up_end(self)
        self.node.driver.wake()


class ClusterDealer:
    """The client's end of a service in a cluster. Unlike ``Dealer`` it never waits for ``max_pending``."""

    def __init__(self, node: ClusterNode, service: str, options: DealerOptions) -> None:
        self.node = node
        self.service = service
        self.options = options

    def request(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | EllipsisType | None = ...,
        headers: Mapping[str, Any] | None = None,
        peer: str | None = None,
        key: str | None = None,
        idempotent: bool | None = None,
        items: Iterable[Any] | None = None,
        **kwargs: Any,
    ) -> ClusterCall:
        """Makes a request, as ``Dealer.request`` does; its outcome comes as time passes."""
        repeatable = self.options.may_repeat(method) if idempotent is None else idempotent
        limit = self.options.timeout if timeout is ... else timeout
        serial = self.node.cluster.books.requests.next_serial()
        call = self._make(method, args, kwargs, limit, headers, peer, key, repeatable, None, items, serial)
        return self._start(call, serial, args, items, 0.0)

    def stream(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        headers: Mapping[str, Any] | None = None,
        peer: str | None = None,
        key: str | None = None,
        items: Iterable[Any] | None = None,
        takes: Pace = 0.0,
        **kwargs: Any,
    ) -> ClusterCall:
        """Asks for a stream; the application takes an item every ``takes`` seconds."""
        serial = self.node.cluster.books.requests.next_serial()
        call = self._make(method, args, kwargs, timeout, headers, peer, key, False, InStream(), items, serial)
        return self._start(call, serial, args, items, takes)

    def survey(self, method: str, /, *args: Any, timeout: float | None = 1.0, **kwargs: Any) -> list[ClusterCall]:
        """Asks everybody who serves now; raises ``NoResponders`` if nobody does."""
        books = self.node.cluster.books.requests
        asked: list[ClusterCall] = []
        for provider in self.node.engine.calls.responders(self.service):
            serial = books.next_serial()
            call = self._make(method, args, kwargs, timeout, None, provider.key, None, False, None, None, serial)
            asked.append(self._start(call, serial, args, None, 0.0))
        if not asked:
            raise NoResponders(f"nobody serves {self.service!r} now")
        books.on_survey(asked)
        return asked

    def _make(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        headers: Mapping[str, Any] | None,
        peer: str | None,
        key: str | None,
        repeatable: bool,
        down: InStream | None,
        items: Iterable[Any] | None,
        serial: int,
    ) -> Call:
        node = self.node
        node.require_alive()
        body = node.pack(((*args, serial), kwargs))  # so that the books know it again, whoever serves it
        said = dict(headers) if headers else None
        up = OutStream() if items is not None else None
        call = Call(
            self.service, method, body, timeout, self.options, None,
            repeatable=repeatable, headers=said, key=key, peer=peer, down=down, up=up,
        )  # fmt: skip
        serving = node.serving_now
        if serving is not None and serving.remaining is not None:
            remaining = serving.remaining
            if timeout is None or remaining < timeout:
                if remaining <= 0:
                    raise DeadlineExceeded(f"{serving.method} has no time left")
                call.deadline = serving.served.deadline
                call.timeout = remaining if timeout is None else timeout
        return call

    def _start(
        self, call: Call, serial: int, args: tuple[Any, ...], items: Iterable[Any] | None, takes: Pace
    ) -> ClusterCall:
        node = self.node
        made = ClusterCall(self, call, serial, takes)
        call.sink = made
        if node.cluster.traces:
            kind = "stream" if call.down is not None else "request"
            node.say(f"{kind} {made.name} {_shorten(list(args))}")
        node.cluster.books.requests.on_call(made, list(args), node.serving_now)
        if call.down is not None:
            call.down.wake = made.stir
        if call.up is not None:
            made.to_send = deque(items or ())
            call.up.wake = made.stir_items
        node.engine.calls.start(call)
        node.driver.wake()
        return made


def settle(node: ClusterNode, answers: list[tuple[Call, Any, MeshError | None]]) -> None:
    """A node's driver brings outcomes."""
    for call, value, error in answers:
        made: ClusterCall = call.sink
        node.cluster.books.requests.on_outcome(made, value, error)
        made.settle(value, error)


def _echo(request: ClusterRequest) -> list[Any]:
    return request.args


def _shorten(value: Any) -> str:
    text = f"{value!r}"
    return text if len(text) < 60 else f"{text[:57]}..."
