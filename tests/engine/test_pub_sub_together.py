"""Publishers and subscribers over channels that lose, cut and restart: nothing is missed without a gap that says so."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from meshmsg.engine import publisher as publisher_module
from meshmsg.engine import subscriber as subscriber_module
from meshmsg.engine import topic_log
from meshmsg.engine.publisher import Publisher
from meshmsg.engine.subscriber import Subscriptions
from meshmsg.engine.subscription import Delivery, Gap, Subscription
from meshmsg.engine.topic_log import TopicOptions
from meshmsg.engine.topics import matches
from meshmsg.wire import frames
from meshmsg.wire.codec import encode_batch, make_packer

pytestmark = pytest.mark.guarantee("G6")

pack = make_packer()

TOPICS = ["a", "a.b", "a.c", "b.x.y", "ab", "c"]
PATTERNS = ["**", "a", "a.*", "a.**", "*.b", "b.**.y", "ab", "c", "**.c"]
HEARTBEAT_S = 0.5
PIECE_BYTES = 25  # what is published at once often has more
EVERYTHING = 10**6  # messages of a history that forgets nothing


class Log:
    """What the application got of one publisher's topic, and that it is in order and without holes."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self.missed = 0
        self.values = 0
        self.last_value = -1

    def add(self, item: Delivery | Gap, latest: bool, source: Source) -> None:
        start = item.start if isinstance(item, Gap) else item.first_seq
        if latest:  # its gaps come before its values
            assert isinstance(item, Gap) or start > self.last_value, f"{item} after {self.last_value}"
        else:
            assert start == self.end, f"{item} where {self.end} was due"
        if isinstance(item, Gap):
            assert item.missed > 0
            self.missed += item.missed
            self.end = max(self.end, item.stop)
            return
        for seq, body in enumerate(item.bodies, item.first_seq):
            assert body == [item.topic, seq]
            assert (item.headers or {}).get(seq) == source.headers.get((item.topic, seq))
        self.values += len(item.bodies)
        self.last_value = item.first_seq + len(item.bodies) - 1
        self.end = max(self.end, self.last_value + 1)


class Source:
    """A publishing node."""

    def __init__(self, name: str, options: TopicOptions) -> None:
        self.name = name
        self.options = options
        self.incarnation = 0
        self.lives: dict[str, Source] = {}
        self.restart()

    def restart(self) -> None:
        self.incarnation += 1
        self.peer = f"{self.name}.{self.incarnation}"
        self.publisher = Publisher()
        self.publisher.declare("**", self.options)
        self.headers: dict[tuple[str, int], dict[str, Any]] = {}


class Reader:
    """One subscription with what came through it."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.logs: dict[tuple[str, str], Log] = {}
        self.promised: dict[str, dict[str, int]] = {}  # by publisher: where its topics stood when it confirmed


class Sink:
    """A subscribing node."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.incarnation = 0
        self.restart()

    def restart(self) -> None:
        self.incarnation += 1
        self.peer = f"{self.name}.{self.incarnation}"
        self.version = 0
        self.subscriptions = Subscriptions(self.name, self.incarnation)
        self.readers: list[Reader] = []


class Channel:
    """Between one source and one sink: the mesh link, and the connection of the SUB socket."""

    def __init__(self, source: Source, sink: Sink) -> None:
        self.source = source
        self.sink = sink
        self.linked = False
        self.to_sink: deque[list[bytes]] = deque()
        self.to_source: deque[list[bytes]] = deque()
        self.connected = False
        self.filters: list[bytes] = []  # of the SUB socket
        self.live: set[bytes] = set()  # that have reached the XPUB
        self.upward: deque[tuple[bytes, bool]] = deque()
        self.stream: deque[list[Any]] = deque()


class World:
    def __init__(self, seed: int, *, history: int, sources: int = 2, sinks: int = 2) -> None:
        self.random = random.Random(seed)
        self.now = 100.0
        self.drops = self.random.choice([0.0, 0.05, 0.4])
        window = self.random.choice([0, 0, 20])
        retain = self.random.random() < 0.5
        options = TopicOptions(retain=retain, history=history, history_bytes=2**30, window=window)
        self.sources = [Source(f"p{number}", options) for number in range(sources)]
        self.sinks = [Sink(f"s{number}") for number in range(sinks)]
        self.channels = [Channel(source, sink) for source in self.sources for sink in self.sinks]
        self.missed = 0
        self.heartbeat_at = self.now
        for sink in self.sinks:
            self.add_reader(sink)
        for channel in self.channels:
            self.link(channel)
            self.connect(channel)

    # -- faults ----------------------------------------------------------------------------------------------

    def link(self, channel: Channel) -> None:
        """A mesh link: HELLO brings the offers."""
        sink, source = channel.sink, channel.source
        channel.linked = True
        for peer in [peer for peer in sink.subscriptions.receptions if peer.startswith(source.name + ".")]:
            if peer != source.peer:
                sink.subscriptions.end(peer)
        sink.subscriptions.follow(source.peer).up()
        self.offer(channel)

    def offer(self, channel: Channel) -> None:
        patterns = channel.sink.subscriptions.offers()
        offers = frames.Offers(channel.sink.version, {"sub": patterns})
        if channel.linked:
            channel.to_source.append(frames.encode(offers))

    def unlink(self, channel: Channel, *, noticed: bool) -> None:
        channel.linked = False
        channel.to_sink.clear()
        channel.to_source.clear()
        if noticed:
            for reader in channel.sink.readers:
                reader.promised.pop(channel.source.peer, None)
            channel.source.publisher.on_down(channel.sink.peer)

    def connect(self, channel: Channel) -> None:
        """libzmq sends the filters again in the order of their bytes."""
        channel.connected = True
        channel.upward.extend((each, True) for each in sorted(channel.filters))

    def disconnect(self, channel: Channel) -> None:
        channel.connected = False
        channel.upward.clear()
        channel.stream.clear()
        for each in sorted(channel.live):
            channel.source.publisher.on_filter(each, False, self.now)
        channel.live.clear()

    def restart_source(self, source: Source) -> None:
        channels = [channel for channel in self.channels if channel.source is source]
        for channel in channels:
            self.unlink(channel, noticed=False)
            self.disconnect(channel)
        source.restart()
        for channel in channels:
            # The SUB socket finds the new life at the old address, but belongs to another reception.
            channel.filters = []

    def restart_sink(self, sink: Sink) -> None:
        for channel in [channel for channel in self.channels if channel.sink is sink]:
            self.unlink(channel, noticed=True)
            self.disconnect(channel)
            channel.filters = []
        sink.restart()
        self.add_reader(sink)

    # -- the application -------------------------------------------------------------------------------------

    def open_something_else(self, sink: Sink) -> None:
        """A queue, a service: the offers are new, and hold the same subscriptions."""
        sink.version += 1
        for channel in self.channels:
            if channel.sink is sink and self.random.random() < 0.7:  # of the others only the last one arrives
                self.offer(channel)

    def add_reader(self, sink: Sink) -> None:
        options: dict[str, Any] = {
            "latest": self.random.random() < 0.2,
            "replay": self.random.choice(["none", "latest", "history"]),
            "buffer": self.random.choice([3, 30, 10_000]),
        }
        reader = Reader(Subscription(self.random.choice(PATTERNS), **options))
        sink.version += 1
        sink.subscriptions.add(reader.subscription, sink.version)
        sink.readers.append(reader)
        for channel in self.channels:
            if channel.sink is sink:
                self.offer(channel)

    def remove_reader(self, sink: Sink) -> None:
        if sink.readers:
            reader = sink.readers.pop(self.random.randrange(len(sink.readers)))
            sink.version += 1
            sink.subscriptions.remove(reader.subscription, sink.version)
            for channel in self.channels:
                if channel.sink is sink:
                    self.offer(channel)

    def publish(self, source: Source) -> None:
        for _ in range(self.random.choice([1, 1, 3, 20])):
            topic = self.random.choice(TOPICS)
            if source.publisher.blocked(topic):
                continue
            seq = source.publisher.topics().get(topic, 0) + self.staged(source, topic)
            headers = {"n": seq} if self.random.random() < 0.1 else None
            if headers:
                source.headers[topic, seq] = headers
            assert source.publisher.publish(topic, pack([topic, seq]), headers) == seq

    @staticmethod
    def staged(source: Source, topic: str) -> int:
        return sum(len(log.staged) for log in source.publisher.staged if log.topic == topic)

    def take(self, sink: Sink) -> None:
        for reader in sink.readers:
            for item in reader.subscription.take(self.random.choice([1, 5, 1000])):
                source = next(each for each in self.sources if item.publisher.startswith(each.name + "."))
                if item.publisher != source.peer and isinstance(item, Delivery):
                    item = item._replace(headers=None, bodies=[])  # what the old life said is not kept here
                    continue
                start = item.start if isinstance(item, Gap) else item.first_seq
                log = reader.logs.setdefault((item.publisher, item.topic), Log(start))
                if item.publisher == source.peer:
                    log.add(item, reader.subscription.latest, source)

    # -- the machinery ---------------------------------------------------------------------------------------

    def turn(self) -> None:
        """One turn of every node's loop: what is due leaves."""
        for source in self.sources:
            for broadcast in source.publisher.collect(self.now):
                topic, first_seq, bodies, headers = broadcast
                published = frames.Published(
                    topic, source.name, source.incarnation, first_seq, len(bodies), headers, encode_batch(bodies)
                )
                parts = frames.encode_published(published, PIECE_BYTES)
                for channel in self.channels:
                    if channel.source is source and any(bytes(parts[0]).startswith(each) for each in channel.live):
                        for place in range(1, len(parts), 2):
                            if self.random.random() >= self.drops:
                                channel.stream.append([parts[0], *parts[place : place + 2]])
            answers = source.publisher.answers(self.now)
            for peer, frame, bodies in answers:
                self.send_to_sink(source, peer, frames.encode(frame, bodies))
        for sink in self.sinks:
            for peer, frame in sink.subscriptions.collect(self.now):
                for channel in self.channels:
                    if channel.sink is sink and channel.source.peer == peer and channel.linked:
                        channel.to_source.append(frames.encode(frame))
        for channel in self.channels:
            reception = channel.sink.subscriptions.receptions.get(channel.source.peer)
            if reception is not None:
                new, old = reception.change_filters()
                channel.filters = [each for each in channel.filters if each not in old] + new
                if channel.connected:
                    channel.upward.extend((each, True) for each in new)
                    channel.upward.extend((each, False) for each in old)

    def send_to_sink(self, source: Source, peer: str, parts: list[bytes]) -> None:
        for channel in self.channels:
            if channel.source is source and channel.sink.peer == peer and channel.linked:
                channel.to_sink.append(parts)

    def beat(self) -> None:
        if self.now < self.heartbeat_at:
            return
        self.heartbeat_at = self.now + HEARTBEAT_S
        for source in self.sources:
            for peer, frame, _ in source.publisher.heartbeat(self.now):
                self.send_to_sink(source, peer, frames.encode(frame))
        for sink in self.sinks:
            sink.subscriptions.heartbeat()

    def deliver(self, channel: Channel, limit: int) -> None:
        for _ in range(limit):
            if channel.upward:
                text, subscribed = channel.upward.popleft()
                if subscribed:
                    channel.live.add(text)
                else:
                    channel.live.discard(text)
                channel.source.publisher.on_filter(text, subscribed, self.now)
                self.note_promises(channel)
            if channel.to_source:
                self.hear_sink(channel, frames.decode(channel.to_source.popleft()))
                self.note_promises(channel)
            if channel.to_sink:
                self.hear_source(channel, frames.decode(channel.to_sink.popleft()))
            reception = channel.sink.subscriptions.receptions.get(channel.source.peer)
            if channel.stream and reception is not None:
                published = frames.decode_published(channel.stream.popleft(), PIECE_BYTES)
                reception.on_published(published, self.now)

    def hear_sink(self, channel: Channel, frame: frames.Frame | None) -> None:
        publisher, peer = channel.source.publisher, channel.sink.peer
        if isinstance(frame, frames.Offers):
            publisher.on_offers(peer, frame.version, frame.offers["sub"], self.now)
        elif isinstance(frame, frames.Want):
            publisher.on_want(peer, frame)
        else:
            assert isinstance(frame, frames.Lag)
            publisher.on_lag(peer, frame)

    def hear_source(self, channel: Channel, frame: frames.Frame | None) -> None:
        reception = channel.sink.subscriptions.receptions[channel.source.peer]
        if isinstance(frame, frames.Start):
            reception.on_start(frame, self.now)
        elif isinstance(frame, frames.Past):
            reception.on_past(frame, self.now)
        elif isinstance(frame, frames.Forgotten):
            reception.on_forgotten(frame, self.now)
        else:
            assert isinstance(frame, frames.Beacon)
            reception.on_beacon(frame, self.now)

    def note_promises(self, channel: Channel) -> None:
        follower = channel.source.publisher.followers.get(channel.sink.peer)
        if follower is not None and follower.confirmed:
            for reader in channel.sink.readers:
                if reader.subscription.version <= follower.confirmed:
                    reader.promised.setdefault(channel.source.peer, channel.source.publisher.topics())

    def step(self) -> None:
        act = self.random.random()
        channel = self.random.choice(self.channels)
        if act < 0.35:
            self.publish(channel.source)
        elif act < 0.75:
            self.deliver(channel, self.random.choice([1, 3, 10]))
        elif act < 0.85:
            self.take(channel.sink)
        elif act < 0.92:
            self.now += self.random.choice([0.01, 0.1, 0.5])
        elif act < 0.94:
            (self.disconnect if channel.connected else self.connect)(channel)
        elif act < 0.96:
            if channel.linked:
                self.unlink(channel, noticed=self.random.random() < 0.5)
            else:
                self.link(channel)
        elif act < 0.965:
            self.open_something_else(channel.sink)
        elif act < 0.97:
            self.add_reader(channel.sink)
        elif act < 0.98:
            self.remove_reader(channel.sink)
        elif act < 0.985:
            self.restart_source(channel.source)
        elif act < 0.99:
            self.restart_sink(channel.sink)
        self.turn()
        self.beat()
        self.check()

    def check(self) -> None:
        for source in self.sources:
            source.publisher.check()
        for sink in self.sinks:
            sink.subscriptions.check()

    # -- the end ---------------------------------------------------------------------------------------------

    def heal(self) -> None:
        self.drops = 0.0
        for channel in self.channels:
            if not channel.linked:
                self.link(channel)
            if not channel.connected:
                self.connect(channel)
        before: list[int] = []
        quiet = 0
        while quiet < 40:  # rounds of 0.1 s: whatever waits for a timer or a heartbeat comes in less
            for channel in self.channels:
                self.deliver(channel, 50)
            for sink in self.sinks:
                self.take(sink)
            self.turn()
            self.now += 0.1
            self.beat()
            now = [log.end for sink in self.sinks for reader in sink.readers for log in reader.logs.values()]
            quiet = quiet + 1 if now == before else 0
            before = now
        self.check()

    def check_rest(self, everything: bool) -> None:
        for sink in self.sinks:
            for reader in sink.readers:
                for source in self.sources:
                    for topic, total in source.publisher.topics().items():
                        if matches(reader.subscription.pattern, topic):
                            self.check_topic(reader, source, topic, total, everything)
        for source in self.sources:
            for topic in source.publisher.topics():
                assert not source.publisher.blocked(topic), f"{topic} is blocked for ever"
                wanted = [
                    sink.peer
                    for sink in self.sinks
                    if any(matches(reader.subscription.pattern, topic) for reader in sink.readers)
                ]
                assert sorted(source.publisher.confirmed(topic)) == wanted, f"{topic} has unconfirmed subscribers"
            for sink in self.sinks:
                assert source.publisher.lags(sink.peer) == {}

    def check_topic(self, reader: Reader, source: Source, topic: str, total: int, everything: bool) -> None:
        promised = reader.promised[source.peer].get(topic, 0)
        log = reader.logs.get((source.peer, topic))
        if log is None:
            assert promised == total, f"{reader.subscription.pattern} got nothing of {topic} in {source.peer}"
            return
        subscription = reader.subscription
        assert log.end == total, f"{topic} of {source.peer}: {log.end} of {total}"
        if everything:
            assert log.missed == 0
            if not subscription.latest:
                assert log.start <= (0 if subscription.replay == "history" else promised)
                retained = subscription.replay == "latest" and source.options.retain
                # When the last value is not the last any more, the next ones come live.
                assert not retained or log.start <= max(0, promised - 1) or total > promised
        elif not subscription.latest:
            assert log.start <= promised
            assert log.values + log.missed == log.end - log.start
        self.missed += log.missed


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so low that every one of them is met."""
    monkeypatch.setattr(topic_log, "MAX_FRAME_MESSAGES", 7)
    monkeypatch.setattr(publisher_module, "MAX_ENTRIES", 2)
    monkeypatch.setattr(subscriber_module, "MAX_ENTRIES", 2)
    monkeypatch.setattr(publisher_module, "ANSWER_BYTES", 60)
    monkeypatch.setattr(subscriber_module, "MAX_ASKED", 2)


@pytest.mark.parametrize("seed", range(60))
def test_with_enough_history_nothing_is_missed(seed: int, small: None) -> None:
    world = World(seed, history=EVERYTHING)
    for _ in range(600):
        world.step()
    world.heal()
    world.check_rest(everything=True)


@pytest.mark.parametrize("seed", range(60))
def test_what_is_missed_is_in_one_gap(seed: int, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_log, "REPAIR_MESSAGES", 5)
    monkeypatch.setattr(publisher_module, "REPAIR_BYTES_IN_ALL", 4000)
    world = World(seed, history=random.Random(seed).choice([0, 3, 20]))
    for _ in range(600):
        world.step()
    world.heal()
    world.check_rest(everything=False)
