"""``node.wait_for``: until enough nodes are there that take, send, offer or are called something."""

from __future__ import annotations

from collections.abc import Mapping

from meshmsg.checks import require_int, require_name
from meshmsg.driver import Driver
from meshmsg.engine.topics import require_topic
from meshmsg.errors import ConfigurationError, WaitTimeout
from meshmsg.sockets.queues import Queues
from meshmsg.sockets.topics import Topics


async def wait_for_nodes(
    driver: Driver, queues: Queues, topics: Topics, given: Mapping[str, str | None], count: int, timeout: float | None
) -> None:
    """Waits for one of what is ``given`` by kind; raises ``WaitTimeout`` with what is known of why it is not there."""
    wanted = [(kind, name) for kind, name in given.items() if name is not None]
    if len(wanted) != 1:
        raise ConfigurationError(f"wait_for takes exactly one of {', '.join(f'{kind}=' for kind in given)}")
    require_int("wait_for(count=)", count, at_least=0)
    kind, name = wanted[0]
    if kind in ("sub", "pub"):
        require_topic(f"wait_for({kind}=)", name)
    else:
        require_name(f"wait_for({kind}=)", name)
    engine = driver.engine

    def found() -> int:
        if kind == "peer":
            return sum(1 for each in engine.list_peers(driver.now()) if each.name == name and each.state == "alive")
        if kind == "pull":
            return queues.count_consumers(name)
        return topics.count_subscribers(name) if kind == "sub" else engine.count(kind, name)

    if not await driver.until(lambda: found() >= count, timeout):
        nobody = kind == "pull" and not found()
        peers = engine.list_peers(driver.now())
        hint = queues.describe_consumers(name) if nobody else f"{len(peers)} peers seen"
        if kind == "sub":
            hint = topics.describe_subscribers(name) or hint
        elif kind == "pub":
            hint = topics.describe_publishers(name)
        raise WaitTimeout(f"found {found()} of {count} for {kind}={name!r} within {timeout} s; {hint}")
    driver.require_usable()
