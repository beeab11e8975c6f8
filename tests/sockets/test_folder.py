"""A directory as a service: which of its files can be named, and what becomes of those that are sent to it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from meshmsg import BadRequest, ConfigurationError, DeadlineExceeded, NoSuchMethod, RemoteError
from meshmsg.sockets.context import Context
from meshmsg.sockets.files import CHANGED, CORRUPT, REPLACED, lock
from meshmsg.sockets.folder import PART_KEPT_S, Folder
from tests.contracts.faces import PATIENCE_S, Face, Gate, until
from tests.contracts.folders import CHUNK_BYTES, DATA, Progress, digest_of, names_in, share
from tests.contracts.services import Next, in_thread, method, outcome_of, serve

pytestmark = pytest.mark.guarantee("G8")


@pytest.fixture
def face() -> Iterator[Face]:
    """What these tests look at is behind the faces: one will do."""
    face = Face("blocking")
    yield face
    face.close()


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


def test_files_are_listed_and_looked_at(face: Face, offered: Path) -> None:
    files = share(face, offered)
    for name in ("b", "a", "sub/c", ".hidden", ".git/config", "sub/.d.meshmsg-part"):
        (offered / name).parent.mkdir(exist_ok=True)
        (offered / name).write_bytes(name.encode())
    (offered / "pipe").symlink_to("/dev/null")
    assert [(each["name"], each["size_bytes"]) for each in files.stream("list")] == [("a", 1), ("b", 1), ("sub/c", 5)]
    assert [each["name"] for each in files.stream("list", "sub")] == ["sub/c"]
    assert files.stat("sub/c")["sha256"] is None
    assert files.stat("sub/c", digest=True)["sha256"] == digest_of(b"sub/c")
    with pytest.raises(RemoteError, match="no directory 'nothing'") as caught:
        list(files.stream("list", "nothing"))
    assert caught.value.code == "not_found"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere every name of a file is text")
def test_names_that_are_no_text_are_not_listed(face: Face, offered: Path) -> None:
    files = share(face, offered)
    for name in (b"b", b"a\xff", b"sub\xff/c", b"sub/c\xff", b"sub/c", "ä".encode()):
        path = os.path.join(os.fsencode(offered), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass
    assert [each["name"] for each in files.stream("list")] == ["b", "ä", "sub/c"]
    assert [each["name"] for each in files.stream("list", "sub")] == ["sub/c"]


def test_small_messages_carry_small_chunks(face: Face, offered: Path, here: Path) -> None:
    server = face.node("server", max_message_bytes=1024)
    server.router("files").files(offered, writable=True)
    client = face.node("client", max_message_bytes=1024)
    client.wait_for(router="files", timeout=PATIENCE_S)
    files, data = client.dealer("files"), DATA[:10_000]
    (offered / "a.bin").write_bytes(data)
    files.fetch("a.bin", here / "a.bin")
    assert files.send_file(here / "a.bin", "b.bin").sha256 == digest_of(data)


def test_more_than_the_whole_file_is_no_beginning_of_it(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered)
    (offered / "a.bin").write_bytes(DATA[:CHUNK_BYTES])
    (here / ".a.bin.meshmsg-part").write_bytes(DATA)
    files.fetch("a.bin", here / "a.bin")
    assert (here / "a.bin").read_bytes() == DATA[:CHUNK_BYTES]
    first, *_ = files.stream("read", "a.bin", 10**9, digest_of(DATA[:CHUNK_BYTES]))
    assert (first["offset"], first["data"]) == (0, DATA[:CHUNK_BYTES])
    with pytest.raises(BadRequest, match="no byte -1"):
        list(files.stream("read", "a.bin", -1))


def test_the_server_keeps_nothing_of_a_file_that_did_not_arrive_as_it_was_sent(face: Face, offered: Path) -> None:
    files = share(face, offered, writable=True)
    for size, digest in ((3, digest_of(b"abd")), (4, digest_of(b"abc"))):
        items = [{"offset": 0, "data": b"ab"}, {"data": b"c", "digest": digest}]
        with pytest.raises(RemoteError) as caught:
            list(files.stream("write", "a.bin", size, items=items))
        assert caught.value.code == CORRUPT and names_in(offered) == []
    for item in ({"offset": 0, "data": b"abcd"}, {"offset": 0, "data": "abc"}):
        with pytest.raises(RemoteError, match="no transfer of a file"):
            list(files.stream("write", "a.bin", 3, items=[item]))
        assert names_in(offered) == []
    with pytest.raises(RemoteError, match="items ended before"):
        list(files.stream("write", "a.bin", 3, items=[{"offset": 0, "data": b"ab"}]))
    assert (offered / ".a.bin.meshmsg-part").read_bytes() == b"ab"


def test_what_is_no_transfer_is_told_apart(face: Face, here: Path) -> None:
    router, files = serve(face, "files")
    wrong: list[Any] = [
        7,
        {"data": "text"},
        {"data": b"x"},
        {"offset": 5, "size_bytes": 3, "data": b""},
        {"offset": 0, "size_bytes": "3", "data": b""},
        {"offset": 0, "size_bytes": 0, "data": b"x"},
    ]

    @method(face, router, streams=True)
    def read(name: str, offset: int, digest: str) -> Iterator[Any]:
        yield wrong[int(name)]

    for place in range(len(wrong)):
        with pytest.raises(RemoteError, match="no transfer of a file"):
            files.fetch(str(place), here / "a.bin", timeout=PATIENCE_S)
        assert names_in(here) == []


def test_a_file_that_changes_all_the_time_is_given_up(face: Face, here: Path) -> None:
    router, files = serve(face, "files")
    asked = []

    @method(face, router, streams=True)
    def read(name: str, offset: int, digest: str) -> Iterator[Any]:
        asked.append(offset)
        yield {"offset": offset, "size_bytes": 10**6, "modified": None, "data": b"x"}
        raise RemoteError("it was changed", code=CHANGED)

    with pytest.raises(RemoteError) as caught:
        files.fetch("a.bin", here / "a.bin")
    assert caught.value.code == CHANGED and asked == [0, 1, 2, 3]


def test_names_that_lead_elsewhere_are_refused(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True)
    (offered.parent / "secret").write_bytes(b"secret")
    (offered / ".hidden").write_bytes(b"hidden")
    (here / "a.bin").write_bytes(b"a")
    for name in ("/etc/passwd", "../secret", "sub/../../secret", "sub//a", ".hidden", "a\0b", ".", "a/"):
        for attempt in (partial(files.fetch, name, here / "got"), partial(files.send_file, here / "a.bin", name)):
            with pytest.raises(BadRequest, match="is no name of a file") as caught:
                attempt()
            assert caught.value.argument == "name"
    assert names_in(here) == ["a.bin"] and names_in(offered) == [".hidden"]


def test_a_caller_never_learns_where_the_directory_is(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True)
    (here / "a.bin").write_bytes(b"a")
    (offered / "loop").symlink_to("loop")
    os.mkfifo(offered / ".busy.meshmsg-part")
    for name in ("x" * 256, "x" * 300, "sub/" * 1500 + "a"):
        for attempt in (
            partial(files.send_file, here / "a.bin", name),
            partial(files.fetch, name, here / "got"),
            lambda name=name: list(files.stream("list", name)),
        ):
            with pytest.raises(BadRequest, match="is no name of a file: it is too long") as caught:
                attempt()
            assert str(offered) not in str(caught.value) and len(str(caught.value)) < 200
            assert caught.value.argument in ("name", "under")
    for attempt in (partial(files.fetch, "loop", here / "got"), partial(files.send_file, here / "a.bin", "busy")):
        with pytest.raises(RemoteError) as refused:
            attempt()
        assert str(offered) not in str(refused.value)
    assert names_in(here) == ["a.bin"]


def test_a_file_in_use_is_told_without_its_place(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True)
    (here / "a.bin").write_bytes(b"a")
    (offered / ".b.meshmsg-part").write_bytes(b"")
    with open(offered / ".b.meshmsg-part", "r+b") as part:
        assert lock(part.fileno())
        with pytest.raises(RemoteError, match=r"b is transferred already: \.b\.meshmsg-part is in use") as caught:
            list(files.stream("write", "b", 1, items=[]))
        assert caught.value.code == "busy" and str(offered) not in str(caught.value)


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("begun", [b"", b"ab"])
def test_a_part_that_is_not_what_came_does_not_become_the_file(
    face: Face, offered: Path, begun: bytes, replaced: bool
) -> None:
    files, part, go_on = share(face, offered, writable=True), offered / ".a.bin.meshmsg-part", Gate()

    def items() -> Iterator[dict[str, Any]]:
        go_on.wait()
        yield {"offset": 0, "data": begun, "digest": digest_of(begun)}

    (offered / "a.bin").write_bytes(b"before")
    answers = files.stream("write", "a.bin", len(begun), items=items())
    assert next(answers)["offset"] == 0
    part.unlink()
    if replaced:
        part.write_bytes(b"somebody's")
    go_on.open()
    with pytest.raises(
        RemoteError, match=r"\.a\.bin\.meshmsg-part was removed or replaced while a\.bin grew"
    ) as caught:
        next(answers)
    assert caught.value.code == REPLACED and str(offered) not in str(caught.value)
    assert (offered / "a.bin").read_bytes() == b"before"
    assert part.exists() == replaced and (not replaced or part.read_bytes() == b"somebody's")


def test_only_files_are_sent(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True)
    os.mkfifo(here / "pipe")
    for source, text in ((here, "a directory"), (here / "pipe", "no regular file")):
        with pytest.raises(ConfigurationError, match=rf"send_file\(source\) .* {source} is {text}"):
            files.send_file(source, "a")


def test_links_lead_no_further_than_the_directory(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True)
    outside = offered.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (here / "a.bin").write_bytes(b"a")
    (offered / "real").write_bytes(b"real")
    (offered / "inside").symlink_to("real")
    (offered / "file").symlink_to(outside / "secret")
    (offered / "folder").symlink_to(outside)
    assert [each["name"] for each in files.stream("list")] == ["inside", "real"]
    assert files.fetch("inside", here / "got").size_bytes == 4
    for attempt in (
        lambda: files.fetch("file", here / "out"),
        lambda: files.fetch("folder/secret", here / "out"),
        lambda: files.send_file(here / "a.bin", "folder/new"),
        lambda: list(files.stream("list", "folder")),
    ):
        with pytest.raises(BadRequest, match="leads out of the directory"):
            attempt()
    for name in ("file", "inside"):
        with pytest.raises(BadRequest, match=f"'{name}' is a symbolic link") as caught:
            files.send_file(here / "a.bin", name)
        assert caught.value.argument == "name"
    assert (outside / "secret").read_bytes() == b"secret" and (offered / "real").read_bytes() == b"real"
    assert names_in(outside) == ["secret"] and names_in(here) == ["a.bin", "got"]


def test_what_is_no_file_cannot_be_had(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True)
    (offered / "sub").mkdir()
    (offered / "a").write_bytes(b"a")
    os.mkfifo(offered / "pipe")
    for name in ("sub", "pipe"):
        with pytest.raises(BadRequest, match="not a regular file"):
            files.fetch(name, here / "got")
    for name in ("nothing", "a/b"):
        with pytest.raises(RemoteError, match="there is no file") as caught:
            files.fetch(name, here / "got")
        assert caught.value.code == "not_found"
    for name, text in (("sub", "is a directory"), ("a/b", "inside of a file"), ("pipe", "is no regular file")):
        with pytest.raises(BadRequest, match=text):
            files.send_file(offered / "a", name)
    assert names_in(here) == [] and names_in(offered) == ["a"] and (offered / "pipe").is_fifo()


def test_only_files_are_replaced_by_what_is_fetched(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered)
    (offered / "a").write_bytes(b"a")
    (here / "real").write_bytes(b"real")
    (here / "link").symlink_to("real")
    (here / "nowhere").symlink_to("gone")
    (here / "folder").mkdir()
    os.mkfifo(here / "pipe")
    for name, text in (
        ("link", "is a symbolic link"),
        ("nowhere", "is a symbolic link"),
        ("folder", "is a directory"),
        ("pipe", "is no regular file"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            files.fetch("a", here / name)
    os.mkfifo(here / ".b.meshmsg-part")
    with pytest.raises(FileExistsError, match="is no regular file"):
        files.fetch("a", here / "b")
    assert (here / "pipe").is_fifo() and (here / ".b.meshmsg-part").is_fifo()
    assert names_in(here) == ["link", "real"] and (here / "real").read_bytes() == b"real"
    files.fetch("a", here / "real")
    assert (here / "real").read_bytes() == b"a"


def test_a_directory_is_not_written_to_unless_it_may_be(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered)
    (here / "a.bin").write_bytes(b"a")
    with pytest.raises(NoSuchMethod, match=r"files\.write"):
        files.send_file(here / "a.bin")
    assert names_in(offered) == []


def test_files_that_come_have_their_room_from_the_start(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True, max_bytes=100)
    go_on = Gate()

    def half() -> Iterator[dict[str, Any]]:
        yield {"offset": 0, "data": DATA[:20]}
        go_on.wait()

    first = files.stream("write", "a.bin", 60, items=half())
    assert next(first)["offset"] == 0
    (here / "b.bin").write_bytes(DATA[:50])
    with pytest.raises(RemoteError, match="50 bytes would make 110 in all"):
        files.send_file(here / "b.bin")
    go_on.open()
    with pytest.raises(RemoteError, match="items ended before"):
        next(first)
    assert names_in(offered) == [".a.bin.meshmsg-part"]
    files.send_file(here / "b.bin")  # beside the 20 bytes that are there
    (here / "a.bin").write_bytes(DATA[:50])
    files.send_file(here / "a.bin")  # goes on with them, so they count once
    with pytest.raises(RemoteError, match=r"b\.bin: 50 bytes would make 150 in all"):
        files.send_file(here / "b.bin")  # what is to be replaced is there until it is
    with pytest.raises(BadRequest, match="no -5 bytes"):
        list(files.stream("write", "c.bin", -5, items=[]))
    assert names_in(offered) == ["a.bin", "b.bin"]


def test_files_that_come_side_by_side_have_their_room_once(face: Face, offered: Path, here: Path) -> None:
    files = share(face, offered, writable=True, max_bytes=8 * 1000)
    outcomes = []
    for place in range(9):
        (here / f"{place}.bin").write_bytes(DATA[:1000])
        outcomes.append(in_thread(partial(files.send_file, here / f"{place}.bin")))
    refused = [each for each in map(outcome_of, outcomes) if isinstance(each, RemoteError)]
    assert [each.code for each in refused] == ["full"]
    assert len(names_in(offered)) == 8


def test_a_file_counts_once_when_it_has_come(offered: Path) -> None:
    folder, context = Folder("files", offered, True, 2**20, max_bytes=100), cast(Context, None)
    items = [{"offset": 0, "data": DATA[:50], "digest": digest_of(DATA[:50])}]
    coming = [folder.write(name, 50, iter(items), context) for name in ("a.bin", "b.bin")]
    for each in coming:
        assert next(each)["offset"] == 0
        assert next(each)["size_bytes"] == 50  # its caller has this, and the method has not ended


def test_what_nobody_goes_on_with_is_removed(face: Face, offered: Path, here: Path) -> None:
    old = time.time() - 2 * PART_KEPT_S
    names = [
        ".new.meshmsg-part",
        ".old.meshmsg-part",
        "sub/.older.meshmsg-part",
        "seen.meshmsg-part",
        ".own.part",
        ".hidden",
        ".held.meshmsg-part",
        ".a.bin.meshmsg-part",
        ".dir.meshmsg-part/x",
    ]
    for name in names:
        (offered / name).parent.mkdir(exist_ok=True)
        (offered / name).write_bytes(DATA[:CHUNK_BYTES])
        os.utime(offered / name, (old, old))
    os.utime(offered / ".new.meshmsg-part")
    (offered / ".link.meshmsg-part").symlink_to("seen.meshmsg-part")
    os.utime(offered / ".link.meshmsg-part", (old, old), follow_symlinks=False)
    files, progress = share(face, offered, writable=True), Progress()
    (here / "a.bin").write_bytes(DATA)
    with open(offered / ".held.meshmsg-part", "rb") as held:
        assert lock(held.fileno())
        files.send_file(here / "a.bin", progress=progress)
    assert len(progress) == 5  # the first chunk was there: what is gone on with stays
    parts = [".dir.meshmsg-part/x", ".held.meshmsg-part", ".link.meshmsg-part", ".new.meshmsg-part"]
    assert names_in(offered) == sorted([*parts, ".hidden", ".own.part", "a.bin", "seen.meshmsg-part"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_bytes": 5}, "writable=True"),
        ({"writable": True, "max_bytes": -1}, "0 or more"),
        ({"writable": True, "max_bytes": True}, "whole number"),
        ({"writable": True, "max_bytes": 2.5}, "whole number"),
    ],
)
def test_limits_that_are_none(face: Face, offered: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"files\(max_bytes=\).*{why}"):
        face.node().router("files").files(offered, **options)


def test_no_thread_is_left_of_a_sender_that_nobody_answers(face: Face, here: Path) -> None:
    router, files = serve(face, "files")
    (here / "a.bin").write_bytes(b"a")

    @method(face, router, streams=True)
    def write(name: str, size_bytes: int, items: Iterator[Any]) -> Iterator[Any]:
        yield Next(iter(items))  # which waits for the word that this one never says

    with pytest.raises(DeadlineExceeded):
        files.send_file(here / "a.bin", timeout=0.2)
    until(lambda: not any(thread.name == "meshmsg-files-items" for thread in threading.enumerate()))


def test_the_next_transfer_of_a_name_may_begin_before_the_last_one_is_tidied_up(offered: Path) -> None:
    folder = Folder("files", offered, True, 2**20, max_bytes=None)
    context = cast(Context, type("Kept", (), {"cancelled": False})())

    def send(data: bytes) -> Iterator[dict[str, Any]]:
        yield {"offset": 0, "data": data, "digest": digest_of(data)}

    first, second = (folder.write("a.bin", 3, send(data), context) for data in (b"one", b"two"))
    assert next(first)["offset"] == 0
    assert next(first)["sha256"] == digest_of(b"one")  # its sender has the answer, and sends the next
    assert next(second)["offset"] == 0
    assert list(first) == []
    assert next(second)["sha256"] == digest_of(b"two")
    assert list(second) == [] and not folder._reserved
