"""All topics that one node publishes: numbering, what is kept, who follows, how far, and what they ask for again.

Hot path: ``publish`` appends to a list. ``collect`` makes one broadcast a topic and turn of that; ``answers`` holds
what goes to single subscribers. Peers are keyed ``<node id>.<incarnation>``, as everywhere in the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from meshmsg.engine.repair_pool import RepairPool
from meshmsg.engine.topic_log import Headers, TopicLog, TopicOptions
from meshmsg.engine.topics import PatternIndex, find_fault, is_pattern, matches, overlaps
from meshmsg.errors import ConfigurationError, NameClash, ProtocolError
from meshmsg.wire import frames

MAX_TOPICS = 100_000  # of one publisher; numbers are never reused, so a topic stays known
MAX_PATTERNS = 20_000  # of one subscriber
MAX_MARKED = 10_000  # subscribers whose markers are remembered, known as peers or not
MAX_MARKERS = 8  # of one subscriber: the one in use, and those that a change has not taken back yet
MAX_ENTRIES = 2_000  # topics in one START or BEACON
MAX_BEACONS = 4_000  # topics told to one subscriber at a heartbeat: it can repair no more until the next
ANSWER_BYTES = 2**20  # of repairs to one subscriber in one turn, and in one answer
REPAIR_BYTES_IN_ALL = 64 * 2**20  # kept for repairs over all topics without a history
START_AGAIN_S = 1.0
START_PART_S = 0.1  # later for each full part of it: so long it may take to be read

# No text in UTF-8 begins with this byte, so no topic does. It has to sort behind all topics: a SUB that comes back
# sends its filters in the order of their bytes, and the marker must stay the last one.
MARKER = b"\xff"

DEFAULT_OPTIONS = TopicOptions()


class Broadcast(NamedTuple):
    """One message for the XPUB: what was published to a topic in this turn, or a part of it."""

    topic: str
    first_seq: int
    bodies: list[bytes]
    headers: Headers


class Answer(NamedTuple):
    """A frame for one subscriber's link; ``bodies`` are a ``Past``'s."""

    peer: str
    frame: frames.PubSubFrame
    bodies: list[bytes]


class Follower:
    """A subscribing node, as its publisher sees it."""

    __slots__ = (
        "behind",
        "confirmed",
        "offers_version",
        "patterns",
        "paused",
        "peer",
        "positions",
        "start",
        "start_sent_at",
        "start_version",
        "wants",
    )

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.offers_version = -1
        self.patterns: dict[str, int] = {}  # with the version of the offers that had each first
        self.confirmed = 0  # all filters of this version are live at the XPUB
        self.start: list[list[Any]] | None = None  # what the last marker found, until the subscriber has it
        self.start_version = 0  # of the marker that the last one answers
        self.start_sent_at: float | None = None
        self.positions: dict[str, int] = {}  # next expected by topic, 0 where nothing is said
        self.behind: dict[str, int] = {}  # topics that it may miss the end of, and where that is
        self.wants: dict[str, tuple[int, int]] = {}
        self.paused = False  # suspect: sending waits for others only

    @property
    def start_again_at(self) -> float:
        """When its start is to be repeated, unless it has answered."""
        assert self.start is not None and self.start_sent_at is not None
        return self.start_sent_at + START_AGAIN_S + START_PART_S * (len(self.start) // MAX_ENTRIES)


class Publisher:
    """The publishing side of one node incarnation, for all its topics (G6)."""

    def __init__(self) -> None:
        self.followers: dict[str, Follower] = {}
        self.unblocked: list[str] = []  # topics that sending need not wait for any more; who reads them empties it
        self.piece_bytes = frames.PIECE_BYTES  # the same at every node; the simulator has smaller ones
        self.published = 0
        self.repaired = 0  # messages sent again
        self.forgotten = 0  # requests that came, at least in part, too late
        self.logs: dict[str, TopicLog] = {}
        self.staged: list[TopicLog] = []
        self._declared: dict[str, tuple[TopicOptions, int]] = {}
        self._alike: dict[TopicOptions, dict[str, None]] = {}  # what is declared, by its options
        self._offers: dict[str, dict[str, Any]] = {}
        self._options = PatternIndex[TopicOptions]()
        self._index = PatternIndex[Follower]()
        self._markers: dict[str, list[int]] = {}
        self.owed: dict[str, Follower] = {}  # whoever has a start or wants, and some who don't any more
        self._touched: dict[str, None] = {}  # topics published since the last heartbeat
        self._marks: dict[str, int] = {}  # those of the interval before, and where they stood at its end
        self._windowed: dict[str, TopicLog] = {}
        self._aging: dict[str, TopicLog] = {}
        # Of topics without a history; those that sending waits for may keep more, at nobody else's expense.
        self._repairs = {blocks: RepairPool(REPAIR_BYTES_IN_ALL) for blocks in (False, True)}

    # -- publishing ------------------------------------------------------------------------------------------

    def declare(self, pattern: str, options: TopicOptions) -> None:
        """Says how a pattern's topics are kept; patterns that share topics need the same options (``NameClash``)."""
        known = self._find_clash(pattern, options)
        if known is not None:
            raise NameClash(
                f"{pattern!r} shares topics with {known!r}, which is published with other options: "
                f"give both the same, or choose topics that differ"
            )
        _, count = self._declared.get(pattern, (options, 0))
        self._declared[pattern] = (options, count + 1)
        if count:
            return
        self._options.add(pattern, options)
        self._alike.setdefault(options, {})[pattern] = None
        self._offers[pattern] = options.offer()
        for log in self.logs.values() if is_pattern(pattern) else self._logs_of((pattern,)):
            if matches(pattern, log.topic):
                self._adopt(log, options)

    def _find_clash(self, pattern: str, options: TopicOptions) -> str | None:
        """What shares topics with a pattern and is kept in another way. A single topic costs no look at the others."""
        if not is_pattern(pattern) and all(others == options for others in self._options.find(pattern)):
            return None
        differing = (known for others, alike in self._alike.items() if others != options for known in alike)
        return next((known for known in differing if overlaps(known, pattern)), None)

    def withdraw(self, pattern: str) -> None:
        """Takes one ``declare`` back. Topics keep their numbers and what is held of them."""
        options, count = self._declared[pattern]
        if count > 1:
            self._declared[pattern] = (options, count - 1)
            return
        del self._declared[pattern], self._offers[pattern], self._alike[options][pattern]
        if not self._alike[options]:
            del self._alike[options]
        self._options.remove(pattern, options)

    def offers(self) -> Mapping[str, dict[str, Any]]:
        """What to offer as ``pub``; with the ``window`` subscribers know how often to say what they got."""
        return self._offers

    def publish(self, topic: str, body: bytes, headers: dict[str, Any] | None = None) -> int:
        """Stages a message and returns its number. The caller has checked the topic and looked at ``blocked``."""
        headers_size = frames.measure_details(None, headers) if headers else 0
        log = self.logs.get(topic) or self._open(topic)
        if not log.staged:
            self.staged.append(log)
        return log.stage(body, headers, headers_size)

    def publish_many(self, topic: str, bodies: list[bytes]) -> int:
        """Stages messages without headers and returns the number of the first."""
        log = self.logs.get(topic) or self._open(topic)
        if not log.staged and bodies:
            self.staged.append(log)
        log.staged += bodies
        if log.options.window:
            log.staged_bytes += sum(map(len, bodies))
        return log.next_seq + len(log.staged) - len(bodies)

    def collect(self, now: float) -> list[Broadcast]:
        """What was staged since the last time, numbered and kept, to leave through the XPUB."""
        staged, self.staged = self.staged, []
        broadcasts: list[Broadcast] = []
        for log in staged:
            cost = log.cost
            before = log.next_seq
            for entry in log.absorb(now):
                broadcasts.append(Broadcast(log.topic, entry.first_seq, entry.bodies, entry.headers))
            self.published += log.next_seq - before
            self._touched[log.topic] = None
            if not log.options.history:
                self._repairs[bool(log.options.window)].grow(log, log.cost - cost)
        return broadcasts

    def require_place(self, topic: str) -> None:
        """Raises ``ConfigurationError`` for one topic too many."""
        if len(self.logs) >= MAX_TOPICS and topic not in self.logs:
            raise ConfigurationError(
                f"{MAX_TOPICS} topics are published here already, {topic!r} is one too many: "
                "put what varies without end into headers or the body"
            )

    def _open(self, topic: str) -> TopicLog:
        self.require_place(topic)
        found = self._options.match(topic)
        log = self.logs[topic] = TopicLog(topic, DEFAULT_OPTIONS)
        self._adopt(log, found[0] if found else DEFAULT_OPTIONS)
        return log

    def _adopt(self, log: TopicLog, options: TopicOptions) -> None:
        for pool in self._repairs.values():
            pool.remove(log)
        log.options = options
        if log.entries and not options.history:
            self._repairs[bool(options.window)].grow(log, log.cost)
        _put(self._windowed, log, bool(options.window))
        _put(self._aging, log, options.history_s is not None)
        if not options.retain:
            log.retained = None
        self._set_limit(log)

    def delete_retained(self, topic: str) -> bool:
        """Late joiners get no last value of this topic until the next is published; says whether there was one."""
        log = self.logs.get(topic)
        return log is not None and log.delete_retained()

    # -- subscribers -----------------------------------------------------------------------------------------

    def on_offers(self, peer: str, version: int, offered: Mapping[str, Mapping[str, Any]], now: float) -> None:
        """Takes what a peer subscribes to, complete; an older version is passed over (G11: ``ProtocolError``)."""
        follower = self.followers.get(peer)
        if version <= (follower.offers_version if follower is not None else -1):
            return
        wanted = _read_subscriptions(offered, version, follower.patterns if follower is not None else {})
        if follower is None:
            if not wanted:
                return
            follower = self.followers[peer] = Follower(peer)
        follower.offers_version = version
        new = [pattern for pattern in wanted if pattern not in follower.patterns]
        known = {log.topic for log in self._followed(follower)} if new else set()
        for pattern in follower.patterns.keys() - wanted.keys():
            self._index.remove(pattern, follower)
        for pattern in new:
            self._index.add(pattern, follower)
        follower.patterns = wanted
        for topic in [topic for topic in follower.positions if not self._follows(follower, topic)]:
            del follower.positions[topic]
        for log in self._followed(follower) if new else ():
            if log.topic not in known:  # else it may miss all of a topic that began since
                follower.positions.setdefault(log.topic, log.next_seq)  # until it says more
        self._confirm(follower, again=False)
        self._set_limits()

    def on_filter(self, text: bytes, subscribed: bool, now: float) -> None:
        """A filter appeared at the XPUB, or went; markers say that all filters before them are live."""
        parsed = parse_marker(text)
        if parsed is None:
            return
        peer, version = parsed
        versions = self._markers.get(peer)
        if versions is None:
            if not subscribed or len(self._markers) >= MAX_MARKED:
                return
            versions = self._markers[peer] = []
        if version in versions:
            versions.remove(version)
        if subscribed:
            versions.append(version)
            versions.sort()
            del versions[:-MAX_MARKERS]
        follower = self.followers.get(peer)
        if not versions:
            del self._markers[peer]
        if follower is not None:
            follower.confirmed = min(follower.confirmed, versions[-1] if versions else 0)
            self._confirm(follower, again=subscribed)
            self._set_limits()

    def _confirm(self, follower: Follower, again: bool) -> None:
        """From here on it misses nothing unnoticed: its filters are live, and it is told where each topic stands."""
        versions = self._markers.get(follower.peer)
        if not versions or versions[-1] > follower.offers_version:
            return
        if versions[-1] > follower.confirmed or again:
            follower.confirmed = versions[-1]
            if follower.start is None or follower.start_version != follower.confirmed:
                self._take_stock(follower)

    def _take_stock(self, follower: Follower) -> None:
        follower.start = []
        follower.start_version = follower.confirmed
        follower.start_sent_at = None
        self.owed[follower.peer] = follower
        for log in self._followed(follower):
            if log.next_seq:
                follower.start.append([log.topic, log.next_seq, 0, False])
                follower.positions.setdefault(log.topic, log.next_seq)

    def _followed(self, follower: Follower) -> Iterator[TopicLog]:
        if any(map(is_pattern, follower.patterns)):
            return (log for log in self.logs.values() if follower in self._followers_of(log))
        return self._logs_of(follower.patterns)

    def _followers_of(self, log: TopicLog) -> tuple[Follower, ...]:
        """Remembered with each topic, so that the cost of one does not depend on how many there are."""
        if log.followers_of != self._index.generation:
            log.followers_of = self._index.generation
            log.followers = self._index.find(log.topic)
        return log.followers

    def _follows(self, follower: Follower, topic: str) -> bool:
        return follower in self._followers_of(self.logs[topic])

    def _logs_of(self, topics: Iterable[str]) -> Iterator[TopicLog]:
        return (self.logs[topic] for topic in topics if topic in self.logs)

    def on_down(self, peer: str) -> None:
        """A peer is gone. Its marker stays known as long as its filters do: its SUB may have survived."""
        follower = self.followers.pop(peer, None)
        self.owed.pop(peer, None)
        if follower is not None:
            for pattern in follower.patterns:
                self._index.remove(pattern, follower)
            self._set_limits()

    def pause(self, peer: str, paused: bool) -> None:
        """A suspect does not hold the publisher up; what it misses meanwhile is repaired or a ``Gap``."""
        follower = self.followers.get(peer)
        if follower is not None and follower.paused != paused:
            follower.paused = paused
            self._set_limits()

    def confirmed(self, topic: str) -> list[str]:
        """The peers that get whatever is published to this topic from now on."""
        return [
            follower.peer
            for follower in self._index.match(topic)
            if any(
                version <= follower.confirmed and matches(pattern, topic)
                for pattern, version in follower.patterns.items()
            )
        ]

    # -- positions -------------------------------------------------------------------------------------------

    def on_lag(self, peer: str, lag: frames.Lag) -> None:
        """Takes what a subscriber got so far. Raises ``ProtocolError`` if that was never published (G11)."""
        follower = self.followers.get(peer)
        for topic, position in lag.topics:
            log = self.logs.get(topic)
            if log is None or position > log.next_seq:
                raise ProtocolError("a LAG beyond what was published")
            if follower is None or follower not in self._followers_of(log):
                continue
            follower.positions[topic] = position
            if position < log.next_seq and topic not in self._touched and topic not in self._marks:
                follower.behind[topic] = log.next_seq  # it was away when others were told
            if log.options.window:
                self._set_limit(log)
        if follower is None or not follower.start_version:
            return
        if lag.version >= follower.start_version:
            follower.start = None
        elif follower.start is None and follower.confirmed:  # it lost what it knew
            self._take_stock(follower)

    def room(self, topic: str) -> tuple[int, int]:
        """How many messages, and bytes, may follow before ``blocked``; the last message may go beyond the bytes."""
        log = self.logs.get(topic)
        return log.room if log is not None else (frames.MAX_SEQ, frames.MAX_SEQ)

    def count_fitting(self, topic: str, bodies: list[bytes]) -> int:
        """How many of these may follow, of which the last may go beyond the bytes."""
        return (self.logs.get(topic) or self._open(topic)).count_fitting(bodies)

    def blocked(self, topic: str) -> bool:
        """Whether sending has to wait for the slowest subscriber; the end of it is told by ``unblocked``."""
        log = self.logs.get(topic)
        return log is not None and log.blocked

    def lags(self, peer: str) -> dict[str, int]:
        """By topic, how many messages a subscriber is behind, as far as it has said; only topics with any."""
        follower = self.followers.get(peer)
        if follower is None or not follower.confirmed:
            return {}
        lags = ((log.topic, log.next_seq - follower.positions.get(log.topic, 0)) for log in self._followed(follower))
        return {topic: behind for topic, behind in lags if behind}

    def awaits(self, peer: str) -> bool:
        """Whether a subscriber has yet to say that it got everything; or where it stands, as after a break."""
        follower = self.followers.get(peer)
        if follower is None:
            return False
        if not follower.confirmed or follower.start is not None:
            return any(log.next_seq for log in self._followed(follower))
        return bool(self.lags(peer))

    def _set_limits(self) -> None:
        for log in self._windowed.values():
            self._set_limit(log)

    def _set_limit(self, log: TopicLog) -> None:
        was_blocked = log.blocked
        log.limit(self._slowest(log))
        if was_blocked and not log.blocked:
            self.unblocked.append(log.topic)

    def _slowest(self, log: TopicLog) -> int | None:
        """The number that the slowest subscriber of a topic with a window expects next; None if there is nobody."""
        if not log.options.window:
            return None
        waited_for = (each for each in self._followers_of(log) if each.confirmed and not each.paused)
        return min((each.positions.get(log.topic, 0) for each in waited_for), default=None)

    # -- answers ---------------------------------------------------------------------------------------------

    def on_want(self, peer: str, want: frames.Want) -> None:
        """A subscriber misses messages; a newer request for a topic replaces the last (G11: ``ProtocolError``)."""
        log = self.logs.get(want.topic)
        if log is None or want.stop > log.next_seq:
            raise ProtocolError("a WANT beyond what was published")
        follower = self.followers.get(peer)
        if follower is not None and follower in self._followers_of(log):
            follower.wants[want.topic] = (want.start, want.stop)
            self.owed[peer] = follower

    def heartbeat(self, now: float) -> list[Answer]:
        """Tells who may miss the end of a topic where it stood a heartbeat ago: what is on its way is not lost."""
        for log in self._aging.values():
            log.trim(now)
        for topic, mark in self._marks.items():
            for follower in self._followers_of(self.logs[topic]):
                if follower.positions.get(topic, 0) < mark:
                    follower.behind[topic] = mark
        self._marks = {topic: self.logs[topic].next_seq for topic in self._touched}
        self._touched = {}
        answers: list[Answer] = []
        for follower in self.followers.values():
            if follower.confirmed and follower.behind:
                follower.behind = {
                    topic: mark
                    for topic, mark in follower.behind.items()
                    if follower.positions.get(topic, 0) < mark and self._follows(follower, topic)
                }
                stated: list[list[Any]] = [
                    [topic, mark] for topic, mark in islice(follower.behind.items(), MAX_BEACONS)
                ]
                if len(stated) < len(follower.behind):
                    for entry in stated:  # the others' turn is next
                        follower.behind[entry[0]] = follower.behind.pop(entry[0])
                answers += [Answer(follower.peer, frames.Beacon(part), []) for part in _parts(stated, MAX_ENTRIES)]
        return answers

    def answers(self, now: float) -> list[Answer]:
        """What is due to single subscribers: starts, and what they asked for, up to ``ANSWER_BYTES`` for each."""
        answers: list[Answer] = []
        for follower in list(self.owed.values()):
            if follower.start is not None and (follower.start_sent_at is None or now >= follower.start_again_at):
                follower.start_sent_at = now
                answers += self._starts(follower, now)
            if follower.wants:
                answers += self._repair(follower)
            if follower.start is None and not follower.wants:
                del self.owed[follower.peer]
        return answers

    def _starts(self, follower: Follower, now: float) -> Iterator[Answer]:
        assert follower.start is not None
        for entry in follower.start:
            # Where it starts live is settled; what of the past it can have is what there is now.
            log = self.logs[entry[0]]
            entry[2] = min(entry[1], log.history_from(now))
            entry[3] = log.retained is not None and log.retained[0] == entry[1] - 1
        parts = list(_parts(follower.start, MAX_ENTRIES)) or [[]]
        for number, part in enumerate(parts, 1):
            yield Answer(follower.peer, frames.Start(follower.start_version, part, number == len(parts)), [])

    def _repair(self, follower: Follower) -> list[Answer]:
        answers: list[Answer] = []
        room = ANSWER_BYTES
        while follower.wants and room > 0:
            topic = next(iter(follower.wants))
            start, stop = follower.wants.pop(topic)
            log = self.logs[topic]
            up_to = log.forgotten_up_to(start, stop)
            if up_to > start:
                self.forgotten += 1  # said as far as it is so, however little was asked for: one gap tells all
                answers.append(Answer(follower.peer, frames.Forgotten(topic, up_to, True), []))
            for entry in log.read(up_to, stop):
                total = len(entry.bodies)
                past = frames.Past(topic, entry.first_seq, total, entry.headers, True, b"")
                answers.append(Answer(follower.peer, past, entry.bodies))
                self.repaired += total
                room -= entry.size
                if room <= 0:
                    break
            peer, frame, bodies = answers[-1]
            assert isinstance(frame, (frames.Forgotten, frames.Past))
            answers[-1] = Answer(peer, frame._replace(more=False), bodies)
        return answers

    def wake_at(self, now: float) -> float | None:
        """When ``answers`` has something again; None without anything to wait for."""
        due: float | None = None
        for follower in self.owed.values():
            if follower.wants or (follower.start is not None and follower.start_sent_at is None):
                return now
            if follower.start is not None and follower.start_sent_at is not None:
                due = follower.start_again_at if due is None else min(due, follower.start_again_at)
        return due

    # -- looking ---------------------------------------------------------------------------------------------

    def topics(self) -> dict[str, int]:
        """Every topic that was published here, with the number of its messages."""
        return {topic: log.next_seq for topic, log in self.logs.items()}

    def check(self) -> None:
        """The machine's own invariants, for the simulator."""
        for log in self.logs.values():
            log.check()
        for pool in self._repairs.values():
            pool.check()
        for follower in self.followers.values():
            for topic, position in follower.positions.items():
                assert position <= self.logs[topic].next_seq, f"{follower.peer} is ahead of {topic}"
            assert follower.confirmed <= follower.offers_version
            owed = follower.start is not None or bool(follower.wants)
            assert not owed or self.owed.get(follower.peer) is follower, f"{follower.peer} waits for nothing"
        assert self.owed.keys() <= self.followers.keys()
        for log in self._windowed.values():
            slowest = self._slowest(log)
            limit = frames.MAX_SEQ if slowest is None else slowest + log.options.window
            assert limit == log.behind_limit, f"{log.topic} waits at {log.behind_limit} instead of {limit}"


def _read_subscriptions(
    offered: Mapping[str, Mapping[str, Any]], version: int, known: Mapping[str, int]
) -> dict[str, int]:
    """Patterns with the version of the offers that had each first: whatever marker came since holds for it."""
    if len(offered) > MAX_PATTERNS:
        raise ProtocolError(f"{len(offered)} subscriptions; at most {MAX_PATTERNS}")
    wanted: dict[str, int] = {}
    for pattern, details in offered.items():
        fault = None if pattern in known else find_fault(pattern, pattern=True)
        if fault is not None:
            raise ProtocolError(f"a subscription that is no pattern: {fault}")
        since = details.get("since")
        if type(since) is not int or not 0 < since <= version:
            raise ProtocolError("a subscription that does not say since which version of the offers it is there")
        wanted[pattern] = since
    return wanted


def make_marker(node_id: str, incarnation: int, version: int) -> bytes:
    """The filter that a subscriber sets behind those of a version of its offers."""
    return MARKER + f"{node_id}.{incarnation}.{version}".encode()


def parse_marker(text: bytes) -> tuple[str, int] | None:
    """The peer and version that a marker names; None for any other filter, and for what only looks like one."""
    if text[:1] != MARKER or len(text) > 120:
        return None
    try:
        node_id, incarnation, version = text[1:].decode("ascii").split(".")
    except ValueError:
        return None
    if not (node_id and incarnation.isdecimal() and version.isdecimal() and len(version) < 19):
        return None
    return f"{node_id}.{incarnation}", int(version)


def _parts(entries: list[list[Any]], most: int) -> Iterator[list[list[Any]]]:
    for start in range(0, len(entries), most):
        yield entries[start : start + most]


def _put(logs: dict[str, TopicLog], log: TopicLog, belongs: bool) -> None:
    if belongs:
        logs[log.topic] = log
    else:
        logs.pop(log.topic, None)
