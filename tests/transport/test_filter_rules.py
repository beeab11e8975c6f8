"""By which rules filters are counted and connections cut off, with connections whose descriptors alone matter (G11)."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator

import pytest

from meshmsg.transport import filters as filters_module
from meshmsg.transport.filters import (
    BYTE_COST,
    ENDING_S,
    FILTER_COST,
    FLOOD_CHANGES,
    FLOOD_S,
    MARGIN,
    MAX_COST_EACH,
    MAX_COST_IN_ALL,
    MAX_FILTER_BYTES,
    MAX_FRAME_BYTES,
    MAX_REFUSALS,
    NUMBERLESS,
    Filters,
)

pytestmark = pytest.mark.guarantee("G11")

MIB = 2**20


def many(count: int, size: int, begin: bytes = b"") -> list[bytes]:
    """Filters that have nothing in common but ``begin``."""
    return [begin + b"%09d" % index + bytes(size) for index in range(count)]


class Guest:
    """A connection to a port, whose filters a test makes up."""

    def __init__(self, listener: socket.socket) -> None:
        self.client = socket.create_connection(listener.getsockname())
        self.server, _ = listener.accept()
        self.descriptor = self.server.fileno()
        self.client.setblocking(False)

    def is_cut(self) -> bool:
        """Whether the other side has ended the connection."""
        try:
            return self.client.recv(1) == b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Desk:
    """Filters of a port to which guests come, and a clock."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.filters = Filters([f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"])
        self.guests: list[Guest] = []
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def guest(self) -> Guest:
        self.guests.append(Guest(self.listener))
        return self.guests[-1]

    def add(self, guest: Guest, texts: Iterable[bytes]) -> None:
        for text in texts:
            self.filters.add(text, guest.descriptor)

    def end(self, texts: Iterable[bytes]) -> None:
        """As libzmq tells of filters of a connection that is gone."""
        for text in texts:
            self.filters.remove(text, NUMBERLESS)

    def known(self, guest: Guest) -> bool:
        return guest.descriptor in self.filters._askers


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    desk = Desk()
    monkeypatch.setattr(filters_module, "time", desk)
    yield desk
    desk.listener.close()
    for guest in desk.guests:
        guest.close()


def cost_of(texts: Iterable[bytes]) -> int:
    return sum(FILTER_COST + BYTE_COST * len(text) for text in texts)


def test_a_filter_costs_what_libzmq_keeps_of_it(desk: Desk) -> None:
    guest, other = desk.guest(), desk.guest()
    texts = [b"", b"a", b"bb"]  # of the first two Python has one object each, however often they are made
    desk.add(guest, [*texts, *texts])
    desk.add(other, [bytes(bytearray(text)) for text in texts])
    assert desk.filters.cost == cost_of(texts)
    desk.filters.remove(b"a", guest.descriptor)
    desk.filters.remove(b"a", guest.descriptor)
    assert desk.filters.cost == cost_of([b"", b"bb"])
    desk.end([b"", b"bb"])
    assert desk.filters.cost == 0


def test_the_longest_filter_is_one_and_a_longer_one_costs_the_connection(desk: Desk) -> None:
    guest = desk.guest()
    longest = b"\xff" + b"i" * 64 + b" " + b"p" * 200  # a node's id, a pattern
    assert len(longest) <= MAX_FILTER_BYTES and desk.filters.add(longest, guest.descriptor)
    assert desk.filters.add(bytes(MAX_FILTER_BYTES), guest.descriptor) and not guest.is_cut()
    assert not desk.filters.add(bytes(MAX_FILTER_BYTES + 1), guest.descriptor) and guest.is_cut()
    (told,) = desk.filters.take_refusals()
    assert told.startswith("a subscriber at 127.0.0.1 asked for too much") and f"at most {MAX_FILTER_BYTES}" in told
    assert not desk.filters.take_refusals()


def test_a_connection_ends_with_the_filter_that_is_one_too_many(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = many(100, 10)
    monkeypatch.setattr(filters_module, "MAX_COST_EACH", cost_of(texts[:-1]))
    guest, other = desk.guest(), desk.guest()
    desk.add(other, texts[:10])
    desk.add(guest, texts[:-1])
    assert not guest.is_cut()
    desk.add(guest, texts[-1:])
    assert guest.is_cut() and not other.is_cut()
    assert "100 filters" in desk.filters.take_refusals()[0]


def test_filters_that_are_gone_are_not_held_against_a_connection(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = many(100, 10)
    monkeypatch.setattr(filters_module, "MAX_COST_EACH", cost_of(texts[:60]))
    guest, other = desk.guest(), desk.guest()
    desk.add(guest, texts[:60])
    for text in texts[:50]:
        desk.filters.remove(text, guest.descriptor)
    assert desk.filters._askers[guest.descriptor].cost == cost_of(texts[50:60])
    desk.add(other, texts[:50])  # from now on it has these, and the first one has not
    desk.add(guest, texts[50:])
    assert not guest.is_cut()
    desk.end(texts[50:90])
    desk.add(guest, texts[:50])
    assert not guest.is_cut()
    desk.add(guest, texts[50:51])
    assert guest.is_cut() and not other.is_cut()


def test_what_a_connection_says_after_its_end_is_neither_judged_nor_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting all its filters again for each of them once held a loop for 4 s."""
    monkeypatch.setattr(filters_module, "MAX_COST_EACH", 0)
    monkeypatch.setattr(filters_module, "FLOOD_CHANGES", 10)
    guest = desk.guest()
    desk.add(guest, [b"one"])
    assert guest.is_cut()

    def recount(*_: object) -> None:
        raise AssertionError("counted again")

    monkeypatch.setattr(Filters, "_recount", recount)
    desk.add(guest, [*many(20, 10), bytes(MAX_FILTER_BYTES + 1)])
    assert desk.filters.refused == 1 and len(desk.filters.take_refusals()) == 1


@pytest.mark.parametrize("change", ["add", "remove"])
def test_this_many_changes_in_a_short_time_are_a_flood(desk: Desk, change: str) -> None:
    guest = desk.guest()
    desk.add(guest, [b"again"] * (FLOOD_CHANGES - 2 if change == "add" else 1))
    if change == "remove":
        for _ in range(FLOOD_CHANGES // 2 - 1):
            desk.filters.remove(b"again", guest.descriptor)
            desk.add(guest, [b"again"])
    else:
        desk.add(guest, [b"again"])
    assert not guest.is_cut()
    desk.now += FLOOD_S - 0.1
    if change == "remove":
        desk.filters.remove(b"again", guest.descriptor)
    else:
        desk.add(guest, [b"again"])
    assert guest.is_cut()
    assert f"{FLOOD_CHANGES} changes of its filters in 9.9 s" in desk.filters.take_refusals()[0]


def test_the_same_changes_in_a_longer_time_are_none(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters_module, "FLOOD_CHANGES", 10)
    guest = desk.guest()
    desk.add(guest, [b"again"] * 9)
    desk.now += FLOOD_S
    desk.add(guest, [b"again"] * 10)  # the first of them ends the count, which begins anew
    assert not guest.is_cut()
    desk.now += FLOOD_S - 0.1
    desk.add(guest, [b"again"])
    assert guest.is_cut()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, desk: Desk) -> list[bytes]:
    """A hundred filters; as many are the most in all, ten more the margin."""
    texts = many(300, 10)
    monkeypatch.setattr(filters_module, "MAX_COST_IN_ALL", cost_of(texts[:100]))
    monkeypatch.setattr(filters_module, "MARGIN", cost_of(texts[:10]))
    desk.filters._allowed = cost_of(texts[:100])
    return texts


def test_in_all_those_with_the_most_go_until_the_others_may_stay(desk: Desk, small: list[bytes]) -> None:
    guests = [desk.guest() for _ in range(4)]
    for guest, texts in zip(guests, (small[:10], small[10:40], small[40:75], small[75:100]), strict=True):
        desk.add(guest, texts)
    assert not any(guest.is_cut() for guest in guests)
    desk.add(guests[0], small[100:101])
    assert [guest.is_cut() for guest in guests] == [False, False, True, False]
    # Its filters take a while to go. Meanwhile nobody else is cut for them, even beyond the margin.
    desk.add(guests[0], small[101:112])
    assert desk.filters.refused == 1
    # But who goes on has to go.
    desk.add(guests[3], small[112:200])
    assert [guest.is_cut() for guest in guests] == [False, False, True, True]
    told = desk.filters.take_refusals()
    assert len(told) == 2 and "the most filters, 35, where all together take about 0 MiB" in told[0]


def test_up_to_the_margin_nothing_is_counted_again(
    desk: Desk, small: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    guests = [desk.guest() for _ in range(2)]
    desk.add(guests[0], small[:60])
    desk.add(guests[1], small[60:101])
    assert guests[0].is_cut()
    counted = []
    monkeypatch.setattr(Filters, "_recount", lambda _, asker: counted.append(asker))
    desk.add(guests[1], small[101:111])
    desk.end(small[:1])
    desk.add(guests[1], small[111:112])
    assert not counted
    desk.add(guests[1], small[112:113])
    assert len(counted) == 1


def test_who_comes_again_and_again_costs_nobody_else_a_connection(desk: Desk, small: list[bytes]) -> None:
    """Even if it gets the same descriptor each time, while its filters of before are still there."""
    innocent = desk.guest()
    desk.add(innocent, small[:2])
    for again in range(3):
        abuser = desk.guest()
        desk.add(abuser, small[5 + again * 90 : 95 + again * 90])
        assert abuser.descriptor == desk.guests[1].descriptor and not abuser.is_cut()
        desk.add(abuser, [bytes(MAX_FILTER_BYTES + 1)])
        assert abuser.is_cut()
        abuser.close()
    assert not innocent.is_cut() and desk.filters.refused == 3


def test_what_many_have_is_a_share_for_each_of_them(desk: Desk, small: list[bytes]) -> None:
    guests = [desk.guest() for _ in range(4)]
    for guest in guests[:3]:
        desk.add(guest, small[:60])
    desk.add(guests[3], small[60:100])
    assert desk.filters.refused == 0
    desk.add(guests[3], small[100:101])
    assert [guest.is_cut() for guest in guests] == [False, False, False, True]


def test_what_a_connection_had_that_has_just_left_is_not_held_against_others(desk: Desk, small: list[bytes]) -> None:
    leaves, stays = desk.guest(), desk.guest()
    desk.add(leaves, small[:40])
    leaves.close()
    desk.add(stays, small[40:101])
    assert not stays.is_cut()
    desk.filters._allowed = cost_of(small[:139])
    desk.add(stays, small[101:140])
    assert not stays.is_cut(), "it has as many as may be, and the others are going"


def test_a_filter_that_somebody_else_has_does_not_go_with_a_connection(desk: Desk, small: list[bytes]) -> None:
    guests = [desk.guest() for _ in range(3)]
    desk.filters._allowed = cost_of(small[:117])
    for guest, own in zip(guests[:2], (small[95:105], small[105:116]), strict=True):
        desk.add(guest, [*small[:95], *own])
    desk.add(guests[2], small[116:118])
    assert [guest.is_cut() for guest in guests] == [True, True, False]


def test_as_many_go_at_once_as_it_takes(desk: Desk, small: list[bytes]) -> None:
    guests = [desk.guest() for _ in range(3)]
    desk.filters._allowed = cost_of(small[:249])
    for index, guest in enumerate(guests):
        desk.add(guest, small[index * 80 : index * 80 + 80])
    assert desk.filters.refused == 0
    desk.add(guests[1], small[240:250])
    assert sorted(guest.is_cut() for guest in guests) == [False, True, True] and guests[1].is_cut()


def test_nobody_goes_when_the_rest_fits_exactly(desk: Desk, small: list[bytes]) -> None:
    guests = [desk.guest() for _ in range(3)]
    desk.filters._allowed = cost_of(small[:159])
    for guest, texts in zip(guests, (small[:50], small[50:100], small[100:160]), strict=True):
        desk.add(guest, texts)
    assert [guest.is_cut() for guest in guests] == [False, False, True]


def test_the_bound_in_all_is_back_once_what_was_too_much_is_gone(desk: Desk, small: list[bytes]) -> None:
    guests = [desk.guest() for _ in range(3)]
    desk.add(guests[0], small[:60])
    desk.add(guests[1], small[60:101])
    assert guests[0].is_cut() and not guests[1].is_cut()
    desk.end(small[:1])
    assert desk.filters._allowed == desk.filters.cost, "exactly as many as may be"
    desk.end(small[1:60])
    desk.add(guests[2], small[101:160])
    assert desk.filters.refused == 1
    desk.add(guests[2], small[160:161])
    assert guests[2].is_cut() and not guests[1].is_cut()


def test_in_all_only_what_is_certain_is_held_against_a_connection(desk: Desk, small: list[bytes]) -> None:
    visitor, hoarder = desk.guest(), desk.guest()
    desk.add(visitor, small[200:280])
    desk.end(small[200:280])  # nobody has them any more, and nobody said that it had not either
    desk.add(hoarder, small[:70])
    desk.add(visitor, small[70:101])
    assert hoarder.is_cut() and not visitor.is_cut()


def test_a_connection_that_ended_is_forgotten(desk: Desk) -> None:
    stays, leaves, cut = (desk.guest() for _ in range(3))
    for guest in (stays, leaves, cut):
        desk.add(guest, [b"a"])
    desk.now += 2 * ENDING_S
    desk.add(cut, [bytes(MAX_FILTER_BYTES + 1)])
    leaves.close()
    desk.now += ENDING_S - 0.1
    desk.filters.sweep()
    assert desk.known(stays) and not desk.known(leaves)
    assert desk.known(cut), "its filters may still be there"
    desk.now += 0.1
    desk.filters.sweep()
    assert desk.known(stays) and not desk.known(cut)


def test_a_descriptor_that_is_used_again_is_another_connection(desk: Desk) -> None:
    guest = desk.guest()
    descriptor = guest.descriptor
    desk.add(guest, [bytes(MAX_FILTER_BYTES + 1)])
    guest.close()
    later = desk.guest()
    assert later.descriptor == descriptor, "the lowest that is free"
    desk.add(later, [b"a"])
    assert not later.is_cut()
    desk.add(later, [bytes(MAX_FILTER_BYTES + 1)])
    assert later.is_cut() and desk.filters.refused == 2


def test_who_took_the_descriptor_of_one_who_left_is_not_cut_for_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters_module, "MAX_COST_EACH", cost_of([b"a"]))
    guest = desk.guest()
    desk.add(guest, [b"a"])
    guest.close()
    later = desk.guest()
    assert later.descriptor == guest.descriptor
    desk.add(later, [b"b"])  # still what the first one said, as far as anybody can tell
    assert not later.is_cut() and desk.filters.refused == 0
    desk.add(later, [b"c"])
    assert not later.is_cut()
    desk.add(later, [b"d"])
    assert later.is_cut(), "from then on it has an account of its own"


def test_only_connections_to_these_ports_are_ever_cut(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        stranger = Guest(elsewhere)
        desk.guests.append(stranger)
        for descriptor in (stranger.descriptor, stranger.client.fileno(), desk.listener.fileno(), 2**40, -7):
            assert not desk.filters.add(bytes(MAX_FILTER_BYTES + 1), descriptor)
        guest = desk.guest()
        assert not desk.filters.add(bytes(MAX_FILTER_BYTES + 1), guest.client.fileno())
        assert not stranger.is_cut() and not guest.is_cut() and desk.filters.refused == 0


def test_those_without_a_number_are_all_that_are_not_known_to_be_others(desk: Desk) -> None:
    known, old, older = (desk.guest() for _ in range(3))
    desk.add(known, [b"a"])
    desk.filters.add(bytes(MAX_FILTER_BYTES + 1), NUMBERLESS)
    assert [guest.is_cut() for guest in (known, old, older)] == [False, True, True]
    assert desk.filters.take_refusals()[0].startswith("subscribers of ZeroMQ before 4.0 asked for too much")


def test_what_those_without_a_number_had_is_not_held_against_the_next(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = many(11, 10)
    monkeypatch.setattr(filters_module, "MAX_COST_EACH", cost_of(texts[:-1]))
    for again in range(2):
        guest = desk.guest()
        for text in texts[:-1]:
            desk.filters.add(text, NUMBERLESS)
        assert not guest.is_cut()
        desk.filters.add(texts[-1], NUMBERLESS)
        assert guest.is_cut() and desk.filters.refused == again + 1


def test_what_waits_to_be_told_is_bounded(desk: Desk) -> None:
    for _ in range(MAX_REFUSALS + 1):
        guest = desk.guest()
        desk.add(guest, [bytes(MAX_FILTER_BYTES + 1)])
        guest.close()
    assert desk.filters.refused == MAX_REFUSALS + 1 and len(desk.filters.take_refusals()) == MAX_REFUSALS


def test_the_bounds_leave_room_for_one_another_and_are_those_of_the_docs() -> None:
    assert 0 < MARGIN <= MAX_COST_EACH and 2 * MAX_COST_EACH <= MAX_COST_IN_ALL
    assert (MAX_COST_EACH, MAX_COST_IN_ALL, MAX_FILTER_BYTES) == (32 * MIB, 64 * MIB, 272)
    assert 20_000 <= MAX_COST_EACH // cost_of([bytes(25)]) < 22_000
    assert MAX_COST_EACH // cost_of([b""]) < 100_000, "as an entry here has its price, too"
    # Measured: with frames of 4 KiB fifty strangers held a loop for 24 s.
    assert 2 * MAX_FILTER_BYTES <= MAX_FRAME_BYTES <= 1024
