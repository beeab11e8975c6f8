"""A node with subscriptions, and what comes to it from one publisher."""

from __future__ import annotations

from typing import Any

from meshmsg.engine.subscriber import Reception, Subscriptions
from meshmsg.engine.subscription import Gap, Subscription
from meshmsg.wire import frames
from meshmsg.wire.codec import encode_batch, make_packer

pack = make_packer()

PEER = "p.3"


class Side:
    """One node with subscriptions, and the reception from one publisher."""

    def __init__(self, *subscriptions: Subscription) -> None:
        self.subscriptions = Subscriptions("s", 1)
        self.reception: Reception = self.subscriptions.follow(PEER)
        for subscription in subscriptions:
            self.add(subscription)

    def add(self, subscription: Subscription) -> None:
        self.subscriptions.add(subscription, self.subscriptions.version + 1)

    def start(self, *topics: list[Any], now: float = 0.0) -> None:
        self.reception.change_filters()
        self.reception.on_start(frames.Start(self.subscriptions.version, list(topics), True), now)

    def live(self, topic: str, first_seq: int, total: int = 1, now: float = 0.0, **more: Any) -> None:
        headers = more.get("headers")
        payload = encode_batch([pack(seq) for seq in range(first_seq, first_seq + total)])
        published = frames.Published(topic, "p", 3, first_seq, total, headers, payload)
        self.reception.on_published(published, now)
        self.subscriptions.check()

    def past(self, topic: str, first_seq: int, total: int, now: float = 0.0, more: bool = False) -> None:
        payload = encode_batch([pack(seq) for seq in range(first_seq, first_seq + total)])
        self.reception.on_past(frames.Past(topic, first_seq, total, None, more, payload), now)
        self.subscriptions.check()

    def forgotten(self, topic: str, up_to: int, now: float = 0.0, more: bool = False) -> None:
        self.reception.on_forgotten(frames.Forgotten(topic, up_to, more), now)
        self.subscriptions.check()

    def wants(self, now: float = 0.0) -> list[tuple[str, int, int]]:
        sent = [frame for _, frame in self.subscriptions.collect(now)]
        self.subscriptions.check()
        return [(each.topic, each.start, each.stop) for each in sent if isinstance(each, frames.Want)]

    def lags(self, now: float = 0.0) -> list[frames.Lag]:
        return [frame for _, frame in self.subscriptions.collect(now) if isinstance(frame, frames.Lag)]


def taken(subscription: Subscription, limit: int = 10**6) -> list[Any]:
    """Bodies, and gaps as pairs."""
    result: list[Any] = []
    for item in subscription.take(limit):
        if isinstance(item, Gap):
            result.append((item.start, item.stop))
        else:
            assert item.bodies == list(range(item.first_seq, item.first_seq + len(item.bodies)))
            result += item.bodies
    subscription.check()
    return result
