"""A member of a group: published messages that are handed to one member at a time until one acks (G7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshmsg.driver import Driver
from meshmsg.engine.binding import Binding, freeze_where
from meshmsg.engine.inbox import Inbox
from meshmsg.engine.topics import require_pattern
from meshmsg.errors import ConfigurationError, NameClash
from meshmsg.options import GroupOptions, make_options
from meshmsg.sockets.push_pull import Pull
from meshmsg.sockets.shown import of_node
from meshmsg.wire.frames import MAX_QUEUE


class GroupSub(Pull):
    """What ``node.sub(pattern, group=...)`` makes: iterate it, take ``batches()``, or decorate a handler with it.

    It is a ``Pull`` of the group's queue, so each message wants its verdict, and is tried again until one member acks
    it or it becomes a dead letter at its publisher. ``message.topic`` says where it was published.

    Examples
    --------
    >>> from meshmsg import Node
    >>> async with Node("shop") as node:
    ...     orders = node.pub("orders.*")
    ...     invoices = node.sub("orders.**", group="billing")
    ...     await node.wait_for(group="billing", timeout=5)
    ...     await orders.send({"id": 1}, topic="orders.eu")
    ...     with await invoices.get(timeout=5) as message:
    ...         print(message.topic, message.body, message.queue)
    orders.eu {'id': 1} group:billing@orders.**
    """

    def __init__(self, driver: Driver, inbox: Inbox, options: GroupOptions, binding: Binding) -> None:
        super().__init__(driver, inbox, options.for_pull())
        self.pattern = binding.pattern
        self.group = binding.group
        self._label = f"sub({binding.pattern!r}, group={binding.group!r})"

    def _title(self) -> str:
        return of_node(self.pattern, self._driver)

    def _state(self) -> str:
        return f"group {self.group!r}, {super()._state()}"


def open_group_sub(driver: Driver, pattern: str, options: Mapping[str, Any]) -> GroupSub:
    """Makes this node a member; raises ``UnknownOption``, ``ConfigurationError``, ``NameClash``."""
    require_pattern("sub(pattern)", pattern)
    where = f"sub({pattern!r}, group={options['group']!r})"
    chosen = make_options(GroupOptions, where, options)
    binding = Binding(chosen.group, pattern, freeze_where(chosen.where))
    queue, engine = binding.queue, driver.engine
    if len(queue) > MAX_QUEUE:  # its members' links would end at the first message
        raise ConfigurationError(
            f"{where}: group, where= and pattern make a name of {len(queue)} characters, and {MAX_QUEUE} are "
            "allowed: ask for fewer headers, or shorter values"
        )
    if queue in engine.inboxes:
        raise NameClash(
            f"node {engine.identity.name!r} is a member of this group already, {where}: use concurrency= for more "
            "handlers, or close the first one"
        )
    inbox = engine.open_group(binding, chosen.prefetch, durable=chosen.durable)
    try:
        sub = GroupSub(driver, inbox, chosen, binding)
    except BaseException:  # such as a type= that is none: nobody would take what is sent here
        engine.close_pull(queue)
        raise
    driver.wake()
    return sub
