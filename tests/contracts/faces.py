"""Every face of meshmsg behind the blocking interface, so that one suite can test them all.

The blocking face is used as it is. The asyncio face runs in a loop of its own thread; proxies call into it and wait.
A handler that has to wait for something is written as a generator that yields a ``Gate``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from types import TracebackType
from typing import Any

import pytest

import meshmsg
import meshmsg.blocking

PATIENCE_S = 10.0  # how long a test waits for what must happen


class Gate:
    """Closed until ``open`` is called; threads and coroutines can wait for that."""

    def __init__(self) -> None:
        self._opened = concurrent.futures.Future[None]()

    def open(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def wait(self) -> None:
        self._opened.result(PATIENCE_S)

    async def async_wait(self) -> None:
        await asyncio.wrap_future(self._shared())

    def _shared(self) -> concurrent.futures.Future[None]:
        """A future of its own for each waiter: a cancelled one must not cancel the gate."""
        future = concurrent.futures.Future[None]()

        def opened(_: object) -> None:
            if not future.done():
                future.set_result(None)

        self._opened.add_done_callback(opened)
        return future


class Collected(list[Any]):
    """A list that one thread fills and another waits for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def add(self, item: Any) -> None:
        with self._changed:
            self.append(item)
            self._changed.notify_all()

    def wait(self, count: int) -> list[Any]:
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self) >= count, PATIENCE_S)
            assert arrived, f"waited for {count} items and got {list(self)}"
            return list(self)


def until(condition: Callable[[], Any]) -> Any:
    """Waits until a condition holds, for what nobody announces; returns what it returned."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.002)):
        if found := condition():
            return found
        pause.wait(0.002)
    raise AssertionError("what was waited for did not happen")


SOCKETS = ("Push", "BarePush", "Pub", "BarePub", "Router", "Dealer", "InterceptedDealer")


class Proxy:
    """An object that belongs to a loop, used from outside of it: calls cross over, and their results come back."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: Any) -> None:
        self._loop = loop
        self._target = target

    def __getattr__(self, name: str) -> Any:
        if name == "close" and hasattr(type(self._target), "aclose"):
            name = "aclose"
        found = getattr(self._target, name)
        if not callable(found):
            return found
        return lambda *arguments, **keywords: self._run(found, *arguments, **keywords)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self._run(setattr, self._target, name, value)

    def __call__(self, handler: Callable[..., Any]) -> Any:
        return self._run(self._target, handler)

    def __next__(self) -> Any:
        try:
            return self._run(self._target.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def __iter__(self) -> Iterator[Any]:
        """Over an asynchronous iterator, or over the items of a batch."""
        if not hasattr(self._target, "__aiter__"):
            return iter([self._wrap(item) for item in self._target])
        return self._iterate()

    def _iterate(self) -> Iterator[Any]:
        source = self._run(self._target.__aiter__)
        source = source._target if isinstance(source, Proxy) else source
        try:
            while True:
                try:
                    yield self._run(source.__anext__)
                except StopAsyncIteration:
                    return
        finally:
            if hasattr(source, "aclose"):
                self._run(source.aclose)

    def __len__(self) -> int:
        return len(self._target)

    def __enter__(self) -> Proxy:
        self._run(getattr(self._target, "__aenter__", None) or self._target.__enter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        leave = getattr(self._target, "__aexit__", None) or self._target.__exit__
        return self._run(leave, kind, error, trace)

    def _run(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        async def call() -> Any:
            result = function(*arguments, **keywords)
            return await result if inspect.isawaitable(result) else result

        future = asyncio.run_coroutine_threadsafe(call(), self._loop)
        return self._wrap(future.result(PATIENCE_S * 2))

    def _wrap(self, result: Any) -> Any:
        kinds = (meshmsg.Message, meshmsg.Batch)
        if isinstance(result, kinds) or hasattr(result, "__aiter__") or type(result).__name__ in SOCKETS:
            return Proxy(self._loop, result)
        return result


class Face:
    """One way to use meshmsg. ``node`` makes nodes that are closed at the end of the test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mesh = f"faces-{uuid.uuid4().hex[:12]}"
        self._stack = ExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seeds: tuple[str, ...] = ()
        if not self.is_blocking:
            self._start_loop()

    @property
    def is_blocking(self) -> bool:
        return self.name.startswith("blocking")

    def _start_loop(self) -> None:
        factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
        if "uvloop" in self.name:
            factory = pytest.importorskip("uvloop").new_event_loop
        loop = self._loop = factory()
        thread = threading.Thread(target=loop.run_forever, name="face", daemon=True)
        thread.start()

        def stop() -> None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(PATIENCE_S)
            loop.close()

        self._stack.callback(stop)

    def make(self, name: str = "node", **options: Any) -> Any:
        """A node of this mesh that is not started; it finds those that were started before it."""
        options = {"mesh": self.mesh, "mdns": False, "seeds": self._seeds, "drain": 0.0, **options}
        if self.is_blocking:
            if "uvloop" in self.name:
                pytest.importorskip("uvloop")
            return meshmsg.blocking.Node(name, uvloop="uvloop" in self.name, **options)
        assert self._loop is not None
        return Proxy(self._loop, meshmsg.Node(name, **options))

    def node(self, name: str = "node", **options: Any) -> Any:
        """A node of this mesh, started."""
        node = self._stack.enter_context(self.make(name, **options))
        self._seeds = (*self._seeds, *node.endpoints)
        return node

    def pair(self, **options: Any) -> tuple[Any, Any]:
        """A producer and a consumer that know each other."""
        producer, consumer = self.node("producer", **options), self.node("consumer", **options)
        producer.wait_for(peer="consumer", timeout=PATIENCE_S)
        consumer.wait_for(peer="producer", timeout=PATIENCE_S)
        return producer, consumer

    def handle(self, pull: Any, function: Callable[[Any], Any]) -> None:
        """Registers a handler as this face has them: a coroutine function, or a plain one."""
        if self.is_blocking or "threads" in self.name:
            pull(_plain(function))
        else:
            pull(_coroutine(function))

    def close(self) -> None:
        self._stack.close()


def _plain(function: Callable[[Any], Any]) -> Callable[[Any], None]:
    def handler(message: Any) -> None:
        for gate in function(message) or ():
            gate.wait()

    return handler


def _coroutine(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def handler(message: Any) -> None:
        for gate in function(message) or ():
            await gate.async_wait()

    return handler


FACES = ("asyncio", "asyncio-threads", "uvloop", "blocking", "blocking-uvloop")


def take(source: Any, count: int) -> list[Any]:
    """The first messages of an iteration, which goes on afterwards."""
    return list(islice(source, count))


def bodies_of(messages: list[Any]) -> list[Any]:
    return [message.body for message in messages]


def acked(messages: list[Any]) -> list[Any]:
    """Acks them all and returns their bodies."""
    for message in messages:
        message.ack()
    return bodies_of(messages)


def reject_all(face: Face, node: Any, queue: str = "work") -> None:
    def handler(message: Any) -> None:
        raise meshmsg.Reject(f"no {message.body}")

    face.handle(node.pull(queue), handler)
