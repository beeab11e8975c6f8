"""Nodes with different ``max_message_bytes`` in one mesh."""

from __future__ import annotations

import uuid

import pytest

from meshmsg import Message, Node, WaitTimeout
from meshmsg.message import Gap


@pytest.mark.guarantee("G1", "G11")
async def test_a_consumer_gets_no_body_that_it_does_not_take() -> None:
    mesh = uuid.uuid4().hex
    async with Node("large", mesh=mesh, mdns=False, drain=0) as large:
        seeds = [large.endpoints[0]]
        jobs = large.push("work")
        async with Node("small", mesh=mesh, mdns=False, seeds=seeds, max_message_bytes=2**20) as small:
            pull = small.pull("work")
            await large.wait_for(pull="work", timeout=10)
            too_large = await jobs.send(bytes(2**21))
            await jobs.send("after it")
            message = await pull.get(timeout=10)
            assert message.body == "after it"
            message.ack()
            with pytest.raises(WaitTimeout, match=r"'small' takes 1048576"):
                await jobs.flush(timeout=0.2)
            assert [peer.state for peer in large.peers()] == ["alive"]
            done: list[str] = []
            async with Node("another", mesh=mesh, mdns=False, seeds=seeds) as another:

                @another.pull("work")
                async def handle(message: Message) -> None:
                    done.append(message.id)

                await jobs.flush(timeout=10)
        assert done == [too_large]
        assert jobs.ledger().redelivered == 0


@pytest.mark.guarantee("G6", "G11")
async def test_a_subscriber_hears_of_what_it_does_not_take_as_a_gap() -> None:
    mesh = uuid.uuid4().hex
    async with Node("large", mesh=mesh, mdns=False, drain=0) as large:
        pub = large.pub("news", history=100)
        small = Node("small", mesh=mesh, mdns=False, seeds=[large.endpoints[0]], max_message_bytes=2**20)
        gaps: list[Gap] = []
        async with small:
            sub = small.sub("news", on_gap=gaps.append)
            await large.wait_for(sub="news", timeout=10)
            for body in ("before", bytes(2**23), bytes(2**23), "after"):
                await pub.send(body)
            assert [(await sub.get(timeout=10)).body for _ in range(2)] == ["before", "after"]
            assert {(gap.topic, gap.publisher) for gap in gaps} == {("news", "large")}
            assert [number for gap in gaps for number in range(gap.start, gap.stop)] == [1, 2]
            assert [peer.state for peer in large.peers()] == ["alive"]
