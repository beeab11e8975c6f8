"""Encoding in whatever thread calls: one packer must not be used by two."""

from __future__ import annotations

import threading
from typing import Any

from meshmsg.wire.codec import make_packer, renew_packer
from meshmsg.wire.large import LARGE_BYTES


class ThreadPacker(threading.local):
    """``pack`` encodes a body. Each thread that looks at it finds one of its own."""

    def __init__(self) -> None:
        self.pack = make_packer()

    def __call__(self, body: Any) -> bytes:
        encoded = self.pack(body)
        if len(encoded) > LARGE_BYTES:
            self.renew(len(encoded))
        return encoded

    def renew(self, size: int) -> None:
        """After a body of so many bytes: what this thread encodes the next one with (``renew_packer``)."""
        self.pack = renew_packer(self.pack, size)
