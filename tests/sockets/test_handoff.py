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
from meshmsg.message import Gap, Message
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


@pytest.mark.guarantee("G6")
async def test_a_gap_behind_the_last_message_is_told_when_a_thread_wants_more() -> None:
    node = "a" * 32 + ".1"
    subscription = Subscription("ticks")
    buffer = TopicBuffer(subscription, 256, lambda key: "publisher")
    gaps: list[Gap] = []
    buffer.on_gap = gaps.append
    handoff = Handoff(Turns(), buffer, asyncio.get_running_loop())  # type: ignore[arg-type]  # a stand-in
    subscription.put("ticks", node, 0, ["a"], None, 1)
    subscription.miss("ticks", node, 1, 3)
    handoff.lend()
    message = handoff.take()
    assert message is not None
    assert message.body == "a"
    assert gaps == []  # it comes behind the message, which may have been handled by now
    assert await asyncio.to_thread(handoff.take, time.monotonic() + 0.01) is None
    assert [(gap.start, gap.stop) for gap in gaps] == [(1, 3)]


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
