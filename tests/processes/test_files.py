"""Files between processes that are killed half way: what has come is not sent again, and only what is whole is seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshmsg.blocking import Node
from tests.processes.crew import DEADLINE_S, Crew, Member

SIZE_BYTES = 24 * 2**20  # several times what is under way


def provider(crew: Crew, name: str, directory: Path, *, writable: bool = False) -> Member:
    """A process that offers the directory."""
    member = crew.start(name)
    member.ask("open_files", directory=str(directory), writable=writable)
    return member


def make_file(path: Path) -> bytes:
    data = os.urandom(SIZE_BYTES)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return data


@pytest.mark.guarantee("G8")
@pytest.mark.parametrize("after", ["restart", "another"])
def test_a_provider_is_killed_half_way_and_the_rest_comes_from_the_next(crew: Crew, tmp_path: Path, after: str) -> None:
    data = make_file(tmp_path / "offered" / "big.bin")
    first = provider(crew, "provider", tmp_path / "offered")
    progress: list[int] = []

    def kill(done: int, total: int) -> None:
        progress.append(done)
        if done > total / 2 and first.code is None:
            # This waits, and takes nothing meanwhile: the rest stays with who is killed now.
            if after == "another":
                provider(crew, "another", tmp_path / "offered")
                client.wait_for(router="files", count=2, timeout=DEADLINE_S)
            first.kill()
            if after == "restart":
                crew.start("provider").tell("open_files", directory=str(tmp_path / "offered"))

    with Node("client", mesh=crew.mesh, drain=0) as client:
        client.wait_for(router="files", timeout=DEADLINE_S)
        target = tmp_path / "big.bin"
        info = client.dealer("files").fetch(
            "big.bin", target, progress=kill, peer="provider" if after == "restart" else None
        )
    assert target.read_bytes() == data and info.size_bytes == SIZE_BYTES
    assert not target.with_name(f".{target.name}.meshmsg-part").exists()
    assert progress == sorted(set(progress)) and progress[-1] == SIZE_BYTES


@pytest.mark.guarantee("G8")
def test_a_sender_is_killed_half_way_and_the_next_one_sends_the_rest(crew: Crew, tmp_path: Path) -> None:
    data = make_file(tmp_path / "big.bin")
    offered = tmp_path / "offered"
    offered.mkdir()
    provider(crew, "provider", offered, writable=True)
    sender = crew.start("sender")
    sender.ask("wait_for", router="files")
    sender.tell("send_half", source=str(tmp_path / "big.bin"))
    crew.until(lambda: sender.code is not None, "the end of the sender")
    assert not (offered / "big.bin").exists()
    progress: list[int] = []
    with Node("client", mesh=crew.mesh, drain=0) as client:
        client.wait_for(router="files", timeout=DEADLINE_S)
        client.dealer("files").send_file(tmp_path / "big.bin", progress=lambda done, _: progress.append(done))
    assert [path.name for path in offered.iterdir()] == ["big.bin"]
    assert (offered / "big.bin").read_bytes() == data
    # What the first one had under way may be lost with it: about 4 MiB.
    assert progress[0] > SIZE_BYTES / 4 and progress[-1] == SIZE_BYTES
