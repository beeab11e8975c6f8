"""Encoding in whatever thread calls: one packer must not be used by two."""

from __future__ import annotations

import threading
from typing import Any

from meshmsg.wire.codec import make_packer


class ThreadPacker(threading.local):
    """``pack`` encodes a body. Each thread that looks at it finds one of its own."""

    def __init__(self) -> None:
        self.pack = make_packer()

    def __call__(self, body: Any) -> bytes:
        return self.pack(body)
