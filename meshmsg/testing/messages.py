"""A message out of nowhere, for unit tests of handlers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from meshmsg.message import Arrival, Message


class Verdict(NamedTuple):
    """What a handler said about a message."""

    kind: Literal["acked", "nacked", "rejected"]
    delay: float | None = None
    text: str = ""


class Recorder:
    """Stands where a message's lane would be, and remembers what the handler said."""

    def __init__(self, queue: str, sender: str) -> None:
        self.sender = sender
        self.queue = queue
        self.verdict: Verdict | None = None
        self.extensions = 0

    def message_id(self, number: int) -> str:
        """The id that a message with this number has."""
        return f"{self.sender}/{self.queue}/{number}"

    def require_usable(self) -> None:
        """A handler under test may settle its message anywhere."""

    def ack(self, seq: int) -> None:
        """The handler acked."""
        self.verdict = Verdict("acked")

    def ack_run(self, start: int, stop: int) -> None:
        """The handler acked."""
        self.verdict = Verdict("acked")

    def nack(self, seq: int, delay: float | None, error: str) -> None:
        """The handler nacked."""
        self.verdict = Verdict("nacked", delay, error)

    def reject(self, seq: int, reason: str) -> None:
        """The handler rejected."""
        self.verdict = Verdict("rejected", None, reason)

    def extend(self, seq: int) -> None:
        """The handler asked for more time."""
        self.extensions += 1


class TestMessage(Message):
    """A ``Message`` that keeps the verdict it got; ``make_message`` makes one."""

    __slots__ = ("recorder",)
    __test__ = False  # for pytest: not a class of tests

    def __init__(self, recorder: Recorder, number: int, body: Any, details: dict[str, Any]) -> None:
        super().__init__(Arrival(recorder, 0, number, [body], details), 0, body)
        self.recorder = recorder

    @property
    def verdict(self) -> Verdict | None:
        """What the handler said: kind, delay, text; None while it said nothing."""
        return self.recorder.verdict

    @property
    def extensions(self) -> int:
        """How often the handler called ``extend``."""
        return self.recorder.extensions


def make_message(
    body: Any = None,
    *,
    queue: str = "queue",
    sender: str = "sender",
    number: int = 0,
    attempt: int = 1,
    redelivered: bool = False,
    key: str | None = None,
    priority: int = 0,
    headers: Mapping[str, Any] | None = None,
) -> TestMessage:
    """Makes a message as a consumer gets it, without any node; its ``verdict`` tells what a handler did with it.

    Examples
    --------
    >>> def resize(message):
    ...     with message:
    ...         if not message.body.endswith(".jpg"):
    ...             raise Reject("not an image")
    >>> from meshmsg.errors import Reject
    >>> message = make_message("notes.txt", queue="thumbnails", attempt=2)
    >>> resize(message)
    >>> message.verdict
    Verdict(kind='rejected', delay=None, text='not an image')
    """
    details: dict[str, Any] = {}
    if attempt != 1:
        details["a"] = attempt
    if redelivered or attempt > 1:
        details["r"] = True
    if key is not None:
        details["k"] = key
    if priority:
        details["p"] = priority
    if headers:
        details["h"] = dict(headers)
    return TestMessage(Recorder(queue, sender), number, body, details)
