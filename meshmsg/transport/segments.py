"""Large frames travel as several, so that a slow line shows signs of life while one is on its way.

libzmq takes only a complete frame for a sign of life. A frame that needs longer than the heartbeat timeout
(10 MB at 16 Mbit/s) would end its link before it has arrived, at every attempt. So: a frame of exactly
``SEGMENT_BYTES`` continues in the next frame of the message, and the first one of another size ends it (as
packets do in MySQL's protocol). With 256 KiB and a timeout of 1.5 s, lines down to 1.4 Mbit/s carry any
message.
"""

from __future__ import annotations

from typing import Any

import zmq

from meshmsg.transport.tuning import LAST, NO_COPY_BYTES, Socket
from meshmsg.wire.large import cut
from meshmsg.wire.reading import read_payload

SEGMENT_BYTES = 256 * 1024


def split_frame(frame: bytes) -> list[memoryview]:
    """The segments of one frame, without copying it; the last is shorter than ``SEGMENT_BYTES``, maybe empty.

    The frame is ``bytes``, or a ``LargeBody``.

    >>> [len(segment) for segment in split_frame(bytes(2 * SEGMENT_BYTES))]
    [262144, 262144, 0]
    """
    return cut(frame, SEGMENT_BYTES)


def read_frames(socket: Socket, limit_bytes: int) -> tuple[list[Any], int]:
    """Read the frames that are left of one message, and put them together again.

    Returns them and their size; a large one behind the first may be a view, or a ``ReadPayload``. It is no frames if
    they have more than ``limit_bytes`` together, or if the last one is not complete.
    """
    # Without copy, as a Frame knows whether more follow: asking the socket costs as much as a receive.
    receive = socket.recv
    frames: list[Any] = []
    segments: list[zmq.Frame] = []
    size = 0
    while True:
        part = receive(LAST, False)
        size += len(part)
        if size > limit_bytes:
            frames, segments = [], []  # read on to the message's end, but keep nothing of it
        elif len(part) == SEGMENT_BYTES:
            segments.append(part)
        elif segments:
            segments.append(part)
            pieces = [segment.buffer for segment in segments]
            frames.append(read_payload(pieces) if frames else b"".join(pieces))
            segments = []
        else:
            # A large one is not copied: a view of libzmq's message.
            frames.append(part.bytes if len(part) < NO_COPY_BYTES else part.buffer)
        if not part.more:
            return (frames, size) if size <= limit_bytes and not segments else ([], size)
