"""Streams of requests, in all four shapes and in whatever face. One suite, every face (``faces.py``)."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from meshmsg import (
    BadRequest,
    BodyTooLarge,
    Cancelled,
    Context,
    DeadlineExceeded,
    EncodeError,
    NoResponders,
    RemoteError,
    RequestError,
)
from tests.contracts.faces import PATIENCE_S, Collected, Face, Gate, until
from tests.contracts.services import END, Next, incoming, method, serve

pytestmark = pytest.mark.guarantee("G8")

# A window of small items, and what a thread has taken out of one ahead of its loop.
UNDER_WAY = 256 + 128


def offer_streams(face: Face, router: Any, counts: dict[str, int]) -> None:
    """Methods of all four shapes; ``counts`` says how many items went through which."""

    @method(face, router, streams=True)
    def count(upto: int) -> Any:
        for number in range(upto):
            counts["count"] = number + 1
            yield number

    @method(face, router)
    def total(context: Context) -> Any:
        items, result = incoming(face, context), 0
        while (item := (yield Next(items))) != END:
            result += item
        return result

    @method(face, router, streams=True)
    def double(context: Context) -> Any:
        items = incoming(face, context)
        while (item := (yield Next(items))) != END:
            counts["double"] = counts.get("double", 0) + 1
            yield 2 * item

    @method(face, router)
    def first(context: Context, wanted: int) -> Any:
        items, result = incoming(face, context), []
        for _ in range(wanted):
            result.append((yield Next(items)))
        return result


def test_all_four_shapes(face: Face) -> None:
    router, math = serve(face)
    offer_streams(face, router, {})
    assert list(math.stream("count", 700)) == list(range(700))
    assert list(math.stream("count", 0)) == []
    assert math.request("total", items=range(700)) == sum(range(700))
    assert math.request("total", items=iter([])) == 0
    assert list(math.stream("double", items=(number for number in range(700)))) == list(range(0, 1400, 2))
    assert math.request("first", 2, items=range(5000)) == [0, 1], "a result ends the caller's stream"
    assert math.ping()["node"] == "server"


def test_a_slow_reader_stops_the_method(face: Face) -> None:
    router, math = serve(face)
    counts: dict[str, int] = {}
    offer_streams(face, router, counts)
    most, taken = 0, 0
    for item in math.stream("count", 2000):
        assert item == taken
        taken += 1
        most = max(most, counts["count"] - taken)
    assert taken == 2000
    assert most <= UNDER_WAY + 64, "nor does a thread run ahead of its loop by more than a few items"


def test_a_slow_method_stops_the_caller(face: Face) -> None:
    router, math = serve(face)
    gate, seen, given = Gate(), Collected(), []

    @method(face, router)
    def lazy(context: Context) -> Any:
        items = incoming(face, context)
        assert (yield Next(items)) == 0
        seen.add(context)
        yield gate
        rest = 0
        while (yield Next(items)) != END:
            rest += 1
        return rest

    def items() -> Any:
        for number in range(5000):
            given.append(number)
            yield number

    outcome = Collected()
    thread = threading.Thread(target=lambda: outcome.add(math.request("lazy", items=items(), timeout=None)))
    thread.start()
    (context,) = seen.wait(1)
    up = context._served.up
    until(lambda: len(given) == up.limit)  # all that the method gave credit for
    assert up.limit <= 2 * UNDER_WAY
    gate.open()
    assert outcome.wait(1) == [4999]
    assert len(given) == 5000
    thread.join(PATIENCE_S)


# Items of so many bytes, how many, and how many of them are under way at most. By then one more is made. Those of the
# second kind have exactly 1 MiB when they are encoded.
LARGE = pytest.mark.parametrize(
    ("item_bytes", "count", "most"), [(700 * 1024, 30, 6), (2**20 - 5, 30, 3), (6 * 2**20, 4, 1)]
)


@LARGE
@pytest.mark.guarantee("G5")
def test_of_large_items_a_few_mebibytes_come_or_one(face: Face, item_bytes: int, count: int, most: int) -> None:
    """Also of the first ones, when nobody knows yet how large they are."""
    router, math = serve(face)
    item = bytes(item_bytes)
    made, ahead = [], []

    @method(face, router, streams=True)
    def make(number: int) -> Any:
        for place in range(number):
            made.append(place)
            yield item

    for taken, came in enumerate(math.stream("make", count), 1):
        assert math.ping()["node"] == "server"  # and back again: what had room has come
        ahead.append(len(made) - taken)
        assert len(came) == len(item)
    assert len(ahead) == count and max(ahead) <= most + 1


@LARGE
@pytest.mark.guarantee("G5")
def test_of_large_items_a_few_mebibytes_go_or_one(face: Face, item_bytes: int, count: int, most: int) -> None:
    router, math = serve(face)
    item = bytes(item_bytes)
    given, seen, gates = [], Collected(), [Gate(), Gate()]

    @method(face, router)
    def lazy(context: Context) -> Any:
        items = incoming(face, context)
        seen.add(context)
        yield gates[0]
        yield Next(items)
        seen.add(context)
        yield gates[1]
        rest = 0
        while (yield Next(items)) != END:
            rest += 1
        return rest

    def items() -> Any:
        for number in range(count):
            given.append(number)
            yield item

    outcome = Collected()
    thread = threading.Thread(target=lambda: outcome.add(math.request("lazy", items=items(), timeout=None)))
    thread.start()
    (context,) = seen.wait(1)
    until(lambda: context._served.up.waiting == most)
    assert math.ping()["node"] == "server" and len(given) <= most + 1
    gates[0].open()
    seen.wait(2)
    for _ in range(2):
        assert math.ping()["node"] == "server" and len(given) - 1 <= most + 1
    gates[1].open()
    assert outcome.wait(1) == [count - 1]
    thread.join(PATIENCE_S)


def test_items_come_before_the_error_that_ends_them(face: Face) -> None:
    router, math = serve(face)

    @method(face, router, streams=True)
    def break_down(after: int) -> Any:
        yield from range(after)
        raise ValueError("no more")

    got = []
    with pytest.raises(RemoteError, match="no more") as caught:
        for item in math.stream("break_down", 40):
            got.append(item)
    assert got == list(range(40))
    assert (caught.value.type, caught.value.service, caught.value.method) == ("ValueError", "math", "break_down")
    assert "no more" in (caught.value.remote_traceback or "")


def test_who_leaves_early_stops_the_method(face: Face) -> None:
    router, math = serve(face)
    seen = Collected()

    @method(face, router, streams=True)
    def endless(context: Context) -> Any:
        seen.add(context)
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            seen.add("ended")

    with math.stream("endless") as stream:
        assert [next(stream) for _ in range(100)] == list(range(100))
    assert seen.wait(2)[1] == "ended"
    assert seen[0].cancelled
    with pytest.raises(Cancelled, match=r"math\.endless: given up"):
        next(stream)
    stream.close()


def test_a_stream_has_its_deadline(face: Face) -> None:
    router, math = serve(face)
    gate = Gate()

    @method(face, router, streams=True)
    def stuck(context: Context) -> Any:
        yield 1
        yield gate
        yield 2

    stream = math.stream("stuck", timeout=0.2)
    assert next(stream) == 1
    with pytest.raises(DeadlineExceeded):
        next(stream)
    gate.open()


def test_a_stream_of_nobody_and_of_the_wrong_shape(face: Face) -> None:
    router, math = serve(face)
    offer_streams(face, router, {})
    with pytest.raises(BadRequest, match=r"math\.count streams items: call stream\(\) instead"):
        math.request("count", 3)
    with pytest.raises(BadRequest, match=r"math\.total gives one result: call request\(\) instead"):
        list(math.stream("total"))
    with pytest.raises(BadRequest, match=r"math\.total takes a stream: request\(\.\.\., items=\.\.\.\)"):
        math.request("total")
    with pytest.raises(NoResponders):
        list(math.stream("count", 3, peer="nobody"))


def test_what_the_callers_items_raise_ends_the_request(face: Face) -> None:
    router, math = serve(face)
    offer_streams(face, router, {})

    def broken() -> Any:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        math.request("total", items=broken())
    with pytest.raises(OSError, match="the disk is gone"):
        list(math.stream("double", items=broken()))
    with pytest.raises(EncodeError, match=r"^math\.total: items\[1\] "):
        math.request("total", items=[1, object()])
    with pytest.raises(EncodeError, match=r"^math\.double: items\[1\] "):
        list(math.stream("double", items=[1, object()]))
    assert math.request("total", items=[1, 2]) == 3


def test_a_method_that_fails_ends_the_callers_items(face: Face) -> None:
    router, math = serve(face)
    closed = Collected()

    @method(face, router)
    def refuse(context: Context) -> Any:
        items = incoming(face, context)
        yield Next(items)
        raise ValueError("enough")

    def items() -> Any:
        number = 0
        while not closed:
            yield number
            number += 1

    with pytest.raises(RemoteError, match="enough"):
        math.request("refuse", items=items())
    closed.add("the thread of these items ends, if there is one")


def test_large_items_and_too_large_ones(face: Face) -> None:
    server = face.node("server", max_message_bytes=1_000_000)
    client = face.node("client", max_message_bytes=1_000_000)
    router, math = server.router("math"), client.dealer("math")

    @method(face, router, streams=True)
    def blocks(count: int, size: int) -> Any:
        for _ in range(count):
            yield b"\x00" * size

    client.wait_for(router="math", timeout=PATIENCE_S)
    assert [len(block) for block in math.stream("blocks", 40, 900_000)] == [900_000] * 40
    with pytest.raises(RequestError, match="1000005 bytes; the limit is 1000000"):
        list(math.stream("blocks", 1, 1_000_000))
    offer_streams(face, router, {})
    with pytest.raises(BodyTooLarge, match=r"^math\.total: items\[0\] of 1000005 bytes; the limit is 1000000"):
        math.request("total", items=[b"\x00" * 1_000_000])
    with pytest.raises(BodyTooLarge, match=r"^math\.blocks: arguments of 10000\d\d bytes; the limit is 1000000"):
        math.request("blocks", b"\x00" * 1_000_000)
