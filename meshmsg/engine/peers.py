"""Who is there: links, introductions, and three signals of life kept apart.

* A link that breaks is a process that may have crashed: dial again at once; refused means gone.
* A link that stands says that the *process* lives, because libzmq's own heartbeats hold it up.
* Frames say that it makes *progress*; without any it is suspect, gets no new work, and is given up much later.

Discovery only says who might exist. A node is a peer once both directions are proven: it answered the token of our
link, on a link of its own. A link is one connection and never reconnects (libzmq#4503, #2892): a new one has a new
number and a new routing id.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from meshmsg.engine.effects import Dial
from meshmsg.errors import ConfigurationError
from meshmsg.message import Peer
from meshmsg.options import LivenessOptions
from meshmsg.wire.codec import make_packer
from meshmsg.wire.frames import MAX_HEADER_BYTES, Hello

LinkNews = Literal["up", "refused", "failed", "down"]

LEFT = "left"  # the reason of a node that says goodbye
HEARD = "heard"  # the reason of the one that answers it

MAX_PEERS = 2000
SELF_LINK, SELF_ROUTE = 0, b"\0self"  # a node is a peer of its own: its frames never leave the process

REDIAL_S = 0.25  # first pause before dialling a known but absent node again; doubles
# The same after a connection broke. A process that is killed may lose its connections a moment before its port: then
# the first dial fails without a clear refusal, and only the next one tells that it crashed.
REDIAL_BROKEN_S = 0.01
REDIAL_MAX_S = 5.0
HELLO_TIMEOUT_S = 3.0  # a link that stands but brings no answer is hung up and tried again
RECONNECT_GRACE_S = 0.4  # what a peer with a broken link gets to answer a new one, at least
UNPROVEN_S = 3.0  # what a peer that no link of ours reaches yet gets beyond ``gone_after``
FORGET_AFTER_S = 300.0  # how long a node is dialled that nobody announces any more

# All offers travel in one header. What they leave of it is for the rest of a HELLO, and for offers of which no process
# has many: its broadcast, and raw sockets, as ZeroMQ opens about a thousand.
MAX_OFFERS_BYTES = MAX_HEADER_BYTES * 3 // 4
FEW = ("broadcast", "raw")
OFFER_BYTES = 16  # what a name and its kind have around them, more or less


@dataclass(slots=True)
class Identity:
    """Who this node is. A restart has a new incarnation, a higher number than the one before."""

    node_id: str
    incarnation: int
    name: str
    mesh: str
    endpoints: tuple[str, ...] = ()
    offers: dict[str, Any] = field(default_factory=dict)
    offers_version: int = 0
    max_body_bytes: int | None = None  # largest encoded body that it takes; None if that is not known


class OfferRoom:
    """What this node's offers take of the header that peers read: counted while somebody can still be told."""

    def __init__(self) -> None:
        self.taken = 0
        self._sizes: dict[tuple[str, str], int] = {}  # encoded, by kind and name
        self._pack = make_packer()

    def take(self, kind: str, name: str, details: dict[str, Any]) -> bool:
        """Room for an offer, kept until it is given back; says whether it had none before.

        Raises ``ConfigurationError`` if there is too little, and takes nothing then.
        """
        before = self._sizes.get((kind, name), 0)
        size = max(before, len(self._pack(name)) + len(self._pack(details)) + OFFER_BYTES)
        if self.taken + size - before > MAX_OFFERS_BYTES and size > before and kind not in FEW:
            raise ConfigurationError(self._describe(kind, name))
        self._sizes[kind, name] = size
        self.taken += size - before
        return not before

    def give_back(self, kind: str, name: str) -> None:
        """The offer is withdrawn, or was never made."""
        self.taken -= self._sizes.pop((kind, name), 0)

    def _describe(self, kind: str, name: str) -> str:
        counts = Counter(each for each, _ in self._sizes).most_common(5)
        return (
            f"{kind} {name[:60]!r} is too much: this node has {len(self._sizes)} names open "
            f"({', '.join(f'{count} {each}' for each, count in counts)}), which take {self.taken} bytes of the "
            f"{MAX_OFFERS_BYTES} that peers can be told: close some, use fewer names, and put what varies into the "
            "messages"
        )


@dataclass(slots=True)
class PeerState:
    """One other node. ``link`` is ours to it, ``routes`` are the routing ids of its links to us."""

    node_id: str
    incarnation: int
    name: str
    endpoints: tuple[str, ...]
    offers: dict[str, Any]
    offers_version: int
    heard_at: float
    state: Literal["new", "alive", "suspect"] = "new"
    link: int | None = None
    routes: set[bytes] = field(default_factory=set)
    answered: int = -1  # the newest token of its links that we answered
    answered_over: list[int] = field(default_factory=list)  # our links that carried the answer
    broken_at: float | None = None  # since when our link to it is down
    process_seen_at: float = 0.0
    max_body_bytes: int | None = None  # what it takes; None if it did not say
    key: str = field(init=False)  # names this life of the node; lanes and channels belong to it

    def __post_init__(self) -> None:
        self.key = f"{self.node_id}.{self.incarnation}"


@dataclass(slots=True)
class Prospect:
    """A node that might exist, and the links that are dialled to find out, one an address side by side."""

    node_id: str | None
    endpoints: tuple[str, ...]
    announced: bool
    since: float
    links: dict[int, str] = field(default_factory=dict)
    dialled_at: float = 0.0
    redial_at: float = 0.0
    pause_s: float = REDIAL_S
    reached: str | None = None  # node id of the peer found there


class Peers:
    """All other nodes. Results collect in ``dial``, ``hang_up``, ``hello``, ``ups``, ``downs``, ``notes``."""

    def __init__(self, identity: Identity, liveness: LivenessOptions, generator: random.Random) -> None:
        self.identity = identity
        self.liveness = liveness
        self._parted: dict[str, str] = {}  # names of the last that are gone, by id
        self.by_id: dict[str, PeerState] = {}
        self.by_route: dict[bytes, PeerState] = {}
        self.by_key: dict[str, PeerState] = {}
        self.prospects: dict[str, Prospect] = {}
        self.dial: list[Dial] = []
        self.hang_up: list[int] = []
        self.hello: list[tuple[int, Hello]] = []
        self.ups: list[tuple[PeerState, bool]] = []  # (peer, whether it was unknown until now)
        self.downs: list[tuple[PeerState, str]] = []
        self.notes: list[tuple[str, str, str, str]] = []  # (kind, peer name, peer id, text)
        self._generator = generator
        self._next_link = 1
        self._by_link: dict[int, Prospect] = {}
        myself = PeerState(
            identity.node_id, identity.incarnation, identity.name, (), {}, 0, math.inf, "alive", SELF_LINK
        )
        self.by_id[identity.node_id] = self.by_key[myself.key] = self.by_route[SELF_ROUTE] = myself

    # -- discovery -------------------------------------------------------------------------------------------

    def discovered(self, node_id: str | None, endpoints: tuple[str, ...], now: float) -> None:
        """Somebody might be at these endpoints."""
        if node_id == self.identity.node_id or not endpoints:
            return
        key = node_id or endpoints[0]
        prospect = self.prospects.get(key)
        if prospect is None:
            if len(self.prospects) >= MAX_PEERS:
                self.notes.append(("peers.full", "", key, f"more than {MAX_PEERS} nodes announced; ignored"))
                return
            prospect = self.prospects[key] = Prospect(node_id, endpoints, True, now)
        moved = prospect.endpoints != endpoints
        prospect.announced, prospect.endpoints, prospect.since = True, endpoints, now
        if (node_id not in self.by_id and not prospect.links) or (moved and prospect.reached is None):
            self._dial(prospect, now)

    def withdrawn(self, node_id: str) -> None:
        """Nobody announces it any more. A living peer stays; a link decides, not an announcement."""
        prospect = self.prospects.get(node_id)
        if prospect is not None:
            prospect.announced = False

    def _dial(self, prospect: Prospect, now: float) -> None:
        self._drop_links(prospect)
        prospect.dialled_at = now
        peer = self.by_id.get(prospect.reached or prospect.node_id or "")
        told = peer.endpoints if peer is not None else ()  # it said so itself; an announcement may be out of date
        for endpoint in dict.fromkeys((*prospect.endpoints, *told)):
            link = self._next_link
            self._next_link += 1
            prospect.links[link] = endpoint
            self._by_link[link] = prospect
            who = self.identity
            self.dial.append(Dial(link, endpoint, f"{who.node_id}.{who.incarnation}.{link}".encode()))
            self._introduce(link, prospect)
        if not prospect.links:
            self._retry_later(prospect, now)  # it named no address; it may yet

    def _introduce(self, link: int, prospect: Prospect) -> None:
        who = self.identity
        expects = prospect.reached or prospect.node_id
        peer = self.by_id.get(expects or "")
        # A link that is new may lead to another life of the node, whose links have the same numbers.
        answers = peer.answered if peer is not None and link in peer.answered_over else None
        self.hello.append(
            (
                link,
                Hello(
                    who.node_id,
                    who.incarnation,
                    who.name,
                    who.mesh,
                    who.endpoints,
                    who.offers,
                    who.offers_version,
                    link,
                    expects,
                    answers,
                    max_body_bytes=who.max_body_bytes,
                ),
            )
        )

    def introduce_again(self, links: Iterable[int]) -> None:
        """Says HELLO on links that have said it: it answers something now, or there was no room for it then."""
        for link in links:
            prospect = self._by_link.get(link)
            if prospect is not None:
                self._introduce(link, prospect)

    def _drop_links(self, prospect: Prospect, keep: int | None = None) -> None:
        for link in [link for link in prospect.links if link != keep]:
            del prospect.links[link], self._by_link[link]
            self.hang_up.append(link)

    # -- links -----------------------------------------------------------------------------------------------

    def on_link(self, link: int, news: LinkNews, now: float) -> None:
        """A link came up, was refused, could not be made, or broke."""
        prospect = self._by_link.get(link)
        if prospect is None:
            return
        peer = self.by_id.get(prospect.reached or prospect.node_id or "")
        if news == "up":
            if peer is not None:
                peer.process_seen_at = now
            return
        del prospect.links[link], self._by_link[link]
        self.hang_up.append(link)
        if peer is not None and peer.link == link:
            peer.link = None
            peer.broken_at = now
            self._suspect(peer, "its connection broke")
            prospect.pause_s = REDIAL_BROKEN_S
            self._dial(prospect, now)
        elif not prospect.links:
            # If nobody listens where a peer was until now, its process is gone. What failed may be the way to it.
            if peer is not None and peer.link is None and news == "refused" and peer.broken_at is not None:
                self._gone(peer, "crashed", now)
            self._retry_later(prospect, now)

    def _retry_later(self, prospect: Prospect, now: float) -> None:
        prospect.redial_at = now + prospect.pause_s * (0.75 + 0.5 * self._generator.random())
        prospect.pause_s = min(REDIAL_MAX_S, prospect.pause_s * 2)

    # -- frames ----------------------------------------------------------------------------------------------

    def on_hello(self, route: bytes, hello: Hello, now: float) -> None:
        """Somebody introduces itself, or answers our introduction."""
        who = self.identity
        if hello.mesh != who.mesh:
            self.notes.append(("mesh.other", hello.name, hello.node_id, f"is of mesh {hello.mesh!r}, not {who.mesh!r}"))
            return
        if hello.node_id == who.node_id:
            self._met_myself(hello)
            return
        if hello.expects is not None and hello.expects != who.node_id:
            self.notes.append(
                ("node.misdirected", hello.name, hello.node_id, "dialled this address for another node, now gone")
            )
            return
        peer = self.by_id.get(hello.node_id)
        if peer is not None and hello.incarnation < peer.incarnation:
            return  # a late word of a former life
        if peer is not None and hello.incarnation > peer.incarnation:
            self._gone(peer, "restarted", now)
            peer = None
        if peer is None:
            peer = self._meet(hello, now)
            if peer is None:
                return
        peer.heard_at = now
        peer.endpoints = hello.endpoints
        peer.max_body_bytes = hello.max_body_bytes
        peer.routes.add(route)
        self.by_route[route] = peer
        if hello.offers_version >= peer.offers_version:
            peer.offers, peer.offers_version = hello.offers, hello.offers_version
        if hello.answers is not None:
            self._on_answer(peer, hello.answers)
        prospect = self._prospect_of(peer, now)
        if peer.link is None and not prospect.links:
            self._dial(prospect, now)
        if hello.token > peer.answered:
            peer.answered, peer.answered_over = hello.token, self.links_to(peer)
            self.introduce_again(peer.answered_over)

    def _met_myself(self, hello: Hello) -> None:
        prospect = self._by_link.get(hello.token)
        if hello.incarnation != self.identity.incarnation:
            text = f"another process uses this node's id {hello.node_id}; give each its own store"
            self.notes.append(("node.id_clash", hello.name, hello.node_id, text))
        elif prospect is not None and not {prospect.node_id, prospect.reached} - {None, hello.node_id}:
            # A seed list that contains this node itself.
            self._drop_links(prospect)
            self._forget(prospect)

    def _meet(self, hello: Hello, now: float) -> PeerState | None:
        if len(self.by_id) >= MAX_PEERS:
            self.notes.append(("peers.full", hello.name, hello.node_id, f"more than {MAX_PEERS} peers; ignored"))
            return None
        for other in self.by_id.values():
            if other.name == hello.name:
                text = f"two nodes are named {hello.name!r}; they are told apart by id"
                self.notes.append(("name.shared", hello.name, hello.node_id, text))
        peer = PeerState(
            hello.node_id, hello.incarnation, hello.name, hello.endpoints, hello.offers, hello.offers_version, now
        )
        self.by_id[hello.node_id] = self.by_key[peer.key] = peer
        return peer

    def _on_answer(self, peer: PeerState, token: int) -> None:
        """Our link ``token`` reached it: both directions are proven."""
        prospect = self._by_link.get(token)
        if prospect is None or peer.link == token:
            return
        if {prospect.node_id, prospect.reached} - {None, peer.node_id}:
            return  # a link to somebody else; whoever says so lies, or is mistaken
        if peer.link is not None:  # a second way to the same node: one is enough
            self._drop_links(prospect)
            prospect.reached = peer.node_id
            if prospect.node_id is None:
                self._adopt_seed(prospect, peer)
            return
        self._drop_links(prospect, keep=token)
        prospect.reached = peer.node_id
        prospect.pause_s = REDIAL_S
        peer.link = token
        peer.broken_at = None
        if token not in peer.answered_over:
            peer.answered = -1  # it went over a link that broke, and perhaps was lost: the HELLO at hand is answered
        self.ups.append((peer, peer.state == "new"))  # also after a broken link: the lanes compare notes
        peer.state = "alive"

    def _adopt_seed(self, prospect: Prospect, peer: PeerState) -> None:
        """A seed turned out to be a node that is known by its id already."""
        self.notes.append(("seed.known", peer.name, peer.node_id, f"seed {prospect.endpoints[0]} is {peer.name!r}"))

    def _prospect_of(self, peer: PeerState, now: float) -> Prospect:
        for prospect in self.prospects.values():
            if peer.node_id in (prospect.node_id, prospect.reached) and prospect.links:
                return prospect
        own = self.prospects.get(peer.node_id)
        if own is None:
            own = self.prospects[peer.node_id] = Prospect(peer.node_id, peer.endpoints, False, now)
        return own

    def find(self, key: str) -> PeerState | None:
        """The peer with a key, if that life of it goes on."""
        return self.by_key.get(key)

    def links_to(self, peer: PeerState) -> list[int]:
        """Our links to it: the proven one, or those that may become it."""
        if peer.link is not None:
            return [] if peer.link == SELF_LINK else [peer.link]
        return [
            link for link, prospect in self._by_link.items() if peer.node_id in (prospect.node_id, prospect.reached)
        ]

    def on_bye(self, peer: PeerState, reason: str, now: float) -> None:
        """It leaves, and says so."""
        self._gone(peer, reason or LEFT, now)

    def expel(self, peer: PeerState, why: str, now: float) -> None:
        """It broke the protocol: its links are not believed any more (G11). It may introduce itself anew."""
        self._gone(peer, why, now)

    # -- time ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Suspects the silent, gives up the gone, dials the absent."""
        limits = self.liveness
        for peer in list(self.by_id.values()):
            if peer.link is None and peer.broken_at is not None:
                sign = max(peer.heard_at, peer.process_seen_at)
                if now >= max(sign + limits.gone_after, peer.broken_at + RECONNECT_GRACE_S):
                    self._gone(peer, "silent", now)
                    continue
            # Compared as ``wake_at`` computes it: a rounding apart, the timer would ring again and again.
            if peer.state == "new" and now >= peer.heard_at + limits.gone_after + UNPROVEN_S:
                self._gone(peer, "silent", now)  # it came to introduce itself, and died: its lanes hold credit
            elif now >= peer.heard_at + limits.stall_after:
                self._gone(peer, "stalled", now)
            elif now >= peer.heard_at + limits.suspect_after:
                self._suspect(peer, f"silent for {now - peer.heard_at:.1f} s")
        for prospect in list(self.prospects.values()):
            if (prospect.reached or prospect.node_id) in self.by_id:
                prospect.since = now
                due = prospect.dialled_at + HELLO_TIMEOUT_S if prospect.links else prospect.redial_at
                if self._lacks_link(prospect) and now >= due:
                    self._dial(prospect, now)
            elif not prospect.announced and now - prospect.since > FORGET_AFTER_S:
                self._drop_links(prospect)
                self._forget(prospect)
            elif prospect.links and now >= prospect.dialled_at + HELLO_TIMEOUT_S:
                self._drop_links(prospect)
                self._retry_later(prospect, now)
            elif not prospect.links and now >= prospect.redial_at:
                self._dial(prospect, now)

    def forgive(self, seconds: float, now: float) -> None:
        """This node itself did nothing for a while; whoever was silent in that time gets as much more."""
        for peer in self.by_id.values():
            if peer.link == SELF_LINK:
                continue
            peer.heard_at = min(now, peer.heard_at + seconds)
            peer.process_seen_at = min(now, peer.process_seen_at + seconds)
            if peer.broken_at is not None:
                peer.broken_at = min(now, peer.broken_at + seconds)
        for prospect in self.prospects.values():
            prospect.dialled_at = min(now, prospect.dialled_at + seconds)

    def _lacks_link(self, prospect: Prospect) -> bool:
        peer = self.by_id.get(prospect.reached or prospect.node_id or "")
        return peer is not None and peer.link is None

    def wake_at(self) -> Iterator[float]:
        """When ``tick`` may have something to do."""
        limits = self.liveness
        for peer in self.by_id.values():
            if peer.link is None and peer.broken_at is not None:
                sign = max(peer.heard_at, peer.process_seen_at)
                yield max(sign + limits.gone_after, peer.broken_at + RECONNECT_GRACE_S)
            if peer.state == "new":
                yield peer.heard_at + limits.gone_after + UNPROVEN_S
            if peer.state == "alive":
                yield peer.heard_at + limits.suspect_after
            else:
                yield peer.heard_at + limits.stall_after
        for prospect in self.prospects.values():
            if prospect.links:
                if self._lacks_link(prospect) or (prospect.reached or prospect.node_id) not in self.by_id:
                    yield prospect.dialled_at + HELLO_TIMEOUT_S
            elif (prospect.reached or prospect.node_id) not in self.by_id or self._lacks_link(prospect):
                yield prospect.redial_at

    def on_heard(self, peer: PeerState, now: float) -> None:
        """A frame arrived: it makes progress."""
        if peer.link == SELF_LINK:
            return
        peer.heard_at = now
        if peer.state == "suspect" and peer.link is not None:
            peer.state = "alive"
            self.ups.append((peer, False))

    def _suspect(self, peer: PeerState, text: str) -> None:
        if peer.state == "alive":
            peer.state = "suspect"
            self.notes.append(("peer.suspect", peer.name, peer.node_id, text))

    def _gone(self, peer: PeerState, why: str, now: float) -> None:
        if peer.link == SELF_LINK:  # this node is there as long as it runs, whatever is wrong with a frame of its own
            return
        del self.by_id[peer.node_id], self.by_key[peer.key]
        self._parted[peer.node_id] = peer.name
        if len(self._parted) > MAX_PEERS:
            del self._parted[next(iter(self._parted))]
        for route in peer.routes:
            self.by_route.pop(route, None)
        for prospect in list(self.prospects.values()):
            if peer.node_id in (prospect.node_id, prospect.reached):
                self._drop_links(prospect)
                prospect.reached = None
                prospect.since = now
                prospect.redial_at = now + REDIAL_S
                prospect.pause_s = REDIAL_S
                if why == LEFT and prospect.node_id is not None:
                    self._forget(prospect)
        self.downs.append((peer, why))

    def _forget(self, prospect: Prospect) -> None:
        for key in [key for key, value in self.prospects.items() if value is prospect]:
            del self.prospects[key]

    # -- looking ---------------------------------------------------------------------------------------------

    def linked(self) -> Iterator[tuple[int, PeerState]]:
        """Peers that can be written to, with the link."""
        for peer in self.by_id.values():
            if peer.link is not None:
                yield peer.link, peer

    def describe_consumers(self, queue: str, *, reliable: bool = True) -> str:
        """In words, who consumes a queue that is pushed reliably or not, for errors about work that does not move."""
        others = [peer for peer in self.by_id.values() if peer.link != SELF_LINK]
        pulls = [
            (peer.name, peer.offers["pull"][queue].get("reliable", True) is not False)
            for peer in self.by_id.values()
            if queue in peer.offers.get("pull", {})
        ]
        pulling = [name for name, how in pulls if how is reliable]
        if pulls and not pulling:
            theirs, ours = ("with reliable=False", "is reliable") if reliable else ("reliably", "has reliable=False")
            verb = "pulls" if len(pulls) == 1 else "pull"
            names = ", ".join(repr(name) for name, _ in pulls[:5])
            return f"{names} {verb} it {theirs}, this push {ours}: both ends need the same"
        if pulling:
            told = f"{queue!r} is pulled by {', '.join(map(repr, pulling[:5]))}: slow, busy, or nacking"
            return told + self._describe_limits(queue)
        seen = [
            f"{peer.name} offers {', '.join(f'pull:{name}' for name in peer.offers.get('pull', {})) or 'no pull'}"
            for peer in others[:5]
        ]
        listed = f"{len(others)} peers seen: {'; '.join(seen)}" if seen else "no peers seen"
        return f"no node pulls {queue!r} ({listed}): start a consumer of this queue in mesh {self.identity.mesh!r}"

    def _describe_limits(self, queue: str) -> str:
        """Consumers that cannot take all that this node may send."""
        ours = self.identity.max_body_bytes
        if ours is None:
            return ""
        smaller = [
            f"{peer.name!r} takes {peer.max_body_bytes}"
            for peer in self.by_id.values()
            if queue in peer.offers.get("pull", {}) and peer.max_body_bytes is not None and peer.max_body_bytes < ours
        ]
        if not smaller:
            return ""
        return f"; bodies may be too large (here up to {ours} bytes, {', '.join(smaller[:5])}): same max_message_bytes="

    def living(self) -> list[PeerState]:
        """Nodes that are heard and can be written to, this one included."""
        return [peer for peer in self.by_id.values() if peer.state == "alive" and peer.link is not None]

    def offered(self, kind: str, name: str) -> list[dict[str, Any]]:
        """What living nodes, this one included, say about an offer."""
        return [peer.offers[kind][name] for peer in self.living() if name in peer.offers.get(kind, ())]

    def limit_of(self, peer: PeerState) -> int | None:
        """The largest body that a peer takes, if this node may send a larger one."""
        ours, theirs = self.identity.max_body_bytes, peer.max_body_bytes
        return theirs if theirs is not None and (ours is None or theirs < ours) else None

    def name_of(self, key: str) -> str:
        """A peer's name by its key, also if it is gone; its id if that was long ago."""
        node_id = key.partition(".")[0]
        peer = self.by_id.get(node_id)
        return peer.name if peer is not None else self._parted.get(node_id, node_id)

    def reached_at(self, peer: PeerState) -> str | None:
        """The endpoint where our link found a peer."""
        prospect = self._by_link.get(peer.link) if peer.link is not None else None
        return prospect.links.get(peer.link) if prospect is not None and peer.link is not None else None

    def listed(self, now: float) -> list[Peer]:
        """Everybody whose both directions are proven, for applications."""
        return [
            Peer(
                peer.node_id,
                peer.name,
                "alive" if peer.state == "alive" else "suspect",
                peer.endpoints,
                peer.offers,
                max(0.0, now - peer.heard_at),
            )
            for peer in self.by_id.values()
            if peer.state != "new" and peer.link != SELF_LINK
        ]

    def check(self) -> None:
        """Own invariants, for the simulator."""
        for prospect in self.prospects.values():
            for link in prospect.links:
                assert self._by_link.get(link) is prospect
        by_id, by_key = self.by_id, self.by_key
        assert len(by_key) == len(by_id), f"{by_key.keys()} are the keys of {by_id.keys()}"
        for route, peer in self.by_route.items():
            assert by_id.get(peer.node_id) is peer, f"route {route!r} of a peer that is gone"
        for peer in by_id.values():
            assert by_key.get(peer.key) is peer, f"{peer.name} cannot be found by its key"
            known = peer.link in self._by_link or peer.link in (None, SELF_LINK)
            assert known, f"{peer.name} has a link nobody made"
