"""meshmsg: brokerless messaging for Python services.

The rooms, from top to bottom; imports point down only:
``cli``, ``blocking``, ``testing`` → ``node`` → ``sockets`` → ``driver`` → ``transport``, ``discovery``, ``observe``
→ ``engine`` (pure state machines) → ``wire`` → ``message``, ``options``, ``errors``.
"""

from meshmsg.errors import (
    AddressUnavailable,
    AlreadySettled,
    BodyTooLarge,
    ConfigurationError,
    DeadLettered,
    DiscoveryUnavailable,
    EncodeError,
    ForkedProcess,
    MeshError,
    MissingExtra,
    NameClash,
    NodeClosed,
    OutboxFull,
    ProtocolError,
    Reject,
    TooManyLinks,
    UnknownOption,
    WaitTimeout,
    WrongThread,
)
from meshmsg.message import Attempt, Batch, DeadLetter, Event, Ledger, Message, Peer
from meshmsg.node import Node
from meshmsg.options import Retry

__version__ = "0.1.0"

__all__ = [
    "AddressUnavailable",
    "AlreadySettled",
    "Attempt",
    "Batch",
    "BodyTooLarge",
    "ConfigurationError",
    "DeadLetter",
    "DeadLettered",
    "DiscoveryUnavailable",
    "EncodeError",
    "Event",
    "ForkedProcess",
    "Ledger",
    "MeshError",
    "Message",
    "MissingExtra",
    "NameClash",
    "Node",
    "NodeClosed",
    "OutboxFull",
    "Peer",
    "ProtocolError",
    "Reject",
    "Retry",
    "TooManyLinks",
    "UnknownOption",
    "WaitTimeout",
    "WrongThread",
]
