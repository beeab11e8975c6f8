"""The cluster's books of requests: what was asked, begun, answered and heard, held against G8.

Each request carries a serial of the books as its last argument, so that they know it again at whoever serves it,
without asking the engine. How many attempts an idempotent request made is believed to the caller's table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshmsg.engine.streams import MAX_WINDOW_ITEMS
from meshmsg.errors import MeshError, RequestError
from meshmsg.options import MAX_REQUEST_ATTEMPTS
from meshmsg.testing.broken import GuaranteeBroken

if TYPE_CHECKING:
    from meshmsg.testing.nodes import ClusterNode
    from meshmsg.testing.requests import ClusterCall, ClusterRequest, ClusterRouter

# What the caller's own side says; everything else a server must have said.
LOCAL = frozenset(
    ("deadline_exceeded", "no_responders", "peer_lost", "cancelled", "unavailable", "overloaded", "bad_request")
)
# These speak of a server's end, and there must have been one.
OF_FAULTS = frozenset(("peer_lost", "unavailable", "cancelled"))


class Record:
    """One request, from the call to its outcome."""

    def __init__(self, made: ClusterCall, args: list[Any], parent: ClusterRequest | None) -> None:
        self.made = made
        self.call = made.call
        self.node = made.node
        self.life = made.life
        self.key = made.node.key
        self.name = f"{made.node.name}: {made.name}"
        self.args = args
        self.began = made.loop.time()
        self.timeout = made.call.timeout
        self.deadline = None if self.timeout is None else self.began + self.timeout
        if made.call.deadline is not None and (self.deadline is None or made.call.deadline < self.deadline):
            self.deadline = made.call.deadline
        self.parent = parent
        self.starts: set[tuple[str, int]] = set()  # (server's key, its number there)
        self.values: list[Any] = []  # that servers answered
        self.codes: set[str] = set()  # of what servers failed with
        self.sent: list[Any] = []  # items, by the server
        self.received = 0
        self.up_sent: list[Any] = []  # items, by the caller
        self.up_ended = False
        self.over = False
        self.overdue_since: float | None = None
        self.survey: set[str] | None = None  # keys of servers that began it, shared by the calls of one survey
        self.nobody = False

    @property
    def alive(self) -> bool:
        """Whether this life of the caller goes on."""
        return self.node.alive and self.node.life == self.life


class RequestBooks:
    """Hears of everything that callers and handlers do, and checks it."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self.pending: dict[Record, None] = {}
        self.running: dict[ClusterRequest, float | None] = {}  # since when its end is due
        self.services: set[str] = set()  # that were ever offered
        self.only_losses: bool = True  # False where nobody is lost: then no request may say so
        self.outcomes: dict[str, int] = {}  # how many, by code; "" for those that brought a result
        self._serial = 0

    def next_serial(self) -> int:
        """A number for the next request."""
        self._serial += 1
        return self._serial

    def _find(self, request: ClusterRequest) -> Record:
        record = self.records.get(request.serial)
        if record is None or record.args != request.args or record.call.method != request.method:
            raise GuaranteeBroken("G8", f"{request.node.name} got {request.method} {request.args}, nobody asked that")
        if repr(request.headers) != repr(record.call.headers or {}):  # to Python, 1 and True and 1.0 are equal
            raise GuaranteeBroken("G8", f"{request.node.name} got {request.method} with headers of another request")
        return record

    # -- callers ---------------------------------------------------------------------------------------------

    def on_call(self, made: ClusterCall, args: list[Any], parent: ClusterRequest | None) -> None:
        """A request was made."""
        record = self.records[made.serial] = Record(made, args, parent)
        record.nobody = made.call.service not in self.services
        self.pending[record] = None
        if parent is not None and parent.served.deadline is not None:
            if record.deadline is None or record.deadline > parent.served.deadline + 1e-9:
                raise GuaranteeBroken("G8", f"{record.name} gets longer than {parent.method}, which makes it")

    def on_survey(self, asked: list[ClusterCall]) -> None:
        """These are the calls of one survey."""
        shared: set[str] = set()
        for made in asked:
            self.records[made.serial].survey = shared
        peers = [made.call.peer for made in asked]
        if len(set(peers)) != len(peers):
            raise GuaranteeBroken("G8", f"a survey asks somebody twice: {peers}")

    def on_cancel(self, made: ClusterCall) -> None:
        """Nobody waits for its outcome."""
        record = self.records[made.serial]
        record.over = True
        self.pending.pop(record, None)

    def on_outcome(self, made: ClusterCall, value: Any, error: MeshError | None) -> None:
        """A call has its outcome."""
        record = self.records[made.serial]
        if record.over:
            raise GuaranteeBroken("G8", f"{record.name} has a second outcome: {error or value!r}")
        record.over = True
        self.pending.pop(record, None)
        code = error.code if isinstance(error, RequestError) else type(error).__name__ if error else ""
        self.outcomes[code] = self.outcomes.get(code, 0) + 1
        if record.nobody and code != "no_responders":
            raise GuaranteeBroken("G8", f"{record.name} has the outcome {error or value!r}, and nobody offers it")
        if isinstance(error, RequestError):
            self._check_error(record, error)
        elif error is None and made.call.down is not None:
            self._check_stream_end(record)
        elif error is None and value not in record.values:
            raise GuaranteeBroken("G8", f"{record.name} brought {value!r}; answered was {record.values}")

    def _check_error(self, record: Record, error: RequestError) -> None:
        code, now = error.code, record.made.loop.time()
        if code not in LOCAL and code not in record.codes:
            raise GuaranteeBroken("G8", f"{record.name} failed with {code}, and nobody said so: {error}")
        if code == "deadline_exceeded" and (record.deadline is None or now < record.deadline - 1e-9):
            if code not in record.codes and not self._jumped():
                raise GuaranteeBroken("G8", f"{record.name} ends {now:.3f}, its deadline is {record.deadline}")
        if code in OF_FAULTS and not self.only_losses and code not in record.codes:
            raise GuaranteeBroken("G8", f"{record.name} failed with {code}, and nobody was lost: {error}")
        if (error.service, error.method) != (record.call.service, record.call.method):
            raise GuaranteeBroken("G8", f"{record.name} failed, and its error speaks of {error.service}: {error}")

    def _jumped(self) -> bool:
        return any(node.loop.offset for node in self._nodes())

    def _nodes(self) -> list[ClusterNode]:
        for record in self.records.values():
            return record.node.cluster.nodes
        return []

    def _check_stream_end(self, record: Record) -> None:
        down = record.call.down
        assert down is not None
        came = record.received + down.waiting
        if None not in record.values or came != len(record.sent):
            raise GuaranteeBroken("G8", f"{record.name} ended well after {came} of {len(record.sent)} items")

    def on_receive(self, made: ClusterCall, item: Any) -> None:
        """A caller took an item of a stream."""
        record = self.records[made.serial]
        place = record.received
        if place >= len(record.sent) or record.sent[place] != item:
            raise GuaranteeBroken("G8", f"{record.name} got {item!r} as item {place} of {record.sent[: place + 1]}")
        record.received += 1

    def on_up_items(self, made: ClusterCall, items: list[Any]) -> None:
        """A caller sent items."""
        record = self.records[made.serial]
        record.up_sent += items
        for request in self.running:
            if request.serial == made.serial and len(record.up_sent) - request.received > MAX_WINDOW_ITEMS:
                raise GuaranteeBroken("G5", f"{record.name} sent {len(record.up_sent)}, taken: {request.received}")

    def on_up_end(self, made: ClusterCall) -> None:
        """A caller's stream is complete."""
        self.records[made.serial].up_ended = True

    # -- servers ---------------------------------------------------------------------------------------------

    def on_open(self, router: ClusterRouter) -> None:
        """A service is offered."""
        self.services.add(router.service)
        for record in self.pending:
            record.nobody = record.nobody and record.call.service != router.service

    def on_begin(self, request: ClusterRequest) -> None:
        """A handler begins a request."""
        record, served = self._find(request), request.served
        place = (request.node.key, served.number)
        if place in record.starts:
            raise GuaranteeBroken("G8", f"{request.node.name} began {record.name} twice, as number {served.number}")
        record.starts.add(place)
        self.running[request] = None
        runs, attempts = len(record.starts), record.call.attempts
        if not record.call.repeatable and runs > 1:
            raise GuaranteeBroken("G8", f"{record.name} is not idempotent and runs again: {record.starts}")
        if runs > MAX_REQUEST_ATTEMPTS or (record.alive and runs > attempts):
            raise GuaranteeBroken("G8", f"{record.name} runs for the {runs}th time, in {attempts} attempts")
        if record.survey is not None:
            if request.node.key in record.survey:
                raise GuaranteeBroken("G8", f"a survey runs twice at {request.node.name}: {record.name}")
            record.survey.add(request.node.key)
        timeout = record.timeout
        if (timeout is None) != (served.deadline is None):
            raise GuaranteeBroken("G8", f"{record.name} may take {timeout}, its handler hears {served.deadline}")
        if timeout is not None and served.deadline is not None:
            given = served.deadline - served.received_at
            if given > timeout + 1e-6 or given < 0:
                raise GuaranteeBroken("G8", f"{record.name} may take {timeout}, its handler is given {given}")

    def on_answer(self, request: ClusterRequest, value: Any) -> None:
        """A handler ended well."""
        self.running.pop(request, None)
        if not request.cancelled:
            self._find(request).values.append(value)

    def on_fault(self, request: ClusterRequest, code: str) -> None:
        """A handler failed."""
        self.running.pop(request, None)
        self._find(request).codes.add(code)

    def on_item(self, request: ClusterRequest, item: Any) -> None:
        """A handler sent an item."""
        record = self._find(request)
        record.sent.append(item)
        held = len(record.sent) - record.received
        if held > MAX_WINDOW_ITEMS and record.alive:
            raise GuaranteeBroken("G5", f"{record.name}: {held} items are under way, and its reader is slow")

    def on_take(self, request: ClusterRequest, items: list[Any]) -> None:
        """A handler took items of its caller."""
        record, up = self._find(request), request.served.up
        assert up is not None
        due = record.up_sent[request.received : request.received + len(items)]
        if items != due:
            raise GuaranteeBroken("G8", f"{record.name}: its handler took {items}, sent was {due}")
        request.received += len(items)
        whole = up.ended and up.fault is None and not up.waiting
        if whole and not (record.up_ended and request.received == len(record.up_sent)):
            raise GuaranteeBroken("G8", f"{record.name}: its handler sees the end after {request.received} items")

    # -- audits ----------------------------------------------------------------------------------------------

    def audit(self, now: float, heartbeat_s: float) -> None:
        """Every request has its outcome in time, and no handler works for nobody."""
        for record in list(self.pending):
            if not record.alive:
                del self.pending[record]
                record.over = True
                continue
            self._audit_record(record, now, heartbeat_s)
        for request, since in list(self.running.items()):
            node, served = request.node, request.served
            if not node.alive or node.driver.closed or request.router.running.get(served) is not request:
                del self.running[request]
                continue
            late = served.deadline is not None and node.loop.time() > served.deadline
            due = (served.state == "done" or late) and not node.loop.held
            if not due:
                self.running[request] = None
            elif since is None:
                self.running[request] = now
            elif now - since > heartbeat_s:
                name = f"{served.service}.{served.method}#{request.serial}"
                raise GuaranteeBroken("G8", f"{node.name} still runs {name}: {request.cancelled or 'late'}")

    def _audit_record(self, record: Record, now: float, heartbeat_s: float) -> None:
        loop = record.node.loop
        late = record.deadline is not None and loop.time() > record.deadline
        if loop.held or not (late or record.nobody):
            record.overdue_since = None
        elif record.overdue_since is None:
            record.overdue_since = now
        elif now - record.overdue_since > (heartbeat_s if late else 0.0):
            text = f"deadline {record.deadline}, now {loop.time()}" if late else "nobody offers it"
            raise GuaranteeBroken("G8", f"{record.name} has no outcome: {text}")

    def check_closed(self, node: ClusterNode) -> None:
        """A node has closed: each of its requests has an outcome."""
        left = [record.name for record in self.pending if record.node is node and record.life == node.life]
        if left:
            raise GuaranteeBroken("G8", f"{node.name} has left, without an outcome for {left}")

    def is_answered(self) -> bool:
        """Whether no living node waits for anything."""
        return not any(record.alive for record in self.pending)

    def pending_now(self) -> list[str]:
        """What living nodes wait for."""
        return [record.name for record in self.pending if record.alive]

    def unfinished(self) -> list[str]:
        """What living nodes wait for, or work on."""
        return self.pending_now() + [f"{each.node.name} runs {each.method}#{each.serial}" for each in self.running]

    def check_rest(self, nodes: list[ClusterNode]) -> None:
        """Nothing is under way any more, and nobody keeps anything of what was."""
        if self.unfinished():
            raise GuaranteeBroken("G8", f"at rest: {self.unfinished()}")
        living = {node.key for node in nodes if node.alive}
        for node in nodes:
            if node.alive:
                kept = list(find_leftovers(node, living))
                if kept:
                    raise GuaranteeBroken("G8", f"{node.name} keeps at rest: {kept}")


def find_leftovers(node: ClusterNode, living: set[str]) -> list[str]:
    """What a node keeps of requests that are over."""
    engine = node.engine
    calls, serving, channels = engine.calls, engine.serving, engine._conversations._channels
    found = [f"{name}: {what!r}" for name in TABLES if (what := getattr(calls, name))]
    timers = calls.timers
    if timers.deadlines or timers.timers or timers.resting or timers.waiting:
        found.append(f"{timers.deadlines} deadlines and {timers.timers} timers")
    found += [f"{what}" for what in serving.calls]
    if serving._deadlines or serving.outspoken:
        found.append(f"serving: {len(serving._deadlines)} deadlines")
    found += [f"the caller {key}" for key in serving._callers if key not in living]
    found += [f"a channel to {key}" for key in channels if engine.peers.find(key) is None or key not in living]
    for key, channel in channels.items():
        if channel.restless or channel.unheard_bytes:
            found.append(f"the channel to {key}, not at rest: {channel.state()}")
    for name, clients in calls._clients.items():
        pending = [(each.name, each.pending) for each in clients.providers.everybody() if each.pending]
        if pending:
            found.append(f"pending at providers of {name}: {pending}")
    for service in serving.services.values():
        if service.running or service.waiting:
            found.append(f"{service.name}: {service.running} running, {service.waiting} waiting")
    return found


TABLES = ("_table", "staged", "given_up", "answered")
