"""Items within a call: credit, windows, and how a stream ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmsg.engine.streams import (
    BYTES_UNDER_WAY,
    MAX_WINDOW_ITEMS,
    MIN_WINDOW_ITEMS,
    RECENT_ITEMS,
    WINDOW_ITEMS,
    InStream,
    OutStream,
)
from meshmsg.errors import ProtocolError

pytestmark = pytest.mark.guarantee("G8")


class Bell:
    """Counts how often it was rung."""

    def __init__(self) -> None:
        self.rings = 0

    def __call__(self) -> None:
        self.rings += 1

    def rang(self) -> bool:
        rings, self.rings = self.rings, 0
        return rings > 0


# --- items that leave ---------------------------------------------------------------------------------------


def test_credit_is_room_until_it_is_used() -> None:
    stream = OutStream(3)
    assert stream.room == 3
    stream.take(2)
    assert stream.room == 1
    stream.grant(5)
    assert stream.room == 3
    stream.take(3)
    assert stream.room == 0
    stream.check()


def test_credit_is_absolute_so_that_older_or_repeated_credit_changes_nothing() -> None:
    stream, bell = OutStream(4), Bell()
    stream.wake = bell
    for upto in (4, 2, 0):
        stream.grant(upto)
    assert (stream.room, bell.rang()) == (4, False)


def test_sending_beyond_the_credit_is_refused() -> None:
    stream = OutStream(1)
    with pytest.raises(AssertionError, match="2 items sent, room for 1"):
        stream.take(2)


def test_who_waits_for_room_is_woken_by_more_of_it() -> None:
    stream, bell = OutStream(), Bell()
    stream.wake = bell
    stream.grant(1)
    assert bell.rang()


def test_a_cut_leaves_no_room_wakes_and_keeps_its_first_reason() -> None:
    stream, bell = OutStream(5), Bell()
    stream.wake = bell
    stream.cut = "cancelled by the caller"
    assert bell.rang()
    stream.cut = "peer lost"
    stream.grant(9)
    assert (stream.cut, stream.room, bell.rang()) == ("cancelled by the caller", 0, False)


# --- items that came ----------------------------------------------------------------------------------------


def test_items_come_out_in_order() -> None:
    stream = InStream()
    stream.put(["a", "b"])
    stream.put(["c", "d"])
    assert (stream.waiting, stream.take(), stream.take_all(), stream.waiting) == (4, "a", ["b", "c", "d"], 0)
    assert stream.take_all() == []
    with pytest.raises(IndexError):
        stream.take()


def test_items_and_the_end_wake_who_waits() -> None:
    stream, bell = InStream(), Bell()
    stream.wake = bell
    stream.put(["a"])
    assert bell.rang()
    stream.end()
    assert bell.rang()
    stream.end()
    assert not bell.rang()


def test_the_first_end_counts_and_what_came_before_can_still_be_taken() -> None:
    stream = InStream()
    stream.put(["a"])
    stream.end("deadline")
    stream.end("peer lost")
    stream.end()
    assert (stream.ended, stream.fault, stream.take()) == (True, "deadline", "a")


@pytest.mark.guarantee("G11")
def test_items_beyond_the_credit_or_after_the_end_break_the_protocol() -> None:
    stream = InStream(2)
    with pytest.raises(ProtocolError, match="3 items of a stream, and credit for 2"):
        stream.put([1, 2, 3])
    assert stream.waiting == 0
    stream.put([1, 2])
    with pytest.raises(ProtocolError, match="credit"):
        stream.put([3])
    stream.end()
    with pytest.raises(ProtocolError, match="end"):
        stream.put([3])


def test_a_server_may_announce_nothing_at_first() -> None:
    stream = InStream(announced=0)
    with pytest.raises(ProtocolError, match="credit for 0"):
        stream.put([1])
    assert stream.credit_due() == WINDOW_ITEMS


def test_credit_is_due_when_half_of_the_window_was_consumed() -> None:
    stream = InStream(8)
    stream.put(list(range(8)))
    for _ in range(3):
        stream.take()
        assert stream.credit_due() is None
    stream.take()
    assert stream.credit_due() == 12
    assert stream.credit_due() is None  # it counts as announced
    stream.put([8, 9, 10, 11])
    stream.check()


def test_who_does_not_read_gives_no_credit() -> None:
    stream = InStream(4)
    stream.put([1, 2, 3, 4], 400)
    assert stream.credit_due() == 8  # small items: twice the window, counted from what was taken
    stream.put([1, 2, 3, 4], 400)
    assert stream.credit_due() is None
    stream.put([], 0)
    assert stream.credit_due() is None


def test_no_credit_after_the_end() -> None:
    stream = InStream(4)
    stream.put([1, 2, 3, 4])
    stream.end()
    stream.take_all()
    assert stream.credit_due() is None


@pytest.mark.parametrize(
    ("item_bytes", "window"),
    [
        (10, MAX_WINDOW_ITEMS),
        (BYTES_UNDER_WAY // MAX_WINDOW_ITEMS, MAX_WINDOW_ITEMS),
        (64 * 2**10, 64),
        (2**20, 4),
        (64 * 2**20, MIN_WINDOW_ITEMS),
    ],
)
def test_the_window_holds_a_few_mebibytes_whatever_the_size_of_the_items(item_bytes: int, window: int) -> None:
    stream = InStream()
    read(stream, [item_bytes] * 16 * 16)
    assert stream.window == window


def test_the_window_follows_items_that_grow_and_credit_is_never_taken_back() -> None:
    stream = InStream()
    read(stream, [10] * 300)
    assert stream.window == MAX_WINDOW_ITEMS
    credit, received = stream.limit, 300
    while received < credit - 3:
        stream.put(["large"], 2**20)
        stream.take()
        received += 1
        assert stream.credit_due() is None  # it has more credit than it should get by now
        assert stream.window == 4
    stream.put(["large"] * 3, 3 * 2**20)
    stream.take_all()
    assert stream.credit_due() == credit + 4


def test_a_small_header_opens_nothing_for_large_chunks() -> None:
    stream = InStream()
    stream.put(["header"], 50)
    stream.take()
    assert stream.window == WINDOW_ITEMS and stream.credit_due() is None
    read(stream, [2**20])
    assert (stream.window, stream.limit) == (4, WINDOW_ITEMS)
    read(stream, [50, 2**20] * 40)
    assert stream.window == 4  # small ones between large ones don't count
    read(stream, [50] * 500)
    assert stream.window == MAX_WINDOW_ITEMS  # those are forgotten


def read(stream: InStream, sizes: list[int]) -> None:
    """Items of these sizes come one by one, and are taken at once."""
    for size in sizes:
        stream.put([size], size)
        stream.take()
        stream.credit_due()
        stream.check()


def test_a_window_of_unknown_sizes_stays() -> None:
    stream = InStream()
    stream.put(["x"] * 4)
    assert stream.window == WINDOW_ITEMS


# --- both together ------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 2**23), st.integers(0, 300)), max_size=60),
    st.integers(1, 40),
)
def test_a_stream_delivers_everything_in_order_and_never_stalls(
    turns: list[tuple[int, int, int]], first_window: int
) -> None:
    """Each turn the producer sends what it may of what it has, the consumer takes some, and credit goes back."""
    out, taker = OutStream(first_window), InStream(first_window)
    made = 0
    backlog: list[int] = []
    taken: list[int] = []
    for produced, item_bytes, wanted in [*turns, *[(0, 1, 10**6)] * 20_000]:
        backlog += range(made, made + produced)
        made += produced
        parcel, backlog = backlog[: out.room], backlog[out.room :]
        out.take(len(parcel))
        if parcel:
            taker.put(parcel, len(parcel) * item_bytes)
        for _ in range(min(wanted, taker.waiting)):
            taken.append(taker.take())
        upto = taker.credit_due()
        if upto is not None:
            out.grant(upto)
        out.check()
        assert taker.waiting <= max(MAX_WINDOW_ITEMS, first_window) * 2
        if len(taken) == made and produced == 0:
            break
    assert taken == list(range(made))


SIZES = st.lists(
    st.tuples(st.integers(1, 60), st.sampled_from([1, 50, 2**12, 2**16, 2**20, 2**26]), st.integers(1, 70)),
    min_size=1,
    max_size=40,
)


@pytest.mark.guarantee("G8")
@given(SIZES)
def test_what_may_be_under_way_is_bounded_by_what_came(stretches: list[tuple[int, int, int]]) -> None:
    """A greedy producer uses all credit at once; stretches of items have sizes that have nothing to do with others."""
    stream = InStream()
    sizes = [size for count, size, _ in stretches for _ in range(count)]
    limits = [most for _, _, most in stretches]
    sent = taken = turn = 0
    granted = stream.limit
    while taken < len(sizes):
        sent_before, sent = sent, min(len(sizes), granted)
        for place in range(sent_before, sent):
            stream.put([place], sizes[place])
        assert sent - taken <= sent_before + WINDOW_ITEMS  # no more than had come, and the first window
        for _ in range(min(limits[turn % len(limits)], stream.waiting)):
            assert stream.take() == taken
            taken += 1
        turn += 1
        upto = stream.credit_due()
        if upto is not None:
            granted = upto
            largest = max(sizes[max(0, sent - RECENT_ITEMS) : sent])
            assert upto - taken <= max(MIN_WINDOW_ITEMS, BYTES_UNDER_WAY // largest)
            assert upto - taken <= sent + WINDOW_ITEMS
        stream.check()


@given(st.integers(0, 300), st.sampled_from([2**16, 2**20, 2**26]))
def test_once_the_size_is_known_a_few_mebibytes_are_under_way(small: int, item_bytes: int) -> None:
    stream = InStream()
    read(stream, [50] * small)
    read(stream, [item_bytes] * (MAX_WINDOW_ITEMS + 1))
    stream.put(["x"] * (stream.limit - small - MAX_WINDOW_ITEMS - 1), 0)
    assert stream.waiting <= max(MIN_WINDOW_ITEMS, BYTES_UNDER_WAY // item_bytes)
