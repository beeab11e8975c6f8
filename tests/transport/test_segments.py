"""Large frames: cut to pieces, put together again, and kept alive on a slow line."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmsg.transport.segments import SEGMENT_BYTES, read_frames, split_frame
from meshmsg.transport.tuning import Context
from meshmsg.transport.zmq import ZmqTransport
from tests.transport.line import SlowLine
from tests.transport.side import UP, Side


@contextmanager
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    context: Context = zmq.Context()
    there, here = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    there.bind("inproc://segments")
    here.connect("inproc://segments")
    yield there, here
    context.destroy(linger=0)


SIZES = st.sampled_from([0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES])


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(SIZES, min_size=1, max_size=6))
def test_what_is_split_is_read_as_it_was(sizes: list[int]) -> None:
    frames = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    parts = [part for frame in frames for part in split_frame(frame)]
    assert max(len(part) for part in parts) <= SEGMENT_BYTES
    with pair() as (there, here):
        there.send_multipart(parts)
        assert read_frames(here, sum(sizes)) == (frames, sum(sizes))
        assert not here.getsockopt(zmq.RCVMORE)


def test_splitting_copies_nothing() -> None:
    frame = bytes(SEGMENT_BYTES + 10)
    assert [(part.obj is frame, len(part)) for part in split_frame(frame)] == [
        (True, SEGMENT_BYTES),
        (True, 10),
    ]


@pytest.mark.parametrize(
    "parts",
    [
        [bytes(SEGMENT_BYTES)],  # its end is missing
        [b"complete", bytes(SEGMENT_BYTES), bytes(SEGMENT_BYTES)],
        [bytes(1000)] * 700 + [b"end"],  # over the limit
        [bytes(SEGMENT_BYTES)] * 3 + [b"end"],
    ],
)
def test_a_broken_message_is_read_to_its_end_and_has_no_frames(parts: list[bytes]) -> None:
    with pair() as (there, here):
        there.send_multipart(parts)
        there.send_multipart([b"next"])
        assert read_frames(here, 700_000) == ([], sum(map(len, parts)))
        assert read_frames(here, 700_000) == ([b"next"], 4)


async def test_a_message_that_takes_longer_than_the_heartbeat_timeout_arrives() -> None:
    def transport() -> ZmqTransport:
        return ZmqTransport(heartbeat_interval_s=0.2, heartbeat_timeout_s=0.8)

    body = bytes(4_000_000)
    with Side(transport()) as ours, Side(transport()) as theirs:
        line = SlowLine(theirs.endpoint, bytes_per_second=2_000_000)
        ours.transport.dial(1, await line.open(), b"a")
        await ours.until_event(1, UP)
        assert ours.transport.send(1, [b"header", body])
        either = [
            asyncio.create_task(theirs.until(lambda: bool(theirs.received))),
            asyncio.create_task(ours.until(lambda: len(ours.events) > 1)),
        ]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        for task in either:
            task.cancel()
        assert ours.events == [(1, UP)]
        assert theirs.received == [(b"a", [b"header", body])]
        await line.close()
