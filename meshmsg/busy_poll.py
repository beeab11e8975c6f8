"""Keeping the event loop awake for a moment, where the next message comes soon.

A process that sleeps until its next message pays twice: the kernel has to wake it, and its caches have gone cold, so
that a turn takes three to four times as long (docs/performance.md). Linux does the same for its network devices (busy
polling) and virtual machines (halt polling), and like there the time is short and only taken where it paid before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

# Short waits count one, up to ``MOST``, late ones take ``LATE``: from ``ENOUGH`` on answers come soon as a rule, and
# not because a heartbeat happened to come behind a message.
ENOUGH, MOST, LATE = 8, 16, 4
# A wait in sleep may take that many times the limit and is short: awake, both sides would have been faster.
ASLEEP = 2
# A pass that takes so long was held up by a thread with the GIL, which CPython lets it have for 5 ms; and how long the
# loop sleeps then, so that it loses a tenth at most.
HELD_UP_S, ASIDE_S = 0.004, 0.05


class PolledLoop(Protocol):
    """The part of an event loop that is needed here. Not its clock: uvloop's counts milliseconds."""

    def call_soon(self, callback: Callable[[], Any], /) -> Any: ...


class BusyPoll:
    """Has a loop look for news again and again instead of sleeping, for ``limit_s`` after messages left.

    It does so only in a quick exchange: they left that soon after others came, and most of the last waits, until
    messages came, were shorter than that. Who is answered later, or not at all, or has work to do before it goes on,
    sleeps in between. Others who want the processor go first, and the loop's other callbacks have their
    turns. Where others hold up the loop itself, such as a thread that computes and so has the GIL most of the time,
    each further pass would have to wait for them: then it sleeps for a while.
    """

    __slots__ = (
        "_came",
        "_clock",
        "_limit_s",
        "_loop",
        "_passed",
        "_polls",
        "_resumes",
        "_score",
        "_since",
        "_until",
        "_wait_s",
    )

    def __init__(self, loop: PolledLoop, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loop = loop
        self._limit_s = limit_s
        self._since: float | None = None  # when the first message left after the last one came
        self._came = float("-inf")  # when messages came last
        self._wait_s = 0.0  # what counts as a short wait for it
        self._score = 0  # of the last waits
        self._until = float("-inf")  # the loop stays awake
        self._resumes = float("-inf")  # after others held it up
        self._passed = 0.0  # the last time around
        self._polls = False

    def note(self, received: bool, sent: bool) -> None:
        """After a turn: whether messages came, and whether any left."""
        if not received and not sent:
            return
        now = self._clock()
        if self._since is not None:
            is_short = now - self._since < self._wait_s
            if not is_short:
                self._score = max(self._score - LATE, 0)
            elif received:
                self._score = min(self._score + 1, MOST)
            if received:
                self._since = None
        if received:
            self._came = now
        if not sent:
            self.stop()
            return
        stays_awake = self._score >= ENOUGH and now >= self._resumes and now - self._came < self._limit_s
        if self._since is None:
            self._since = now
            self._wait_s = self._limit_s if stays_awake else ASLEEP * self._limit_s
        if stays_awake:
            self._stay_awake(now)

    def stop(self) -> None:
        """The loop may sleep."""
        self._until = float("-inf")

    def _stay_awake(self, now: float) -> None:
        self._until = now + self._limit_s
        if not self._polls:
            self._polls = True
            self._passed = now
            self._loop.call_soon(self._poll)

    def _poll(self) -> None:
        now = self._clock()
        if now - self._passed > HELD_UP_S:
            self._resumes = now + ASIDE_S
        elif now < self._until:
            self._passed = now
            _let_others_go_first()
            self._loop.call_soon(self._poll)
            return
        self._polls = False


def _nobody_to_let_go_first() -> None:
    """Where the system has no way to say so."""


_let_others_go_first: Callable[[], None] = getattr(os, "sched_yield", _nobody_to_let_go_first)
