"""Requests of threads: Ctrl-C, forks, the end of the loop, and what threads may do to each other."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from meshmsg import BadRequest, Cancelled, Context, NodeClosed, RequestError, WrongThread
from meshmsg.blocking import Dealer, Node
from meshmsg.blocking.dealer import Fetched
from tests.blocking.program import Program, run

PATIENCE_S = 15.0

pytestmark = pytest.mark.guarantee("G8")

SERVED = """
def serve(node):
    router, started, gate, ended = node.router("math"), threading.Event(), threading.Event(), []
    @router.method
    def work(context: meshmsg.Context):
        started.set()
        gate.wait(10)
        return "done"
    @router.method
    def echo(value):
        return value
    @router.method
    def count(upto: int):
        try:
            yield from range(upto)
        finally:
            ended.append(True)
    return router, started, gate, ended
"""


@pytest.fixture
def node() -> Iterator[Node]:
    with Node("node", mesh=f"requests-{uuid.uuid4().hex[:12]}", mdns=False, drain=0) as node:
        yield node


class Served:
    """A service of a node whose method waits for a gate."""

    def __init__(self, node: Node, client: Node | None = None) -> None:
        client = client or node
        self.gate = threading.Event()
        self.contexts: list[Context] = []
        self.started = threading.Semaphore(0)
        router = node.router("math")
        self.math: Dealer = client.dealer("math", timeout=None)

        @router.method
        def work(context: Context) -> str:
            self.contexts.append(context)
            self.started.release()
            self.gate.wait(PATIENCE_S)
            return "done"

        @router.method
        def count(upto: int, wait_at: int, context: Context) -> Iterator[int]:
            for number in range(upto):
                if number == wait_at:
                    self.contexts.append(context)
                    self.started.release()
                    self.gate.wait(PATIENCE_S)
                yield number

        client.wait_for(router="math", timeout=PATIENCE_S)


def begin(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs it in a thread; what comes of it is put into the list."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, outcome


def test_ctrl_c_cancels_the_request_and_the_method() -> None:
    program = Program(
        SERVED
        + """
with make(drain=0) as node:
    router, started, gate, ended = serve(node)
    math = node.dealer("math", timeout=None)
    node.wait_for(router="math", timeout=10)
    def tell():
        started.wait(10)
        say("started")
    threading.Thread(target=tell).start()
    try:
        math.work()
    except KeyboardInterrupt:
        say("interrupted", math.echo(5), len(math._inner._under_way))
    stats = math.stats()
    say(stats["cancelled"])
    stream = math.stream("count", 10**9)
    say(next(stream))
    try:
        for item in stream:
            if item == 1000:
                say("streaming")
    except KeyboardInterrupt:
        pass
    stream.close()
    gate.set()
    while not ended: time.sleep(0.001)
    say("end", len(math._inner._under_way))
"""
    )
    assert program.line() == "started"
    program.signal(signal.SIGINT)
    assert program.line() == "interrupted 5 0"
    assert program.line() == "1", "the method was told"
    assert [program.line(), program.line()] == ["0", "streaming"]
    program.signal(signal.SIGINT)
    assert program.line() == "end 0"
    assert program.finish() == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_refused() -> None:
    code, output, errors = run(
        SERVED
        + """
with make(drain=0) as node:
    router, started, gate, ended = serve(node)
    math = node.dealer("math")
    node.wait_for(router="math", timeout=10)
    stream = math.stream("count", 1000)
    survey = math.survey("ping")
    assert next(stream) == 0
    child = os.fork()
    if child == 0:
        refused = 0
        uses = [
            lambda: math.echo(1), lambda: math.request("echo", 1), lambda: math.stream("count"), lambda: next(stream),
            lambda: next(survey), lambda: math.survey("ping"), lambda: math.close(), lambda: stream.close(),
            lambda: router.close(), lambda: router.method(print, name="new"), lambda: setattr(router, "serving", False),
            lambda: node.router("new"), lambda: node.dealer("new"),
        ]
        for use in uses:
            try:
                use()
            except meshmsg.ForkedProcess:
                refused += 1
        del stream, survey
        say(refused == len(uses))
        os._exit(0)
    os.waitpid(child, 0)
    say(sum(stream), math.echo(2))
"""
    )
    assert (code, output, errors) == (0, "True\n499500 2", "")


def test_a_process_ends_while_requests_and_methods_hang() -> None:
    code, output, errors = run(
        SERVED
        + """
node = make().start()
router, started, gate, ended = serve(node)
math = node.dealer("math", timeout=None)
node.wait_for(router="math", timeout=10)
def ask(**options):
    try:
        math.request("work", **options)
    except meshmsg.RequestError:
        pass
threading.Thread(target=ask, daemon=True).start()
def forever():
    yield 1
    threading.Event().wait()
threading.Thread(target=ask, kwargs={"items": forever()}, daemon=True).start()
started.wait(10)
say("end")
"""
    )
    assert (code, output, errors) == (0, "end", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_waits_is_told_when_the_loop_dies(node: Node) -> None:
    client = Node("client", mesh=node.mesh, seeds=node.endpoints, mdns=False, drain=0).start()
    served = Served(node, client)
    stream, late = served.math.stream("count", 10, 5), client.dealer("math", timeout=None, max_pending=1)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    threads = [begin(use) for use in (served.math.work, lambda: next(stream), late.work, late.work)]
    for _ in range(3):
        assert served.started.acquire(timeout=PATIENCE_S)

    def end() -> None:
        raise KeyboardInterrupt

    assert client._loop is not None
    client._loop.loop.call_soon_threadsafe(end)
    client._loop._thread.join(PATIENCE_S)
    for thread, outcome in threads:
        thread.join(PATIENCE_S)
        assert isinstance(outcome[0], NodeClosed), outcome
    for use in (served.math.work, lambda: served.math.stream("count"), lambda: client.dealer("math").ping()):
        with pytest.raises(NodeClosed):
            use()
    served.gate.set()


def test_the_loop_s_own_thread_does_not_wait_for_itself(node: Node) -> None:
    served = Served(node)
    assert node._loop is not None
    for use in (served.math.ping, lambda: served.math.stream("ping"), lambda: served.math.survey("ping")):
        with pytest.raises(WrongThread, match="call it from another thread"):
            node._loop.call(use)


def test_one_thread_closes_what_another_iterates(node: Node) -> None:
    served = Served(node)
    stream = served.math.stream("count", 10, 5)
    thread, outcome = begin(lambda: list(stream))
    assert served.started.acquire(timeout=PATIENCE_S)
    stream.close()
    thread.join(PATIENCE_S)
    assert isinstance(outcome[0], Cancelled)
    served.gate.set()


def test_a_stream_within_a_cancelled_method_ends(node: Node) -> None:
    served = Served(node)
    other, ended = node.router("other"), threading.Event()

    @other.method
    def relay() -> int:
        try:
            return sum(served.math.stream("count", 10, 5))
        except Cancelled:
            ended.set()
            raise

    node.wait_for(router="other", timeout=PATIENCE_S)
    dealer = node.dealer("other")
    thread, outcome = begin(dealer.relay)
    assert served.started.acquire(timeout=PATIENCE_S)
    dealer.close()
    assert ended.wait(PATIENCE_S)
    thread.join(PATIENCE_S)
    assert isinstance(outcome[0], Cancelled)
    served.gate.set()


def test_a_method_that_is_wanted_no_more_is_told_once(node: Node) -> None:
    """As a coroutine is: the next thing that it asks for raises, and what it asks for to clean up goes on."""
    served = Served(node)
    other, heard = node.router("other"), []

    @other.method
    def relay(how: str) -> None:
        served.started.release()
        served.gate.wait(PATIENCE_S)
        for _ in range(2):
            try:
                heard.append(
                    served.math.ping()["node"] if how == "request" else next(served.math.stream("count", 1, 2))
                )
            except Cancelled as error:
                heard.append(type(error))
        served.started.release()

    node.wait_for(router="other", timeout=PATIENCE_S)
    for how, value in (("request", "node"), ("stream", 0)):
        dealer = node.dealer("other")
        thread, outcome = begin(partial(dealer.relay, how))
        assert served.started.acquire(timeout=PATIENCE_S)
        dealer.close()
        thread.join(PATIENCE_S)
        assert isinstance(outcome[0], Cancelled)
        node.dealer("other").ping()  # behind the word that it is cancelled
        served.gate.set()
        assert served.started.acquire(timeout=PATIENCE_S)
        assert heard == [Cancelled, value]
        heard.clear()
        served.gate.clear()
    served.gate.set()


def test_an_item_that_cannot_be_read_comes_in_its_place(node: Node) -> None:
    class Source:
        """Three items that have come together, the second one broken."""

        def __init__(self) -> None:
            self.items = deque([1, RequestError("broken"), 3])

        @property
        def _waiting(self) -> int:
            return len(self.items)

        def _take(self) -> Any:
            item = self.items.popleft()
            if isinstance(item, Exception):
                raise item
            return item

        async def __anext__(self) -> Any:
            if not self.items:
                raise StopAsyncIteration
            return self._take()

    assert node._loop is not None
    fetched: Fetched[Any] = Fetched(Source(), node._loop, node._node.driver)  # type: ignore[arg-type]
    assert next(fetched) == 1
    with pytest.raises(RequestError, match="broken"):
        next(fetched)
    assert list(fetched) == [3]


def test_items_that_came_for_another_thread_are_no_end(node: Node) -> None:
    class Source:
        """Two items that come together, and the end."""

        def __init__(self) -> None:
            self.items = deque([1, 2])

        @property
        def _waiting(self) -> int:
            return len(self.items)

        def _take(self) -> Any:
            return self.items.popleft()

        async def __anext__(self) -> Any:
            if not self.items:
                raise StopAsyncIteration
            return self._take()

    class Steps:
        """A thread that gets no turn after its fetch before another one was through with its own."""

        def __init__(self) -> None:
            self.fetched: Fetched[Any]
            self.others: list[Any] = []
            self.busy = False

        def wait(self, fetch: Callable[[], Any]) -> Any:
            assert node._loop is not None
            result = node._loop.wait(fetch)
            if not self.busy:
                self.busy = True
                self.others += [next(self.fetched, "end") for _ in range(3)]
            return result

    steps = Steps()
    steps.fetched = Fetched(Source(), steps, node._node.driver)  # type: ignore[arg-type]
    assert next(steps.fetched, "end") == "end"
    assert steps.others == [1, 2, "end"]


def test_nothing_is_kept_of_what_has_ended(node: Node) -> None:
    served = Served(node)
    math = served.math
    for _ in range(20):
        math.ping()
    assert list(math.stream("count", 100, -1)) == list(range(100))
    next(math.stream("count", 10**9, -1))  # nobody refers to it any more
    with pytest.raises(BadRequest, match="takes int"):
        list(math.stream("count", "x", 1))
    assert node._loop is not None
    pause = threading.Event()
    for _ in range(1000):
        if not (len(math._inner._under_way) or node._loop._waiters or math._inner._put):
            break
        pause.wait(0.002)
    assert (len(math._inner._under_way), node._loop._waiters, list(math._inner._put)) == (0, set(), [])


def test_the_caller_s_variables_are_not_the_method_s(node: Node) -> None:
    from meshmsg.sockets.context import current

    router, seen = node.router("own"), []

    @router.method
    def look() -> bool:
        context = current.get()
        seen.append(context is not None and context.method)
        return True

    node.wait_for(router="own", timeout=PATIENCE_S)
    assert node.dealer("own").look() is True
    assert (seen, current.get()) == (["look"], None)


def test_a_dealer_can_be_copied() -> None:
    code, output, errors = run(
        SERVED
        + """
import copy
with make() as node:
    router, started, gate, ended = serve(node)
    math = copy.copy(node.dealer("math"))
    node.wait_for(router="math", timeout=10)
    say(math.echo(7), hasattr(copy.copy(math), "_nothing"))
"""
    )
    assert (code, output, errors) == (0, "7 False", "")
