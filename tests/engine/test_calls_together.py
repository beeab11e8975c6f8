"""The caller's table: streams of items, and anything in any order."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshmsg.engine.calls import Call
from meshmsg.errors import (
    MeshError,
    ProtocolError,
    RequestError,
)
from meshmsg.options import Retry
from meshmsg.wire import items
from tests.engine.caller_desk import NO_JITTER, CallerDesk

pytestmark = pytest.mark.guarantee("G8")


# -- streams -------------------------------------------------------------------------------------------------


def test_a_stream_of_items() -> None:
    desk = CallerDesk("b")
    call, _, number = desk.ask(down=True)
    assert call.down is not None
    desk.calls.on_items("b.1", number, list(range(16)), 2**22)
    desk.said.clear()
    for place in range(7):
        assert call.down.take() == place
        desk.calls.grant(call)
    assert not desk.said, "not worth a word yet"
    assert call.down.take() == 7
    desk.calls.grant(call)
    assert [item for _, item, _ in desk.said] == [[items.CREDIT, number, 24, 8]]
    desk.calls.on_end("b.1", number, desk.now)
    desk.turn()
    assert call.down.ended and call.down.fault is None
    assert desk.outcome(call) is None
    assert desk.at_rest()


def test_more_items_than_there_is_credit_for() -> None:
    desk = CallerDesk("b")
    _, _, number = desk.ask(down=True)
    with pytest.raises(ProtocolError):
        desk.calls.on_items("b.1", number, list(range(17)), 17)


@pytest.mark.parametrize("how", ["fault", "loss", "deadline"])
def test_a_stream_ends_with_what_ended_it(how: str) -> None:
    desk = CallerDesk("b")
    call, _, number = desk.ask(down=True, up=True, timeout=5.0)
    assert call.down is not None and call.up is not None
    desk.calls.on_items("b.1", number, [1, 2], 2)
    if how == "fault":
        desk.fail("b", number, "error")
    elif how == "loss":
        desk.lose("b")
    else:
        desk.turn(5.0)
    with pytest.raises(RequestError) as caught:
        desk.outcome(call)
    assert call.down.fault is caught.value
    assert call.down.take_all() == [1, 2], "what came before can be had"
    assert call.up.cut is not None
    assert desk.at_rest()


# -- anything ------------------------------------------------------------------------------------------------


class Weather:
    """Callers and servers that do anything; each call that is not cancelled has one outcome, and nothing stays."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.desk = CallerDesk("b", "c", seed=seed)
        self.open: list[tuple[str, int]] = []
        self.runs: dict[bytes, int] = {}
        self.bodies: dict[tuple[str, int], bytes] = {}
        self.never_ran: dict[bytes, int] = {}  # how often somebody said so
        self.cancelled: set[Call] = set()

    def step(self) -> None:
        chance, desk = self.random, self.desk
        kind = chance.randrange(10)
        if kind < 3:
            for _ in range(chance.choice((1, 1, 4))):
                desk.call(
                    repeatable=chance.random() < 0.7,
                    timeout=chance.choice((None, 0.2, 5.0)),
                    hedge_after=chance.choice((None, 0.0, 0.1)),
                    body=b"%d" % len(desk.made),
                    retry=chance.choice((Retry(1), NO_JITTER)),
                    down=chance.random() < 0.1,
                    key=chance.choice((None, None, "k")),
                    peer=chance.choice((None, None, None, "b")),
                )
        elif kind == 3 and desk.made:
            call = chance.choice(desk.made)
            if not call.done:
                self.cancelled.add(call)
            desk.calls.cancel(call)
        elif kind == 4:
            name = chance.choice("bcd")
            chance.choice((desk.lose, desk.offer, self.doubt))(name)
        elif kind < 8 and self.open:
            self.answer(*self.open.pop(chance.randrange(len(self.open))))
        else:
            desk.turn(chance.choice((0.0, 0.05, 0.3)))
        if chance.random() < 0.5:
            desk.turn()
        self.look()

    def doubt(self, name: str) -> None:
        self.desk.offer(name, alive=False, suspect=True)

    def answer(self, name: str, number: int) -> None:
        chance = self.random
        code = chance.choice(("error", "unavailable", "overloaded", "no_responders"))
        if chance.random() < 0.6:
            self.desk.reply(name, number)
        else:
            never_ran = chance.random() < 0.3 and code != "error"
            body = self.bodies[name, number]
            self.never_ran[body] = self.never_ran.get(body, 0) + never_ran
            self.desk.fail(name, number, code, never_ran=never_ran)

    def look(self) -> None:
        for name, item, bodies in self.desk.said:
            if item[0] == items.CALL:
                attempts = [(name, item[1] + place) for place in range(item[2])]
                self.open += attempts
                self.bodies.update(zip(attempts, bodies, strict=True))
                for body in bodies:
                    self.runs[body] = self.runs.get(body, 0) + 1
        self.desk.said.clear()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 120))
def test_whatever_happens_each_call_has_one_outcome_and_nothing_stays(seed: int, steps: int) -> None:
    weather = Weather(seed)
    desk = weather.desk
    for _ in range(steps):
        weather.step()
    desk.turn()
    weather.look()
    for name in "bcd":  # the end of all who could answer
        desk.lose(name)
    for _ in range(10):
        desk.turn(2.0)
        weather.look()
    for call in desk.made:
        found: list[tuple[Any, MeshError | None]] = desk.outcomes.get(call, [])
        assert len(found) == (call not in weather.cancelled), "an outcome too many, or none"
        assert weather.runs.get(call.body, 0) <= 6
        assert call.repeatable or weather.runs.get(call.body, 0) <= 1 + weather.never_ran.get(call.body, 0)
    assert desk.at_rest()
