"""The cluster's own books: what was accepted, started, settled; and the guarantees held against them.

Nothing here asks the engine what happened: ids are noted when ``send`` returns, starts and verdicts when the
applications see them. Each broken promise raises ``GuaranteeBroken`` at the step that broke it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshmsg.engine.lane import InLane
from meshmsg.engine.outbox import Outbox
from meshmsg.engine.publisher import Broadcast
from meshmsg.message import DeadLetter, Event, Ledger, Message
from meshmsg.testing.broken import GuaranteeBroken
from meshmsg.testing.group_books import Copy, GroupBooks
from meshmsg.testing.request_books import RequestBooks
from meshmsg.testing.topic_books import TopicBooks
from meshmsg.testing.will_books import WillBooks

if TYPE_CHECKING:
    from meshmsg.testing.nodes import ClusterNode, ClusterPull, ClusterPush


__all__ = ["Account", "Books", "GuaranteeBroken"]


class Account:
    """One queue in one life of a producer."""

    def __init__(self, node: ClusterNode, outbox: Outbox) -> None:
        self.node = node
        self.outbox = outbox
        self.queue = outbox.queue
        self.owner = node.key
        self.life = node.life
        self.max_attempts = outbox.options.retry.max_attempts
        self.accepted = 0
        self.loose: set[int] = set()  # redriven, or delayed without a key: no order promised
        self.keys: dict[int, str] = {}
        self.priorities: dict[int, int] = {}
        self.expiries: dict[int, float] = {}  # in the cluster's time
        self.lines: dict[str, list[int]] = {}  # by key, in send order
        self.fronts: dict[str, int] = {}  # how much of the line is settled
        self.running: dict[str, set[int]] = {}  # by key: started, and not settled at the producer
        self.processed: set[int] = set()  # those that are watched
        self.dead: dict[int, DeadLetter] = {}
        self.acked: set[int] = set()  # some consumer's application said so
        self.starts: dict[int, dict[tuple[int, int], bool]] = {}  # (lane, seq) -> marked as redelivered
        self.started_this_life: dict[int, int] = defaultdict(int)
        self.redrives: dict[int, int] = {}  # number -> attempts in its history at the last one
        self.redriven = 0
        self.repetitions = 0
        self.audited: tuple[Ledger, int, int, int] | None = None  # what the last audit saw, if nothing was pending
        self.copies: list[Copy] = []  # by number, of what was published to a group
        self.overflows = True  # whether what was accepted last may have driven others out

    @property
    def alive(self) -> bool:
        """Whether this life of the producer goes on."""
        return self.node.alive and self.node.life == self.life

    def is_settled(self, number: int) -> bool:
        """Whether the producer knows the end of a watched message."""
        return number in self.processed or number in self.dead


class Books:
    """Hears of everything that applications do, and checks it."""

    def __init__(self) -> None:
        self.accounts: dict[tuple[str, str], Account] = {}
        self.topics = TopicBooks()
        self.groups = GroupBooks(self.topics)
        self.wills = WillBooks()
        self.requests = RequestBooks()
        self.strict_attempts = False  # True while nothing but verdicts may cost an attempt
        self.only_nodes_speak = True  # False when somebody throws garbage
        self.travel_s: float | None = None  # how long a frame is under way at most; None if nobody knows
        self.last_started: dict[tuple[str, str, str, int], int] = {}
        self.starts = 0
        self.given_up: dict[tuple[str, str, int], float] = {}  # lanes by their ends, while a consumer stood still

    # -- producers -------------------------------------------------------------------------------------------

    def on_accept(
        self,
        node: ClusterNode,
        push: ClusterPush,
        number: int,
        key: str | None,
        priority: int,
        ttl: float | None,
        delay: float | None,
    ) -> None:
        """``send`` returned."""
        account = self._account(node, push.outbox)
        if number != account.accepted:
            raise GuaranteeBroken("G1", f"{node.name}: message {account.accepted} of {push.queue} got number {number}")
        account.accepted += 1
        if delay is not None and key is None:
            account.loose.add(number)
        if priority:
            account.priorities[number] = priority
        if ttl is not None:
            account.expiries[number] = node.cluster.now + ttl
        if key is not None:
            self._note_key(account, number, key)
        _check_room(node, push.outbox)

    def _account(self, node: ClusterNode, outbox: Outbox) -> Account:
        account = self.accounts.get((node.key, outbox.queue))
        if account is None:
            account = self.accounts[node.key, outbox.queue] = Account(node, outbox)
        return account

    @staticmethod
    def _note_key(account: Account, number: int, key: str) -> None:
        account.keys[number] = key
        account.lines.setdefault(key, []).append(number)
        account.outbox.watched.add(number)

    def on_groups(self, node: ClusterNode, broadcasts: Sequence[Broadcast]) -> None:
        """What was published in a turn has left: the queues of the groups that want it hold it from now on (G7)."""
        grown: dict[str, Outbox] = {}
        for group, copy in self.groups.collect(node, broadcasts):
            account = self._account(node, group.outbox)
            number = account.accepted
            account.accepted += 1
            account.copies.append(copy)
            account.overflows = not copy.awaited or (account.queue in grown and account.overflows)
            if copy.priority:
                account.priorities[number] = copy.priority
            if copy.key is not None:
                self._note_key(account, number, copy.key)
            grown[account.queue] = group.outbox
        for queue, group in node.engine.groups.by_queue.items():
            wanted = self.accounts[node.key, queue].accepted if (node.key, queue) in self.accounts else 0
            if group.outbox.next_id != wanted:
                raise GuaranteeBroken("G7", f"{node.name}: {queue} took {group.outbox.next_id} messages of {wanted}")
        for outbox in grown.values():
            _check_room(node, outbox)

    def on_processed(self, node: ClusterNode, queue: str, number: int) -> None:
        """The producer learned that a watched message was processed."""
        account = self.accounts[node.key, queue]
        if account.is_settled(number):
            raise GuaranteeBroken("G1", f"{node.name}: {queue}/{number} has a second end")
        if number not in account.acked:
            raise GuaranteeBroken("G1", f"{node.name}: {queue}/{number} counts as processed, nobody acked it")
        account.processed.add(number)
        self._settled(account, number)

    def on_dead(self, node: ClusterNode, queue: str, number: int, letter: DeadLetter) -> None:
        """The producer has a new dead letter."""
        account = self.accounts[node.key, queue]
        if account.is_settled(number) or number >= account.accepted:
            raise GuaranteeBroken("G1", f"{node.name}: {queue}/{number} has a second end, as {letter}")
        account.dead[number] = letter
        self._settled(account, number)
        if account.copies:
            self.groups.check_dead(account.copies[number], letter)
            if letter.reason == "overflow" and not account.overflows:
                raise GuaranteeBroken("G5", f"{letter.id} was driven out, and its group had members: {letter}")
        if letter.reason == "expired" and number not in account.expiries:
            raise GuaranteeBroken("G1", f"{letter.id} expired, and had no time to live: {letter}")
        attempts = letter.attempts[account.redrives.get(number, 0) :]
        exact = letter.reason == "attempts"
        if len(attempts) > account.max_attempts or (exact and len(attempts) != account.max_attempts):
            raise GuaranteeBroken("G4", f"{letter.id} died after {len(attempts)} of {account.max_attempts}: {letter}")
        target = account.outbox.options.dead_letter_to
        if target is not None and target in node.engine.outboxes:  # the engine sends by itself
            forwarded = self._account(node, node.engine.outboxes[target])
            forwarded.accepted = forwarded.outbox.next_id + len(forwarded.outbox.staged)
        if letter.reason == "rejected" and attempts[-1].verdict != "rejected":
            raise GuaranteeBroken("G1", f"{letter.id} died as rejected, and nobody said so: {letter}")

    def on_redrive(self, node: ClusterNode, message_id: str) -> None:
        """Somebody sends a dead letter again."""
        queue, _, number_text = message_id.partition("/")[2].rpartition("/")
        number = int(number_text)
        account = self.accounts[node.key, queue]
        letter = account.dead.pop(number)
        account.redriven += 1
        account.redrives[number] = len(letter.attempts)
        account.started_this_life[number] = 0
        account.loose.add(number)
        if number in account.keys:
            account.outbox.watched.add(number)

    def _settled(self, account: Account, number: int) -> None:
        key = account.keys.get(number)
        if key is not None:
            account.running.get(key, set()).discard(number)

    def on_event(self, node: ClusterNode, event: Event) -> None:
        """A node told its operator something."""
        self.wills.on_event(node, event)
        if event.kind == "frame.refused" and self.only_nodes_speak:
            raise GuaranteeBroken("G11", f"{node.name} refused a frame of an honest node: {event}")

    # -- consumers -------------------------------------------------------------------------------------------

    def on_thaw(self, node: ClusterNode) -> None:
        """A process goes on that stood still for as long as it takes to be given up; which lanes were, is noted."""
        for inbox in node.engine.inboxes.values():
            for lane in inbox.lanes.values():
                account = self.accounts.get((lane.peer, lane.queue))
                if account is not None and account.alive and lane.number not in account.outbox.lanes:
                    self.given_up[node.key, lane.peer, lane.number] = node.cluster.now

    def on_start(self, node: ClusterNode, pull: ClusterPull, message: Message) -> None:
        """An application got a message in its hands."""
        self.starts += 1
        lane, number = message._lane, message._number
        assert isinstance(lane, InLane)
        account = self.accounts.get((lane.peer, lane.queue))
        if account is None or number >= account.accepted:
            raise GuaranteeBroken("G1", f"{node.name} got {message}, which nobody sent")
        if pull.unsettled + pull.inbox.waiting > pull.prefetch:
            held = pull.unsettled + pull.inbox.waiting
            raise GuaranteeBroken("G5", f"{node.name} holds {held} messages of {pull.queue}, prefetch {pull.prefetch}")
        if account.copies:
            self.groups.check_start(account.copies[number], node, message)
        stale = account.alive and lane.number not in account.outbox.lanes  # given up, and it cannot know yet
        self._check_repetition(account, node, message, lane, stale)
        # What it does before its first turn after that cannot be helped.
        if node.cluster.now > self.given_up.get((node.key, lane.peer, lane.number), math.inf):
            raise GuaranteeBroken("G2", f"{node.name} starts {message}, which was given up while it stood still")
        self._check_order(account, node, message)
        expiry = account.expiries.get(number)
        if self.travel_s is not None and expiry is not None and number not in account.redrives:
            late = node.cluster.now - expiry
            if late > self.travel_s:  # it does not count on the way
                raise GuaranteeBroken("G1", f"{node.name} got {message} {late:.3f} s after its time to live")
        key = account.keys.get(number)
        if key is not None and account.alive:
            self._check_key(account, node, message, key, stale)

    def _check_repetition(
        self, account: Account, node: ClusterNode, message: Message, lane: InLane, stale: bool
    ) -> None:
        number, place = message._number, (lane.number, message._seq)
        marked = message.redelivered or message.attempt > 1
        before = account.starts.setdefault(number, {})
        if place in before:
            raise GuaranteeBroken("G2", f"{node.name} got {message} twice, as message {place[1]} of lane {place[0]}")
        before[place] = marked
        # Not necessarily the first one to start: a lane that its producer gave up may deliver late.
        if sum(1 for is_marked in before.values() if not is_marked) > 1:
            raise GuaranteeBroken("G2", f"{node.name} got {message} again, not marked as redelivered: {before}")
        if len(before) > 1:
            account.repetitions += 1
        if account.alive and account.repetitions > account.outbox.redelivered + account.redriven:
            counted = account.outbox.redelivered
            raise GuaranteeBroken("G2", f"{account.repetitions} repeated starts, {counted} redeliveries counted")
        if message.attempt > account.max_attempts:
            raise GuaranteeBroken("G4", f"{message} is attempt {message.attempt} of {account.max_attempts}")
        started = account.started_this_life[number]
        account.started_this_life[number] = started + 1
        if started >= account.max_attempts and not stale and number not in account.redrives:
            raise GuaranteeBroken("G4", f"{message} starts for the {started + 1}th time of {account.max_attempts}")
        if self.strict_attempts and message.attempt - 1 != started:
            raise GuaranteeBroken("G4", f"{message} was started {started} times before, and nothing else costs")

    def _check_order(self, account: Account, node: ClusterNode, message: Message) -> None:
        number = message._number
        if message.redelivered or message.key is not None or number in account.loose:
            return
        place = (node.key, account.owner, account.queue, message.priority)
        last = self.last_started.get(place, -1)
        if number <= last:
            raise GuaranteeBroken("G3", f"{node.name} got {message} after number {last}, both for the first time")
        self.last_started[place] = number

    def _check_key(self, account: Account, node: ClusterNode, message: Message, key: str, stale: bool) -> None:
        number = message._number
        if account.is_settled(number):
            if not stale:
                raise GuaranteeBroken("G2", f"{node.name} got {message}, which its producer knows is done")
            return
        running = account.running.setdefault(key, set())
        if not stale:
            if running - {number}:
                raise GuaranteeBroken("G3", f"{node.name} got {message} while {running} of its key are under way")
            running.add(number)
        if number in account.loose:
            return
        line, front = account.lines[key], account.fronts.get(key, 0)
        while front < len(line) and (account.is_settled(line[front]) or line[front] in account.loose):
            front += 1
        account.fronts[key] = front
        if line[front] != number:
            raise GuaranteeBroken("G3", f"{node.name} got {message} before {line[front]} of the same key was settled")

    def on_verdict(self, message: Message) -> str:
        """An application gave its verdict; returns it in a word."""
        lane = message._lane
        assert isinstance(lane, InLane)
        if not message.settled:
            return "kept"
        verdict = lane.verdicts.get(message._seq)
        if verdict is not None:
            return "nack" if verdict[0] == 1 else "reject"
        account = self.accounts.get((lane.peer, lane.queue))
        if account is not None:
            account.acked.add(message._number)
        return "ack"

    # -- audits ----------------------------------------------------------------------------------------------

    def audit(self, node: ClusterNode) -> None:
        """Compares a producer's own books with these, message by message (G1)."""
        for queue, outbox in node.engine.outboxes.items():
            account = self.accounts.get((node.key, queue))
            if account is None:
                continue
            ledger = outbox.ledger()
            _check_room(node, outbox)
            if not ledger.balanced or ledger.accepted != account.accepted:
                raise GuaranteeBroken("G1", f"{node.name}: {account.accepted} accepted of {queue}, books: {ledger}")
            if not ledger.pending:
                seen = (ledger, len(account.dead), len(account.processed), account.redriven)
                if seen == account.audited:
                    continue  # the same messages have the same ends, and what was acked stays so
                account.audited = seen
            held = set(outbox.held_ids())
            if held & account.dead.keys() or held & account.processed:
                raise GuaranteeBroken("G1", f"{node.name}: {queue} still holds what has its end")
            processed = set(range(account.accepted)).difference(account.dead, held)
            if len(processed) != ledger.processed or len(account.dead) != ledger.dead:
                raise GuaranteeBroken("G1", f"{node.name}: {queue} lost or invented a message: {ledger}")
            if not processed <= account.acked:
                unacked = sorted(processed - account.acked)
                raise GuaranteeBroken("G1", f"{node.name}: {queue}/{unacked} count as processed, nobody acked them")


def _check_room(node: ClusterNode, outbox: Outbox) -> None:
    """No outbox holds more than it may (G5); but a group's may hold one body of any size."""
    options = outbox.options
    fits = outbox.pending <= options.max_pending
    if not fits or (outbox.pending_bytes > options.max_pending_bytes and outbox.pending > 1):
        raise GuaranteeBroken(
            "G5", f"{node.name} holds {outbox.pending_bytes} bytes: {outbox.queue}, {outbox.ledger()}"
        )
