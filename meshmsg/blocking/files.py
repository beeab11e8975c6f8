"""Files for threads: ``Dealer.fetch`` and ``Dealer.send_file`` without ``await``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from math import inf
from types import TracebackType
from typing import Any, Protocol, Self

from meshmsg.errors import Cancelled, RequestError
from meshmsg.sockets.files import FileInfo, not_a_transfer, read_info
from meshmsg.sockets.transfers import END, Download, Patience, Progress, Target, Upload, require_progress


class Streams(Protocol):
    """What a transfer needs of a dealer."""

    service: str

    def stream(self, method: str, /, *args: Any, **options: Any) -> Any: ...


class Silence:
    """Ends a wait for the other side when nothing is heard of it for long; what this side does is no silence.

    The thread that waits cannot be woken, so another one closes what it waits for.
    """

    def __init__(self, patience: Patience, service: str, method: str, items: Any) -> None:
        self._patience = patience
        self._service = service
        self._method = method
        self._items = items
        self._changed = threading.Condition()
        self._due = inf
        self._work_bytes = 0
        self._expired = self._ended = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="meshmsg-silence", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def hear(self, work_bytes: int = 0) -> Any:
        """Its next item, or ``END``; raises ``DeadlineExceeded`` when it had time enough for so many bytes."""
        self.go_on(work_bytes)
        return self.hear_on()

    def hear_on(self) -> Any:
        """The same, where another thread says whose turn it is."""
        try:
            return next(self._items, END)
        except Cancelled:
            if not self._expired:
                raise
            error = self._patience.explain_silence(self._work_bytes)
            error.service, error.method = self._service, self._method
            raise error from None
        finally:
            self.pause()

    def pause(self) -> None:
        """It is this side's turn."""
        self._due = inf  # who watches looks at it when its time is over

    def go_on(self, work_bytes: int = 0) -> None:
        """It is the other side's turn again."""
        with self._changed:
            if not self._expired:
                self._work_bytes = work_bytes
                self._due = time.monotonic() + self._patience.allow(work_bytes)
                self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._ended and (left_s := self._due - time.monotonic()) > 0:
                self._changed.wait(None if left_s == inf else left_s)
            self._expired = not self._ended
        if self._expired:
            with suppress(Exception):  # the node was closed meanwhile, or an interceptor's generator runs
                self._items.close()


def fetch(
    dealer: Streams, name: str, target: Target, progress: Progress | None, timeout: float | None, peer: str | None
) -> FileInfo:
    """Gets a file; see ``meshmsg.Dealer.fetch``."""
    require_progress("fetch(progress=)", progress)
    patience = Patience(f"fetch({name!r})", timeout, time.monotonic)
    with closing(Download(dealer.service, name, target)) as download:
        while True:
            asked = download.run(download.open)
            try:
                with (
                    dealer.stream("read", name, **asked, timeout=patience.remaining(), peer=peer) as items,
                    Silence(patience, dealer.service, "read", items) as silence,
                ):
                    compared_bytes = download.place  # by the other side, before its first item
                    while (item := silence.hear(compared_bytes)) is not END:
                        compared_bytes = 0
                        info = download.run(download.put, item)
                        patience.moved()
                        if progress is not None:
                            progress(download.place, download.size_bytes)
                        if info is not None:
                            return info
                raise not_a_transfer("the end, before the file's")
            except RequestError as error:
                delay_s = patience.after(error)
            time.sleep(delay_s)


def send_file(
    dealer: Streams, upload: Upload, progress: Progress | None, timeout: float | None, peer: str | None
) -> FileInfo:
    """Sends a file; see ``meshmsg.Dealer.send_file``."""
    require_progress("send_file(progress=)", progress)
    patience = Patience(f"send_file({upload.name!r})", timeout, time.monotonic)
    with closing(upload):
        while True:
            upload.run(upload.open)
            try:
                return _send_once(dealer, upload, patience, progress, peer)
            except RequestError as error:
                delay_s = patience.after(error)
            time.sleep(delay_s)


def _send_once(
    dealer: Streams, upload: Upload, patience: Patience, progress: Progress | None, peer: str | None
) -> FileInfo:
    stir = threading.Event()
    ended = False
    silence: Silence

    def chunks() -> Iterator[dict[str, Any]]:
        """Runs in a thread of the dealer's."""
        stir.wait()
        while not ended:
            silence.pause()
            item = upload.run(upload.read)
            is_last = "digest" in item
            work_bytes = upload.size_bytes if is_last else 0  # which are written to the other side's disk in the end
            silence.go_on(work_bytes)
            yield item
            patience.moved()
            if progress is not None:
                silence.pause()
                progress(upload.place, upload.size_bytes)
                silence.go_on(work_bytes)
            if is_last:
                return
        raise Cancelled(f"{upload.name}: given up")

    options: dict[str, Any] = {"key": upload.name} if peer is None else {"peer": peer}
    arguments = (upload.name, upload.size_bytes)
    try:
        with (
            dealer.stream("write", *arguments, items=chunks(), timeout=patience.remaining(), **options) as answers,
            Silence(patience, dealer.service, "write", answers) as silence,
        ):
            # The other side compares what it has first: that may be all of the file.
            answer = silence.hear(upload.size_bytes)
            if answer is not END:
                upload.run(upload.begin, answer)
                patience.moved()
                silence.go_on()
                stir.set()
                answer = silence.hear_on()
            if answer is not END:
                return read_info(answer)
    finally:
        ended = True
        stir.set()
    raise not_a_transfer("the end, before the file's")
