"""The filters of a publisher's subscribers, counted, as they cost its memory; who sets too many is cut off (G11).

libzmq keeps every filter byte by byte in a tree and has no bound for it. Nor can it refuse one: with
``ZMQ_XPUB_MANUAL`` too it first stores the filter, in a second tree. What ends a filter is the end of its connection,
and libzmq tells over which descriptor a filter came.

An XPUB is bounded when it is set up by ``limit_filters`` and read by ``Filters.read``.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Collection
from typing import Any

import zmq

from meshmsg.transport.tuning import Socket

# A filter is a topic or the beginning of one (200 bytes), or a marker; the longest has a node's id (64) and a pattern.
MAX_FILTER_BYTES = 272
# The most that a stranger can have us read in one frame. Filters between a filter's limit and this one are told of;
# beyond it libzmq ends the connection without a word.
MAX_FRAME_BYTES = 2 * MAX_FILTER_BYTES
# libzmq stores filters, without giving control back, as long as there are more. With room for one frame on the way
# a flood has pauses, in which it can be stopped; with room for 100 one stranger held a loop for 40 s, and took 4 GB.
# The price is 30 us a filter. And what waits in the kernel is still read when its connection is cut off.
RECEIVE_HIGH_WATER, RECEIVE_BYTES = 1, 32 * 1024
# Measured: a byte of a filter that no other begins with takes 47 bytes there; here an entry takes up to 400.
BYTE_COST, FILTER_COST = 48, 400
# By this estimate, which ignores that filters begin alike: 20,000 filters of 25 bytes for one connection.
MAX_COST_EACH = 32 * 2**20
MAX_COST_IN_ALL = 64 * 2**20
# So much more may come before all are judged again, as that takes a while: filters outlive their connection a little.
MARGIN = 16 * 2**20
ENDING_S = 5.0  # so long at most libzmq takes to notice an end and to remove the filters
# Changes wait in libzmq until they are read, which a flood of them can fill, too. This many are no program's in so
# short a time.
FLOOD_CHANGES, FLOOD_S = 100_000, 10.0
# Connections of ZeroMQ before 4.0 have no number, so they are counted as one.
NUMBERLESS = -1
MAX_REFUSALS = 100  # texts that wait to be told
MAX_GUESS = 65_536  # descriptors, where the system has no list of those that are open


class Asker:
    """One connection, and the filters that came over it."""

    __slots__ = ("changes", "cost", "filters", "is_cut", "peer", "since")

    def __init__(self, peer: Any, now: float) -> None:
        self.peer = peer  # its address, as descriptors are used again
        self.filters: set[bytes] = set()
        self.cost = 0
        self.changes = 0
        self.since = now
        self.is_cut = False


class Filters:
    """All filters of one XPUB that is bound to these endpoints.

    Removals are told only when the last connection that had a filter is gone or done with it. So a connection may
    count for filters that it has no more and others have, until it comes to be judged.

    Attributes
    ----------
    refused:
        How many connections were ended.
    strays:
        How many frames were no subscriptions; they are dropped.
    cost:
        The estimate of what all filters take, in bytes.
    """

    __slots__ = ("cost", "refused", "strays", "_allowed", "_askers", "_live", "_ports", "_refusals")

    def __init__(self, endpoints: Collection[str]) -> None:
        self.refused = 0
        self.strays = 0
        self.cost = 0
        self._ports = frozenset(int(endpoint.rpartition(":")[2]) for endpoint in endpoints)
        self._allowed = MAX_COST_IN_ALL
        self._live: dict[bytes, bytes] = {}
        self._askers: dict[int, Asker] = {}
        self._refusals: list[str] = []

    def read(self, xpub: Socket, limit: int) -> tuple[list[tuple[bytes, bool]], bool]:
        """Up to ``limit`` filters with whether they were added, in order per subscriber; and whether that was all.

        Added is told for every subscriber, removed only when the last one that had the filter is gone.
        """
        changes: list[tuple[bytes, bool]] = []
        receive = xpub.recv
        has_ended = False
        complete = False
        for _ in range(limit):
            try:
                frame = receive(zmq.DONTWAIT, False)
            except zmq.Again:
                complete = True
                break
            change = frame.bytes
            # libzmq takes every frame that begins like this for a subscription, also inside a message.
            if change[:1] == b"\x01":
                if self.add(change[1:], _source_of(frame)):
                    changes.append((change[1:], True))
            elif change[:1] == b"\x00":
                descriptor = _source_of(frame)
                has_ended = has_ended or descriptor == NUMBERLESS
                self.remove(change[1:], descriptor)
                changes.append((change[1:], False))
            else:
                self.strays += 1
        if has_ended:
            self.sweep()
        return changes, complete

    def add(self, text: bytes, descriptor: int) -> bool:
        """Counts a filter that a connection set; false for one that is none, being too long."""
        asker = self._find(descriptor)
        cost = _cost_of(text)
        known = self._live.get(text)
        if known is None:
            known = self._live[text] = text
            self.cost += cost
        if known not in asker.filters:
            asker.filters.add(known)
            asker.cost += cost
        self._count(descriptor, asker)
        if len(text) > MAX_FILTER_BYTES:
            self._refuse(descriptor, asker, f"a filter of {len(text)} bytes (at most {MAX_FILTER_BYTES})")
            return False
        if asker.cost > MAX_COST_EACH and not asker.is_cut:
            self._judge(descriptor, asker)
        if self.cost > self._allowed:
            self._judge_all()
        return True

    def remove(self, text: bytes, descriptor: int) -> None:
        """Nobody has this filter any more; ``NUMBERLESS`` also when a connection ended with it."""
        cost = _cost_of(text)
        if self._live.pop(text, None) is not None:
            self.cost -= cost
            if self.cost <= MAX_COST_IN_ALL:
                self._allowed = MAX_COST_IN_ALL
        asker = self._askers.get(descriptor)
        if asker is not None:
            if text in asker.filters:
                asker.filters.remove(text)
                asker.cost -= cost
                self._count(descriptor, asker)

    def sweep(self) -> None:
        """Forgets connections that have ended."""
        now = time.monotonic()
        for descriptor, asker in list(self._askers.items()):
            if not (now - asker.since < ENDING_S if asker.is_cut else self._is_there(descriptor, asker)):
                del self._askers[descriptor]

    def take_refusals(self) -> list[str]:
        """Who was cut off since the last time, and why."""
        refusals, self._refusals = self._refusals, []
        return refusals

    # -- the rest --------------------------------------------------------------------------------------------

    def _find(self, descriptor: int) -> Asker:
        asker = self._askers.get(descriptor)
        if asker is None or (asker.is_cut and descriptor != NUMBERLESS):
            peer = self._peer_of(descriptor)
            if asker is None or (peer is not None and peer != asker.peer):
                asker = self._askers[descriptor] = Asker(peer, time.monotonic())
        return asker

    def _count(self, descriptor: int, asker: Asker) -> None:
        asker.changes += 1
        if asker.changes >= FLOOD_CHANGES:
            now = time.monotonic()
            if now - asker.since < FLOOD_S:
                self._refuse(descriptor, asker, f"{asker.changes} changes of its filters in {now - asker.since:.1f} s")
            asker.changes = 0
            asker.since = now

    def _judge(self, descriptor: int, asker: Asker) -> None:
        """It may be too much: if it still is by what is known for certain, the connection ends."""
        self._recount(asker)
        if asker.cost > MAX_COST_EACH:
            self._refuse(descriptor, asker, f"{len(asker.filters)} filters, about {asker.cost >> 20} MiB")

    def _judge_all(self) -> None:
        """All together have too many. Who has most of them goes, and the next, until what the others have may stay.

        Filters that none of them has are going already. Of one that several have, each has a share.
        """
        self.sweep()
        self._allowed = self.cost + MARGIN
        judged = {descriptor: asker for descriptor, asker in self._askers.items() if not asker.is_cut}
        owners = Counter[bytes]()
        for asker in judged.values():
            self._recount(asker)
            owners.update(asker.filters)
        staying = sum(map(_cost_of, owners))
        if staying <= MAX_COST_IN_ALL:
            return
        shares = {
            descriptor: sum(_cost_of(text) / owners[text] for text in asker.filters)
            for descriptor, asker in judged.items()
        }
        for descriptor in sorted(judged, key=lambda each: -shares[each]):
            asker = judged[descriptor]
            why = f"the most filters, {len(asker.filters)}, where all together take about {self.cost >> 20} MiB"
            self._refuse(descriptor, asker, why)
            owners.subtract(asker.filters)
            staying -= sum(_cost_of(text) for text in asker.filters if not owners[text])
            if staying <= MAX_COST_IN_ALL:
                return

    def _recount(self, asker: Asker) -> None:
        asker.filters &= self._live.keys()
        asker.cost = sum(map(_cost_of, asker.filters))

    def _refuse(self, descriptor: int, asker: Asker, why: str) -> bool:
        """Ends a connection. What is left of it still comes, and then the end of all its filters."""
        if asker.is_cut:
            return False
        if descriptor == NUMBERLESS:
            ended = self._cut_numberless()
            self._askers.pop(NUMBERLESS, None)
        else:
            ended = asker.is_cut = self._cut(descriptor, asker)
            asker.since = time.monotonic()
            if not ended:
                self._askers.pop(descriptor, None)  # it has ended already
        if ended:
            self.refused += 1
            where = f"a subscriber at {asker.peer[0]}" if asker.peer else "subscribers of ZeroMQ before 4.0"
            if len(self._refusals) < MAX_REFUSALS:
                self._refusals.append(f"{where} asked for too much and lost the connection: {why}")
        return ended

    def _cut(self, descriptor: int, asker: Asker | None) -> bool:
        connection = self._open(descriptor)
        if connection is None:
            return False
        with connection:
            try:
                peer = connection.getpeername()  # fails for the socket that listens
                if asker is not None and peer != asker.peer:
                    return False
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                return False
        return True

    def _cut_numberless(self) -> bool:
        """Nothing says which they are: all connections that are not known to be others."""
        return sum(self._cut(each, None) for each in _open_descriptors() if each not in self._askers) > 0

    def _is_there(self, descriptor: int, asker: Asker) -> bool:
        return descriptor == NUMBERLESS or (asker.peer is not None and self._peer_of(descriptor) == asker.peer)

    def _peer_of(self, descriptor: int) -> Any:
        connection = self._open(descriptor)
        if connection is None:
            return None
        with connection:
            try:
                return connection.getpeername()
            except OSError:
                return None

    def _open(self, descriptor: int) -> socket.socket | None:
        """A second handle of a connection to these ports, that libzmq's closing does not take away meanwhile."""
        try:
            handle = socket.dup(descriptor)
        except (OSError, OverflowError):
            return None
        try:
            connection = socket.socket(fileno=handle)
        except OSError:
            socket.close(handle)
            return None
        try:
            address = connection.getsockname()
            if isinstance(address, tuple) and len(address) > 1 and address[1] in self._ports:
                return connection
        except OSError:
            pass
        connection.close()
        return None


def limit_filters(xpub: Socket) -> None:
    """Has an XPUB tell of every filter, and take in little at once; to be called before it is bound."""
    # Who comes back asks for what somebody else may have asked for already, and must be heard.
    xpub.setsockopt(zmq.XPUB_VERBOSE, 1)
    xpub.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    xpub.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER)
    xpub.setsockopt(zmq.RCVBUF, RECEIVE_BYTES)


def _cost_of(text: bytes) -> int:
    return FILTER_COST + BYTE_COST * len(text)


def _source_of(frame: zmq.Frame) -> int:
    """The descriptor of the connection that a frame came over, if libzmq says."""
    try:
        descriptor = frame.get(zmq.SRCFD)
    except zmq.ZMQError:
        return NUMBERLESS
    return descriptor if isinstance(descriptor, int) else NUMBERLESS


def _open_descriptors() -> Collection[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]
    except (OSError, ValueError):
        return range(MAX_GUESS)
