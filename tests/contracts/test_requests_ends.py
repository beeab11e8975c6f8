"""How requests end before their time: deadlines, cancellation, closing. One suite, every face (``faces.py``)."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg import (
    Cancelled,
    Context,
    DeadlineExceeded,
    NodeClosed,
    NoResponders,
    Overloaded,
    RequestError,
    Unavailable,
)
from meshmsg.options import MAX_REQUEST_ATTEMPTS
from tests.contracts.faces import PATIENCE_S, Collected, Face, Gate, until
from tests.contracts.services import Ask, count_calls, in_thread, is_plain, method, outcome_of, serve, shape

pytestmark = pytest.mark.guarantee("G8")


# --- deadlines and cancellation -----------------------------------------------------------------------------


def test_a_deadline_is_the_end_on_both_sides(face: Face) -> None:
    router, math = serve(face)
    gate, seen = Gate(), Collected()

    @method(face, router)
    def work(context: Context) -> Any:
        seen.add(context)
        yield gate
        return "too late"

    with pytest.raises(DeadlineExceeded) as caught:
        math.request("work", timeout=0.2)
    assert (caught.value.code, caught.value.service, caught.value.method) == ("deadline_exceeded", "math", "work")
    (context,) = seen.wait(1)
    until(lambda: context.cancelled)
    gate.open()
    assert math.ping()["node"] == "server", "and what it says too late goes nowhere"


def chain(face: Face) -> tuple[Any, Gate, Collected]:
    """Three nodes, where ``front`` asks ``middle``, which asks ``back``, which waits for a gate."""
    gate, seen = Gate(), Collected()
    back, middle = face.node("back"), face.node("middle")
    routers = {"back": back.router("back"), "middle": middle.router("middle")}
    dealer = middle.dealer("back", timeout=None)

    @method(face, routers["back"], name="work")
    def work(context: Context) -> Any:
        seen.add(("back", context, context.remaining))
        yield gate
        return "from the back"

    @method(face, routers["middle"], name="work")
    def pass_on(context: Context) -> Any:
        seen.add(("middle", context, context.remaining))
        try:
            return (yield Ask(dealer, "work"))
        except BaseException as error:
            seen.add(("error", error, None))
            raise

    front = face.node("front")
    for node, service in ((middle, "back"), (front, "middle")):
        node.wait_for(router=service, timeout=PATIENCE_S)
    return front.dealer("middle", timeout=None), gate, seen


def test_deadlines_travel(face: Face) -> None:
    if "threads" in face.name:
        pytest.skip("a plain function has no way to make requests of a node that belongs to a loop")
    front, gate, seen = chain(face)
    gate.open()
    assert front.request("work", timeout=5) == "from the back"
    (_, _, first), (_, _, second) = seen.wait(2)
    assert 0 < second <= first <= 5, "the second request said nothing of a timeout"
    del seen[:]
    assert front.work() == "from the back"
    assert [remaining for _, _, remaining in seen.wait(2)] == [None, None]


def test_the_end_of_the_time_reaches_the_last_of_three(face: Face) -> None:
    if "threads" in face.name:
        pytest.skip("a plain function has no way to make requests of a node that belongs to a loop")
    front, gate, seen = chain(face)
    with pytest.raises(DeadlineExceeded):
        front.request("work", timeout=0.3)
    for _, context, _ in seen.wait(2)[:2]:
        until(lambda context=context: context.cancelled)  # type: ignore[misc]
    seen.wait(3)
    gate.open()


def test_a_cancelled_request_is_cancelled_at_the_last_of_three(face: Face) -> None:
    if "threads" in face.name:
        pytest.skip("a plain function has no way to make requests of a node that belongs to a loop")
    front, gate, seen = chain(face)
    asked = in_thread(front.work)
    seen.wait(2)
    front.close()
    assert isinstance(outcome_of(asked), Cancelled)
    name, error, _ = seen.wait(3)[2]
    assert name == "error", "what the second one waited for has ended, although nobody told it a time"
    if face.is_blocking:
        assert isinstance(error, Cancelled)
        assert str(error) == "back.work: middle.work asked for it, and is wanted no more"
    for _, context, _ in seen[:2]:
        until(lambda context=context: context.cancelled)  # type: ignore[misc]
    gate.open()


def test_a_closed_dealer_gives_up_what_is_under_way(face: Face) -> None:
    router, math = serve(face)
    gate, started = Gate(), Collected()

    @method(face, router)
    def work(context: Context) -> Any:
        started.add(context)
        yield gate

    asked = in_thread(math.work)
    (context,) = started.wait(1)
    math.close()
    math.close()
    error = outcome_of(asked)
    assert isinstance(error, Cancelled) and "the dealer was closed" in str(error)
    until(lambda: context.cancelled)
    for use in (math.work, lambda: math.stream("work"), lambda: math.survey("work")):
        with pytest.raises(NodeClosed, match=r"dealer\('math'\) was closed: open another one"):
            use()
    gate.open()


def test_a_node_that_closes_ends_its_requests(face: Face) -> None:
    server, client = face.node("server"), face.node("client")
    router, math = server.router("math"), client.dealer("math", timeout=None)
    gate, started = Gate(), Collected()

    @method(face, router)
    def work() -> Any:
        started.add("started")
        yield gate

    client.wait_for(router="math", timeout=PATIENCE_S)
    asked = in_thread(math.work)
    started.wait(1)
    client.close(drain=0)
    assert isinstance(outcome_of(asked), NodeClosed | RequestError)
    gate.open()
    with pytest.raises(NodeClosed, match="closed"):
        math.work()


# --- leaving ------------------------------------------------------------------------------------------------


def test_what_runs_ends_before_the_router_does(face: Face) -> None:
    router, math = serve(face, router={"concurrency": 1})
    gate, started = Gate(), Collected()

    @method(face, router)
    def work() -> Any:
        started.add("started")
        yield gate
        return "done"

    running = in_thread(math.work)
    started.wait(1)
    waiting = in_thread(math.work)
    until(lambda: count_calls(router)["waiting"] == 1)
    closing = in_thread(lambda: router.close(drain=PATIENCE_S))
    assert isinstance(outcome_of(waiting), Unavailable | NoResponders), "it never began"
    gate.open()
    assert (outcome_of(running), outcome_of(closing)) == ("done", None)
    with pytest.raises(NoResponders):
        math.work()


def test_what_runs_too_long_is_given_up(face: Face) -> None:
    router, math = serve(face)
    gate, started = Gate(), Collected()

    @method(face, router)
    def work(context: Context) -> Any:
        started.add(context)
        yield gate

    running = in_thread(math.work)
    (context,) = started.wait(1)
    router.close(drain=0)
    assert isinstance(outcome_of(running), Unavailable)
    assert context.cancelled
    gate.open()


def test_an_endless_stream_ends_with_its_service(face: Face) -> None:
    router, feed = serve(face, "feed")
    gate = Gate()

    def follow() -> Any:
        yield 1
        yield 2
        yield gate

    router.method(shape(follow, is_plain(face), True), endless=True)
    items = feed.stream("follow")
    assert [next(items), next(items)] == [1, 2]
    closing = in_thread(lambda: router.close(drain=PATIENCE_S * 100))
    with pytest.raises(Unavailable, match="the service closes"):
        next(items)
    assert outcome_of(closing) is None
    gate.open()


def test_another_provider_takes_over_what_had_not_begun(face: Face) -> None:
    servers = [face.node(name) for name in ("first", "second")]
    routers = [server.router("math", concurrency=1) for server in servers]
    client = face.node("client")
    math = client.dealer("math", balance="least_outstanding")
    gate, started = Gate(), Collected()
    for router, name in zip(routers, ("first", "second"), strict=True):

        @method(face, router)
        def work(name: str = name) -> Any:
            started.add(name)
            yield gate
            return name

    client.wait_for(router="math", count=2, timeout=PATIENCE_S)
    asked = [in_thread(math.work) for _ in range(4)]
    started.wait(2)
    until(lambda: sum(count_calls(router)["waiting"] for router in routers) == 2)
    closing = in_thread(lambda: routers[0].close(drain=PATIENCE_S))
    until(lambda: count_calls(routers[1])["waiting"] == 2)
    gate.open()
    assert sorted(outcome_of(each) for each in asked) == ["first", "second", "second", "second"]
    assert outcome_of(closing) is None


def test_what_was_tried_again_is_counted(face: Face) -> None:
    routers = {name: face.node(name).router("math") for name in ("first", "second")}
    client = face.node("client")
    gate, tries = Gate(), Collected()
    for name, router in routers.items():

        @method(face, router)
        def work(name: str = name) -> Any:
            tries.add(name)
            if len(tries) == 1:
                yield gate
            return name

    client.wait_for(router="math", count=2, timeout=PATIENCE_S)
    asked = in_thread(client.dealer("math", idempotent=True).work)
    (first,) = tries.wait(1)
    routers[first].close(drain=0)
    assert outcome_of(asked) != first
    gate.open()
    counters = client.counters()
    assert (counters["request_retries"], counters["request_hedges"], counters["late_replies"]) == (1, 0, 0)
    assert counters["refused_frames"] == 0


@pytest.mark.parametrize(
    ("idempotent", "retry_after", "runs"), [(True, None, 1), (False, 0.01, 1), (True, 0.01, MAX_REQUEST_ATTEMPTS)]
)
def test_what_a_method_raises_is_tried_again_only_if_it_asks_for_that(
    face: Face, idempotent: bool, retry_after: float | None, runs: int
) -> None:
    """Whatever it is called, it ran: only what may run twice is repeated, and only if the method says when."""
    router, _ = serve(face)
    client = face.node("another")
    client.wait_for(router="math", timeout=PATIENCE_S)
    tries = Collected()

    @method(face, router)
    def busy() -> str:
        tries.add(1)
        raise Overloaded("come back", retry_after=retry_after)

    with pytest.raises(Overloaded, match="come back"):
        client.dealer("math", idempotent=idempotent).busy()
    assert len(tries) == runs and client.counters()["request_retries"] == runs - 1
