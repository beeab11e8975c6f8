"""Files on their way: one that is read from its middle on, one that grows until it is whole, and what is said of it.

Content decides whether a transfer goes on where it stopped: both sides compare the SHA-256 of the beginning that one of
them has already. Names, sizes and times may lie, and differ between copies of one file.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from meshmsg.engine.outbox import MAX_FRAME_BYTES
from meshmsg.errors import Cancelled, RemoteError

if sys.platform != "win32":
    import fcntl

HEADER_BYTES = 512  # most that a chunk's item holds besides the data
_HASH_BYTES = 2**20

NOT_FOUND = "not_found"
CHANGED = "changed"  # while it was read
CORRUPT = "corrupt"
BUSY = "busy"
FULL = "full"
REPLACED = "replaced"  # where it grew

PART = ".meshmsg-part"
_MAX_PART_BYTES = 140  # some file systems that encrypt names allow no more than 143; most others 255

_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

Stopped = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of a ``Router.files`` directory. ``sha256`` is None where nobody has read all of it."""

    name: str
    size_bytes: int
    modified: datetime
    sha256: str | None = None


def read_info(value: Any) -> FileInfo:
    """The other side's ``FileInfo``, which travelled as a dict."""
    try:
        name, size_bytes, modified, sha256 = (value[key] for key in ("name", "size_bytes", "modified", "sha256"))
    except (TypeError, KeyError):
        raise not_a_transfer(value) from None
    if type(name) is not str or type(size_bytes) is not int or not isinstance(modified, datetime):
        raise not_a_transfer(value)
    return FileInfo(name, size_bytes, modified, sha256)


def not_a_transfer(value: object) -> RemoteError:
    """The other side said something else than a transfer of a file says."""
    return RemoteError(f"this is no transfer of a file: {repr(value)[:80]}", code=CORRUPT)


def make_modified(facts: os.stat_result) -> datetime:
    """When a file was changed last."""
    return datetime.fromtimestamp(facts.st_mtime, UTC)


def describe_other(path: Path) -> str | None:
    """What is at a path if a file could not simply take its place; None for a regular file, or nothing.

    Not even a link to a file: is it the link that is to be replaced, or the file?
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        return "a directory"
    return None if stat.S_ISREG(mode) else "no regular file"


def part_of(target: Path) -> Path:
    """Where a file grows until it is whole: hidden, so nobody can ask a service for it, and no file of anybody's own.

    >>> part_of(Path("models/large.bin")).name
    '.large.bin.meshmsg-part'
    """
    encoded = os.fsencode(target.name)
    kept = target.name
    if len(encoded) + 1 + len(PART) > _MAX_PART_BYTES:
        digest = hashlib.sha256(encoded).hexdigest()[:32]
        kept = f"{encoded[: _MAX_PART_BYTES - len(digest) - len(PART) - 2].decode(errors='ignore')}.{digest}"
    return target.with_name(f".{kept}{PART}")


def is_part(name: str) -> bool:
    """Whether a file has a name that only an unfinished transfer gives it.

    >>> is_part(".large.bin.meshmsg-part"), is_part("large.bin.meshmsg-part"), is_part(".large.bin.part")
    (True, False, False)
    """
    return name.startswith(".") and name.endswith(PART)


def fit_chunk(max_message_bytes: int) -> int:
    """Bytes of a file in one item, for a node that sends no larger messages."""
    return min(MAX_FRAME_BYTES, max_message_bytes) - HEADER_BYTES


def hash_beginning(file: BinaryIO, count: int, stopped: Stopped) -> Any:
    """Hashes the first bytes of a file, and leaves it behind them. It may be shorter."""
    file.seek(0)
    hasher = hashlib.sha256()
    while count > 0 and (data := file.read(min(count, _HASH_BYTES))):
        if stopped():
            raise Cancelled("nobody waits for this file any more")
        hasher.update(data)
        count -= len(data)
    return hasher


class SourceFile:
    """A file that is sent, as it was when it was opened."""

    def __init__(self, path: Path, label: str) -> None:
        self._label = label
        # A pipe without a writer would block; that it is none is known once it is open.
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDONLY | _FLAGS | getattr(os, "O_NONBLOCK", 0)), "rb", 0)
        self._facts = os.fstat(self._file.fileno())
        if not stat.S_ISREG(self._facts.st_mode):
            self._file.close()
            raise IsADirectoryError(f"{label} is not a regular file")
        self.size_bytes = self._facts.st_size
        self.modified = make_modified(self._facts)
        self.place = 0
        self._hasher = hashlib.sha256()

    def begin(self, offset: int, digest: str, stopped: Stopped) -> None:
        """Goes on behind what the other side has, if that is the beginning of this file; else from the start."""
        self._hasher = hash_beginning(self._file, min(offset, self.size_bytes), stopped)
        self.place = offset
        if offset > self.size_bytes or self._hasher.hexdigest() != digest:
            self._hasher = hashlib.sha256()
            self.place = 0
            self._file.seek(0)

    def read(self, chunk_bytes: int) -> dict[str, Any]:
        """The next item: ``data``, and with the last one the ``digest`` of all. Raises ``RemoteError`` ("changed")."""
        data = self._file.read(min(chunk_bytes, self.size_bytes - self.place))
        self._hasher.update(data)
        self.place += len(data)
        if self.place < self.size_bytes:
            if not data:
                raise self._changed()
            return {"data": data}
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._facts.st_size, self._facts.st_mtime_ns):
            raise self._changed()
        return {"data": data, "digest": self._hasher.hexdigest()}

    def hash(self, stopped: Stopped) -> str:
        """The digest of all of it."""
        digest: str = hash_beginning(self._file, self.size_bytes, stopped).hexdigest()
        return digest

    def _changed(self) -> RemoteError:
        return RemoteError(f"{self._label} was changed while it was read: replace files as a whole", code=CHANGED)

    def close(self) -> None:
        """Lets go of it."""
        self._file.close()


def lock(descriptor: int) -> bool:
    """Locks an open file until it is closed; False if somebody else has. On Windows there is no such lock."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_named(file: io.FileIO, path: Path) -> bool:
    """Whether a path still leads to the file that is open. On Windows such a file cannot be renamed, nor removed."""
    if sys.platform == "win32":
        return True
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(file.fileno()))


def remove_unused(path: Path) -> None:
    """Removes a file, unless a transfer works on it or it is none."""
    try:
        descriptor = os.open(path, os.O_RDWR | _FLAGS | getattr(os, "O_NONBLOCK", 0))
    except OSError:  # gone, a link, or not to be written
        return
    try:
        facts = os.fstat(descriptor)
        if stat.S_ISREG(facts.st_mode) and lock(descriptor) and os.path.samestat(path.lstat(), facts):
            if sys.platform == "win32":  # there one that is open cannot be removed
                os.close(descriptor)
                descriptor = -1
            path.unlink(missing_ok=True)
    except OSError:
        pass
    finally:
        if descriptor >= 0:
            os.close(descriptor)


class PartFile:
    """A file that comes: under another name until it is whole. What has come stays there when the transfer breaks."""

    def __init__(self, target: Path, part: Path, label: str, stopped: Stopped, shown: str | None = None) -> None:
        self._target = target
        self._part = part
        self._shown = shown or str(part)  # in errors
        self._label = label
        self._there = True  # under the part's name
        self._file = self._open()
        self.place = os.fstat(self._file.fileno()).st_size
        try:
            self._hasher = hash_beginning(self._file, self.place, stopped)
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> io.FileIO:
        while True:
            # Opening a pipe or a device may do something, so look first; and again, as it may have changed.
            self._refuse_other(self._part.exists() and not self._part.is_file())
            descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
            file = io.FileIO(descriptor, "r+")
            try:
                self._refuse_other(not stat.S_ISREG(os.fstat(descriptor).st_mode))
                if self._lock(file):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()

    def _refuse_other(self, other: bool) -> None:
        if other:
            raise FileExistsError(f"{self._shown} is no regular file, and {self._label} would grow there")

    def _lock(self, file: io.FileIO) -> bool:
        """Keeps others from it. False if it has become the target, or was removed, just before."""
        if sys.platform == "win32":
            return True
        if not lock(file.fileno()):
            raise RemoteError(f"{self._label} is transferred already: {self._shown} is in use", code=BUSY)
        return is_named(file, self._part)

    @property
    def digest(self) -> str:
        """Of what it holds."""
        digest: str = self._hasher.hexdigest()
        return digest

    def restart(self) -> None:
        """What it holds is of no use."""
        self._file.seek(0)
        self._file.truncate()
        self._hasher = hashlib.sha256()
        self.place = 0

    def put(self, data: bytes) -> None:
        """The next bytes."""
        self._hasher.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.place += len(data)

    def commit(self, size_bytes: int, digest: str) -> datetime:
        """All has come: it gets its name. Raises ``RemoteError`` ("corrupt"), and keeps nothing, if it is not that.

        Another file that has the part's name by now is left alone: ``RemoteError`` ("replaced").
        """
        if (self.place, self.digest) != (size_bytes, digest):
            what = f"{self.place} bytes came (SHA-256 {self.digest[:12]}...), not {size_bytes} ({digest[:12]}...)"
            self.discard()
            raise RemoteError(f"{self._label} did not arrive as it was sent: {what}", code=CORRUPT)
        os.fsync(self._file.fileno())
        modified = make_modified(os.fstat(self._file.fileno()))
        if not is_named(self._file, self._part):
            self._there = False
            raise RemoteError(
                f"{self._shown} was removed or replaced while {self._label} grew there, so the target is as it was: "
                "move away what has that name now if somebody needs it, and start again",
                code=REPLACED,
            )
        if sys.platform == "win32":
            self._file.close()  # or it cannot be renamed
        os.replace(self._part, self._target)
        self._there = False
        if not is_named(self._file, self._target):  # renaming goes by the name, whatever has it by then
            what = f"{self._label} was replaced by another file just as it got its name"
            raise RemoteError(f"{what}: look what is there, and start again", code=REPLACED)
        sync_directory(self._target.parent)
        return modified

    def discard(self) -> None:
        """Keeps nothing of it."""
        there = is_named(self._file, self._part)
        if sys.platform == "win32":
            self._file.close()
        if there:
            self._part.unlink(missing_ok=True)
        self._there = False

    def close(self) -> None:
        """Lets go of it; what has come stays."""
        if self._there and not self.place:
            self.discard()
        self._file.close()


def sync_directory(directory: Path) -> None:
    """A new name is safe from a power failure once its directory is; Windows does that by itself."""
    if sys.platform == "win32":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
