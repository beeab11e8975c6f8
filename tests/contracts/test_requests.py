"""What ROUTER and DEALER do with a request, in whatever face they are used. One suite, every face (``faces.py``)."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest

from meshmsg import (
    BadRequest,
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
from tests.contracts.services import (
    Run,
    count_calls,
    in_thread,
    interceptor,
    is_plain,
    method,
    outcome_of,
    serve,
    shape,
)

pytestmark = pytest.mark.guarantee("G8")


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
    known = router.methods
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
    assert router.methods == (*known, "count")
    assert [math.count(), math.count(5)] == [1, 6] and calls == [1, 5]


def test_a_node_asks_itself(face: Face) -> None:
    node = face.node()
    router, math = node.router("math"), node.dealer("math")

    @method(face, router)
    def add(first: int, second: int) -> int:
        return first + second

    node.wait_for(router="math", timeout=PATIENCE_S)
    assert math.add(2, 3) == 5


def test_a_node_asks_itself_what_it_has_just_offered(face: Face) -> None:
    node = face.node()
    for number in range(20):
        service = f"math-{number}"
        router, dealer = node.router(service), node.dealer(service)
        router.method(shape(lambda: 5, is_plain(face), False), name="five")
        assert dealer.five() == 5


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
    until(lambda: count_calls(router)["waiting"] == 1)
    with pytest.raises(Overloaded) as caught:
        math.work()
    assert caught.value.retry_after is not None and 0.05 <= caught.value.retry_after <= 5
    gate.open()
    assert [outcome_of(first), outcome_of(second)] == ["done", "done"]


# --- providers ----------------------------------------------------------------------------------------------


def test_providers_take_turns_or_are_chosen(face: Face) -> None:
    servers = [face.node(f"server-{number}") for number in range(3)]
    for server in servers:
        for service in ("math", "words"):
            method(face, server.router(service), name="work")(lambda: None)
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
    with pytest.raises(DeadlineExceeded, match="found no room in time: max_pending=1 requests were under way"):
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
