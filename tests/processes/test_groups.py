"""Groups of subscribers in real processes, which are killed, leave and come back (G7)."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from tests.processes.books import check_deliveries
from tests.processes.crew import Crew, Member

pytestmark = pytest.mark.guarantee("G7")

MAX_ATTEMPTS = 20
RETRY = {"max_attempts": MAX_ATTEMPTS, "backoff": 0.02, "max_backoff": 0.2}


def publisher(crew: Crew, name: str, **options: object) -> Member:
    """A process that publishes orders."""
    member = crew.start(name)
    member.tell("pub", pattern="orders.*", retry=RETRY, **options)
    return member


def member_of(crew: Crew, group: str, **options: object) -> Member:
    """A process that is in a group."""
    member = crew.start(f"{group}-{len(crew.members)}")
    member.tell("group", group=group, **options)
    return member


def numbers_by_group(crew: Crew) -> dict[str, list[int]]:
    """What each group has finished; from the ids, which have the group's queue in them."""
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for entry in crew.journal.of("finish"):
        assert entry.number is not None
        group = entry.id.partition("/group:")[2].partition("@")[0]
        found[group][entry.id] = entry.number
    return {group: sorted(numbers.values()) for group, numbers in found.items()}


@pytest.mark.guarantee("G1", "G2", "G4")
@pytest.mark.parametrize("seed", [1, 2])
def test_members_are_killed_and_replaced_under_load(crew: Crew, seed: int) -> None:
    chance = random.Random(seed)
    shops = [publisher(crew, f"shop-{index}") for index in range(2)]
    options = {"concurrency": 4, "prefetch": 64}
    members = {group: [member_of(crew, group, **options) for _ in range(2)] for group in ("billing", "mail")}
    for shop in shops:
        for group in members:
            shop.ask("wait_for", group=group, count=2, timeout=30)
    loads = [
        shop.tell(
            "publish_work",
            pattern="orders.*",
            topics=["orders.eu", "orders.us"],
            first=1000 * index,
            count=800,
            seconds=0.002,
            pause=0.01,
        )
        for index, shop in enumerate(shops)
    ]
    for _ in range(4):
        goal = len(crew.journal.entries) + chance.randrange(200, 700)
        crew.until(lambda goal=goal: len(crew.journal.entries) >= goal, f"line {goal} of the journal")  # type: ignore[misc]  # bound now
        group = chance.choice(sorted(members))
        members[group].append(member_of(crew, group, **options))
        members[group].pop(0).kill()
    for shop, load in zip(shops, loads, strict=True):
        shop.answer(load)
    books = [shop.ask("settle")["ledgers"] for shop in shops]
    expected = [*range(800), *range(1000, 1800)]
    assert numbers_by_group(crew) == {"billing": expected, "mail": expected}
    check_deliveries(crew.journal, max_attempts=MAX_ATTEMPTS)
    for ledgers in books:
        assert sorted(ledgers) == ["group:billing@orders.**", "group:mail@orders.**"]
        for ledger in ledgers.values():
            assert (ledger["accepted"], ledger["processed"], ledger["dead"]) == (800, 800, 0)
    # The kills hit work: otherwise this test tests nothing.
    assert sum(ledger["redelivered"] for ledgers in books for ledger in ledgers.values()) > 0


@pytest.mark.guarantee("G1", "G10")
def test_a_durable_group_outlives_its_members(crew: Crew) -> None:
    shop = publisher(crew, "shop", max_pending=500)
    first = member_of(crew, "billing", durable=True)
    shop.ask("wait_for", group="billing", timeout=30)
    shop.ask("publish_work", pattern="orders.*", topics=["orders.eu"], count=20)
    first.ask("close", drain=10.0)
    shop.event("peer.down")
    shop.ask("publish_work", pattern="orders.*", topics=["orders.eu"], first=20, count=300)
    heir = member_of(crew, "billing", durable=True)
    heir.started()
    (ledger,) = shop.ask("settle")["ledgers"].values()
    assert (ledger["accepted"], ledger["processed"]) == (320, 320)
    assert numbers_by_group(crew) == {"billing": list(range(320))}


@pytest.mark.guarantee("G1", "G4")
def test_a_group_waits_for_its_only_member_to_be_started_again(crew: Crew) -> None:
    shop = publisher(crew, "shop")
    only = member_of(crew, "billing", concurrency=10)
    shop.ask("wait_for", group="billing", timeout=30)
    shop.ask("publish_work", pattern="orders.*", topics=["orders.eu"], count=20, seconds=0.3)
    crew.until(lambda: len(crew.journal.of("start")) >= 10, "ten messages in its hands")
    only.kill()
    shop.event("peer.down")
    shop.ask("publish_work", pattern="orders.*", topics=["orders.eu"], first=20, count=5)
    member_of(crew, "billing", concurrency=10).started()
    (ledger,) = shop.ask("settle")["ledgers"].values()
    assert (ledger["accepted"], ledger["processed"], ledger["redelivered"]) == (25, 25, 20)
    assert numbers_by_group(crew) == {"billing": list(range(25))}
    check_deliveries(crew.journal, max_attempts=MAX_ATTEMPTS)
