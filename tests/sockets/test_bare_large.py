"""`reliable=False` and large bodies: libzmq sends the program's own memory, and readers see libzmq's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from typing import Any

import pytest
import zmq

from meshmsg.transport.tuning import NO_COPY_BYTES
from tests.sockets.test_bare import PATIENCE_S, next_refusal, pair, send_raw

SIZES = [NO_COPY_BYTES - 10, NO_COPY_BYTES, 3 * NO_COPY_BYTES + 1, 5_000_000]

PROGRAM = """
import asyncio, sys, threading
from meshmsg import Node

kept = []

async def main(mesh, way, end):
    node = await Node("n", mesh=mesh, mdns=False, drain=0).start()
    kept.append(node)
    if way == "push":
        pull, out = node.pull("work", reliable=False, prefetch=1), node.push("work", reliable=False)
    else:
        sub, out = node.sub("work", reliable=False), node.pub("work", reliable=False)
        await node.wait_for(sub="work", timeout=20)
    for _ in range(8):
        await out.send(bytes(5_000_000))
    if end == "close":
        await node.close()
    elif end == "thread":
        done.set()
        await asyncio.Event().wait()

done = threading.Event()
if sys.argv[3] == "thread":
    threading.Thread(target=asyncio.run, args=[main(*sys.argv[1:])], daemon=True).start()
    done.wait()
else:
    asyncio.run(main(*sys.argv[1:]))
"""


def bodies() -> list[bytes]:
    return [bytes([number]) * size for number, size in enumerate(SIZES)]


async def test_large_bodies_arrive_whole_from_a_push() -> None:
    async with pair() as (consumer, producer):
        pull = consumer.pull("work", reliable=False)
        await producer.push("work", reliable=False).send_many(bodies())
        assert [(await pull.get(PATIENCE_S)).body for _ in SIZES] == bodies()


async def test_large_bodies_arrive_whole_from_a_pub() -> None:
    async with pair() as (subscriber, publisher):
        out, subs = publisher.pub("a.*", reliable=False), [subscriber.sub("a.*", reliable=False) for _ in range(2)]
        await publisher.wait_for(sub="a.x", timeout=PATIENCE_S)
        await out.send_many(bodies(), topic="a.x")
        for sub in subs:
            assert [(await sub.get(PATIENCE_S)).body for _ in SIZES] == bodies()


@pytest.mark.guarantee("G11")
async def test_large_garbage_costs_only_itself() -> None:
    async with pair() as (consumer, producer):
        pull: Any = consumer.pull("work", reliable=False)
        no_text = b"\xdb" + NO_COPY_BYTES.to_bytes(4, "big") + b"\xff" * NO_COPY_BYTES
        await send_raw(producer.raw(zmq.PUSH, "work"), no_text, b"\xc1" * NO_COPY_BYTES, b"\x05")
        assert (await pull.get(PATIENCE_S)).body == 5
        assert pull.refused == 2


@pytest.mark.guarantee("G11")
async def test_a_topic_of_any_size_that_is_none_is_refused() -> None:
    async with pair() as (subscriber, publisher):
        events, sub = subscriber.events(), subscriber.sub("**", reliable=False)
        stranger = publisher.raw(zmq.XPUB, "meshmsg.topics")
        assert await asyncio.to_thread(stranger.poll, 10_000) and stranger.recv() == b"\x01"
        for topic in (b"a" * 201, b"a" * NO_COPY_BYTES, b"a"):
            stranger.send_multipart([topic, b"\x05"])
        assert (await sub.get(PATIENCE_S)).topic == "a"
        assert "a message with a topic that is none" in (await next_refusal(events)).text
        assert subscriber._topics._bare.refused == 2


@pytest.mark.parametrize("end", ["return", "close", "thread"])
@pytest.mark.parametrize("way", ["push", "pub"])
async def test_a_process_ends_well_in_the_middle_of_large_messages(way: str, end: str) -> None:
    """libzmq tells pyzmq when it lets go of the memory; with nobody to tell, the process would crash, by luck."""
    command = [sys.executable, "-c", PROGRAM, f"bare-{uuid.uuid4().hex[:12]}", way, end]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
