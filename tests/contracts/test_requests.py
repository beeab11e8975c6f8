"""What ROUTER and DEALER do with a request, in whatever face they are used. One suite, every face (``faces.py``)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest

from meshmsg import (
    BadRequest,
    Cancelled,
    Context,
    DeadlineExceeded,
    NodeClosed,
    NoResponders,
    NoSuchMethod,
    Overloaded,
    RemoteError,
    RequestError,
    Unavailable,
)
from tests.contracts.faces import PATIENCE_S, Collected, Face, Gate, until
from tests.contracts.services import Ask, Run, interceptor, is_plain, method, serve, shape

pytestmark = pytest.mark.guarantee("G8")


def in_thread(function: Callable[[], Any]) -> Collected:
    """Calls a function in a thread; its result, or what it raised, is added to what is returned."""
    outcome = Collected()

    def run() -> None:
        try:
            outcome.add(function())
        except Exception as error:
            outcome.add(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def outcome_of(collected: Collected) -> Any:
    return collected.wait(1)[0]


# --- results ------------------------------------------------------------------------------------------------


def test_arguments_go_there_and_results_come_back(face: Face) -> None:
    router, math = serve(face)

    @method(face, router)
    def echo(*args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    @method(face, router, name="add")
    def sum_up(first: int, second: int = 10) -> int:
        return first + second

    @method(face, router)
    def nothing() -> None: ...

    values = [1, -1.5, "ä", b"\x00\xff", None, True, [1, [2]], {"a": {"b": 1}}]
    assert math.request("echo", *values, key_word=values) == [values, {"key_word": values}]
    assert math.request("nothing") is None
    assert (math.add(1, 2), math.request("add", 1), math.add(first=1, second=1)) == (3, 11, 2)
    assert math.service == router.service == "math"
    with pytest.raises(AttributeError, match=r"dealer\('math'\) has no attribute '_add'; request\('_add'\) calls"):
        _ = math._add if face.is_blocking else math._target._add


def test_an_object_offers_its_public_methods(face: Face) -> None:
    router, math = serve(face)
    calls = []

    class Counter:
        total = 0

        def _hidden(self) -> None: ...

        def count(self, by: int = 1) -> int:
            calls.append(by)
            self.total += by
            return self.total

    setattr(Counter, "count", shape(Counter.count, is_plain(face), False))  # noqa: B010 -- of another kind
    router.offer(Counter)
    assert router.methods == ("ping", "info", "stats", "count")
    assert [math.count(), math.count(5)] == [1, 6] and calls == [1, 5]


def test_a_node_asks_itself(face: Face) -> None:
    node = face.node()
    router, math = node.router("math"), node.dealer("math")

    @method(face, router)
    def add(first: int, second: int) -> int:
        return first + second

    node.wait_for(router="math", timeout=PATIENCE_S)
    assert math.add(2, 3) == 5


def test_what_was_opened_before_the_start_works_after_it(face: Face) -> None:
    node = face.make("early")
    router, math = node.router("math"), node.dealer("math")
    method(face, router, name="double")(lambda number: 2 * number)
    with pytest.raises(NodeClosed, match="not started"):
        math.double(1)
    with node:
        node.wait_for(router="math", timeout=PATIENCE_S)
        assert math.double(4) == 8


def test_headers_and_caller_are_in_the_context(face: Face) -> None:
    router, math = serve(face)

    @method(face, router)
    def show(context: Context) -> Any:
        remaining = context.remaining
        assert remaining is not None
        return [
            context.caller.name,
            dict(context.headers),
            context.service,
            context.method,
            remaining,
            context.cancelled,
        ]

    *said, remaining, cancelled = math.request("show", headers={"user": "Ada", "level": 3}, timeout=5)
    assert said == ["client", {"user": "Ada", "level": 3}, "math", "show"]
    assert 0 < remaining <= 5 and cancelled is False


@dataclass
class Point:
    x: int
    y: int


def test_dataclasses_arrive_as_what_they_are(face: Face) -> None:
    pytest.importorskip("msgspec")
    router, math = serve(face)

    @method(face, router)
    def mirror(point: Point) -> Point:
        assert isinstance(point, Point)
        return Point(-point.x, point.y)

    assert math.mirror({"x": 1, "y": 2}) == {"x": -1, "y": 2}
    with pytest.raises(BadRequest, match=r"^math\.mirror: argument 'point'") as caught:
        math.mirror({"x": "left", "y": 2})
    assert caught.value.argument == "point"


# --- errors -------------------------------------------------------------------------------------------------


def test_every_kind_of_error_has_its_fields(face: Face) -> None:
    router, math = serve(face)

    @method(face, router)
    def fail(kind: str) -> None:
        errors: dict[str, Exception] = {
            "bug": ZeroDivisionError("by zero"),
            "own": RemoteError("sold out", code="out_of_stock"),
            "busy": Overloaded("come back", retry_after=1.5),
            "closing": Unavailable("for today"),
        }
        raise errors[kind]

    def caught(kind: type[RequestError], ask: Callable[[], Any]) -> Any:
        with pytest.raises(kind) as info:
            ask()
        error = info.value
        assert type(error) is kind
        return error

    bug = caught(RemoteError, lambda: math.fail("bug"))
    assert (bug.code, bug.type, bug.peer, bug.service, bug.method) == (
        "error", "ZeroDivisionError", "server", "math", "fail",
    )  # fmt: skip
    assert "by zero" in str(bug) and "raise errors[kind]" in bug.remote_traceback
    own = caught(RemoteError, lambda: math.fail("own"))
    assert (own.code, own.remote_traceback) == ("out_of_stock", None) and "sold out" in str(own)
    busy = caught(Overloaded, lambda: math.fail("busy"))
    assert (busy.code, busy.retry_after) == ("overloaded", 1.5)
    assert caught(Unavailable, lambda: math.fail("closing")).code == "unavailable"
    bad = caught(BadRequest, lambda: math.fail())
    assert (bad.code, bad.argument, bad.peer) == ("bad_request", "kind", "server")
    assert "argument 'kind' is missing" in str(bad)
    unknown = caught(NoSuchMethod, lambda: math.fial("bug"))
    assert (unknown.code, unknown.peer, unknown.method) == ("no_such_method", "server", "fial")
    assert "did you mean 'fail'?" in str(unknown)


def test_tracebacks_can_stay_at_home(face: Face) -> None:
    router, math = serve(face, router={"tracebacks": False})

    @method(face, router)
    def fail() -> None:
        raise ValueError("not your business")

    with pytest.raises(RemoteError, match="not your business") as caught:
        math.fail()
    assert (caught.value.type, caught.value.remote_traceback) == ("ValueError", None)


def test_nobody_is_said_at_once_and_a_late_joiner_is_found(face: Face) -> None:
    client = face.node("client")
    math = client.dealer("math", timeout=None)
    with pytest.raises(NoResponders, match=r"nobody (offers|serves) 'math'") as caught:
        math.add(1, 2)
    assert (caught.value.code, caught.value.peer, caught.value.service) == ("no_responders", None, "math")
    with pytest.raises(NoResponders, match=r"nobody (offers|serves) 'math'"):
        list(math.survey("ping"))
    server = face.node("server")
    method(face, server.router("math"), name="add")(lambda first, second: first + second)
    client.wait_for(router="math", timeout=PATIENCE_S)
    assert math.add(1, 2) == 3


def test_more_than_the_queue_takes_is_refused_with_a_time_to_come_back(face: Face) -> None:
    router, math = serve(face, router={"concurrency": 1, "max_queue": 1}, timeout=PATIENCE_S)
    gate, started = Gate(), Collected()

    @method(face, router)
    def work() -> Any:
        started.add("started")
        yield gate
        return "done"

    first = in_thread(math.work)
    started.wait(1)
    second = in_thread(math.work)
    until(lambda: _counts(router)["waiting"] == 1)
    with pytest.raises(Overloaded) as caught:
        math.work()
    assert caught.value.retry_after is not None and 0.05 <= caught.value.retry_after <= 5
    gate.open()
    assert [outcome_of(first), outcome_of(second)] == ["done", "done"]


def _counts(router: Any) -> dict[str, Any]:
    """What ``stats`` would say, without a request."""
    service = (router._target if hasattr(type(router), "_run") else router._async)._offer
    return {"running": service.running, "waiting": service.waiting, "cancelled": service.cancelled}


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
    client.wait_for(router="math", timeout=PATIENCE_S)
    gate, started = Gate(), Collected()

    @method(face, router)
    def work() -> Any:
        started.add("started")
        yield gate

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
    until(lambda: _counts(router)["waiting"] == 1)
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


def test_another_provider_takes_over_what_had_not_begun(face: Face) -> None:
    servers = [face.node(name) for name in ("first", "second")]
    routers = [server.router("math", concurrency=1) for server in servers]
    client = face.node("client")
    math = client.dealer("math", balance="least_outstanding")
    client.wait_for(router="math", count=2, timeout=PATIENCE_S)
    gate, started = Gate(), Collected()
    for router, name in zip(routers, ("first", "second"), strict=True):

        @method(face, router)
        def work(name: str = name) -> Any:
            started.add(name)
            yield gate
            return name

    asked = [in_thread(math.work) for _ in range(4)]
    started.wait(2)
    until(lambda: sum(_counts(router)["waiting"] for router in routers) == 2)
    closing = in_thread(lambda: routers[0].close(drain=PATIENCE_S))
    until(lambda: _counts(routers[1])["waiting"] == 2)
    gate.open()
    assert sorted(outcome_of(each) for each in asked) == ["first", "second", "second", "second"]
    assert outcome_of(closing) is None


def test_who_does_not_serve_now_is_not_asked(face: Face) -> None:
    router, math = serve(face)
    router.serving = False
    assert router.serving is False
    until(lambda: _refused(math))
    router.serving = True
    until(lambda: not _refused(math))
    assert math.ping()["node"] == "server"


def _refused(dealer: Any) -> bool:
    try:
        dealer.ping()
    except NoResponders:
        return True
    return False


# --- providers ----------------------------------------------------------------------------------------------


def test_providers_take_turns_or_are_chosen(face: Face) -> None:
    servers = [face.node(f"server-{number}") for number in range(3)]
    for server in servers:
        server.router("math")
        server.router("words")
    client = face.node("client")
    math = client.dealer("math", balance="round_robin")
    client.wait_for(router="math", count=3, timeout=PATIENCE_S)
    names = {server.name for server in servers}
    assert [sum(math.ping()["node"] == name for _ in range(9)) for name in ("nobody",)] == [0]
    asked = [math.ping()["node"] for _ in range(9)]
    assert {asked.count(name) for name in names} == {3}
    by_key = {key: {math.request("ping", key=key)["node"] for _ in range(3)} for key in map(str, range(20))}
    assert all(len(nodes) == 1 for nodes in by_key.values()), "one key, one provider"
    assert len({node for nodes in by_key.values() for node in nodes}) > 1
    for server in servers:
        assert math.request("ping", peer=server.name)["node"] == server.name
        assert math.request("ping", peer=server.id)["id"] == server.id
    with pytest.raises(NoResponders):
        math.request("ping", peer="nobody")
    assert client.dealer("words").ping()["service"] == "words"


def test_a_survey_asks_everybody_once(face: Face) -> None:
    servers = [face.node(name) for name in ("fine", "broken", "slow")]
    gate, asked = Gate(), Collected()
    for server in servers:
        options = {"timeout": 0.05} if server.name == "slow" else {}

        @method(face, server.router("math", **options))
        def status(word: str, name: str = server.name) -> Any:
            asked.add(name)
            if name == "broken":
                raise ValueError(word)
            if name == "slow":
                yield gate
            return f"{name} {word}"

    client = face.node("client")
    math = client.dealer("math")
    client.wait_for(router="math", count=3, timeout=PATIENCE_S)
    answers = {answer.peer: answer for answer in math.survey("status", "today", timeout=PATIENCE_S)}
    gate.open()
    assert sorted(answers) == sorted(asked) == ["broken", "fine", "slow"]
    fine, broken, slow = answers["fine"], answers["broken"], answers["slow"]
    assert (fine.value, fine.error, fine.peer_id) == ("fine today", None, servers[0].id)
    assert isinstance(broken.error, RemoteError) and broken.error.type == "ValueError" and broken.value is None
    assert isinstance(slow.error, DeadlineExceeded)


def test_a_survey_ends_in_time(face: Face) -> None:
    router, math = serve(face)
    gate = Gate()

    @method(face, router)
    def status() -> Any:
        yield gate

    (answer,) = math.survey("status", timeout=0.05)
    assert (answer.peer, answer.value, type(answer.error)) == ("server", None, DeadlineExceeded)
    gate.open()


def test_every_service_tells_about_itself(face: Face) -> None:
    router, math = serve(face)

    @method(face, router)
    def add(first: int, second: int) -> int:
        """Adds two numbers."""
        return first + second

    @method(face, router, streams=True)
    def count(upto: int) -> Any:
        yield from range(upto)

    with pytest.raises(BadRequest):
        math.add("1", 2)
    assert (math.add(1, 2), list(math.stream("count", 3))) == (3, [0, 1, 2])
    assert math.ping()["node"] == "server"
    info = {each["name"]: each for each in math.info()["methods"]}
    assert info["add"]["signature"] == "(first: int, second: int) -> int"
    assert (info["add"]["doc"], info["add"]["streams"], info["count"]["streams"]) == ("Adds two numbers.", False, True)
    stats = math.stats()
    assert (stats["methods"]["add"]["requests"], stats["methods"]["add"]["errors"]) == (2, 1)
    assert "argument 'first' takes int" in stats["methods"]["add"]["last_error"]
    assert math.info()["serving"] is True


# --- around requests ----------------------------------------------------------------------------------------


user: ContextVar[str] = ContextVar("user")


def test_interceptors_see_every_request_on_both_sides(face: Face) -> None:
    seen = Collected()

    def check(context: Context, proceed: Any) -> Any:
        seen.add(f"check {context.method}")
        if context.headers.get("token") != "secret":
            raise RemoteError("who are you?", code="unauthenticated")
        result = yield Run(proceed)
        seen.add(f"checked {context.method}")
        return result

    def log_in(context: Context, proceed: Any) -> Any:
        user.set(context.caller.name)
        seen.add("log in")
        return (yield Run(proceed))

    def sign(outgoing: Any, proceed: Any) -> Any:
        seen.add(f"sign {outgoing.kind} {outgoing.method} {list(outgoing.args)} {outgoing.options}")
        outgoing.headers["token"] = "secret"
        result = yield Run(proceed)
        return [result] if outgoing.method == "add" else result

    both = [interceptor(face, check), interceptor(face, log_in)]
    router, math = serve(face, router={"interceptors": both}, interceptors=[interceptor(face, sign)])
    method(face, router, name="add")(lambda first, second: first + second)
    method(face, router, name="user")(lambda: user.get())

    @method(face, router, streams=True)
    def count(upto: int) -> Any:
        yield from range(upto)

    assert math.request("add", 1, 2, timeout=5) == [3]
    assert list(seen) == ["sign request add [1, 2] {'timeout': 5}", "check add", "log in", "checked add"]
    assert list(math.stream("count", 3)) == [0, 1, 2]
    assert [answer.value["node"] for answer in math.survey("ping")] == ["server"]
    assert math.request("user") == "client", "and what they set is seen by the method"
    plain = face.node("plain")
    plain.wait_for(router="math", timeout=PATIENCE_S)
    with pytest.raises(RemoteError, match=r"who are you\?") as caught:
        plain.dealer("math").request("nonsense")
    assert caught.value.code == "unauthenticated"


def test_what_waits_for_room_gets_it(face: Face) -> None:
    router, math = serve(face, max_pending=1, timeout=PATIENCE_S)
    gate, started = Gate(), Collected()

    @method(face, router)
    def work(number: int) -> Any:
        started.add(number)
        if number == 0:
            yield gate
        return number

    first = in_thread(lambda: math.work(0))
    started.wait(1)
    with pytest.raises(DeadlineExceeded, match="found no room in time: 1 requests are under way, and max_pending=1"):
        math.request("work", 1, timeout=0.02)
    others = [in_thread(lambda: math.work(2)) for _ in range(3)]
    assert list(started) == [0]
    gate.open()
    assert [outcome_of(each) for each in (first, *others)] == [0, 2, 2, 2]


def test_threads_may_ask_side_by_side(face: Face) -> None:
    if not face.is_blocking:
        pytest.skip("a node of an event loop belongs to its thread")
    router, math = serve(face)

    method(face, router, name="echo")(lambda number: number)
    asked = [in_thread(lambda base=base: [math.echo(base + step) for step in range(100)]) for base in range(8)]  # type: ignore[misc]
    assert [outcome_of(each) for each in asked] == [[base + step for step in range(100)] for base in range(8)]
