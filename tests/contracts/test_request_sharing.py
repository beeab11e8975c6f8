"""Streams and surveys have one beginning and one end, whoever shares them and whatever stands around them (G8)."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from meshmsg import Cancelled, ConfigurationError, Context, RemoteError
from tests.contracts.faces import PATIENCE_S, Collected, Face, Gate
from tests.contracts.services import END, Next, Run, in_thread, incoming, interceptor, method, outcome_of, serve

pytestmark = pytest.mark.guarantee("G8")


class Held:
    """A dealer whose interceptor waits at a gate, and a service that counts how often it is asked."""

    def __init__(self, face: Face) -> None:
        self.gate, self.entered, self.runs = Gate(), Collected(), Collected()

        def hold(outgoing: Any, proceed: Any) -> Any:
            self.entered.add(outgoing.kind)
            yield self.gate
            return (yield Run(proceed))

        self.router, self.math = serve(face, interceptors=[interceptor(face, hold)])

        @method(face, self.router, streams=True)
        def count(upto: int) -> Any:
            self.runs.add("count")
            yield from range(upto)

        method(face, self.router, name="here")(lambda: self.runs.add("here"))


def test_many_who_read_a_stream_make_one_request(face: Face) -> None:
    held = Held(face)
    for kind in ("stream", "survey"):
        source = held.math.stream("count", 3) if kind == "stream" else held.math.survey("here", timeout=PATIENCE_S)
        together = threading.Barrier(3)

        def read(source: Any = source, together: threading.Barrier = together) -> Any:
            together.wait(PATIENCE_S)
            return next(source)

        readers = [in_thread(read) for _ in range(3)]
        held.entered.wait(1)
        held.gate.open()
        taken = [outcome_of(reader) for reader in readers]
        if kind == "stream":
            assert sorted(taken) == [0, 1, 2]
        else:
            assert sum(isinstance(answer, StopIteration) for answer in taken) == 2
    assert list(held.entered) == ["stream", "survey"]
    assert list(held.runs) == ["count", "here"]


def test_a_stream_that_is_closed_before_it_began_never_does(face: Face) -> None:
    held = Held(face)
    stream = held.math.stream("count", 3)
    first = in_thread(lambda: next(stream))
    held.entered.wait(1)
    second = in_thread(lambda: next(stream))
    stream.close()
    assert isinstance(outcome_of(second), Cancelled), "though the interceptor waits still, where it is a thread"
    held.gate.open()
    error = outcome_of(first)
    assert isinstance(error, Cancelled) and str(error) == "math.count: given up"
    assert (error.service, error.method) == ("math", "count")
    with pytest.raises(Cancelled):
        next(stream)
    assert held.math.request("present") is None
    assert list(held.runs) == [] and list(held.entered) == ["stream", "request"]


def test_what_an_interceptor_raised_is_said_each_time(face: Face) -> None:
    entered = Collected()

    def refuse(outgoing: Any, proceed: Any) -> Any:
        entered.add(outgoing.kind)
        if outgoing.method == "count":
            raise ValueError("not today")
        raise StopIteration if face.is_blocking else StopAsyncIteration

    _, math = serve(face, interceptors=[interceptor(face, refuse)])
    for source in (math.stream("count", 3), math.survey("count")):
        for _ in range(3):
            with pytest.raises(ValueError, match="not today"):
                next(source)
    quiet = math.stream("first")  # what one peeks at, and finds nothing, is no end of the stream
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"math\.first: its interceptors raised Stop\w*Iteration"):
            next(quiet)
    assert list(entered) == ["stream", "survey", "stream"]


def test_items_that_raise_what_ends_an_iteration_fail(face: Face) -> None:
    router, math = serve(face)

    @method(face, router, streams=True)
    def echo(context: Context) -> Any:
        items = incoming(face, context)
        while (item := (yield Next(items))) != END:
            yield item

    def items() -> Any:
        yield 1
        raise StopAsyncIteration

    for _ in range(3):
        with pytest.raises(RuntimeError, match="items= raised StopAsyncIteration"):
            list(math.stream("echo", items=items()))


def test_items_that_are_used_up_do_not_go_out_again(face: Face) -> None:
    def again(outgoing: Any, proceed: Any) -> Any:
        try:
            return (yield Run(proceed))
        except RemoteError:
            return (yield Run(proceed))

    router, math = serve(face, interceptors=[interceptor(face, again)])
    runs = Collected()

    @method(face, router)
    def total(context: Context) -> Any:
        items, result = incoming(face, context), 0
        while (item := (yield Next(items))) != END:
            result += item
        runs.add(result)
        if len(runs) % 2:
            raise ValueError("once more")
        return result

    assert math.request("total", items=[10, 30]) == 40
    with pytest.raises(ConfigurationError, match=r"^math\.total: items= were used up by the first proceed\(\)"):
        math.request("total", items=iter([10, 30]))
    assert list(runs) == [40, 40, 40]
