"""Groups of subscribers through every face: each group gets all, one member each, with acks and dead letters (G7)."""

from __future__ import annotations

from typing import Any

import pytest

import meshmsg
from meshmsg import ConfigurationError, NameClash, OutboxFull, Reject, Retry, UnknownOption
from tests.contracts.faces import PATIENCE_S, Collected, Face, Gate, bodies_of, until

pytestmark = pytest.mark.guarantee("G7")


def make_collector(collected: Collected) -> Any:
    def handler(message: Any) -> None:
        collected.add((message.topic, message.body, dict(message.headers)))

    return handler


@pytest.mark.guarantee("G1", "G2")
def test_every_group_gets_all_and_one_member_each(face: Face) -> None:
    producer, consumer = face.pair()
    orders = producer.pub("orders.*")
    billing, mail = Collected(), Collected()
    for node in (producer, consumer):  # who publishes can be a member, too
        face.handle(node.sub("orders.**", group="billing"), make_collector(billing))
    face.handle(consumer.sub("orders.eu", group="mail"), make_collector(mail))
    producer.wait_for(group="billing", count=2, timeout=PATIENCE_S)
    producer.wait_for(group="mail", timeout=PATIENCE_S)
    for number in range(50):
        orders.send(number, topic="orders.eu" if number % 2 else "orders.us", headers={"n": number})
    orders.send_many(range(50, 60), topic="orders.eu")
    assert sorted(body for _, body, _ in billing.wait(60)) == list(range(60))
    assert sorted(body for _, body, _ in mail.wait(35)) == sorted([*range(1, 50, 2), *range(50, 60)])
    assert ("orders.us", 8, {"n": 8}) in billing
    until(lambda: not any(books.pending for books in producer.ledger().values()))
    books = producer.ledger()
    assert books["group:billing@orders.**"] == meshmsg.Ledger(accepted=60, processed=60)
    assert books["group:mail@orders.eu"] == meshmsg.Ledger(accepted=35, processed=35)
    assert producer.close() == producer.ledger() == books


def test_a_member_iterates_and_takes_batches(face: Face) -> None:
    producer, consumer = face.pair()
    orders = producer.pub("orders")
    member = consumer.sub("orders", group="billing", prefetch=8)
    producer.wait_for(group="billing", timeout=PATIENCE_S)
    orders.send_many(range(5))
    first = member.get(timeout=PATIENCE_S)
    assert (first.topic, first.body, first.queue, first.attempt) == ("orders", 0, "group:billing@orders", 1)
    first.ack()
    taken: list[Any] = []
    for batch in member.batches(max_size=2):
        with batch:
            taken += bodies_of(list(batch))
        if len(taken) >= 4:
            break
    assert taken == [1, 2, 3, 4]
    until(lambda: producer.ledger()["group:billing@orders"].processed == 5)


@pytest.mark.guarantee("G1", "G4")
def test_failures_are_tried_again_and_die_with_their_topic(face: Face) -> None:
    producer, consumer = face.pair()
    orders = producer.pub("orders.*", retry=Retry(max_attempts=3, backoff=0.01))
    attempts = Collected()

    def handler(message: Any) -> None:
        attempts.add((message.body, message.attempt))
        if message.body == "never":
            raise Reject("hopeless")
        if message.body == "bad" or message.attempt < 2:
            raise ValueError("not yet")

    face.handle(consumer.sub("orders.*", group="billing"), handler)
    producer.wait_for(group="billing", timeout=PATIENCE_S)
    for body in ("good", "bad", "never"):
        orders.send(body, topic=f"orders.{body}")
    until(lambda: producer.ledger()["group:billing@orders.*"].pending == 0 and len(producer.dead_letters()) == 2)
    assert sorted(attempts) == [("bad", 1), ("bad", 2), ("bad", 3), ("good", 1), ("good", 2), ("never", 1)]
    letters = {letter.body: letter for letter in producer.dead_letters("group:billing@orders.*")}
    assert (letters["bad"].reason, letters["bad"].topic) == ("attempts", "orders.bad")
    assert (letters["never"].reason, letters["never"].error) == ("rejected", "hopeless")
    assert producer.redrive(letters["bad"].id) == [letters["bad"].id]
    until(lambda: len(attempts) == 9)


@pytest.mark.guarantee("G5")
def test_send_waits_for_a_full_group_and_send_nowait_says_so(face: Face) -> None:
    producer, consumer = face.pair()
    orders = producer.pub("orders", max_pending=3)
    gate, done = Gate(), Collected()

    def handler(message: Any) -> Any:
        yield gate
        done.add(message.body)

    face.handle(consumer.sub("orders", group="billing", prefetch=1), handler)
    producer.wait_for(group="billing", timeout=PATIENCE_S)
    refused = 0
    while not refused:
        try:
            orders.send_nowait(len(done))
        except OutboxFull as error:
            refused = until(lambda: producer.ledger()["group:billing@orders"].pending)
            assert "group 'billing'" in str(error)
    assert refused == 3
    gate.open()
    for number in range(20):
        orders.send(number)
        assert producer.ledger()["group:billing@orders"].pending <= 3
    orders.send_many(range(20, 40))
    done.wait(43)
    assert list(done)[3:] == list(range(40))
    assert not producer.dead_letters()


@pytest.mark.guarantee("G1", "G5")
def test_a_durable_group_collects_while_nobody_is_there(face: Face) -> None:
    producer, consumer = face.pair()
    orders = producer.pub("orders", max_pending=10)
    consumer.sub("orders", group="billing", durable=True)
    producer.wait_for(group="billing", timeout=PATIENCE_S)
    consumer.close()
    until(lambda: not producer.peers())
    for number in range(15):
        orders.send(number)
    until(lambda: producer.ledger()["group:billing@orders"].dead == 5)
    assert [(letter.body, letter.reason) for letter in producer.dead_letters()] == [(n, "overflow") for n in range(5)]
    done = Collected()
    face.handle(face.node("heir").sub("orders", group="billing", durable=True), make_collector(done))
    assert [body for _, body, _ in done.wait(10)] == list(range(5, 15))


def test_conditions_on_headers_hold_for_groups_and_for_others(face: Face) -> None:
    producer, consumer = face.pair()
    orders = producer.pub("orders")
    group, alone = Collected(), Collected()
    face.handle(consumer.sub("orders", group="eu", where={"region": "eu"}), make_collector(group))
    face.handle(consumer.sub("orders", where={"region": "eu"}), make_collector(alone))
    producer.wait_for(group="eu", timeout=PATIENCE_S)
    producer.wait_for(sub="orders", timeout=PATIENCE_S)
    for number in range(6):
        orders.send(number, headers={"region": ("eu", "us", 1)[number % 3]} if number else None)
    orders.send("end", headers={"region": "eu", "more": 1})
    assert [body for _, body, _ in group.wait(2)] == [3, "end"]
    assert [body for _, body, _ in alone.wait(2)] == [3, "end"]
    assert producer.ledger()['group:eu{"region":"eu"}@orders'].accepted == 2


def test_a_member_may_leave_and_come_back(face: Face) -> None:
    producer, consumer = face.pair()
    orders = producer.pub("orders")
    member = consumer.sub("orders", group="billing")
    with pytest.raises(NameClash, match="a member of this group already"):
        consumer.sub("orders", group="billing")
    producer.wait_for(group="billing", timeout=PATIENCE_S)
    orders.send(1)
    with member.get(timeout=PATIENCE_S):
        pass
    member.close()
    producer.wait_for(group="billing", count=0, timeout=PATIENCE_S)
    until(lambda: not producer.peers()[0].offers.get("group"))
    witness = producer.sub("orders")
    producer.wait_for(sub="orders", timeout=PATIENCE_S)
    orders.send(2)
    assert witness.get(timeout=PATIENCE_S).body == 2  # it has left, and no group was there
    again = consumer.sub("orders", group="billing")
    producer.wait_for(group="billing", timeout=PATIENCE_S)
    orders.send(3)
    message = again.get(timeout=PATIENCE_S)
    message.ack()
    assert message.body == 3


def test_types_are_converted_and_what_does_not_fit_is_a_dead_letter(face: Face) -> None:
    producer, consumer = face.pair()
    orders = producer.pub("orders")
    done = Collected()
    face.handle(consumer.sub("orders", group="billing", type=dict[str, int]), make_collector(done))
    producer.wait_for(group="billing", timeout=PATIENCE_S)
    orders.send({"id": 1})
    orders.send("what?")
    assert done.wait(1)[0][1] == {"id": 1}
    (letter,) = until(producer.dead_letters)
    assert (letter.reason, letter.topic) == ("rejected", "orders")


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"group": "a b"}, ConfigurationError, r"group= takes a name, got 'a b': it holds white space"),
        ({"group": "a@b"}, ConfigurationError, "it holds white space, '@'"),
        ({"group": ""}, ConfigurationError, "1 to 100 bytes are allowed"),
        ({"group": "x" * 101}, ConfigurationError, "1 to 100 bytes are allowed"),
        ({"group": 7}, ConfigurationError, "it is a int, not a text"),
        ({"group": "g", "durable": 1}, ConfigurationError, "durable= takes True or False"),
        ({"group": "g", "where": "x"}, ConfigurationError, 'where= takes a dict such as {"region": "eu"}'),
        ({"group": "g", "where": {}}, ConfigurationError, "where= takes a dict"),
        ({"group": "g", "where": {"x": None}}, ConfigurationError, "with a str, number or bool each, got 'x': None"),
        ({"group": "g", "where": {1: 2}}, ConfigurationError, "names of headers"),
        ({"group": "g", "where": {"x": 2**70}}, ConfigurationError, "names of headers"),
        ({"group": "g", "where": {"x": "\udc80"}}, ConfigurationError, "names of headers"),
        ({"group": "g", "where": {"x": "y" * 1000}}, ConfigurationError, "1000 are allowed"),
        ({"group": "g", "prefetch": 0}, ConfigurationError, "prefetch= takes 1 or more"),
        ({"group": "g", "latest": True}, UnknownOption, r"sub\('t', group='g'\) has no option 'latest'"),
        ({"durable": True}, UnknownOption, r"sub\('t'\) has no option 'durable'"),
        ({"latest": True, "where": {"x": 1}}, ConfigurationError, "leave out where="),
    ],
)
def test_mistakes_are_named(face: Face, options: dict[str, Any], error: type[Exception], why: str) -> None:
    node = face.node()
    with pytest.raises(error, match=why):
        node.sub("t", **options)
    assert node.sub("t", group="g").pattern == "t"


def test_queues_of_groups_are_no_queues_to_push_to(face: Face) -> None:
    node = face.node()
    for open_socket in (node.push, node.pull):
        with pytest.raises(ConfigurationError, match="belong to groups of subscribers"):
            open_socket("group:billing@orders")
    with pytest.raises(ConfigurationError, match="belong to groups of subscribers"):
        node.push("work", dead_letter_to="group:billing@orders")
    with pytest.raises(meshmsg.WaitTimeout, match="found 0 of 1 for group='nobody'"):
        node.wait_for(group="nobody", timeout=0.01)
