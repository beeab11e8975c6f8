"""What a node offers has to fit into a frame that peers read; and a node never gives itself up."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshmsg.engine.binding import Binding
from meshmsg.engine.engine import PAUSED, Engine
from meshmsg.engine.peers import FEW, MAX_OFFERS_BYTES, SELF_ROUTE, Identity, OfferRoom
from meshmsg.engine.subscription import Subscription
from meshmsg.engine.topic_log import TopicOptions
from meshmsg.errors import ConfigurationError, NameClash
from meshmsg.options import PushOptions, RouterOptions
from meshmsg.wire import frames
from meshmsg.wire.codec import make_packer
from tests.engine.test_engine import Pair

pytestmark = pytest.mark.guarantee("G11")
FULL = "note"  # a kind of offer that takes all the room


def make() -> Engine:
    return Engine(Identity("a", 1, "a", "mesh", ("tcp://a:1",)), generator=random.Random(1))


def fill(engine: Engine) -> None:
    """Offers until there is no room for a single name."""
    for size in (399, 1):
        number = 0
        while True:
            try:
                engine.offer(FULL, f"{number:06d}".rjust(size, "x"), {})
            except ConfigurationError:
                break
            number += 1


def measure(engine: Engine) -> int:
    offers = {kind: names for kind, names in engine.identity.offers.items() if names}
    return len(make_packer()(offers))


def test_what_is_counted_is_what_travels_and_a_margin() -> None:
    engine, names = make(), 500
    for number in range(names):
        engine.offer("push", f"queue-{number}", {})
        engine.offer("sub", f"topic.{number}", {"since": number})
    engine.offer("pull", "one", {"reliable": False})
    taken = engine._offer_room.taken
    assert measure(engine) <= taken <= measure(engine) + (2 * names + 1) * 20
    for number in range(names):
        engine.withdraw("push", f"queue-{number}")
        engine.withdraw("sub", f"topic.{number}")
        engine.withdraw("sub", f"topic.{number}")
    engine.withdraw("pull", "one")
    assert engine._offer_room.taken == 0


def test_a_full_node_can_be_introduced() -> None:
    engine = make()
    fill(engine)
    assert MAX_OFFERS_BYTES - 100 < engine._offer_room.taken <= MAX_OFFERS_BYTES
    for kind in FEW:  # these come on top, and are few
        engine.offer(kind, "x" * 200, {"endpoints": ["tcp://255.255.255.255:65535"] * 16})
    engine.handle_discovered("b", ("tcp://b:1",), 0.0)
    for _, parts in engine.drain(0.0).send:
        assert frames.decode(parts) is not None


def test_the_error_says_what_there_is_and_what_to_do() -> None:
    engine = make()
    fill(engine)
    count = len(engine.identity.offers[FULL])
    with pytest.raises(ConfigurationError, match=rf"push 'q' .* {count} names open \({count} note\).* of the 3145728"):
        engine.open_push("q", PushOptions())


def openers(engine: Engine) -> dict[str, Any]:
    name = "n" * 50  # longer than what is left
    return {
        "push": lambda: engine.open_push(name, PushOptions()),
        "pull": lambda: engine.open_pull(name, 10),
        "group": lambda: engine.open_group(Binding("g", name, ()), 10),
        "pub": lambda: engine.open_pub(name, TopicOptions()),
        "declared": lambda: engine.declare_pub(name, TopicOptions()),
        "sub": lambda: engine.open_sub(Subscription(name)),
        "router": lambda: engine.open_router(name, RouterOptions()),
        "will": lambda: engine.offer("will", name, {"body": ["x"]}),
    }


@pytest.mark.parametrize("what", openers(make()))
def test_what_finds_no_room_is_not_half_open(what: str) -> None:
    engine = make()
    fill(engine)

    def look() -> tuple[Any, ...]:
        return (
            {kind: list(names) for kind, names in engine.identity.offers.items() if names},
            engine.identity.offers_version,
            engine._offer_room.taken,
            list(engine.outboxes),
            list(engine.inboxes),
            dict(engine.publisher.offers()),
            dict(engine.subscriptions.offers()),
            list(engine.serving.services),
        )

    engine.drain(0.0)
    before = look()
    opening = openers(engine)[what]
    with pytest.raises(ConfigurationError, match=r"names open"):
        opening()
    assert look() == before
    engine.check()
    for number in range(3):
        engine.withdraw(FULL, f"{number:06d}".rjust(399, "x"))
    opening()


def test_what_is_there_can_be_opened_again_and_closed() -> None:
    engine = make()
    box = engine.open_push("q", PushOptions())
    engine.open_pub("t", TopicOptions())
    fill(engine)
    assert engine.open_push("q", PushOptions()) is box
    engine.open_pub("t", TopicOptions())
    engine.close_pub("t")
    engine.close_pub("t")
    engine.close_push("q")
    engine.open_push("q", PushOptions())


def test_a_closed_queue_without_room_for_its_offer_stays_closed() -> None:
    engine = make()
    engine.open_push("queue", PushOptions()).push(b"\x01")
    engine.close_push("queue")
    fill(engine)
    with pytest.raises(ConfigurationError):
        engine.open_push("queue", PushOptions())
    engine.drain(0.0)
    assert engine.outboxes["queue"].pending == 1 and "queue" in engine._sender._closed
    engine.check()


def test_dead_letters_stay_where_they_are_if_their_queue_cannot_be_offered() -> None:
    pair = Pair(dead_letter_to="graves")
    fill(pair.a)
    pair.box.push(b"\x01")
    for _ in range(8):
        pair.carry()
    pair.inbox.take(1, 0.0)[0].reject("no")
    pair.carry()
    assert [letter.id for letter in pair.a.dead_letters.letters()] == ["a/q/0"] and "graves" not in pair.a.outboxes


def test_room_is_kept_for_what_is_offered_later_unless_that_is_never_opened() -> None:
    engine = make()
    with engine.reserving_offer("router", "service", PAUSED):
        pass
    with pytest.raises(NameClash), engine.reserving_offer("router", "other", PAUSED):
        raise NameClash("other")
    fill(engine)
    taken = engine._offer_room.taken
    for details in ({}, PAUSED, {}):
        engine.offer("router", "service", details)
    assert engine._offer_room.taken == taken
    with pytest.raises(NameClash), engine.reserving_offer("router", "service", PAUSED):
        raise NameClash("it is open")
    assert engine._offer_room.taken == taken
    engine.withdraw("router", "service")
    assert engine._offer_room.taken < taken


def test_counting_is_exact_whatever_is_taken_and_given_back() -> None:
    room, chance = OfferRoom(), random.Random(7)
    names = [str(number) * 3 for number in range(20)]
    for _ in range(500):
        name = chance.choice(names)
        if chance.random() < 0.6:
            room.take("push", name, {"x": "y" * chance.randint(0, 9)})
        else:
            room.give_back("push", name)
        assert room.taken == sum(room._sizes.values())
    for name in names:
        room.give_back("push", name)
    assert room.taken == 0


def test_a_frame_of_its_own_that_is_refused_is_told_and_nothing_else() -> None:
    pair = Pair()
    box, inbox = pair.a.open_push("own", PushOptions()), pair.a.open_pull("own", 5)
    own = [parts for link, parts in pair.a.drain(0.0).send if not link]
    pair.a.handle_parts(SELF_ROUTE, [b"\xc1"], 0.0)
    pair.a.handle_parts(SELF_ROUTE, frames.encode(frames.Bye("left")), 0.0)
    effects = pair.a.drain(0.0)
    assert [event.kind for event in effects.events] == ["frame.refused"] and "a bug" in effects.events[0].text
    assert pair.a.refused_frames == 1
    assert not [parts for link, parts in effects.send if not link and isinstance(frames.decode(parts), frames.Bye)]
    pair.a.check()
    box.push(b"\x01")
    for _ in range(6):  # it still is a peer of its own
        for parts in own:
            pair.a.handle_parts(SELF_ROUTE, parts, 0.0)
        own = [parts for link, parts in pair.a.drain(0.0).send if not link]
    assert inbox.waiting == 1
