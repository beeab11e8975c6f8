"""A subscription in the shape of an inbox: what is handed out, lent to threads, told and dropped."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg.engine.subscription import FIRST_WILL, Delivery, Subscription
from meshmsg.engine.topic_buffer import REFILL, REFILL_BYTES, TopicBuffer
from meshmsg.message import Gap
from meshmsg.wire.codec import Undecodable

NODE = "a" * 32 + ".1"


class Clock:
    def now(self) -> float:
        return 0.0


class Setting:
    """A subscription, its buffer, and what that told."""

    def __init__(self, **options: Any) -> None:
        self.subscription = Subscription("t.*", **options)
        self.buffer = TopicBuffer(self.subscription, 256, lambda key: "publisher")
        self.gaps: list[Gap] = []
        self.failed: list[tuple[str, str]] = []
        self.buffer.on_gap = self.gaps.append
        self.buffer.on_failed = lambda message_id, error: self.failed.append((message_id, error))
        self.next = 0

    def put(self, *bodies: Any, headers: Any = None, topic: str = "t.x", size: int | None = None) -> int:
        taken = self.subscription.put(topic, NODE, self.next, list(bodies), headers, size or len(bodies))
        self.next += len(bodies)
        return taken

    def put_will(self, **headers: Any) -> None:
        number = FIRST_WILL + self.next
        self.subscription.put_will(Delivery("t.x", NODE, number, ["gone"], {number: headers}, 4))

    def miss(self, count: int) -> None:
        self.subscription.miss("t.x", NODE, self.next, self.next + count)
        self.next += count

    def take_one(self) -> Any:
        message = self.buffer.take_one(Clock())
        return None if message is None else message.body


def test_messages_know_where_they_came_from() -> None:
    setting = Setting()
    setting.put("body", headers={0: {"n": 1}})
    message = setting.buffer.take_one(Clock())
    assert message is not None
    assert (message.body, message.topic, message.queue, message.sender) == ("body", "t.x", "t.*", "publisher")
    assert (message.id, dict(message.headers)) == ("aaaaaaaaaaaa/t.x/0", {"n": 1})
    assert setting.buffer.take_one(Clock()) is None


def test_a_gap_is_told_when_everything_before_it_was_taken() -> None:
    setting = Setting()
    setting.put(1, 2)
    setting.miss(5)
    setting.put(3)
    setting.buffer.tell_gaps()
    assert [setting.take_one(), setting.take_one()] == [1, 2]
    assert setting.gaps == []
    assert setting.take_one() == 3
    assert setting.gaps == [Gap("t.x", "publisher", 5, 2, 7, "a" * 32)]


def test_a_gap_with_nothing_before_it_is_told_at_once() -> None:
    setting = Setting()
    setting.miss(5)
    setting.put(1)
    setting.buffer.tell_gaps()
    assert setting.gaps == [Gap("t.x", "publisher", 5, 0, 5, "a" * 32)]
    assert setting.buffer.waiting == 1


def test_a_batch_goes_over_gaps_and_tells_them() -> None:
    setting = Setting()
    setting.put(1, 2)
    setting.miss(1)
    setting.put(3, 4)
    assert setting.buffer.take(3, 0.0).bodies == [1, 2, 3]
    assert len(setting.gaps) == 1 and setting.buffer.waiting == 1


def test_what_is_not_taken_can_still_be_replaced_by_newer_values() -> None:
    setting = Setting(latest=True)
    for number in range(5):
        for topic in ("t.x", "t.y"):
            setting.subscription.put_latest(Delivery(topic, NODE, number, [number], None, 1))
    assert setting.take_one() == 4
    setting.subscription.put_latest(Delivery("t.y", NODE, 5, [5], None, 1))
    assert setting.take_one() == 5
    assert setting.take_one() is None


def test_only_so_much_is_lent_as_is_asked_for() -> None:
    setting = Setting()
    for number in range(20):
        setting.put(*range(number * 100, number * 100 + 100))
    assert setting.buffer.lend(0) == setting.buffer.lend(-5)
    lent = [body for arrival in setting.buffer.lend(150) for body in arrival.bodies]
    assert lent == list(range(150))
    assert setting.buffer.waiting == setting.subscription.waiting == 1850


def test_reading_ahead_is_bounded() -> None:
    setting = Setting()
    setting.put(*range(REFILL * 3))
    assert setting.take_one() == 0
    assert setting.subscription.waiting == REFILL * 2
    assert setting.buffer.waiting == REFILL * 3 - 1


@pytest.mark.guarantee("G6")
def test_reading_ahead_is_bounded_in_bytes() -> None:
    setting = Setting()
    setting.put(*range(5), size=5)
    for body in range(5, 10):
        setting.put(body, size=REFILL_BYTES // 2)
    assert setting.take_one() == 0
    assert setting.subscription.waiting == 4, "one more of these fits behind the small ones"
    assert [setting.take_one() for _ in range(9)] == list(range(1, 10))


@pytest.mark.guarantee("G6")
def test_a_message_is_taken_however_large_it_is() -> None:
    setting = Setting()
    for body in range(3):
        setting.put(body, size=2 * REFILL_BYTES)
    assert setting.take_one() == 0
    assert setting.subscription.waiting == 2
    setting.put(3, 4, size=4 * REFILL_BYTES)  # these came together
    assert [setting.take_one() for _ in range(3)] == [1, 2, 3]
    assert setting.subscription.waiting == 1


def count_lent(setting: Setting, *arguments: int) -> int:
    return sum(map(len, setting.buffer.lend(*arguments)))


@pytest.mark.guarantee("G6")
def test_what_is_lent_ahead_is_bounded_in_bytes_and_what_is_asked_for_is_not() -> None:
    setting = Setting()
    for body in range(10):
        setting.put(body, size=100)
    assert count_lent(setting, 256, 99) == count_lent(setting, 256, 0) == count_lent(setting, 256, -50) == 0
    assert count_lent(setting, 256, 299) == 2
    assert setting.buffer.taken_bytes == 200
    assert count_lent(setting, 0, -50, 3) == 3
    assert count_lent(setting, 256, 200, 1) == 2
    assert (count_lent(setting, 256, 300), setting.buffer.taken_bytes) == (3, 1000)
    setting.subscription.check()


def test_threads_that_wait_are_lent_a_newest_value_each() -> None:
    setting = Setting(latest=True)
    for topic in ("t.a", "t.b", "t.c"):
        setting.subscription.put_latest(Delivery(topic, NODE, 0, [topic], None, 1))
    assert count_lent(setting, 0, 100, 2) == 2
    assert setting.subscription.waiting == 1


@pytest.mark.guarantee("G6")
def test_a_gap_is_not_told_while_threads_are_lent_what_came_before_it() -> None:
    setting = Setting()
    on_loan = [2]
    setting.buffer.lent = lambda: on_loan[0]
    setting.miss(1)
    setting.put(1)
    setting.buffer.tell_gaps()
    assert not setting.buffer.lend(256, over_gaps=False)
    assert (setting.gaps, setting.buffer.waiting, setting.buffer.unsettled) == ([], 1, 3)
    on_loan[0] = 0
    setting.buffer.tell_gaps()
    assert len(setting.gaps) == 1
    assert len(setting.buffer.lend(256, over_gaps=False)) == 1


@pytest.mark.guarantee("G6")
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_closed_buffer_hands_out_no_batch(ahead: int) -> None:
    setting = Setting()
    setting.put(*range(10))
    for _ in range(ahead):
        setting.take_one()
    assert setting.buffer.waiting == 10 - ahead, "these are counted as discarded"
    setting.buffer.return_unstarted()
    assert not setting.buffer.take(100, 0.0)


def test_a_closed_buffer_hands_out_nothing() -> None:
    setting = Setting()
    setting.put(*range(REFILL * 2))
    assert setting.take_one() == 0
    setting.buffer.return_unstarted()
    assert setting.take_one() is None
    assert not setting.buffer.lend(10)


def test_what_cannot_be_decoded_is_told_and_costs_nothing_else() -> None:
    setting = Setting()
    setting.put(1, Undecodable("no key"), 3)
    setting.buffer.decode = lambda body: body * 10
    assert [setting.take_one(), setting.take_one(), setting.take_one()] == [10, 30, None]
    ((message_id, error),) = setting.failed
    assert message_id.endswith("/t.x/1") and "no key" in error


def test_verdicts_change_nothing_except_that_failures_are_told() -> None:
    setting = Setting()
    setting.put(*range(4))
    batch = setting.buffer.take(4, 0.0).messages
    batch[0].ack()
    batch[1].nack(error="later")
    batch[2].reject("never")
    assert [error for _, error in setting.failed] == ["later", "never"]
    assert setting.take_one() is None


def test_a_last_will_has_an_id_of_its_own_and_comes_although_there_is_no_room() -> None:
    setting = Setting(buffer=1)
    setting.put("full")
    for _ in range(3):  # it went, came back, went again; the application takes nothing
        setting.subscription.put_will(
            Delivery("t.x", NODE, FIRST_WILL + 1, ["gone"], {FIRST_WILL + 1: {"will": True}}, 5)
        )
        setting.subscription.check()
    taken = [setting.buffer.take_one(Clock()) for _ in range(3)]
    assert [message and (message.body, message.id) for message in taken] == [
        ("full", "aaaaaaaaaaaa/t.x/0"),
        ("gone", "aaaaaaaaaaaa/t.x/will.1"),
        None,
    ]
    assert taken[1] is not None and taken[1].headers == {"will": True}
    setting.subscription.check()
    assert setting.gaps == []


def test_a_last_will_takes_the_place_of_the_latest_value() -> None:
    setting = Setting(latest=True, buffer=1)
    setting.subscription.put_latest(Delivery("t.x", NODE, 0, ["value"], None, 1))
    setting.subscription.put_will(Delivery("t.x", NODE, FIRST_WILL + 1, ["gone"], None, 1))
    setting.subscription.put_will(Delivery("t.y", NODE, FIRST_WILL, ["gone, too"], None, 1))
    setting.subscription.check()
    assert [setting.take_one() for _ in range(3)] == ["gone", "gone, too", None]
    setting.subscription.check()


def make_sifted(**options: Any) -> Setting:
    return Setting(where=(("k", 1),), **options)


@pytest.mark.guarantee("G6")
def test_what_a_condition_passes_over_never_waits() -> None:
    setting = make_sifted(buffer=3)
    told: list[Subscription] = []
    setting.subscription.on_arrival = told.append
    for headers in (None, {0: {"k": 0}}, {}):
        assert setting.put(*range(100), headers=headers) == 100
    assert (setting.buffer.waiting, setting.subscription.waiting_bytes, told) == (0, 0, [])
    setting.put_will(k=2)
    assert setting.buffer.waiting == 0
    setting.put_will(k=1)
    assert (setting.buffer.waiting, setting.take_one(), told) == (1, "gone", [setting.subscription])
    setting.subscription.check()


@pytest.mark.guarantee("G6")
def test_what_a_condition_wants_comes_in_order_with_its_number() -> None:
    setting = make_sifted()
    wanted = {number: {"k": 1} for number in (0, 2, 3, 7, 9)}
    assert setting.put(*range(10), headers={4: {"k": 2}, **wanted}) == 10
    assert (setting.buffer.waiting, setting.subscription.waiting_bytes) == (5, 5)
    batch = setting.buffer.take(10, 0.0)
    assert batch.bodies == [0, 2, 3, 7, 9]
    assert [message.id.rpartition("/")[2] for message in batch] == ["0", "2", "3", "7", "9"]
    assert all(dict(message.headers) == {"k": 1} for message in batch)
    assert setting.buffer.waiting == 0


@pytest.mark.guarantee("G6")
def test_what_a_condition_wants_and_has_no_room_stays_with_the_publisher() -> None:
    setting = make_sifted(buffer=3)
    wanted = {number: {"k": 1} for number in (1, 2, 4, 5, 8)}
    assert setting.put(*range(10), headers=wanted) == 5, "1, 2 and 4 fit, and 5 does not"
    assert setting.subscription.refused and setting.buffer.waiting == 3
    setting.subscription.check()
    assert setting.buffer.take(3, 0.0).bodies == [1, 2, 4]
    assert not setting.subscription.refused
    setting.next = 5
    assert setting.put(*range(5, 10), headers=wanted) == 5
    assert setting.buffer.take(3, 0.0).bodies == [5, 8]


@pytest.mark.guarantee("G6")
def test_a_gap_between_what_a_condition_passes_over() -> None:
    setting = make_sifted()
    setting.miss(5)
    setting.put(5, 6)
    setting.miss(3)
    setting.put(10, headers={10: {"k": 1}})
    setting.subscription.check()
    setting.buffer.tell_gaps()
    assert [(gap.start, gap.stop) for gap in setting.gaps] == [(0, 5), (7, 10)]
    assert setting.take_one() == 10
