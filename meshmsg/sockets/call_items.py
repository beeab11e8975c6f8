"""The caller's side of a stream: its own items on their way out, and the server's on their way in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from meshmsg.driver import Driver
from meshmsg.engine.calls import Call, Calls
from meshmsg.engine.streams import OutStream
from meshmsg.errors import BodyTooLarge
from meshmsg.message import describe_error
from meshmsg.sockets.turns import yield_turn
from meshmsg.wire.large import LARGE_BYTES

# Items of an iterable that are encoded in one turn of the loop at most.
BURST = 256
Items = AsyncIterable[Any] | Iterable[Any]
Encode = Callable[[Any, int], bytes]


async def send_items(driver: Driver, calls: Calls, call: Call, items: Items, encode: Encode) -> None:
    """Sends what the application iterates, as fast as the method takes it. Whoever releases the call cancels this.

    Nothing is taken from ``items`` before there is room for it, and nothing is said before the method gave the first
    credit: until then the call may still go to another provider.
    """
    up = call.up
    assert up is not None, "the caller sends items"
    stir = asyncio.Event()
    up.wake = stir.set
    source = aiter(items) if isinstance(items, AsyncIterable) else None
    try:
        if source is not None:
            await _send_as_they_come(driver, calls, call, up, stir, source, encode)
        else:
            assert isinstance(items, Iterable), "checked when the call was made"
            await _send_parts(driver, calls, call, up, stir, iter(items), encode)
        calls.end_items(call)
        driver.wake()
    except StopAsyncIteration as error:  # of a plain iterable: whoever reads the answer would take it for its end
        raise RuntimeError(f"{call.service}.{call.method}: items= raised {describe_error(error)}") from error
    finally:
        up.wake = None
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


async def _send_as_they_come(
    driver: Driver,
    calls: Calls,
    call: Call,
    up: OutStream,
    stir: asyncio.Event,
    source: AsyncIterator[Any],
    encode: Encode,
) -> None:
    count = 0
    while True:
        await _wait_for_room(up, stir)
        try:
            item = await anext(source)
        except StopAsyncIteration:
            return
        await _wait_for_room(up, stir)  # another server may have the call meanwhile, and did not say what it takes
        body = encode(item, count)
        if len(body) > LARGE_BYTES:
            _require_taken(driver, call, body, count)
        calls.send_items(call, [body])
        driver.wake()
        count += 1
        if count % BURST == 0:
            await yield_turn()


async def _send_parts(
    driver: Driver, calls: Calls, call: Call, up: OutStream, stir: asyncio.Event, source: Iterator[Any], encode: Encode
) -> None:
    count = 0
    while True:
        await _wait_for_room(up, stir)
        wanted, left = min(up.room, BURST), up.mark_bytes
        bodies: list[bytes] = []
        for place, item in enumerate(islice(source, wanted), count):
            body = encode(item, place)
            if len(body) > LARGE_BYTES:
                _require_taken(driver, call, body, place)
            bodies.append(body)
            left -= len(body)
            if left <= 0:
                wanted = len(bodies)
                break
        if bodies:
            calls.send_items(call, bodies)
            driver.wake()
        if len(bodies) < wanted:
            return
        count += wanted
        await yield_turn()


def _require_taken(driver: Driver, call: Call, body: bytes, place: int) -> None:
    """Raises ``BodyTooLarge`` for an item that this node may send, and whoever has the call now does not take."""
    peers = driver.engine.peers
    peer = peers.find(call.provider.key) if call.provider is not None else None
    limit = peers.limit_of(peer) if peer is not None else None
    if limit is not None and len(body) > limit:
        assert call.provider is not None, "who takes less is somebody"
        raise BodyTooLarge(
            f"{call.service}.{call.method}: items[{place}] of {len(body)} bytes; the limit is {limit}, that of "
            f"{call.provider.name!r}: send smaller ones, or raise Node(max_message_bytes=) on both sides"
        )


async def _wait_for_room(up: OutStream, stir: asyncio.Event) -> None:
    """Until an item may leave. There is never any after a cut."""
    while up.room < 1:
        stir.clear()
        await stir.wait()
