"""The parts of the patterns that people copy first, without processes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshmsg import Batch, Reject
from meshmsg.testing import make_message
from tests.patterns.programs import PATTERNS, load

batch_consumer = load(PATTERNS / "batch_consumer.py")
pipeline = load(PATTERNS / "pipeline.py")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    database = batch_consumer.connect(str(tmp_path / "readings.db"))
    yield database
    database.close()


def stored(database: sqlite3.Connection) -> list[str]:
    return [row[0] for row in database.execute("SELECT id FROM readings ORDER BY id")]


GOOD = {"sensor": "attic", "celsius": 21.5}


@pytest.mark.guarantee("G4")
@pytest.mark.parametrize(
    "bad",
    [
        *({"sensor": "attic", "celsius": celsius} for celsius in (999, "warm", None, [])),
        *({"sensor": sensor, "celsius": 1} for sensor in (None, 5, [], {"a": 1})),
        *({"celsius": 1}, {"sensor": "attic"}, {}, None, "text", 7),
    ],
    ids=repr,
)
def test_a_bad_row_costs_its_neighbours_nothing(database: sqlite3.Connection, bad: object) -> None:
    bodies = [GOOD, bad, GOOD]
    messages = [make_message(body, number=number) for number, body in enumerate(bodies)]
    with Batch(list(messages)) as batch:
        batch_consumer.store(database, batch)
    kinds = [message.verdict and message.verdict.kind for message in messages]
    assert kinds == ["acked", "rejected", "acked"]
    assert not database.in_transaction  # it was committed, and before the acks
    assert stored(database) == [messages[0].id, messages[2].id]


@pytest.mark.guarantee("G2")
def test_a_batch_that_comes_again_changes_nothing(database: sqlite3.Connection) -> None:
    for number in (1, 2):
        messages = [make_message(GOOD, number=each, attempt=number) for each in range(5)]
        with Batch(list(messages)) as batch:
            batch_consumer.store(database, batch)
        assert all(message.verdict and message.verdict.kind == "acked" for message in messages)
        assert len(stored(database)) == 5


def test_a_batch_without_a_database_is_tried_again(database: sqlite3.Connection) -> None:
    database.execute("DROP TABLE readings")
    message = make_message(GOOD)
    with pytest.raises(sqlite3.OperationalError), Batch([message]) as batch:
        batch_consumer.store(database, batch)
    assert message.verdict is not None and message.verdict.kind == "nacked"


@pytest.mark.parametrize("line", ["", "apples", "3", "3 ", "three apples", "-1 apples", "\u00b2 apples", "3  apples"])
def test_pipeline_refuses_what_is_no_order(line: str) -> None:
    with pytest.raises(Reject):
        pipeline.price(make_message(pipeline.parse(make_message(line))))


def test_pipeline_prices_what_it_parsed() -> None:
    assert pipeline.price(make_message(pipeline.parse(make_message("3 pears"))))["cents"] == 165
