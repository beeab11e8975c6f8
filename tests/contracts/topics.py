"""A publisher and a subscription of another node, in whatever face."""

from __future__ import annotations

from typing import Any

from tests.contracts.faces import PATIENCE_S, Face


def connect(face: Face, topic: str, *, pub: dict[str, Any] | None = None, **sub: Any) -> tuple[Any, Any]:
    """A publisher of a topic, and a subscription of another node that the publisher has confirmed."""
    publisher, subscriber = face.pair()
    out, subscription = publisher.pub(topic, **(pub or {})), subscriber.sub(topic, **sub)
    publisher.wait_for(sub=topic.replace("*", "any"), timeout=PATIENCE_S)
    return out, subscription


def get_all(sub: Any, count: int) -> list[Any]:
    """The bodies of the next messages."""
    return [sub.get(timeout=PATIENCE_S).body for _ in range(count)]
