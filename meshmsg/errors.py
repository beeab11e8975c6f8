"""Every error meshmsg raises, in one tree; each says what went wrong, for whom, and what to do next.

::

    MeshError
    ├── ConfigurationError (ValueError)      an option or argument that cannot work
    │   ├── UnknownOption (TypeError)        a keyword nobody knows; names the closest one
    │   └── NameClash                        the name is taken in this node, or with other options
    ├── EncodeError (TypeError, ValueError)  a body that cannot be sent; names the path to the value
    ├── BodyTooLarge (ValueError)            a body over ``max_message_bytes``
    ├── ProtocolError (ValueError)           a peer's frame that cannot be read
    ├── NodeClosed (RuntimeError)            the node or socket was closed, or the node is not yet started
    ├── ForkedProcess (RuntimeError)         a node used in a child of the process that made it
    ├── WrongThread (RuntimeError)           an asyncio node used from another thread
    ├── AlreadySettled (RuntimeError)        a second verdict on one message
    ├── OutboxFull (BlockingIOError)         ``send_nowait`` of a push or pub found no room
    ├── DeadLettered                         ``deliver``: the message became a dead letter
    ├── WaitTimeout (TimeoutError)           ``wait_for``, ``flush`` or ``deliver`` ran out of time
    ├── RequestError                         a request that brought no result; ``code`` says why
    │   ├── NoResponders (ConnectionError)   nobody offers the service; known at once
    │   ├── DeadlineExceeded (TimeoutError)  no answer in time
    │   ├── PeerLost (ConnectionError)       who had the request is gone
    │   ├── Cancelled                        given up before there was an answer
    │   ├── Overloaded (BlockingIOError)     the service has too much to do; ``retry_after`` says when to come back
    │   ├── Unavailable (ConnectionError)    the service is closing: it did not begin, or was stopped, as the text says
    │   ├── BadRequest (ValueError)          arguments that do not fit; names the ``argument``
    │   ├── NoSuchMethod (LookupError)       nobody who serves it has such a method; names the closest one
    │   └── RemoteError                      the method failed: ``type``, message, ``remote_traceback``
    ├── AddressUnavailable (OSError)         nothing could be bound or dialled there
    ├── TooManyLinks (OSError)               the process's file descriptors do not suffice
    ├── DiscoveryUnavailable (OSError)       mDNS cannot run here
    └── MissingExtra (ImportError)           an optional dependency is not installed

``Reject`` stands outside the tree: a handler raises it to say that a message must not be retried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshmsg.message import DeadLetter


class MeshError(Exception):
    """Base of every error that meshmsg raises.

    ``accepted`` has the ids of the messages that a ``send_many`` of a push had accepted before it was ended by this
    error. Whatever else ends one, such as a cancellation or an error of its iterator, gets this attribute, too.
    """

    accepted: Sequence[str] = ()


class ConfigurationError(MeshError, ValueError):
    """An option or argument that cannot work."""


class UnknownOption(ConfigurationError, TypeError):
    """A keyword that no option has."""


class NameClash(ConfigurationError):
    """A name that is already taken in this node, or taken with other options."""


class EncodeError(MeshError, TypeError, ValueError):
    """A body that MessagePack cannot carry; ``path`` leads to the offending value."""

    def __init__(self, message: str, path: str = "body") -> None:
        super().__init__(message)
        self.path = path


class BodyTooLarge(MeshError, ValueError):
    """A body over the node's ``max_message_bytes``."""


class ProtocolError(MeshError, ValueError):
    """A frame that breaks the wire protocol; it costs its sender's link and nothing else (G11)."""


class NodeClosed(MeshError, RuntimeError):
    """The node or the socket is closed, or the node has not been started; the message says what to open instead."""


class ForkedProcess(MeshError, RuntimeError):
    """A node was used in a forked child; make a new node there, or start children with "spawn"."""


class WrongThread(MeshError, RuntimeError):
    """An asyncio node was used outside its event loop's thread."""


class AlreadySettled(MeshError, RuntimeError):
    """A message got a second verdict."""


class OutboxFull(MeshError, BlockingIOError):
    """``send_nowait`` found no room where ``send`` waits (G5).

    Of a push: ``max_pending`` or ``max_pending_bytes`` is reached. Of a pub: that of a group is, or a subscriber is as
    far behind as ``block=True`` allows, or others wait in line for that. Of a bare push: ZeroMQ takes no more.
    """


class DeadLettered(MeshError):
    """``deliver`` learned that the message became a dead letter; ``letter`` tells why."""

    def __init__(self, message: str, letter: DeadLetter) -> None:
        super().__init__(message)
        self.letter = letter


class WaitTimeout(MeshError, TimeoutError):
    """What was waited for did not happen in time."""


class RequestError(MeshError):
    """A request that brought no result (G8).

    ``code`` is a short text for programs, ``peer`` the name of the node that was asked (None if none was), ``service``
    and ``method`` say for what. A method may raise any of these for its caller.
    """

    code = "error"
    peer: str | None = None
    service: str | None = None
    method: str | None = None


class NoResponders(RequestError, ConnectionError):
    """Nobody in the mesh offers the service, or nobody who does is serving."""

    code = "no_responders"


class DeadlineExceeded(RequestError, TimeoutError):
    """There was no answer in time; whether the method ran is not known. It was told to stop."""

    code = "deadline_exceeded"


class PeerLost(RequestError, ConnectionError):
    """Who had the request is gone; whether the method ran is not known."""

    code = "peer_lost"


class Cancelled(RequestError):
    """The request was given up before there was an answer: by its caller, by its node's close, or by the method."""

    code = "cancelled"


class Overloaded(RequestError, BlockingIOError):
    """The service has no room for more; the method did not run, unless it says so itself.

    ``retry_after`` is in seconds, None if unknown.
    """

    code = "overloaded"

    def __init__(self, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(RequestError, ConnectionError):
    """The service is closing: the method did not begin, or it began and was stopped, as the message then says.

    What did not begin was offered to everybody else before this is raised. What was stopped may have done a part of its
    work; only an idempotent request is tried again after it.
    """

    code = "unavailable"


class BadRequest(RequestError, ValueError):
    """Arguments that do not fit the method; ``argument`` names the first one, None if it is about all of them."""

    code = "bad_request"

    def __init__(self, message: str = "", argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


class NoSuchMethod(RequestError, LookupError):
    """The service has no method of this name: nobody who serves it now, or not the one that ``peer=`` names."""

    code = "no_such_method"


class RemoteError(RequestError):
    """The method failed. ``type`` names the exception there, ``remote_traceback`` is its text, if the service tells.

    Raised in a method, it gives the caller a code of one's own, and no traceback:

    >>> error = RemoteError("sold out", code="out_of_stock")
    >>> error.code
    'out_of_stock'
    """

    def __init__(
        self, message: str = "", code: str = "error", type: str = "RemoteError", remote_traceback: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.type = type
        self.remote_traceback = remote_traceback


class AddressUnavailable(MeshError, OSError):
    """An address that cannot be bound or dialled."""


class TooManyLinks(MeshError, OSError):
    """Another link would not fit into the process's file descriptors."""


class DiscoveryUnavailable(MeshError, OSError):
    """mDNS cannot run on this machine; static seeds still work."""


class MissingExtra(MeshError, ImportError):
    """An optional dependency is missing; the message names the extra to install."""


class Reject(Exception):
    """Raised by a handler: this message can never succeed, make it a dead letter at once (G1, G4).

    >>> raise Reject("no such image")
    Traceback (most recent call last):
    ...
    meshmsg.errors.Reject: no such image
    """
