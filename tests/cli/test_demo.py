"""`meshmsg demo`, end to end with real processes; and the parts that decide whether its outcome is right."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from meshmsg import Ledger
from meshmsg.cli.demo import files
from meshmsg.cli.demo.files import Measured, add_up, list_files, measure, measure_all
from meshmsg.cli.demo.show import Outcome, Producer, Show, Worker
from meshmsg.cli.demo.verb import MAX_NAP_S, choose_nap
from meshmsg.cli.demo.views import PlainView, draw_picture
from tests.cli.shell import Shell, children_of, finish, interrupt, read_line, runs, wait_until

FAST = ("--seconds", "0")
FEW = ("--workers", "2", "--producers", "1")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    for number in range(12):
        path = folder / f"part-{number % 3}" / f"file-{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"number {number}\n" * number)
    (folder / os.fsdecode(b"no-utf8-\xff")).write_bytes(b"\xff\x00 two")
    return folder


# --- end to end ---------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G1", "G4")
def test_demo_finishes_although_a_worker_is_killed(shell: Shell, tree: Path) -> None:
    ended = shell.run("demo", str(tree), "--json", *FAST)
    assert ended.code == 0, ended
    document = json.loads(ended.stdout)
    assert (document["ok"], document["problems"]) == (True, [])

    paths = [path for path in tree.rglob("*") if path.is_file()]
    contents = [path.read_bytes() for path in paths]
    for totals in document["totals"].values():
        assert totals["files"] == len(paths) == 13
        assert totals["bytes"] == sum(map(len, contents))
        assert totals["words"] == sum(len(content.split()) for content in contents)
    assert document["totals"]["mesh"] == document["totals"]["one_process"]

    ledger = document["ledger"]
    assert ledger["balanced"] and ledger["pending"] == 0
    assert (ledger["accepted"], ledger["processed"], ledger["dead"]) == (14, 13, 1)
    [letter] = document["dead_letters"]
    assert letter["name"] == "always-fails" and letter["reason"] == "attempts" and len(letter["attempts"]) == 3

    killed = document["killed"]
    states = {worker["name"]: worker["state"] for worker in document["workers"]}
    assert states.pop(killed["worker"]) == "killed" and set(states.values()) == {"left"}
    assert killed["noticed_after_ms"] is not None
    assert killed["redelivered"] >= 1
    assert len(document["done_twice"]) >= 1  # the kill comes between a result and its ack


def test_demo_as_plain_lines(shell: Shell, tree: Path) -> None:
    ended = shell.run("demo", str(tree), *FEW, *FAST)
    assert ended.code == 0, ended
    for pattern in (
        r"13 files of .*tree: checksum",
        r"\d s  4 processes have found each other through mDNS on loopback",
        r"worker-[12] \(pid \d+\) is killed with SIGKILL",
        r"the mesh sees worker-[12] gone \(.+\), \d+ ms later",
        r"ledger       accepted 14 = processed 13 \+ dead 1 \+ pending 0: balanced",
        r"dead letter  always-fails .*reason: attempts",
        r"attempt 3 at worker-[12]: \w+, ",
        r"done twice   \d+ \(.*(file|no-utf8)-",  # whichever file the killed worker had in hand
        r"The totals match",
    ):
        assert re.search(pattern, ended.stdout), f"{pattern}\n{ended!r}"


def test_a_file_that_cannot_be_read_is_a_dead_letter_and_expected(shell: Shell, tree: Path) -> None:
    (tree / "nowhere").symlink_to("does-not-exist")
    ended = shell.run("demo", str(tree), "--no-kill", "--json", *FEW, *FAST)
    assert ended.code == 0, ended
    document = json.loads(ended.stdout)
    assert document["killed"] is None
    letters = {letter["name"]: letter for letter in document["dead_letters"]}
    assert set(letters) == {"always-fails", "nowhere"}
    assert "FileNotFoundError" in letters["nowhere"]["error"]
    assert document["ledger"]["dead"] == 2 and document["totals"]["mesh"]["files"] == 13


def test_an_empty_folder_has_only_the_task_that_fails(shell: Shell, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    ended = shell.run("demo", str(empty), "--json", *FEW, *FAST)
    assert ended.code == 0, ended
    document = json.loads(ended.stdout)
    assert document["killed"] is None
    assert document["totals"]["mesh"] == document["totals"]["one_process"]
    assert document["totals"]["mesh"]["files"] == 0
    assert document["ledger"]["accepted"] == document["ledger"]["dead"] == 1


def test_a_demo_without_mdns_is_wrong_use(shell: Shell) -> None:
    assert shell.run("demo", "--no-mdns").code == 2


def test_a_folder_that_is_not_there_is_wrong_use(shell: Shell, tmp_path: Path) -> None:
    assert shell.run("demo", str(tmp_path / "nothing")).code == 2


def start_long_demo(shell: Shell, tree: Path) -> tuple[Any, list[int]]:
    """A demo in its middle, and its processes."""
    for number in range(300):
        (tree / f"more-{number}").write_text("x")
    demo = shell.start("demo", str(tree), "--seconds", "60", "--no-kill", *FEW)
    while "found each other" not in read_line(demo):
        pass
    children = children_of(demo.pid)
    assert len(children) == 3 and all(map(runs, children))
    return demo, children


@needs_proc
def test_ctrl_c_leaves_no_process_behind(shell: Shell, tree: Path) -> None:
    demo, children = start_long_demo(shell, tree)
    ended = interrupt(demo)
    assert ended.code == 130
    assert "interrupted" in ended.stderr and "Traceback" not in ended.stderr
    assert not any(map(runs, children))


@needs_proc
def test_processes_leave_when_the_demo_itself_is_killed(shell: Shell, tree: Path) -> None:
    demo, children = start_long_demo(shell, tree)
    demo.kill()
    finish(demo)
    wait_until(lambda: not any(map(runs, children)), "the children leave")


@needs_proc
def test_a_producer_that_dies_ends_the_demo_with_an_error(shell: Shell, tree: Path) -> None:
    demo, children = start_long_demo(shell, tree)
    producer = next(child for child in children if b"producer" in Path(f"/proc/{child}/cmdline").read_bytes())
    os.kill(producer, signal.SIGKILL)
    ended = finish(demo)
    assert ended.code == 4
    assert "ended by itself with exit code -9" in ended.stderr
    assert not any(map(runs, children))


# --- files --------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([b"a", b"bc", b" ", b"\n", b"\xff"]), max_size=12), st.integers(1, 5))
def test_words_are_the_same_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], chunk: int
) -> None:
    content = b"".join(parts)
    path = tmp_path_factory.mktemp("words") / "file"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", chunk)
        assert measure(path) == Measured(hashlib.sha256(content).digest(), len(content), len(content.split()))


def test_what_counts_as_a_file(tmp_path: Path) -> None:
    for name in ("a.txt", ".git/config", "b/__pycache__/c.pyc", "b/d.py", "env/pyvenv.cfg", "env/lib.py", ".hidden"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "link").symlink_to("a.txt")
    (tmp_path / "loop").symlink_to("b", target_is_directory=True)
    (tmp_path / "nowhere").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")  # reading it would block for ever
    assert list_files(tmp_path) == [b".hidden", b"a.txt", b"b/d.py", b"link", b"nowhere"]
    measured, unreadable = measure_all(tmp_path, list_files(tmp_path))
    assert unreadable == {b"nowhere"} and set(measured) == {b".hidden", b"a.txt", b"b/d.py", b"link"}


def test_totals_depend_on_names_and_contents_but_not_on_order() -> None:
    one, two = Measured(b"1" * 32, 10, 2), Measured(b"2" * 32, 20, 3)
    totals = add_up({b"a": one, b"b": two})
    assert totals[:3] == (2, 30, 5)
    assert add_up({b"b": two, b"a": one}) == totals
    assert add_up({b"a": two, b"b": one}).checksum != totals.checksum
    assert add_up({b"a": one, b"c": two}).checksum != totals.checksum


def test_naps_stretch_the_work_but_no_file_is_slow() -> None:
    assert choose_nap(5, 150, 3) == pytest.approx(0.1)
    assert choose_nap(5, 3, 3) == MAX_NAP_S
    assert choose_nap(0, 100, 3) == choose_nap(5, 10**6, 3) == 0


# --- the show -----------------------------------------------------------------------------------------------


def result(name: bytes, **changes: Any) -> dict[str, Any]:
    body = {
        "worker": "worker-1",
        "id": f"node/files/{name.decode()}",
        "name": name,
        "measured": [name * 32, 10, 2],
        "attempt": 1,
        "redelivered": False,
    }
    return {**body, **changes}


def good_show() -> Show:
    show = Show(total=2)
    show.workers = {name: Worker(name, 100 + index) for index, name in enumerate(("worker-1", "worker-2"))}
    show.producers = {"producer-1": Producer("producer-1", 200)}
    show.add_result(result(b"a"), 1.0)
    show.add_kill("worker-1", 1.5)
    show.add_peer_event("peer.down", "worker-1", "crashed", 1.51)
    again = {"worker": "worker-2", "attempt": 2, "redelivered": True, "measured": [b"?" * 32, 0, 0]}
    show.add_result(result(b"a", **again), 2.0)
    show.add_result(result(b"b", worker="worker-2"), 2.5)
    letter = {"id": "x", "name": b"poison", "reason": "attempts", "error": "no", "attempts": [["w", "nacked", "no"]]}
    books = Ledger(accepted=3, processed=2, dead=1)._asdict()
    show.add_report({"producer": "producer-1", "final": True, "ledger": books, "letters": [letter]}, 3.0)
    return show


def outcome_of(show: Show) -> Outcome:
    alone = {b"a": Measured(b"a" * 32, 10, 2), b"b": Measured(b"b" * 32, 10, 2)}
    return Outcome(show, 3.0, alone, set(), b"poison")


def test_a_result_that_comes_twice_counts_once() -> None:
    show = good_show()
    assert (len(show.measured), show.twice) == (2, [b"a"])
    assert show.kill is not None
    assert show.kill.noticed_after_ms == pytest.approx(10) and show.kill.recovered_after_ms == pytest.approx(500)
    assert show.kill.redelivered == 1 and show.workers["worker-2"].retried == 1
    assert show.finished and outcome_of(show).problems == []


def lose_a_result(show: Show) -> None:
    del show.measured[b"b"]


def change_a_result(show: Show) -> None:
    show.measured[b"b"] = Measured(b"c" * 32, 10, 2)


def keep_one_pending(show: Show) -> None:
    show.producers["producer-1"].ledger = Ledger(accepted=3, processed=2, pending=1, in_flight=1)


def unbalance(show: Show) -> None:
    show.producers["producer-1"].ledger = Ledger(accepted=3, processed=2)


def bury_another(show: Show) -> None:
    show.letters.append({**show.letters[0], "name": b"a"})


def bury_nothing(show: Show) -> None:
    show.letters.clear()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lose_a_result, "the totals differ"),
        (change_a_result, "the totals differ from those of one process, in 1 files: b;"),
        (lose_a_result, "not the same number"),
        (keep_one_pending, "are pending"),
        (unbalance, "not balanced"),
        (bury_another, "dead letters are not"),
        (bury_nothing, "dead letters are not"),
    ],
)
def test_what_does_not_add_up_is_said(spoil: Callable[[Show], None], problem: str) -> None:
    show = good_show()
    spoil(show)
    assert any(problem in each for each in outcome_of(show).problems)


def test_a_dead_letter_is_told_once_and_at_once() -> None:
    show = Show(total=0)
    show.producers = {"producer-1": Producer("producer-1", 200)}
    letter = {"id": "x", "name": b"poison", "reason": "attempts", "error": "no", "attempts": []}
    body = {"producer": "producer-1", "final": False, "ledger": Ledger(accepted=1, dead=1)._asdict()}
    show.add_report({**body, "letters": [letter]}, 1.0)
    assert [note.text for note in show.notes] == ["dead letter poison: 0 attempts, no"]
    show.add_report({**body, "final": True, "letters": [letter]}, 2.0)
    assert len(show.letters) == len(show.notes) == 1


def test_a_late_report_does_not_replace_the_last_ledger() -> None:
    show = good_show()
    late = {"producer": "producer-1", "final": False, "ledger": Ledger(accepted=3, pending=3)._asdict(), "letters": []}
    show.add_report(late, 4.0)
    assert show.finished and show.ledger.processed == 2


def test_the_picture_shows_every_process_and_what_happened() -> None:
    console = Console(width=110, record=True, file=open(os.devnull, "w"))
    with console.file:
        console.print(draw_picture(good_show(), 3.0))
    text = console.export_text()
    for shown in ("worker-1", "100", "killed", "worker-2", "producer-1", "2 of 2 files", "the mesh sees worker-1 gone"):
        assert shown in text


def test_plain_lines_come_once_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(Console())
    show = Show(total=5)
    show.producers = {"producer-1": Producer("producer-1", 200)}
    for tenth in range(25):
        view.draw(show, tenth / 10)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1.00", "2.00"]
