"""The cluster's books of publishing and subscribing: what was published, taken and missed, held against G6.

Nothing here believes a subscriber: what it takes is compared with what applications published, number by number. Of a
publisher one thing is believed: whom it confirmed. From then on that subscription must account for every message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshmsg.engine.publisher import Publisher
from meshmsg.engine.subscription import Gap as Missed
from meshmsg.engine.topics import matches
from meshmsg.message import Gap, Message
from meshmsg.options import PubOptions
from meshmsg.testing.broken import GuaranteeBroken

if TYPE_CHECKING:
    from meshmsg.testing.nodes import ClusterNode
    from meshmsg.testing.topics import ClusterPub, ClusterSub


class Record:
    """One topic in one life of a publisher."""

    def __init__(self, node: ClusterNode, topic: str) -> None:
        self.node = node
        self.topic = topic
        self.life = node.life
        self.options: PubOptions
        self.mixed = False  # whether it had other options at times
        self.said: list[tuple[Any, dict[str, Any] | None]] = []  # bodies and headers

    @property
    def alive(self) -> bool:
        """Whether this life of the publisher goes on."""
        return self.node.alive and self.node.life == self.life and not self.node.driver.closed


class View:
    """One publisher's topic as one subscription accounts for it."""

    def __init__(self) -> None:
        self.required: int | None = None  # the first message that it must account for
        self.next: int | None = None  # everything from its beginning up to here was taken, conflated or missed
        self.taken = 0
        self.missed = 0
        self.last_value = -1
        self.gap_stop = 0


class TopicBooks:
    """Hears of everything that is published, taken and missed, and checks it."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], Record] = {}
        self.views: dict[ClusterSub, dict[tuple[str, str], View]] = {}
        self.gaps_are_due = True  # False while a publisher may be given up for silent: clocks jump
        self.taken = 0
        self.missed = 0

    def on_subscribe(self, sub: ClusterSub) -> None:
        """A subscription is opened, perhaps again after a restart."""
        self.views[sub] = {}

    def on_unsubscribe(self, sub: ClusterSub) -> None:
        """A subscription is closed: nothing more is expected of it, and nothing may come."""
        self.views.pop(sub, None)

    def on_publish(self, pub: ClusterPub, topic: str, number: int, body: Any, headers: dict[str, Any] | None) -> None:
        """A message was published: whoever is confirmed must account for it."""
        node = pub.node
        key = node.key
        record = self.records.get((key, topic))
        if record is None:
            record = self.records[key, topic] = Record(node, topic)
            record.options = pub.options
        record.mixed = record.mixed or record.options != pub.options
        if number != len(record.said):
            raise GuaranteeBroken("G6", f"{node.name}: message {len(record.said)} of {topic} got number {number}")
        record.said.append((body, headers))
        followers = node.engine.publisher.followers
        for sub, views in self.views.items():
            follower = followers.get(sub.node.key) if sub.node.alive else None
            if follower is None or follower.confirmed < sub.subscription.version or not matches(sub.pattern, topic):
                continue
            view = views.setdefault((key, topic), View())
            if view.required is None:
                view.required = number

    def on_take(self, sub: ClusterSub, key: str, message: Message) -> None:
        """An application took a message."""
        topic, number = message.topic, message._number
        record = self.records.get((key, topic or ""))
        name = f"{sub.node.name}, {sub.name}: {topic}/{number} of {key}"
        if record is None or number >= len(record.said):
            raise GuaranteeBroken("G6", f"{name} was never published")
        body, headers = record.said[number]
        if message.body != body or dict(message.headers) != (headers or {}):
            raise GuaranteeBroken("G6", f"{name} is not what was published")
        if not matches(sub.pattern, record.topic):
            raise GuaranteeBroken("G6", f"{name} is none of its topics")
        view = self.views[sub].setdefault((key, record.topic), View())
        self.taken += 1
        view.taken += 1
        if sub.options.latest:
            if number <= view.last_value:
                raise GuaranteeBroken("G6", f"{name} comes after {view.last_value}")
            view.next = max(view.next or 0, number + 1)
        else:
            self._connect(sub, view, record, number, name)
            view.next = number + 1
        view.last_value = number

    def on_gap(self, sub: ClusterSub, missed: Missed, gap: Gap) -> None:
        """An application was told of messages that it will never get."""
        key, topic, start, stop = missed.publisher, missed.topic, missed.start, missed.stop
        name = f"{sub.node.name}, {sub.name}: the gap {topic}/{start} to {stop - 1} of {key}"
        if (gap.topic, gap.start, gap.stop, gap.missed) != (topic, start, stop, stop - start) or gap.missed <= 0:
            raise GuaranteeBroken("G6", f"{name} is told as {gap}")
        record = self.records.get((key, topic))
        if record is None or stop > len(record.said):
            raise GuaranteeBroken("G6", f"{name} is of messages that were never published")
        view = self.views[sub].setdefault((key, topic), View())
        if sub.options.latest:
            if start < view.gap_stop or start <= view.last_value:
                raise GuaranteeBroken("G6", f"{name} comes after {max(view.last_value, view.gap_stop - 1)}")
        else:
            self._connect(sub, view, record, start, name)
        if record.alive and self.gaps_are_due:
            log = record.node.engine.publisher.logs[topic]
            if stop > log.kept_from:
                raise GuaranteeBroken("G6", f"{name} can still be had, from {log.kept_from} on")
        view.gap_stop = stop
        view.next = max(view.next or 0, stop)
        view.missed += stop - start
        self.missed += stop - start

    def _connect(self, sub: ClusterSub, view: View, record: Record, start: int, name: str) -> None:
        """In order, nothing twice, nothing left out; and from the right place on."""
        if view.next is not None:
            if start != view.next:
                raise GuaranteeBroken("G6", f"{name} comes where {view.next} is due")
            return
        if not record.alive:
            return  # it may have died before the subscriber heard where it stood
        if view.required is not None and start > view.required:
            raise GuaranteeBroken("G6", f"{name} is the first, and {view.required} was published to it")
        options, count = record.options, len(record.said)
        kept = options.history if options.history_s is None and not record.mixed else 0
        if sub.options.replay == "history" and kept and start > max(0, count - kept):
            raise GuaranteeBroken("G6", f"{name} is the first of a history of {options.history} in {count}")

    # -- at rest ---------------------------------------------------------------------------------------------

    def unconfirmed(self) -> list[str]:
        """Subscriptions that a living publisher of such a topic has not confirmed."""
        return [
            f"{record.node.name} has not confirmed {sub.name} of {sub.node.name}"
            for record, sub, _ in self._pairs()
            if self._is_offered(record) and not self._is_confirmed(record, sub)
        ]

    def _is_confirmed(self, record: Record, sub: ClusterSub) -> bool:
        publisher = record.node.engine.publisher
        follower = publisher.followers.get(sub.node.key)
        known = sub.node.key in publisher.confirmed(record.topic)  # as ``wait_for(sub=)`` counts
        return known and follower is not None and follower.confirmed >= sub.subscription.version

    def outstanding(self) -> list[str]:
        """What living subscriptions still have to account for, of living publishers."""
        found: list[str] = []
        for record, sub, view in self._pairs():
            total = len(record.said)
            replay, options = sub.options.replay, record.options
            due = (
                (replay == "history" and options.history > 0 and options.history_s is None and not record.mixed)
                or (replay == "latest" and _has_retained(record.node.engine.publisher, record.topic))
            ) and self._is_offered(record)
            due = due or (view is not None and (view.next is not None or view.required is not None))
            at = view.next if view is not None else None
            if due and at != total:
                found.append(f"{sub.node.name}, {sub.name}: {at} of {total} of {record.topic} from {record.node.name}")
        return found

    def check_rest(self) -> None:
        """Nothing is outstanding, and both sides know it."""
        if self.outstanding() or self.unconfirmed():
            raise GuaranteeBroken("G6", f"at rest: {self.outstanding() or self.unconfirmed()}")
        for record, sub, _ in self._pairs():
            lags = record.node.engine.publisher.lags(sub.node.key)
            if lags:
                raise GuaranteeBroken("G6", f"{record.node.name} believes {sub.node.name} to be behind: {lags}")
            if sub.waiting:
                raise GuaranteeBroken("G6", f"{sub.node.name} has not taken {sub.waiting} messages of {sub.name}")

    def _pairs(self) -> list[tuple[Record, ClusterSub, View | None]]:
        records = [record for record in self.records.values() if record.alive and not record.node.leaving]
        return [
            (record, sub, views.get((record.node.key, record.topic)))
            for sub, views in self.views.items()
            if sub.node.alive and not sub.node.leaving and not sub.closed
            for record in records
            if matches(sub.pattern, record.topic)
        ]

    @staticmethod
    def _is_offered(record: Record) -> bool:
        return any(matches(pub.pattern, record.topic) for pub in record.node.pubs)


def _has_retained(publisher: Publisher, topic: str) -> bool:
    log = publisher.logs.get(topic)
    return log is not None and log.retained is not None
