"""Peers that are real processes: killed, frozen, busy, and ending in the moment they said goodbye."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from meshmsg.transport.zmq import ZmqTransport
from tests.transport.line import SlowLine
from tests.transport.side import DOWN, FAILED, REFUSED, UP, Side

# A node whose own code does nothing but wait: what it answers, libzmq's I/O thread answers.
BUSY_PEER = """
import sys
from meshmsg.transport.zmq import ZmqTransport
transport = ZmqTransport(heartbeat_interval_s=0.1, heartbeat_timeout_s=0.3)
print(transport.bind()[0], flush=True)
sys.stdin.read()
transport.close()
"""

# A program whose last act is to close, right after the last message.
LEAVING_PEER = """
import asyncio, sys
from meshmsg.transport.zmq import ZmqTransport

async def main():
    transport, woken = ZmqTransport(heartbeat_interval_s=600, heartbeat_timeout_s=600), asyncio.Event()
    transport.bind()
    transport.start(asyncio.get_running_loop(), woken.set)
    transport.dial(1, sys.argv[1], b"leaving")
    while not transport.link_events():
        await woken.wait()
        woken.clear()
    transport.send(1, [b"goodbye", bytes(20_000_000)])
    transport.close(linger_ms=20_000)

asyncio.run(main())
"""


@contextmanager
def started(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def endpoint_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def quick() -> ZmqTransport:
    return ZmqTransport(heartbeat_interval_s=0.1, heartbeat_timeout_s=0.3, dial_timeout_s=0.5)


async def test_a_killed_process_is_down_and_then_refuses() -> None:
    # Heartbeats and timeouts so slow that they cannot be what notices.
    ours = ZmqTransport(heartbeat_interval_s=600, heartbeat_timeout_s=600, dial_timeout_s=600)
    with Side(ours) as side, started(BUSY_PEER) as process:
        endpoint = endpoint_of(process)
        side.transport.dial(1, endpoint, b"a")
        await side.until_event(1, UP)
        process.kill()
        await side.until_event(1, DOWN)
        process.wait()  # now its port is surely free again
        side.transport.dial(2, endpoint, b"b")
        await side.until_event(2, REFUSED)


async def test_a_frozen_process_is_down_and_a_busy_one_is_not() -> None:
    with Side(quick()) as side, started(BUSY_PEER) as frozen, started(BUSY_PEER) as busy:
        side.transport.dial(1, endpoint_of(busy), b"a")
        frozen_endpoint = endpoint_of(frozen)
        side.transport.dial(2, frozen_endpoint, b"b")
        await side.until_event(1, UP)
        await side.until_event(2, UP)
        frozen.send_signal(signal.SIGSTOP)
        await side.until_event(2, DOWN)
        # Frozen, it still accepts connections: the kernel does that. Its handshake does not come.
        side.transport.dial(3, frozen_endpoint, b"c")
        await side.until_event(3, FAILED)
        # Thawed, it can be dialled again.
        frozen.send_signal(signal.SIGCONT)
        side.transport.dial(4, frozen_endpoint, b"d")
        await side.until_event(4, UP)
        assert side.transport.send(1, [b"the busy one was there all the time"])
        assert (1, DOWN) not in side.events


async def test_a_goodbye_leaves_although_the_process_ends() -> None:
    # Without heartbeats: one that came when libzmq has given all to TCP, and has closed, would make TCP reset the
    # connection and forget what is on its way. A line this slow shows it; a short goodbye is gone long before.
    with Side(ZmqTransport(heartbeat_interval_s=600, heartbeat_timeout_s=600)) as side:
        # Slow, so that the message is still on its way when the program has come to its end.
        line = SlowLine(side.endpoint, bytes_per_second=20_000_000)
        with started(LEAVING_PEER, await line.open()) as process:
            assert await side.until_received(1) == [[b"goodbye", bytes(20_000_000)]]
            assert process.wait(20) == 0
        await line.close()


@pytest.mark.parametrize("where", ["in the main thread", "in another thread"])
async def test_a_process_that_closes_nothing_ends_well_in_the_middle_of_a_message(where: str) -> None:
    # libzmq sends the program's own memory, and tells pyzmq when it lets go of it: at no time may there be nobody to
    # tell, or the process crashes. Whether it would is a matter of luck; so it gets several chances.
    program = LEAVING_PEER.replace("transport.close(linger_ms=20_000)", "globals()['kept'] = transport")
    if where == "in another thread":
        program = program.replace("    globals()", "    done.set(); await asyncio.Event().wait(); globals()")
        main = "import threading; done = threading.Event()\n"
        main += "threading.Thread(target=asyncio.run, args=[main()], daemon=True).start(); done.wait()"
        program = program.replace("asyncio.run(main())", main)
    for _ in range(2):
        with Side(ZmqTransport(heartbeat_interval_s=600, heartbeat_timeout_s=600)) as side:
            line = SlowLine(side.endpoint, bytes_per_second=200_000_000)
            with started(program, await line.open()) as process:
                assert await asyncio.to_thread(process.wait, 20) == 0
            await line.close()


@pytest.mark.parametrize("state", ["frozen", "gone"])
async def test_a_process_ends_although_its_peer_takes_nothing(state: str) -> None:
    with started(BUSY_PEER) as peer:
        endpoint = endpoint_of(peer)
        program = LEAVING_PEER.replace("linger_ms=20_000", "linger_ms=200")
        program = program.replace("    transport.send", "    input()\n    transport.send")
        with started(program, endpoint) as process:
            assert process.stdin is not None
            if state == "frozen":
                peer.send_signal(signal.SIGSTOP)
            else:
                peer.kill()
                peer.wait()
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.wait(20) == 0
