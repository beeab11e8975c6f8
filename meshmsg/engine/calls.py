"""The caller's table: requests that have no outcome yet, their attempts, deadlines, retries and hedges (G8).

Commands are ``start``, ``cancel``, ``send_items`` and ``end_items``, inputs the ``on_*`` methods; outcomes collect in
``answered``, items to send go out through ``send``. An attempt has a number of its own, and never gets another one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

from meshmsg.engine.call import Call as Call
from meshmsg.engine.call_timers import RETRY, WAIT, CallTimers
from meshmsg.engine.directory import Directory
from meshmsg.engine.faults import RETRYABLE, is_answer, make_error
from meshmsg.engine.providers import BUILT_IN, Provider
from meshmsg.engine.retry import backoff
from meshmsg.engine.streams import BYTES_UNDER_WAY
from meshmsg.errors import (
    Cancelled,
    DeadlineExceeded,
    MeshError,
    NoResponders,
    NoSuchMethod,
    Overloaded,
    RequestError,
    Unavailable,
)
from meshmsg.options import MAX_REQUEST_ATTEMPTS
from meshmsg.wire import items
from meshmsg.wire.codec import Undecodable, make_packer
from meshmsg.wire.large import LARGE_BYTES

# (peer's key, items, bodies)
Send = Callable[[str, list[list[Any]], Sequence[bytes]], None]

_NOBODY: frozenset[str] = frozenset()
# What tells that there was no answer: another attempt that is under way may bring one.
_UNANSWERED = RETRYABLE | {DeadlineExceeded.code, Cancelled.code}
_OVER = "the request is over"


class Calls:
    """All requests of this node that are under way."""

    def __init__(self, generator: random.Random, send: Send, limit_of: Callable[[str], int | None]) -> None:
        self.answered: list[tuple[Call, Any, MeshError | None]] = []
        self.before_looking: Callable[[], None] = lambda: None  # called before anybody is listed
        self.late_replies = 0
        self.retries = 0
        self.hedged = 0
        self._generator = generator
        self._send = send
        self._limit_of = limit_of  # the largest body that a peer takes
        self._clients = Directory(generator)
        self.clients = self._clients.of  # what is known of a service, if it is offered
        self.staged: list[Call] = []
        self.given_up: list[Call] = []
        self._table: dict[int, Call] = {}
        self._next_number = 0
        self.timers = CallTimers(self._table)
        self._pack = make_packer()

    # -- commands --------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Attempts that have no answer yet, and calls that wait to be sent or for their retry."""
        kept = (self._table.values(), self.staged, self.timers.resting, self.timers.waiting)
        return sum(not call.done for calls in kept for call in calls)

    def responders(self, service: str) -> list[Provider]:
        """Who serves it now."""
        self.before_looking()
        return self.clients(service).providers.listed()

    def whom_to_survey(self, service: str, method: str) -> list[Provider]:
        """Who serves it, suspect or not; for what is asked about the providers themselves, also who does not serve."""
        self.before_looking()
        return self.clients(service).providers.there(anyway=method in BUILT_IN)

    def start(self, call: Call) -> None:
        """Makes a request: it leaves with this turn, together with all others of it."""
        call.known = self.clients(call.service)  # also when it ends, although nobody may offer it any more
        self.staged.append(call)

    def cancel(self, call: Call) -> None:
        """Nobody waits any more: the server is told with this turn, and what it still says is late."""
        if not call.done:
            call.done = True
            self.given_up.append(call)
            if call.up is not None:
                call.up.cut = _OVER

    def send_items(self, call: Call, bodies: Sequence[bytes]) -> None:
        """Items of the caller's stream; not more than ``call.up.room``, and none behind its ``mark_bytes``."""
        if not call.done and call.provider is not None and call.up is not None:
            marked = call.up.take(len(bodies), sum(map(len, bodies)))
            call.spoke = True
            item = [items.UP_ITEMS, call.number, len(bodies), *([items.MARKED] if marked else ())]
            self._send(call.provider.key, [item], bodies)

    def end_items(self, call: Call) -> None:
        """The caller's stream is complete. If nobody has the call just now, it is said to whom it goes next."""
        if call.done or call.up is None:
            return
        if call.number in self._table:
            assert call.provider is not None
            call.spoke = True
            self._send(call.provider.key, [[items.UP_END, call.number]], ())
        else:
            call.up.ended = True

    def grant(self, call: Call) -> bool:
        """The application took items: tells the server, if that is worth a word; says whether it is."""
        if call.done or call.down is None or call.provider is None or (upto := call.down.credit_due()) is None:
            return False
        self._send(call.provider.key, [[items.CREDIT, call.number, upto, call.down.taken]], ())
        return True

    # -- out -------------------------------------------------------------------------------------------------

    def dispatch(self, now: float) -> None:
        """Sends what was staged: neighbours with the same peer, method and time make one run."""
        for call in self.given_up:
            self._end(call, now)
        self.given_up.clear()
        while self.staged:  # what cannot be sent may be tried elsewhere at once
            staged, self.staged = self.staged, []
            runs: dict[str, list[Call]] = {}
            for call in staged:
                if call.done:
                    continue
                provider = self._choose(call, now)
                if provider is None:
                    continue
                run = runs.get(provider.key)
                if run is None:
                    runs[provider.key] = [call]
                    continue
                first = run[0]
                if (
                    call.method != first.method
                    or call.service != first.service
                    or call.deadline != first.deadline
                    or (call.timeout != first.timeout and call.deadline is None)
                    or call.flags != first.flags
                    or (call.headers is not first.headers and not self._are_same(call.headers, first.headers))
                    or len(run) >= items.MAX_RUN
                ):
                    self._send_run(provider, run, now)
                    runs[provider.key] = [call]
                else:
                    run.append(call)
            for run in runs.values():
                provider = run[0].provider
                assert provider is not None
                self._send_run(provider, run, now)
        self.timers.forget_stale()

    def _are_same(self, headers: dict[str, Any] | None, others: dict[str, Any] | None) -> bool:
        """Whether headers of two calls travel as the same bytes; to Python, 1 and True and 1.0 are equal, too."""
        return headers == others and self._pack(headers) == self._pack(others)

    def _choose(self, call: Call, now: float) -> Provider | None:
        """Takes a provider for the next attempt; without one, the call has its outcome, or waits."""
        known = call.known = self._clients.get(call.service, call.known)
        hedge = call.number in self._table
        if call.deadline is not None and now >= call.deadline:
            self._report(call, None, call.make_late())
            return None
        small = _NOBODY
        if call.peer is not None:
            provider = known.providers.find(call.peer, anyway=call.method in BUILT_IN)
        else:
            small = self._too_small(call)
            without = call.lacking | small
            provider = known.providers.pick(call.options.balance, now, call.key, call.avoid, without)
        if hedge and (provider is None or provider.suspect or provider.key in call.avoid):
            return None  # a hedge without another provider; the first attempt goes on
        if provider is None and call.lacking:  # a retry that finds only those: perhaps they have the method by now
            provider = known.providers.pick(call.options.balance, now, call.key, call.avoid, small)
        if provider is None and small and not call.attempts:  # nobody takes as much
            provider = known.providers.pick(call.options.balance, now, call.key)
        if provider is None:
            call.attempts += call.attempts > 0  # a retry that finds nobody is one, too
            self._fail(call, call.make_unheard(too_large=bool(small)), now)
            return None
        if provider.suspect:
            self._wait(call, provider, now)
            return None
        if not self._takes(provider, call):
            if hedge:
                return None  # only the first one takes as much
            self._report(call, None, call.make_too_large(provider.name, self._limit_of(provider.key)))
            return None
        if call.attempts == 0:
            known.budget.on_request(now)
        if hedge:  # the one before goes on
            if not known.budget.take(now):
                return None
            self.hedged += 1
            assert call.provider is not None
            call.hedges = call.hedges or {}
            call.hedges[call.number] = (call.provider, call.sent_at)
        call.attempts += 1
        call.provider = provider
        known.providers.started(provider, now)
        return provider

    def _takes(self, provider: Provider, call: Call) -> bool:
        """Whether a provider reads arguments as large as these."""
        limit = self._limit_of(provider.key)
        return limit is None or len(call.body) <= limit

    def _too_small(self, call: Call) -> frozenset[str]:
        """Keys of those that don't read arguments as large as these, and are not asked; but who keeps a key is."""
        if len(call.body) < LARGE_BYTES or call.key is not None:
            return _NOBODY
        there = self.clients(call.service).providers.there()
        return frozenset(each.key for each in there if not self._takes(each, call))

    def _wait(self, call: Call, provider: Provider, now: float) -> None:
        """Who is to be asked is suspect. Soon it is back or gone; until then nobody has the call."""
        call.start_clock(now)
        call.awaited = provider
        self.timers.wait(call)

    def _decide(self, services: Collection[str]) -> None:
        """Who offers these has changed: what waits for one of them looks again whom it can ask."""
        self.staged += self.timers.let_on(services)

    def _send_run(self, provider: Provider, run: list[Call], now: float) -> None:
        first = run[0]
        number = self._next_number
        self._next_number += len(run)
        if first.deadline is None and first.timeout is not None:
            deadline = now + first.timeout
            for call in run:
                call.deadline = deadline
        deadline_at = first.deadline
        for position, call in enumerate(run, number):
            call.number = position
            call.sent_at = now
            self._table[position] = call
            if call.options.hedge_after is not None:  # its own: a run may be of several dealers
                self._plan_hedge(call, now)
        remaining = None
        if deadline_at is not None:
            remaining = deadline_at - now
            self.timers.put_deadline(deadline_at, number, len(run))
        window = first.down.limit if first.down is not None else 0
        method = (first.service, first.method)
        item = [items.CALL, number, len(run), *method, remaining, first.flags, window, first.headers]
        if first.down is not None:
            item.append(BYTES_UNDER_WAY)
        self._send(provider.key, [item], [call.body for call in run])
        if first.flags & items.SENDS_ITEMS:
            for call in run:
                if call.up is not None and call.up.ended:
                    self.end_items(call)

    def _plan_hedge(self, call: Call, now: float) -> None:
        if not call.repeatable or call.flags or call.tries >= MAX_REQUEST_ATTEMPTS:
            return  # streams neither: their items cannot be sent twice
        if call.peer is not None or call.key is not None:
            return  # nobody else is meant
        after = call.options.hedge_after
        if after == "p95":
            after = call.known.p95(call.method)
        if after is not None:
            self.timers.put_hedge(now + float(after), call)

    # -- in --------------------------------------------------------------------------------------------------

    def on_results(self, peer: str, numbers: Sequence[int], values: Sequence[Any], now: float) -> None:
        """Answers came, each with its value."""
        table = self._table
        for number, value in zip(numbers, values, strict=True):
            call = table.get(number)
            if call is None or call.done or not call.is_from(number, peer):
                self.late_replies += 1
                continue
            if type(value) is Undecodable:
                self._finish(call, None, RequestError(f"the result cannot be read: {value.error}"), number, now)
            else:
                self._finish(call, value, None, number, now)

    def on_fault(self, peer: str, fault: Sequence[Any], now: float) -> None:
        """A request failed there: ``[op, number, code, type, message, traceback, retry_after, flags]``."""
        number, code, type_name, message, remote_traceback, retry_after, flags = fault[1:8]
        call = self._table.get(number)
        if call is None or call.done or not call.is_from(number, peer):
            self.late_replies += 1
            return
        error = make_error(code, type_name, message, remote_traceback, retry_after)
        never_ran = bool(flags & items.NEVER_RAN)
        pushback = isinstance(error, Overloaded) and retry_after is not None  # to be followed, whoever says it
        answer = is_answer(type_name, never_ran) and not pushback
        self._attempt_failed(call, number, error, now, never_ran=never_ran, answer=answer, pause=retry_after)

    def on_items(self, peer: str, number: int, values: list[Any], size_bytes: int, flags: int = 0) -> None:
        """Items of a stream came, of so many bytes together."""
        call = self._table.get(number)
        if call is None or call.done or call.down is None or not call.is_from(number, peer):
            self.late_replies += 1
            return
        call.came += len(values)
        call.down.put(values, size_bytes, marked=bool(flags & items.MARKED))

    def on_end(self, peer: str, number: int, now: float) -> None:
        """A stream ended well."""
        call = self._table.get(number)
        if call is None or call.done or not call.is_from(number, peer):
            self.late_replies += 1
            return
        self._finish(call, None, None, number, now)

    def on_up_credit(self, peer: str, number: int, upto: int, taken: int = 0, limit_bytes: int | None = None) -> None:
        """The server takes more of the caller's items, and took some."""
        call = self._table.get(number)
        if call is not None and call.up is not None and call.is_from(number, peer):
            call.up.grant(upto, taken, limit_bytes)

    def on_peer(
        self, key: str, name: str, services: dict[str, dict[str, Any]], *, alive: bool, suspect: bool = False
    ) -> None:
        """What a peer offers, and whether it can be asked; ``suspect``: not now, and that is soon decided."""
        self._decide(self._clients.update_peer(key, name, services, alive=alive, suspect=suspect))

    def on_peer_gone(self, key: str, name: str, why: str, now: float) -> None:
        """A peer's life ended: whatever it had to answer is lost."""
        self._decide(self._clients.remove_peer(key))
        lost = [(number, call) for number, call in self._table.items() if call.is_from(number, key)]
        for number, call in lost:
            if not call.done:
                self._attempt_failed(call, number, call.make_lost(name, why), now)

    # -- outcomes --------------------------------------------------------------------------------------------

    def _attempt_failed(
        self,
        call: Call,
        number: int,
        error: RequestError,
        now: float,
        *,
        never_ran: bool = False,
        answer: bool = False,
        pause: float | None = None,
    ) -> None:
        """An attempt brought no result. An ``answer`` is what the method raised: nothing speaks against who gave it."""
        provider, sent_at = self._take_attempt(call, number)
        error.peer = provider.name
        mendable = error.code in RETRYABLE and not answer
        full = isinstance(error, Overloaded)
        lacks = never_ran and isinstance(error, NoSuchMethod)
        # How long a stream takes says nothing about the next call.
        seconds, usual = (0.0, None) if call.flags else (now - sent_at, call.known.median(call.method))
        if lacks:  # which is said quickly, but makes it no faster and no better at what it has
            call.known.providers.dropped(provider, now, seconds)
        elif full:
            call.known.providers.refused(provider, now, seconds, usual)
        elif mendable:
            call.known.providers.ended(provider, now, seconds, failed=True)
        else:
            call.known.providers.raised(provider, now, seconds, usual)
        if lacks:
            call.lacking |= {provider.key}
        if mendable:
            call.refusal = error, pause
        if lacks or (mendable and (call.key is None or not full)):  # its keeper stays a key's
            call.avoid.add(provider.key)
        others = call.hedges or call.number in self._table
        if answer or not (lacks or error.code in _UNANSWERED):
            if others:
                self._end(call, now)
            self._report(call, None, error)
        elif others:
            return  # they go on
        elif lacks:
            self._ask_who_has_it(call, error, now)
        elif not (never_ran and self._go_elsewhere(call, error)):
            self._fail(call, error, now, pause=pause)

    def _go_elsewhere(self, call: Call, error: RequestError) -> bool:
        """Has a call that never reached the method go on at once, to run elsewhere for the first time; says whether.

        As gRPC's transparent retries. Each provider is asked once, also the ejected ones, and that costs the call none
        of its attempts. Then who is overloaded takes it later; who closes may be open again.
        """
        full = isinstance(error, Overloaded)
        if call.peer is not None or call.spoke or (full and call.key is not None):
            return False
        if not isinstance(error, (Overloaded, Unavailable, NoResponders)):
            return False
        others = self.clients(call.service).providers.others(call.avoid | self._too_small(call))
        if any(each.alive for each in others):
            call.refused += 1
        elif full or call.tries > MAX_REQUEST_ATTEMPTS:
            return False
        self._stage_again(call)
        return True

    def _stage_again(self, call: Call) -> None:
        """Asks somebody else at once."""
        if call.up is not None:
            call.up.forget_credit()
        self.staged.append(call)

    def _ask_who_has_it(self, call: Call, error: RequestError, now: float) -> None:
        """A provider has no such method: another may be newer. Each is asked once, and if nobody has it, that is it.

        Where those that may have it refused, what they said is the outcome, or they are asked again later.
        """
        others = self.clients(call.service).providers.others(call.lacking | self._too_small(call))
        if call.peer is not None or call.spoke or not others:
            self._report(call, None, error)
        elif call.refusal is None or any(each.key not in call.avoid for each in others):
            self._stage_again(call)
        else:
            refusal, pause = call.refusal
            self._fail(call, refusal, now, pause=pause)

    def _fail(self, call: Call, error: RequestError, now: float, *, pause: float | None = None) -> None:
        """Tries again what may be tried again, later; otherwise this is the outcome."""
        retry = call.options.retry
        if call.repeatable and not call.flags and error.code in RETRYABLE and call.tries < retry.max_attempts:
            delay = backoff(retry, max(1, call.tries), self._generator)
            if pause is not None:
                delay = max(delay, pause)
            call.start_clock(now)
            in_time = call.deadline is None or now + delay < call.deadline
            if in_time and call.attempts and call.known.budget.take(now):
                self.retries += 1
                call.number = -1
                self.timers.rest(call, now + delay)
                return
        self._report(call, None, error)

    def _take_attempt(self, call: Call, number: int) -> tuple[Provider, float]:
        del self._table[number]
        if number != call.number:
            assert call.hedges is not None
            return call.hedges.pop(number)
        assert call.provider is not None
        return call.provider, call.sent_at

    def _finish(self, call: Call, value: Any, error: MeshError | None, number: int, now: float) -> None:
        """An attempt brought the outcome; others are called off."""
        provider, sent_at = self._take_attempt(call, number)
        known = call.known
        if call.flags:
            provider.failures = 0
            known.providers.dropped(provider)  # how long a stream takes says nothing about the next one
        else:
            known.providers.ended(provider, now, now - sent_at, False)
            known.add_latency(call.method, now - sent_at)
        if isinstance(error, RequestError):
            error.peer = provider.name
        if call.hedges or call.number in self._table:
            self._end(call, now)
        self._report(call, value, error)

    def _report(self, call: Call, value: Any, error: MeshError | None) -> None:
        """The one outcome of a call; nothing of it is under way any more."""
        call.done = True
        if isinstance(error, RequestError):
            error.service, error.method = call.service, call.method
        if call.flags:
            if call.up is not None:
                call.up.cut = _OVER
            if call.down is not None:
                call.down.end(error)
        self.answered.append((call, value, error))

    def _end(self, call: Call, now: float) -> None:
        """Every attempt of it is called off."""
        call.done = True
        self.timers.forget(call)
        attempts = call.hedges or {}
        call.hedges = None
        if call.number in self._table:
            assert call.provider is not None
            attempts[call.number] = (call.provider, call.sent_at)
        for number, (provider, sent_at) in attempts.items():
            del self._table[number]
            call.known.providers.dropped(provider, now, 0.0 if call.flags else now - sent_at)
            self._send(provider.key, [[items.CANCEL, [number]]], ())

    # -- time ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Time has passed: deadlines, retries, hedges."""
        for call in self.timers.late(now):
            self._expire(call, now)
        for what, call in self.timers.due(now):
            if what == RETRY:
                self.staged.append(call)
            elif what == WAIT:
                self._report(call, None, call.make_late(waited=True))
            else:
                self._hedge(call, now)

    def _expire(self, call: Call, now: float) -> None:
        """No answer in time, which speaks against who has had the request for the longest, if that is unusually long.

        Who calls with a timeout below a method's usual time has nobody left out for it.
        """
        assert call.provider is not None, "an attempt is under way"
        slowest, sent_at = next(iter(call.hedges.values())) if call.hedges else (call.provider, call.sent_at)
        usual = None if call.flags else call.known.p95(call.method)
        if usual is not None and now - sent_at >= usual:
            call.known.providers.blame(slowest, now, now - sent_at)
        self._end(call, now)
        self._report(call, None, call.make_late())

    def _hedge(self, call: Call, now: float) -> None:
        assert call.provider is not None
        call.avoid.add(call.provider.key)
        if self.clients(call.service).providers.has_other(now, call.avoid | self._too_small(call)):
            self.staged.append(call)

    def wake_at(self, soonest: float) -> float:
        """When ``tick`` may have something to do, if that is before ``soonest``."""
        return self.timers.wake_at(soonest)

    def close(self, now: float) -> None:
        """The node closes: whatever is under way is given up."""
        waiting = [*self.staged, *self._table.values(), *self.timers.waiting, *self.timers.resting]
        self.staged = []
        for call in waiting:
            if not call.done:
                self._end(call, now)
                self._report(call, None, Cancelled(f"{call.service}.{call.method}: the node was closed"))

    def check(self) -> None:
        """Raises AssertionError where the table contradicts itself."""
        asked: dict[int, int] = {}
        for number, call in self._table.items():
            known = number == call.number or (call.hedges is not None and number in call.hedges)
            assert known, f"call {number} is in the table, and its request does not know it"
            assert not call.done or call in self.given_up, f"call {number} has its outcome and is still in the table"
            provider = call.provider if number == call.number else (call.hedges or {})[number][0]
            asked[id(provider)] = asked.get(id(provider), 0) + 1
        for call in (*self.timers.resting, *self.timers.waiting):
            assert not call.done or call in self.given_up, "a call has its outcome and waits for a retry or a provider"
            assert call.number not in self._table, "a call waits to be sent, and was"
        self.timers.check()
        self._clients.check(asked)
