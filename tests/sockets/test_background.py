"""Hooks that are coroutine functions, at the close of their node: the drain is theirs too (G10)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshmsg import DeadLetter, Node
from tests.contracts.faces import PATIENCE_S

LONG_S = 0.2  # what a hook has to do


async def start() -> Node:
    return await Node("node", mesh="hooks", mdns=False).start()


@pytest.mark.guarantee("G10")
async def test_the_close_waits_for_hooks() -> None:
    node = await start()
    kept: list[Any] = []

    async def keep(letter: DeadLetter) -> None:
        await asyncio.sleep(LONG_S)
        kept.append(letter.body)

    jobs = node.push("work", unroutable_after=0, on_dead_letter=keep)
    await jobs.send_many(range(3))
    await jobs.flush(timeout=PATIENCE_S)
    await node.close(drain=PATIENCE_S)
    assert sorted(kept) == [0, 1, 2]


@pytest.mark.guarantee("G10")
async def test_the_close_waits_for_hooks_of_what_dies_meanwhile_and_for_what_they_send() -> None:
    node = await start()
    others = node.push("others")
    kept: list[Any] = []

    async def keep(letter: DeadLetter) -> None:
        await asyncio.sleep(LONG_S)
        kept.append(letter.body)

    async def pass_on(letter: DeadLetter) -> None:
        await asyncio.sleep(LONG_S)
        await others.send(letter.body, ttl=0.01)

    others.on_dead_letter(keep)
    await node.push("work", ttl=0.05, on_dead_letter=pass_on).send("late")
    await node.close(drain=PATIENCE_S)
    assert kept == ["late"]


@pytest.mark.guarantee("G10")
async def test_hooks_get_what_the_close_may_take_beyond_its_drain() -> None:
    node = await start()
    kept: list[Any] = []

    async def keep(letter: DeadLetter) -> None:
        await asyncio.sleep(LONG_S)
        kept.append(letter.body)

    jobs = node.push("work", unroutable_after=0, on_dead_letter=keep)
    await jobs.send("dead")
    await jobs.flush(timeout=PATIENCE_S)
    await node.close(drain=0)
    assert kept == ["dead"]


@pytest.mark.guarantee("G10")
async def test_hooks_that_take_longer_are_cut_off_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    node = await start()
    cut: list[Any] = []

    async def hang(letter: DeadLetter) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cut.append(letter.body)
            raise

    jobs = node.push("work", unroutable_after=0, on_dead_letter=hang)
    await jobs.send_many(range(3))
    await jobs.flush(timeout=PATIENCE_S)
    async with asyncio.timeout(PATIENCE_S):
        await node.close(drain=0.1)
    assert sorted(cut) == [0, 1, 2]
    assert "node 'node' closed and cut off 3 hooks that still ran" in caplog.text


async def test_a_hook_may_close_its_node() -> None:
    node = await start()
    books = asyncio.get_running_loop().create_future()

    async def leave(letter: DeadLetter) -> None:
        books.set_result(await node.close(drain=10 * PATIENCE_S))

    await node.push("work", unroutable_after=0, on_dead_letter=leave).send("last")
    async with asyncio.timeout(PATIENCE_S):
        assert (await books)["work"].dead == 1
