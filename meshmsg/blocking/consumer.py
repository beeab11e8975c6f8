"""Taking messages in threads, wherever they come from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from meshmsg.blocking.face import DrainingFace
from meshmsg.checks import require_int, require_number
from meshmsg.driver import Driver
from meshmsg.errors import ConfigurationError, NodeClosed, WaitTimeout
from meshmsg.message import Batch, Message
from meshmsg.sockets import consumer
from meshmsg.sockets.handoff import Handoff
from meshmsg.sockets.workers import is_async

ConsumerT = TypeVar("ConsumerT", bound=consumer.Consumer)


class Consumer(DrainingFace[ConsumerT]):
    """What ``Pull`` and ``Sub`` have in common."""

    def __init__(self, asynchronous: ConsumerT, driver: Driver) -> None:
        super().__init__(asynchronous, driver)
        self._label = asynchronous._label
        self._handoff: Handoff | None = None

    def __call__(self, handler: Callable[[Message], Any]) -> Callable[[Message], Any]:
        """Registers the handler: acked when it returns, nacked when it raises, rejected on ``Reject``.

        It runs in ``concurrency`` threads.
        """
        if is_async(handler):
            raise ConfigurationError(f"{self._label} takes a plain function here; meshmsg.Node runs coroutines")
        handle: Callable[[Callable[[Message], Any]], Callable[[Message], Any]] = self._async
        return self._call(handle, handler)

    def __iter__(self) -> Iterator[Message]:
        """Messages one by one; each wants its verdict (``with message:``)."""
        yield from self._open()
        self._require_no_failure()

    def get(self, timeout: float | None = None) -> Message:
        """One message; raises ``WaitTimeout`` when none came within ``timeout`` seconds, ``NodeClosed`` at the end."""
        deadline = None
        if timeout is not None:
            require_number("get(timeout=)", timeout, at_least=0)
            deadline = time.monotonic() + timeout
        handoff = self._open()
        message = handoff.take(deadline)
        if message is not None:
            return message
        if handoff.closed:
            self._driver.require_running()
            raise NodeClosed(f"{self._label} was closed: open another one")
        # Whether credit is left is known here; why not, in the loop.
        why = "" if handoff.room or self._loop is None else self._loop.call(self._async._explain_wait)
        raise WaitTimeout(f"no message of {self._async._name!r} came within {timeout} s{why}")

    def batches(self, max_size: int = 500, max_wait: float = 0.01) -> Iterator[Batch]:
        """Messages in batches of up to ``max_size``; waits up to ``max_wait`` seconds for a batch to fill.

        It does not wait for messages that the prefetch keeps from coming.
        """
        require_int("batches(max_size=)", max_size, at_least=1)
        require_number("batches(max_wait=)", max_wait, at_least=0)
        handoff = self._open()
        hand = handoff.open_hand()
        try:
            while messages := handoff.take_many(max_size, max_wait):
                hand.item = batch = Batch(messages)
                yield batch
        finally:
            handoff.close_hand(hand)
        self._require_no_failure()

    @property
    def unsettled(self) -> int:
        """Messages this consumer holds without a verdict, started or not; never more than ``prefetch`` (G5).

        Of a ``sub`` without a group, which wants no verdicts: messages that came and that nobody has taken yet.
        """
        return self._call(lambda: self._async.unsettled)

    def close(self, drain: float = 0.0) -> None:
        """Stops consuming; handlers, and whoever iterates, get ``drain`` seconds for what they have taken (G10).

        What was taken without a handler and has no verdict then is nacked, and a later verdict is ignored; but an
        iteration may settle what it is at.
        """
        self._close(drain)

    def _open(self) -> Handoff:
        if self._handoff is None or not self._driver.owner:
            self._driver.require_running()
            assert self._loop is not None, "a running node has a loop"
            self._handoff = self._loop.call(self._async._open_handoff)
        return self._handoff

    def _require_no_failure(self) -> None:
        """An iteration that ends because the loop died must not look like one that is done."""
        if self._loop is not None and self._loop.failure is not None:
            self._driver.require_running()
