"""Files for threads: ``Dealer.fetch`` and ``Dealer.send_file`` without ``await``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Protocol

from meshmsg.errors import Cancelled, RequestError
from meshmsg.sockets.files import FileInfo, not_a_transfer, read_info
from meshmsg.sockets.transfers import Download, Patience, Progress, Target, Upload, require_progress


class Streams(Protocol):
    """What a transfer needs of a dealer."""

    service: str

    def stream(self, method: str, /, *args: Any, **options: Any) -> Any: ...


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
                with dealer.stream("read", name, **asked, timeout=patience.remaining(), peer=peer) as items:
                    for item in items:
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
    begun = ended = False

    def chunks() -> Iterator[dict[str, Any]]:
        """Runs in a thread of the dealer's."""
        stir.wait()
        while not ended:
            item = upload.run(upload.read)
            yield item
            patience.moved()
            if progress is not None:
                progress(upload.place, upload.size_bytes)
            if "digest" in item:
                return
        raise Cancelled(f"{upload.name}: given up")

    options: dict[str, Any] = {"key": upload.name} if peer is None else {"peer": peer}
    arguments = (upload.name, upload.size_bytes)
    try:
        with dealer.stream("write", *arguments, items=chunks(), timeout=patience.remaining(), **options) as answers:
            for answer in answers:
                if begun:
                    return read_info(answer)
                patience.moved()
                upload.run(upload.begin, answer)
                begun = True
                stir.set()
    finally:
        ended = True
        stir.set()
    raise not_a_transfer("the end, before the file's")
