"""The demo's work: finding files, measuring one, adding up many. The same code runs in the mesh and in one process."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import meshmsg

CHUNK_BYTES = 2**20
# Neither anybody's work nor the same from one moment to the next.
SKIPPED = {
    "__pycache__", "node_modules", "build", "dist",
    ".git", ".hg", ".svn", ".tox", ".nox", ".venv", ".eggs",
    ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".import_linter_cache", ".cache",
}  # fmt: skip
VENV_MARK = "pyvenv.cfg"  # what PEP 405 puts into every virtual environment


class Measured(NamedTuple):
    """What is found out about one file."""

    sha256: bytes
    size: int
    words: int


class Totals(NamedTuple):
    """Many files added up; ``checksum`` covers the names and contents of all, in any order of arrival."""

    files: int
    size: int
    words: int
    checksum: str


def choose_folder() -> tuple[Path, str]:
    """The project's own tree when run from a checkout, else the installed package; and what it is called."""
    package = Path(meshmsg.__file__).resolve().parent
    if (package.parent / "pyproject.toml").exists():
        return package.parent, "this project's own tree"
    return package, "the installed package"


def list_files(folder: Path) -> list[bytes]:
    """All files under a folder, sorted, as the system spells them, relative to it.

    Links to files count, also those that lead nowhere; folders behind links, pipes and devices don't.
    """
    return sorted(os.path.relpath(path, os.fsencode(folder)) for path in _walk(os.fsencode(folder)))


def _walk(folder: bytes) -> Iterator[bytes]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if os.fsdecode(entry.name) not in SKIPPED and not os.path.exists(
                os.path.join(entry.path, os.fsencode(VENV_MARK))
            ):
                yield from _walk(entry.path)
            continue
        try:
            is_file = stat.S_ISREG(entry.stat().st_mode)
        except OSError:  # a link that leads nowhere: a file that nobody can read
            is_file = True
        if is_file:
            yield entry.path


def measure(path: Path) -> Measured:
    """Checksum, bytes and words of one file, whatever its size; raises ``OSError``.

    A word is what ``bytes.split`` makes of it: anything between white space.
    """
    digest = hashlib.sha256()
    size = words = 0
    inside = False  # a word goes on over the end of a chunk
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            words += len(chunk.split()) - (inside and not chunk[:1].isspace())
            inside = not chunk[-1:].isspace()
    return Measured(digest.digest(), size, words)


def add_up(measured: Mapping[bytes, Measured]) -> Totals:
    """The totals of files by name."""
    digest = hashlib.sha256()
    for name in sorted(measured):
        digest.update(len(name).to_bytes(4, "big") + name + measured[name].sha256)
    sizes, words = (sum(column) for column in _columns(measured.values()))
    return Totals(len(measured), sizes, words, digest.hexdigest())


def _columns(measured: Iterable[Measured]) -> tuple[list[int], list[int]]:
    rows = list(measured)
    return [each.size for each in rows], [each.words for each in rows]


def measure_all(folder: Path, names: Iterable[bytes]) -> tuple[dict[bytes, Measured], set[bytes]]:
    """The plain way, in this one process: what was measured, and what could not be read."""
    measured: dict[bytes, Measured] = {}
    unreadable: set[bytes] = set()
    for name in names:
        try:
            measured[name] = measure(folder / os.fsdecode(name))
        except OSError:
            unreadable.add(name)
    return measured, unreadable
