"""meshmsg: brokerless messaging for Python services.

A process holds a ``Node``. Nodes of one mesh find each other through mDNS and connect directly. ``node.push(queue)``
sends work, ``node.pull(queue)`` takes it; every message that was accepted is processed or becomes a dead letter.
``node.pub(topic)`` publishes, ``node.sub(pattern)`` subscribes; what is lost on the way is repaired, or told.
``node.router(service)`` offers methods, ``node.dealer(service)`` calls them; each request has exactly one outcome.
The same without ``await``: ``meshmsg.blocking``. Test your service with ``meshmsg.testing``.

>>> import asyncio
>>> from meshmsg import Node
>>> async with Node("worker") as node:
...     @node.pull("greetings")
...     async def greet(message):
...         print("hello", message.body)
...     message_id = await node.push("greetings").deliver("Ada", timeout=5)
hello Ada
"""

# The rooms, from top to bottom; imports point down only:
# cli, blocking, testing → node → sockets → driver → transport, discovery, observe → engine (pure state machines)
# → wire → message, options, checks, errors, addresses. Above sockets, beside node: reach, loops (event loops),
# unclosed (nodes that nobody closed).

import logging

from meshmsg.errors import (
    AddressUnavailable,
    AlreadySettled,
    BadRequest,
    BodyTooLarge,
    Cancelled,
    ConfigurationError,
    DeadLettered,
    DeadlineExceeded,
    DiscoveryUnavailable,
    EncodeError,
    ForkedProcess,
    MeshError,
    MissingExtra,
    NameClash,
    NodeClosed,
    NoResponders,
    NoSuchMethod,
    OutboxFull,
    Overloaded,
    PeerLost,
    ProtocolError,
    Reject,
    RemoteError,
    RequestError,
    TooManyLinks,
    Unavailable,
    UnknownOption,
    WaitTimeout,
    WrongThread,
)
from meshmsg.message import Attempt, Batch, DeadLetter, Event, Gap, Ledger, Message, Peer
from meshmsg.node import Node
from meshmsg.options import Retry
from meshmsg.sockets.context import Context
from meshmsg.sockets.dealer import Dealer
from meshmsg.sockets.files import FileInfo
from meshmsg.sockets.group_sub import GroupSub
from meshmsg.sockets.interceptors import Outgoing
from meshmsg.sockets.item_stream import Answer
from meshmsg.sockets.pub_sub import Pub, Sub
from meshmsg.sockets.push_pull import Pull, Push
from meshmsg.sockets.router import Router

# Applications decide what is printed; without this, Python prints a library's warnings to stderr.
logging.getLogger("meshmsg").addHandler(logging.NullHandler())

__version__ = "0.1.0"

__all__ = [
    "AddressUnavailable",
    "AlreadySettled",
    "Answer",
    "Attempt",
    "BadRequest",
    "Batch",
    "BodyTooLarge",
    "Cancelled",
    "ConfigurationError",
    "Context",
    "DeadLetter",
    "DeadLettered",
    "DeadlineExceeded",
    "Dealer",
    "DiscoveryUnavailable",
    "EncodeError",
    "Event",
    "FileInfo",
    "ForkedProcess",
    "Gap",
    "GroupSub",
    "Ledger",
    "MeshError",
    "Message",
    "MissingExtra",
    "NameClash",
    "NoResponders",
    "NoSuchMethod",
    "Node",
    "NodeClosed",
    "OutboxFull",
    "Outgoing",
    "Overloaded",
    "Peer",
    "PeerLost",
    "ProtocolError",
    "Pub",
    "Pull",
    "Push",
    "Reject",
    "RemoteError",
    "RequestError",
    "Retry",
    "Router",
    "Sub",
    "TooManyLinks",
    "Unavailable",
    "UnknownOption",
    "WaitTimeout",
    "WrongThread",
]
