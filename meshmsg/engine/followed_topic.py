"""One topic of one publisher, as a node follows it for all of its subscriptions."""

from __future__ import annotations

from meshmsg.engine.stream import Stream


class FollowedTopic:
    """One topic of one publisher: its streams, and what is asked of the publisher on behalf of all of them."""

    __slots__ = (
        "asked_for",
        "due",
        "generation",
        "line",
        "name",
        "patient_until",
        "place",
        "place_asked",
        "reported",
        "streams",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.streams: list[Stream] = []
        self.generation = -1
        self.reported: int | None = None  # the position that the publisher was told
        self.line: dict[FollowedTopic, None] | None = None  # of the reception, where it waits if something is missing
        self.asked_for: list[Stream] = []  # that missed something when the publisher was asked
        self.place_asked = self.place = 0  # how far they were then, and at the last look, all together
        self.due = 0.0
        self.patient_until = 0.0

    def wait_in(self, line: dict[FollowedTopic, None] | None) -> None:
        """Moves to the end of a line; None if nothing is missing."""
        if self.line is not None:
            del self.line[self]
        if line is not None:
            line[self] = None
        self.line = line

    @property
    def position(self) -> int | None:
        """Everything below has arrived or is given up, in every subscription that has begun."""
        return min((stream.expected for stream in self.streams if stream.expected is not None), default=None)

    def missing(self) -> tuple[int, int] | None:
        """One stretch to ask for: for the first stream that has room, and for others that miss the same."""
        stretches = [stretch for stream in self.streams if (stretch := stream.want()) is not None]
        if not stretches:
            return None
        start, stop = stretches[0]
        for its_start, its_stop in sorted(stretches):
            if its_start <= stop and its_stop >= start:
                start, stop = min(start, its_start), max(stop, its_stop)
        return start, stop

    def note_asked(self) -> None:
        """From here on progress counts. The next time it is another stream's turn."""
        self.asked_for = [stream for stream in self.streams if not stream.complete]
        self.place_asked = self.place = self._find_place()
        self.streams.append(self.streams.pop(0))

    def _find_place(self) -> int:
        return sum(stream.expected or 0 for stream in self.asked_for)

    def moved(self) -> bool:
        """Whether some of what was missing has come since the last look."""
        before, self.place = self.place, self._find_place()
        return self.place > before

    @property
    def moved_since_asked(self) -> bool:
        """Whether the answer brought anything."""
        return self._find_place() > self.place_asked
