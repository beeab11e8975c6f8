"""Directories that are offered, and what the tests look at when their files travel."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

from meshmsg.sockets.files import fit_chunk
from tests.contracts.faces import Face
from tests.contracts.services import serve

CHUNK_BYTES = fit_chunk(2**30)
DATA = random.Random(5).randbytes(5 * CHUNK_BYTES + 1)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def names_in(directory: Path) -> list[str]:
    """All files below a directory."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


class Progress(list[tuple[int, int]]):
    """What a transfer reported."""

    def __call__(self, done: int, total: int) -> None:
        self.append((done, total))


def share(face: Face, directory: Path, *, writable: bool = False, max_bytes: int | None = None, **options: Any) -> Any:
    """A dealer of a service that offers the directory."""
    router, dealer = serve(face, "files", **options)
    router.files(directory, writable=writable, max_bytes=max_bytes)
    return dealer
