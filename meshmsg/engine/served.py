"""The server's table: calls that came and have no answer yet, by caller, and the services they came for (G8).

A call leaves the table with its answer, or as soon as nobody wants one: its caller gave up, its time is over, or the
caller is gone. Whatever is said about it afterwards leads nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

from meshmsg.engine.service import Caller, CallRun, Served, Service
from meshmsg.engine.streams import BYTES_UNDER_WAY, InStream, OutStream
from meshmsg.errors import (
    BadRequest,
    DeadlineExceeded,
    NameClash,
    NoResponders,
    Overloaded,
    PeerLost,
    ProtocolError,
    Unavailable,
)
from meshmsg.options import RouterOptions
from meshmsg.wire import items
from meshmsg.wire.codec import Undecodable
from meshmsg.wire.fields import MAX_SEQ

__all__ = ["Served", "Service", "Serving"]

BY_CALLER, BY_DEADLINE, BY_LOSS, BY_CLOSE = "cancelled by the caller", "deadline", "peer lost", "node closed"
MAX_STALE = 64  # deadlines of calls that were answered, before it is worth taking them out
_OVER = "the request is over"


class Serving:
    """Every service of a node, and every call that it has not answered.

    Inputs are the ``on_*`` methods and ``tick``. Who runs the calls answers each with ``reply``, ``fail``, or
    ``send_items`` and ``end``. What there is to tell the callers collects until ``take_output``.
    """

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.arrived: set[str] = set()  # names of services that got calls in this turn
        self.late_items = 0  # items for calls that were answered before
        self._callers: dict[str, Caller] = {}
        self.outspoken: list[Caller] = []  # those with something to tell
        self._deadlines: list[tuple[float, int, CallRun]] = []  # one a run
        self._stale = 0  # how many of these have no open call
        self._tie = count()

    # -- commands --------------------------------------------------------------------------------------------

    def open(self, name: str, options: RouterOptions) -> Service:
        """Offers a service. Raises ``NameClash`` if this node does already."""
        if name in self.services:
            raise NameClash(f"this node has a router {name!r} already: offer all methods of a service with one")
        service = self.services[name] = Service(name, options, self._expire)
        return service

    def close(self, name: str) -> None:
        """Takes no more calls. Those that wait may go elsewhere; those that run go on, and are answered."""
        service = self.services.pop(name, None)
        if service is None:
            return
        apart = service.apart.queue if service.apart is not None else ()
        for served in [*service.queue, *apart]:
            text = f"{served.service}.{served.method}: {name!r} is closing"
            self._answer(served, _fault(served.number, Unavailable.code, text, never_ran=True))

    def close_all(self) -> None:
        """The node closes: every caller that still waits hears that no answer will come."""
        for name in list(self.services):
            self.close(name)
        for served in self.calls:
            text = f"{served.service}.{served.method}: the node closed before the method was through"
            self._answer(served, _fault(served.number, PeerLost.code, text))
            self._cancel(served, BY_CLOSE)

    # -- what the callers say --------------------------------------------------------------------------------

    def on_call(
        self, peer: str, peer_name: str, item: list[Any], bodies: list[Any], now: float, size_bytes: int = 0
    ) -> None:
        """Calls came: ``[op, first, count, service, method, remaining, flags, window, headers, bytes]``, a body each.

        ``size_bytes`` have these bodies together, encoded (0: unknown).
        """
        _, first, length, name, method, remaining, flags, window, headers = item[:9]
        caller = self._callers.get(peer)
        if caller is None:
            caller = self._callers[peer] = Caller(peer, peer_name)
        if first < caller.next_number or len(bodies) != length:
            raise ProtocolError(f"call {first} after {caller.next_number - 1}, or {len(bodies)} bodies for {length}")
        caller.next_number = first + length
        service = self.services.get(name)
        if service is None:
            for number in range(first, first + length):
                text = f"{name}.{method}: this node does not offer {name!r} any more"
                self._tell(caller, _fault(number, NoResponders.code, text, never_ran=True))
            return
        if service.apart is not None and method in service.apart_methods:
            service = service.apart
        service.requests += length
        taken, at_once = service.admit(length, size_bytes // length)
        deadline = now + remaining if remaining is not None else None
        run = CallRun(caller, service, method, first, taken, deadline, headers, flags, now)
        run.size_bytes = size_bytes // length
        run.counted_from = first + at_once
        calls = self._read_run(run, bodies if taken == length else bodies[:taken])
        if flags:
            self._open_streams(run, calls, window, *item[9:10])
        if calls:
            run.open = len(calls)
            service.enqueue(calls, now)
            self.arrived.add(name)
            if deadline is not None:
                heappush(self._deadlines, (deadline, next(self._tie), run))
        if taken < length:
            self._refuse(caller, service, range(first + taken, first + length), now)

    def _read_run(self, run: CallRun, bodies: list[Any]) -> list[Served]:
        calls: list[Served] = []
        table = run.caller.calls
        for number, body in enumerate(bodies, run.first):
            # Most bodies are this: a list of arguments, and none with a name.
            if type(body) is list and len(body) == 2 and type(body[0]) is list and body[1] == {}:
                served = Served(run, number, body[0], body[1])
            else:
                fault = _find_fault(body)
                if fault is not None:
                    self._refuse_arguments(run, number, fault)
                    continue
                served = Served(run, number, list(body[0]), body[1])
            table[number] = served
            calls.append(served)
        return calls

    def _open_streams(self, run: CallRun, calls: list[Served], window: int, limit_bytes: int | None = None) -> None:
        for served in calls:
            if run.flags & items.WANTS_ITEMS:
                served.out = OutStream()
                served.out.grant(window, 0, limit_bytes)
            if run.flags & items.SENDS_ITEMS:
                # At once, not when the method starts: the first items come while it waits for a worker.
                served.up = InStream()
                self._tell(run.caller, [items.UP_CREDIT, served.number, served.up.limit, 0, BYTES_UNDER_WAY])

    def _refuse(self, caller: Caller, service: Service, numbers: range, now: float) -> None:
        """No room for these: they did not run, and may elsewhere."""
        service.overloaded += len(numbers)
        pause_s = service.estimate_wait(now)
        crowd = f"{service.busy} requests run and {service.waiting} wait"
        if service.waiting_bytes >= 2**20:
            crowd += f" with {service.waiting_bytes / 2**20:.0f} MiB of arguments"
        text = f"{service.name}: {crowd}, which is as many as it takes: ask again in {pause_s:.2g} s"
        for number in numbers:
            self._tell(caller, _fault(number, Overloaded.code, text, retry_after=pause_s, never_ran=True))

    def _refuse_arguments(self, run: CallRun, number: int, fault: str) -> None:
        text = f"{run.service.name}.{run.method}: {fault}"
        run.service.errors += 1
        run.service.last_error = text
        self._tell(run.caller, _fault(number, BadRequest.code, text))

    def on_cancel(self, peer: str, numbers: Sequence[int]) -> None:
        """The caller wants these answers no more: it gets none, and who runs one of them is told."""
        for number in numbers:
            served = self._find(peer, number)
            if served is not None:
                served.run.service.cancelled += 1
                self._remove(served)
                self._cancel(served, BY_CALLER)

    def on_credit(self, peer: str, number: int, upto: int, taken: int = 0) -> None:
        """The caller takes more items, and took some."""
        served = self._find(peer, number)
        if served is not None:
            if served.out is None:
                raise ProtocolError(f"credit for call {number}, which wants no items")
            served.out.grant(upto, taken)

    def on_up_items(self, peer: str, number: int, bodies: Sequence[Any], size_bytes: int = 0, flags: int = 0) -> None:
        """Items of the caller's stream, of so many encoded bytes together (0: unknown)."""
        served = self._find(peer, number)
        if served is None:
            self.late_items += len(bodies)
        else:
            _require_up(served).put(bodies, size_bytes, marked=bool(flags & items.MARKED))

    def on_up_end(self, peer: str, number: int) -> None:
        """The caller's stream is complete."""
        served = self._find(peer, number)
        if served is not None:
            _require_up(served).end()

    def on_peer_gone(self, peer: str) -> None:
        """A caller's life ended: nobody waits for the answers."""
        caller = self._callers.pop(peer, None)
        if caller is None:
            return
        if not caller.silent:
            self.outspoken.remove(caller)
        for served in list(caller.calls.values()):
            served.run.service.cancelled += 1
            self._remove(served)
            self._cancel(served, BY_LOSS)

    def _find(self, peer: str, number: int) -> Served | None:
        caller = self._callers.get(peer)
        return caller.calls.get(number) if caller is not None else None

    # -- what is said by who runs the calls ------------------------------------------------------------------

    def reply(self, served: Served, body: bytes) -> None:
        """Answers with a result, encoded."""
        if self._remove(served):
            caller = served.run.caller
            if not caller.numbers and not caller.items:
                self.outspoken.append(caller)
            caller.numbers.append(served.number)
            caller.results.append(body)
            if served.run.flags:
                _cut(served, _OVER)

    def send_items(self, served: Served, bodies: Sequence[bytes]) -> None:
        """Sends items, encoded, not more than ``served.out.room``, and none behind its ``mark_bytes``.

        Nothing when nobody wants them any more.
        """
        if served.state == "done" or not bodies:
            return
        out, count = served.out, len(bodies)
        assert out is not None, f"{served.service}.{served.method} sends items, and its caller wants none"
        marked = out.take(count, len(bodies[0]) if count == 1 else sum(map(len, bodies)))
        caller = served.run.caller
        last = caller.items[-1] if caller.items else None
        if last is None or last[0] != items.ITEMS or last[1] != served.number or len(last) > 3:
            last = [items.ITEMS, served.number, 0]
            self._tell(caller, last)
        last[2] += count
        if marked:
            last.append(items.MARKED)
        caller.bodies += bodies

    def end(self, served: Served) -> None:
        """The stream of items is complete."""
        self._answer(served, [items.END, served.number])

    def fail(
        self,
        served: Served,
        code: str,
        type_name: str,
        message: str,
        traceback: str | None = None,
        retry_after: float | None = None,
        never_ran: bool = False,
    ) -> None:
        """Answers with an error. Texts may be of any length, and hold anything."""
        fault = _fault(served.number, code, message, type_name, traceback, retry_after, never_ran)
        if self._answer(served, fault):
            service = served.run.service
            service.errors += 1
            what = code if code == BadRequest.code else fault[3] or fault[2]  # its type is an argument's name
            service.last_error = f"{served.method}: {what}: {fault[4]}"

    def grant(self, served: Served) -> bool:
        """Tells the caller that it may send more, if after what was taken that is worth a word; says whether it is."""
        if served.up is None or (upto := served.up.credit_due()) is None:  # as after the answer, which ends it
            return False
        self._tell(served.run.caller, [items.UP_CREDIT, served.number, upto, served.up.taken])
        return True

    # -- the end of a call -----------------------------------------------------------------------------------

    def _answer(self, served: Served, item: list[Any]) -> bool:
        """The last word on a call, unless there was one."""
        if not self._remove(served):
            return False
        self._tell(served.run.caller, item)
        _cut(served, _OVER)
        return True

    def _remove(self, served: Served) -> bool:
        """Takes a call out of the table; False if it is out."""
        if served.state == "done":
            return False
        run = served.run
        del run.caller.calls[served.number]
        run.service.leave(served)
        run.open -= 1
        if not run.open and run.timed:
            self._stale += 1
            if self._stale > MAX_STALE and self._stale * 2 > len(self._deadlines):
                self._deadlines = [entry for entry in self._deadlines if entry[2].open]
                heapify(self._deadlines)
                self._stale = 0
        return True

    @staticmethod
    def _cancel(served: Served, why: str) -> None:
        """Nobody wants the answer: who runs the call is told, and may take its time to end."""
        served.cancelled = why
        _cut(served, why)
        on_cancel, served.on_cancel = served.on_cancel, None
        if on_cancel is not None:
            on_cancel()

    def _expire(self, served: Served) -> None:
        """A call's time is over. The caller has known before, by its own clock; as a rule this comes late."""
        served.run.service.expired += 1
        began = "was not through" if served.state == "running" else "had not begun"
        text = f"{served.service}.{served.method}: the deadline passed, and the method {began}"
        self._answer(served, _fault(served.number, DeadlineExceeded.code, text))
        self._cancel(served, BY_DEADLINE)

    # -- output ----------------------------------------------------------------------------------------------

    def _tell(self, caller: Caller, item: list[Any]) -> None:
        if not caller.numbers and not caller.items:
            self.outspoken.append(caller)
        caller.items.append(item)

    def take_output(self) -> dict[str, tuple[list[list[Any]], list[bytes]]]:
        """What to tell whom since the last time, by peer's key: items, and their bodies in the same order."""
        output: dict[str, tuple[list[list[Any]], list[bytes]]] = {}
        for caller in self.outspoken:
            told, bodies = caller.items, caller.bodies
            numbers = caller.numbers
            for start in range(0, len(numbers), items.MAX_RUN):
                told.append([items.RESULT, numbers[start : start + items.MAX_RUN]])
            bodies += caller.results
            output[caller.key] = (told, bodies)
            caller.items, caller.bodies, caller.numbers, caller.results = [], [], [], []
        self.outspoken.clear()
        return output

    # -- time ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Time has passed: calls whose deadline it reached are answered so, and cancelled."""
        while self._deadlines and self._deadlines[0][0] <= now:
            run = heappop(self._deadlines)[2]
            run.timed = False
            if not run.open:
                self._stale -= 1
                continue
            for number in range(run.first, run.first + run.length):
                served = run.caller.calls.get(number)
                if served is not None:
                    self._expire(served)

    def wake_at(self) -> float | None:
        """When ``tick`` has something to do; None for never."""
        while self._deadlines and not self._deadlines[0][2].open:
            heappop(self._deadlines)
            self._stale -= 1
        return self._deadlines[0][0] if self._deadlines else None

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def calls(self) -> list[Served]:
        """Every call that has no answer yet."""
        return list(self._open_calls())

    def _open_calls(self) -> Iterator[Served]:
        for caller in self._callers.values():
            yield from caller.calls.values()

    def check(self) -> None:
        """Own invariants, for the simulator."""
        outspoken = [caller for caller in self._callers.values() if not caller.silent]
        if outspoken or self.outspoken:
            assert len(outspoken) == len(self.outspoken) and set(outspoken) == set(self.outspoken)
        opened: dict[CallRun, int] = {}
        for served in self._open_calls():
            assert served.state != "done", f"call {served.number} is done, and in the table"
            assert served.cancelled is None, f"call {served.number} is cancelled, and in the table"
            opened[served.run] = opened.get(served.run, 0) + 1
            for stream in (served.out, served.up):
                if stream is not None:
                    stream.check()
        watched, stale = set(), 0
        for _, _, run in self._deadlines:
            watched.add(run)
            stale += not run.open
        for run, length in opened.items():
            assert run.open == length, f"a run counts {run.open} open calls, {length} are"
            assert run.timed == (run in watched), "a deadline that nobody watches"
        assert stale == self._stale, f"{stale} deadlines lead nowhere, {self._stale} are counted"
        for service in self.services.values():
            service.check()


def _require_up(served: Served) -> InStream:
    if served.up is None:
        raise ProtocolError(f"items or their end for call {served.number}, which came without a stream")
    return served.up


def _cut(served: Served, why: str) -> None:
    """No more items either way."""
    if served.out is not None:
        served.out.cut = why
    if served.up is not None:
        served.up.end(why)


def _find_fault(body: Any) -> str | None:
    """Why a body is not a call's arguments; None if it is. Arrays are tuples where one of them is a key of a map."""
    if type(body) is Undecodable:
        return f"the arguments cannot be read: {body.error}"
    if type(body) not in (list, tuple) or len(body) != 2 or type(body[0]) not in (list, tuple):
        return "the arguments are not an array of two: those without a name, and a map of those with one"
    if type(body[1]) is not dict or not all(type(name) is str for name in body[1]):
        return "the arguments with a name are not a map with texts as keys"
    return None


def _fault(
    number: int,
    code: str,
    message: str,
    type_name: str = "",
    traceback: str | None = None,
    retry_after: float | None = None,
    never_ran: bool = False,
) -> list[Any]:
    """The item for an error, with texts that every reader takes."""
    if retry_after is not None and not (type(retry_after) in (int, float) and 0 <= retry_after <= MAX_SEQ):
        retry_after = None  # an application's own
    return [
        items.FAULT,
        number,
        _one_line(code, items.MAX_CODE) or "error",
        _one_line(type_name, items.MAX_TYPE),
        _shorten(message, items.MAX_MESSAGE),
        _shorten(traceback, items.MAX_TRACEBACK) if traceback is not None else None,
        retry_after,
        items.NEVER_RAN if never_ran else 0,
    ]


def _one_line(text: str, limit: int) -> str:
    """A name for programs and terminals: printable, and not too long."""
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text[:limit]


def _shorten(text: str, limit: int) -> str:
    """The beginning, and more of the end: a traceback's last lines say most. Without what UTF-8 cannot carry."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    if len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]} ... {text[head + 5 - limit :]}"
