"""ROUTER and DEALER with bad input, in whatever face: each has an error that names what was given, and what to do."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from meshmsg import (
    ConfigurationError,
    EncodeError,
    NameClash,
    NodeClosed,
    RemoteError,
    UnknownOption,
    WrongThread,
)
from tests.contracts.faces import Collected, Face
from tests.contracts.services import method, serve

NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"concurrency": 0}, "^concurrency= takes 1 or more, got 0"),
        ({"concurrency": 1.5}, "^concurrency= takes a whole number, not float 1.5"),
        ({"max_queue": -1}, "^max_queue= takes 0 or more, got -1"),
        ({"timeout": 0}, "^timeout= takes more than 0, got 0"),
        ({"timeout": NAN}, "^timeout= takes a finite number, got nan"),
        ({"tracebacks": 1}, "^tracebacks= takes True or False, got 1"),
        ({"interceptors": print}, r"^router\('math', interceptors=\)"),
        ({"interceptors": [5]}, r"^router\('math', interceptors=\) takes an? .*\(context, proceed\).*, not 5"),
    ],
)
def test_options_of_router_that_cannot_work(face: Face, options: dict[str, Any], why: str) -> None:
    node = face.make()
    with pytest.raises(ConfigurationError, match=why):
        node.router("math", **options)
    assert node.router("math").service == "math", "what was refused is not open"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"timeout": 0}, "^timeout= takes more than 0, got 0"),
        ({"timeout": "1"}, "^timeout= takes a number, not str '1'"),
        ({"balance": "best"}, "^balance= takes one of 'fastest', .*, got 'best'"),
        ({"idempotent": "add"}, "^idempotent= takes"),
        ({"idempotent": [1]}, "^idempotent= takes"),
        ({"hedge_after": "p99"}, "^hedge_after= takes"),
        ({"retry": 3}, "^retry= takes"),
        ({"max_pending": 0}, "^max_pending= takes 1 or more, got 0"),
        ({"interceptors": [5]}, "interceptors="),
    ],
)
def test_options_of_dealer_that_cannot_work(face: Face, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        face.make().dealer("math", **options)


def test_names_and_unknown_options(face: Face) -> None:
    node = face.node()
    for name in (5, "", None):
        with pytest.raises(ConfigurationError, match=r"^router\(service\) takes"):
            node.router(name)
        with pytest.raises(ConfigurationError, match=r"^dealer\(service\) takes"):
            node.dealer(name)
    with pytest.raises(
        UnknownOption, match=r"^router\('math'\) has no option 'concurency': did you mean 'concurrency'"
    ):
        node.router("math", concurency=1)
    with pytest.raises(UnknownOption, match=r"^dealer\('math'\) has no option 'timeot': did you mean 'timeout'\?"):
        node.dealer("math", timeot=1)
    for make in (node.dealer, node.router):
        with pytest.raises(UnknownOption, match=r"has no option 'foo': it has .*, interceptors$"):
            make("math", foo=1)
        with pytest.raises(UnknownOption, match=r"did you mean 'interceptors'\?"):
            make("math", interceptor=[])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"timeout": 0}, r"^request\(timeout=\) takes more than 0, got 0"),
        ({"timeout": "soon"}, r"^request\(timeout=\) takes a number, not str 'soon'"),
        ({"headers": [1]}, r"^request\(headers=\) takes a dict with str keys"),
        ({"headers": {1: 2}}, r"^request\(headers=\) takes a dict with str keys"),
        ({"peer": 5}, r"^request\(peer=\) takes a str, not int 5"),
        ({"key": 5}, r"^request\(key=\) takes a str, not int 5"),
        ({"idempotent": 1}, r"^request\(idempotent=\) takes True or False, got 1"),
        ({"items": 5}, r"^request\(items=\) takes"),
        ({"items": "text"}, r"^request\(items=\) takes"),
    ],
)
def test_requests_that_cannot_work(face: Face, options: dict[str, Any], why: str) -> None:
    math = face.node().dealer("math")
    with pytest.raises(ConfigurationError, match=why):
        math.request("add", **options)
    if "idempotent" not in options:
        with pytest.raises(ConfigurationError, match=why.replace("request", "stream")):
            list(math.stream("add", **options))
    if "timeout" in options or "headers" in options:
        with pytest.raises(ConfigurationError, match=why.replace("request", "survey")):
            list(math.survey("add", **options))


def test_methods_that_are_none(face: Face) -> None:
    math = face.node().dealer("math")
    for name in ("", 5):
        with pytest.raises(ConfigurationError, match=r"^dealer\('math'\)\.request\(method\) takes"):
            math.request(name)


def test_what_cannot_be_sent_is_named(face: Face) -> None:
    router, math = serve(face)
    method(face, router, name="make")(lambda: {"list": [1, object()]})
    method(face, router, name="add")(lambda *args, **kwargs: None)
    with pytest.raises(EncodeError, match=r"^math\.add: argument 2\[1\]") as caught:
        math.add(1, [2, object()])
    assert caught.value.path == "argument 2[1]"
    with pytest.raises(EncodeError, match=r"^math\.add: argument 'word'"):
        math.add(1, word=object())
    with pytest.raises(RemoteError, match=r"^math\.make: result\['list'\]\[1\]") as remote:
        math.make()
    assert (remote.value.type, remote.value.code) == ("meshmsg.errors.EncodeError", "error")


def test_names_of_methods_are_taken_once(face: Face) -> None:
    router = face.node().router("math")
    method(face, router, name="add")(lambda: None)
    with pytest.raises(NameClash, match=r"^router\('math'\) has a method 'add' already"):
        method(face, router, name="add")(lambda: None)
    for name in ("ping", "info", "stats"):
        with pytest.raises(NameClash, match=f"every service has '{name}' already"):
            method(face, router, name=name)(lambda: None)


def test_a_service_is_offered_once_until_it_is_closed(face: Face) -> None:
    node = face.node()
    router = node.router("math")
    with pytest.raises(NameClash, match="math"):
        node.router("math")
    router.close()
    router.close()
    assert node.router("math").methods == ("ping", "info", "stats")


def test_what_is_no_method(face: Face) -> None:
    router = face.node().router("math")
    with pytest.raises(ConfigurationError, match=r"^router\('math'\)\.method takes a function, not int 5"):
        router.method(5)
    with pytest.raises(ConfigurationError, match=r"^router\('math'\)\.method got the class int: .*\.offer offers"):
        router.method(int)
    with pytest.raises(
        ConfigurationError, match=r"has no name: write router\('math'\)\.method\(function, name=\"\.\.\.\""
    ):
        router.method(lambda: None)
    with pytest.raises(ConfigurationError, match="which has no public methods"):
        router.offer(object())

    class Picky:
        def __init__(self, wanted: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"^router\('math'\)\.offer cannot make a Picky \(.*'wanted'"):
        router.offer(Picky)
    with pytest.raises(ConfigurationError, match=r"^router\('math'\)\.serving takes True or False, got 1"):
        router.serving = 1
    with pytest.raises(ConfigurationError, match=r"^close\(drain=\) takes 0 or more, got -1"):
        router.close(drain=-1)


def test_coroutines_are_refused_where_nobody_runs_them(face: Face) -> None:
    if not face.is_blocking:
        pytest.skip("they run here")
    node = face.node()
    router = node.router("math")

    async def add() -> None: ...
    async def count() -> Any:
        yield 1

    class Both:
        def fine(self) -> None: ...
        async def not_fine(self) -> None: ...

    async def intercept(context: Any, proceed: Any) -> None: ...

    hint = "; meshmsg.Node runs coroutines"
    for offer, offered in ((router.method, add), (router.method, count), (router.offer, Both)):
        with pytest.raises(ConfigurationError, match=rf"^router\('math'\) takes plain functions here{hint}"):
            offer(offered)
    assert router.methods == ("ping", "info", "stats")
    for make in (node.router, node.dealer):
        with pytest.raises(ConfigurationError, match=f"takes a plain function .* here, not .*{hint}"):
            make("words", interceptors=[intercept])
    for ask, verb in ((node.dealer("math").request, "request"), (node.dealer("math").stream, "stream")):
        with pytest.raises(ConfigurationError, match=rf"^{verb}\(items=\) takes a plain iterable here; meshmsg\.Node"):
            ask("add", items=count())


def test_a_plain_function_behind_another_is_told_from_a_coroutine(face: Face) -> None:
    router, math = serve(face)

    async def work() -> None: ...

    method(face, router, name="work")(lambda: work())
    with pytest.raises(RemoteError, match=r"math\.work returned a coroutine, which nobody runs"):
        math.work()


def test_before_the_start_and_after_the_close(face: Face) -> None:
    node = face.make()
    math, router = node.dealer("math"), node.router("math")
    for use in (math.ping, lambda: list(math.stream("ping")), lambda: list(math.survey("ping"))):
        with pytest.raises(NodeClosed, match="is not started"):
            use()
    with node:
        pass
    for use in (
        math.ping,
        lambda: list(math.stream("ping")),
        lambda: list(math.survey("ping")),
        lambda: node.dealer("math"),
        lambda: node.router("words"),
    ):
        with pytest.raises(NodeClosed, match="is closed: make a new Node"):
            use()
    math.close()
    router.close()


def test_another_thread_is_refused_where_there_is_a_loop(face: Face) -> None:
    router, math = serve(face)
    if face.is_blocking:
        assert math.ping()["node"] == "server", "any thread may"
        return
    outcome = Collected()

    def use() -> None:
        try:
            math._target.stream("ping")
        except WrongThread as error:
            outcome.add(str(error))

    threading.Thread(target=use).start()
    assert "client" in outcome.wait(1)[0]
    with pytest.raises(WrongThread):
        router._target.method(use)
