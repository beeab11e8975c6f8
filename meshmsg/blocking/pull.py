"""The consumer's end of a queue, for threads."""

from __future__ import annotations

from meshmsg.blocking.consumer import Consumer
from meshmsg.driver import Driver
from meshmsg.sockets import push_pull


class Pull(Consumer[push_pull.Pull]):
    """The consumer's end of a queue. ``node.pull(queue, ...)`` makes it; iterate it, or decorate a handler with it.

    Any number of threads may iterate it, each message goes to one of them. The iteration ends when the pull or its
    node is closed; Ctrl-C interrupts it in the main thread. Closing gives unstarted messages back at no cost (G4).
    """

    def __init__(self, asynchronous: push_pull.Pull, driver: Driver) -> None:
        super().__init__(asynchronous, driver)
        self.queue = asynchronous.queue
        self.options = asynchronous.options
