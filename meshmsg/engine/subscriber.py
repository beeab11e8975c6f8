"""The subscribing side of a node: one reception a publisher, which feeds every subscription that a topic matches.

Peers are keyed ``<node id>.<incarnation>``, as everywhere in the engine. A publisher that restarts is another one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from meshmsg.engine.followed_topic import FollowedTopic
from meshmsg.engine.pieces import Assembly
from meshmsg.engine.publisher import MAX_PATTERNS, make_marker
from meshmsg.engine.stream import Stream
from meshmsg.engine.subscription import Subscription
from meshmsg.engine.topics import PatternIndex, filters_of, find_fault
from meshmsg.errors import ConfigurationError, ProtocolError
from meshmsg.wire import frames
from meshmsg.wire.codec import decode_batch

MAX_TOPICS = 100_000  # of one publisher
MAX_ENTRIES = 2_000  # topics in one LAG
MAX_ASKED = 64  # topics of one publisher with a WANT under way
ASK_AGAIN_S = 0.5
# What a beacon tells may still be on its way through the SUB socket, which is another connection.
TAIL_GRACE_S = 0.25
# For so long at most, while the transport has more than was read; where all is read as it comes, that is no matter.
PATIENCE_S = 5.0


class Subscriptions:
    """All subscriptions of a node, and the receptions from the publishers that it follows."""

    def __init__(self, node_id: str, incarnation: int) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.version = 0  # of the offers that hold these subscriptions
        self.generation = 0  # changes with every change: topics look up anew whom they go to
        self.receptions: dict[str, Reception] = {}
        self.unwanted = 0  # messages that only a filter matched
        self.repeated = 0  # messages that had come before
        self.room_made = False
        self.behind = False  # whether the transport has more of what was published than was read in this turn
        self.wake: Callable[[], None] = lambda: None  # asks for a ``collect``: an application took something
        self._index = PatternIndex[Subscription]()
        self._subscriptions: dict[Subscription, None] = {}
        self._patterns: dict[str, int] = {}  # with the number of their subscriptions
        self._offers: dict[str, dict[str, Any]] = {}
        self.stirred: dict[Reception, None] = {}  # something happened to them, or is still to

    def add(self, subscription: Subscription, version: int) -> None:
        """A subscription that the offers of this version hold; it begins where each publisher confirms it.

        Raises ``ConfigurationError``, and changes nothing, for one pattern more than publishers take.
        """
        if len(self._patterns) >= MAX_PATTERNS and subscription.pattern not in self._patterns:
            raise ConfigurationError(
                f"this node subscribes to {MAX_PATTERNS} patterns already, {subscription.pattern!r} is one too many: "
                "close some, or subscribe to patterns that many topics match"
            )
        subscription.version = self.version = version
        subscription.on_room = self._on_room
        self.generation += 1
        self._subscriptions[subscription] = None
        self._index.add(subscription.pattern, subscription)
        self._patterns[subscription.pattern] = self._patterns.get(subscription.pattern, 0) + 1
        self._offers.setdefault(subscription.pattern, {"since": version})

    def remove(self, subscription: Subscription, version: int) -> None:
        """The application is done with a subscription; what it has not taken stays in it."""
        if subscription not in self._subscriptions:
            return
        self.version = version
        self.generation += 1
        del self._subscriptions[subscription]
        self._index.remove(subscription.pattern, subscription)
        self._patterns[subscription.pattern] -= 1
        if not self._patterns[subscription.pattern]:
            del self._patterns[subscription.pattern], self._offers[subscription.pattern]
        for reception in self.receptions.values():
            reception.drop(subscription)

    def _on_room(self) -> None:
        self.room_made = True
        self.wake()

    def match(self, topic: str) -> tuple[Subscription, ...]:
        """Those that get the messages of a topic."""
        return self._index.match(topic)

    def confirmed_by(self, version: int) -> list[Subscription]:
        """Those that a publisher which confirmed this version knows."""
        return [subscription for subscription in self._subscriptions if subscription.version <= version]

    def offers(self) -> dict[str, dict[str, Any]]:
        """What to offer as ``sub``: with each pattern the version of the offers that had it first.

        A publisher may see only later offers, and still has to know which markers hold for the pattern.
        """
        return self._offers

    def filters(self) -> list[bytes]:
        """The prefixes that a SUB socket needs, without the marker."""
        return [prefix.encode() for prefix in filters_of(self.offers())]

    def follow(self, peer: str) -> Reception:
        """The reception from a publisher; the same as before if that was only out of reach for a while."""
        reception = self.receptions.get(peer)
        if reception is None:
            reception = self.receptions[peer] = Reception(peer, self)
        return reception

    def end(self, peer: str) -> None:
        """A publisher is gone for good: restarted, or away for too long. What is known to be missing becomes gaps."""
        reception = self.receptions.pop(peer, None)
        if reception is not None:
            self.stirred.pop(reception, None)
            reception.close()

    def stir(self, reception: Reception) -> None:
        """The next ``collect`` looks at this one."""
        self.stirred[reception] = None

    def heartbeat(self) -> None:
        """The next ``collect`` of each reception says what arrived since the last time."""
        for reception in self.receptions.values():
            reception.require_report()

    def collect(self, now: float) -> list[tuple[str, frames.PubSubFrame]]:
        """What is due to publishers."""
        room_made, self.room_made = self.room_made, False
        for reception in self.receptions.values() if room_made else ():
            reception.retry()
        sent: list[tuple[str, frames.PubSubFrame]] = []
        stirred, self.stirred = self.stirred, {}
        for reception in stirred:
            sent += [(reception.peer, frame) for frame in reception.collect(now)]
            if reception.wake_at(now) is not None:
                self.stirred[reception] = None
        return sent

    def wake_at(self, now: float) -> float | None:
        """When ``collect`` has something again, apart from heartbeats; None without anything to wait for."""
        if self.room_made:
            return now
        if not self.stirred:
            return None
        return min((at for reception in self.stirred if (at := reception.wake_at(now)) is not None), default=None)

    def check(self) -> None:
        """The machine's own invariants, for the simulator."""
        assert set(self.stirred) <= set(self.receptions.values())
        for reception in self.receptions.values():
            reception.check()
            assert reception in self.stirred or reception.wake_at(0.0) is None, f"{reception.peer} waits for nothing"
        for subscription in self._subscriptions:
            subscription.check()
            held = [batch for stream in self._streams_of(subscription) for batch in stream.held]
            assert subscription.held == sum(len(batch.bodies) for batch in held)
            assert subscription.held_bytes == sum(batch.size for batch in held)

    def _streams_of(self, subscription: Subscription) -> Iterator[Stream]:
        for reception in self.receptions.values():
            for topic in reception.topics.values():
                yield from (stream for stream in topic.streams if stream.subscription is subscription)


class Reception:
    """Everything that one publisher incarnation sends this node (G6).

    A topic that misses something waits in one of four lines: in ``_late`` for what a beacon told and what may be on its
    way, in ``_ready`` to be asked for, in ``_asked`` for the answer, in ``_parked`` for room in a subscription.
    """

    def __init__(self, peer: str, subscriptions: Subscriptions) -> None:
        self.peer = peer
        self.node_id, _, incarnation = peer.partition(".")
        self.incarnation = int(incarnation)
        self.topics: dict[str, FollowedTopic] = {}
        self.version = 0  # of the last START that came completely
        self.marked = 0  # version of the marker that is set
        self._marked_before = 0  # the highest one that was ever set
        self.report_every: int | None = None  # messages, where the publisher waits for the slowest
        self.report_every_bytes: int | None = None
        self.report_due = False
        self._subscriptions = subscriptions
        self._started: dict[Subscription, None] = {}
        self._topics_of: dict[Subscription, dict[FollowedTopic, None]] = {}
        self._filters: list[bytes] = []
        self._arriving: dict[str, list[Any]] = {}  # of a START in parts
        self._arriving_version = 0
        self._start_came = False
        self._moved: dict[FollowedTopic, None] = {}
        self._unreported = 0
        self._unreported_bytes = 0
        self._assembly = Assembly()
        # Those that are long and lose their first; a plain dict would look past all that went before.
        self._late: OrderedDict[FollowedTopic, None] = OrderedDict()
        self._ready: OrderedDict[FollowedTopic, None] = OrderedDict()
        self._asked: dict[FollowedTopic, None] = {}
        self._parked: dict[FollowedTopic, None] = {}

    # -- filters ---------------------------------------------------------------------------------------------

    def change_filters(self) -> tuple[list[bytes], list[bytes]]:
        """What to subscribe to and then to unsubscribe from on this publisher's SUB socket, in this order.

        The marker is the last new filter: when the publisher sees it, the others are live. There is no new one before
        the ``START`` of the last has come, so that a publisher has at most one to remember.
        """
        subscriptions = self._subscriptions
        if subscriptions.version == self.marked or self.marked > self.version:
            return [], []
        before = self._filters
        self._filters = subscriptions.filters()
        if self._filters:
            marker = make_marker(subscriptions.node_id, subscriptions.incarnation, subscriptions.version)
            self._filters.append(marker)
            self.marked = subscriptions.version
        else:
            self.marked = self.version
        new, old = set(self._filters), set(before)
        return [each for each in self._filters if each not in old], [each for each in before if each not in new]

    @property
    def filters(self) -> list[bytes]:
        """What this publisher's SUB socket is to be subscribed to; the marker is the last."""
        return self._filters

    def forget_filters(self) -> None:
        """The SUB socket is another one: it has no filters yet."""
        self._filters = []
        self._marked_before = max(self._marked_before, self.marked)
        self.marked = 0

    def up(self) -> None:
        """A new link: what was on the old one is lost in both directions."""
        self._arriving = {}
        for topic in list(self._asked):
            topic.wait_in(self._ready)
        for topic in self.topics.values():
            topic.reported = None
            self._moved[topic] = None
        self.require_report()

    def is_live(self, subscription: Subscription) -> bool:
        """Whether the publisher has confirmed it: it gets, or hears of, whatever is published from then on."""
        return subscription in self._started

    def report_each(self, messages: int | None, size: int | None) -> None:
        """Has the publisher told what arrived after so many messages, or bytes; always once a heartbeat."""
        self.report_every, self.report_every_bytes = messages, size
        self._subscriptions.stir(self)

    def require_report(self) -> None:
        """The next ``collect`` says what arrived."""
        self.report_due = True
        self._subscriptions.stir(self)

    # -- what the publisher says -----------------------------------------------------------------------------

    def on_published(self, published: frames.Published, now: float) -> None:
        """Messages through the SUB socket, in order except for those that were dropped."""
        if published.node_id != self.node_id or published.incarnation != self.incarnation:
            return  # somebody else's: the port has a new owner
        topic = self._follow(published.topic)
        if published.part is not None:
            self._take_piece(topic, published, now)
        elif topic is None:
            self._subscriptions.unwanted += published.total
        else:
            if self._assembly.topic == topic.name:  # a topic's messages come in order: the rest was lost
                self._assembly.drop()
            self._receive(topic, published, now)

    def _take_piece(self, topic: FollowedTopic | None, piece: frames.Published, now: float) -> None:
        stop = piece.first_seq + piece.total
        if topic is None or not any(stream.needs(piece.first_seq, piece.total) for stream in topic.streams):
            self._assembly.drop()
            if piece.part is not None and not piece.part[0]:  # counted once
                if topic is None:
                    self._subscriptions.unwanted += piece.total
                else:
                    self._subscriptions.repeated += piece.total
            return
        whole = self._assembly.add(piece, now)
        if whole is not None:
            self._receive(topic, whole, now)
            return
        for stream in topic.streams:
            stream.learn(stop)
        self._look(topic, now, progress=self._assembly.topic is not None)

    def on_past(self, past: frames.Past, now: float) -> None:
        """Messages that were asked for; they may have come otherwise meanwhile."""
        topic = self._follow(past.topic)
        if topic is not None:
            self._assembly.drop_within(past.topic, past.first_seq, past.first_seq + past.total)
            self._receive(topic, past, now)
            if not past.more:
                self._answered(topic)

    def on_forgotten(self, forgotten: frames.Forgotten, now: float) -> None:
        """The publisher's history begins later: what did not arrive is a gap."""
        topic = self._follow(forgotten.topic)
        if topic is not None:
            arriving = self._assembly.arriving(topic.name, now)  # in pieces, whatever the publisher has of it
            up_to = forgotten.up_to if arriving is None else min(forgotten.up_to, arriving)
            for stream in topic.streams:
                stream.forget(up_to)
            self._moved[topic] = None
            self._look(topic, now)
            if not forgotten.more:
                self._answered(topic)

    def on_beacon(self, beacon: frames.Beacon, now: float) -> None:
        """How far topics are: a loss at the end of one shows in nothing else."""
        self.require_report()  # a publisher that leaves waits for it
        for name, next_seq in beacon.topics:
            topic = self._follow(name)
            if topic is not None:
                for stream in topic.streams:
                    stream.learn(next_seq)
                topic.reported = None  # the publisher does not know what arrived here
                self._moved[topic] = None
                self._look(topic, now, progress=False)

    def on_start(self, start: frames.Start, now: float) -> None:
        """The publisher saw the marker of this version, and where its topics stood then."""
        if start.version > self.marked:
            if start.version <= self._marked_before:
                return  # of a SUB socket that is gone
            raise ProtocolError("a START for a marker that was never set")
        if start.version != self._arriving_version:
            self._arriving, self._arriving_version = {}, start.version
        for entry in start.topics:
            self._arriving[entry[0]] = entry
        if len(self._arriving) > MAX_TOPICS:
            raise ProtocolError(f"more than {MAX_TOPICS} topics")
        if start.last:
            arriving, self._arriving = self._arriving, {}
            self._begin(start.version, list(arriving.values()), now)

    def _begin(self, version: int, entries: list[list[Any]], now: float) -> None:
        self.version = max(self.version, version)
        self._start_came = True
        self.require_report()  # the publisher repeats its START until it is told
        waiting = {each for each in self._subscriptions.confirmed_by(version) if each not in self._started}
        for name, next_seq, history_from, retained in entries:
            topic = self._follow(name)
            if topic is None:
                continue
            for stream in topic.streams:
                if stream.subscription in waiting and stream.expected is None:
                    stream.begin(next_seq, history_from, retained)
                else:
                    stream.learn(next_seq)
            self._moved[topic] = None
            self._look(topic, now, progress=False)
        self._started.update(dict.fromkeys(waiting))
        if not waiting:
            return
        for topic in self.topics.values():
            begun = [each for each in topic.streams if each.subscription in waiting and each.expected is None]
            for stream in begun:
                stream.begin(0, 0, False)
            if begun:
                self._moved[topic] = None
                self._look(topic, now, progress=False)

    def _follow(self, name: str) -> FollowedTopic | None:
        """A topic with a stream for every subscription that it matches; None without any."""
        topic = self.topics.get(name)
        if topic is not None and topic.generation == self._subscriptions.generation:
            return topic
        subscriptions = self._subscriptions.match(name)
        if not subscriptions:
            return None
        if topic is None:
            fault = find_fault(name)
            if fault is not None:
                raise ProtocolError(f"a topic that cannot be: {fault}")
            if len(self.topics) >= MAX_TOPICS:
                raise ProtocolError(f"more than {MAX_TOPICS} topics")
            topic = self.topics[name] = FollowedTopic(name)
        topic.generation = self._subscriptions.generation
        served = {stream.subscription for stream in topic.streams}
        for subscription in subscriptions:
            if subscription not in served:
                stream = Stream(name, self.peer, subscription)
                if subscription in self._started:
                    stream.begin(0, 0, False)  # it was not there when the publisher listed its topics
                topic.streams.append(stream)
                self._topics_of.setdefault(subscription, {})[topic] = None
        return topic

    def _receive(self, topic: FollowedTopic, batch: frames.Published | frames.Past, now: float) -> None:
        first_seq, total, headers, payload = batch.first_seq, batch.total, batch.headers, batch.payload
        is_past = isinstance(batch, frames.Past)
        needed = False
        complete = True
        for stream in topic.streams:
            if is_past and stream.expected is None:
                continue  # another one asked for it; where this one begins, a START will tell
            if stream.needs(first_seq, total):
                needed = True
                # Each of its own: what one subscription does to a body is no matter of another's.
                stream.accept(first_seq, decode_batch(payload, total), headers, len(payload))
            complete = complete and stream.complete
        if not needed:
            self._subscriptions.repeated += total
            return
        self._moved[topic] = None
        self._unreported += total
        self._unreported_bytes += len(payload)
        self._subscriptions.stir(self)
        if not complete or topic.line is not None:
            self._look(topic, now)

    # -- what is missing -------------------------------------------------------------------------------------

    def _look(self, topic: FollowedTopic, now: float, *, progress: bool = True) -> None:
        """Puts a topic where it belongs, after something about it changed."""
        if all(stream.complete for stream in topic.streams):
            if topic.line is not None:
                topic.wait_in(None)
            return
        self._subscriptions.stir(self)
        missing = topic.missing()
        if topic.line is self._asked:
            if topic.moved():
                topic.due = now + ASK_AGAIN_S  # more is on its way
        elif missing is None:
            topic.wait_in(self._parked)
        elif any(stream.overdue for stream in topic.streams):
            if topic.line is not self._ready:
                topic.wait_in(self._ready)
        elif topic.line is None or (topic.line is self._late and progress):
            topic.due, topic.patient_until = now + TAIL_GRACE_S, now + PATIENCE_S
            topic.wait_in(self._late)

    def _answered(self, topic: FollowedTopic) -> None:
        """An answer is through. What is still missing is asked for at once, unless the answer brought nothing."""
        if topic.line is self._asked:
            if topic.missing() is None:
                topic.wait_in(self._parked)
            elif topic.moved_since_asked:
                topic.wait_in(self._ready)

    def retry(self) -> None:
        """A subscription has room again."""
        for topic in list(self._parked):
            if topic.missing() is not None:
                topic.wait_in(self._ready)
                self._subscriptions.stir(self)

    def collect(self, now: float) -> list[frames.PubSubFrame]:
        """What is due to this publisher: requests for what is missing, and what arrived."""
        due: list[frames.PubSubFrame] = []
        for topic in [topic for topic in self._asked if topic.due <= now]:
            topic.wait_in(self._ready)
        while self._late and (topic := next(iter(self._late))).due <= now:
            if self._subscriptions.behind and now < topic.patient_until:  # it may be in what was not read yet
                topic.due = now + TAIL_GRACE_S
                topic.wait_in(self._late)
            else:
                topic.wait_in(self._ready)
        while self._ready and len(self._asked) < MAX_ASKED:
            topic = next(iter(self._ready))
            missing = topic.missing()
            if missing is None:
                topic.wait_in(self._parked)
                continue
            start, stop = missing
            arriving = self._assembly.arriving(topic.name, now)
            if arriving is not None and arriving <= start:  # it is on its way; later there is another look
                topic.due = now + TAIL_GRACE_S
                topic.wait_in(self._late)
                continue
            topic.note_asked()
            topic.due = now + ASK_AGAIN_S
            topic.wait_in(self._asked)
            due.append(frames.Want(topic.name, start, stop if arriving is None else min(stop, arriving)))
        if self.report_due or self._has_much_to_report():
            due += self._report()
        return due

    def _has_much_to_report(self) -> bool:
        if self.report_every is not None and self._unreported >= self.report_every:
            return True
        return self.report_every_bytes is not None and self._unreported_bytes >= self.report_every_bytes

    def _report(self) -> list[frames.PubSubFrame]:
        positions: list[list[Any]] = []
        for topic in self._moved:
            position = topic.position
            if position is not None and position != topic.reported:
                topic.reported = position
                positions.append([topic.name, position])
        self._moved = {}
        self._unreported = self._unreported_bytes = 0
        must, self._start_came, self.report_due = self._start_came, False, False
        parts = [positions[start : start + MAX_ENTRIES] for start in range(0, len(positions), MAX_ENTRIES)]
        return [frames.Lag(self.version, part) for part in parts or ([[]] if must else [])]

    def wake_at(self, now: float) -> float | None:
        """When ``collect`` has something again, apart from heartbeats; None without anything to wait for."""
        if self.report_due or (self._ready and len(self._asked) < MAX_ASKED):
            return now
        due = [topic.due for topic in self._asked]
        if self._late:
            due.append(next(iter(self._late)).due)
        return min(due, default=None)

    # -- ends ------------------------------------------------------------------------------------------------

    def drop(self, subscription: Subscription) -> None:
        """A subscription is gone, and every topic that nobody else here follows."""
        self._started.pop(subscription, None)
        for topic in self._topics_of.pop(subscription, ()):
            for stream in [stream for stream in topic.streams if stream.subscription is subscription]:
                stream.drop()
                topic.streams.remove(stream)
            if not topic.streams:
                topic.wait_in(None)
                self._moved.pop(topic, None)
                del self.topics[topic.name]
                if self._assembly.topic == topic.name:
                    self._assembly.drop()
            elif topic.line is not None and all(stream.complete for stream in topic.streams):
                topic.wait_in(None)

    def close(self) -> None:
        """The publisher is gone for good."""
        for topic in self.topics.values():
            for stream in topic.streams:
                stream.finish()
        self.topics = {}
        self._topics_of = {}
        for line in (self._late, self._ready, self._asked, self._parked, self._moved):
            line.clear()

    def check(self) -> None:
        """The machine's own invariants, for the simulator."""
        lines = (self._late, self._ready, self._asked, self._parked)
        for topic in self.topics.values():
            for stream in topic.streams:
                stream.check()
            incomplete = not all(stream.complete for stream in topic.streams)
            assert incomplete == (topic.line is not None), f"{topic.name}: {incomplete=} and waits in {topic.line}"
            assert all((topic in line) == (line is topic.line) for line in lines)
        followed = [(stream.subscription, topic) for topic in self.topics.values() for stream in topic.streams]
        assert len(followed) == sum(map(len, self._topics_of.values()))
        assert all(topic in self._topics_of[subscription] for subscription, topic in followed)
        assert sum(map(len, lines)) == sum(topic.line is not None for topic in self.topics.values())
        assert len(self._asked) <= MAX_ASKED
