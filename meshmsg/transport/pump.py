"""Reading and writing a plain ZeroMQ socket from asyncio, in bursts and without a future a message."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import zmq

from meshmsg.transport.tuning import LAST, MORE, NO_COPY_BYTES, Socket, descriptor_of, events_of


class Pump:
    """Asks a socket never to wait, and waits for it in the loop. One pump a socket, from the loop's thread.

    A wait that is cancelled loses nothing: waiting and receiving are separate steps (pyzmq#1925). When the process
    ends, the socket may be closed under a pump whose loop still runs in another thread; then there is nothing more to
    wait for, and nobody to tell.
    """

    def __init__(self, socket: Socket, loop: asyncio.AbstractEventLoop) -> None:
        self._socket = socket
        self._loop = loop
        self._descriptor = descriptor_of(socket)
        self._waiting: dict[int, asyncio.Future[None]] = {}  # zmq.POLLIN or zmq.POLLOUT -> who waits for it
        self._closed = False
        loop.add_reader(self._descriptor, self._look)

    def send(self, frames: Sequence[bytes]) -> bool:
        """Hand one message to the socket; false if it would have to wait: see ``wait_writable``.

        A large frame is not copied: libzmq sends the memory of these bytes.
        """
        send = self._socket.send
        last = frames[-1]
        try:
            for frame in frames[:-1]:
                send(frame, MORE, len(frame) < NO_COPY_BYTES)
            send(last, LAST, len(last) < NO_COPY_BYTES)
        except zmq.ZMQError as error:
            self._require_expected(error)
            return False
        finally:
            self._after_operation()
        return True

    def receive(self, limit: int) -> list[list[Any]]:
        """Up to ``limit`` messages that have arrived, none if there are none: see ``wait_readable``.

        Their frames are bytes, or a view of libzmq's memory for a large one.
        """
        messages: list[list[Any]] = []
        receive = self._socket.recv
        try:
            while len(messages) < limit:
                frames: list[Any] = []
                more = True
                while more:
                    frame = receive(LAST, False)
                    frames.append(frame.bytes if len(frame) < NO_COPY_BYTES else frame.buffer)
                    more = frame.more
                messages.append(frames)
        except zmq.ZMQError as error:
            self._require_expected(error)
        finally:
            self._after_operation()
        return messages

    async def wait_readable(self) -> None:
        """Wait until ``receive`` would return something, or the pump is closed."""
        await self._wait(zmq.POLLIN)

    async def wait_writable(self) -> None:
        """Wait until ``send`` could succeed, or the pump is closed."""
        await self._wait(zmq.POLLOUT)

    def close(self) -> None:
        """Stop watching the socket, before it is closed; whoever waits goes on. Calling it again is fine."""
        if self._closed:
            return
        self._closed = True
        self._unwatch()
        self._finish(zmq.POLLIN | zmq.POLLOUT)

    async def _wait(self, direction: int) -> None:
        if self._closed or self._events() & direction:
            return
        waiter = self._waiting.get(direction)
        if waiter is None:
            waiter = self._waiting[direction] = self._loop.create_future()
        # Shielded: several may wait for one direction, and one that is cancelled must not take the others
        # along.
        await asyncio.shield(waiter)

    def _after_operation(self) -> None:
        # Every operation may consume the edge that somebody who waits for the other direction needs
        # (pyzmq#1203).
        if self._waiting:
            self._look()

    def _look(self) -> None:
        # Reading EVENTS also makes the descriptor silent until there is news.
        self._finish(self._events())

    def _events(self) -> int:
        try:
            return events_of(self._socket)
        except zmq.ZMQError as error:
            self._require_expected(error)
            self._unwatch()
            return 0

    def _require_expected(self, error: zmq.ZMQError) -> None:
        if not isinstance(error, zmq.Again) and not self._socket.closed:
            raise error

    def _unwatch(self) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)

    def _finish(self, events: int) -> None:
        for direction in (zmq.POLLIN, zmq.POLLOUT):
            if events & direction:
                waiter = self._waiting.pop(direction, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)
