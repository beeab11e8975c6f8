"""Groups of subscribers: every group gets a copy of what is published, one member of it processes each (G7).

At each publisher a group is a queue: an outbox that is filled with what matches, and a lane to each member, as from
any producer to its consumers. So whatever holds for PUSH and PULL (G1 to G5) holds here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from meshmsg.engine.binding import Binding, fulfils, read_binding
from meshmsg.engine.group_outbox import GroupOutbox
from meshmsg.engine.output import Output
from meshmsg.engine.peers import LEFT, Peers, PeerState
from meshmsg.engine.publisher import Broadcast
from meshmsg.engine.run import Details
from meshmsg.engine.sending import Sender
from meshmsg.engine.topics import PatternIndex, overlaps
from meshmsg.options import PushOptions
from meshmsg.wire.frames import MAX_SEQ

# How long a group whose members vanished without a goodbye still collects, and how long what it has is kept. They may
# come back: a supervisor starts them again, a network heals.
KEEP_S = 30.0
MAX_GROUPS = 1000  # that collect
MAX_IDLE = 64  # groups without members whose books are kept; those with dead letters always
MAX_COMPARISONS = 10_000  # of patterns; with more, a group is taken in without

Special = tuple[str | None, int]  # key and priority


class Group:
    """One group as one publisher sees it."""

    __slots__ = ("binding", "collects", "durable", "members", "outbox", "vanished_at", "where")

    def __init__(self, binding: Binding, outbox: GroupOutbox) -> None:
        self.binding = binding
        self.where = binding.where
        self.outbox = outbox
        self.members: dict[str, bool] = {}  # by peer, and whether it wants the group to be durable
        self.durable = False  # as its members say, or said last
        self.vanished_at: float | None = None  # when the last member was lost, unless it said goodbye
        self.collects = False

    def take(self, broadcast: Broadcast, special: dict[int, Special] | None, now: float) -> None:
        """Accepts what it wants of a batch."""
        topic, first_seq, bodies, headers = broadcast
        outbox, where = self.outbox, self.where
        if not headers and not special:
            if not where:
                outbox.take_plain(topic, bodies, now)
            return
        plain: list[bytes] = []
        for seq, body in enumerate(bodies, first_seq):
            its = headers.get(seq) if headers else None
            if where and not fulfils(its, where):
                continue
            key, priority = (special or {}).get(seq, (None, 0))
            if its is None and key is None and not priority:
                plain.append(body)
                continue
            if plain:
                outbox.take_plain(topic, plain, now)
                plain = []
            outbox.take_special(topic, body, Details(key, priority, its), now)
        if plain:
            outbox.take_plain(topic, plain, now)


class Groups:
    """The groups that want what this node publishes. ``busy`` tells whether there are any, for the hot path."""

    def __init__(self, peers: Peers, sender: Sender, output: Output) -> None:
        self.busy = False
        self.by_queue: dict[str, Group] = {}
        self._peers = peers
        self._sender = sender
        self._output = output
        self._index = PatternIndex[Group]()  # of those that collect
        self._declared: dict[str, tuple[PushOptions, int]] = {}
        self._idle: dict[str, Group] = {}
        self._vanished: dict[str, Group] = {}
        self._special: dict[str, dict[int, Special]] = {}  # by topic and number, of what was published in this turn
        self.promising: dict[GroupOutbox, None] = {}
        self._next_id = 0  # of a group whose books are not kept any more; no id is ever used twice

    # -- publishing ------------------------------------------------------------------------------------------

    def declare(self, pattern: str, options: PushOptions) -> None:
        """This node publishes to these topics. Groups that overlap them are kept by these options."""
        first, count = self._declared.get(pattern, (options, 0))
        self._declared[pattern] = (first, count + 1)
        if not count:
            for peer in self._peers.by_id.values():
                if peer.state != "new" and peer.link is not None:
                    self._take_in(peer, pattern)

    def withdraw(self, pattern: str) -> None:
        """Takes one ``declare`` back. What groups have is theirs."""
        options, count = self._declared[pattern]
        if count > 1:
            self._declared[pattern] = (options, count - 1)
        else:
            del self._declared[pattern]

    def takes(self, topic: str, size: int, headers: dict[str, Any] | None = None) -> bool:
        """Whether every group with members that wants such a message has room for it."""
        return all(
            group.outbox.takes(size)
            for group in self._index.match(topic)
            if group.members and fulfils(headers, group.where)
        )

    def room(self, topic: str, size: int, headers: dict[str, Any] | None = None) -> tuple[int, int]:
        """How many messages like this one, and bytes of them, every group with members that wants them has room for."""
        count, size_in_all = MAX_SEQ, MAX_SEQ
        for group in self._index.match(topic):
            if group.members and fulfils(headers, group.where):
                if not group.outbox.takes(size):
                    return 0, 0
                count = min(count, max(1, group.outbox.room))
                size_in_all = min(size_in_all, max(size, group.outbox.room_bytes))
        return count, size_in_all

    def promise(self, topic: str, size: int, headers: dict[str, Any] | None = None) -> bool:
        """Takes the room that a message needs, which has to be published before the turn ends. False if there is none.

        A group without members holds up nobody: its oldest messages go (``overflow``).
        """
        groups = self._index.match(topic)
        if len(groups) > 1 and not self.takes(topic, size, headers):  # all of them, before any gives its room
            return False
        for group in groups:
            if group.where and not fulfils(headers, group.where):
                continue
            if group.outbox.promise(size):
                self.promising[group.outbox] = None
            elif group.members:
                return False
        return True

    def promise_many(self, topic: str, bodies: list[bytes], headers: dict[str, Any] | None = None) -> int:
        """As ``promise`` for the first of these bodies, as many as there is room for; says how many they are."""
        if not self._index.match(topic):
            return len(bodies)
        refused = (index for index, body in enumerate(bodies) if not self.promise(topic, len(body), headers))
        return next(refused, len(bodies))

    def mark(self, topic: str, number: int, key: str | None, priority: int) -> None:
        """A message that was published in this turn has a key or a priority."""
        if self._index.match(topic):
            self._special.setdefault(topic, {})[number] = (key, priority)

    def take(self, broadcasts: Iterable[Broadcast]) -> None:
        """Everything that was published in this turn."""
        for outbox in self.promising:
            outbox.keep_promises()
        self.promising.clear()
        for broadcast in broadcasts:
            for group in self._index.match(broadcast.topic):
                group.take(broadcast, self._special.get(broadcast.topic), self._output.now)
        self._special.clear()

    # -- members ---------------------------------------------------------------------------------------------

    def sync(self, peer: PeerState) -> None:
        """A peer's offers may be new, or it is up now. Raises ``ProtocolError`` for what is no group (G11)."""
        offers = peer.offers.get("group", {})
        bindings = [(read_binding(name, details), bool(details.get("durable"))) for name, details in offers.items()]
        if peer.state == "new" or peer.link is None:
            return
        for queue, group in list(self.by_queue.items()):
            if peer.key in group.members and queue not in offers:
                self._leave(group, peer.key, vanished=False)
        for binding, durable in bindings:
            self._join(binding, peer.key, durable)

    def _take_in(self, peer: PeerState, declared: str) -> None:
        """Those of a peer's groups that want what has just been declared, if nothing that they want was before."""
        for queue, details in peer.offers.get("group", {}).items():
            group = self.by_queue.get(queue)
            is_new = group is None or peer.key not in group.members
            if is_new and overlaps(declared, str(details.get("pattern"))):
                self._join(read_binding(queue, details), peer.key, bool(details.get("durable")))

    def end(self, peer: PeerState, why: str) -> None:
        """A peer is gone."""
        for group in list(self.by_queue.values()):
            if peer.key in group.members:
                self._leave(group, peer.key, vanished=why != LEFT)

    def _join(self, binding: Binding, key: str, durable: bool) -> None:
        queue = binding.queue
        group = self.by_queue.get(queue)
        if group is None:
            options = self._find_options(binding.pattern)
            if options is None:
                return
            if len(self.by_queue) - len(self._idle) >= MAX_GROUPS:
                text = f"{MAX_GROUPS} groups subscribe here already, {queue!r} gets nothing"
                self._output.notes.tell("group.refused", self._peers.name_of(key), "", text, self._output.now)
                return
            outbox = self._sender.open_group(queue, f"group {binding.group!r}", options, self._next_id)
            group = self.by_queue[queue] = Group(binding, outbox)
        group.members[key] = durable
        group.durable = any(group.members.values())
        group.vanished_at = None
        self._vanished.pop(queue, None)
        self._set_patience(group)
        self._collect(group, True)

    def _find_options(self, pattern: str) -> PushOptions | None:
        if len(self._declared) > MAX_COMPARISONS:
            return next(iter(self._declared.values()))[0]
        return next((options for ours, (options, _) in self._declared.items() if overlaps(ours, pattern)), None)

    def _leave(self, group: Group, key: str, *, vanished: bool) -> None:
        del group.members[key]
        if group.members:
            group.durable = any(group.members.values())
            self._set_patience(group)
        elif group.durable:
            pass  # it goes on as it is
        elif vanished:
            group.vanished_at = self._output.now
            self._vanished[group.binding.queue] = group
        else:
            self._collect(group, False)

    def _set_patience(self, group: Group) -> None:
        """What waits for a group without members becomes dead letters after a while, unless it is durable."""
        outbox = group.outbox
        patience = None if group.durable else KEEP_S
        if outbox.options.unroutable_after != patience:
            outbox.options = replace(outbox.options, unroutable_after=patience)
            outbox.mark()

    def _collect(self, group: Group, collects: bool) -> None:
        queue, pattern = group.binding.queue, group.binding.pattern
        if collects and not group.collects:
            self._index.add(pattern, group)
            self._idle.pop(queue, None)
        elif group.collects and not collects:
            self._index.remove(pattern, group)
            self._idle[queue] = group
            self._forget_some()
        group.collects = collects
        self.busy = len(self._index) > 0

    def _forget_some(self) -> None:
        """Lets go of the books of groups that are over, beyond some."""
        if len(self._idle) <= MAX_IDLE:
            return
        buried = {letter.queue for letter in self._sender.dead_letters.letters()}  # they can be redriven
        over = [
            queue
            for queue, group in self._idle.items()
            if not group.outbox.pending and not group.outbox.lanes and queue not in buried
        ]
        for queue in over[: len(self._idle) - MAX_IDLE]:
            self._next_id = max(self._next_id, self._sender.close_group(queue))
            del self._idle[queue], self.by_queue[queue]

    # -- time ------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Members that vanished long ago are not expected any more; looked at with every heartbeat."""
        for queue, group in list(self._vanished.items()):
            if group.vanished_at is not None and self._output.now >= group.vanished_at + KEEP_S:
                group.vanished_at = None
                del self._vanished[queue]
                self._collect(group, False)

    # -- looking ---------------------------------------------------------------------------------------------

    def count_members(self, name: str) -> int:
        """How many nodes consume what is published here as members of a group, whatever their patterns."""
        found: set[str] = set()
        for group in self.by_queue.values():
            if group.binding.group == name:
                lanes = group.outbox.lanes.values()
                found.update(lane.peer for lane in lanes if lane.open and lane.peer in group.members)
        return len(found)

    def describe_full(self, topic: str) -> str:
        """What the groups of a topic hold, for errors about messages without room."""
        groups = [group for group in self._index.match(topic) if group.members and group.outbox.pending]
        said = [
            f"{group.outbox.group} holds {group.outbox.pending} messages, {group.outbox.pending_bytes} bytes "
            f"(max_pending={group.outbox.options.max_pending}, "
            f"max_pending_bytes={group.outbox.options.max_pending_bytes})"
            for group in groups[:3]
        ]
        return f"{'; '.join(said)}: its members are slow, busy, or nacking; await send(), or send less"

    def check(self) -> None:
        """Own invariants, for the simulator."""
        for queue, group in self.by_queue.items():
            waits = bool(group.members) or group.durable or group.vanished_at is not None
            assert group.collects is waits, f"{queue} collects: {group.collects}, and somebody wants it: {waits}"
            assert (queue in self._idle) is not group.collects
            assert (queue in self._vanished) is (group.vanished_at is not None)
            assert self._sender.outboxes[queue] is group.outbox
        assert len(self._index) == sum([group.collects for group in self.by_queue.values()])
        assert self.busy is (len(self._index) > 0)
        for outbox in self.promising:
            assert outbox.promised
