"""Requests in the simulator, held against G8 at every step; and that the books notice when a promise is broken."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from meshmsg.engine.calls import Calls
from meshmsg.engine.channel import Channel
from meshmsg.engine.providers import Providers
from meshmsg.engine.served import Serving
from meshmsg.engine.streams import InStream, OutStream
from meshmsg.errors import Cancelled, ConfigurationError, DeadlineExceeded, NoResponders, PeerLost, RemoteError
from meshmsg.testing import Cluster, ClusterNode, ClusterRequest, ClusterRouter, GuaranteeBroken
from meshmsg.testing.swarm import Swarm

pytestmark = pytest.mark.guarantee("G8")


def connected(names: str, **options: Any) -> tuple[Cluster, list[ClusterNode]]:
    cluster = Cluster(seed=3, **options)
    nodes = [cluster.node(name) for name in names]
    cluster.run(0.5)
    return cluster, nodes


def rest(cluster: Cluster) -> None:
    cluster.run(12.0)
    cluster.books.requests.check_rest(cluster.nodes)


async def serve(request: ClusterRequest) -> Any:
    """What most of these services do."""
    if request.method == "slow":
        await request.sleep(request.args[0])
    elif request.method == "hang":
        await request.sleep(1e6)
    elif request.method == "fail":
        raise RemoteError("sold out", "out_of_stock")
    elif request.method == "count":
        for number in range(request.args[0]):
            await request.send(number)
    elif request.method == "sum":
        total = 0
        while items := await request.take():
            total += sum(items)
        return total
    elif request.method == "double":
        while items := await request.take():
            await request.send(*(2 * item for item in items))
    return request.args


# -- what an application sees --------------------------------------------------------------------------------


def test_all_kinds_of_requests() -> None:
    cluster, [a, b] = connected("ab")
    b.router("s", serve)
    cluster.run(0.1)
    dealer = a.dealer("s")
    echo, fail = dealer.request("echo", 1, "x", headers={"trace": "1"}), dealer.request("fail")
    count, total = dealer.stream("count", 1000), dealer.request("sum", items=range(1000))
    double = dealer.stream("double", items=range(1000), takes=0.001)
    cluster.run(5.0)
    assert echo.value == [1, "x"]
    assert isinstance(fail.error, RemoteError) and fail.error.code == "out_of_stock" and fail.error.peer == "b"
    assert count.value == list(range(1000))
    assert total.value == 499_500
    assert double.received == list(range(0, 2000, 2))
    rest(cluster)


@pytest.mark.guarantee("G5", "G8")
@pytest.mark.parametrize("mib", [1, 10])
def test_a_stream_of_large_items_over_connections_that_break(mib: int) -> None:
    item = bytes(mib * 2**20)
    sent: list[int] = []

    async def pour(request: ClusterRequest) -> Any:
        for number in range(request.args[0]):
            sent.append(number)
            await request.send([number, item])

    cluster, [a, b] = connected("ab", traces=False)
    b.router("s", pour)
    cluster.run(0.1)
    made = a.dealer("s").stream("pour", 12, takes=0.1)
    most = 0
    for _ in range(30):
        cluster.disconnect(a, b)
        cluster.disconnect(b, a)
        cluster.run(0.05)
        most = max(most, len(sent) - len(made.received))
    cluster.run(1.0)
    assert [number for number, _ in made.value] == list(range(12))
    assert most == max(1, 3 // mib) + 1, "a few MiB, or one; and one that the method could not send yet"
    rest(cluster)


def test_a_plain_function_answers_after_a_while() -> None:
    cluster, [a, b] = connected("ab")
    b.router("s", lambda request: request.args[0] + 1, takes=0.5)
    cluster.run(0.1)
    call = a.dealer("s").request("next", 1)
    cluster.run(0.4)
    assert not call.done
    cluster.run(0.2)
    assert call.value == 2


def test_a_node_that_asks_itself() -> None:
    cluster, [a] = connected("a")
    a.router("s", serve)
    cluster.run(0.1)
    call, stream = a.dealer("s").request("echo", 1), a.dealer("s").stream("count", 100)
    cluster.run(0.1)
    assert call.value == [1] and len(stream.received) == 100
    rest(cluster)


def test_many_callers_of_three_servers_one_of_which_dies() -> None:
    cluster = Cluster(seed=4, traces=False)
    servers = [cluster.node(f"s{number}") for number in range(3)]
    for server in servers:
        server.router("s", serve)
    callers = [cluster.node(f"c{number}") for number in range(12)]
    cluster.run(1.0)
    asked = [
        caller.dealer("s", idempotent=idempotent).request("slow", 0.2, number)
        for number, caller in enumerate(callers)
        for idempotent in (False, True)
    ]
    cluster.run(0.1)
    cluster.crash(servers[0])
    cluster.run(3.0)
    lost = [call for call in asked if isinstance(call.error, PeerLost)]
    assert 0 < len(lost) < 12 and not any(call.call.repeatable for call in lost)
    assert all(call.value == [0.2, call.value[1]] for call in asked if call not in lost)
    rest(cluster)


def test_nobody_offers_it() -> None:
    cluster, [a, b] = connected("ab")
    call = a.dealer("s").request("echo")
    cluster.run(0.0)
    assert isinstance(call.error, NoResponders)
    with pytest.raises(NoResponders):
        a.dealer("s").survey("echo")
    router = b.router("s")
    cluster.run(0.1)
    router.close()
    cluster.run(0.1)
    call = a.dealer("s").request("echo")
    cluster.run(0.0)
    assert isinstance(call.error, NoResponders)


def test_a_server_that_leaves_finishes_what_runs() -> None:
    cluster, [a, b, c] = connected("abc")
    for node in (b, c):
        node.router("s", serve, concurrency=2)
    cluster.run(0.1)
    asked = [a.dealer("s", balance="round_robin").request("slow", 0.5) for _ in range(12)]
    cluster.run(0.1)
    cluster.leave(b)
    cluster.run(10.0)
    assert not b.alive
    assert all(call.value == [0.5] for call in asked)
    rest(cluster)


def test_a_caller_that_leaves_has_an_outcome_for_each() -> None:
    cluster, [a, b] = connected("ab")
    b.router("s", serve)
    cluster.run(0.1)
    calls = [a.dealer("s").request("hang"), a.dealer("s").stream("hang")]
    cluster.run(0.1)
    cluster.leave(a, drain=0.0)
    cluster.run(3.0)
    assert [type(call.error) for call in calls] == [Cancelled] * 2
    assert not b.routers["s"].running
    rest(cluster)


def test_a_survey_asks_everybody_once() -> None:
    cluster, [a, b, c, d] = connected("abcd")
    routers = [node.router("s", serve) for node in (b, c, d)]
    cluster.run(0.1)
    asked = a.dealer("s").survey("echo", 7)
    cluster.run(0.1)
    assert [call.value for call in asked] == [[7]] * 3
    assert [router.served for router in routers] == [[("echo", [7])]] * 3
    rest(cluster)


def test_a_router_opens_again_with_its_node() -> None:
    cluster, [a, b] = connected("ab")
    router = b.router("s", serve)
    router.set_serving(False)
    cluster.crash(b)
    cluster.restart(b)
    cluster.run(1.0)
    assert b.routers["s"] is router and not a.engine.calls.responders("s")
    router.set_serving(True)
    cluster.run(0.1)
    call = a.dealer("s").request("echo")
    cluster.run(0.1)
    assert call.value == []
    rest(cluster)


def test_a_closed_router_is_not_offered_again() -> None:
    cluster, [a, b] = connected("ab")
    router = b.router("s", serve)
    router.close()
    b.engine.set_serving("s", True)
    b.driver.wake()
    cluster.run(0.1)
    assert not a.engine.calls.responders("s")


def test_whoever_is_stopped_hears_it_where_it_waits() -> None:
    ended: list[str] = []

    async def hang(request: ClusterRequest) -> None:
        try:
            await request.node.dealer("t").request("hang", timeout=None)
        finally:
            ended.append(f"{request.cancelled}")

    cluster, [a, b, c] = connected("abc")
    b.router("s", hang)
    inner = c.router("t", serve)
    cluster.run(0.1)
    call = a.dealer("s").request("x", timeout=1.0)
    cluster.run(0.9)
    assert inner.running and not ended
    cluster.run(0.2)
    assert isinstance(call.error, DeadlineExceeded)
    assert ended == ["cancelled by the caller"] and not inner.running
    rest(cluster)


def test_a_handler_may_await_only_what_the_cluster_gives() -> None:
    class Other:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def handle(request: ClusterRequest) -> None:
        await Other()

    cluster, [a, b] = connected("ab")
    b.router("s", handle)
    cluster.run(0.1)
    a.dealer("s").request("x")
    with pytest.raises(ConfigurationError, match="needs an event loop"):
        cluster.run(0.1)


# -- the books notice ----------------------------------------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch], None]


def answer_twice(patch: pytest.MonkeyPatch) -> None:
    """The caller's table reports each outcome twice."""
    report = Calls._report

    def report_twice(self: Calls, *what: Any) -> None:
        report(self, *what)
        report(self, *what)

    patch.setattr(Calls, "_report", report_twice)


def take_nothing_out(patch: pytest.MonkeyPatch) -> None:
    """A deadline passes, and nobody looks."""
    patch.setattr(Calls, "tick", lambda self, now: None)
    patch.setattr(Calls, "wake_at", lambda self, soonest: soonest)
    patch.setattr(Serving, "tick", lambda self, now: None)
    patch.setattr(Serving, "wake_at", lambda self: None)


def hear_no_cancel(patch: pytest.MonkeyPatch) -> None:
    """A server does not stop what nobody waits for."""
    patch.setattr(Serving, "on_cancel", lambda self, peer, numbers: None)


def stop_no_handler(patch: pytest.MonkeyPatch) -> None:
    """The table forgets a cancelled call, and does not tell its handler."""
    patch.setattr(Serving, "_cancel", staticmethod(lambda served, why: None))


def retry_everything(patch: pytest.MonkeyPatch) -> None:
    """A lost request goes out again, whether it may run twice or not."""
    fail = Calls._fail

    def fail_repeatable(self: Calls, call: Any, *what: Any, **how: Any) -> None:
        call.repeatable, kept = True, call.repeatable
        fail(self, call, *what, **how)
        call.repeatable = kept

    patch.setattr(Calls, "_fail", fail_repeatable)


def hedge_streams(patch: pytest.MonkeyPatch) -> None:
    """Requests that are not idempotent are hedged."""
    hedge = Calls._plan_hedge

    def plan(self: Calls, call: Any, now: float) -> None:
        call.repeatable, kept = True, call.repeatable
        hedge(self, call, now)
        call.repeatable = kept

    patch.setattr(Calls, "_plan_hedge", plan)


def believe_duplicates(patch: pytest.MonkeyPatch) -> None:
    """A frame that comes a second time counts as news."""
    on_talk = Channel.on_talk
    patch.setattr(Channel, "on_talk", lambda self, talk: on_talk(self, talk) or talk.seq < self._expected)


def never_send_again(patch: pytest.MonkeyPatch) -> None:
    """What a broken link lost stays lost."""
    on_heard = Channel.on_heard
    patch.setattr(Channel, "on_heard", lambda self, frame, now: on_heard(self, frame, now)[:0])


def grant_without_end(patch: pytest.MonkeyPatch) -> None:
    """A producer does not look at its credit."""
    patch.setattr(OutStream, "room", property(lambda self: 0 if self.cut else 10, lambda self, room: None))
    patch.setattr(OutStream, "check", lambda self: None)
    patch.setattr(InStream, "check", lambda self: None)


def swap_items(patch: pytest.MonkeyPatch) -> None:
    """Items of one frame come in the wrong order."""
    put = InStream.put
    patch.setattr(InStream, "put", lambda self, items, size=0, **how: put(self, list(items)[::-1], size, **how))


def lose_an_item(patch: pytest.MonkeyPatch) -> None:
    """The last item of a frame is lost."""
    put = InStream.put
    patch.setattr(InStream, "put", lambda self, items, size=0, **how: put(self, list(items)[:-1], size, **how))


def forget_no_caller(patch: pytest.MonkeyPatch) -> None:
    """A server goes on for a caller that is gone."""
    patch.setattr(Serving, "on_peer_gone", lambda self, peer: None)


def lose_nobody(patch: pytest.MonkeyPatch) -> None:
    """A caller waits for a server that is gone."""
    patch.setattr(Calls, "on_peer_gone", lambda self, key, name, why, now: None)


def send_no_time(patch: pytest.MonkeyPatch) -> None:
    """A server is not told how much time there is."""
    on_call = Serving.on_call

    def without(self: Serving, peer: str, name: str, item: list[Any], *rest: Any, **more: Any) -> None:
        on_call(self, peer, name, [*item[:5], None, *item[6:]], *rest, **more)

    patch.setattr(Serving, "on_call", without)


def swap_answers(patch: pytest.MonkeyPatch) -> None:
    """An answer goes to the neighbour."""
    on_results = Calls.on_results
    patch.setattr(Calls, "on_results", lambda self, peer, numbers, *what: on_results(self, peer, numbers[::-1], *what))


def mix_headers(patch: pytest.MonkeyPatch) -> None:
    """Requests whose headers Python takes for equal travel with those of the first."""
    patch.setattr(Calls, "_are_same", lambda self, headers, others: headers == others)


def keep_counting(patch: pytest.MonkeyPatch) -> None:
    """A provider owes an answer for ever."""
    patch.setattr(Providers, "dropped", lambda self, provider, now=0.0, seconds=0.0: None)


BREAKS: list[Break] = [
    answer_twice,
    take_nothing_out,
    hear_no_cancel,
    stop_no_handler,
    retry_everything,
    hedge_streams,
    believe_duplicates,
    never_send_again,
    grant_without_end,
    swap_items,
    lose_an_item,
    forget_no_caller,
    lose_nobody,
    send_no_time,
    swap_answers,
    mix_headers,
    keep_counting,
]


# Few seeds notice these: the ones that did are tried first, because that takes seconds less.
NOTICED_BY: dict[Break, int] = {retry_everything: 463, believe_duplicates: 139, hedge_streams: 37, hear_no_cancel: 25}


@pytest.mark.parametrize("how", BREAKS, ids=[each.__name__ for each in BREAKS])
def test_a_broken_promise_is_noticed(how: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these mistakes in the engine breaks some of a hundred seeds."""
    how(monkeypatch)
    for seed in (NOTICED_BY.get(how, 1), *range(1, 600, 6)):
        try:
            Swarm(seed).run()
        except (GuaranteeBroken, AssertionError):
            return
    pytest.fail(f"nothing noticed: {how.__doc__}")


def test_a_request_without_an_outcome_in_time_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    take_nothing_out(monkeypatch)
    cluster, [a, b] = connected("ab")
    b.router("s", serve)
    cluster.run(0.1)
    a.dealer("s").request("hang", timeout=1.0)
    cluster.run(1.4)
    with pytest.raises(GuaranteeBroken, match=r"s\.hang#1 has no outcome: deadline"):
        cluster.run(2.0)


def test_a_handler_that_outlives_its_deadline_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Serving, "tick", lambda self, now: None)
    monkeypatch.setattr(Serving, "wake_at", lambda self: None)
    hear_no_cancel(monkeypatch)
    cluster, [a, b] = connected("ab")
    b.router("s", serve)
    cluster.run(0.1)
    a.dealer("s").request("hang", timeout=1.0)
    with pytest.raises(GuaranteeBroken, match=r"b still runs s\.hang#1: late"):
        cluster.run(3.0)


def test_what_was_never_answered_is_no_outcome() -> None:
    cluster, [a, b] = connected("ab")
    b.router("s", serve)
    cluster.run(0.1)
    call = a.dealer("s").request("echo", 1)
    books = cluster.books.requests
    with pytest.raises(GuaranteeBroken, match=r"brought \[2\]; answered was \[\]"):
        books.on_outcome(call, [2], None)
    with pytest.raises(GuaranteeBroken, match="a second outcome"):
        books.on_outcome(call, [1], None)


def test_nobody_made_this_request() -> None:
    cluster, [a, b] = connected("ab")
    router: ClusterRouter = b.router("s", serve)
    cluster.run(0.1)
    a.dealer("s").request("slow", 1.0)
    cluster.run(0.5)
    [request] = router.running.values()
    request.serial = 99
    with pytest.raises(GuaranteeBroken, match="nobody asked that"):
        cluster.books.requests.on_begin(request)
