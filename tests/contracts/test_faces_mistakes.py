"""Bad input, in whatever face: each has an error that names the option, what was given, and what to do instead."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from meshmsg import ConfigurationError, Ledger, NodeClosed, UnknownOption
from tests.contracts.faces import PATIENCE_S, Collected, Face, reject_all, take

NAN, INF = float("nan"), float("inf")


# --- nodes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"secret": "s"}, r"^Node\(secret=\) is not built yet in this version: leave it out"),
        ({"store": "node.db"}, r"^Node\(store=\) is not built yet in this version: leave it out"),
        ({"mdns": "no"}, r"^Node\(mdns=\) takes True or False, got 'no'"),
        ({"unencrypted": "no"}, r"^Node\(unencrypted=\) takes True or False, got 'no'"),
        ({"port": 99999}, r"^Node\(port=\) takes at most 65535, got 99999"),
        ({"port": -1}, r"^Node\(port=\) takes 0 or more, got -1"),
        ({"port": "x"}, r"^Node\(port=\) takes a whole number, not str 'x'"),
        ({"seeds": 5}, r"^Node\(seeds=\) takes a list, not int 5: write seeds=\[\"tcp://host:port\"\]"),
        ({"seeds": None}, r"^Node\(seeds=\) takes a list, not NoneType None"),
        ({"seeds": "tcp://127.0.0.1:7"}, r"^Node\(seeds=\) takes a list, not str 'tcp://127.0.0.1:7': write seeds="),
        ({"seeds": {"tcp://127.0.0.1:7": 1}}, r"^Node\(seeds=\) takes a list, not dict"),
        ({"seeds": [7]}, "the address 7 is not a string"),
        ({"interfaces": 5}, r"^Node\(interfaces=\) takes a list, not int 5: write interfaces=\[\"eth0\"\]"),
        ({"interfaces": "eth0"}, r"^Node\(interfaces=\) takes a list, not str 'eth0'"),
        ({"interfaces": [5]}, r"^Node\(interfaces=\) takes str, not int 5: write interfaces="),
        ({"drain": 1e308}, r"^Node\(drain=\) takes at most 1000000000, got 1e\+308"),
        ({"stall_after": INF}, r"^stall_after= takes a finite number, got inf"),
    ],
)
def test_parameters_of_a_node_that_cannot_work(face: Face, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        face.make(**options)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"pull": 5}, r"^wait_for\(pull=\) takes a name \(str\), not int 5"),
        ({"push": b"work"}, r"^wait_for\(push=\) takes a name \(str\), not bytes b'work'"),
        ({"peer": ""}, r"^wait_for\(peer=\) takes a name of 1 to 200 bytes, got ''"),
        ({"pull": "work", "count": "3"}, r"^wait_for\(count=\) takes a whole number, not str '3'"),
        ({"pull": "work", "timeout": 1e308}, "takes at most 1000000000"),
        ({"pull": "work", "timeout": "soon"}, "takes a number, not str 'soon'"),
    ],
)
def test_what_cannot_be_waited_for(face: Face, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        face.node().wait_for(**options)


@pytest.mark.parametrize("timeout", ["soon", NAN, -1])
def test_an_event_is_waited_for_some_seconds(face: Face, timeout: Any) -> None:
    events = face.node().events()
    with pytest.raises(ConfigurationError, match=r"^get\(timeout=\) takes"):
        events.get(timeout=timeout)


# --- sending ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"timeout": "x"}, r"^deliver\(timeout=\) takes a number, not str 'x'"),
        ({"timeout": -1}, r"^deliver\(timeout=\) takes 0 or more, got -1"),
        ({"timeout": NAN}, r"^deliver\(timeout=\) takes a finite number"),
        ({"timeout": True}, r"^deliver\(timeout=\) takes a number, not bool True"),
        ({"timeout": 1e308}, r"^deliver\(timeout=\) takes at most 1000000000, got 1e\+308"),
        ({"bogus": 1}, r"^deliver\(\) has no option 'bogus': it has key, priority, ttl, delay, headers, timeout$"),
        ({"timeuot": 1}, r"^deliver\(\) has no option 'timeuot': did you mean 'timeout'\?"),
        ({"prioritx": 1}, r"^deliver\(\) has no option 'prioritx': did you mean 'priority'\?"),
    ],
)
def test_options_of_deliver_that_cannot_work(face: Face, options: dict[str, Any], why: str) -> None:
    jobs = face.node().push("work")
    with pytest.raises(ConfigurationError, match=why):
        jobs.deliver("body", **options)
    assert jobs.ledger() == Ledger()


def test_an_unknown_option_of_deliver_is_a_type_error_too(face: Face) -> None:
    with pytest.raises(UnknownOption) as caught:
        face.node().push("work").deliver("body", bogus=1)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("bodies", ["abc", b"abc", bytearray(b"abc"), {}, {"a": 1}, None, 5], ids=repr)
def test_many_bodies_come_in_a_list(face: Face, bodies: Any) -> None:
    jobs = face.node().push("work")
    kind = type(bodies).__name__
    with pytest.raises(ConfigurationError, match=rf"^send_many\(bodies\) takes a list, not {kind} .*: send\(\) takes"):
        jobs.send_many(bodies)
    assert jobs.ledger() == Ledger()


@pytest.mark.parametrize(
    "many", [lambda: [1, 2], lambda: (1, 2), lambda: {1, 2}, lambda: range(1, 3), lambda: iter([1, 2])]
)
def test_many_bodies_come_in_whatever_can_be_iterated(face: Face, many: Callable[[], Any]) -> None:
    node = face.node()
    assert len(node.push("work").send_many(many())) == 2
    messages = take(node.pull("work"), 2)
    assert sorted(message.body for message in messages) == [1, 2]


@pytest.mark.parametrize("name", ["ttl", "delay"])
@pytest.mark.parametrize(
    ("seconds", "why"),
    [
        (1e308, r"takes at most 1000000000, got 1e\+308"),
        (10**400, r"takes at most 1000000000, got 10000"),
        (10**5000, r"takes at most 1000000000, got far more"),
        (INF, "takes a finite number, got inf"),
        (NAN, "takes a finite number, got nan"),
    ],
    ids=["1e308", "10**400", "10**5000", "inf", "nan"],
)
def test_times_beyond_all_clocks(face: Face, name: str, seconds: float, why: str) -> None:
    jobs = face.node().push("work")
    for send in (jobs.send, jobs.send_nowait, jobs.deliver):
        with pytest.raises(ConfigurationError, match=rf"^send\({name}=\) {why}"):
            send("body", **{name: seconds})
    assert jobs.ledger() == Ledger()


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("push", {"ttl": 1e308}, "ttl= takes at most 1000000000"),
        ("push", {"unroutable_after": INF}, "unroutable_after= takes a finite number"),
        ("pull", {"timeout": 1e308}, "timeout= takes at most 1000000000"),
        ("pull", {"prefetch": 10**30}, "prefetch= takes at most 1000000, got 10000"),
    ],
)
def test_options_of_queues_beyond_all_measure(face: Face, kind: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{why}"):
        getattr(face.make(), kind)("work", **options)


# --- verdicts and dead letters ------------------------------------------------------------------------------


def test_a_verdict_takes_words(face: Face) -> None:
    node = face.node()
    node.push("work").send(1)
    message = node.pull("work").get(timeout=PATIENCE_S)
    with pytest.raises(ConfigurationError, match=r"^nack\(error=\) takes a text or an exception, not bytes b'no'"):
        message.nack(error=b"no")
    with pytest.raises(ConfigurationError, match=r"^reject\(reason=\) takes a text or an exception, not bytes b'no'"):
        message.reject(b"no")
    message.ack()  # it has no verdict yet


def test_what_cannot_be_redriven(face: Face) -> None:
    node = face.node()
    jobs = node.push("work")
    reject_all(face, node)
    message_id = jobs.send("bad")
    jobs.flush(timeout=PATIENCE_S)
    (letter,) = node.dead_letters()
    mistakes: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((5,), {}, r"^redrive\(\*ids\) takes str, not int 5: write redrive\(letter\.id\)"),
        (([message_id],), {}, r"^redrive\(\*ids\) takes str, not list"),
        ((letter,), {}, r"^redrive\(\*ids\) takes str, not DeadLetter .*letter\.id"),
        (("nobody",), {}, r"^no dead letter 'nobody' is kept: node\.dead_letters\(\) lists those that are"),
        ((message_id, "nobody"), {}, "^no dead letter 'nobody'"),
        ((message_id,), {"queue": "work"}, r"^redrive takes ids or queue=, not both"),
        ((), {"queue": 5}, r"^dead_letters\(queue\) takes a name \(str\), not int 5"),
    ]
    for ids, options, why in mistakes:
        with pytest.raises(ConfigurationError, match=why):
            node.redrive(*ids, **options)
    with pytest.raises(ConfigurationError, match=r"^dead_letters\(queue\) takes a name \(str\), not int 5"):
        node.dead_letters(5)
    assert node.dead_letters() == [letter]  # nothing went, also of what could have gone


def test_the_same_hook_given_again_is_called_once(face: Face) -> None:
    node = face.node()
    letters, others = Collected(), Collected()
    jobs = node.push("work", on_dead_letter=letters.add)
    node.push("work", on_dead_letter=letters.add)
    jobs.on_dead_letter(letters.add)
    node.push("work", on_dead_letter=others.add)
    reject_all(face, node)
    jobs.send(1)
    jobs.send(2)
    jobs.flush(timeout=PATIENCE_S)
    assert [letter.body for letter in others.wait(2)] == [1, 2]  # it hears of each after the first hook did
    assert [letter.body for letter in letters] == [1, 2]


def test_a_hook_that_nothing_would_call_is_refused(face: Face) -> None:
    node = face.make()
    with pytest.raises(ConfigurationError, match=r"^push\('work', reliable=False\) is bare .* has no on_dead_letter$"):
        node.push("work", reliable=False, on_dead_letter=print)
    node.push("work")  # the name is free


def test_a_hook_for_a_closed_node_is_refused(face: Face) -> None:
    node = face.node()
    jobs = node.push("work")
    node.close()
    with pytest.raises(NodeClosed, match="'node' is closed"):
        jobs.on_dead_letter(print)


@pytest.mark.parametrize("drain", ["x", -1, NAN])
def test_a_pull_drains_for_some_seconds(face: Face, drain: Any) -> None:
    pull = face.node().pull("work")
    with pytest.raises(ConfigurationError, match=r"^close\(drain=\) takes"):
        pull.close(drain=drain)
    pull.close()


def test_two_readers_of_one_stream_share_its_events(face: Face) -> None:
    node = face.node()
    jobs, events, seen = node.push("work", unroutable_after=0), node.events(), Collected()
    readers = [threading.Thread(target=lambda: [seen.add(event.kind) for event in events]) for _ in range(2)]
    for reader in readers:
        reader.start()
    jobs.send_many(range(10))
    assert seen.wait(10) == ["dead_letter"] * 10
    node.close()
    for reader in readers:
        reader.join(PATIENCE_S)
        assert not reader.is_alive(), "the end of the node did not end a reader"
    assert len(seen) == 10
