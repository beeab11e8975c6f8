"""Messages in pieces between real sockets: other topics pass, each topic keeps its order, nothing is left waiting."""

from __future__ import annotations

import os
import selectors
import time

import pytest
import zmq

from meshmsg.transport import publishing as publishing_module
from meshmsg.transport.pacing import TURN_BYTES
from meshmsg.wire.frames import PIECE_BYTES
from tests.transport.station import Station
from tests.transport.test_broadcast import plain_socket


def cut(body: bytes) -> list[memoryview]:
    view = memoryview(body)
    return [view[start : start + PIECE_BYTES] for start in range(0, len(view), PIECE_BYTES)]


async def test_a_small_message_of_another_topic_arrives_before_the_last_piece() -> None:
    body = os.urandom(10_000_000)
    with Station() as camera, Station() as screen:
        await screen.follow(1, camera)
        assert camera.publish_pieces(b"image", *cut(body))
        camera.broadcast.advance()
        assert camera.broadcast.more()
        assert camera.publish(b"time", b"now")  # in a later turn
        assert camera.publish(b"image", b"the next")
        wakes = camera.wakes
        while camera.broadcast.more():  # no wake asks for these turns
            camera.broadcast.advance()
        assert camera.wakes == wakes
        await screen.until_published(len(cut(body)) + 2)
        topics = [parts[0] for _, parts in screen.published]
        assert topics.index(b"time") == TURN_BYTES // PIECE_BYTES
        pieces = [parts[2] for _, parts in screen.published if parts[0] == b"image"]
        assert b"".join(pieces) == body + b"the next"


async def test_what_waits_is_sent_before_the_end() -> None:
    body = os.urandom(5_000_000)
    with Station() as screen:
        with Station() as camera:
            await screen.follow(1, camera)
            camera.publish_pieces(b"image", *cut(body))
            camera.publish(b"image", b"the next")
            camera.transport.close(linger_ms=10_000)
            assert not camera.broadcast.more()
        await screen.until_published(len(cut(body)) + 1)
        assert b"".join(screen.bodies()) == body + b"the next"


async def test_what_waits_for_a_subscriber_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq counts messages: each piece takes a place."""
    monkeypatch.setattr(publishing_module, "SEND_HIGH_WATER", 20)
    with Station() as camera, plain_socket(zmq.SUB, camera.broadcast.open_broadcast()[0], RCVHWM=1) as frozen:
        frozen.setsockopt(zmq.SUBSCRIBE, b"topic")
        await camera.until_asked(b"topic")
        assert camera.publish(b"topic", bytes(30 * 2**20))  # what TCP's buffers hold, and more
        camera.publish_pieces(b"topic", *[bytes(10_000)] * 18)
        camera.turn()
        assert camera.publish(b"topic")
        assert not camera.publish(b"topic")


async def test_pieces_take_in_no_news_of_subscriptions_in_silence() -> None:
    """A send takes in the news of a subscription, and then the descriptor stays silent about it (pyzmq#1203)."""
    with Station() as camera, Station() as screen:
        publishing = await camera.open_quietly()
        screen.broadcast.follow(1, publishing.endpoints[0], [b""], b"\0m")
        camera.publish_pieces(b"topic", *[bytes(PIECE_BYTES)] * 200)
        camera.broadcast._looking = False  # that turn of the loop is over
        with selectors.DefaultSelector() as selector:
            selector.register(publishing.descriptor, selectors.EVENT_READ)
            assert selector.select(20)
            deadline = time.monotonic() + 0.05
            while camera.broadcast.more() and (selector.select(0) or time.monotonic() < deadline):
                camera.broadcast.advance()
            assert camera.broadcast._looking
        await camera.until_asked(b"\0m")
