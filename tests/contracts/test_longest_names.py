"""Whatever a face accepts at its longest, the other node takes: else the two would be cut off from each other (G11)."""

from __future__ import annotations

from typing import Any

import pytest

from meshmsg import ConfigurationError
from meshmsg.checks import MAX_GROUP_BYTES, MAX_NAME_BYTES
from meshmsg.engine.broadcasting import MAX_WILL_BYTES
from meshmsg.engine.topics import MAX_TOPIC_BYTES
from meshmsg.wire.frames import MAX_DETAILS_BYTES, MAX_QUEUE
from tests.contracts.faces import PATIENCE_S, Face
from tests.contracts.services import method

pytestmark = pytest.mark.guarantee("G11")

NAME = "n" * MAX_NAME_BYTES
TOPIC = "t." + "x" * (MAX_TOPIC_BYTES - 2)
PATTERN = "t.**" + ".*" * ((MAX_TOPIC_BYTES - 4) // 2)
GROUP = "g" * MAX_GROUP_BYTES
STEERING = '\x00\n\x1b\x7f\x85\u2028\u202e\u2066é\U0001f600 \\"'


def count_refused(*nodes: Any) -> int:
    return sum(node.counters()["refused_frames"] for node in nodes)


def fill_where(pattern: str, value: str = "") -> dict[str, Any]:
    """A condition that makes the name of the group's queue as long as it may be."""
    rest = MAX_QUEUE - len(f'group:{GROUP}{{"a":"{value}"}}@{pattern}')
    return {"a": value + "v" * rest}


def test_the_longest_names_of_queues_services_and_nodes_travel(face: Face) -> None:
    face.mesh = face.mesh.ljust(MAX_NAME_BYTES, "m")
    one, other = face.node("o" * MAX_NAME_BYTES), face.node("p" * MAX_NAME_BYTES)
    pull = other.pull(NAME)
    jobs = one.push(NAME, dead_letter_to="d" * MAX_NAME_BYTES)
    headers = {"h" * 100_000: STEERING, STEERING: "h" * 100_000}
    jobs.send(1, key=STEERING + "k" * (MAX_DETAILS_BYTES // 8), headers=headers)
    message = pull.get(timeout=PATIENCE_S)
    assert (message.body, dict(message.headers)) == (1, headers)
    message.reject(STEERING * 1000)
    assert other.pull("d" * MAX_NAME_BYTES).get(timeout=PATIENCE_S).headers["dead-letter"]["queue"] == NAME

    router = other.router("s" * MAX_NAME_BYTES)
    method(face, router, name=NAME)(lambda: "answer")
    one.wait_for(router="s" * MAX_NAME_BYTES, timeout=PATIENCE_S)
    assert one.dealer("s" * MAX_NAME_BYTES).request(NAME, timeout=PATIENCE_S) == "answer"
    assert count_refused(one, other) == 0


def test_the_longest_topics_and_patterns_travel(face: Face) -> None:
    publisher, subscriber = face.pair()
    out = publisher.pub(TOPIC, will="x" * (MAX_WILL_BYTES - 3), retain=True)
    publisher.pub(PATTERN)
    sub, wide = subscriber.sub(TOPIC), subscriber.sub(PATTERN)
    bare_out, bare = (
        publisher.pub(f"bare{TOPIC[4:]}", reliable=False),
        subscriber.sub(f"bare{TOPIC[4:]}", reliable=False),
    )
    for topic in (TOPIC, f"bare{TOPIC[4:]}"):
        publisher.wait_for(sub=topic, timeout=PATIENCE_S)
    out.send(1, headers={STEERING: STEERING})
    bare_out.send(2)
    assert (sub.get(timeout=PATIENCE_S).topic, bare.get(timeout=PATIENCE_S).body) == (TOPIC, 2)
    assert wide.pattern == PATTERN and count_refused(publisher, subscriber) == 0


@pytest.mark.guarantee("G7")
@pytest.mark.parametrize(
    ("group", "where"),
    [
        ("g", None),
        (GROUP, None),
        (GROUP, fill_where(TOPIC)),
        ("g", {"note": STEERING, STEERING: 1.5}),
        ("g", {"é" * 67: "é"}),
    ],
)
def test_the_longest_queues_of_groups_travel(face: Face, group: str, where: dict[str, Any] | None) -> None:
    publisher, subscriber = face.pair()
    out = publisher.pub("t.*")
    plain = subscriber.sub(TOPIC)
    options = {} if where is None else {"where": where}
    member = subscriber.sub(TOPIC, group=group, **options)
    publisher.wait_for(group=group, timeout=PATIENCE_S)
    publisher.wait_for(sub=TOPIC, timeout=PATIENCE_S)
    out.send("not wanted", topic=TOPIC, headers={"a": "b"})
    out.send("wanted", topic=TOPIC, headers=where)
    for body in ["not wanted", "wanted"] if where is None else ["wanted"]:
        message = member.get(timeout=PATIENCE_S)
        assert message.body == body
        message.ack()
    assert [plain.get(timeout=PATIENCE_S).body for _ in range(2)] == ["not wanted", "wanted"]
    assert count_refused(publisher, subscriber) == 0
    assert all(name.isprintable() for peer in publisher.peers() for name in peer.offers["group"])


@pytest.mark.parametrize("value", ["", "\n", "é"])
def test_a_queue_of_a_group_that_would_be_longer_is_refused(face: Face, value: str) -> None:
    node = face.node()
    where = fill_where(TOPIC, "" if value == "" else "v")
    where["a"] += "v" if not value else value
    with pytest.raises(ConfigurationError, match=rf"and {MAX_QUEUE} are allowed: ask for fewer headers"):
        node.sub(TOPIC, group=GROUP, where=where)
    assert not any(node.counters().values())
