"""Keeping the event loop awake for a moment, where the next message comes soon.

A process that sleeps until its next message pays twice: the kernel has to wake it, and its caches have gone cold, so
that a turn takes three to four times as long (docs/performance.md). Linux does the same for its network devices (busy
polling) and virtual machines (halt polling), and like there the time is short and only taken where it paid last time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Protocol


class PolledLoop(Protocol):
    """The part of an event loop that is needed here. Not its clock: uvloop's counts milliseconds."""

    def call_soon(self, callback: Callable[[], Any], /) -> Any: ...


class BusyPoll:
    """Has a loop look for news again and again instead of sleeping, for ``limit_s`` after messages came or left.

    It does so only if the last wait of the same kind, for an answer or for the next message, was shorter than that: who
    gets a message each millisecond sleeps in between. Others who want the processor go first, and the loop's other
    callbacks have their turns.
    """

    __slots__ = ("_clock", "_is_short", "_last", "_limit_s", "_loop", "_polls", "_sent")

    def __init__(self, loop: PolledLoop, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loop = loop
        self._limit_s = limit_s
        self._last = float("-inf")  # when messages came or left
        self._sent = False  # whether any left then
        self._is_short = [False, False]  # the last wait after messages only came, and after some left
        self._polls = False

    def note(self, received: bool, sent: bool) -> None:
        """After a turn: whether messages came, and whether any left."""
        if not received and not sent:
            return
        now = self._clock()
        if received:
            self._is_short[self._sent] = now - self._last < self._limit_s
        self._last = now
        self._sent = sent
        if self._is_short[sent] and not self._polls:
            self._polls = True
            self._loop.call_soon(self._poll)

    def stop(self) -> None:
        """The loop may sleep."""
        self._last = float("-inf")

    def _poll(self) -> None:
        if self._clock() - self._last < self._limit_s:
            _let_others_go_first()
            self._loop.call_soon(self._poll)
        else:
            self._polls = False


def _nobody_to_let_go_first() -> None:
    """Where the system has no way to say so."""


_let_others_go_first: Callable[[], None] = getattr(os, "sched_yield", _nobody_to_let_go_first)
