"""The server's side of files: a directory whose files other nodes list, read and, if they may, write."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path, PureWindowsPath
from typing import Any

from meshmsg.checks import require_bool, require_int
from meshmsg.errors import BadRequest, ConfigurationError, MeshError, RemoteError
from meshmsg.sockets.context import Context
from meshmsg.sockets.files import (
    FULL,
    NOT_FOUND,
    FileInfo,
    PartFile,
    SourceFile,
    describe_other,
    fit_chunk,
    is_part,
    make_modified,
    not_a_transfer,
    part_of,
    remove_unused,
)

PART_KEPT_S = 3600.0  # what nobody went on with for so long is removed
LOOK_EVERY_S = 600.0  # for such files, if there is no other reason to go through all of the directory
_NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)

logger = logging.getLogger("meshmsg.handlers")


class Folder:
    """A directory as the methods of a service; plain functions, as files block.

    A name is a path inside it, with "/" between its parts. None of these begins with a dot: hidden files stay hidden.
    A symbolic link is followed as long as it leads to something inside.
    """

    def __init__(
        self, label: str, directory: object, writable: bool, max_message_bytes: int, max_bytes: int | None = None
    ) -> None:
        if not isinstance(directory, (str, os.PathLike)) or not os.path.isdir(directory):
            raise ConfigurationError(f"{label}.files takes a directory that is there, got {directory!r}")
        require_bool(f"{label}.files(writable=)", writable)
        if max_bytes is not None:
            require_int(f"{label}.files(max_bytes=)", max_bytes, at_least=0)
            if not writable:
                raise ConfigurationError(f"{label}.files(max_bytes=) limits what callers write: set writable=True too")
        self._max_bytes = max_bytes
        self._reserving = threading.Lock()
        self._reserved: dict[Path, int] = {}  # bytes that a part file will have, by its path
        self._look_at = 0.0  # when to look for abandoned part files
        self._root = Path(os.path.realpath(directory))
        self._chunk_bytes = fit_chunk(max_message_bytes)
        self.methods: dict[str, Callable[..., Any]] = {"list": self.list_files, "stat": self.stat, "read": self.read}
        if writable:
            self.methods["write"] = self.write

    def list_files(self, under: str = "") -> Iterator[FileInfo]:
        """Files, sorted by name; only those below a directory inside, if one is given."""
        with without_path(under, "under"):
            top = self._find(under, "under") if under else self._root
            if not top.is_dir():
                raise RemoteError(f"there is no directory {under!r}", code=NOT_FOUND)
        for folder, inner, names in os.walk(top):
            inner[:] = sorted(filter(can_be_named, inner))
            for name in sorted(names):
                path = Path(folder, name)
                facts = self._look(path)
                if facts is not None:
                    label = path.relative_to(top).as_posix()
                    yield FileInfo(f"{under}/{label}" if under else label, facts.st_size, make_modified(facts))

    def stat(self, name: str, context: Context, digest: bool = False) -> FileInfo:
        """One file; with ``digest=True`` it is read for its SHA-256."""
        with without_path(name), closing(self._open(name)) as source:
            sha256 = source.hash(lambda: context.cancelled) if digest else None
            return FileInfo(name, source.size_bytes, source.modified, sha256)

    def read(self, name: str, context: Context, offset: int = 0, digest: str = "") -> Iterator[dict[str, Any]]:
        """A file in chunks, behind ``offset`` bytes if these have this SHA-256. The last chunk has that of all."""
        if offset < 0:
            raise BadRequest(f"a file has no byte {offset}", "offset")
        with without_path(name), closing(self._open(name)) as source:
            source.begin(offset, digest, lambda: context.cancelled)
            facts = {"offset": source.place, "size_bytes": source.size_bytes, "modified": source.modified}
            while True:
                item = source.read(self._chunk_bytes)
                yield {**facts, **item} if facts else item
                facts = {}
                if "digest" in item:
                    return

    def write(
        self, name: str, size_bytes: int, items: Iterator[dict[str, Any]], context: Context
    ) -> Iterator[dict[str, Any]]:
        """Says what it has of a file, takes the rest in chunks, and says what came of it."""
        if size_bytes < 0:
            raise BadRequest(f"a file has no {size_bytes} bytes", "size_bytes")
        with without_path(name):
            target = self._place(name)
            part_path = part_of(target)
            part_file = PartFile(target, part_path, name, lambda: context.cancelled, shown=part_path.name)
        with without_path(name), closing(part_file) as part, self._reserve(part_path, name, size_bytes) as release:
            yield {"offset": part.place, "digest": part.digest}
            begun = False
            for item in items:
                if not begun:
                    begun = True
                    if item.get("offset") != part.place:
                        part.restart()
                data, digest = item.get("data"), item.get("digest")
                if not isinstance(data, bytes) or part.place + len(data) > size_bytes:
                    raise not_a_transfer(item)
                part.put(data)
                if isinstance(digest, str):
                    # While somebody counts what is there, the file must not be there twice, or not at all.
                    with nullcontext() if self._max_bytes is None else self._reserving:
                        modified = part.commit(size_bytes, digest)
                        release()  # from here on the next one may have this name for its part
                    yield {"name": name, "size_bytes": size_bytes, "modified": modified, "sha256": digest}
                    return
            raise RemoteError(f"{name}: the items ended before the file did")

    # -- room ------------------------------------------------------------------------------------------------

    @contextmanager
    def _reserve(self, part: Path, name: str, size_bytes: int) -> Iterator[Callable[[], None]]:
        """Keeps room for a file that comes, until it is released. Raises ``RemoteError`` ("full") without any."""
        with self._reserving:
            now = time.monotonic()
            if self._max_bytes is not None or now >= self._look_at:
                self._look_at = now + LOOK_EVERY_S
                used = self._measure(part) + size_bytes
                if self._max_bytes is not None and used > self._max_bytes:
                    text = f"{name}: {size_bytes} bytes would make {used} in all, and {self._max_bytes} are allowed"
                    raise RemoteError(text, code=FULL)
            self._reserved[part] = size_bytes
        kept = [part]

        def release() -> None:
            while kept:
                self._reserved.pop(kept.pop(), None)

        try:
            yield release
        finally:
            release()

    def _measure(self, own: Path) -> int:
        """Bytes of all files but one, those that come counted as a whole. Removes part files that are abandoned."""
        reserved = dict(self._reserved)
        total, before = 0, time.time() - PART_KEPT_S
        for folder, _, names in os.walk(self._root):
            for name in names:
                path = Path(folder, name)
                abandoned = is_part(name) and path not in reserved
                if path == own or not (abandoned or self._max_bytes is not None):
                    continue
                try:
                    if abandoned and path.lstat().st_mtime < before:
                        remove_unused(path)
                    total += max(path.lstat().st_size, reserved.pop(path, 0))
                except OSError:  # gone
                    pass
        return total + sum(reserved.values())  # of those that broke off meanwhile

    # -- names -----------------------------------------------------------------------------------------------

    def _find(self, name: str, argument: str = "name") -> Path:
        """Where a name leads, with all links followed."""
        path = Path(os.path.realpath(self._root.joinpath(*split_name(name, argument))))
        if not path.is_relative_to(self._root):
            raise BadRequest(f"{name!r} leads out of the directory", argument)
        return path

    def _open(self, name: str) -> SourceFile:
        path = self._find(name)
        try:
            return SourceFile(path, name)
        except IsADirectoryError:
            raise BadRequest(f"{name!r} is not a regular file", "name") from None
        except (FileNotFoundError, NotADirectoryError):
            raise RemoteError(f"there is no file {name!r}", code=NOT_FOUND) from None

    def _place(self, name: str) -> Path:
        """Where a file of this name goes: nowhere if something else than a file has the name."""
        *above, last = split_name(name)
        parent = self._find("/".join(above)) if above else self._root
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise BadRequest(f"{name!r} would be inside of a file", "name") from None
        target = parent / last
        other = describe_other(target)
        if other is not None:
            raise BadRequest(f"{name!r} is {other}", "name")
        return target

    def _look(self, path: Path) -> os.stat_result | None:
        """What is known of a file, if it is one that is offered."""
        if not can_be_named(path.name):
            return None
        try:
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(self._root):
                return None
            facts = path.stat()
        except OSError:  # gone meanwhile, or a link to nothing
            return None
        return facts if stat.S_ISREG(facts.st_mode) else None


def can_be_named(name: str) -> bool:
    """Whether callers can ask for it: what begins with a dot is hidden, and bytes that are no UTF-8 are no text.

    >>> can_be_named("a.bin"), can_be_named(".git"), can_be_named("\\udcff")
    (True, False, False)
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not name.startswith(".")


@contextmanager
def without_path(name: str, argument: str = "name") -> Iterator[None]:
    """Tells the caller what the system says of a file, by the caller's own name for it: where it is, it need not know.

    What is nobody's mistake but this side's is logged here, with the path.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, MeshError):  # of the caller's items, such as one that came too late
            raise
        if error.errno == errno.ENAMETOOLONG:
            raise BadRequest(f"{shorten_name(name)} is no name of a file: it is too long", argument) from None
        logger.warning("%s: %s", shorten_name(name), error)
        code = FULL if error.errno in _NO_ROOM else RemoteError.code
        reason = error.strerror or type(error).__name__
        raise RemoteError(f"{shorten_name(name)}: {reason} ({type(error).__name__})", code=code) from None


def shorten_name(name: str) -> str:
    """A name, for errors."""
    return repr(name) if len(name) <= 100 else f"{name[:97]!r}..."


def split_name(name: str, argument: str = "name") -> list[str]:
    """The parts of a file's name.

    >>> split_name("models/small.bin")
    ['models', 'small.bin']
    >>> split_name("../secret")
    Traceback (most recent call last):
    ...
    meshmsg.errors.BadRequest: '../secret' is no name of a file: write folder/name, without leading dots
    """
    parts = name.split("/")
    for part in parts:
        plain = part and not part.startswith(".") and "\0" not in part
        if not plain or (os.name == "nt" and (PureWindowsPath(part).name != part or ":" in part)):
            text = f"{shorten_name(name)} is no name of a file: write folder/name, without leading dots"
            raise BadRequest(text, argument)
    return parts
