"""What every group has to get, held against what is in its queue (G7).

The queues themselves are in the same books as any other (G1 to G5). Here is what fills them: each published message
goes to every group that the publisher knows and that wants it, once, unchanged. Which members it knows is the
publisher's word; which messages match, and that it forgets no group too early, is worked out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from meshmsg.engine.binding import Binding
from meshmsg.engine.groups import KEEP_S, Group
from meshmsg.engine.publisher import Broadcast
from meshmsg.engine.topics import matches, overlaps
from meshmsg.message import DeadLetter, Message
from meshmsg.testing.broken import GuaranteeBroken

if TYPE_CHECKING:
    from meshmsg.testing.nodes import ClusterNode, ClusterPull
    from meshmsg.testing.topic_books import TopicBooks


class Copy(NamedTuple):
    """What one group gets of one published message."""

    topic: str
    body: Any
    headers: dict[str, Any] | None
    key: str | None
    priority: int
    awaited: bool  # the group had members when ``send`` returned, so that there was room for it


class Mark(NamedTuple):
    """What else was said of a message, and which queues had members at that moment."""

    key: str | None = None
    priority: int = 0
    awaited_by: frozenset[str] = frozenset()


class GroupBooks:
    """Knows what was published in which turn, and which groups should have got it."""

    def __init__(self, topics: TopicBooks) -> None:
        self.topics = topics
        self._marks: dict[tuple[str, str, int], Mark] = {}  # until the end of the turn
        self._collected: dict[tuple[str, str], int] = {}  # by publisher and topic: messages that left
        self._passing: set[str] = set()  # queues of which some member was not durable
        self._parted: set[str] = set()  # queues that some member said goodbye to
        self._seen: dict[str, dict[str, float]] = {}  # by publisher and queue: when it last had a member, on its clock

    # -- members ---------------------------------------------------------------------------------------------

    def on_join(self, member: ClusterPull) -> None:
        """A member of a group begins to consume, perhaps again."""
        if not member.durable:
            self._passing.add(member.queue)

    def on_part(self, member: ClusterPull) -> None:
        """A member stops, and says so."""
        self._parted.add(member.queue)

    def unjoined(self, nodes: Sequence[ClusterNode]) -> list[str]:
        """Living members that a living publisher of such topics sends nothing to."""
        found: list[str] = []
        living = [node for node in nodes if node.alive and not node.leaving]
        members = [(pull, pull.binding) for node in living for pull in node.pulls.values() if pull.binding is not None]
        for member, binding in members:
            for publisher in living:
                if any(overlaps(pub.pattern, binding.pattern) for pub in publisher.pubs):
                    group = publisher.engine.groups.by_queue.get(member.queue)
                    lanes = group.outbox.lanes.values() if group is not None and group.collects else ()
                    if not any(lane.peer == member.node.key and lane.open for lane in lanes):
                        found.append(f"{publisher.name} sends nothing of {member.queue} to {member.node.name}")
        return found

    @staticmethod
    def former(nodes: Sequence[ClusterNode]) -> list[str]:
        """Members that a publisher counts on, and that are none any more."""
        members = {(node.key, queue) for node in nodes if node.alive and not node.leaving for queue in node.pulls}
        return [
            f"{node.name} takes {key} for a member of {queue}"
            for node in nodes
            if node.alive and not node.leaving
            for queue, group in node.engine.groups.by_queue.items()
            for key in group.members
            if (key, queue) not in members
        ]

    # -- publishing ------------------------------------------------------------------------------------------

    def mark(self, node: ClusterNode, topic: str, number: int, key: str | None, priority: int) -> None:
        """A message was published."""
        groups = node.engine.groups.by_queue
        if groups or key is not None or priority:
            awaited_by = frozenset(queue for queue, group in groups.items() if group.members)
            self._marks[node.key, topic, number] = Mark(key, priority, awaited_by)

    def collect(self, node: ClusterNode, broadcasts: Sequence[Broadcast]) -> Iterator[tuple[Group, Copy]]:
        """What a publisher's groups have to have accepted in this turn, in order."""
        if broadcasts:
            self._check_known(node)
        groups = [group for group in node.engine.groups.by_queue.values() if group.collects]
        for topic, first, bodies, _ in broadcasts:
            if first != self._collected.get((node.key, topic), 0):
                raise GuaranteeBroken("G6", f"{node.name}: message {first} of {topic} leaves out of order")
            self._collected[node.key, topic] = first + len(bodies)
            matching = [group for group in groups if matches(group.binding.pattern, topic)]
            said = self.topics.records[node.key, topic].said
            for number in range(first, first + len(bodies)):
                body, headers = said[number]
                mark = self._marks.pop((node.key, topic, number), Mark())
                for group in matching:
                    if wants(group.binding, headers):
                        awaited = group.binding.queue in mark.awaited_by
                        yield group, Copy(topic, body, headers, mark.key, mark.priority, awaited)

    def _check_known(self, node: ClusterNode) -> None:
        """A group that was known is not forgotten: a durable one never, others not unless they say goodbye."""
        now, seen = node.loop.time(), self._seen.setdefault(node.key, {})
        groups = node.engine.groups.by_queue
        for queue, since in seen.items():
            away = queue not in self._parted and now - since < KEEP_S
            if (queue not in self._passing or away) and not (queue in groups and groups[queue].collects):
                raise GuaranteeBroken("G7", f"{node.name} publishes, and nothing is collected for {queue}")
        seen.update((queue, now) for queue, group in groups.items() if group.collects and group.members)

    # -- what becomes of it ----------------------------------------------------------------------------------

    def check_start(self, copy: Copy, node: ClusterNode, message: Message) -> None:
        """A member got it as it was published."""
        got = (message.topic, message.body, dict(message.headers), message.key, message.priority)
        if got != (copy.topic, copy.body, copy.headers or {}, copy.key, copy.priority):
            raise GuaranteeBroken("G7", f"{node.name} got {got} as {message.id}, {copy} was published")

    def check_dead(self, copy: Copy, letter: DeadLetter) -> None:
        """It died as it was published, and for a reason that its group allows."""
        if (letter.topic, letter.body, dict(letter.headers)) != (copy.topic, copy.body, copy.headers or {}):
            raise GuaranteeBroken("G7", f"{letter} is not what was published: {copy}")
        if letter.reason == "unroutable" and letter.queue not in self._passing:
            raise GuaranteeBroken("G7", f"{letter} died of waiting, and all members are durable")


def wants(binding: Binding, headers: Mapping[str, Any] | None) -> bool:
    """Whether a message with such headers is one that a group asked for."""
    has = headers or {}
    return all(
        name in has and has[name] == value and (type(has[name]) is bool) == (type(value) is bool)
        for name, value in binding.where
    )
