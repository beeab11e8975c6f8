"""Callers and workers that do anything, in any order: each call has one outcome, and nothing stays."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmsg.engine.served import Served
from meshmsg.wire import items
from tests.engine.service_desk import PLAIN, Desk

pytestmark = pytest.mark.guarantee("G8")


class Weather:
    """Callers and workers that do anything, and the books of what each call came to."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.desk = Desk(concurrency=self.random.randint(1, 4), max_queue=self.random.randint(0, 6))
        self.running: list[Served] = []
        self.began: dict[tuple[str, int], int] = {}
        self.answers: dict[tuple[str, int], int] = {}
        self.pending: set[tuple[str, int]] = set()  # what the callers wait for
        self.incarnation = {"a": 1, "b": 1}

    def run(self, steps: int) -> None:
        doings = [self.call, self.call, self.work, self.work, self.answer, self.answer, self.cancel, self.wait]
        for _ in range(steps):
            self.random.choice([*doings, self.lose] if self.random.random() < 0.3 else doings)()
            self.desk.serving.check()
            assert len(self.desk.math.queue) < 200
            if self.random.random() < 0.3:
                self.listen()

    def peer(self) -> str:
        name = self.random.choice("ab")
        return f"{name}.{self.incarnation[name]}"

    def call(self) -> None:
        peer, count = self.peer(), self.random.randint(1, 5)
        bodies = [self.random.choice([PLAIN, PLAIN, PLAIN, None]) for _ in range(count)]
        flags = self.random.choice([0, 0, 1, 2, 3])
        window = self.random.randint(0, 3) if flags & items.WANTS_ITEMS else 0
        remaining = self.random.choice([None, 0.0, 0.5, 3.0])
        service = self.random.choice(["math", "math", "math", "gone"])
        first = self.desk.call(*bodies, peer=peer, service=service, remaining=remaining, flags=flags, window=window)
        self.pending.update((peer, number) for number in range(first, first + count))

    def work(self) -> None:
        served = self.desk.math.take(self.desk.now)
        if served is not None:
            key = served.peer, served.number
            self.began[key] = self.began.get(key, 0) + 1
            assert key in self.pending, "something ran that nobody waits for"
            self.running.append(served)

    def answer(self) -> None:
        if not self.running:
            return
        served = self.random.choice(self.running)
        serving = self.desk.serving
        kind = self.random.randrange(4)
        if kind == 0 and served.out is not None:
            serving.send_items(served, [b"\x01"] * served.out.room)
            return
        if kind == 1:
            serving.fail(served, "error", "E", "x")
        elif served.flags & items.WANTS_ITEMS:
            serving.end(served)
        else:
            serving.reply(served, b"\x01")
        if self.random.random() < 0.7:  # else it says something again later
            self.running.remove(served)

    def cancel(self) -> None:
        if self.pending:
            key = self.random.choice(sorted(self.pending))
            self.listen()
            if key in self.pending:
                self.pending.remove(key)
                self.desk.serving.on_cancel(key[0], [key[1]])

    def lose(self) -> None:
        name = self.random.choice("ab")
        key = f"{name}.{self.incarnation[name]}"
        self.incarnation[name] += 1
        self.desk.serving.on_peer_gone(key)
        self.pending = {each for each in self.pending if each[0] != key}

    def wait(self) -> None:
        self.desk.pass_time(self.random.random())

    def listen(self) -> None:
        for peer, (told, bodies) in self.desk.serving.take_output().items():
            assert items.check_items(told) == len(bodies)
            for item in told:
                if item[0] in (items.RESULT, items.FAULT, items.END):
                    for number in item[1] if item[0] == items.RESULT else [item[1]]:
                        self.pending.remove((peer, number))  # a KeyError: answered twice, or after the cancel


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 150))
def test_whatever_happens_each_call_has_one_outcome_and_nothing_stays(seed: int, steps: int) -> None:
    weather = Weather(seed)
    weather.run(steps)
    desk = weather.desk
    while weather.running or desk.math.waiting:
        weather.work()
        weather.answer()
    weather.listen()
    assert not weather.pending, "calls without an outcome"
    assert set(weather.began.values()) <= {1}, "a call ran twice"
    assert desk.at_rest()
