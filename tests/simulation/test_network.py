"""The simulated network breaks as TCP under ZeroMQ does, and in no other way."""

from __future__ import annotations

import itertools
import random
from typing import Any

from meshmsg.testing import Network, VirtualClock
from meshmsg.testing.clock import ProcessLoop
from meshmsg.testing.network import DUPLICATE_WITHIN, SimulatedTransport
from meshmsg.transport.interface import LinkEvent


class World:
    """Three hosts, each with a process, and a link from a to b."""

    def __init__(self, seed: int = 1, **options: Any) -> None:
        self.clock = VirtualClock()
        self.network = Network(self.clock, random.Random(seed), **options)
        self.a, self.b, self.c = (self.network.open(ProcessLoop(self.clock), host, f"tcp://{host}:1") for host in "abc")
        self.a.dial(1, "tcp://b:1", b"a-1")

    def run(self, seconds: float) -> None:
        self.clock.run_until(self.clock.now + seconds)

    def send(self, *numbers: int, link: int = 1) -> None:
        for number in numbers:
            self.a.send(link, [b"%d" % number])

    def got(self, transport: SimulatedTransport | None = None) -> list[int]:
        return [int(parts[0]) for _, parts in (transport or self.b).receive(10_000)]


def events(transport: SimulatedTransport) -> list[LinkEvent]:
    return [event for _, event in transport.link_events()]


def test_a_link_keeps_its_order_and_loses_nothing() -> None:
    world = World(latency=(0.01, 0.1), jitter=0.5)
    world.send(*range(50))
    world.run(0.3)
    world.send(*range(50, 100))
    world.run(5.0)
    assert world.got() == list(range(100))
    assert events(world.a) == [LinkEvent.UP]


def test_frames_of_two_links_overtake_one_another() -> None:
    orders = set()
    for seed in range(30):
        world = World(seed, latency=(0.01, 0.1))
        world.a.dial(2, "tcp://b:1", b"a-2")
        world.run(1.0)
        world.send(1, link=1)
        world.send(2, link=2)
        world.run(1.0)
        orders.add(tuple(world.got()))
    assert orders == {(1, 2), (2, 1)}


def test_a_frame_is_repeated_in_place_or_soon_after() -> None:
    world = World(duplicates=0.5)
    world.run(1.0)
    world.send(*range(100))
    world.run(1.0)
    got = world.got()
    assert 120 < len(got) < 180
    assert list(dict.fromkeys(got)) == list(range(100))
    late = [after - before for before, after in itertools.pairwise(got) if after < before]
    assert late and min(late) >= -DUPLICATE_WITHIN


def test_a_crash_is_known_in_milliseconds_and_dialling_it_is_refused() -> None:
    world = World()
    world.run(1.0)
    world.network.crash(world.b)
    world.run(0.02)
    world.a.dial(2, "tcp://b:1", b"a-2")
    world.run(0.02)
    assert events(world.a) == [LinkEvent.UP, LinkEvent.DOWN, LinkEvent.REFUSED]


def test_what_a_crashed_process_sent_arrives_up_to_some_point() -> None:
    counts = set()
    for seed in range(40):
        world = World(seed)
        world.run(1.0)
        world.send(*range(10))
        world.network.crash(world.a)
        world.run(1.0)
        got = world.got()
        assert got == list(range(len(got)))
        counts.add(len(got))
    assert len(counts) > 4 and min(counts) < 3


def test_a_frozen_process_is_down_after_one_and_a_half_seconds() -> None:
    world = World()
    world.run(1.0)
    world.network.freeze(world.b)
    world.run(1.4)
    assert events(world.a) == [LinkEvent.UP]
    world.run(0.8)
    assert events(world.a) == [LinkEvent.DOWN]
    world.a.dial(2, "tcp://b:1", b"a-2")
    world.run(4.0)
    assert events(world.a) == [LinkEvent.FAILED]  # the other system accepts, but nobody answers


def test_a_short_freeze_delays_and_loses_nothing() -> None:
    world = World()
    world.run(1.0)
    world.network.freeze(world.b)
    world.send(1, 2)
    world.run(1.0)
    assert world.got() == []
    world.network.thaw(world.b)
    world.run(1.0)
    assert world.got() == [1, 2] and events(world.a) == [LinkEvent.UP]


def test_a_cut_needs_to_be_in_one_direction_only() -> None:
    for source, target in (("a", "b"), ("b", "a")):
        world = World()
        world.run(1.0)
        world.network.cut(source, target, one_way=True)
        world.send(7)
        world.run(1.0)
        assert world.got() == ([] if source == "a" else [7])
        world.run(1.2)
        assert events(world.a) == [LinkEvent.UP, LinkEvent.DOWN]
        world.a.dial(2, "tcp://b:1", b"a-2")
        world.run(4.0)
        assert events(world.a) == [LinkEvent.FAILED]


def test_a_cut_that_heals_soon_delays_and_loses_nothing() -> None:
    world = World()
    world.run(1.0)
    world.network.cut("a", "b")
    world.send(1)
    world.run(1.0)
    world.send(2)
    world.network.heal()
    world.run(1.0)
    assert world.got() == [1, 2] and events(world.a) == [LinkEvent.UP]


def test_a_cut_between_two_leaves_the_third_alone() -> None:
    world = World()
    world.a.dial(2, "tcp://c:1", b"a-2")
    world.run(1.0)
    world.network.cut("a", "b")
    world.send(9, link=2)
    world.run(3.0)
    assert world.got(world.c) == [9]
    assert world.a.link_events() == [(1, LinkEvent.UP), (2, LinkEvent.UP), (1, LinkEvent.DOWN)]


def test_a_dead_host_behind_a_cut_is_silent() -> None:
    world = World()
    world.run(1.0)
    world.network.cut("a", "b")
    world.network.crash(world.b)
    world.run(0.5)
    assert events(world.a) == [LinkEvent.UP]
    world.a.dial(2, "tcp://b:1", b"a-2")
    world.run(3.0)
    assert sorted(events(world.a), key=str) == [LinkEvent.DOWN, LinkEvent.FAILED]


def test_a_reset_loses_the_tail_and_a_new_link_works() -> None:
    world = World(latency=(0.05, 0.05))
    world.run(1.0)
    world.send(*range(10))
    world.network.disconnect("a", "b")
    world.run(1.0)
    got = world.got()
    assert got == list(range(len(got)))
    assert events(world.a) == [LinkEvent.UP, LinkEvent.DOWN]
    assert not world.a.send(1, [b"1"])
    world.a.dial(2, "tcp://b:1", b"a-2")
    world.send(77, link=2)
    world.run(1.0)
    assert world.got() == [77]


def test_a_clean_end_delivers_everything() -> None:
    world = World()
    world.run(1.0)
    world.send(*range(10))
    world.a.close()
    world.run(1.0)
    assert world.got() == list(range(10))


def test_a_port_can_be_used_again() -> None:
    world = World()
    world.run(1.0)
    world.network.crash(world.b)
    again = world.network.open(ProcessLoop(world.clock), "d", "tcp://b:1")
    world.a.dial(2, "tcp://b:1", b"a-2")
    world.send(5, link=2)
    world.run(1.0)
    assert world.got(again) == [5]


def test_a_crowded_link_says_no() -> None:
    world = World(crowding=0.5)
    world.run(1.0)
    taken = [number for number in range(200) if world.a.send(1, [b"%d" % number])]
    world.run(1.0)
    assert 50 < len(taken) < 150 and world.got() == taken
