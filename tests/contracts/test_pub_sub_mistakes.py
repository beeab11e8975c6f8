"""PUB and SUB with bad input, in whatever face: each has an error that names what was given, and what to do."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest

from meshmsg import BodyTooLarge, ConfigurationError, EncodeError, NameClash, UnknownOption, WrongThread
from meshmsg.engine import publisher as publisher_module
from meshmsg.engine import subscriber as subscriber_module
from tests.contracts.faces import PATIENCE_S, Collected, Face, until

NAN = float("nan")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (5, r"^pub\(pattern\) takes"),
        ("", r"^pub\(pattern\) takes"),
        ("a..b", r"^pub\(pattern\) takes"),
        (".a", r"^pub\(pattern\) takes"),
        ("a.b*", r"^pub\(pattern\) takes"),
        ("a." * 300 + "b", r"^pub\(pattern\) takes"),
    ],
)
def test_patterns_that_are_none(face: Face, pattern: Any, why: str) -> None:
    node = face.node()
    with pytest.raises(ConfigurationError, match=why):
        node.pub(pattern)
    with pytest.raises(ConfigurationError, match=why.replace("pub", "sub")):
        node.sub(pattern)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"retain": 1}, "^retain= takes True or False, got 1"),
        ({"history": -1}, "^history= takes 0 or more, got -1"),
        ({"history": 1.5}, "^history= takes a whole number, not float 1.5"),
        ({"history_bytes": 0}, "^history_bytes= takes 1 or more, got 0"),
        ({"history_s": 0}, "^history_s= takes more than 0, got 0"),
        ({"history_s": NAN}, "^history_s= takes a finite number, got nan"),
        ({"block": None}, "^block= takes True or False, got None"),
        ({"window": 0}, "^window= takes 1 or more, got 0"),
        ({"window_bytes": 0.5}, "^window_bytes= takes a whole number, not float 0.5"),
        ({"window": 2**64, "block": True}, "^window= takes at most"),
        ({"reliable": 0}, "^reliable= takes True or False, got 0"),
        ({"reliable": False, "retain": True}, r"^pub\('a', reliable=False\) is bare ZeroMQ and has no retain"),
        ({"will": "x" * 5000}, r"^pub\('a', will=...\) has 5003 bytes; at most 4096"),
    ],
)
def test_options_of_pub_that_cannot_work(face: Face, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        face.node().pub("a", **options)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"latest": 1}, "^latest= takes True or False, got 1"),
        ({"replay": "all"}, "^replay= takes one of 'none', 'latest', 'history', got 'all'"),
        ({"buffer": 0}, "^buffer= takes 1 or more, got 0"),
        ({"prefetch": 0}, "^prefetch= takes 1 or more, got 0"),
        ({"concurrency": "2"}, "^concurrency= takes a whole number, not str '2'"),
        ({"timeout": 0}, "^timeout= takes more than 0, got 0"),
        ({"on_gap": "print"}, r"^sub\(on_gap=\) takes a plain function, not 'print'"),
        ({"reliable": False, "replay": "latest"}, r"^sub\('a', reliable=False\) is bare ZeroMQ and has no replay: "),
        ({"reliable": False, "where": {"x": 1}}, r"^sub\('a', reliable=False\) is bare ZeroMQ and has no where: "),
        ({"durable": True}, r"^sub\('a'\) has no option 'durable': only members of a group"),
        ({"group": "g", "reliable": False}, r"^sub\('a', group='g'\) has no option 'reliable': a group is always"),
    ],
)
def test_options_of_sub_that_cannot_work(face: Face, options: dict[str, Any], why: str) -> None:
    node = face.node()
    with pytest.raises(ConfigurationError, match=why):
        node.sub("a", **options)
    assert node.sub("a").get is not None, "what was refused is not open"


def test_unknown_options_name_the_closest(face: Face) -> None:
    node = face.node()
    with pytest.raises(UnknownOption, match=r"^pub\('a'\) has no option 'retained': did you mean 'retain'\?"):
        node.pub("a", retained=True)
    with pytest.raises(UnknownOption, match=r"^sub\('a'\) has no option 'lates': did you mean 'latest'\?"):
        node.sub("a", lates=True)


def test_a_coroutine_function_is_no_on_gap(face: Face) -> None:
    async def on_gap(gap: Any) -> None: ...

    async def on_gaps(gap: Any) -> Any:
        yield

    def of_gap(gap: Any) -> Any:
        yield

    class OnGap:
        async def __call__(self, gap: Any) -> None: ...

    node = face.node()
    for each in (on_gap, on_gaps, of_gap, OnGap(), functools.partial(on_gap)):
        with pytest.raises(ConfigurationError, match=r"^sub\(on_gap=\) takes a plain function"):
            node.sub("a", on_gap=each)


def test_topics_share_their_options(face: Face) -> None:
    node = face.node()
    node.pub("a.*", retain=True)
    with pytest.raises(NameClash, match=r"'a\.b' shares topics with 'a\.\*', which is published with other options"):
        node.pub("a.b")
    with pytest.raises(NameClash, match=r"already publishes to 'a\.\*' with other options .*: open it once"):
        node.pub("a.*", retain=False)
    with pytest.raises(NameClash, match=r"already publishes to 'a\.\*' reliably"):
        node.pub("a.*", reliable=False)
    node.pub("a.b", retain=True)
    node.pub("b", reliable=False)
    with pytest.raises(NameClash, match=r"already publishes to 'b' with reliable=False"):
        node.pub("b")


@pytest.mark.parametrize("how", ["send", "send_nowait", "send_many"])
@pytest.mark.parametrize(
    ("topic", "why"),
    [
        (None, r"^pub\('a\.\*'\) has many topics: say which, send\(body, topic=\.\.\.\)"),
        ("b", r"^'b' is no topic of pub\('a\.\*'\): open a pub of its own for it"),
        ("a.*", r"^send\(topic=\) takes"),
        ("a.", r"^send\(topic=\) takes"),
        (7, r"^send\(topic=\) takes"),
        (["a.b"], r"^send\(topic=\) takes"),
    ],
)
def test_topics_to_send_to_that_are_none(face: Face, how: str, topic: Any, why: str) -> None:
    out = face.node().pub("a.*")
    with pytest.raises(ConfigurationError, match=why):
        getattr(out, how)([1], topic=topic)
    out.send(1, topic="a.b")


@pytest.mark.parametrize("how", ["send", "send_nowait"])
def test_bodies_and_headers_that_cannot_be_sent(face: Face, how: str) -> None:
    publisher, subscriber = face.pair(max_message_bytes=2000)
    out, sub = publisher.pub("a"), subscriber.sub("a")
    publisher.wait_for(sub="a", timeout=PATIENCE_S)
    send = getattr(out, how)
    send("before")
    with pytest.raises(EncodeError, match=r"^body\['x'\] cannot be sent: MessagePack has no set"):
        send({"x": {1}})
    with pytest.raises(BodyTooLarge, match="a body of 2503 bytes for 'a'; the limit is 2000"):
        send("x" * 2500)
    with pytest.raises(ConfigurationError, match=r"^send\(headers=\) takes a dict with str keys"):
        send(1, headers={1: 2})
    with pytest.raises(EncodeError, match=r"^headers\['x'\] cannot be sent"):
        send(1, headers={"x": object()})
    send("after")
    assert [sub.get(timeout=PATIENCE_S).body for _ in range(2)] == ["before", "after"]


def test_many_bodies_of_which_one_cannot_be_sent(face: Face) -> None:
    publisher, subscriber = face.pair(max_message_bytes=2000)
    out, sub = publisher.pub("a"), subscriber.sub("a")
    publisher.wait_for(sub="a", timeout=PATIENCE_S)
    with pytest.raises(EncodeError, match=r"^bodies\[1\] cannot be sent"):
        out.send_many([1, {2}, 3])
    with pytest.raises(BodyTooLarge):
        out.send_many([1, "x" * 2500, 3])
    with pytest.raises(ConfigurationError, match=r"^send_many\(bodies\) takes a list, not str 'text'"):
        out.send_many("text")
    out.send_many([])
    out.send("only this")
    assert sub.get(timeout=PATIENCE_S).body == "only this"


def test_a_will_needs_one_topic(face: Face) -> None:
    with pytest.raises(ConfigurationError, match=r"^pub\('a\.\*', will=...\) needs one topic"):
        face.node().pub("a.*", will="gone")
    with pytest.raises(EncodeError):
        face.node().pub("a", will={1, 2})


def test_what_a_consumer_refuses(face: Face) -> None:
    sub = face.node().sub("a")
    with pytest.raises(ConfigurationError, match=r"^get\(timeout=\) takes a number"):
        sub.get(timeout="soon")
    with pytest.raises(ConfigurationError, match=r"^batches\(max_size=\) takes 1 or more, got 0"):
        next(iter(sub.batches(max_size=0)))
    with pytest.raises(ConfigurationError, match=r"^the handler of sub\('a'\) is not callable: 5"):
        sub(5)
    with pytest.raises(ConfigurationError, match=r"^close\(drain=\) takes 0 or more, got -1"):
        sub.close(drain=-1)
    face.handle(sub, lambda message: None)
    with pytest.raises(ConfigurationError, match=r"^sub\('a'\) already has a handler"):
        face.handle(sub, lambda message: None)
    with pytest.raises(ConfigurationError, match=r"^sub\('a'\) has a handler; open it without one to iterate"):
        sub.get(timeout=0)


def test_a_node_of_a_loop_belongs_to_its_thread(face: Face) -> None:
    if face.is_blocking:
        pytest.skip("any thread may use it")
    node = face.node()
    out, sub = node.pub("a")._target, node.sub("a")._target
    for use in (
        lambda: out.send_nowait(1),
        lambda: out.send(1).send(None),
        lambda: out.send_many([1]).send(None),
        out.delete_retained,
        out.lag,
        lambda: out.close().send(None),
        lambda: sub.get().send(None),
        lambda: sub(print),
        lambda: sub.close().send(None),
    ):
        with pytest.raises(WrongThread):
            use()


@pytest.mark.guarantee("G11")
def test_one_pattern_more_than_publishers_take(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher, subscriber = face.pair()
    monkeypatch.setattr(subscriber_module, "MAX_PATTERNS", 3)
    monkeypatch.setattr(publisher_module, "MAX_PATTERNS", 3)
    pub, events = publisher.pub("q.*"), publisher.events()
    subs = [subscriber.sub(f"q.{number}") for number in (0, 1, 2, 0)]  # the last is of the same pattern
    members = [subscriber.sub(f"q.{number}", group="g") for number in range(5)]  # these are no filters
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"3 patterns already, 'q\.3' is one too many: close some"):
            subscriber.sub("q.3")
    subs[2].close()
    subs.append(subscriber.sub("q.4"))
    with pytest.raises(ConfigurationError):
        subscriber.sub("q.3")
    for topic in ("q.0", "q.1", "q.4"):
        publisher.wait_for(sub=topic, timeout=PATIENCE_S)
        pub.send(topic, topic=topic)
    assert [subs[place].get(timeout=PATIENCE_S).body for place in (0, 1, 3, 4)] == ["q.0", "q.1", "q.0", "q.4"]
    publisher.wait_for(group="g", timeout=PATIENCE_S)
    assert len(members) == 5
    assert subscriber.counters()["refused_frames"] == publisher.counters()["refused_frames"] == 0
    events.close()
    assert [event.kind for event in events if event.kind not in ("peer.up", "peer.down")] == []


# --- reliable=False -----------------------------------------------------------------------------------------


def test_bare_publishing_reaches_bare_subscribers_by_whole_segments(face: Face) -> None:
    publisher, subscriber = face.pair()
    out, sub = publisher.pub("bare.**", reliable=False), subscriber.sub("bare.*", reliable=False)
    reliable, got, stop = subscriber.sub("bare.*"), Collected(), threading.Event()
    face.handle(sub, lambda message: got.add((message.topic, message.body)))

    def publish() -> None:
        number = 0
        while not stop.wait(0.002):  # nobody confirms a bare subscriber: it hears what comes once it is connected
            out.send_many([number], topic="bare.a")
            out.send("deeper", topic="bare.a.b")
            out.send("no prefix", topic="bare")
            number += 1

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        found = got.wait(20)
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert {topic for topic, _ in found} == {"bare.a"}
    numbers = [body for _, body in found]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert (sub.gaps, sub.dropped if hasattr(sub, "dropped") else 0) == (0, 0)
    with pytest.raises(ConfigurationError, match=r"has many topics"):
        out.send(1)
    sub.close()
    out.close()
    assert until(lambda: reliable.unsettled == 0)
