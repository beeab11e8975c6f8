"""The client's side of files: when a transfer is tried again, and that whoever leaves one lets go of the file."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meshmsg import (
    BadRequest,
    ConfigurationError,
    Context,
    DeadlineExceeded,
    Node,
    NoResponders,
    Outgoing,
    Overloaded,
    PeerLost,
    RemoteError,
    RequestError,
    Unavailable,
)
from meshmsg.sockets import transfers
from meshmsg.sockets.files import BUSY, CHANGED, CORRUPT, REPLACED, PartFile, SourceFile, is_part, part_of
from meshmsg.sockets.transfers import (
    COMPARED_BYTES_PER_S,
    END,
    MAX_CHANGES,
    STALL_S,
    Download,
    Patience,
    Silence,
    Upload,
)

PATIENCE_S = 10.0


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def never() -> bool:
    return False


# --- patience -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [PeerLost("x"), Unavailable("x"), Overloaded("x"), RemoteError("x", code=BUSY), RemoteError("x", code=CHANGED)],
)
def test_what_passes_is_tried_again_until_nothing_comes_for_long(error: RequestError) -> None:
    clock = Clock()
    patience = Patience("fetch", None, clock)
    assert 0 < patience.after(error) <= 0.2
    clock.now_s += STALL_S - 1
    patience.moved()
    clock.now_s += STALL_S
    assert patience.after(error) > 0
    clock.now_s += 1
    with pytest.raises(type(error)):
        patience.after(error)


@pytest.mark.parametrize("error", [BadRequest("x"), DeadlineExceeded("x"), RemoteError("x"), RemoteError("x", CORRUPT)])
def test_what_stays_is_raised_at_once(error: RequestError) -> None:
    patience = Patience("fetch", None, Clock())
    patience.moved()
    with pytest.raises(type(error)):
        patience.after(error)


def test_a_provider_may_be_away_once_it_was_there() -> None:
    patience = Patience("fetch", None, Clock())
    with pytest.raises(NoResponders):
        patience.after(NoResponders("x"))
    patience.moved()
    assert patience.after(NoResponders("x")) > 0


def test_pauses_grow_and_begin_anew_when_something_came() -> None:
    patience = Patience("fetch", None, Clock())
    pauses = [patience.after(PeerLost("x")) for _ in range(20)]
    assert pauses[0] <= 0.1 and max(pauses) <= 1.0 and min(pauses[-5:]) >= 0.5
    patience.moved()
    assert patience.after(PeerLost("x")) <= 0.1
    assert patience.after(Overloaded("x", retry_after=3.0)) == 3.0


def test_no_pause_is_longer_than_the_time_that_is_left() -> None:
    clock = Clock()
    patience = Patience("fetch", 2.0, clock)
    assert patience.remaining() == 2.0
    assert patience.after(Overloaded("x", retry_after=3.0)) == 2.0
    clock.now_s += 2.0
    with pytest.raises(DeadlineExceeded, match=r"not done within 2.0 s"):
        patience.after(PeerLost("x"))
    with pytest.raises(ConfigurationError):
        Patience("fetch", -1, clock)


def test_a_file_may_change_a_few_times() -> None:
    patience = Patience("fetch", None, Clock())
    for _ in range(MAX_CHANGES):
        patience.moved()
        patience.after(RemoteError("x", code=CHANGED))
    with pytest.raises(RemoteError):
        patience.after(RemoteError("x", code=CHANGED))


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["longer", "shorter", "touched"])
def test_a_file_that_changes_while_it_is_read_is_not_taken_for_whole(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    source = SourceFile(path, "a")
    assert source.read(60) == {"data": b"x" * 60}
    if change == "longer":
        with path.open("ab") as file:
            file.write(b"more")
    elif change == "shorter":
        os.truncate(path, 60)
    else:
        os.utime(path, ns=(1, 1))
    with pytest.raises(RemoteError, match="was changed while it was read") as caught:
        source.read(60)
    assert caught.value.code == CHANGED
    source.close()


def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"before")
    other.write_bytes(b"after it")
    source = SourceFile(path, "a")
    os.replace(other, path)
    assert source.read(100) == {"data": b"before", "digest": hashlib.sha256(b"before").hexdigest()}
    source.close()


def test_a_part_is_whole_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        done.append("sync directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        real_sync(descriptor)

    def replace(source: Any, target: Any) -> None:
        done.append("replace")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    part = PartFile(tmp_path / "a", tmp_path / ".a.meshmsg-part", "a", never)
    part.put(b"abc")
    part.commit(3, hashlib.sha256(b"abc").hexdigest())
    part.close()
    assert done == ["sync file", "replace", "sync directory"] and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("next_one", [None, b"next"])
def test_a_part_that_became_the_target_meanwhile_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, next_one: bytes | None
) -> None:
    fcntl = pytest.importorskip("fcntl")
    part_path, real = tmp_path / ".a.meshmsg-part", fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        os.replace(part_path, tmp_path / "a")  # by another process, after this one has opened it
        if next_one is not None:
            part_path.write_bytes(next_one)  # which begins anew
        real(descriptor, how)

    part_path.write_bytes(b"whole")
    monkeypatch.setattr(fcntl, "flock", flock)
    part = PartFile(tmp_path / "a", part_path, "a", never)
    part.put(b"other")
    part.close()
    assert (tmp_path / "a").read_bytes() == b"whole" and part_path.read_bytes() == (next_one or b"") + b"other"


def test_another_file_that_got_the_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        real(tmp_path / "other", source)  # between the look at the part and this
        real(source, target)

    (tmp_path / "other").write_bytes(b"other")
    part = PartFile(tmp_path / "a", part_of(tmp_path / "a"), "a", never)
    part.put(b"abc")
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(RemoteError, match="a was replaced by another file just as it got its name") as caught:
        part.commit(3, hashlib.sha256(b"abc").hexdigest())
    part.close()
    assert caught.value.code == REPLACED and (tmp_path / "a").read_bytes() == b"other"


def test_what_is_not_the_part_any_more_is_not_removed_with_it(tmp_path: Path) -> None:
    for data in (b"", b"abc"):
        part = PartFile(tmp_path / "a", part_of(tmp_path / "a"), "a", never)
        part.put(data)
        part_of(tmp_path / "a").unlink()
        part_of(tmp_path / "a").write_bytes(b"")
        if data:
            with pytest.raises(RemoteError, match="did not arrive"):
                part.commit(4, "")
        part.close()
        assert os.listdir(tmp_path) == [".a.meshmsg-part"]


def test_parts_of_names_are_told_apart(tmp_path: Path) -> None:
    names = ["a", "n" * 126, "n" * 127, "n" * 255, "n" * 254 + "o", "\N{GRINNING FACE}" * 63, "\udcff" * 255]
    parts = [part_of(tmp_path / name).name for name in names]
    assert parts[:2] == [".a.meshmsg-part", f".{'n' * 126}.meshmsg-part"]
    assert all(is_part(part) and len(os.fsencode(part)) <= 140 for part in parts)
    assert len(set(parts)) == len(parts)
    for part in parts[-2:]:
        part.encode()  # half a character is none, which some systems refuse


def test_a_part_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / ".a.meshmsg-part").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError):
        PartFile(tmp_path / "a", tmp_path / ".a.meshmsg-part", "a", never)
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_nothing_is_done_with_a_transfer_that_was_given_up(tmp_path: Path) -> None:
    (tmp_path / ".a.meshmsg-part").write_bytes(b"x" * 100)
    download = Download("files", "a", tmp_path / "a")
    download.run(download.open)
    download.close()
    with pytest.raises(ValueError, match="given up"):
        download.run(download.put, {"data": b"x"})
    # What takes long, such as reading what is there already, ends soon.
    with pytest.raises(RequestError, match="nobody waits"):
        PartFile(tmp_path / "a", tmp_path / ".a.meshmsg-part", "a", lambda: True)
    upload = Upload(tmp_path / ".a.meshmsg-part", None, 100)
    upload.run(upload.open)
    upload.close()
    assert (tmp_path / ".a.meshmsg-part").read_bytes() == b"x" * 100


# --- in the loop --------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G8")
async def test_who_is_cancelled_lets_go_of_the_file_and_stops_the_provider(tmp_path: Path) -> None:
    async with Node("both", mdns=False) as node:
        router, files = node.router("files"), node.dealer("files")
        stopped, some = asyncio.Event(), asyncio.Event()

        @router.method
        async def read(name: str, offset: int, digest: str) -> AsyncIterator[dict[str, Any]]:
            try:
                yield {"offset": offset, "size_bytes": 3, "modified": None, "data": b"1"}
                await asyncio.Event().wait()
            finally:
                stopped.set()

        await node.wait_for(router="files", timeout=PATIENCE_S)
        fetching = asyncio.ensure_future(files.fetch("a", tmp_path / "a", progress=lambda *_: some.set()))
        await some.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await stopped.wait()
        with PartFileOf(tmp_path / "a") as part:
            assert part.place == 1


class PartFileOf:
    """The part of a target, as the next one who fetches it opens it."""

    def __init__(self, target: Path) -> None:
        self._part = PartFile(target, target.with_name(f".{target.name}.meshmsg-part"), "a", never)

    def __enter__(self) -> PartFile:
        return self._part

    def __exit__(self, *_: object) -> None:
        self._part.close()


@pytest.mark.guarantee("G8")
async def test_a_sender_that_is_cancelled_makes_room_for_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "offered").mkdir()
    data = os.urandom(8 * 2**20)
    (tmp_path / "a").write_bytes(data)
    async with Node("both", mdns=False) as node:
        node.router("files").files(tmp_path / "offered", writable=True)
        files, some = node.dealer("files"), asyncio.Event()
        await node.wait_for(router="files", timeout=PATIENCE_S)
        sending = asyncio.ensure_future(files.send_file(tmp_path / "a", progress=lambda *_: some.set()))
        await some.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert (await files.send_file(tmp_path / "a")).size_bytes == len(data)
        assert (tmp_path / "offered" / "a").read_bytes() == data
        assert os.listdir(tmp_path / "offered") == ["a"]


async def test_interceptors_see_each_attempt(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    async def sign(outgoing: Outgoing, proceed: Callable[[], Any]) -> Any:
        seen.append((outgoing.kind, outgoing.method))
        outgoing.headers["token"] = "secret"
        return await proceed()

    async def check(context: Context, proceed: Callable[[], Any]) -> Any:
        if context.headers.get("token") != "secret":
            raise RemoteError("who are you?", code="unauthenticated")
        if len(seen) == 1:
            raise Unavailable("come again")
        return await proceed()

    (tmp_path / "a").write_bytes(b"abc")
    async with Node("both", mdns=False) as node:
        node.router("files", interceptors=[check]).files(tmp_path, writable=True)
        files = node.dealer("files", interceptors=[sign])
        await node.wait_for(router="files", timeout=PATIENCE_S)
        await files.fetch("a", tmp_path / "b")
        await files.send_file(tmp_path / "b", "c")
        assert seen == [("stream", "read"), ("stream", "read"), ("stream", "write")]
        with pytest.raises(RemoteError, match="who are you"):
            await node.dealer("files").fetch("a", tmp_path / "d")
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


@pytest.mark.guarantee("G8")
async def test_a_transfer_within_a_request_has_its_deadline(tmp_path: Path) -> None:
    async with Node("both", mdns=False) as node:
        files, fetched = node.dealer("files"), asyncio.Event()

        @node.router("files").method
        async def read(name: str, offset: int, digest: str) -> AsyncIterator[dict[str, Any]]:
            await asyncio.Event().wait()
            yield {}

        @node.router("front").method
        async def get() -> None:
            try:
                await files.fetch("a", tmp_path / "a")
            finally:
                fetched.set()

        await node.wait_for(router="files", timeout=PATIENCE_S)
        await node.wait_for(router="front", timeout=PATIENCE_S)
        with pytest.raises(DeadlineExceeded):
            await node.dealer("front", timeout=0.1).request("get")
        await fetched.wait()
    assert os.listdir(tmp_path) == []


async def test_what_never_comes_back_is_given_up_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "STALL_S", 0.05)
    attempts = []
    async with Node("both", mdns=False) as node:

        @node.router("files").method
        def read(name: str, offset: int, digest: str) -> Iterator[dict[str, Any]]:
            attempts.append(offset)
            if len(attempts) == 1:
                yield {"offset": 0, "size_bytes": 3, "modified": None, "data": b"1"}
            raise Unavailable("closing time")

        await node.wait_for(router="files", timeout=PATIENCE_S)
        with pytest.raises(Unavailable, match="closing time"):
            await node.dealer("files").fetch("a", tmp_path / "a")
    assert attempts[:2] == [0, 1] and (tmp_path / ".a.meshmsg-part").read_bytes() == b"1"


# --- silence ------------------------------------------------------------------------------------------------

FIRST = {"offset": 0, "size_bytes": 3, "modified": None, "data": b"1"}


@asynccontextmanager
async def meet(**options: Any) -> AsyncIterator[Any]:
    """A router of files, and a dealer."""
    async with Node("both", mdns=False, drain=0) as node:
        yield node.router("files", **options), node.dealer("files")


@pytest.mark.guarantee("G8")
async def test_a_provider_that_falls_silent_is_given_up_and_what_came_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offsets, stopped = [], asyncio.Event()

    def lose_patience(*_: int) -> None:
        monkeypatch.setattr(transfers, "STALL_S", 0.05)

    async with meet() as (router, files):

        @router.method
        async def read(name: str, offset: int, digest: str) -> AsyncIterator[dict[str, Any]]:
            offsets.append(offset)
            if offset:
                yield {**FIRST, "offset": offset, "modified": datetime.now(UTC), "data": b"2"}
                yield {"data": b"3", "digest": hashlib.sha256(b"123").hexdigest()}
                return
            try:
                yield FIRST
                await asyncio.Event().wait()
            finally:
                stopped.set()

        with pytest.raises(DeadlineExceeded, match=r"^fetch\('a'\): .*silent for 0.05 s.*is kept") as caught:
            await files.fetch("a", tmp_path / "a", progress=lose_patience)
        assert (caught.value.service, caught.value.method) == ("files", "read")
        await asyncio.wait_for(stopped.wait(), PATIENCE_S)
        assert (tmp_path / ".a.meshmsg-part").read_bytes() == b"1"
        monkeypatch.undo()
        await files.fetch("a", tmp_path / "a")
    assert offsets == [0, 1] and (tmp_path / "a").read_bytes() == b"123"


@pytest.mark.guarantee("G8")
async def test_a_provider_without_a_place_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "STALL_S", 0.05)
    async with meet(concurrency=1) as (router, files):
        router.files(tmp_path, writable=True)
        begun = asyncio.Event()

        @router.method
        async def hang() -> None:
            begun.set()
            await asyncio.Event().wait()

        (tmp_path / "a").write_bytes(b"abc")
        hanging = asyncio.ensure_future(files.hang(timeout=None))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        with pytest.raises(DeadlineExceeded, match="silent"):
            await files.fetch("a", tmp_path / "b")
        with pytest.raises(DeadlineExceeded, match=r"^send_file\('a'\): .*silent for 0.05 s"):
            await files.send_file(tmp_path / "a")
        hanging.cancel()
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("taken", [0, 1, 100])
async def test_a_receiver_that_falls_silent_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    size = 8 * 2**20  # more than is under way at a time
    (tmp_path / "a").write_bytes(os.urandom(size))
    places = []

    def lose_patience(done: int, total: int) -> None:
        places.append(done)
        if taken < 100 or done == total:
            monkeypatch.setattr(transfers, "STALL_S", 0.05)
            monkeypatch.setattr(transfers, "COMPARED_BYTES_PER_S", size * 100)

    async with meet() as (router, files):

        @router.method
        async def write(
            name: str, size_bytes: int, items: AsyncIterator[dict[str, Any]]
        ) -> AsyncIterator[dict[str, Any]]:
            yield {"offset": 0, "digest": ""}
            for _ in range(taken):
                await anext(items, None)
            await asyncio.Event().wait()

        # The last answer may take longer: all that came is written to the disk first.
        silent_s = "0.06" if taken == 100 else "0.05"
        with pytest.raises(DeadlineExceeded, match=rf"^send_file\('a'\): .*silent for {silent_s} s") as caught:
            await files.send_file(tmp_path / "a", progress=lose_patience)
        assert (caught.value.service, caught.value.method) == ("files", "write")
    assert (places[-1] == size) == (taken == 100)


async def test_the_other_side_has_time_for_what_is_there_already() -> None:
    patience = Patience("fetch", None, Clock())
    assert patience.allow() == STALL_S
    assert patience.allow(10 * COMPARED_BYTES_PER_S) == STALL_S + 10


async def test_what_this_side_does_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "STALL_S", 0.01)
    silence, loop = Silence(Patience("fetch", None, Clock()), "files", "read"), asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    async def bring() -> AsyncIterator[int]:
        silence.pause()
        await over  # later than the other side's time would have been over
        yield 1
        silence.pause()
        silence.go_on()
        await asyncio.Event().wait()

    loop.call_later(0.05, over.set_result, None)
    source = bring()
    assert await silence.hear(source) == 1
    with pytest.raises(DeadlineExceeded, match="silent"):
        await silence.hear(source)
    silence.pause()  # nobody waits
    silence.go_on()
    assert await silence.hear(aiter(source)) is END


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("timeout", [0.001, 0.05])
async def test_who_gave_a_timeout_is_told_of_it(tmp_path: Path, timeout: float) -> None:
    async with Node("both", mdns=False, drain=0) as node:
        router, files = node.router("files"), node.dealer("files")
        (tmp_path / "a").write_bytes(b"abc")

        @router.method
        async def read(name: str, offset: int, digest: str) -> AsyncIterator[dict[str, Any]]:
            await asyncio.Event().wait()
            yield {}

        @router.method
        async def write(name: str, size_bytes: int, items: AsyncIterator[Any]) -> AsyncIterator[dict[str, Any]]:
            await asyncio.Event().wait()
            yield {}

        await node.wait_for(router="files", timeout=PATIENCE_S)
        for moving, label in (
            (files.fetch("a", tmp_path / "b", timeout=timeout), "fetch('a')"),
            (files.send_file(tmp_path / "a", timeout=timeout), "send_file('a')"),
        ):
            with pytest.raises(DeadlineExceeded) as caught:
                await moving
            assert str(caught.value) == f"{label}: not done within {timeout} s; what has come is kept"


def test_the_time_of_others_is_not_the_callers() -> None:
    patience = Patience("fetch", 10.0, Clock())
    with pytest.raises(DeadlineExceeded, match=r"^files\.read took too long$"):
        patience.after(DeadlineExceeded("files.read took too long"))
