"""Methods of services for every face, from one source.

What has to wait is written as a generator that yields its steps: a ``Gate``, a request to ``Ask``, the ``Next`` item of
the caller, ``Run`` for what an interceptor proceeds to. Whatever else it yields is an item of its stream.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from tests.contracts.faces import PATIENCE_S, Collected, Face, Gate

END = "the end of the items"


class Step:
    """Something to wait for, in a thread or in a coroutine; its result is what ``yield`` returns."""

    def wait(self) -> Any:
        raise NotImplementedError

    async def async_wait(self) -> Any:
        raise NotImplementedError


class Ask(Step):
    """A request that a method makes in turn."""

    def __init__(self, dealer: Any, method: str, *args: Any, **options: Any) -> None:
        self._dealer, self._method, self._args, self._options = dealer, method, args, options

    def wait(self) -> Any:
        return self._dealer.request(self._method, *self._args, **self._options)

    async def async_wait(self) -> Any:
        return await self._dealer._target.request(self._method, *self._args, **self._options)


class Next(Step):
    """The next item that the caller sends, or ``END``."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def wait(self) -> Any:
        return next(self._items, END)

    async def async_wait(self) -> Any:
        return await anext(self._items, END)


class Run(Step):
    """What an interceptor goes on to."""

    def __init__(self, proceed: Callable[[], Any]) -> None:
        self._proceed = proceed

    def wait(self) -> Any:
        return self._proceed()

    async def async_wait(self) -> Any:
        return await self._proceed()


def is_plain(face: Face) -> bool:
    """Whether methods of this face run in threads."""
    return face.is_blocking or "threads" in face.name


def incoming(face: Face, context: Any) -> Any:
    """An iterator over the caller's items, for ``Next``."""
    items = context.items()
    return iter(items) if is_plain(face) else aiter(items)


def method(face: Face, router: Any, *, name: str | None = None, streams: bool = False) -> Callable[[Any], Any]:
    """Offers a function as this face has them: a plain one, or a coroutine; with ``streams`` the generators of both."""

    def offer(function: Any) -> Any:
        return router.method(shape(function, is_plain(face), streams), name=name)

    return offer


def interceptor(face: Face, function: Any) -> Any:
    """An interceptor of this face; only the blocking one has plain ones."""
    return shape(function, face.is_blocking, False)


def shape(function: Any, plain: bool, streams: bool) -> Any:
    """The function in the kind that is wanted."""
    steps = inspect.isgeneratorfunction(function)

    def run(*args: Any, **kwargs: Any) -> Any:
        return _exhaust(_walk(function(*args, **kwargs))) if steps else function(*args, **kwargs)

    async def async_run(*args: Any, **kwargs: Any) -> Any:
        return await _async_result(function(*args, **kwargs)) if steps else function(*args, **kwargs)

    def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from _walk(function(*args, **kwargs))

    async def async_generate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        walk = _async_walk(function(*args, **kwargs), [])
        try:
            async for item in walk:
                yield item
        finally:
            await walk.aclose()  # type: ignore[attr-defined]

    kinds: dict[tuple[bool, bool], Any] = {
        (True, False): run, (False, False): async_run, (True, True): generate, (False, True): async_generate,
    }  # fmt: skip
    return functools.wraps(function)(kinds[plain, streams])


def _walk(steps: Generator[Any, Any, Any]) -> Generator[Any, None, Any]:
    """Takes the steps in a thread; yields the items in between, and returns the result."""
    try:
        step = next(steps)
        while True:
            if not isinstance(step, Step | Gate):
                yield step
                step = steps.send(None)
                continue
            try:
                value = step.wait()
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(value)
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


def _exhaust(walk: Generator[Any, None, Any]) -> Any:
    try:
        item = next(walk)
    except StopIteration as end:
        return end.value
    raise AssertionError(f"an item of a method that does not stream: {item!r}")


async def _async_walk(steps: Generator[Any, Any, Any], result: list[Any]) -> AsyncIterator[Any]:
    """The same in a coroutine; the result is put into the list."""
    try:
        step = next(steps)
        while True:
            if not isinstance(step, Step | Gate):
                yield step
                step = steps.send(None)
                continue
            try:
                value = await step.async_wait()
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(value)
    except StopIteration as end:
        result.append(end.value)
    finally:
        steps.close()


async def _async_result(steps: Generator[Any, Any, Any]) -> Any:
    result: list[Any] = []
    async for item in _async_walk(steps, result):
        raise AssertionError(f"an item of a method that does not stream: {item!r}")
    return result[0]


def serve(face: Face, service: str = "math", *, router: dict[str, Any] | None = None, **dealer: Any) -> tuple[Any, Any]:
    """A router of one node, and a dealer of another one that knows it; with a method, or nobody would hear of it."""
    server = face.node("server")
    offered = server.router(service, **(router or {}))
    offered.method(lambda: None, name="present")
    client = face.node("client")
    asking = client.dealer(service, **dealer)
    client.wait_for(router=service, timeout=PATIENCE_S)
    return offered, asking


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


def count_calls(router: Any) -> dict[str, Any]:
    """What ``stats`` would say, without a request."""
    service = (router._target if hasattr(type(router), "_run") else router._async)._offer
    return {"running": service.running, "waiting": service.waiting, "cancelled": service.cancelled}
