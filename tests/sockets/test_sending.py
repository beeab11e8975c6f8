"""Sending: what is accepted is fixed at that moment, and who waits for room waits in line."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from meshmsg import Node, Reject, Retry
from meshmsg.sockets.sending import MessageIds


@pytest.mark.guarantee("G1")
async def test_headers_are_those_of_the_moment_of_sending() -> None:
    seen: list[dict[str, Any]] = []
    async with Node("both", mdns=False) as node:
        jobs = node.push("q")
        headers: dict[str, Any] = {"route": ["a"]}
        await jobs.send(1, headers=headers)
        headers["route"].append(object())  # neither the new value nor its being unsendable may matter
        await jobs.send(2, headers={"plain": True})

        @node.pull("q")
        async def handle(message: Any) -> None:
            seen.append(dict(message.headers))

        await jobs.flush(timeout=10)
    assert seen == [{"route": ["a"]}, {"plain": True}]


@pytest.mark.guarantee("G5")
async def test_who_waits_for_room_waits_in_line() -> None:
    looks = 0
    async with Node("both", mdns=False) as node:
        jobs = node.push("q", max_pending=1)
        box = node._engine.outboxes["q"]
        fits = box.fits

        def counted(size: int) -> bool:
            nonlocal looks
            looks += 1
            assert box.pending <= 1
            return fits(size)

        box.fits = counted  # type: ignore[method-assign]
        seen: list[int] = []
        senders = [asyncio.ensure_future(jobs.send(number)) for number in range(300)]

        @node.pull("q")
        async def handle(message: Any) -> None:
            seen.append(message.body)

        await asyncio.gather(*senders)
        await jobs.flush(timeout=10)
    assert seen == list(range(300))
    assert looks < 300 * 10, "each free slot woke everybody who waits"


@pytest.mark.guarantee("G1")
async def test_a_verdict_with_a_lone_surrogate_travels() -> None:
    async with Node("both", mdns=False) as node:
        jobs = node.push("q", retry=Retry(max_attempts=1))

        @node.pull("q")
        async def handle(message: Any) -> None:
            if message.body == "raise":
                raise ValueError("no such file: a\udcff.txt")
            if message.body == "reject":
                raise Reject("\ud800")

        await jobs.send_many(["raise", "reject", "fine"])
        await jobs.flush(timeout=10)
        errors = {letter.body: letter.error for letter in node.dead_letters()}
    assert errors == {"raise": "ValueError: no such file: a\\udcff.txt", "reject": "\\ud800"}
    assert jobs.ledger().processed == 1


@pytest.mark.guarantee("G5")
async def test_a_queue_that_dead_letters_opened_takes_its_owners_options() -> None:
    async with Node("both", mdns=False, drain=0) as node:
        jobs = node.push("q", dead_letter_to="dead")

        @node.pull("q")
        async def handle(message: Any) -> None:
            raise Reject("no")

        await jobs.send(0)
        await jobs.flush(timeout=10)
        assert node.ledger()["dead"].pending == 1
        dead = node.push("dead", max_pending=2, overflow="drop_oldest")
        await jobs.send_many([1, 2, 3])
        await jobs.flush(timeout=10)
        books = dead.ledger()
        assert books.pending == 2, books
        # What found no room there is kept here, or was dropped there: nowhere is it lost.
        assert len(node.dead_letters()) == 2


def test_ids_are_a_sequence_like_any_other() -> None:
    ids = MessageIds("n/q/", [range(3, 6)])
    for numbers in (range(6, 8), range(20, 21), range(21, 21), range(30, 34)):
        ids.append(numbers)
    plain = [f"n/q/{number}" for number in (3, 4, 5, 6, 7, 20, 30, 31, 32, 33)]
    assert list(ids) == plain and len(ids) == len(plain)
    bounds = (None, *range(-12, 13))
    for start, stop, step in itertools.product(bounds, bounds, (None, 1, 3, -1, -2)):
        assert ids[start:stop:step] == plain[start:stop:step]
    assert [ids[index] for index in range(-10, 10)] == plain + plain
    for index in (10, -11):
        with pytest.raises(IndexError):
            ids[index]
    with pytest.raises(TypeError):
        ids["0"]  # type: ignore[call-overload]
    assert not MessageIds("n/q/", []) and MessageIds("n/q/", [])[:3] == []


def test_one_of_many_ids_is_found_without_making_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(ids: MessageIds) -> Any:
        raise AssertionError("all of the ids were made")

    monkeypatch.setattr(MessageIds, "__iter__", refuse)
    ids = MessageIds("n/q/", [range(5, 1005), range(2000, 3000)])
    assert (ids[0], ids[-1], ids[1000]) == ("n/q/5", "n/q/2999", "n/q/2000")
    assert ids[999:1001] == ["n/q/1004", "n/q/2000"]
