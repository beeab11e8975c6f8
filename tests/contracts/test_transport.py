"""What every transport must do. A new implementation joins `FACTORIES` and passes all of this unchanged."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshmsg.errors import NodeClosed
from meshmsg.transport import Transport
from meshmsg.transport.zmq import ZmqTransport
from tests.transport.side import DOWN, FAILED, REFUSED, UP, Side

FACTORIES: dict[str, Callable[[], Transport]] = {"zmq": ZmqTransport}


@pytest.fixture(params=sorted(FACTORIES))
def make(request: pytest.FixtureRequest) -> Callable[[], Transport]:
    return FACTORIES[request.param]


Make = Callable[[], Transport]


async def test_a_message_arrives_under_the_dialled_identity(make: Make) -> None:
    with Side(make()) as ours, Side(make()) as theirs:
        await ours.dial(1, theirs, b"identity-1")
        assert ours.transport.send(1, [b"header", b"", b"body"])
        await theirs.until_received(1)
        assert theirs.received == [(b"identity-1", [b"header", b"", b"body"])]
        assert ours.events == [(1, UP)]
        assert theirs.events == []


async def test_what_is_sent_before_the_link_is_up_arrives(make: Make) -> None:
    with Side(make()) as ours, Side(make()) as theirs:
        ours.transport.dial(1, theirs.endpoint, b"a")
        assert ours.transport.send(1, [b"early"])
        assert await theirs.until_received(1) == [[b"early"]]


async def test_order_is_kept_on_a_link(make: Make) -> None:
    expected = [[b"%d" % number] for number in range(3000)]
    with Side(make()) as ours, Side(make()) as theirs:
        await ours.dial(1, theirs, b"a")
        for frames in expected:
            assert ours.transport.send(1, frames)
        assert await theirs.until_received(len(expected)) == expected


async def test_both_directions_and_several_links(make: Make) -> None:
    with Side(make()) as ours, Side(make()) as theirs, Side(make()) as third:
        await ours.dial(1, theirs, b"to-theirs")
        await ours.dial(2, third, b"to-third")
        await theirs.dial(1, ours, b"back")
        ours.transport.send(1, [b"for theirs"])
        ours.transport.send(2, [b"for third"])
        theirs.transport.send(1, [b"answer"])
        assert await theirs.until_received(1) == [[b"for theirs"]]
        assert await third.until_received(1) == [[b"for third"]]
        await ours.until_received(1)
        assert ours.received == [(b"back", [b"answer"])]


async def test_two_links_to_one_inbox_are_two_routes(make: Make) -> None:
    with Side(make()) as ours, Side(make()) as theirs:
        await ours.dial(1, theirs, b"first")
        await ours.dial(2, theirs, b"second")
        ours.transport.send(1, [b"one"])
        ours.transport.send(2, [b"two"])
        await theirs.until_received(2)
        assert sorted(theirs.received) == [(b"first", [b"one"]), (b"second", [b"two"])]


@pytest.mark.parametrize("size", [0, 64 * 1024 - 1, 64 * 1024, 10_000_000])
async def test_frames_of_any_size_arrive_whole(make: Make, size: int) -> None:
    pattern = bytes(range(251))  # a prime length: pieces in the wrong order cannot look right
    body = (pattern * (size // len(pattern) + 1))[:size]
    with Side(make()) as ours, Side(make()) as theirs:
        await ours.dial(1, theirs, b"a")
        assert ours.transport.send(1, [b"header", body, b"end"])
        assert ours.transport.send(1, [body])
        assert await theirs.until_received(2) == [[b"header", body, b"end"], [body]]


async def test_receive_stops_at_its_limit_and_more_says_so(make: Make) -> None:
    with Side(make()) as ours, Side(make(), limit=3) as theirs:
        await ours.dial(1, theirs, b"a")
        for number in range(1000):
            assert ours.transport.send(1, [b"%d" % number])
        # Were `more` to say no with messages left, nothing would wake this side for the last of them.
        await theirs.until_received(1000)
        assert max(theirs.bursts) == 3
        assert theirs.transport.receive(3) == []
        assert not theirs.transport.more()


async def test_a_hang_up_is_silent_here_and_ends_the_link(make: Make) -> None:
    with Side(make()) as ours, Side(make()) as theirs:
        await ours.dial(1, theirs, b"a")
        await ours.dial(2, theirs, b"b")
        ours.transport.hang_up(1)
        assert not ours.transport.send(1, [b"too late"])
        ours.transport.hang_up(1)
        assert ours.transport.send(2, [b"through the other"])
        assert await theirs.until_received(1) == [[b"through the other"]]
        ours.turn()
        assert ours.events == [(1, UP), (2, UP)]


async def test_what_was_sent_leaves_within_the_linger_time(make: Make) -> None:
    with Side(make()) as ours, Side(make()) as theirs:
        await ours.dial(1, theirs, b"a")
        ours.transport.send(1, [b"goodbye"])
        ours.transport.hang_up(1, linger_ms=5000)
        assert await theirs.until_received(1) == [[b"goodbye"]]


async def test_a_goodbye_leaves_although_the_transport_closes(make: Make) -> None:
    with Side(make()) as theirs:
        with Side(make()) as ours:
            await ours.dial(1, theirs, b"a")
            ours.transport.send(1, [b"goodbye"])
            ours.transport.close(linger_ms=5000)
        assert await theirs.until_received(1) == [[b"goodbye"]]


async def test_a_link_is_down_when_the_other_side_closes(make: Make) -> None:
    with Side(make()) as ours:
        with Side(make()) as theirs:
            await ours.dial(1, theirs, b"a")
        await ours.until_event(1, DOWN)
        assert ours.events == [(1, UP), (1, DOWN)]
        assert not ours.transport.send(1, [b"to nobody"])
        ours.transport.hang_up(1)


async def test_a_link_to_nobody_is_refused(make: Make) -> None:
    with Side(make()) as ours:
        with Side(make()) as theirs:
            pass
        ours.transport.dial(1, theirs.endpoint, b"a")
        await ours.until_event(1, REFUSED)
        assert ours.events == [(1, REFUSED)]
        assert not ours.transport.send(1, [b"to nobody"])


async def test_an_endpoint_that_is_none_has_failed(make: Make) -> None:
    with Side(make()) as ours:
        ours.transport.dial(1, "what is this", b"a")
        await ours.until_event(1, FAILED)
        assert not ours.transport.send(1, [b"to nobody"])


async def test_a_lost_peer_can_be_dialled_again_under_a_new_number(make: Make) -> None:
    with Side(make()) as ours:
        with Side(make()) as before:
            await ours.dial(1, before, b"a")
        await ours.until_event(1, DOWN)
        with Side(make()) as after:
            await ours.dial(2, after, b"b")
            ours.transport.send(2, [b"again"])
            assert await after.until_received(1) == [[b"again"]]


async def test_the_loss_of_one_peer_leaves_the_others_alone(make: Make) -> None:
    with Side(make()) as ours, Side(make()) as stays:
        await ours.dial(1, stays, b"a")
        with Side(make()) as goes:
            await ours.dial(2, goes, b"b")
        await ours.until_event(2, DOWN)
        ours.transport.send(1, [b"still here"])
        assert await stays.until_received(1) == [[b"still here"]]
        assert (1, DOWN) not in ours.events


async def test_a_link_that_never_was_is_no_error(make: Make) -> None:
    with Side(make()) as ours:
        assert not ours.transport.send(7, [b"x"])
        ours.transport.hang_up(7)
        assert ours.transport.link_events() == []


async def test_nothing_is_left_of_a_closed_transport(make: Make) -> None:
    with Side(make()) as ours, Side(make()) as theirs:
        await ours.dial(1, theirs, b"a")
        ours.transport.close()
        ours.transport.close()
        assert not ours.transport.send(1, [b"x"])
        assert ours.transport.receive(10) == []
        assert not ours.transport.more()
        assert ours.transport.link_events() == []
        ours.transport.hang_up(1)
        with pytest.raises(NodeClosed):
            ours.transport.dial(2, theirs.endpoint, b"b")
        with pytest.raises(NodeClosed):
            ours.transport.bind()


def test_closing_before_anything_was_opened_is_fine(make: Make) -> None:
    transport = make()
    transport.close()
    assert transport.wait_closed(1)
    transport = make()
    transport.bind()
    transport.close()
    assert transport.wait_closed(10)
