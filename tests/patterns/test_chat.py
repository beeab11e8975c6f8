"""The chat: what is said reaches everybody, also those who come later; what is told reaches one; deaths are noticed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.patterns.programs import DEADLINE_S, ROOT

PROGRAM = ROOT / "examples" / "chat.py"


class Person:
    """Somebody who chats: a process, its input, and what it has shown."""

    def __init__(self, name: str, mesh: str, *options: str) -> None:
        command = [sys.executable, str(PROGRAM), name, "--mesh", mesh, *options]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        self.shown: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.shown.append(line.rstrip("\n"))
                self._news.notify_all()

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def sees(self, text: str) -> None:
        """Waits until a line holds this text."""
        with self._news:
            found = self._news.wait_for(lambda: any(text in line for line in self.shown), DEADLINE_S)
        assert found, f"no {text!r} in {self.shown}"

    def end(self) -> int:
        """What it ends with, once it has ended by itself and all that it said is read."""
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return code


Join = Callable[..., Person]


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Join]:
    """Has people join a mesh of this test, and ends them with it."""
    people: list[Person] = []

    def join(name: str, *options: str) -> Person:
        people.append(Person(name, f"chat-{os.getpid()}-{tmp_path.name}", *options))
        return people[-1]

    yield join
    for person in people:
        person.process.kill()
        person.end()
        assert person.process.stdin is not None and person.process.stdout is not None
        person.process.stdin.close()
        person.process.stdout.close()


@pytest.mark.guarantee("G6")
def test_who_comes_later_sees_what_was_said_and_who_is_there(join: Join) -> None:
    ada, grace = join("ada"), join("grace")
    ada.sees("* grace is here")
    for number in range(20):
        ada.type(f"line {number}")
    grace.sees("ada: line 19")
    edsger = join("edsger")
    edsger.sees("ada: line 19")
    for person in (grace, edsger):
        said = [line.partition("ada: ")[2] for line in person.shown if "ada: " in line]
        assert said == [f"line {number}" for number in range(20)]
    edsger.sees("* grace is here")
    edsger.type("/who")
    edsger.sees("* here: ada, edsger, grace")
    assert not any("line" in line for line in ada.shown), "nobody needs an echo"


@pytest.mark.guarantee("G1")
def test_what_is_told_to_one_is_seen_by_that_one(join: Join) -> None:
    ada = join("ada")
    ada.type("/tell nobody hello")  # this waits for three seconds, while the others come
    grace, edsger = join("grace"), join("edsger")
    ada.sees("* grace is here")
    ada.sees("* edsger is here")
    ada.sees("* nobody called 'nobody' has seen it")
    ada.type("/tell grace psst")
    grace.sees("ada tells you: psst")
    ada.sees("* grace has seen it")
    edsger.type("/quit")
    assert edsger.end() == 0
    assert not any("psst" in line for line in edsger.shown)


@pytest.mark.guarantee("G6")
def test_leaving_and_dying_look_different(join: Join) -> None:
    ada, grace, edsger = join("ada"), join("grace"), join("edsger")
    ada.sees("* grace is here")
    ada.sees("* edsger is here")
    grace.type("/quit")
    ada.sees("* grace has left")
    edsger.process.kill()
    ada.sees("* edsger is gone")
    ada.type("/who")
    ada.sees("* here: ada")
    assert "* here: ada" in ada.shown
    assert "* grace is gone" not in ada.shown


def test_rooms_are_apart_and_odd_text_is_harmless(join: Join) -> None:
    ada, grace, edsger = join("ada"), join("grace", "--room", "music"), join("edsger", "--room", "music")
    grace.sees("* edsger is here")
    ada.type("hello lobby")
    grace.type("a\x1b[2Jb ünïcödé")
    edsger.sees("grace: a?[2Jb ünïcödé")
    assert not any("lobby" in line for line in edsger.shown + grace.shown)
    wrong = join("edsger", "--room", "no..room")
    wrong.sees("it has an empty segment")
    assert wrong.end() == 1
