"""Files between nodes, in whatever face they are used: whole or not there, and on from where they stopped (G8)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshmsg import (
    ConfigurationError,
    Context,
    DeadlineExceeded,
    FileInfo,
    NameClash,
    NoResponders,
    RemoteError,
    Unavailable,
)
from meshmsg.sockets import transfers
from meshmsg.sockets.files import CORRUPT, REPLACED
from tests.contracts.faces import Face, Gate
from tests.contracts.folders import CHUNK_BYTES, DATA, Progress, digest_of, names_in, share
from tests.contracts.services import Run, interceptor, method, serve

pytestmark = pytest.mark.guarantee("G8")


@pytest.fixture
def offered(tmp_path: Path) -> Path:
    """What the server offers."""
    directory = tmp_path / "offered"
    directory.mkdir()
    return directory


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where the client has its files."""
    directory = tmp_path / "here"
    directory.mkdir()
    return directory


# --- to and fro ---------------------------------------------------------------------------------------------


def test_files_are_fetched_and_sent_back(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True)
    for size in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(DATA)):
        data, progress = DATA[:size], Progress()
        (offered / "a.bin").write_bytes(data)
        info = files.fetch("a.bin", here / "b.bin", progress=progress)
        assert isinstance(info, FileInfo) and (info.name, info.size_bytes) == ("a.bin", size)
        assert info.sha256 == digest_of(data)
        assert info.modified.timestamp() == pytest.approx(os.stat(offered / "a.bin").st_mtime)
        assert (here / "b.bin").read_bytes() == data and names_in(here) == ["b.bin"]
        chunks = max(1, -(-size // CHUNK_BYTES))
        assert progress == [(min(size, CHUNK_BYTES * (place + 1)), size) for place in range(chunks)]

        progress.clear()
        sent = files.send_file(str(here / "b.bin"), "new/deep/c.bin", progress=progress)
        assert (sent.name, sent.size_bytes, sent.sha256) == ("new/deep/c.bin", size, digest_of(data))
        assert (offered / "new/deep/c.bin").read_bytes() == data
        assert names_in(offered) == ["a.bin", "new/deep/c.bin"]
        assert len(progress) == chunks and progress[-1] == (size, size)


def test_what_is_there_is_replaced(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True)
    (offered / "a.bin").write_bytes(b"new")
    (here / "a.bin").write_bytes(b"something longer than that")
    files.fetch("a.bin", here / "a.bin")
    assert (here / "a.bin").read_bytes() == b"new"
    (here / "a.bin").write_bytes(b"newer")
    files.send_file(here / "a.bin")
    assert (offered / "a.bin").read_bytes() == b"newer"
    assert names_in(here) == names_in(offered) == ["a.bin"]


def test_files_beside_the_target_stay_whatever_they_are_called(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True)
    (offered / "a.bin").write_bytes(DATA)
    for name in ("a.bin.part", "part", ".a.bin.part"):
        (here / name).write_bytes(b"mine")
        (offered / name).write_bytes(b"mine")
    files.fetch("a.bin", here / "a.bin")
    files.send_file(here / "a.bin", "a.bin")
    for directory in (here, offered):
        assert names_in(directory) == [".a.bin.part", "a.bin", "a.bin.part", "part"]
        assert {path.read_bytes() for path in directory.glob("*part")} == {b"mine"}


@pytest.mark.parametrize(
    "name", ["n" * 251, "n" * 255, "n" * 126, "n" * 127, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 127]
)
def test_names_may_be_as_long_as_the_system_allows(face: Face, offered: Path, here: Path, name: str) -> None:
    files = share(face, offered, writable=True)
    (offered / name).write_bytes(DATA)
    assert files.fetch(name, here / name).sha256 == digest_of(DATA)
    (offered / name).unlink()
    assert files.send_file(here / name).sha256 == digest_of(DATA)
    assert names_in(here) == names_in(offered) == [name]


# --- on from where it stopped -------------------------------------------------------------------------------


def test_a_fetch_goes_on_behind_what_is_there_if_that_is_the_beginning(face: Face, offered: Path, here: Path) -> None:
    files, count = share(face, offered), 2 * CHUNK_BYTES + 77
    (offered / "a.bin").write_bytes(DATA)
    for part, rest in ((DATA[:count], count), (DATA[1 : count + 1], 0)):
        progress = Progress()
        (here / ".a.bin.meshmsg-part").write_bytes(part)
        assert files.fetch("a.bin", here / "a.bin", progress=progress).sha256 == digest_of(DATA)
        assert progress[0][0] == rest + CHUNK_BYTES
        assert (here / "a.bin").read_bytes() == DATA and names_in(here) == ["a.bin"]


def test_a_sender_goes_on_behind_what_is_there_if_that_is_the_beginning(face: Face, offered: Path, here: Path) -> None:
    files, count = share(face, offered, writable=True), 2 * CHUNK_BYTES + 77
    (here / "a.bin").write_bytes(DATA)
    for part, rest in ((DATA[:count], count), (DATA[1 : count + 1], 0)):
        progress = Progress()
        (offered / ".a.bin.meshmsg-part").write_bytes(part)
        assert files.send_file(here / "a.bin", progress=progress).sha256 == digest_of(DATA)
        assert progress[0][0] == rest + CHUNK_BYTES
        assert (offered / "a.bin").read_bytes() == DATA and names_in(offered) == ["a.bin"]


def test_a_provider_that_fails_half_way_is_asked_for_the_rest(face: Face, here: Path) -> None:
    router, files = serve(face, "files")
    asked, progress = [], Progress()

    @method(face, router, streams=True)
    def read(name: str, offset: int, digest: str) -> Iterator[dict[str, Any]]:
        asked.append((offset, digest))
        assert DATA.startswith(DATA[:offset]) and digest == digest_of(DATA[:offset])
        facts = {"offset": offset, "size_bytes": len(DATA), "modified": None}
        end = offset + 2 * CHUNK_BYTES
        yield {**facts, "data": DATA[offset:end]}
        if end < len(DATA):
            raise Unavailable("somebody stops me")
        yield {"data": b"", "digest": digest_of(DATA)}

    with pytest.raises(RemoteError, match="no transfer of a file"):  # a time is no time
        files.fetch("a.bin", here / "a.bin", progress=progress)
    assert [offset for offset, _ in asked] == [0, 2 * CHUNK_BYTES, 4 * CHUNK_BYTES]
    assert [done for done, _ in progress] == [2 * CHUNK_BYTES, 4 * CHUNK_BYTES, len(DATA)]


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_a_file_that_arrives_otherwise_than_it_was_sent_is_not_kept(face: Face, here: Path) -> None:
    router, files = serve(face, "files")
    lies = iter(["data", "digest", "size"])

    @method(face, router, streams=True)
    def read(name: str, offset: int, digest: str) -> Iterator[dict[str, Any]]:
        lie = next(lies)
        data = DATA[:-1] + b"x" if lie == "data" else DATA
        yield {"offset": 0, "size_bytes": len(DATA) + (lie == "size"), "modified": None, "data": data[:100]}
        yield {"data": data[100:], "digest": digest_of(DATA[:-1] if lie == "digest" else DATA)}

    (here / "a.bin").write_bytes(b"before")
    for _ in range(3):
        with pytest.raises(RemoteError, match="did not arrive as it was sent") as caught:
            files.fetch("a.bin", here / "a.bin")
        assert caught.value.code == CORRUPT
        assert (here / "a.bin").read_bytes() == b"before" and names_in(here) == ["a.bin"]


@pytest.mark.parametrize("replaced", [False, True])
def test_what_did_not_come_is_no_success(face: Face, offered: Path, here: Path, replaced: bool) -> None:
    files, part = share(face, offered), here / ".a.bin.meshmsg-part"
    (offered / "a.bin").write_bytes(DATA)
    (here / "a.bin").write_bytes(b"before")

    def replace(done: int, total: int) -> None:
        if part.exists():
            part.unlink()
        if replaced:
            part.write_bytes(b"somebody's")

    with pytest.raises(RemoteError, match=r"meshmsg-part was removed or replaced while files: 'a\.bin' grew") as caught:
        files.fetch("a.bin", here / "a.bin", progress=replace)
    assert caught.value.code == REPLACED
    assert (here / "a.bin").read_bytes() == b"before" and part.exists() == replaced
    assert files.fetch("a.bin", here / "a.bin").sha256 == digest_of(DATA)
    assert (here / "a.bin").read_bytes() == DATA and names_in(here) == ["a.bin"]


def test_what_has_come_is_kept_when_the_rest_cannot_be_had(face: Face, here: Path) -> None:
    router, files = serve(face, "files")

    @method(face, router, streams=True)
    def read(name: str, offset: int, digest: str) -> Iterator[Any]:
        yield {"offset": 0, "size_bytes": 10, "modified": None, "data": b"12345"}
        raise OSError("the disk makes noises")

    with pytest.raises(RemoteError, match="noises"):
        files.fetch("a.bin", here / "a.bin")
    assert (here / ".a.bin.meshmsg-part").read_bytes() == b"12345" and names_in(here) == [".a.bin.meshmsg-part"]


def test_time_runs_out(face: Face, here: Path) -> None:
    router, files = serve(face, "files")

    @method(face, router, streams=True)
    def read(name: str, offset: int, digest: str) -> Iterator[Any]:
        yield Gate()

    with pytest.raises(DeadlineExceeded, match=r"^fetch\('a.bin'\): not done within 0.05 s; what has come is kept"):
        files.fetch("a.bin", here / "a.bin", timeout=0.05)
    assert names_in(here) == []


@pytest.mark.parametrize("intercepted", [False, True])
def test_who_is_silent_is_given_up(face: Face, here: Path, monkeypatch: pytest.MonkeyPatch, intercepted: bool) -> None:
    def lose_patience(*_: int) -> None:
        monkeypatch.setattr(transfers, "STALL_S", 0.1)

    def pass_on(outgoing: Any, proceed: Any) -> Any:
        return (yield Run(proceed))

    router, files = serve(face, "files", interceptors=[interceptor(face, pass_on)] if intercepted else [])

    @method(face, router, streams=True)
    def read(name: str, offset: int, digest: str) -> Iterator[Any]:
        yield {"offset": 0, "size_bytes": 2, "modified": None, "data": b"1"}
        yield Gate()

    @method(face, router, streams=True)
    def write(name: str, size_bytes: int, context: Context) -> Iterator[Any]:
        if name == "b":
            yield {"offset": 0, "digest": ""}
        yield Gate()

    (here / "a").write_bytes(b"12")
    with pytest.raises(DeadlineExceeded, match=r"^fetch\('a'\): .* silent for 0.1 s"):
        files.fetch("a", here / "a", progress=lose_patience)
    for name in "ab":
        with pytest.raises(DeadlineExceeded, match=rf"^send_file\('{name}'\): .* silent for 0.1 s"):
            files.send_file(here / "a", name)
    assert (here / ".a.meshmsg-part").read_bytes() == b"1"


def test_one_target_is_fetched_once_at_a_time(face: Face, here: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    router, files = serve(face, "files")
    caught: list[Exception] = []

    @method(face, router, streams=True)
    def read(name: str, offset: int, digest: str) -> Iterator[Any]:
        yield {"offset": 0, "size_bytes": 2, "modified": None, "data": b"1"}
        raise OSError("enough")

    def look(done: int, total: int) -> None:
        """As another process would."""
        with open(here / ".a.bin.meshmsg-part", "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                caught.append(error)

    with pytest.raises(RemoteError, match="enough"):
        files.fetch("a.bin", here / "a.bin", progress=look)
    assert len(caught) == 1
    with open(here / ".a.bin.meshmsg-part", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(RemoteError, match="transferred already") as busy:
            files.fetch("a.bin", here / "a.bin")
    assert busy.value.code == "busy"


def test_an_error_of_progress_ends_the_transfer(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True)
    (offered / "a.bin").write_bytes(DATA)
    (here / "b.bin").write_bytes(DATA)

    def fail(done: int, total: int) -> None:
        raise KeyError(f"{done} of {total}")

    with pytest.raises(KeyError):
        files.fetch("a.bin", here / "a.bin", progress=fail)
    with pytest.raises(KeyError):
        files.send_file(here / "b.bin", progress=fail)
    assert files.fetch("a.bin", here / "a.bin").sha256 == files.send_file(here / "b.bin").sha256


# --- what may not be ----------------------------------------------------------------------------------------


def test_mistakes_are_named(face: Face, offered: Path, here: Path) -> None:
    router, files = serve(face, "files")
    for directory in (offered / "nothing", 7, None):
        with pytest.raises(ConfigurationError, match="takes a directory that is there"):
            router.files(directory)
    with pytest.raises(ConfigurationError, match="writable"):
        router.files(offered, writable=1)
    router.files(offered)
    with pytest.raises(NameClash):
        router.files(offered)
    (offered / "a").write_bytes(b"a")
    with pytest.raises(ConfigurationError, match="is a directory"):
        files.fetch("a", here)
    for name in ("", 7, None):
        with pytest.raises(ConfigurationError, match=r"fetch\(name\) takes"):
            files.fetch(name, here / "a")
    with pytest.raises(ConfigurationError, match=r"send_file\(name=\) takes"):
        files.send_file(offered / "a", "")
    with pytest.raises(ConfigurationError, match=r"fetch\(target\) takes a path"):
        files.fetch("a", 7)
    with pytest.raises(ConfigurationError, match=r"fetch\(progress=\)"):
        files.fetch("a", here / "a", progress=7)
    with pytest.raises(ConfigurationError, match=r"^fetch\(timeout=\) takes"):
        files.fetch("a", here / "a", timeout=0)
    with pytest.raises(FileNotFoundError):
        files.fetch("a", here / "nothing" / "a")
    with pytest.raises(FileNotFoundError):
        files.send_file(here / "nothing")
    with pytest.raises(
        ConfigurationError, match=r"send_file\(source\) takes a file's own path, and .*here is a directory"
    ):
        files.send_file(here)
    assert names_in(here) == []


def test_a_directory_may_be_full(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True, max_bytes=100)
    (offered / ".hidden").write_bytes(DATA[:10])
    for name in ("a.bin", "b.bin", "c.bin"):
        (here / name).write_bytes(DATA[:30])
        files.send_file(here / name)
    (here / "d.bin").write_bytes(DATA[:1])
    (here / "e.bin").write_bytes(b"")
    files.send_file(here / "e.bin")  # takes nothing
    with pytest.raises(RemoteError, match=r"d\.bin: 1 bytes would make 101 in all, and 100 are allowed") as caught:
        files.send_file(here / "d.bin")
    assert caught.value.code == "full"
    assert names_in(offered) == [".hidden", "a.bin", "b.bin", "c.bin", "e.bin"]
    (offered / "a.bin").unlink()
    files.send_file(here / "d.bin")


def test_progress_is_no_coroutine_function(face: Face, offered: Path, here: Path) -> None:
    async def progress(done: int, total: int) -> None:
        raise AssertionError("nobody awaits it")

    class Meter:
        async def __call__(self, done: int, total: int) -> None: ...

    files = share(face, offered, writable=True)
    (offered / "a.bin").write_bytes(DATA)
    for wrong in (progress, Meter()):
        with pytest.raises(ConfigurationError, match=r"^fetch\(progress=\) takes a plain function, not .* two chunks"):
            files.fetch("a.bin", here / "a.bin", progress=wrong)
        with pytest.raises(ConfigurationError, match=r"^send_file\(progress=\) takes a plain function"):
            files.send_file(offered / "a.bin", "b.bin", progress=wrong)
    assert names_in(here) == [] and names_in(offered) == ["a.bin"]


def test_nobody_who_has_it_is_known_at_once(face: Face, here: Path) -> None:
    files = face.node("alone").dealer("files")
    with pytest.raises(NoResponders):
        files.fetch("a", here / "a")
    assert names_in(here) == []
