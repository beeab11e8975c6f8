"""Items within a call: the bound in bytes, which holds whatever the size of the items is."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.engine.served import Served
from meshmsg.engine.streams import BYTES_UNDER_WAY, MAX_WINDOW_ITEMS, WINDOW_ITEMS, InStream, OutStream
from meshmsg.wire import items
from tests.engine.caller_desk import CallerDesk
from tests.engine.service_desk import PLAIN, Desk

pytestmark = pytest.mark.guarantee("G8", "G5")

MIB = 2**20


class Line:
    """A stream of items of given sizes from a greedy producer to an application that takes them when it likes."""

    def __init__(self, sizes: list[int], limit_bytes: int = BYTES_UNDER_WAY) -> None:
        self.sizes = sizes
        self.out = OutStream(WINDOW_ITEMS, limit_bytes)
        self.down = InStream()
        self.on_the_way: deque[tuple[int, int, bool]] = deque()  # (first, how many, marked)
        self.got: list[int] = []
        self.credits = self.marks = 0

    def send(self, together: int = 1) -> None:
        """As much as there is room for; some items at a time, as long as that is not to be marked."""
        out = self.out
        while out.room and out.sent < len(self.sizes):
            first, end, size = out.sent, out.sent, 0
            while end < len(self.sizes) and end - first < min(together, out.room) and size < out.mark_bytes:
                size += self.sizes[end]
                end += 1
            marked = out.take(end - first, size)
            self.marks += marked
            self.on_the_way.append((first, end - first, marked))
            out.check()

    def arrive(self) -> None:
        while self.on_the_way:
            first, count, marked = self.on_the_way.popleft()
            self.down.put(range(first, first + count), sum(self.sizes[first : first + count]), marked=marked)

    def take(self, count: int, thread: int = 1) -> None:
        """The application gets items; ``thread`` of them at a time by way of a thread that holds the others."""
        down = self.down
        while count > 0 and down.waiting:
            down.lent = 0
            self.tell()
            burst = min(thread, count, down.waiting)
            for place in range(burst):
                down.lent = place
                self.got.append(down.take())
                self.tell()
            count -= burst
        if not down.waiting:
            down.lent = 0  # it comes for more
            self.tell()

    def tell(self) -> None:
        upto = self.down.credit_due()
        self.down.check()
        if upto is not None:
            self.credits += 1
            self.out.grant(upto, self.down.taken)
            self.out.check()

    @property
    def held(self) -> int:
        """Bytes between the producer and the application."""
        return sum(self.sizes[self.down.taken : self.out.sent])


@pytest.mark.parametrize(
    ("item_bytes", "count"),
    [(100, 16), (128 * 1024, 16), (300 * 1024, 12), (MIB, 3), (2 * MIB, 2), (3 * MIB, 1), (64 * MIB, 1)],
)
def test_of_the_first_items_only_a_few_mebibytes_are_sent(item_bytes: int, count: int) -> None:
    line = Line([item_bytes] * 100)
    line.send()
    assert line.out.sent == count
    line.arrive()
    line.send()
    assert line.out.sent == count, "nothing was taken"


def test_any_item_passes_alone_and_each_as_soon_as_the_one_before_was_taken() -> None:
    line = Line([200 * MIB] * 5)
    for number in range(1, 6):
        line.send()
        line.arrive()
        assert (line.out.sent, line.down.waiting) == (number, 1)
        line.take(1)
    assert line.got == [0, 1, 2, 3, 4]


def test_large_items_after_small_ones_have_credit_and_no_room() -> None:
    line = Line([10] * 1000 + [MIB] * 1000)
    while line.out.sent < 1000:
        line.send()
        line.arrive()
        line.take(1000 - len(line.got))
    assert line.out.allowed - line.out.sent > 100 or line.out.sent > 1000
    line.send()
    line.arrive()
    assert line.held <= BYTES_UNDER_WAY + MIB
    assert line.out.room == 0
    taken = len(line.got)
    line.take(2)  # far fewer than the window, which is 256 as far as the producer knows
    assert line.out.room > 0 and len(line.got) == taken + 2


def test_small_items_are_never_marked_and_large_ones_in_time() -> None:
    line = Line([100] * 10_000)
    while len(line.got) < 10_000:
        line.send()
        line.arrive()
        line.take(1000)
    assert line.marks == 0 and line.credits <= 10_000 // (MAX_WINDOW_ITEMS // 2) + 10
    line = Line([MIB // 2] * 100)
    while len(line.got) < 100:
        line.send()
        line.arrive()
        line.take(2)
        assert line.out.room or line.out.sent == 100, "the producer goes on while there is still something to read"
    assert line.marks == 50


def test_a_thread_holds_what_it_has_not_given_to_the_application() -> None:
    line = Line([MIB // 2] * 100)
    line.send()
    line.arrive()
    line.down.take()
    for lent in (1, 2):
        line.down.lent = lent
        line.down.take()
    line.tell()
    assert line.out.sent == 6 and line.down.taken == 1 and line.out.room == 0
    line.down.lent = 0
    line.tell()
    assert line.down.taken == 3 and line.out.room > 0


def test_who_names_no_limit_gets_what_it_has_credit_for() -> None:
    out = OutStream(16)
    for _ in range(16):
        assert out.take(1, 64 * MIB) is False
    assert out.room == 0 and out.allowed == out.sent
    out.grant(20)
    assert out.room == 4


def test_a_limit_comes_with_the_first_credit_and_does_not_change() -> None:
    out = OutStream()
    out.grant(16, 0, 1000)
    assert (out.room, out.room_bytes, out.mark_bytes) == (16, 750, 250)
    assert out.take(1, 700) is True
    assert (out.room, out.room_bytes, out.mark_bytes) == (15, 50, 250)
    out.grant(16, 0, 10**9)
    assert out.room_bytes == 50
    assert out.take(1, 249) is False
    assert (out.room, out.room_bytes, out.mark_bytes) == (14, 1, 1), "one may always leave if there is room"
    assert out.take(1, 10**6) is True
    assert out.room == 0
    out.grant(16, 1)
    assert out.room == 0
    out.grant(16, 3)
    assert (out.room, out.room_bytes) == (13, 750)
    out.check()


def test_a_limit_of_nothing_lets_one_item_pass_at_a_time() -> None:
    out = OutStream()
    out.grant(16, 0, 0)
    assert out.room == 16
    assert out.take(1, 50) is True
    assert out.room == 0
    out.grant(16, 1)
    assert out.room == 15


def test_another_server_says_itself_what_it_takes() -> None:
    out = OutStream()
    out.grant(16, 0, 1000)
    out.forget_credit()
    assert out.room == 0
    out.grant(8)
    assert out.take(1, 10**6) is False
    assert out.room == 7


def test_word_of_what_was_taken_wakes_who_waits_for_room() -> None:
    rings: list[bool] = []
    out = OutStream(16, 1000)
    out.wake = lambda: rings.append(True)
    out.take(1, 2000)
    out.grant(16, 0)
    assert not rings
    out.grant(16, 1)
    assert rings == [True] and out.room == 15
    out.take(1, 2000)
    out.cut = "cancelled"
    out.grant(16, 2)
    assert rings == [True, True] and out.room == 0


SIZES = st.lists(
    st.tuples(st.integers(1, 300), st.sampled_from([1, 50, 2**12, 2**16, 2**18, 2**20, 2**23, 2**26])),
    min_size=1,
    max_size=8,
)
MOVES = st.lists(st.tuples(st.sampled_from("sat"), st.integers(1, 300), st.integers(1, 20)), max_size=80)


@given(SIZES, MOVES, st.sampled_from([0, 1, 10**4, BYTES_UNDER_WAY]), st.booleans())
def test_whatever_comes_in_whatever_order_there_are_a_few_mebibytes_and_one_item_and_no_stall(
    stretches: list[tuple[int, int]], moves: list[tuple[str, int, int]], limit_bytes: int, parcels: bool
) -> None:
    sizes = [size for count, size in stretches for _ in range(count)]
    line = Line(sizes, limit_bytes=max(1, limit_bytes))
    most = limit_bytes + max(sizes)
    for kind, count, burst in moves:
        if kind == "s":
            line.send(together=count if parcels else 1)
        elif kind == "a":
            line.arrive()
        else:
            line.take(count, thread=burst)
        assert line.held <= most
    for _ in range(4 * len(sizes) + 10):
        line.send(together=3)
        line.arrive()
        line.take(7, thread=3)
        assert line.held <= most
    assert line.got == list(range(len(sizes)))
    line.down.lent = 0
    line.tell()
    assert not line.down._marks, "the consumer told all that was asked"


# -- in the tables of callers and servers --------------------------------------------------------------------


def serve_stream(*more: int) -> tuple[Desk, Served]:
    """A server with a call that wants items; ``more`` is what its caller says of bytes."""
    desk = Desk()
    said = [items.CALL, 0, 1, "math", "count", None, items.WANTS_ITEMS, 16, None, *more]
    assert items.check_items([said]) == 1
    desk.serving.on_call("a.1", "a", said, [PLAIN], desk.now)
    return desk, desk.take()


def test_a_server_marks_what_its_caller_shall_tell_of() -> None:
    desk, served = serve_stream(1000)
    for size in (10, 10, 300, 10, 10):
        desk.serving.send_items(served, [b"x" * size])
    number = served.number
    assert desk.told() == [[items.ITEMS, number, 3, items.MARKED], [items.ITEMS, number, 2]]
    desk.serving.send_items(served, [b"x" * 400])
    desk.serving.send_items(served, [b"x"])
    desk.serving.send_items(served, [b"x" * 300])
    assert served.out is not None and served.out.room == 0
    assert desk.told() == [[items.ITEMS, number, 1, items.MARKED], [items.ITEMS, number, 2, items.MARKED]]
    desk.serving.on_credit("a.1", number, 16, 2)
    assert served.out.room == 0
    desk.serving.on_credit("a.1", number, 16, 3)
    assert served.out.room == 8
    desk.serving.end(served)
    assert desk.told() == [[items.END, number]] and desk.at_rest()


def test_a_caller_that_says_nothing_of_bytes_gets_what_it_has_credit_for() -> None:
    desk, served = serve_stream()
    desk.serving.send_items(served, [b"x" * MIB] * 16)
    assert desk.told() == [[items.ITEMS, served.number, 16]]
    desk.serving.on_credit("a.1", served.number, 24)
    assert served.out is not None and served.out.room == 8


def test_a_caller_says_how_much_it_holds_and_tells_of_what_was_marked() -> None:
    desk = CallerDesk("b")
    call, _, number = desk.ask(down=True, up=True)
    desk.ask()
    assert call.down is not None and call.up is not None
    desk.calls.on_items("b.1", number, ["a", "b"], 2 * MIB, items.MARKED)
    desk.calls.on_items("b.1", number, ["c"], 10)
    desk.said.clear()
    assert call.down.take() == "a" and not desk.calls.grant(call)
    assert call.down.take() == "b" and desk.calls.grant(call)
    assert not desk.calls.grant(call)
    assert [item for _, item, _ in desk.said] == [[items.CREDIT, number, WINDOW_ITEMS, 2]]
    desk.said.clear()
    desk.calls.on_up_credit("b.1", number, 16, 0, 1000)
    desk.calls.send_items(call, [b"x", b"x" * 300])
    desk.calls.send_items(call, [b"x"])
    assert [item for _, item, _ in desk.said] == [
        [items.UP_ITEMS, number, 2, items.MARKED],
        [items.UP_ITEMS, number, 1],
    ]


def test_only_calls_for_streams_speak_of_bytes() -> None:
    desk = CallerDesk("b")
    for how in ({}, {"up": True}, {"down": True}):
        desk.call(**how)  # type: ignore[arg-type]
    desk.turn()
    assert [item[9:] for _, item, _ in desk.said] == [[], [], [BYTES_UNDER_WAY]]


def test_a_server_says_how_much_it_holds_and_tells_of_what_was_marked() -> None:
    desk = Desk()
    number = desk.call(flags=items.SENDS_ITEMS)
    served = desk.take()
    assert desk.told() == [[items.UP_CREDIT, number, WINDOW_ITEMS, 0, BYTES_UNDER_WAY]]
    desk.serving.on_up_items("a.1", number, ["a", "b"], 2 * MIB, items.MARKED)
    assert served.up is not None
    served.up.take()
    assert not desk.serving.grant(served)
    served.up.take()
    assert desk.serving.grant(served)
    assert desk.told() == [[items.UP_CREDIT, number, WINDOW_ITEMS, 2]]
