"""The hand-off to threads by itself: what may be started, what goes back, and in which order."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from meshmsg.engine.inbox import Inbox
from meshmsg.engine.lane import InLane
from meshmsg.engine.subscription import Subscription
from meshmsg.engine.topic_buffer import TopicBuffer
from meshmsg.message import Message
from meshmsg.sockets import handoff
from meshmsg.sockets.handoff import Bell, Handoff
from meshmsg.wire import frames


class Turns:
    """Stands in for the driver."""

    def __init__(self) -> None:
        self.owner = 1
        self.count = 0

    def turn(self) -> None:
        self.count += 1

    def now(self) -> float:
        return 50.0

    def require_process(self) -> None: ...


class Setting:
    """An inbox with two lanes, and its hand-off."""

    def __init__(self) -> None:
        self.driver = Turns()
        self.inbox = Inbox("work", 100, lambda inbox: None)
        self.lanes = [self._open(number, name) for number, name in enumerate(("a", "b"), 1)]
        self.handoff = Handoff(self.driver, self.inbox, asyncio.get_running_loop())  # type: ignore[arg-type]  # a stand-in

    def _open(self, number: int, name: str) -> InLane:
        lane = self.inbox.open_lane(number, name, name)
        assert lane is not None
        lane.limit = 50
        return lane

    def arrive(self, lane: InLane, *bodies: Any, **details: Any) -> None:
        run = [lane.received, len(bodies), details or None]
        data = frames.Data(lane.number, lane.received, lane.floor, 0, len(bodies), [run], b"")
        self.inbox.accept(lane, data, list(bodies), 50.0)
        self.handoff.lend()

    def take_all(self) -> list[Any]:
        return [message.body for message in self.handoff.take_many(100, 0)] if self.handoff._lent else []


async def test_messages_keep_their_order_and_start_when_taken() -> None:
    setting = Setting()
    setting.arrive(setting.lanes[0], 1, 2)
    setting.arrive(setting.lanes[1], 3)
    assert not setting.inbox.waiting
    first = setting.handoff.take()
    assert first is not None and (first.body, first.sender, first.queue, first.id) == (1, "a", "work", "a/work/0")
    setting.handoff.close()
    assert [body for each in setting.inbox.arrivals for body in each.bodies] == [2, 3]
    setting.inbox.return_unstarted()
    assert [lane.verdicts for lane in setting.lanes] == [
        {1: (frames.RETURNED, None, "the consumer left")},
        {0: (frames.RETURNED, None, "the consumer left")},
    ]
    assert setting.handoff.take() is None


async def test_verdicts_cross_in_one_turn() -> None:
    setting = Setting()
    lane, other = setting.lanes
    setting.arrive(lane, *range(10))
    setting.arrive(other, "x")
    messages = setting.handoff.take_many(11, 0)
    for index in (0, 1, 2, 4, 3, 9, 10, 6):
        messages[index].ack()
    messages[5].nack(delay=2.0, error="why")
    messages[7].reject("never")
    assert (lane.floor, lane.done, setting.driver.count) == (0, set(), 0)
    await asyncio.sleep(0)
    assert setting.driver.count == 1
    assert (lane.floor, lane.done, other.floor) == (8, {9}, 1)
    assert lane.verdicts == {5: (frames.NACKED, 2.0, "why"), 7: (frames.REJECTED, None, "never")}
    lane.check()
    messages[8].ack()
    await asyncio.sleep(0)
    assert (lane.floor, lane.done, setting.driver.count) == (10, set(), 2)


async def test_a_lane_that_its_producer_gave_up_is_not_started_any_more() -> None:
    setting = Setting()
    given_up, other = setting.lanes
    setting.arrive(given_up, 1, 2)
    setting.arrive(other, 3)
    setting.inbox.close_lane(given_up)
    assert setting.take_all() == [3]
    await asyncio.sleep(0)
    assert not given_up.unsettled
    setting.inbox.flush()
    assert list(setting.inbox.lanes.values()) == [other]


async def test_what_is_held_is_taken_back_from_the_threads_and_lent_again() -> None:
    setting = Setting()
    first, second = setting.lanes
    setting.arrive(first, 1, 2, 3)
    setting.arrive(second, 4)
    assert setting.handoff.take().body == 1  # type: ignore[union-attr]
    setting.inbox.hold()
    setting.arrive(second, 5)
    assert setting.take_all() == []
    setting.inbox.release(lambda lane: lane is first)
    setting.handoff.lend()
    assert setting.take_all() == [2, 3]
    assert {seq: verdict[0] for seq, verdict in second.verdicts.items()} == {0: frames.RETURNED, 1: frames.RETURNED}


async def test_a_producer_that_is_gone_has_its_messages_processed_all_the_same() -> None:
    setting = Setting()
    setting.arrive(setting.lanes[0], 1, 2)
    setting.inbox.orphan_peer("a")
    assert setting.take_all() == [1, 2]


async def test_a_message_expires_on_loan() -> None:
    setting = Setting()
    lane = setting.lanes[0]
    setting.arrive(lane, "stale", x=-1.0)
    setting.arrive(lane, "fresh", x=1000.0)
    setting.arrive(lane, "ageless")
    assert setting.take_all() == ["fresh", "ageless"]
    await asyncio.sleep(0)
    assert lane.verdicts[0][0] == frames.EXPIRED


async def test_who_is_interrupted_while_a_batch_fills_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting()
    setting.arrive(setting.lanes[0], 1, 2, 3)

    def interrupt(*arguments: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("meshmsg.sockets.handoff.acquire", interrupt)
        with pytest.raises(KeyboardInterrupt):
            setting.handoff.take_many(10, 1000.0)
    assert not setting.handoff._tickets
    assert setting.take_all() == [1, 2, 3]


@pytest.mark.parametrize("closes", [False, True])
async def test_who_is_interrupted_while_taking_puts_back_what_he_took(
    closes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting()
    handoff, lane = setting.handoff, setting.lanes[0]
    setting.arrive(lane, 1, 2, 3)
    take = handoff.take

    def interrupted(deadline: float | None = None) -> Message | None:
        if len(handoff._lent) == 1:
            if closes:
                handoff.close()
            raise KeyboardInterrupt
        return take(deadline)

    with monkeypatch.context() as patch:
        patch.setattr(handoff, "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            handoff.take_many(10, 0)
    if closes:
        await asyncio.sleep(0)
        assert lane.verdicts == dict.fromkeys((0, 1), (frames.RETURNED, None, "the consumer left"))
        assert [body for each in setting.inbox.arrivals for body in each.bodies] == [3]
    else:
        assert setting.take_all() == [1, 2, 3]


async def test_one_bad_verdict_does_not_cost_the_others(caplog: pytest.LogCaptureFixture) -> None:
    setting = Setting()
    lane = setting.lanes[0]
    setting.arrive(lane, *range(5))

    def extended(lane: InLane, seq: int) -> None:
        raise ValueError("no")

    lane.extended = extended
    messages = setting.handoff.take_many(5, 0)
    messages[0].ack()
    messages[1].extend()
    setting.handoff.settle(lane, 1, frames.REJECTED, None, None)  # type: ignore[arg-type]  # as bad as it gets
    for message in messages[2:]:
        message.ack()
    setting.handoff.apply()
    assert (lane.floor, lane.done) == (5, set())
    kind, _, text = lane.verdicts[1]
    assert kind == frames.NACKED and text.startswith("its verdict failed: TypeError")
    assert "a verdict on message 1 of 'work' failed" in caplog.text


async def test_waiting_ends_at_the_deadline_and_for_want_of_room() -> None:
    setting = Setting()
    assert setting.handoff.take(time.monotonic() + 0.001) is None
    for lane in setting.lanes:
        lane.limit = lane.received
    setting.lanes[0].limit = 2
    setting.arrive(setting.lanes[0], 1, 2)
    assert not setting.handoff.room
    assert [message.body for message in setting.handoff.take_many(5, 1000.0)] == [1, 2]


class Topics:
    """A subscription, and its hand-off."""

    def __init__(self, **options: Any) -> None:
        self.subscription = Subscription("ticks", **options)
        self.buffer = TopicBuffer(self.subscription, 256, lambda key: "publisher")
        self.gaps: list[tuple[int, int]] = []
        self.buffer.on_gap = lambda gap: self.gaps.append((gap.start, gap.stop))
        self.handoff = Handoff(Turns(), self.buffer, asyncio.get_running_loop())  # type: ignore[arg-type]  # a stand-in
        self.next = 0

    def put(self, *bodies: Any, size: int = 1) -> None:
        """Each by itself, as far as there is room."""
        for body in bodies:
            self.next += self.subscription.put("ticks", "a" * 32 + ".1", self.next, [body], None, size)

    def arrive(self, *bodies: Any, size: int = 1) -> None:
        self.put(*bodies, size=size)
        self.buffer.tell_gaps()
        self.handoff.lend()

    def miss(self, count: int) -> None:
        self.subscription.miss("ticks", "a" * 32 + ".1", self.next, self.next + count)
        self.next += count

    async def take(self, wait_s: float = 10.0) -> Any:
        message = await asyncio.to_thread(self.handoff.take, time.monotonic() + wait_s)
        return None if message is None else message.body

    async def take_many(self, limit: int) -> list[Any]:
        return [message.body for message in await asyncio.to_thread(self.handoff.take_many, limit, 10.0)]


@pytest.mark.guarantee("G6")
async def test_a_gap_behind_the_last_message_is_told_when_a_thread_wants_more() -> None:
    topics = Topics()
    topics.put("a")
    topics.miss(2)
    topics.handoff.lend()
    message = topics.handoff.take()
    assert message is not None
    assert message.body == "a"
    assert topics.gaps == []  # it comes behind the message, which may have been handled by now
    assert await topics.take(0.01) is None
    assert topics.gaps == [(1, 3)]


@pytest.mark.guarantee("G6")
async def test_threads_hear_of_a_gap_between_the_messages() -> None:
    topics = Topics()
    topics.arrive("a", "b")
    topics.miss(1)
    topics.arrive("c")
    told = []
    for _ in range(3):
        told.append((await topics.take(), list(topics.gaps)))
    assert told == [("a", []), ("b", []), ("c", [(2, 3)])]


@pytest.mark.guarantee("G6")
async def test_a_batch_goes_over_a_gap() -> None:
    topics = Topics()
    topics.arrive("a", "b")
    topics.miss(1)
    topics.arrive("c")
    assert await asyncio.wait_for(topics.take_many(3), 5) == ["a", "b", "c"]
    assert topics.gaps == [(2, 3)]


@pytest.mark.guarantee("G6")
@pytest.mark.parametrize(
    ("size", "options", "lent"),
    [
        (1, {}, handoff.AHEAD),
        (handoff.AHEAD_BYTES // 4, {}, 4),
        (handoff.AHEAD_BYTES + 1, {}, 0),
        (1, {"buffer": 3}, 3),
        (1, {"latest": True}, 0),
    ],
)
async def test_topics_are_lent_ahead_up_to_a_bound(size: int, options: dict[str, Any], lent: int) -> None:
    """In messages, in bytes, and no more than the subscription itself may hold."""
    topics = Topics(**options)
    for number in range(300):
        topics.arrive(number, size=size)
    assert topics.handoff.waiting == lent
    assert topics.buffer.unsettled == lent + topics.subscription.waiting
    count = min(10, topics.next)
    assert [await topics.take() for _ in range(count)] == list(range(count))
    topics.arrive()
    assert topics.handoff.waiting <= lent


@pytest.mark.guarantee("G6")
async def test_each_thread_that_waits_gets_a_message_however_large() -> None:
    topics = Topics()
    threads = [asyncio.ensure_future(asyncio.to_thread(topics.handoff.take)) for _ in range(3)]
    while len(topics.handoff._tickets) < 3:
        await asyncio.sleep(0)
    topics.put(*range(5), size=2 * handoff.AHEAD_BYTES)
    topics.handoff.lend()
    messages = await asyncio.wait_for(asyncio.gather(*threads), 5)
    assert sorted(message.body for message in messages if message is not None) == [0, 1, 2]
    assert topics.subscription.waiting == 2


@pytest.mark.guarantee("G6")
@pytest.mark.parametrize(("options", "size", "batch"), [({"buffer": 3}, 1, 3), ({"buffer_bytes": 250}, 100, 2)])
async def test_a_batch_is_no_larger_than_the_buffer(options: dict[str, Any], size: int, batch: int) -> None:
    topics = Topics(**options)
    taken = asyncio.ensure_future(topics.take_many(100))
    while not topics.handoff._tickets:
        await asyncio.sleep(0)
    for number in range(batch + 1):
        topics.arrive(number, size=size)
    assert await asyncio.wait_for(taken, 5) == list(range(batch))
    assert await topics.take() == batch


async def test_one_answer_for_many_rings() -> None:
    answers = [0]

    def answer() -> None:
        answers[0] += 1

    bell = Bell(asyncio.get_running_loop(), answer)
    for _ in range(5):
        bell.ring()
    assert (bell.rung, answers[0]) == (True, 0)
    await asyncio.sleep(0)
    assert (bell.rung, answers[0]) == (False, 1)
    bell.ring()
    await asyncio.sleep(0)
    assert answers[0] == 2


async def test_what_is_rung_for_during_an_answer_gets_one_of_its_own() -> None:
    answers: list[bool] = []

    def answer() -> None:
        if not answers:
            bell.ring()  # as by a thread that came too late for this answer
        answers.append(bell.rung)

    bell = Bell(asyncio.get_running_loop(), answer)
    bell.ring()
    for _ in range(3):
        await asyncio.sleep(0)
    assert answers == [True, False]


def test_a_bell_of_a_closed_loop_is_silent() -> None:
    loop = asyncio.new_event_loop()
    bell = Bell(loop, lambda: pytest.fail("nobody is there"))
    loop.close()
    bell.ring()
