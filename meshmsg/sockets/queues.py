"""A node's pushing and pulling sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Mapping
from functools import partial
from typing import Any

from meshmsg.checks import require_queue
from meshmsg.driver import Driver
from meshmsg.engine.effects import Outcome
from meshmsg.errors import ConfigurationError, NameClash
from meshmsg.message import DeadLetter
from meshmsg.options import PullOptions, PushOptions, describe_difference, make_options
from meshmsg.sockets.bare import BarePull, BarePush
from meshmsg.sockets.group_sub import GroupSub, open_group_sub
from meshmsg.sockets.push_pull import Pull, Push
from meshmsg.sockets.raw import RawSockets


class Queues:
    """Opens them, and gives each queue one ``Push``. The node has checked that it is open."""

    def __init__(self, driver: Driver, max_message_bytes: int) -> None:
        self._driver = driver
        self._engine = driver.engine
        self._max_message_bytes = max_message_bytes
        self._pushes: dict[str, Push] = {}
        self._closed_pushes: dict[str, Push] = {}  # the last of each queue that is not forgotten yet
        self._pulls: dict[str, Pull] = {}
        self._bare_pushes: dict[str, BarePush] = {}
        self._bare_pulls: dict[str, BarePull] = {}
        self._raws: RawSockets | None = None
        self._engine.on_queue_over = self._forget_queue

    def connect(self, raws: RawSockets) -> None:
        """The node has started."""
        self._raws = raws
        for bare_push in self._bare_pushes.values():
            bare_push._connect(raws)
        for bare_pull in self._bare_pulls.values():
            bare_pull._connect(raws)
            bare_pull._start()
        for pull in self._pulls.values():
            pull._start()

    @property
    def consumers(self) -> Iterator[Pull]:
        """Whoever takes work here, members of groups too."""
        yield from self._bare_pulls.values()
        yield from self._pulls.values()

    async def drain(self, seconds: float) -> None:
        """Consumes no more; handlers get so many seconds to end."""
        await asyncio.gather(*(pull.close(seconds) for pull in self.consumers))

    async def close_bare(self) -> None:
        """ZeroMQ sends what it was given, as far as it can."""
        for bare in list(self._bare_pushes.values()):
            await bare.close()

    def close(self) -> None:
        """The node is closed: whoever waits for an outcome hears that there is none."""
        for push in (*self._pushes.values(), *self._closed_pushes.values()):
            push._abandon()

    # -- opening ---------------------------------------------------------------------------------------------

    def push(self, queue: str, options: Mapping[str, Any]) -> Push | BarePush:
        """The same queue with the same options is the same socket."""
        require_queue("push(queue)", queue)
        plain = dict(options)
        hook = plain.pop("on_dead_letter", None)
        chosen = make_options(PushOptions, f"push({queue!r})", plain)
        if not chosen.reliable:
            return self._push_bare(queue, plain if hook is None else {**plain, "on_dead_letter": hook})
        if chosen.dead_letter_to == queue:
            raise ConfigurationError(
                f"push({queue!r}, dead_letter_to={queue!r}) is its own queue, where what is dead would be handled again"
                ": use retry=Retry(max_attempts=) for more attempts, or another queue"
            )
        name = self._engine.identity.name
        if queue in self._bare_pushes:
            raise NameClash(f"node {name!r} already pushes to {queue!r} with reliable=False: use another queue name")
        push = self._pushes.get(queue)
        if push is None:
            push = self._pushes[queue] = self._open_push(queue, chosen)
        elif plain and push.options != chosen:
            others = describe_difference(push.options, chosen)
            raise NameClash(
                f"node {name!r} already pushes to {queue!r} with other options ({others}): "
                "open a queue once, and hand the socket around"
            )
        if hook is not None:
            push.on_dead_letter(hook)
        return push

    def _open_push(self, queue: str, options: PushOptions) -> Push:
        outbox = self._engine.open_push(queue, options)
        push = Push(self._driver, outbox, options, self._max_message_bytes, self._close_push)
        before = self._closed_pushes.pop(queue, None)
        if before is not None:
            push._succeed(before)
        self._driver.wake()
        return push

    def _close_push(self, push: Push) -> None:
        self._closed_pushes[push.queue] = self._pushes.pop(push.queue)

    def _forget_queue(self, queue: str) -> None:
        self._closed_pushes.pop(queue, None)

    def _find_push(self, queue: str) -> Push | None:
        """Who hears what becomes of a queue's messages: who has it open, or had."""
        return self._pushes.get(queue) or self._closed_pushes.get(queue)

    def _push_bare(self, queue: str, options: Mapping[str, Any]) -> BarePush:
        if len(options) > 1:
            others = ", ".join(sorted(set(options) - {"reliable"}))
            raise ConfigurationError(f"push({queue!r}, reliable=False) is bare ZeroMQ and has no {others}")
        if queue in self._pushes:
            name = self._engine.identity.name
            raise NameClash(f"node {name!r} already pushes to {queue!r} reliably: use another queue name")
        bare = self._bare_pushes.get(queue)
        if bare is None:
            forget = partial(self._bare_pushes.pop, queue, None)
            bare = self._bare_pushes[queue] = BarePush(self._driver, queue, forget)
            if self._raws is not None:
                bare._connect(self._raws)
        return bare

    def pull(self, queue: str, options: Mapping[str, Any]) -> Pull:
        """One pull a queue."""
        require_queue("pull(queue)", queue)
        chosen = make_options(PullOptions, f"pull({queue!r})", options)
        if queue in self._engine.inboxes or queue in self._bare_pulls:
            raise NameClash(
                f"node {self._engine.identity.name!r} already pulls {queue!r}: one pull a queue and node; "
                "use concurrency= for more handlers, or close the first pull"
            )
        if not chosen.reliable:
            with self._engine.reserving_offer("pull", queue, {"reliable": False}):
                bare = BarePull(self._driver, queue, chosen, partial(self._forget_bare_pull, queue))
            self._bare_pulls[queue] = bare
            if self._raws is not None:
                bare._connect(self._raws)
            return bare
        inbox = self._engine.open_pull(queue, chosen.prefetch)
        try:
            pull = Pull(self._driver, inbox, chosen)
        except BaseException:  # such as a type= that is none: nobody would take what is sent here
            self._engine.close_pull(queue)
            raise
        self._add_pull(pull)
        self._driver.wake()
        return pull

    def _add_pull(self, pull: Pull) -> None:
        """Until it is closed: the engine lets nobody open the queue again before."""
        self._pulls[pull.queue] = pull
        pull._on_left = partial(self._pulls.pop, pull.queue, None)

    def _forget_bare_pull(self, queue: str) -> None:
        self._bare_pulls.pop(queue, None)
        self._engine.withdraw("pull", queue)

    def join(self, pattern: str, options: Mapping[str, Any]) -> GroupSub:
        """A member of a group, which is a pull of the group's queue."""
        member = open_group_sub(self._driver, pattern, options)
        self._add_pull(member)
        return member

    # -- looking ---------------------------------------------------------------------------------------------

    def count_consumers(self, queue: str) -> int:
        """How many living nodes pull a queue; if this one pushes to it, in the same way, reliably or not."""
        offers = self._engine.offered("pull", queue)
        if queue not in self._pushes and queue not in self._bare_pushes:
            return len(offers)
        reliable = queue in self._pushes
        return sum((offer.get("reliable", True) is not False) is reliable for offer in offers)

    def describe_consumers(self, queue: str) -> str:
        """In words, who consumes a queue, as seen from this node's own end."""
        return self._engine.peers.describe_consumers(queue, reliable=queue not in self._bare_pushes)

    # -- what the driver tells -------------------------------------------------------------------------------

    def handle_outcome(self, outcome: Outcome) -> None:
        """A message that somebody watches came to its end."""
        push = self._find_push(outcome.queue)
        if push is not None:
            push._handle_outcome(outcome)

    def handle_dead(self, letter: DeadLetter) -> list[Awaitable[Any]]:
        """A message became a dead letter; returns what its hooks left to be awaited."""
        push = self._find_push(letter.queue)
        return push._handle_dead(letter) if push is not None else []
