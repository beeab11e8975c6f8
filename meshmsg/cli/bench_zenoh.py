"""What zenoh's processes of ``meshmsg bench pub-sub`` run, where zenoh is installed (``pip install eclipse-zenoh``).

``python -m meshmsg.cli.bench_zenoh ROLE OPTIONS``. Peer to peer over TCP on 127.0.0.1, in the plain way of its
documentation, but that a publisher waits where buffers are full: by default zenoh drops what does not fit.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import socket
import sys
import threading
import time
from itertools import cycle, islice
from typing import Any

from meshmsg.cli.bench_processes import commands, say

TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.01

Options = dict[str, Any]


def is_installed() -> bool:
    """Whether zenoh can be imported, without importing it."""
    return importlib.util.find_spec("zenoh") is not None


def open_session(zenoh: Any, *, listen: list[str], connect: list[str]) -> Any:
    """A peer that knows only these addresses: it neither scouts by multicast nor gossips."""
    config = zenoh.Config()
    settings: dict[str, Any] = {
        "mode": "peer",
        "listen/endpoints": listen,
        "connect/endpoints": connect,
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "transport/shared_memory/enabled": False,
    }
    for name, value in settings.items():
        config.insert_json5(name, json.dumps(value))
    return zenoh.open(config)


def publish(options: Options) -> None:
    """Publishes as many messages as it is told to."""
    zenoh: Any = importlib.import_module("zenoh")
    with socket.socket() as probe:  # zenoh does not tell which port it chose
        probe.bind(("127.0.0.1", 0))
        endpoint = f"tcp/127.0.0.1:{probe.getsockname()[1]}"
    with open_session(zenoh, listen=[endpoint], connect=[]) as session:
        publishers = [
            session.declare_publisher(
                topic.replace(".", "/"),
                congestion_control=zenoh.CongestionControl.BLOCK,
                reliability=zenoh.Reliability.RELIABLE,
            )
            for topic in options["topics"]
        ]
        body = b"x" * options["size"]
        say(endpoint=endpoint)
        for command in commands():
            if "subscribers" in command:
                wait_for_subscribers(session, command["subscribers"])
                say(found=command["subscribers"])
            elif "count" in command:
                began = time.monotonic()
                for publisher in islice(cycle(publishers), command["count"]):
                    publisher.put(body)
                say(began=began)
            else:
                say(cpu_s=time.process_time())


def wait_for_subscribers(session: Any, count: int) -> None:
    """Until so many have declared what they subscribe to, and then their token."""
    end = time.monotonic() + TIMEOUT_S
    while len(list(session.liveliness().get("ready/*"))) < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{count} subscribers did not come within {TIMEOUT_S:g} s")
        time.sleep(LOOK_EVERY_S)


def follow(options: Options) -> None:
    """Counts what arrives in a callback, zenoh's fastest way."""
    zenoh: Any = importlib.import_module("zenoh")
    handled = 0
    wanted = 0
    complete = threading.Event()

    def on_sample(sample: Any) -> None:
        nonlocal handled
        handled += 1
        if handled == wanted:
            complete.set()

    with open_session(zenoh, listen=[], connect=[options["endpoint"]]) as session:
        session.declare_subscriber(options["pattern"].replace(".", "/"), on_sample)
        token = session.liveliness().declare_token(f"ready/{options['number']}")
        say(ready=True)
        for command in commands():
            cpu_start = time.process_time()
            wanted += command["count"]
            if handled < wanted:
                complete.wait(TIMEOUT_S)
            complete.clear()
            ended = time.monotonic()
            say(ended=ended, handled=handled, gaps=0, cpu_s=time.process_time() - cpu_start)
        token.undeclare()


ROLES = {"publish": publish, "follow": follow}


if __name__ == "__main__":
    ROLES[sys.argv[1]](json.loads(sys.argv[2]))
