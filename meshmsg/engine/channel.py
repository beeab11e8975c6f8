"""A channel: what two lives of nodes say to each other about calls, in order and once, over changing links (G8).

Both sides number their ``TALK`` frames from 0 and keep them until the other has said that they arrived. Each side has
a number of its own for the channel as well, and names the other's in every frame; neither talks before the other has
named its number. A node that gave the other up and meets it again begins a new channel with a higher number, so what
was said in the old one is never taken for a part of the new one.

Commands are ``send``, ``flush`` and ``resume``, inputs ``on_talk`` and ``on_heard``; ask ``is_news`` before these.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from meshmsg.engine.outbox import MAX_FRAME_BYTES
from meshmsg.errors import ProtocolError
from meshmsg.wire import frames, items
from meshmsg.wire.codec import make_packer
from meshmsg.wire.frames import Heard, Talk

# Of the items of one frame, about. The last one may exceed it, by 2.3 MiB at most: the numbers of a RESULT whose
# bodies fill a frame. That is still below ``frames.MAX_HEADER_BYTES``.
MAX_ITEMS_BYTES = 2**20
# The other side keeps what it sent until it hears that it arrived; after so much it is told without being asked.
TELL_AFTER_FRAMES = 64
TELL_AFTER_BYTES = 2**20
RESEND_AFTER_S = 0.5  # a gap at the same place is answered again after this


class Channel:
    """This node's side. Each channel of a node needs a higher ``number`` than the one before, from 1."""

    __slots__ = (
        "_agreed",
        "_answer",
        "_bodies",
        "_expected",
        "_held_up",
        "_introduced",
        "_items",
        "_kept",
        "_missing",
        "_next_seq",
        "_pack",
        "_resent",
        "_theirs",
        "_told",
        "_told_missing",
        "_untold_bytes",
        "number",
        "unheard_bytes",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.unheard_bytes = 0  # of bodies that were sent and may not have arrived
        self._theirs = 0  # the other side's number
        self._agreed = False  # the other side knows this side's number
        self._introduced = False
        self._items: list[list[Any]] = []
        self._bodies: list[bytes] = []
        self._held_up = False  # there was something to send before the other side was ready
        self._next_seq = 0
        self._kept: deque[tuple[int, list[list[Any]], list[bytes], int]] = deque()  # (seq, items, bodies, bytes)
        self._resent = (-1, 0.0)  # from which frame, and when
        self._expected = 0  # the frame that has to arrive next
        self._told = 0  # how far the other side was told
        self._untold_bytes = 0
        self._missing = False  # the expected frame is lost: a later one came, or word of one
        self._told_missing = -1
        self._answer = False  # the other side asked, or does not know this side's number
        self._pack = make_packer()

    # -- out -------------------------------------------------------------------------------------------------

    def send(self, said: list[list[Any]], bodies: Sequence[bytes]) -> None:
        """Items that leave with the next ``flush``, and the bodies that belong to them."""
        self._items += said
        self._bodies += bodies

    @property
    def waiting(self) -> bool:
        """Whether something is to leave."""
        return bool(self._items)

    def flush(self) -> list[tuple[Talk, list[bytes]]]:
        """The frames of what was sent since the last time; none before the other side knows this one's number."""
        if not self._items:
            return []
        if not self._agreed:
            self._held_up = True
            return []
        said, self._items = self._items, []
        bodies, self._bodies = self._bodies, []
        self._held_up = False
        sizes = sum(map(len, bodies))
        if sizes <= MAX_FRAME_BYTES and self._weigh_all(said) <= MAX_ITEMS_BYTES:
            return [self._keep(said, bodies, sizes)]
        return [self._keep(part, load, sum(map(len, load))) for part, load in self._cut(said, bodies)]

    def _keep(self, said: list[list[Any]], bodies: list[bytes], sizes: int) -> tuple[Talk, list[bytes]]:
        seq = self._next_seq
        self._next_seq = seq + 1
        self._kept.append((seq, said, bodies, sizes))
        self.unheard_bytes += sizes
        return self._talk(seq, said), bodies

    def _talk(self, seq: int, said: list[list[Any]]) -> Talk:
        self._told = self._expected
        self._untold_bytes = 0
        return Talk(self.number, self._theirs, seq, self._expected, said, b"")

    def _cut(self, said: list[list[Any]], bodies: list[bytes]) -> list[tuple[list[list[Any]], list[bytes]]]:
        """Frames of bounded size; a body that is larger than one travels in a frame without others."""
        cut: list[tuple[list[list[Any]], list[bytes]]] = []
        part: list[list[Any]] = []
        start = at = size = weight = 0
        for item in said:
            more = self._weigh(item)
            if part and weight + more > MAX_ITEMS_BYTES:
                cut.append((part, bodies[start:at]))
                part, start, size, weight = [], at, 0, 0
            weight += more
            first, end = at, at + items.bodies_of(item)
            while at < end:
                if at > start and size + len(bodies[at]) > MAX_FRAME_BYTES:
                    if at > first:
                        head, item = items.split(item, at - first)
                        part.append(head)
                    cut.append((part, bodies[start:at]))
                    part, start, size, weight = [], at, 0, more
                    first = at
                size += len(bodies[at])
                at += 1
            part.append(item)
        cut.append((part, bodies[start:at]))
        return cut

    def _weigh_all(self, said: list[list[Any]]) -> int:
        return self._weigh(said[0]) if len(said) == 1 else sum(map(self._weigh, said))

    def _weigh(self, item: list[Any]) -> int:
        """About the bytes that an item takes in the frame's header, at most."""
        op = item[0]
        if op == items.RESULT or op == items.CANCEL:
            return 16 + 9 * len(item[1])
        if op == items.FAULT:
            return 64 + 4 * sum(len(text) for text in item[2:6] if text is not None)
        if op == items.CALL:
            size = 64 + 4 * (len(item[3]) + len(item[4]))
            return size if item[8] is None else size + len(self._pack(item[8]))
        return 32  # so there are never more of them than MAX_ITEMS

    # -- in --------------------------------------------------------------------------------------------------

    def is_news(self, frame: Talk | Heard) -> bool:
        """Whether the other side has begun anew: whatever was under way is lost, and this channel is over."""
        return frame.channel > self._theirs and (self._next_seq > 0 or self._expected > 0)

    def on_talk(self, talk: Talk) -> bool:
        """A frame arrived; says whether its items are news: the next ones, not seen before."""
        if not self._belongs(talk):
            return False
        self._on_position(talk.heard)
        if talk.seq != self._expected:
            self._missing = self._missing or talk.seq > self._expected
            return False
        self._expected += 1
        self._missing = False
        self._untold_bytes += len(talk.payload)
        return True

    def on_heard(self, frame: Heard, now: float) -> list[tuple[Talk, list[bytes]]]:
        """The other side says where it is; returns frames to send: those that it misses, or that waited for this."""
        if not self._belongs(frame):
            return []
        self._on_position(frame.heard)
        if frame.next_seq > self._expected:
            self._missing = True  # frames of one link keep their order, so an earlier one took them
        if frame.flags & frames.ASKS:
            self._answer = True
        again: list[tuple[Talk, list[bytes]]] = []
        if frame.flags & frames.MISSING and self._kept and self._kept[0][0] == frame.heard:
            place, when = self._resent
            if place != frame.heard or now - when >= RESEND_AFTER_S:
                self._resent = (frame.heard, now)
                again = [(self._talk(seq, said), bodies) for seq, said, bodies, _ in self._kept]
        if self._held_up:
            again += self.flush()
        return again

    def _belongs(self, frame: Talk | Heard) -> bool:
        """Whether a frame is part of this channel, and not of an old one of either side."""
        if frame.to > self.number:
            raise ProtocolError(f"it speaks to channel {frame.to}; this node's number is {self.number}")
        if frame.channel > self._theirs:
            assert not self.is_news(frame), "a channel that is over gets no frames"
            self._theirs = frame.channel
            self._agreed = False
            self._answer = True
            self._missing = False  # what was lost of theirs before is nothing that they still have
            self._told_missing = -1
        elif frame.channel < self._theirs:
            return False
        if frame.to != self.number:
            return False  # it was told the number, and will be again every heartbeat
        self._agreed = True
        return True

    def _on_position(self, heard: int) -> None:
        """Everything below has arrived there."""
        if heard > self._next_seq:
            raise ProtocolError(f"it heard frames up to {heard} of channel {self.number}, sent were {self._next_seq}")
        kept = self._kept
        while kept and kept[0][0] < heard:
            self.unheard_bytes -= kept.popleft()[3]

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the other side should have a ``HEARD`` now."""
        return (
            self._answer
            or (self._missing and self._told_missing != self._expected)
            or self._expected - self._told >= TELL_AFTER_FRAMES
            or self._untold_bytes >= TELL_AFTER_BYTES
            or (self._held_up and not self._introduced)
        )

    @property
    def restless(self) -> bool:
        """Whether a ``HEARD`` is worth repeating every heartbeat: a side may not know where the other one is."""
        return bool(self._kept) or self._expected != self._told or self._missing or self._held_up or not self._agreed

    def state(self) -> Heard:
        """The ``HEARD`` to send now. It asks for one if this side waits for news, unless it is an answer itself."""
        flags = 0
        if self._missing:
            flags |= frames.MISSING
            self._told_missing = self._expected
        if (self._kept or self._held_up or not self._agreed) and not self._answer:
            flags |= frames.ASKS
        self._answer = False
        self._introduced = True
        self._told = self._expected
        self._untold_bytes = 0
        return Heard(self.number, self._theirs, self._expected, self._next_seq, flags)

    def resume(self) -> Heard:
        """The ``HEARD`` to send on a new link. Each side asks for what it misses when it has the other's."""
        self._resent = (-1, 0.0)
        self._answer = False
        return self.state()

    def check(self) -> None:
        """Own invariants, for the simulator."""
        held = 0
        for expected, (seq, _, _, size) in enumerate(self._kept, self._next_seq - len(self._kept)):
            assert seq == expected, f"channel {self.number} keeps {[each[0] for each in self._kept]}"
            held += size
        assert self.unheard_bytes == held, f"channel {self.number} counts {self.unheard_bytes} bytes, holds {held}"
        assert self._told <= self._expected, f"channel {self.number} told {self._told} of {self._expected}"
        assert self._agreed or not (self._next_seq or self._expected), f"channel {self.number} was used too early"
        count = items.count_bodies(self._items) if self._items else 0
        assert count == len(self._bodies), f"channel {self.number} has bodies of no item"
