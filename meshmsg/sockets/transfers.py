"""The client's side of files: ``Dealer.fetch`` and ``Dealer.send_file``, which go on where they stopped.

A ``Download`` or ``Upload`` works on the file, and what it does blocks; who drives it calls it in a thread, and asks
``Patience`` what to do when an attempt fails.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from meshmsg.checks import require_number
from meshmsg.errors import (
    ConfigurationError,
    DeadlineExceeded,
    NoResponders,
    Overloaded,
    PeerLost,
    RemoteError,
    RequestError,
    Unavailable,
)
from meshmsg.sockets.files import (
    BUSY,
    CHANGED,
    FileInfo,
    PartFile,
    SourceFile,
    describe_other,
    not_a_transfer,
    part_of,
    read_info,
)
from meshmsg.sockets.item_stream import Incoming

Progress = Callable[[int, int], object]
Target = str | os.PathLike[str]
ResultT = TypeVar("ResultT")

BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0
# After this long without a byte nobody will bring the rest; a provider that is restarted is back by then.
STALL_S = 30.0
COMPARED_BYTES_PER_S = 20_000_000  # what the slowest disk reads or writes: nothing is heard of who compares a file
TICK_S = 0.01  # clocks of loops are coarse: this close to the deadline, it was the deadline
END = object()  # of what the other side says
MAX_CHANGES = 3  # a file that grows for ever is never read as it was


class Streams(Protocol):
    """What a transfer needs of a dealer."""

    service: str

    def stream(self, method: str, /, *args: Any, **options: Any) -> Incoming[Any]: ...


class Patience:
    """Whether a transfer is tried again after an error, when, and how much time it has left."""

    def __init__(self, label: str, timeout: float | None, now: Callable[[], float]) -> None:
        if timeout is not None:
            require_number(f"{label.partition('(')[0]}(timeout=)", timeout, above=0)
        self._label = label
        self._timeout = timeout
        self._now = now
        self._deadline = None if timeout is None else now() + timeout
        self._attempts = 0  # since the last byte
        self._moved_at = now()
        self._changes = 0
        self._begun = False

    def remaining(self) -> float | None:
        """Seconds that the next attempt has; raises ``DeadlineExceeded`` when there are none."""
        if self._deadline is None:
            return None
        remaining = self._deadline - self._now()
        if remaining <= 0:
            raise DeadlineExceeded(self._over)
        return remaining

    @property
    def _over(self) -> str:
        return f"{self._label}: not done within {self._timeout} s; what has come is kept"

    def allow(self, work_bytes: int = 0) -> float:
        """Seconds that the other side may be silent, if it has so many bytes to read or write meanwhile."""
        return STALL_S + work_bytes / COMPARED_BYTES_PER_S

    def explain_silence(self, work_bytes: int) -> DeadlineExceeded:
        """What is raised when it was silent for longer."""
        silence = f"who was asked has been silent for {self.allow(work_bytes):.3g} s"
        return DeadlineExceeded(
            f"{self._label}: {silence}; what has come is kept, and the next attempt goes on behind it"
        )

    def moved(self) -> None:
        """Something came from the other side."""
        self._begun = True
        self._attempts = 0
        self._moved_at = self._now()

    def after(self, error: RequestError) -> float:
        """Seconds to wait after an attempt that failed; raises its error if the next one would fail, too."""
        if not self._is_passing(error) or self._now() - self._moved_at > STALL_S:
            if isinstance(error, DeadlineExceeded) and self._deadline is not None:
                if self._now() > self._deadline - TICK_S:
                    error.args = (self._over,)  # people know what they gave, and not what an attempt had of it
            raise error
        self._attempts += 1
        delay_s = random.uniform(0.5, 1.0) * min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** min(self._attempts, 10))
        if isinstance(error, Overloaded) and error.retry_after is not None:
            delay_s = max(delay_s, error.retry_after)
        return min(delay_s, self.remaining() or delay_s)

    def _is_passing(self, error: RequestError) -> bool:
        if isinstance(error, NoResponders):
            return self._begun  # who served it may be back soon; a service that nobody offers is known at once
        if isinstance(error, RemoteError):
            if error.code == CHANGED:
                self._changes += 1
                return self._changes <= MAX_CHANGES
            return error.code == BUSY  # an attempt, or a sender before, has not ended there
        return isinstance(error, (PeerLost, Unavailable, Overloaded))


class Transfer:
    """One file on its way, in a thread; ``close`` may come from another one meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False

    def run(self, step: Callable[..., ResultT], *args: Any) -> ResultT:
        """Does something with the file. Raises ``ValueError`` after ``close``."""
        with self._lock:
            if self._closed:
                raise ValueError("the transfer was given up")
            return step(*args)

    def close(self) -> None:
        """Lets go of the file, once nobody works on it."""
        self._closed = True
        with self._lock:
            self._close()

    def _close(self) -> None:
        raise NotImplementedError

    def _is_stopped(self) -> bool:
        return self._closed


class Download(Transfer):
    """A file that is fetched."""

    def __init__(self, service: str, name: str, target: Target) -> None:
        super().__init__()
        self.label = f"{service}: {name!r}"
        self.name = require_file_name("fetch(name)", name)
        self.size_bytes = 0
        self._target = require_path("fetch(target)", target)
        self._part: PartFile | None = None
        self._modified: Any = None
        self._expecting_first = True

    @property
    def place(self) -> int:
        """Bytes that are there."""
        return 0 if self._part is None else self._part.place

    def open(self) -> dict[str, Any]:
        """Before each attempt: what it asks for."""
        if self._part is None:
            other = describe_other(self._target)
            if other is not None:
                raise ConfigurationError(f"fetch(target) takes a file's own path, and {self._target} is {other}")
            self._part = PartFile(self._target, part_of(self._target), self.label, self._is_stopped)
        self._expecting_first = True
        return {"offset": self._part.place, "digest": self._part.digest}

    def put(self, item: Any) -> FileInfo | None:
        """The next item; what the file is, after the last one."""
        part = self._part
        assert part is not None, "opened first"
        data = item.get("data") if isinstance(item, dict) else None
        if not isinstance(data, bytes):
            raise not_a_transfer(item)
        if self._expecting_first:
            self._expecting_first = False
            self._begin(part, item)
        if part.place + len(data) > self.size_bytes:
            raise not_a_transfer(item)
        part.put(data)
        digest = item.get("digest")
        if digest is None:
            return None
        part.commit(self.size_bytes, str(digest))
        return read_info(
            {"name": self.name, "size_bytes": self.size_bytes, "modified": self._modified, "sha256": digest}
        )

    def _begin(self, part: PartFile, item: Mapping[str, Any]) -> None:
        offset, size_bytes = item.get("offset"), item.get("size_bytes")
        if type(size_bytes) is not int or offset not in (0, part.place):
            raise not_a_transfer(item)
        if offset != part.place:
            part.restart()
        self.size_bytes = size_bytes
        self._modified = item.get("modified")

    def _close(self) -> None:
        if self._part is not None:
            self._part.close()


class Upload(Transfer):
    """A file that is sent."""

    def __init__(self, source: Target, name: str | None, chunk_bytes: int) -> None:
        super().__init__()
        self._path = require_path("send_file(source)", source)
        self.name = self._path.name if name is None else require_file_name("send_file(name=)", name)
        self._chunk_bytes = chunk_bytes
        self._source: SourceFile | None = None
        self._facts: dict[str, Any] = {}

    @property
    def place(self) -> int:
        """Bytes that were handed over."""
        return 0 if self._source is None else self._source.place

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return 0 if self._source is None else self._source.size_bytes

    def open(self) -> None:
        """Before each attempt: takes the file as it is now."""
        self._close()
        path = Path(os.path.realpath(self._path))
        other = describe_other(path)
        if other is not None:
            raise ConfigurationError(f"send_file(source) takes a file's own path, and {self._path} is {other}")
        self._source = SourceFile(path, str(self._path))

    def begin(self, item: Any) -> None:
        """What the other side has of it."""
        offset, digest = (item.get("offset"), item.get("digest")) if isinstance(item, dict) else (None, None)
        if type(offset) is not int or offset < 0 or not isinstance(digest, str):
            raise not_a_transfer(item)
        source = self._source
        assert source is not None, "opened first"
        source.begin(offset, digest, self._is_stopped)
        self._facts = {"offset": source.place}

    def read(self) -> dict[str, Any]:
        """The next item; the last one has a ``digest``."""
        assert self._source is not None, "opened first"
        facts, self._facts = self._facts, {}
        return {**facts, **self._source.read(self._chunk_bytes)}

    def _close(self) -> None:
        if self._source is not None:
            self._source.close()


def require_path(where: str, path: object) -> Path:
    """A path, as a str or PathLike."""
    if isinstance(path, (str, os.PathLike)) and path != "":
        plain = os.fspath(path)
        if isinstance(plain, str):
            return Path(plain)
    raise ConfigurationError(f"{where} takes a path (str or Path), got {path!r}")


def require_file_name(where: str, name: object) -> str:
    """What the other side calls a file."""
    if isinstance(name, str) and name:
        return name
    raise ConfigurationError(f'{where} takes what the service calls the file, such as "models/a.bin", got {name!r}')


def require_progress(where: str, progress: object) -> None:
    """Checks what is called with the bytes that are done, and all: no coroutine function, as nobody would await it."""
    if progress is None:
        return
    if not callable(progress):
        raise ConfigurationError(f"{where} takes a function (bytes done, bytes in all), got {progress!r}")
    if any(inspect.iscoroutinefunction(each) for each in (progress, getattr(progress, "__call__", None))):  # noqa: B004
        raise ConfigurationError(f"{where} takes a plain function, not {progress!r}: it is called between two chunks")


# -- in the loop ---------------------------------------------------------------------------------------------


class Silence:
    """Ends a wait for the other side when nothing is heard of it for long; what this side does is no silence."""

    def __init__(self, patience: Patience, service: str, method: str) -> None:
        self._patience = patience
        self._service = service
        self._method = method
        self._limit: asyncio.Timeout | None = None  # while it is waited for
        self._work_bytes = 0

    async def hear(self, source: AsyncIterator[Any], work_bytes: int = 0) -> Any:
        """Its next item, or ``END``; raises ``DeadlineExceeded`` when it had time enough for so many bytes."""
        self._work_bytes = work_bytes
        limit = self._limit = asyncio.timeout(self._patience.allow(work_bytes))
        try:
            async with limit:
                return await anext(source, END)
        except TimeoutError:
            if not limit.expired():
                raise
            error = self._patience.explain_silence(self._work_bytes)
            error.service, error.method = self._service, self._method
            raise error from None
        finally:
            self._limit = None

    def pause(self) -> None:
        """It is this side's turn."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(None)

    def go_on(self, work_bytes: int = 0) -> None:
        """It is the other side's turn again."""
        if self._limit is not None and not self._limit.expired():
            self._work_bytes = work_bytes
            self._limit.reschedule(asyncio.get_running_loop().time() + self._patience.allow(work_bytes))


async def fetch(
    dealer: Streams, name: str, target: Target, progress: Progress | None, timeout: float | None, peer: str | None
) -> FileInfo:
    """Gets a file; see ``Dealer.fetch``."""
    require_progress("fetch(progress=)", progress)
    download = Download(dealer.service, name, target)
    patience = Patience(f"fetch({name!r})", timeout, asyncio.get_running_loop().time)
    silence = Silence(patience, dealer.service, "read")
    try:
        while True:
            asked = await aside(download, download.open)
            try:
                async with dealer.stream("read", name, **asked, timeout=patience.remaining(), peer=peer) as items:
                    compared_bytes = download.place  # by the other side, before its first item
                    while (item := await silence.hear(items, compared_bytes)) is not END:
                        compared_bytes = 0
                        info = await aside(download, download.put, item)
                        patience.moved()
                        if progress is not None:
                            progress(download.place, download.size_bytes)
                        if info is not None:
                            return info
                raise not_a_transfer("the end, before the file's")
            except RequestError as error:
                delay_s = patience.after(error)
            await asyncio.sleep(delay_s)
    finally:
        await asyncio.to_thread(download.close)


async def send_file(
    dealer: Streams,
    upload: Upload,
    progress: Progress | None,
    timeout: float | None,
    peer: str | None,
) -> FileInfo:
    """Sends a file; see ``Dealer.send_file``."""
    require_progress("send_file(progress=)", progress)
    patience = Patience(f"send_file({upload.name!r})", timeout, asyncio.get_running_loop().time)
    try:
        while True:
            await aside(upload, upload.open)
            try:
                return await _send_once(dealer, upload, patience, progress, peer)
            except RequestError as error:
                delay_s = patience.after(error)
            await asyncio.sleep(delay_s)
    finally:
        await asyncio.to_thread(upload.close)


async def _send_once(
    dealer: Streams, upload: Upload, patience: Patience, progress: Progress | None, peer: str | None
) -> FileInfo:
    begun = asyncio.Event()
    silence = Silence(patience, dealer.service, "write")

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        await begun.wait()
        is_last = False
        while not is_last:
            silence.pause()
            item = await aside(upload, upload.read)
            is_last = "digest" in item
            work_bytes = upload.size_bytes if is_last else 0  # which are written to the other side's disk in the end
            silence.go_on(work_bytes)
            yield item
            patience.moved()
            if progress is not None:
                progress(upload.place, upload.size_bytes)
                silence.go_on(work_bytes)

    # Of several who serve it, the same one each time: it has what came before.
    options: dict[str, Any] = {"key": upload.name} if peer is None else {"peer": peer}
    arguments = (upload.name, upload.size_bytes)
    async with dealer.stream("write", *arguments, items=chunks(), timeout=patience.remaining(), **options) as answers:
        # The other side compares what it has first: that may be all of the file.
        answer = await silence.hear(answers, upload.size_bytes)
        if answer is not END:
            await aside(upload, upload.begin, answer)
            patience.moved()
            begun.set()
            answer = await silence.hear(answers)
        if answer is not END:
            return read_info(answer)
    raise not_a_transfer("the end, before the file's")


async def aside(transfer: Transfer, step: Callable[..., ResultT], *args: Any) -> ResultT:
    """Works on a file in a thread: a disk may take its time."""
    return await asyncio.to_thread(transfer.run, step, *args)
