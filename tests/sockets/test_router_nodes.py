"""Routers of real nodes, asked by real dealers: what the tests with a desk cannot see."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from meshmsg import (
    BadRequest,
    BodyTooLarge,
    Cancelled,
    DeadlineExceeded,
    Node,
    NodeClosed,
    NoResponders,
    NoSuchMethod,
    Overloaded,
    PeerLost,
    RemoteError,
    Unavailable,
    blocking,
)
from meshmsg.engine.call import Call
from meshmsg.engine.service import Served
from meshmsg.sockets.context import Context
from meshmsg.sockets.dealer import Dealer

PATIENCE_S = 10.0


@contextlib.asynccontextmanager
async def two_nodes(server_bytes: int = 2**20, client_bytes: int = 2**20) -> AsyncIterator[tuple[Node, Node]]:
    mesh = f"router-{uuid.uuid4().hex[:12]}"
    async with Node("server", mesh=mesh, mdns=False, max_message_bytes=server_bytes, drain=0) as server:
        seeds = server.endpoints[:1]
        async with Node(
            "client", mesh=mesh, mdns=False, seeds=seeds, max_message_bytes=client_bytes, drain=0
        ) as client:
            yield server, client


async def meet(client: Node) -> Dealer:
    await client.wait_for(router="math", timeout=PATIENCE_S)
    return client.dealer("math", timeout=PATIENCE_S)


@pytest.mark.guarantee("G8")
async def test_all_kinds_of_methods_answer() -> None:
    async with two_nodes() as (server, client):
        router = server.router("math")

        @router.method
        async def add(a: int, b: int = 1) -> int:
            return a + b

        @router.method
        def add_plainly(a: int, *, b: int = 1) -> int:
            return a + b

        @router.method
        async def count(to: int) -> AsyncIterator[int]:
            for number in range(to):
                yield number

        @router.method
        def count_plainly(to: int) -> Iterator[int]:
            yield from range(to)

        @router.method
        async def total(numbers: AsyncIterator[int]) -> int:
            return sum([number async for number in numbers])

        @router.method
        def negate(numbers: Iterator[int], context: Context) -> Iterator[int]:
            assert context.caller.name == "client"
            for number in numbers:
                yield -number

        math = await meet(client)
        assert [await math.add(2, 3), await math.add(2, b=4), await math.add_plainly(2, b=5)] == [5, 6, 7]
        for name in ("count", "count_plainly"):
            assert [number async for number in math.stream(name, 1000)] == list(range(1000))
        assert await math.request("total", items=range(1000)) == 499_500
        assert [each async for each in math.stream("negate", items=range(1000))] == [-each for each in range(1000)]
        assert sorted((await math.request("stats"))["methods"]) == sorted(router.methods)


async def test_a_result_that_the_caller_does_not_take_is_an_error_and_no_silence() -> None:
    async with two_nodes(server_bytes=2**20, client_bytes=300_000) as (server, client):
        router = server.router("math")

        @router.method
        async def zeros(count: int) -> bytes:
            return bytes(count)

        math = await meet(client)
        assert len(await math.zeros(299_000)) == 299_000
        with pytest.raises(RemoteError, match="result of 300005 bytes; the limit is 300000") as caught:
            await math.zeros(300_000)
        assert caught.value.type == f"meshmsg.errors.{BodyTooLarge.__name__}"


@pytest.mark.guarantee("G8")
async def test_a_service_is_there_with_its_methods() -> None:
    async with two_nodes() as (server, client):
        math = client.dealer("math", timeout=PATIENCE_S)
        waiting = asyncio.ensure_future(client.wait_for(router="math", timeout=PATIENCE_S))
        router = server.router("math")
        server.pull("behind")
        await client.wait_for(pull="behind", timeout=PATIENCE_S)
        with pytest.raises(NoResponders):
            await math.add(1, 2)
        assert not waiting.done()

        @router.method
        async def add(a: int, b: int) -> int:
            return a + b

        @router.method
        async def negate(a: int) -> int:
            return -a

        await waiting
        assert [await math.negate(1), await math.add(1, 2)] == [-1, 3]


@pytest.mark.guarantee("G8")
@pytest.mark.guarantee("G8")
async def test_a_node_knows_its_own_services_at_once() -> None:
    async with two_nodes() as (server, _):
        router, math = server.router("math"), server.dealer("math", timeout=PATIENCE_S)

        @router.method
        async def add(a: int, b: int) -> int:
            return a + b

        await server.wait_for(router="math", timeout=0)
        assert await math.add(2, 3) == 5
        await router.close()
        again = server.router("math")
        again.method(add)
        assert await math.add(2, 3) == 5  # in the turn of the router's first method, and without wait_for
        again.serving = False
        with pytest.raises(NoResponders, match="not serving"):
            await math.add(2, 3)
        again.serving = True
        assert [answer.value async for answer in math.survey("add", 2, 3)] == [5]
        closing = asyncio.ensure_future(again.close())
        await asyncio.sleep(0)
        with pytest.raises(NoResponders):
            await math.add(2, 3)
        await closing


async def test_arguments_that_wait_are_bounded_in_bytes() -> None:
    async with two_nodes() as (server, client):
        router = server.router("math", concurrency=1, max_queue_bytes=250_000)
        go_on = asyncio.Event()

        @router.method
        async def measure(data: bytes) -> int:
            await go_on.wait()
            return len(data)

        math = await meet(client)
        asked = [asyncio.ensure_future(math.measure(bytes(100_000))) for _ in range(5)]
        while sum(each.done() for each in asked) < 2:  # they come in several frames
            await asyncio.wait([each for each in asked if not each.done()], return_when=asyncio.FIRST_COMPLETED)
        done = [each for each in asked if each.done()]
        assert all(isinstance(each.exception(), Overloaded) for each in done)
        go_on.set()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert (outcomes.count(100_000), sum(isinstance(each, Overloaded) for each in outcomes)) == (3, 2)


@pytest.mark.guarantee("G10")
@pytest.mark.parametrize("answered", [True, False])
async def test_a_node_that_leaves_waits_for_its_answers(answered: bool) -> None:
    async with two_nodes() as (server, client):
        router = server.router("math")
        begun, go_on = asyncio.Event(), asyncio.Event()

        @router.method
        async def wait() -> str:
            begun.set()
            await go_on.wait()
            return "done"

        math = await meet(client)
        asked = asyncio.ensure_future(math.wait())
        await begun.wait()
        closing = asyncio.ensure_future(client.close(drain=PATIENCE_S if answered else 0.01))
        if answered:
            for _ in range(50):
                await asyncio.sleep(0)
            assert not asked.done()
            go_on.set()
            assert await asked == "done"
        else:
            with pytest.raises(Cancelled):
                await asked
        await closing


@pytest.mark.guarantee("G8", "G10")
@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_node_that_leaves_waits_for_what_its_items_clean_up(who: str) -> None:
    cleaned, over = [], asyncio.Event()

    async with two_nodes() as (server, client):

        @server.router("math").method
        async def total(items: AsyncIterator[int]) -> int:
            return sum([item async for item in items])

        async def numbers() -> AsyncIterator[int]:
            try:
                while True:
                    yield 1
            finally:
                asyncio.get_running_loop().call_later(0.2, over.set)  # as one does that says goodbye to a database
                await over.wait()
                cleaned.append("cleaned")

        math = await meet(client)
        asked = asyncio.ensure_future(math.request("total", items=numbers()))
        await client._driver.until(lambda: any(call.spoke for call in client._engine.calls._table.values()))
        if who == "server":
            await server.close(drain=0)
            with pytest.raises((PeerLost, Unavailable)):
                await asked
            assert cleaned == []
        await client.close(drain=5 if who == "server" else 0)
        assert cleaned == ["cleaned"]
        await asyncio.wait({asked})


@pytest.mark.guarantee("G8", "G10")
async def test_a_node_that_leaves_finishes_what_runs() -> None:
    async with two_nodes() as (server, client):
        router = server.router("math", concurrency=1)
        begun, go_on = asyncio.Event(), asyncio.Event()

        @router.method
        async def wait() -> str:
            begun.set()
            await go_on.wait()
            return "done"

        math = await meet(client)
        running = asyncio.ensure_future(math.wait())
        await begun.wait()
        waiting = asyncio.ensure_future(math.wait())
        while not router._offer.waiting:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(server.close(drain=PATIENCE_S))
        with pytest.raises(NoResponders):  # it did not run, may go elsewhere, and nobody else is there
            await waiting
        go_on.set()
        assert await running == "done"
        await closing


@pytest.mark.guarantee("G8")
async def test_a_method_is_found_at_who_has_it() -> None:
    async with two_nodes() as (new, old):
        newer, older = new.router("math"), old.router("math")

        @newer.method
        async def add(a: int, b: int) -> int:
            return a + b

        @newer.method
        async def count(to: int) -> AsyncIterator[int]:
            for number in range(to):
                yield number

        @older.method
        async def negate(a: int) -> int:
            return -a

        await old.wait_for(router="math", count=2, timeout=PATIENCE_S)
        math = old.dealer("math", timeout=PATIENCE_S)
        assert [await math.add(number, 1) for number in range(20)] == list(range(1, 21))
        assert [[number async for number in math.stream("count", 3)] for _ in range(10)] == [[0, 1, 2]] * 10
        with pytest.raises(NoSuchMethod):
            await math.divide(1, 2)
        with pytest.raises(NoSuchMethod):
            await math.request("add", 1, 2, peer="client")


@pytest.mark.guarantee("G5", "G8")
async def test_one_dealer_alone_is_never_too_much() -> None:
    async with two_nodes() as (server, client):

        @server.router("math").method
        async def add(a: int, b: int) -> int:
            await asyncio.sleep(0)
            return a + b

        math = await meet(client)
        assert await asyncio.gather(*(math.add(number, 1) for number in range(5000))) == list(range(1, 5001))


async def test_closed_routers_are_forgotten() -> None:
    async with two_nodes() as (server, client):
        for number in range(5):
            router = server.router(f"math{number}")
            router.method(len)
            await client.wait_for(router=f"math{number}", timeout=PATIENCE_S)
            await router.close()
        last = server.router("last")
        assert server._services._routers == {last}
        last.method(len)
        await client.wait_for(router="last", timeout=PATIENCE_S)
        assert set(client._engine.calls._clients) == {"last"}
    with pytest.raises(NodeClosed, match="node 'server' is closed"):
        last.method(max)


@pytest.mark.guarantee("G8")
async def test_headers_are_the_call_s_own() -> None:
    async with two_nodes() as (server, client):
        router = server.router("math")

        @router.method
        async def whoami(context: Context) -> dict[str, object]:
            mine = context.headers
            assert isinstance(mine, dict)
            mine.setdefault("user", len(mine))  # as an interceptor might, which tells its method
            mine.get("list", []).append("seen")
            return dict(context.headers)

        math = await meet(client)
        assert [await math.request("whoami") for _ in range(2)] == [{"user": 0}] * 2
        headers = {"trace": 1, "list": []}
        found = await asyncio.gather(*[math.request("whoami", headers=headers) for _ in range(5)])
        assert found == [{"trace": 1, "list": ["seen"], "user": 2}] * 5


@pytest.mark.guarantee("G8")
async def test_a_call_that_is_over_is_held_by_nothing() -> None:
    """Cycles would keep large arguments and results until the garbage collector happens to run."""
    async with two_nodes() as (server, client):
        router = server.router("math")

        @router.method
        async def echo(value: int) -> int:
            return 1 // value

        @router.method
        async def count(to: int) -> AsyncIterator[int]:
            for number in range(to):
                yield number

        math = await meet(client)
        gc.collect()
        gc.disable()
        try:
            assert await math.request("echo", 1) == 1
            with contextlib.suppress(RemoteError):
                await math.request("echo", 0)
            assert [item async for item in math.stream("count", 3)] == [0, 1, 2]
            assert len([answer async for answer in math.survey("echo", 1)]) == 1
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(math.request("echo", 1), 0)
            await asyncio.sleep(0)
            await math.ping()
            assert [each for each in gc.get_objects() if isinstance(each, Call) and each.method != "ping"] == []
        finally:
            gc.enable()


@pytest.mark.guarantee("G8")
async def test_what_was_served_is_held_by_nothing_however_it_ended() -> None:
    async with two_nodes() as (server, client):
        router = server.router("math")

        @router.method
        async def fails() -> None:
            raise BadRequest("no")  # what the log would keep is left out

        @router.method
        def fails_in_a_thread() -> None:
            raise BadRequest("no")

        @router.method
        async def hangs() -> None:
            await asyncio.Event().wait()

        @router.method
        async def count() -> AsyncIterator[int]:
            for number in itertools.count():
                yield number

        math = await meet(client)
        gc.collect()
        gc.disable()
        try:
            for method in ("fails", "fails_in_a_thread"):
                with contextlib.suppress(BadRequest):
                    await math.request(method)
            with contextlib.suppress(DeadlineExceeded):
                await math.request("hangs", timeout=0.01)
            hanging = asyncio.create_task(math.request("hangs"))
            while not [each for each in gc.get_objects() if isinstance(each, Served) and each.method == "hangs"]:
                await math.ping()
            hanging.cancel()
            async with math.stream("count") as numbers:
                async for _ in numbers:
                    break
            for _ in range(100):  # until the server knows of the last cancellation, and its worker has ended
                await math.ping()
                left = [each for each in gc.get_objects() if isinstance(each, Served) and each.method != "ping"]
                if not left:
                    break
            assert left == []
        finally:
            gc.enable()


@pytest.mark.guarantee("G8")
def test_a_call_of_a_thread_that_is_over_is_held_by_nothing() -> None:
    mesh = f"router-{uuid.uuid4().hex[:12]}"
    with blocking.Node("both", mesh=mesh, mdns=False) as node:
        router = node.router("math")

        @router.method
        def echo(value: int) -> int:
            return 1 // value

        node.wait_for(router="math", timeout=PATIENCE_S)
        math = node.dealer("math", timeout=PATIENCE_S)
        gc.collect()
        gc.disable()
        try:
            assert [math.request("echo", 1) for _ in range(3)] == [1] * 3
            with contextlib.suppress(RemoteError):
                math.request("echo", 0)
            math.ping()
            left = [each for each in gc.get_objects() if isinstance(each, Call) and each.method != "ping"]
            assert left == []
        finally:
            gc.enable()
