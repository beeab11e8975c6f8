"""Lines in and out of real pipes: nothing lost, nothing acked that nobody read."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshmsg.cli import lines_out
from meshmsg.cli.lines_in import CHUNK_BYTES, LinesIn
from meshmsg.cli.lines_out import LinesOut, OutputClosed
from meshmsg.cli.running import Stop

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how full a pipe is")


class Pipe:
    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self._open = {self.read_end, self.write_end}

    def close(self, end: int) -> None:
        self._open.remove(end)
        os.close(end)

    def close_all(self) -> None:
        for end in list(self._open):
            self.close(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    opened = Pipe()
    yield opened
    opened.close_all()


# --- in -----------------------------------------------------------------------------------------------------


async def read_all(lines: LinesIn) -> list[bytes]:
    return [line async for line in lines]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\n\nb", [b"a", b"", b"b"]),
        (b"dos\r\n\xff\n", [b"dos", b"\xff"]),
    ],
)
async def test_lines_of_a_file(tmp_path: Path, text: bytes, lines: list[bytes]) -> None:
    path = tmp_path / "lines"
    path.write_bytes(text)
    with path.open("rb") as file:
        assert await read_all(LinesIn(file.fileno())) == lines


async def test_a_line_longer_than_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    long = b"x" * (CHUNK_BYTES * 2 + 5)
    path.write_bytes(long + b"\nshort")
    with path.open("rb") as file:
        assert await read_all(LinesIn(file.fileno())) == [long, b"short"]


async def test_a_line_arrives_while_the_pipe_stays_open(pipe: Pipe) -> None:
    lines = aiter(LinesIn(pipe.read_end))
    os.write(pipe.write_end, b"first\nsec")
    assert await anext(lines) == b"first"
    os.write(pipe.write_end, b"ond\n")
    assert await anext(lines) == b"second"
    pipe.close(pipe.write_end)
    with pytest.raises(StopAsyncIteration):
        await anext(lines)


async def test_a_closed_descriptor_is_an_end(pipe: Pipe) -> None:
    pipe.close(pipe.read_end)
    assert await read_all(LinesIn(pipe.read_end)) == []


# --- out ----------------------------------------------------------------------------------------------------


def open_lines(pipe: Pipe) -> tuple[LinesOut, Stop]:
    stop = Stop()
    output = LinesOut(stop, pipe.write_end)
    output.start()
    return output, stop


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@needs_linux
async def test_a_line_is_out_when_the_reader_has_it(pipe: Pipe) -> None:
    output, stop = open_lines(pipe)
    writing = asyncio.ensure_future(output.write(b"one"))
    await turns()
    assert not writing.done()
    assert os.read(pipe.read_end, 100) == b"one\n"
    await writing
    assert not stop.requested
    output.close()


@needs_linux
async def test_a_reader_that_leaves_has_not_taken_the_line(pipe: Pipe) -> None:
    output, stop = open_lines(pipe)
    writing = asyncio.ensure_future(output.write(b"one"))
    await turns()
    pipe.close(pipe.read_end)
    with pytest.raises(OutputClosed):
        await writing
    assert stop.requested and not stop.by_signal


async def test_a_reader_that_leaves_is_noticed_while_nothing_is_written(pipe: Pipe) -> None:
    _, stop = open_lines(pipe)
    pipe.close(pipe.read_end)
    await stop.wait()


async def test_writing_to_nobody(pipe: Pipe) -> None:
    stop = Stop()
    output = LinesOut(stop, pipe.write_end)  # not watched: the write itself must notice
    pipe.close(pipe.read_end)
    with pytest.raises(OutputClosed):
        await output.write(b"one")
    assert stop.requested


async def test_a_long_line_waits_for_a_slow_reader_without_blocking_the_loop(pipe: Pipe) -> None:
    output, _ = open_lines(pipe)
    line = b"x" * 300_000  # several times what a pipe holds
    writing = asyncio.ensure_future(output.write(line))
    await turns()
    got = b""
    while len(got) <= len(line):
        got += os.read(pipe.read_end, 5000)
        await asyncio.sleep(0)
    await writing
    assert got == line + b"\n"
    output.close()


@needs_linux
@pytest.mark.parametrize("size", [3, 300_000])
async def test_after_a_stop_a_reader_that_does_nothing_is_not_waited_for(
    pipe: Pipe, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_out, "LAST_LINE_S", 0.05)
    output, stop = open_lines(pipe)
    writing = asyncio.ensure_future(output.write(b"x" * size))
    await turns()
    stop.request()
    with pytest.raises(OutputClosed):
        await writing
    output.close()


async def test_a_file_takes_lines_at_once(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        output = LinesOut(Stop(), file.fileno())
        output.start()
        await output.write(b"one")
        await output.write(b"two")
        output.close()
    assert (tmp_path / "out").read_bytes() == b"one\ntwo\n"
