"""What a publisher keeps for repairs of topics without a history, bounded over all of them."""

from __future__ import annotations

from collections import OrderedDict

from meshmsg.engine.topic_log import TopicLog

MAX_LOOKS = 100  # topics that are looked at in a turn for what can be forgotten of them


class RepairPool:
    """Topics that share a bound, the least recently published first."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.cost = 0
        self._logs: OrderedDict[str, TopicLog] = OrderedDict()

    def grow(self, log: TopicLog, cost: int) -> None:
        """Something was published to a topic, which takes so many bytes more than before; sheds what is too much."""
        self._logs[log.topic] = log
        self._logs.move_to_end(log.topic)
        self.cost += cost
        if self.cost > self.most_bytes:
            self._shed()

    def remove(self, log: TopicLog) -> None:
        """The topic is kept in another way; it need not have been here."""
        if self._logs.pop(log.topic, None) is not None:
            self.cost -= log.cost

    def _shed(self) -> None:
        """Forgets the least recently published topics, then all but the newest batch of the last one.

        What sending waits for is kept, and its topic gets another turn; only some of these are looked at.
        """
        for _ in range(min(MAX_LOOKS, len(self._logs))):
            if self.cost <= self.most_bytes:
                return
            if len(self._logs) == 1:
                (log,) = self._logs.values()
                self.cost -= log.shed(1)
                return
            topic, log = self._logs.popitem(last=False)
            self.cost -= log.shed(0)
            if log.entries:
                self._logs[topic] = log

    def check(self) -> None:
        """The pool's own invariant, for the simulator."""
        held = sum(log.cost for log in self._logs.values())
        assert held == self.cost, f"counts {self.cost} bytes for repairs, holds {held}"
