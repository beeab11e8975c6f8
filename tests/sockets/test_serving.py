"""Running methods: how many at a time, in what order, and what stops one of them and nothing else."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from meshmsg import ConfigurationError, DeadlineExceeded, Overloaded, RemoteError
from meshmsg.sockets.context import Context, current
from meshmsg.sockets.router import Router
from meshmsg.wire import items
from tests.sockets.desk import PEER, Desk, offer_counts, refused, until_free

PATIENCE_S = 10.0


def count_workers(router: Router) -> int:
    return len(router._workers._workers)


class Gate:
    """A method that reports when it begins and waits until it may go on."""

    def __init__(self) -> None:
        self.begun = 0
        self.stopped = 0
        self.running = 0
        self.most = 0
        self.open = asyncio.Event()
        self.changed = asyncio.Event()

    async def wait(self) -> int:
        self.begun += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.changed.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        finally:
            self.running -= 1
            self.changed.set()
        return self.begun

    async def until(self, begun: int) -> None:
        while self.begun < begun:
            self.changed.clear()
            await self.changed.wait()


# --- at a time ----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G8")
async def test_methods_that_never_wait_are_run_by_one_worker_and_answered_together() -> None:
    desk = Desk()
    router = desk.router()

    @router.method
    async def double(number: int) -> int:
        return 2 * number

    asked = desk.ask_many("double", [([number], {}) for number in range(200)])
    assert [await each for each in asked] == [2 * number for number in range(200)]
    assert count_workers(router) <= 2
    assert len(desk.answers) == 1  # one RESULT item
    assert desk.serving.calls == []


async def test_the_last_answer_of_a_burst_leaves_at_once() -> None:
    desk = Desk()
    router = desk.router()
    answers: list[int] = []

    @router.method
    async def note() -> None:
        asyncio.get_running_loop().call_soon(lambda: answers.append(len(desk.answers)))

    await desk.ask("note")
    assert answers == [1]  # sent when the loop came to what was next


async def test_a_long_row_of_calls_lets_the_loop_turn() -> None:
    desk = Desk()
    router = desk.router()
    ran: list[int] = []

    @router.method
    async def note(number: int) -> None:
        ran.append(number)

    asked = desk.ask_many("note", [([number], {}) for number in range(1000)])
    seen = set()
    while not asked[-1].outcome.done():
        seen.add(len(ran))
        await asyncio.sleep(0)
    assert len(seen) >= 3
    assert ran == list(range(1000))


@pytest.mark.guarantee("G8")
async def test_methods_that_wait_run_side_by_side_up_to_the_limit() -> None:
    desk = Desk()
    router = desk.router(concurrency=5, max_queue=10)
    gate = Gate()
    router.method(gate.wait)
    asked = desk.ask_many("wait", [([], {})] * 12)
    await gate.until(5)
    await asyncio.sleep(0)
    assert (gate.begun, count_workers(router)) == (5, 5)
    gate.open.set()
    for each in asked:
        await each
    assert (gate.begun, gate.most) == (12, 5)


@pytest.mark.guarantee("G8")
async def test_more_than_the_queue_holds_is_refused_at_once() -> None:
    desk = Desk()
    gate = Gate()
    router = desk.router(concurrency=2, max_queue=3)
    router.method(gate.wait)
    asked = desk.ask_many("wait", [([], {})] * 7)
    for each in asked[5:]:
        error = await refused(each)
        assert isinstance(error, Overloaded)
        assert error.retry_after is not None
        assert each.fault is not None and each.fault[7] == items.NEVER_RAN
    gate.open.set()
    for each in asked[:5]:
        await each
    assert (await desk.ask("stats"))["overloaded"] == 2


async def test_plain_functions_run_in_threads_side_by_side_up_to_the_limit() -> None:
    desk = Desk()
    router = desk.router(concurrency=3)
    together = threading.Barrier(3)
    seen: set[threading.Thread] = set()

    @router.method
    def meet() -> None:
        seen.add(threading.current_thread())
        together.wait(PATIENCE_S)

    for each in desk.ask_many("meet", [([], {})] * 9):
        await each
    assert len(seen) == 3
    assert all(each.daemon and each.name.startswith("meshmsg-math-") for each in seen)


async def test_a_plain_function_does_not_stop_the_loop() -> None:
    desk = Desk()
    router = desk.router()
    go_on = threading.Event()

    @router.method
    def wait() -> bool:
        return go_on.wait(PATIENCE_S)

    @router.method
    async def look() -> None: ...

    asked = desk.ask("wait")
    await desk.ask("look")
    go_on.set()
    assert await asked


# --- stopping one call --------------------------------------------------------------------------------------


@pytest.mark.guarantee("G8")
async def test_a_cancelled_call_stops_its_method_and_no_other() -> None:
    desk = Desk()
    gate = Gate()
    router = desk.router(concurrency=2)
    router.method(gate.wait)
    first, second = desk.ask_many("wait", [([], {})] * 2)
    await gate.until(2)
    first.cancel()
    while not gate.stopped:
        await asyncio.sleep(0)
    third = desk.ask("wait")
    await gate.until(3)
    gate.open.set()
    await second
    await third
    assert (gate.stopped, gate.most) == (1, 2)
    assert not first.outcome.done()  # nobody hears it
    assert desk.serving.calls == []
    stats = await desk.ask("stats")
    assert (stats["cancelled"], stats["errors"], stats["methods"]["wait"]["errors"]) == (1, 0, 0)


@pytest.mark.guarantee("G8")
async def test_a_cancelled_call_that_waits_never_runs() -> None:
    desk = Desk()
    gate = Gate()
    router = desk.router(concurrency=1)
    router.method(gate.wait)
    first, second, third = desk.ask_many("wait", [([], {})] * 3)
    await gate.until(1)
    second.cancel()
    gate.open.set()
    await first
    await third
    assert gate.begun == 2


async def test_a_method_may_clean_up_and_even_answer_after_it_was_cancelled() -> None:
    desk = Desk()
    router = desk.router(concurrency=1)
    cleaned = asyncio.Event()
    begun = asyncio.Event()

    @router.method
    async def stubborn(context: Context) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            for _ in range(20):
                await asyncio.sleep(0)
            assert context.cancelled
            assert not context.answered
            cleaned.set()
        return "late"

    @router.method
    async def count_cancellations() -> int:
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    asked = desk.ask("stubborn")
    await begun.wait()
    asked.cancel()
    await cleaned.wait()
    assert await desk.ask("count_cancellations") == 0
    assert not asked.outcome.done()


@pytest.mark.guarantee("G8")
async def test_a_deadline_stops_its_method() -> None:
    desk = Desk()
    gate = Gate()
    desk.router().method(gate.wait)
    error = await refused(desk.ask("wait", remaining=0.01))
    assert isinstance(error, DeadlineExceeded)
    while not gate.stopped:
        await asyncio.sleep(0)
    stats = await desk.ask("stats")
    assert (stats["expired"], stats["methods"]["wait"]["last_error"]) == (1, "deadline")
    assert (stats["errors"], stats["methods"]["wait"]["errors"], stats["last_error"]) == (1, 1, "wait: deadline")


async def test_errors_are_those_of_the_methods_together() -> None:
    desk = Desk()
    gate = Gate()
    router = desk.router()
    router.method(gate.wait)

    @router.method
    async def late(context: Context) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert context.cancelled
        return "too late"

    @router.method
    async def fail() -> None:
        raise ValueError("no")

    for ask in (desk.ask("fail"), desk.ask("missing"), desk.ask("late", remaining=0.01)):
        await refused(ask)
    left = desk.ask("wait")
    await gate.until(1)
    desk.serving.on_peer_gone(PEER)
    while not gate.stopped:
        await asyncio.sleep(0)
    del left
    stats = await desk.ask("stats")
    counted = {name: each["errors"] for name, each in stats["methods"].items() if each["requests"]}
    assert counted == {"fail": 1, "late": 1, "wait": 0, "(no such method)": 1}
    assert (stats["errors"], stats["expired"], stats["cancelled"]) == (3, 1, 1)


@pytest.mark.guarantee("G8")
async def test_the_routers_own_timeout_stops_a_method_earlier() -> None:
    desk = Desk()
    gate = Gate()
    left: list[float | None] = []
    router = desk.router(timeout=0.02)

    @router.method
    async def wait(context: Context) -> None:
        left.append(context.remaining)
        await gate.wait()

    for remaining in (60.0, None):
        error = await refused(desk.ask("wait", remaining=remaining))
        assert isinstance(error, DeadlineExceeded)
        assert str(error) == "math.wait ran longer than its service's timeout of 0.02 s"
    while gate.stopped < 2:
        await asyncio.sleep(0)
    assert all(each is not None and 0 < each <= 0.02 for each in left)
    stats = await desk.ask("stats")
    assert (stats["expired"], stats["methods"]["wait"]["errors"]) == (2, 2)
    left.clear()
    patient = Desk()
    patient.router(timeout=60).method(wait)
    assert isinstance(await refused(patient.ask("wait", remaining=0.2)), DeadlineExceeded)  # time enough to begin
    [remaining_there] = left
    assert remaining_there is not None and 0 < remaining_there <= 0.2


@pytest.mark.guarantee("G8")
async def test_a_deadline_that_a_nested_request_met_is_the_callers_too() -> None:
    desk = Desk()

    began = []

    @desk.router().method
    async def ask_further(context: Context) -> None:
        began.append(True)
        while context.remaining:
            pass  # the engine has no turn in which it would see to it first
        error = DeadlineExceeded("no answer")
        error.service = "further"
        raise error

    while not began:  # on a busy machine, its time may pass before
        error = await refused(desk.ask("ask_further", remaining=0.001))
        assert isinstance(error, DeadlineExceeded)
    assert str(error) == "math.ask_further: no answer"


@pytest.mark.parametrize("limit", ["deadline", "timeout"])
async def test_a_plain_function_past_its_time_keeps_its_place_until_it_ends(limit: str) -> None:
    desk = Desk()
    router = desk.router(concurrency=1, timeout=0.01 if limit == "timeout" else None)
    go_on = threading.Event()
    seen: list[bool] = []

    @router.method
    def wait(context: Context) -> None:
        seen.append(context.cancelled)
        assert go_on.wait(PATIENCE_S)
        seen.append(context.cancelled)

    asked = desk.ask("wait", remaining=0.01 if limit == "deadline" else None)
    assert isinstance(await refused(asked), DeadlineExceeded)
    next_one = asyncio.ensure_future(until_free(desk))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not next_one.done()
    assert router._offer.admit(1000, 0) == (1000 - 1, 0)  # it takes none of the queue, and the worker is not free
    assert (await desk.ask("stats"))["running"] == 1
    go_on.set()
    await next_one
    assert seen == [False, True]


# --- the context --------------------------------------------------------------------------------------------


async def test_a_context_tells_who_asks_for_what() -> None:
    desk = Desk()
    router = desk.router()

    @router.method
    async def look(a: int, context: Context) -> list[Any]:
        assert current.get() is context
        return [a, context.service, context.method, list(context.caller), dict(context.headers), context.remaining]

    @router.method
    def look_plainly(context: Context, a: int) -> list[Any]:
        assert current.get() is context
        return [a, context.service, context.method, list(context.caller), dict(context.headers), context.remaining]

    for name in ("look", "look_plainly"):
        assert await desk.ask(name, 1) == [1, "math", name, ["client", "f00d"], {}, None]
        told = await desk.ask(name, 2, headers={"user": "ada"}, remaining=60.0)
        assert told[:5] == [2, "math", name, ["client", "f00d"], {"user": "ada"}]
        assert 0 < told[5] <= 60.0
    assert current.get() is None


async def test_what_goes_on_after_the_answer_has_no_deadline() -> None:
    desk = Desk()
    router = desk.router()
    tasks: list[asyncio.Task[float | None]] = []
    answered = asyncio.Event()

    async def go_on() -> float | None:
        await answered.wait()
        context = current.get()
        assert context is not None and context.answered
        return context.remaining

    @router.method
    async def begin(context: Context) -> float | None:
        tasks.append(asyncio.ensure_future(go_on()))
        return context.remaining

    assert await desk.ask("begin", remaining=60.0) > 0
    answered.set()
    assert await tasks[0] is None


user: ContextVar[str | None] = ContextVar("user", default=None)


async def test_a_call_does_not_see_the_variables_of_another() -> None:
    desk = Desk()

    async def log_in(context: Context, proceed: Any) -> Any:
        if "user" in context.headers:
            user.set(context.headers["user"])
        return await proceed()

    router = desk.router(interceptors=[log_in], concurrency=1)

    @router.method
    async def who() -> str | None:
        return user.get()

    @router.method
    def who_plainly() -> str | None:
        seen = user.get()
        user.set("a thread's own")
        return seen

    for name in ("who", "who_plainly"):
        assert await desk.ask(name, headers={"user": "ada"}) == "ada"
        assert await desk.ask(name) is None
        asked = [desk.ask(name, headers=headers) for headers in ({"user": "bob"}, None, {"user": "eve"}, None)]
        assert [await each for each in asked] == ["bob", None, "eve", None]
    assert user.get() is None


# --- interceptors -------------------------------------------------------------------------------------------


async def test_interceptors_stand_around_every_method() -> None:
    desk = Desk()
    told: list[str] = []

    async def outer(context: Context, proceed: Any) -> Any:
        told.append(f"> {context.method}")
        try:
            return await proceed()
        finally:
            told.append(f"< {context.method}")

    class Guard:
        async def __call__(self, context: Context, proceed: Any) -> Any:
            if context.headers.get("key") != "sesame":
                raise RemoteError("no key", code="denied")
            result = await proceed()
            told.append(f"{context.method} gave {result!r}")
            return result if result is None else -result

    router = desk.router(interceptors=[outer, Guard()])
    offer_counts(router, [], [])

    @router.method
    async def one() -> int:
        return 1

    @router.method
    def two() -> int:
        return 2

    error = await refused(desk.ask("one"))
    assert (error.code, told) == ("denied", ["> one", "< one"])
    told.clear()
    key = {"key": "sesame"}
    assert [await desk.ask("one", headers=key), await desk.ask("two", headers=key)] == [-1, -2]
    assert told == ["> one", "one gave 1", "< one", "> two", "two gave 2", "< two"]
    told.clear()
    for name in ("count", "count_plainly"):
        asked = desk.stream(name, 2, window=9, headers=key)
        await asked
        assert asked.items == [0, 1]
        assert told == [f"> {name}", f"{name} gave None", f"< {name}"]
        told.clear()
    assert "no such method" in str(await refused(desk.ask("three", headers=key)))


async def test_an_interceptor_that_returns_nothing_is_told_to() -> None:
    desk = Desk()

    async def lose(context: Context, proceed: Any) -> None:
        await proceed()

    router = desk.router(interceptors=[lose])
    offer_counts(router, [], [])

    @router.method
    async def one() -> int:
        return 1

    @router.method
    def two() -> int | None:
        return 2

    error = await refused(desk.ask("one"))
    assert isinstance(error, RemoteError) and error.type == "TypeError"
    hint = "got None from its interceptors: write `return await proceed()`"
    assert str(error) == f"math.one returns int by its annotation, {hint}"
    assert str(await refused(desk.ask("ping"))).endswith(hint)
    assert await desk.ask("two") is None  # as it promised
    asked = desk.stream("count", 2)
    await asked
    assert asked.items == [0, 1]


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("name", ["count", "count_plainly", "unknown"])
async def test_a_stream_that_its_interceptors_kept_from_its_method_has_no_good_end(name: str) -> None:
    desk = Desk()

    async def forget(context: Context, proceed: Any) -> None:
        if context.headers:
            await proceed()

    router = desk.router(interceptors=[forget], concurrency=1)
    offer_counts(router, [], [])
    for _ in range(2):
        asked = desk.stream(name, 2, headers={"proceed": True} if name != "unknown" else {})
        if name != "unknown":
            assert await asked is None
        error = await refused(desk.stream(name, 2))
        assert isinstance(error, RemoteError) and error.type == "RuntimeError"
        assert str(error) == f"math.{name}: its interceptors did not call proceed(): write `return await proceed()`"


@pytest.mark.guarantee("G8")
async def test_a_method_does_not_begin_after_its_call_was_cancelled() -> None:
    desk = Desk()
    ran: list[str] = []
    begun, ended = asyncio.Event(), asyncio.Event()

    async def stubborn(context: Context, proceed: Any) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        try:
            await proceed()
        finally:
            ended.set()

    router = desk.router(interceptors=[stubborn])

    @router.method
    async def run() -> None:
        ran.append("run")

    asked = desk.ask("run")
    await begun.wait()
    asked.cancel()
    await ended.wait()
    assert not ran


async def test_what_is_no_interceptor_is_refused() -> None:
    def plain(context: Context, proceed: Any) -> None: ...

    for wrong in (plain, 3):
        with pytest.raises(ConfigurationError, match=r"`async def \(context, proceed\)`"):
            Desk().router(interceptors=[wrong])
    with pytest.raises(ConfigurationError, match=r"write interceptors=\[function\]"):
        Desk().router(interceptors=3)
