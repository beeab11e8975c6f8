"""What PUB and SUB do with a message, in whatever face they are used. One suite, every face (``faces.py``)."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import pytest

from meshmsg import NodeClosed, WaitTimeout
from tests.contracts.faces import PATIENCE_S, Collected, Face, Gate, bodies_of, take, until
from tests.contracts.topics import connect, get_all

# --- one message --------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G6")
def test_a_message_arrives_with_its_topic_body_headers_and_sender(face: Face) -> None:
    out, sub = connect(face, "sensors.attic.temperature")
    out.send({"value": 21.5, "raw": b"\x00\xff"}, headers={"unit": "C"})
    message = sub.get(timeout=PATIENCE_S)
    assert message.body == {"value": 21.5, "raw": b"\x00\xff"}
    assert (message.topic, dict(message.headers)) == ("sensors.attic.temperature", {"unit": "C"})
    assert (message.sender, message.queue, message.attempt) == ("producer", "sensors.attic.temperature", 1)
    assert message.id.endswith("/sensors.attic.temperature/0")
    with message:
        pass  # a verdict is allowed, and changes nothing


def test_a_body_is_encoded_before_send_returns(face: Face) -> None:
    out, sub = connect(face, "state")
    body = {"state": "at send"}
    out.send(body)
    body["state"] = "changed"
    assert sub.get(timeout=PATIENCE_S).body == {"state": "at send"}


def test_nobody_has_to_subscribe(face: Face) -> None:
    out = face.node().pub("unheard")
    out.send(1)
    out.send_many(range(100))
    assert out.lag() == {}


@pytest.mark.guarantee("G6")
def test_a_node_hears_itself_and_each_of_its_subscriptions_gets_all(face: Face) -> None:
    node = face.node()
    first, second = node.sub("news"), node.sub("news")
    wild = node.sub("**")
    out = node.pub("news")
    node.wait_for(sub="news", timeout=PATIENCE_S)
    out.send_many(range(20))
    assert get_all(first, 20) == get_all(second, 20) == get_all(wild, 20) == list(range(20))
    message = [out.send(["one"]), first.get(timeout=PATIENCE_S)][1]
    message.body.append("changed by one subscription")
    assert second.get(timeout=PATIENCE_S).body == ["one"]


# --- order, topics, patterns --------------------------------------------------------------------------------


@pytest.mark.guarantee("G6")
@pytest.mark.parametrize("how", ["send", "send_nowait", "send_many", "iterator"])
def test_messages_arrive_in_order_each_once(face: Face, how: str) -> None:
    out, sub = connect(face, "numbers")
    if how == "send_many":
        out.send_many(list(range(3000)))
    elif how == "iterator":
        out.send_many(number for number in range(3000))
    else:
        for number in range(300):
            getattr(out, how)(number)
    count = 3000 if how in ("send_many", "iterator") else 300
    assert get_all(sub, count) == list(range(count))
    assert sub.gaps == 0


@pytest.mark.guarantee("G6")
def test_a_topic_is_no_prefix(face: Face) -> None:
    publisher, subscriber = face.pair()
    sub = subscriber.sub("a.b")
    out = publisher.pub("**")
    publisher.wait_for(sub="a.b", timeout=PATIENCE_S)
    for topic in ("a.bc", "a", "a.b.c", "a.b"):
        out.send(topic, topic=topic)
    message = sub.get(timeout=PATIENCE_S)
    assert (message.topic, message.body) == ("a.b", "a.b")


@pytest.mark.guarantee("G6")
@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("a.*", ["a.b", "a.c"]),
        ("a.*.c", ["a.b.c"]),
        ("a.**", ["a", "a.b", "a.c", "a.b.c"]),
        ("**.c", ["a.c", "a.b.c", "c"]),
        ("*", ["a", "c"]),
        ("**", ["a", "a.b", "a.c", "a.b.c", "c", "ä.ö"]),
    ],
)
def test_patterns_match_whole_segments(face: Face, pattern: str, wanted: list[str]) -> None:
    publisher, subscriber = face.pair()
    sub, end = subscriber.sub(pattern), subscriber.sub("the.end.of.it.all")
    out = publisher.pub("**")
    publisher.wait_for(sub="the.end.of.it.all", timeout=PATIENCE_S)
    for topic in ("a", "a.b", "a.c", "a.b.c", "c", "ä.ö"):
        out.send(topic, topic=topic)
    out.send("end", topic="the.end.of.it.all")
    end.get(timeout=PATIENCE_S)
    messages = [sub.get(timeout=PATIENCE_S) for _ in wanted]
    assert [message.topic for message in messages] == bodies_of(messages) == wanted


@pytest.mark.guarantee("G6")
def test_many_topics_keep_their_order_each(face: Face) -> None:
    out, sub = connect(face, "many.*")
    for number in range(20):
        for topic in range(50):
            out.send(number, topic=f"many.{topic}")
    found = defaultdict(list)
    for message in take(sub, 1000):
        found[message.topic].append(message.body)
    assert found == {f"many.{topic}": list(range(20)) for topic in range(50)}


@pytest.mark.guarantee("G6")
def test_several_publishers_of_one_topic(face: Face) -> None:
    subscriber = face.node("subscriber")
    sub = subscriber.sub("shared")
    publishers = [face.node(f"publisher-{index}") for index in range(3)]
    outs = [publisher.pub("shared") for publisher in publishers]
    for publisher in publishers:
        publisher.wait_for(sub="shared", timeout=PATIENCE_S)
    for number in range(50):
        for out in outs:
            out.send(number)
    found = defaultdict(list)
    for message in take(sub, 150):
        found[message.sender].append(message.body)
    assert found == {f"publisher-{index}": list(range(50)) for index in range(3)}


# --- late joiners -------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G6")
def test_who_joins_late_gets_the_retained_value_of_every_topic(face: Face) -> None:
    publisher, subscriber = face.pair()
    out = publisher.pub("state.*", retain=True)
    for topic in ("a", "b"):
        for number in range(10):
            out.send(number, topic=f"state.{topic}", headers={"n": number})
    out.lag()  # and by now all have left
    sub = subscriber.sub("state.*", replay="latest")
    found = {message.topic: (message.body, message.headers["n"]) for message in take(sub, 2)}
    assert found == {"state.a": (9, 9), "state.b": (9, 9)}
    out.send("live", topic="state.a")
    assert get_all(sub, 1) == ["live"]


def test_a_retained_value_can_be_deleted(face: Face) -> None:
    publisher, subscriber = face.pair()
    out = publisher.pub("state", retain=True)
    assert out.delete_retained() is False
    out.send("old")
    until(out.delete_retained)
    assert out.delete_retained() is False
    sub = subscriber.sub("state", replay="latest")
    publisher.wait_for(sub="state", timeout=PATIENCE_S)
    out.send("new")
    assert get_all(sub, 1) == ["new"]


def test_without_a_replay_only_what_comes_is_heard(face: Face) -> None:
    publisher, subscriber = face.pair()
    out = publisher.pub("state", retain=True, history=100)
    out.send("old")
    out.lag()  # and by now it has left
    sub = subscriber.sub("state")
    publisher.wait_for(sub="state", timeout=PATIENCE_S)
    out.send("new")
    assert get_all(sub, 1) == ["new"]


@pytest.mark.guarantee("G6")
def test_history_and_what_is_published_meanwhile_have_no_seam(face: Face) -> None:
    publisher, subscriber = face.pair()
    out = publisher.pub("log", history=100_000)
    out.send_many(range(2000))
    go_on = threading.Event()

    def publish() -> None:
        for number in range(2000, 4000):
            out.send(number)
            if number == 2500:
                go_on.set()

    thread = threading.Thread(target=publish)
    thread.start()
    go_on.wait(PATIENCE_S)
    sub = subscriber.sub("log", replay="history")
    assert get_all(sub, 4000) == list(range(4000))
    assert sub.gaps == 0
    thread.join(PATIENCE_S)


def test_a_history_has_its_bound(face: Face) -> None:
    publisher, subscriber = face.pair()
    out = publisher.pub("log", history=10)
    for number in range(100):
        out.send(number)
    out.lag()  # and by now all have left
    sub = subscriber.sub("log", replay="history")
    publisher.wait_for(sub="log", timeout=PATIENCE_S)
    out.send("live")
    assert get_all(sub, 11) == [*range(90, 100), "live"]
    assert sub.gaps == 0, "what the history does not reach back to is no gap"


# --- consuming ----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G6")
def test_a_handler_gets_everything_in_order(face: Face) -> None:
    publisher, subscriber = face.pair()
    sub, got = subscriber.sub("work"), Collected()
    face.handle(sub, lambda message: got.add(message.body))
    out = publisher.pub("work")
    publisher.wait_for(sub="work", timeout=PATIENCE_S)
    out.send_many(range(2000))
    assert got.wait(2000) == list(range(2000))


def test_a_handler_that_fails_is_told_and_the_next_message_comes(face: Face) -> None:
    publisher, subscriber = face.pair()
    events, sub, got = subscriber.events(), subscriber.sub("work"), Collected()

    def handler(message: Any) -> None:
        got.add(message.body)
        if message.body == 1:
            raise ValueError("not this one")

    face.handle(sub, handler)
    out = publisher.pub("work")
    publisher.wait_for(sub="work", timeout=PATIENCE_S)
    out.send_many(range(3))
    assert got.wait(3) == [0, 1, 2], "and there is no second attempt"
    while (event := events.get(timeout=PATIENCE_S)).kind != "message.failed":
        pass
    assert event.queue == "work" and event.text.endswith("/work/1: ValueError: not this one")


def test_batches(face: Face) -> None:
    out, sub = connect(face, "work")
    out.send_many(range(1000))
    got: list[Any] = []
    for batch in sub.batches(max_size=300, max_wait=0.05):
        assert len(batch) <= 300
        got += bodies_of(list(batch))
        if len(got) == 1000:
            break
    assert got == list(range(1000))


def test_a_type_decodes_and_what_does_not_fit_is_told(face: Face) -> None:
    pytest.importorskip("msgspec")
    publisher, subscriber = face.pair()
    events = subscriber.events()
    sub = subscriber.sub("typed", type=dict[str, int])
    out = publisher.pub("typed")
    publisher.wait_for(sub="typed", timeout=PATIENCE_S)
    out.send({"a": "no number"})
    out.send({"a": 1})
    assert get_all(sub, 1) == [{"a": 1}]
    while (event := events.get(timeout=PATIENCE_S)).kind != "message.failed":
        pass
    assert "/typed/0: " in event.text


def test_get_gives_up_after_its_timeout(face: Face) -> None:
    sub = face.node().sub("silence")
    with pytest.raises(WaitTimeout, match=r"^no message of 'silence' came within 0 s"):
        sub.get(timeout=0)


# --- closing ------------------------------------------------------------------------------------------------


def test_a_closed_subscription_hears_no_more_and_can_be_opened_again(face: Face) -> None:
    publisher, subscriber = face.pair()
    out, sub = publisher.pub("work"), subscriber.sub("work")
    publisher.wait_for(sub="work", timeout=PATIENCE_S)
    out.send("unheard")
    sub.close()
    sub.close()
    with pytest.raises(NodeClosed, match=r"sub\('work'\) was closed: open another one"):
        sub.get(timeout=PATIENCE_S)
    publisher.wait_for(sub="work", count=0, timeout=PATIENCE_S)
    until(lambda: not _is_confirmed(publisher, "work"))
    again = subscriber.sub("work")
    publisher.wait_for(sub="work", timeout=PATIENCE_S)
    out.send("heard")
    assert get_all(again, 1) == ["heard"]


def _is_confirmed(publisher: Any, topic: str) -> bool:
    try:
        publisher.wait_for(sub=topic, timeout=0)
    except WaitTimeout:
        return False
    return True


def test_closing_a_subscription_waits_for_its_handlers(face: Face) -> None:
    publisher, subscriber = face.pair()
    sub, gate, started, ended = subscriber.sub("work"), Gate(), Collected(), Collected()

    def handler(message: Any) -> Any:
        started.add(message.body)
        yield gate
        ended.add(message.body)

    face.handle(sub, handler)
    out = publisher.pub("work")
    publisher.wait_for(sub="work", timeout=PATIENCE_S)
    out.send_many(range(10))
    assert started.wait(1) == [0]
    closing = threading.Thread(target=sub.close, kwargs={"drain": PATIENCE_S})
    closing.start()
    until(lambda: getattr(sub, "_async", sub)._closing)
    out.send(10)  # comes too late
    gate.open()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert list(started) == list(ended) == list(range(10))


def test_an_iteration_ends_with_its_subscription_and_with_the_node(face: Face) -> None:
    node = face.node()
    subs = [node.sub("a"), node.sub("b")]
    began, ended = Collected(), Collected()

    def iterate(sub: Any) -> None:
        for message in sub:
            began.add(message.body)
        ended.add("ended")

    threads = [threading.Thread(target=iterate, args=(sub,)) for sub in subs]
    for thread in threads:
        thread.start()
    for topic in "ab":
        pub = node.pub(topic)
        node.wait_for(sub=topic, timeout=PATIENCE_S)
        pub.send(topic)
    began.wait(2)
    subs[0].close()
    ended.wait(1)
    node.close()
    ended.wait(2)
    for thread in threads:
        thread.join(PATIENCE_S)


def test_the_same_pattern_is_the_same_socket_until_it_is_closed(face: Face) -> None:
    publisher, subscriber = face.pair()
    first = publisher.pub("work.*", retain=True)
    assert publisher.pub("work.*").options.retain
    first.send(1, topic="work.a")
    first.close()
    first.close()
    with pytest.raises(NodeClosed, match=r"^pub\('work\.\*'\) is closed: open another one"):
        first.send(1, topic="work.a")
    again = publisher.pub("work.*", history=5)
    sub = subscriber.sub("work.a")
    publisher.wait_for(sub="work.a", timeout=PATIENCE_S)
    again.send(2, topic="work.a")
    message = sub.get(timeout=PATIENCE_S)
    assert (message.body, message.id.rpartition("/")[2]) == (2, "1"), "the topic goes on with its numbers"


def test_what_was_opened_before_the_start_works_after_it(face: Face) -> None:
    node = face.make("early")
    out, sub, got = node.pub("early", retain=True), node.sub("early", replay="latest"), Collected()
    closed = node.pub("closed", will="never")
    closed.close()
    face.handle(sub, lambda message: got.add(message.body))
    with pytest.raises(NodeClosed, match="not started"):
        out.send(1)
    with node:
        node.wait_for(sub="early", timeout=PATIENCE_S)
        out.send(2)
        assert got.wait(1) == [2]


# --- threads ------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G6")
def test_threads_may_publish_and_consume(face: Face) -> None:
    if not face.is_blocking:
        pytest.skip("a node of an event loop belongs to its thread")
    out, sub = connect(face, "shared.*", pub={"block": True, "window": 100}, buffer=50)
    got = Collected()

    def publish(topic: int) -> None:
        for number in range(500):
            out.send(number, topic=f"shared.{topic}")

    def consume() -> None:
        for message in sub:
            got.add((message.topic, message.body))

    threads = [threading.Thread(target=publish, args=(topic,)) for topic in range(4)]
    threads += [threading.Thread(target=consume, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    found = got.wait(2000)
    assert sorted(found) == sorted((f"shared.{topic}", number) for topic in range(4) for number in range(500))
    assert sub.gaps == 0
    sub.close()
    for thread in threads:
        thread.join(PATIENCE_S)


# --- leaving ------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G6")
def test_what_was_published_right_before_a_goodbye_arrives(face: Face) -> None:
    subscriber = face.node("subscriber")
    sub = subscriber.sub("*")
    for index in range(10):
        publisher = face.node(f"publisher-{index}")
        out = publisher.pub("numbers")
        publisher.wait_for(sub="numbers", timeout=PATIENCE_S)
        out.send_many(range(100))
        publisher.close()
        assert get_all(sub, 100) == list(range(100))
    assert sub.gaps == 0


# --- last wills ---------------------------------------------------------------------------------------------


def test_a_goodbye_executes_no_last_will(face: Face) -> None:
    publisher, subscriber = face.pair()
    sub = subscriber.sub("presence.*")
    out = publisher.pub("presence.producer", will="gone")
    assert publisher.pub("presence.producer") is not None
    publisher.wait_for(sub="presence.producer", timeout=PATIENCE_S)
    out.send("here")
    publisher.close()
    until(lambda: not subscriber.peers())
    assert get_all(sub, 1) == ["here"]
    with pytest.raises(WaitTimeout):
        sub.get(timeout=0)
