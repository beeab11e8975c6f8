"""`meshmsg reply`: what a command prints is kept only as far as it can be sent, or reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshmsg import RemoteError
from meshmsg.cli.reply import KEPT_BYTES, MAX_COMPLAINT, Command, find_fault
from tests.cli.shell import use

MOST_BYTES = 100_000


@pytest.mark.parametrize("words", [["yes"], ["yes", "x"], ["yes & cat > /dev/null; wait"]])
@pytest.mark.parametrize("as_json", [False, True])
async def test_a_command_is_stopped_when_its_output_cannot_be_sent(words: list[str], as_json: bool) -> None:
    command = Command(words, as_json=as_json, concurrency=1, max_bytes=MOST_BYTES)
    with pytest.raises(RemoteError, match=r"more than can be sent \(100000 bytes\): it was stopped") as raised:
        await command.run(b"{}\n")
    command.close()
    assert raised.value.code == "output_too_large"


async def test_output_of_just_that_size_is_a_result() -> None:
    command = Command([f"head -c {MOST_BYTES} /dev/zero"], as_json=False, concurrency=1, max_bytes=MOST_BYTES)
    assert await command.run(b"") == "\0" * MOST_BYTES
    command.close()


async def test_a_command_need_not_read_its_request() -> None:
    command = Command(["exec <&-; echo done"], as_json=False, concurrency=1)
    assert await command.run(b"x" * 2**20) == "done"
    command.close()


async def test_a_request_and_its_result_may_be_larger_than_a_pipe() -> None:
    command = Command(["cat; echo oops >&2"], as_json=False, concurrency=1)
    assert await command.run(b"x" * 2**20) == "x" * 2**20
    command.close()


@pytest.mark.parametrize("code", [0, 2])
async def test_the_end_of_what_a_command_says_besides_is_kept(capfd: pytest.CaptureFixture[str], code: int) -> None:
    line = f"head -c 3000000 /dev/zero | tr '\\0' e >&2; echo end >&2; echo done; exit {code}"
    command = Command([line], as_json=False, concurrency=1)
    if code:
        with pytest.raises(RemoteError) as raised:
            await command.run(b"")
        assert str(raised.value) == f"exit code 2: {'e' * (MAX_COMPLAINT - 3)}end"
        assert capfd.readouterr().err == ""
    else:
        assert await command.run(b"") == "done"
        assert capfd.readouterr().err == f"[...]{'e' * (KEPT_BYTES - 4)}end\n"
    command.close()


def test_a_method_has_no_dot_in_its_name() -> None:
    result = use("reply", "a.b", "do.it", "--value", "1", code=2)
    assert "router('a.b.do') with the method 'it'" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (["/nowhere/at/all", "x"], "/nowhere/at/all: there is no such command", 127),
        (["no-such-command", "x"], "no-such-command: there is no such command on PATH", 127),
        (["/nowhere/at/all"], "/nowhere/at/all: there is no such command", 127),
        (["no-such-command --all"], "no-such-command: there is no such command on PATH", 127),
        (["/etc"], "/etc: it cannot be run: it is no file, or lacks the permission", 126),
        (["/etc/passwd", "x"], "/etc/passwd: it cannot be run: it is no file, or lacks the permission", 126),
    ],
)
def test_a_command_that_is_not_there_is_told_at_the_start(words: list[str], told: str, code: int) -> None:
    result = use("reply", "svc", "m", "--", *words, code=code)
    assert result.output.startswith(f"meshmsg: {told}") and "is offered" not in result.output


def test_what_the_shell_knows_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    for line in (
        "cat",
        "./run x",
        "exit 3",  # its own
        "for x in 1 2; do echo $x; done",
        "no-such-command || echo none",  # which runs
        "no-such-command\necho none",
        "cd /etc; ./x",
        "COLOR=blue ./x",
        "~/x",
        '"/nowhere/a b"',
        "",
    ):
        assert find_fault([line]) is None, line
    assert find_fault(["./run", "x"]) is None and find_fault(["cat", "no-such-command"]) is None
