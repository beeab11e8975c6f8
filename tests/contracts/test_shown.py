"""What a user sees who prints what a node gave, in whatever face, from any thread, at any time of its life."""

from __future__ import annotations

from typing import Any

from meshmsg import Context
from tests.contracts.faces import PATIENCE_S, Face, take, until

# By the kinds of the asyncio face, what the other one calls them.
BLOCKING = {
    "GroupSub": "GroupMember",
    "BarePush": "UnreliablePush",
    "BarePull": "Pull",
    "BarePub": "UnreliablePub",
    "BareSub": "Sub",
    "EventStream": "Events",
}


def shown(face: Face, target: Any, kind: str) -> str:
    """How something looks, after its kind."""
    text = repr(getattr(target, "_target", target))
    kind = BLOCKING.get(kind, kind) if face.is_blocking else kind
    assert text.startswith(f"<{kind} ") and text.endswith(">"), text
    return text.removeprefix(f"<{kind} ").removesuffix(">")


def test_a_node_shows_its_life(face: Face) -> None:
    node = face.make("web")
    mesh = f"'web' in mesh {face.mesh!r}"
    assert shown(face, node, "Node") == f"{mesh}: not started"
    node.start()
    assert shown(face, node, "Node") == f"{mesh}: 0 peers"
    node.close()
    assert shown(face, node, "Node") == f"{mesh}: closed"


def test_a_node_counts_its_peers(face: Face) -> None:
    producer, consumer = face.pair()
    assert shown(face, producer, "Node").endswith(": 1 peer")
    (peer,) = consumer.peers()
    assert repr(peer).startswith(f"<Peer 'producer' ({producer.id[:12]}) at tcp://127.0.0.1:")
    assert "alive, silent for 0." in repr(peer)


def test_a_queue_shows_what_is_pending_and_what_is_held(face: Face) -> None:
    producer, consumer = face.pair()
    jobs = producer.push("work")
    jobs.send_many(range(3))
    assert shown(face, jobs, "Push") == "'work' of node 'producer': 3 pending, 0 in flight"
    pull = consumer.pull("work", prefetch=8)
    messages = take(pull, 2)
    until(lambda: pull.unsettled == 3)
    assert shown(face, pull, "Pull") == "'work' of node 'consumer': 3 of 8 unsettled"
    until(lambda: shown(face, jobs, "Push") == "'work' of node 'producer': 3 pending, 3 in flight")
    messages[0].ack()
    (first, second) = [getattr(each, "_target", each) for each in messages]
    assert repr(first) == f"<Message {first.id!r} from 'producer': attempt 1, settled>"
    assert repr(second) == f"<Message {second.id!r} from 'producer': attempt 1>"
    jobs.close()
    until(lambda: shown(face, jobs, "Push") == "'work' of node 'producer': closed, 2 pending, 2 in flight")
    pull.close()
    assert shown(face, pull, "Pull").startswith("'work' of node 'consumer': closed, ")
    producer.close(drain=0)
    assert shown(face, jobs, "Push").startswith("'work' of node 'producer' (closed): closed, 2 pending")


def test_ids_and_batches_and_dead_letters_are_short(face: Face) -> None:
    producer, consumer = face.pair()
    jobs, pull = producer.push("work"), consumer.pull("work")
    ids = jobs.send_many(["x" * 10_000] * 20)
    assert repr(ids) == f"<MessageIds {ids[0]!r} to {ids[19]!r}: 20>"
    assert repr(jobs.send_many([])) == "<MessageIds: 0>"
    (batch,) = take(pull.batches(max_size=1), 1)
    assert repr(getattr(batch, "_target", batch)) == "<Batch of 1 from 'work'>"
    (message,) = batch
    message.reject("it is " + "long" * 500)
    (letter,) = until(producer.dead_letters)
    assert repr(letter).startswith(f"<DeadLetter {ids[0]!r}: rejected, 'it is long") and len(repr(letter)) < 200
    assert repr(letter).endswith("1 attempt, body 'xxxxxxxxxxxx...xxxxxxxxxxxxx'>")


def test_topics_show_what_waits_and_what_is_lost(face: Face) -> None:
    node = face.node("web")
    out, sub, member = node.pub("t.*"), node.sub("t.**"), node.sub("t.**", group="g")
    assert shown(face, out, "Pub") == "'t.*' of node 'web'"
    node.wait_for(sub="t.a", timeout=PATIENCE_S)
    node.wait_for(group="g", timeout=PATIENCE_S)
    out.send_many(range(3), topic="t.a")
    until(lambda: shown(face, sub, "Sub") == "'t.**' of node 'web': 3 waiting")
    until(lambda: shown(face, member, "GroupSub") == "'t.**' of node 'web': group 'g', 3 of 256 unsettled")
    inner = getattr(sub, "_target", None) or sub._async
    inner.gaps = 2
    assert shown(face, sub, "Sub").endswith(": 3 waiting, 2 lost")
    out.close()
    assert shown(face, out, "Pub") == "'t.*' of node 'web': closed"
    sub.close()
    assert shown(face, sub, "Sub").startswith("'t.**' of node 'web': closed, ")


def test_bare_topics_show_what_had_no_room(face: Face) -> None:
    node = face.node("web")
    out, sub = node.pub("u", reliable=False), node.sub("u", reliable=False, buffer=2)
    assert shown(face, out, "BarePub") == "'u' of node 'web'"
    node.wait_for(sub="u", timeout=PATIENCE_S)
    out.send_many(range(5))
    until(lambda: shown(face, sub, "BareSub") == "'u' of node 'web': 2 waiting, 3 dropped")
    sub.close()
    assert shown(face, sub, "BareSub").endswith(", 3 dropped")
    out.close()
    assert shown(face, out, "BarePub") == "'u' of node 'web': closed"


def test_services_show_what_is_under_way(face: Face) -> None:
    node = face.node("web")
    router, seen = node.router("math"), list[str]()
    assert shown(face, router, "Router") == "'math' of node 'web': 0 methods, 0 running, 0 waiting"

    def look(context: Context) -> None:
        seen.append(repr(context))
        seen.append(shown(face, router, "Router"))
        seen.append(shown(face, dealer, "Dealer"))

    if face.is_blocking or "threads" in face.name:
        router.method(look)
    else:

        async def look_async(context: Context) -> None:
            look(context)

        router.method(look_async, name="look")
    node.wait_for(router="math", timeout=PATIENCE_S)
    dealer = node.dealer("math")
    dealer.request("look")
    assert seen == [
        "<Context of math.look for 'web'>",
        "'math' of node 'web': 1 method, 1 running, 0 waiting",
        "'math' of node 'web': 1 under way",
    ]
    router.serving = False
    assert "not serving, 1 method" in shown(face, router, "Router")
    dealer.close()
    assert shown(face, dealer, "Dealer") == "'math' of node 'web': closed, 0 under way"
    router.close()
    assert ": closed, 1 method" in shown(face, router, "Router")


def test_bare_ends_and_events(face: Face) -> None:
    node = face.make("web")
    early = node.push("fast", reliable=False)
    assert shown(face, early, "BarePush") == "'fast' of node 'web' (not started)"
    with node:
        assert shown(face, early, "BarePush") == "'fast' of node 'web'"
        assert shown(face, node.pull("fast", reliable=False), "BarePull") == "'fast' of node 'web': 0 of 256 unsettled"
        events = node.events()
        assert shown(face, events, "EventStream") == "of node 'web': 0 waiting"
        events.close()
        assert shown(face, events, "EventStream") == "of node 'web': closed, 0 waiting"
        early.close()
        assert shown(face, early, "BarePush") == "'fast' of node 'web': closed"
