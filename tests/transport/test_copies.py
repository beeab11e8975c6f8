"""Large messages are not copied, neither into ZeroMQ nor out of it: what it still sends is the sender's own memory."""

from __future__ import annotations

from typing import Any

import pytest
import zmq
from zmq.utils import garbage

from meshmsg.transport.segments import SEGMENT_BYTES, read_frames, split_frame
from meshmsg.transport.tuning import NO_COPY_BYTES, Context
from meshmsg.transport.zmq import ZmqTransport
from meshmsg.wire.codec import make_packer
from meshmsg.wire.reading import ReadPayload
from tests.transport.line import SlowLine
from tests.transport.side import UP, Side
from tests.transport.station import Station

# More than TCP's buffers take at once, so that some of it waits in ZeroMQ.
COUNT = 400


def bytes_in_use(body: bytes) -> int:
    """How much of this memory pyzmq keeps for ZeroMQ, as a whole or in views of it."""
    kept: list[Any] = [each.obj for each in list(garbage.gc.refs.values())]
    return sum(len(each) for each in kept if each is body or getattr(each, "obj", None) is body)


@pytest.mark.parametrize("size", [NO_COPY_BYTES, SEGMENT_BYTES - 1, SEGMENT_BYTES, 4 * SEGMENT_BYTES + NO_COPY_BYTES])
async def test_a_link_sends_the_memory_itself(size: int) -> None:
    with Side(ZmqTransport()) as here, Side(ZmqTransport()) as there:
        line = SlowLine(there.endpoint, bytes_per_second=1_000_000)
        here.transport.dial(1, await line.open(), b"here")
        await here.until_event(1, UP)
        bodies = [bytes(size) for _ in range(COUNT)]
        try:
            for body in bodies:
                assert here.transport.send(1, [b"header", body])
            assert bytes_in_use(bodies[-1]) == size
        finally:
            await line.close()


@pytest.mark.parametrize("size", [NO_COPY_BYTES, SEGMENT_BYTES])
async def test_a_publisher_sends_the_memory_itself(size: int) -> None:
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera)
        bodies = [bytes(size) for _ in range(COUNT)]
        for body in bodies:
            camera.publish(b"topic", body)  # and the screen reads nothing of it
        assert bytes_in_use(bodies[-1]) == size


@pytest.mark.parametrize(
    ("size", "kind"), [(NO_COPY_BYTES - 1, bytes), (NO_COPY_BYTES, memoryview), (SEGMENT_BYTES - 1, memoryview)]
)
def test_what_a_link_brings_is_a_view(size: int, kind: type) -> None:
    context: Context = zmq.Context()
    there, here = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    there.bind("inproc://copies")
    here.connect("inproc://copies")
    there.send(bytes(size))
    (frame,), read = read_frames(here, 2**30)
    assert type(frame) is kind and read == size and frame == bytes(size)
    del frame
    context.destroy(linger=0)


def test_large_byte_strings_come_apart_from_the_rest() -> None:
    context: Context = zmq.Context()
    there, here = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    there.bind("inproc://apart")
    here.connect("inproc://apart")
    data = bytes(range(256)) * (SEGMENT_BYTES // 128)
    body = make_packer()([1, data])
    segments = [bytes(segment) for segment in split_frame(body)]
    there.send_multipart([*segments, *segments])
    (header, payload), size = read_frames(here, 2**30)
    assert header == body and isinstance(payload, ReadPayload) and size == 2 * len(body)
    assert payload.unpack() == [1, data]
    context.destroy(linger=0)
