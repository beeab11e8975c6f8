"""Groups: every group gets each message, one member processes it, with all that holds for queues (G7)."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from meshmsg.engine.binding import Binding, freeze_where, fulfils, read_binding
from meshmsg.engine.group_outbox import GroupOutbox
from meshmsg.engine.groups import MAX_GROUPS, MAX_IDLE
from meshmsg.engine.outbox import MAX_RUN
from meshmsg.engine.run import Details
from meshmsg.errors import OutboxFull, ProtocolError
from meshmsg.message import Ledger
from meshmsg.options import PushOptions, Retry
from meshmsg.testing import Cluster
from meshmsg.testing.topics import ClusterPub
from meshmsg.wire import frames

QUEUE = "group:billing@orders.*"
pytestmark = pytest.mark.guarantee("G7")


def ledger_of(pub: ClusterPub, queue: str = QUEUE) -> Ledger:
    return pub.node.ledger()[queue]


def refuse(message: Any) -> None:
    raise ValueError("no")


# -- bindings ------------------------------------------------------------------------------------------------


def test_a_binding_travels_in_an_offer() -> None:
    binding = Binding("billing", "orders.**", freeze_where({"vip": True, "region": "eu", "n": 1.5}))
    assert read_binding(binding.queue, binding.describe(durable=True)) == binding
    assert binding.describe(durable=True)["durable"] is True
    assert "durable" not in binding.describe(durable=False)


@pytest.mark.guarantee("G11")
@pytest.mark.parametrize("text", ["\x00", "two\nlines", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u202e", "\u2066", "é"])
def test_a_condition_with_control_characters_travels_as_json(text: str) -> None:
    for where in ({"note": text}, {text: 1.5, "vip": True}):
        binding = Binding("billing", "orders.**", freeze_where(where))
        offer = frames.Offers(1, {"group": {binding.queue: binding.describe(durable=False)}})
        told = frames.decode(frames.encode(offer))
        assert isinstance(told, frames.Offers)
        assert read_binding(binding.queue, told.offers["group"][binding.queue]) == binding
        lane = frames.LaneState(1, binding.queue, 0, 0, 0, 0, 0)
        assert frames.decode(frames.encode(lane)) == lane


def test_no_two_bindings_share_a_queue() -> None:
    bindings = [
        Binding("a", "b"),
        Binding("a", "b@c"),
        Binding("a", "b", (("x", "@c"),)),
        Binding("a", '{"x":"y"}@b'),
        Binding("a", "b", (("x", "y"),)),
        Binding("a", "b", (("x", 1),)),
        Binding("a", "b", (("x", True),)),
        Binding("a", "b", (("x", "1"),)),
    ]
    assert len({binding.queue for binding in bindings}) == len(bindings)


@pytest.mark.guarantee("G11")
@pytest.mark.parametrize(
    ("name", "details"),
    [
        (QUEUE, {}),
        (QUEUE, {"group": "billing"}),
        (QUEUE, {"group": "other", "pattern": "orders.*"}),
        ("work", {"group": "billing", "pattern": "orders.*"}),
        ("group:@a", {"group": "", "pattern": "a"}),
        ("group:a@b..c", {"group": "a", "pattern": "b..c"}),
        ("group:a@b@c", {"group": "a@b", "pattern": "c"}),
        (QUEUE, {"group": "billing", "pattern": "orders.*", "where": "eu"}),
        (QUEUE, {"group": "billing", "pattern": "orders.*", "where": ["region"]}),
        (QUEUE, {"group": "billing", "pattern": "orders.*", "where": [1, 2]}),
        (QUEUE, {"group": "billing", "pattern": "orders.*", "where": ["region", None]}),
        ('group:g{"x":"\\n"}@a', {"group": "g", "pattern": "a", "where": '{"x":"\\n"'}),
        ('group:g["x"]@a', {"group": "g", "pattern": "a", "where": '["x"]'}),
        ('group:g{"x":["\\n"]}@a', {"group": "g", "pattern": "a", "where": '{"x":["\\n"]}'}),
        ('group:g{"x":1}@a', {"group": "g", "pattern": "a", "where": '{"x":1,"x":2}'}),
        ("group:g@a", {"group": "g", "pattern": "a", "where": "[" * 1000}),
    ],
)
def test_offers_that_are_no_group_are_a_breach_of_protocol(name: str, details: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="an offer of kind group"):
        read_binding(name, details)


@pytest.mark.parametrize(
    ("headers", "holds"),
    [
        ({"region": "eu", "n": 1}, True),
        ({"region": "eu", "n": 1.0, "more": 2}, True),
        ({"region": "eu", "n": True}, False),
        ({"region": "us", "n": 1}, False),
        ({"n": 1}, False),
        ({}, False),
        (None, False),
    ],
)
def test_a_condition_compares_values(headers: dict[str, Any] | None, holds: bool) -> None:
    assert fulfils(headers, [("region", "eu"), ("n", 1)]) is holds


# -- the outbox ----------------------------------------------------------------------------------------------


def make_outbox(first_id: int = 0, **options: Any) -> tuple[GroupOutbox, list[int]]:
    buried: list[int] = []
    chosen = PushOptions(**options)
    outbox = GroupOutbox(
        QUEUE,
        chosen,
        random.Random(1),
        lambda box, run, reason, error: buried.append(run.first_id),
        0.0,
        group="group 'billing'",
        first_id=first_id,
    )
    return outbox, buried


@pytest.mark.guarantee("G1", "G5")
def test_what_is_promised_counts_as_accepted() -> None:
    outbox, _ = make_outbox(first_id=7, max_pending=3, max_pending_bytes=10)
    outbox.promise(4)
    outbox.promise(4)
    outbox.check()
    assert outbox.ledger() == Ledger(accepted=2, pending=2, ready=2)
    assert (outbox.takes(2), outbox.takes(3)) == (True, False)
    outbox.keep_promises()
    outbox.take_plain("orders.eu", [b"1234", b"5678"], 0.0)
    outbox.check()
    assert outbox.ledger() == Ledger(accepted=2, pending=2, ready=2)
    assert outbox.held_ids() == [7, 8]


@pytest.mark.guarantee("G5")
def test_an_empty_outbox_takes_a_body_of_any_size() -> None:
    outbox, buried = make_outbox(max_pending_bytes=10)
    assert outbox.takes(11)
    outbox.promise(11)
    assert not outbox.takes(1)
    outbox.keep_promises()
    outbox.take_plain("orders.eu", [bytes(11)], 0.0)
    outbox.check()
    assert not outbox.takes(1)
    assert not buried


def test_runs_are_copies_and_short() -> None:
    """The list belongs to the topic's log, which repairs from it, and other groups take from it too."""
    outbox, _ = make_outbox()
    bodies = [b"x"] * (MAX_RUN + 5)
    outbox.take_plain("orders.eu", bodies, 0.0)
    runs = outbox._take(MAX_RUN + 5, None)
    assert [len(run) for run in runs] == [MAX_RUN, 5]
    runs[0].split(3)
    runs[1].split(3)
    assert len(bodies) == MAX_RUN + 5


@pytest.mark.guarantee("G5")
def test_without_room_the_oldest_make_way() -> None:
    outbox, buried = make_outbox(max_pending=3)
    outbox.take_plain("orders.eu", [b"0", b"1"], 0.0)
    outbox.take_plain("orders.eu", [b"2", b"3", b"4"], 0.0)
    outbox.take_special("orders.eu", b"5", Details(headers={"n": 5}), 0.0)
    outbox.check()
    assert buried == [0, 1, 2]
    assert outbox.held_ids() == [3, 4, 5]


# -- in a mesh -----------------------------------------------------------------------------------------------


def open_mesh(seed: int = 1, **options: Any) -> tuple[Cluster, ClusterPub]:
    cluster = Cluster(seed)
    pub = cluster.node("shop").pub("orders.*", **options)
    return cluster, pub


@pytest.mark.guarantee("G1", "G2")
def test_every_group_gets_all_and_one_member_each() -> None:
    cluster, pub = open_mesh()
    billing = [cluster.node(f"billing-{index}").group("orders.*", "billing") for index in range(3)]
    mail = [cluster.node(f"mail-{index}").group("orders.**", "mail") for index in range(2)]
    plain = cluster.node("plain").sub("orders.**")
    cluster.run(2.0)
    for number in range(300):
        pub.send(number, f"orders.{number % 3}", {"n": number} if number % 7 == 0 else None)
        if number % 10 == 0:
            cluster.run(0.01)
    cluster.settle()
    for members in (billing, mail):
        assert sorted(body for member in members for body in member.processed) == list(range(300))
        assert all(member.processed for member in members)
    assert sorted(plain.received) == list(range(300))
    assert ledger_of(pub) == Ledger(accepted=300, processed=300)


def test_what_is_published_leaves_in_the_same_turn() -> None:
    cluster, pub = open_mesh()
    member = cluster.node("b").group("orders.*", "billing")
    cluster.run(2.0)
    for number in range(20):  # else it may be a heartbeat that takes it along
        pub.send(number, "orders.eu")
        cluster.run(0.05)
        assert member.processed[-1] == number


def test_only_what_matches_comes_to_a_group() -> None:
    cluster, pub = open_mesh()
    seen: list[tuple[str, Any, int, Any]] = []
    node = cluster.node("b")

    def note(message: Any) -> None:
        seen.append((message.topic, message.body, message.priority, dict(message.headers)))

    node.group("orders.eu", "exact", note)
    node.group("orders.*", "vip", note, where={"vip": True})
    node.group("invoices.**", "elsewhere", note)
    cluster.run(2.0)
    pub.send(1, "orders.eu")
    pub.send(2, "orders.us", {"vip": True, "n": 2})
    pub.send(3, "orders.us", {"vip": 1})
    pub.send(4, "orders.us")
    cluster.settle()
    assert sorted(seen) == [("orders.eu", 1, 0, {}), ("orders.us", 2, 0, {"vip": True, "n": 2})]
    assert list(pub.node.ledger()) == ["group:exact@orders.eu", 'group:vip{"vip":true}@orders.*']


@pytest.mark.guarantee("G3")
def test_keys_and_priorities_hold_within_a_group() -> None:
    cluster, pub = open_mesh()
    starts: list[tuple[float, Any]] = []
    nodes = [cluster.node(f"node-{index}") for index in range(3)]
    members = [
        node.group("orders.*", "billing", lambda m: starts.append((cluster.now, m.body)), takes=0.05, prefetch=1)
        for node in nodes
    ]
    cluster.run(2.0)
    for number in range(30):
        pub.send(number, "orders.eu", key=f"key-{number % 2}")
    cluster.settle()
    for rest in range(2):
        line = [(when, body) for when, body in starts if body % 2 == rest]
        assert [body for _, body in line] == list(range(rest, 30, 2))
        assert all(later[0] - earlier[0] >= 0.05 for earlier, later in itertools.pairwise(line))
    members[1].close()
    members[2].close()
    cluster.run(1.0)
    starts.clear()
    for number in range(12):
        pub.send(number, "orders.eu", priority=number)
    cluster.settle()
    assert [body for _, body in starts] == list(reversed(range(12)))
    assert not pub.node.engine.groups._special  # nothing is left of it


@pytest.mark.guarantee("G1", "G2", "G4")
def test_what_a_dead_member_held_goes_to_another() -> None:
    cluster, pub = open_mesh()
    victim, other = cluster.node("victim"), cluster.node("other")
    victim.group("orders.*", "billing", takes=60.0)
    cluster.run(1.0)
    for number in range(20):
        pub.send(number, "orders.eu")
    cluster.run(1.0)
    assert ledger_of(pub).in_flight == 20
    healthy = other.group("orders.*", "billing")
    cluster.crash(victim)
    cluster.settle()
    assert sorted(healthy.processed) == list(range(20))
    assert ledger_of(pub).redelivered == 20


@pytest.mark.guarantee("G1", "G4")
def test_dead_letters_say_their_topic_and_can_be_redriven() -> None:
    cluster, pub = open_mesh(retry=Retry(2, 0.01))
    node = cluster.node("b")
    member = node.group("orders.*", "billing", refuse)
    cluster.run(1.0)
    pub.send("x", "orders.eu", {"n": 1})
    cluster.settle()
    (letter,) = pub.node.dead_letters(QUEUE)
    assert (letter.topic, letter.reason, letter.body, dict(letter.headers)) == ("orders.eu", "attempts", "x", {"n": 1})
    member.handler = None
    assert pub.node.redrive() == [letter.id]
    cluster.settle()
    assert member.processed == ["x"]
    assert ledger_of(pub) == Ledger(accepted=1, processed=1, redelivered=1)


@pytest.mark.guarantee("G1", "G4")
def test_dead_letters_can_go_to_a_queue() -> None:
    cluster, pub = open_mesh(retry=Retry(1), dead_letter_to="failed")
    node = cluster.node("b")
    node.group("orders.*", "billing", refuse)
    told: list[Any] = []
    node.pull("failed", lambda message: told.append((message.body, message.headers["dead-letter"]["topic"])))
    cluster.run(1.0)
    pub.send("x", "orders.eu")
    cluster.settle()
    assert told == [("x", "orders.eu")]


@pytest.mark.guarantee("G5")
def test_a_full_group_holds_the_publisher_up_and_others_do_not_lose() -> None:
    cluster, pub = open_mesh(max_pending=5)
    cluster.node("fast").group("orders.*", "mail")
    cluster.run(1.0)
    slow = cluster.node("slow").group("orders.*", "billing", takes=1.0, prefetch=2)
    cluster.run(1.0)
    for number in range(5):
        pub.send(number, "orders.eu")
    cluster.run(0.2)
    with pytest.raises(OutboxFull, match=r"group 'billing' holds 5 messages.*max_pending=5"):
        pub.send(5, "orders.eu")
    assert [ledger.accepted for ledger in pub.node.ledger().values()] == [5, 5]  # all of them, or none
    cluster.run(1.5)
    pub.send(5, "orders.eu")
    cluster.settle()
    assert slow.processed == list(range(6))
    assert not pub.node.letters


@pytest.mark.guarantee("G1")
def test_a_group_starts_with_its_first_member_and_ends_with_the_goodbye_of_its_last() -> None:
    cluster, pub = open_mesh()
    pub.send("before", "orders.eu")
    node, second = cluster.node("b"), cluster.node("c")
    cluster.run(1.0)
    member = node.group("orders.*", "billing", takes=0.5, prefetch=1)
    cluster.run(1.0)
    for number in range(3):
        pub.send(number, "orders.eu")
    cluster.run(0.2)
    cluster.leave(node)
    cluster.run(3.0)
    pub.send("between", "orders.eu")
    cluster.run(1.0)
    assert (member.processed, ledger_of(pub).pending) == ([0], 2)
    heir = second.group("orders.*", "billing")
    cluster.run(1.0)
    pub.send("after", "orders.eu")
    cluster.settle()
    assert heir.processed == [1, 2, "after"]


@pytest.mark.guarantee("G1")
def test_a_group_whose_member_vanished_is_kept_for_a_while() -> None:
    cluster, pub = open_mesh()
    node = cluster.node("b")
    member = node.group("orders.*", "billing")
    cluster.run(1.0)
    cluster.crash(node)
    cluster.run(3.0)
    pub.send("meanwhile", "orders.eu")
    cluster.run(20.0)
    cluster.restart(node)
    cluster.settle()
    assert member.processed == ["meanwhile"]
    cluster.run(40.0)
    pub.send("later", "orders.eu")
    cluster.settle()
    assert member.processed == ["meanwhile", "later"]
    cluster.crash(node)
    cluster.run(3.0)
    pub.send("too early", "orders.eu")
    cluster.run(40.0)
    pub.send("nobody", "orders.eu")
    cluster.run(1.0)
    (letter,) = pub.node.dead_letters()
    assert (letter.body, letter.reason) == ("too early", "unroutable")
    assert "no member of group 'billing' came for 30 s" in letter.error
    assert ledger_of(pub) == Ledger(accepted=3, processed=2, dead=1)


@pytest.mark.guarantee("G1")
def test_a_network_that_heals_in_time_costs_a_group_nothing() -> None:
    cluster, pub = open_mesh()
    node = cluster.node("b")
    member = node.group("orders.*", "billing")
    cluster.run(1.0)
    cluster.cut(pub.node, node)
    for number in range(50):
        pub.send(number, "orders.eu")
        cluster.run(0.4)
    cluster.heal()
    cluster.settle()
    assert sorted(member.processed) == list(range(50))


@pytest.mark.guarantee("G1", "G5")
def test_a_durable_group_collects_without_members_and_says_what_it_dropped() -> None:
    cluster, pub = open_mesh(max_pending=10)
    node = cluster.node("b")
    member = node.group("orders.*", "billing", durable=True)
    cluster.run(1.0)
    cluster.leave(node)
    cluster.run(100.0)
    for number in range(25):
        pub.send(number, "orders.eu", {"n": number} if number == 24 else None)
    cluster.run(100.0)
    assert ledger_of(pub) == Ledger(accepted=25, dead=15, pending=10, ready=10)
    assert [(letter.body, letter.reason) for letter in pub.node.letters] == [(n, "overflow") for n in range(15)]
    cluster.restart(node)
    cluster.settle()
    assert member.processed == list(range(15, 25))


@pytest.mark.guarantee("G1", "G5")
def test_what_a_lost_member_held_is_dropped_before_what_came_later() -> None:
    cluster, pub = open_mesh(max_pending=10)
    node = cluster.node("b")
    node.group("orders.*", "billing", durable=True, takes=lambda: 1000.0)
    cluster.run(1.0)
    for number in range(10):
        pub.send(number, "orders.eu")
    cluster.run(1.0)
    cluster.crash(node)
    cluster.run(10.0)  # longer than any pause before the next attempt
    assert ledger_of(pub) == Ledger(accepted=10, pending=10, ready=10, redelivered=10)
    for number in range(10, 25):
        pub.send(number, "orders.eu")
        cluster.run(0.1)
        assert ledger_of(pub).pending == 10
    letters = {letter.body: letter.reason for letter in pub.node.letters}
    assert letters == dict.fromkeys(range(15), "overflow")


def test_what_the_last_member_said_decides_whether_a_group_is_durable() -> None:
    cluster, pub = open_mesh()
    first, last = cluster.node("first"), cluster.node("last")
    first.group("orders.*", "billing", durable=True)
    last.group("orders.*", "billing")
    cluster.run(1.0)
    cluster.leave(first)
    cluster.run(1.0)
    cluster.leave(last)
    cluster.run(1.0)
    pub.send(1, "orders.eu")
    cluster.run(1.0)
    assert ledger_of(pub).accepted == 0


def test_several_publishers_have_a_queue_each() -> None:
    cluster = Cluster(1)
    pubs = [cluster.node(f"shop-{index}").pub("orders.*") for index in range(3)]
    members = [cluster.node(f"b-{index}").group("orders.*", "billing") for index in range(2)]
    cluster.run(1.0)
    for number in range(30):
        pubs[number % 3].send(number, "orders.eu")
    cluster.settle()
    assert sorted(body for member in members for body in member.processed) == list(range(30))
    assert [ledger_of(pub).accepted for pub in pubs] == [10, 10, 10]


def test_a_publisher_opened_later_serves_the_groups_that_are_there() -> None:
    cluster = Cluster(1)
    shop, node = cluster.node("shop"), cluster.node("b")
    member = node.group("orders.*", "billing")
    own = shop.group("orders.eu", "audit")
    cluster.run(1.0)
    assert not shop.ledger()
    pub = shop.pub("orders.*")
    pub.send(1, "orders.eu")
    cluster.settle()
    assert (member.processed, own.processed) == ([1], [1])
    pub.close()
    cluster.run(1.0)
    shop.pub("orders.eu").send(2)
    cluster.settle()
    assert (member.processed, own.processed) == ([1, 2], [1, 2])


@pytest.mark.guarantee("G11")
def test_queues_of_groups_go_to_members_only() -> None:
    cluster, pub = open_mesh()
    node, thief = cluster.node("b"), cluster.node("thief")
    member = node.group("orders.*", "billing")
    thief.engine.open_pull(QUEUE, 10)
    thief.driver.wake()
    cluster.run(1.0)
    for number in range(10):
        pub.send(number, "orders.eu")
    cluster.settle()
    assert len(member.processed) == 10


@pytest.mark.guarantee("G11")
def test_too_many_groups_are_refused_and_told() -> None:
    cluster, pub = open_mesh()
    node = cluster.node("b")
    engine = node.engine
    for index in range(MAX_GROUPS + 1):
        binding = Binding(f"g{index}", "orders.*")
        engine.identity.offers.setdefault("group", {})[binding.queue] = binding.describe(durable=False)
    engine.offer("pull", "news", {})
    node.driver.wake()
    cluster.run(1.0)
    assert len(pub.node.engine.groups.by_queue) == MAX_GROUPS
    assert [event.kind for event in pub.node.events if event.kind == "group.refused"] == ["group.refused"]


def test_the_books_of_old_groups_are_let_go_and_no_id_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, pub = open_mesh(retry=Retry(1))
    node = cluster.node("b")
    cluster.run(1.0)
    failing = node.group("orders.*", "failing", refuse)
    cluster.run(0.5)
    pub.send("x", "orders.eu")
    cluster.settle()
    failing.close()
    for deed in ("on_start", "on_groups"):  # the cluster's own books know no numbers that do not begin with 0
        monkeypatch.setattr(cluster.books, deed, lambda *arguments: None)
    ids: list[str] = []
    for index in range(MAX_IDLE + 20):
        member = node.group("orders.*", f"g{index % (MAX_IDLE + 10)}", lambda message: ids.append(message.id))
        cluster.run(0.5)
        pub.send(index, "orders.eu")
        cluster.settle()
        member.close()
        cluster.run(0.5)
    assert len(pub.node.engine.groups.by_queue) == MAX_IDLE
    assert len(set(ids)) == len(ids) == MAX_IDLE + 20
    assert pub.node.redrive() == [pub.node.letters[0].id]  # its queue is still there


# -- by chance -----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G1", "G2", "G3", "G4", "G5")
@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_whatever_happens_to_the_members(seed: int) -> None:
    """The cluster holds the books of each group against G1 to G5; here, that every message is in them (G7)."""
    chance = random.Random(seed)
    cluster = Cluster(seed)
    pubs = [cluster.node(f"shop-{index}").pub("orders.*", retry=Retry(30, 0.05, max_backoff=0.5)) for index in range(2)]
    nodes = [cluster.node(f"node-{index}") for index in range(4)]
    members = {
        group: [
            node.group("orders.**", group, durable=True, takes=lambda: chance.uniform(0, 0.05), prefetch=8)
            for node in nodes[:3]
        ]
        for group in ("billing", "mail")
    }
    cluster.run(2.0)
    sent = 0
    for _ in range(60):
        for _ in range(chance.randrange(6)):
            key = chance.choice([None, None, "k1", "k2"])
            headers = {"n": sent} if chance.random() < 0.3 else None
            chance.choice(pubs).send(sent, f"orders.{sent % 4}", headers, key)
            sent += 1
        disturb(cluster, chance, [*nodes, *(pub.node for pub in pubs)], nodes)
        cluster.run(chance.choice([0.01, 0.1, 1.0]))
    cluster.heal()
    for node in nodes:
        if not node.alive:
            cluster.restart(node)
    cluster.settle()
    for group, those in members.items():
        done = {body for member in those for body in member.processed}
        assert done == set(range(sent)), group
    queues = [ledger for pub in pubs for ledger in pub.node.ledger().values()]
    assert sum(ledger.processed for ledger in queues) == 2 * sent


def disturb(cluster: Cluster, chance: random.Random, everybody: list[Any], nodes: list[Any]) -> None:
    """Something happens to a member, or between two nodes; publishers live."""
    what, node = chance.randrange(12), chance.choice(nodes)
    if what == 0:
        cluster.crash(node)
    elif what == 1 and not node.alive:
        cluster.restart(node)
    elif what == 2:
        cluster.leave(node, drain=0.5)
    elif what == 3 and node.alive:
        cluster.freeze(node)
    elif what == 4 and node.alive:
        cluster.stall(node, chance.uniform(0.1, 3.0))
    elif what == 5:
        cluster.cut(*chance.sample(everybody, 2), one_way=chance.random() < 0.5)
    elif what == 6:
        cluster.heal()
    elif what == 7:
        cluster.disconnect(*chance.sample(everybody, 2))
