"""Test your own services without processes, sockets or waiting: a mesh in virtual time, with faults on demand."""

from __future__ import annotations

from meshmsg.testing.books import GuaranteeBroken
from meshmsg.testing.clock import VirtualClock
from meshmsg.testing.cluster import Cluster
from meshmsg.testing.messages import make_message
from meshmsg.testing.network import Network
from meshmsg.testing.nodes import ClusterNode, ClusterPull, ClusterPush
from meshmsg.testing.requests import ClusterCall, ClusterDealer, ClusterRequest, ClusterRouter
from meshmsg.testing.topics import ClusterPub, ClusterSub

__all__ = [
    "Cluster",
    "ClusterCall",
    "ClusterDealer",
    "ClusterNode",
    "ClusterPub",
    "ClusterPull",
    "ClusterPush",
    "ClusterRequest",
    "ClusterRouter",
    "ClusterSub",
    "GuaranteeBroken",
    "Network",
    "VirtualClock",
    "make_message",
]
