"""The patterns of requests, each as a real mesh of processes, undisturbed and with its failure."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.patterns.programs import run_pattern

FAILURE = pytest.mark.parametrize("failure", ["", "--fail"])
# Most of a pattern happens with its failure, too; three of them are not run without.
ONLY_FAILURE = pytest.mark.parametrize("failure", ["--fail"])


def find_all(pattern: str, output: str) -> list[tuple[str, ...]]:
    """What a pattern with groups finds in an output, line by line."""
    return [match.groups() for match in re.finditer(pattern, output, re.MULTILINE)]


@pytest.mark.guarantee("G8")
@FAILURE
def test_request_reply_stores_every_deposit_once_although_a_provider_is_killed(failure: str) -> None:
    output = run_pattern("request_reply.py", *failure.split())
    ((deposits, known, balance),) = find_all(
        r"^(\d+) deposits answered, (\d+) of them known already; balance (\d+)", output
    )
    assert (deposits, balance) == ("200", "20000")
    assert (int(known) >= 1) is bool(failure)  # stored, and not answered, before the provider died
    # What is not idempotent ran once at most, and its caller knows that it does not know.
    taken = find_all(r"^provider-\d is gone, so nobody says whether the fee is taken; it is: (\d+) cents", output)
    assert taken == ([("5",)] if failure else [])
    assert ("the fee is taken" in output.splitlines()) is not bool(failure)


@pytest.mark.guarantee("G5", "G8")
@ONLY_FAILURE
def test_streaming_brings_every_row_once_although_the_server_is_killed(failure: str) -> None:
    output = run_pattern("streaming.py", *failure.split())
    assert "20000 rows, each once and in order" in output
    gone = find_all(r"^server-\d is gone after (\d+) rows; going on at row (\d+)", output)
    assert len(gone) == bool(failure)
    for seen, next_row in gone:
        assert seen == next_row and int(seen) <= 5000
    ((made,),) = find_all(r"^stopped reading after 100 rows; server-\d made (\d+) of 20000", output)
    assert 100 <= int(made) <= 100 + 2 * 256
    assert "stored {'count': 20000, 'total': 199990000}" in output
    assert f"halves {list(range(10))}" in output


@pytest.mark.guarantee("G8")
@ONLY_FAILURE
def test_scatter_gather_says_what_is_in_an_answer_and_what_is_missing(failure: str) -> None:
    output = run_pattern("scatter_gather.py", *failure.split())
    paths = sorted(Path(ast.__file__).parent.glob("*.py"))[:60]
    lost = [path for index, path in enumerate(paths) if index % 5 in (1, 3)] if failure else []
    for word, read, missing in (
        ("return", paths, []),
        ("class", paths, []),
        ("yield", [path for path in paths if path not in lost], [1, 3] if failure else []),
    ):
        count = sum(path.read_text(encoding="utf-8", errors="replace").count(word) for path in read)
        assert f"{word}: {count} in {len(read)} files; missing parts: {missing}" in output
    excuses = find_all(r"^  (shard-\d): (\w+)", output)
    assert sorted(excuses) == ([("shard-1", "PeerLost"), ("shard-3", "DeadlineExceeded")] if failure else [])
    assert ("shard-3 called off 1 question" in output) is bool(failure)


@pytest.mark.guarantee("G8")
@FAILURE
def test_hedged_requests_are_all_answered_although_a_provider_is_frozen(failure: str) -> None:
    output = run_pattern("hedged_requests.py", *failure.split())
    runs = {
        title: (int(answers), int(began), int(stopped))
        for title, answers, began, stopped in find_all(
            r"^(\w+): (\d+) answers, .* so far (\d+) began, (\d+) called off", output
        )
    }
    assert runs["plain"] == (300, 300, 0)
    answers, began, stopped = runs["hedged"]
    assert answers == 300
    if not failure:
        # Who began in vain was called off. How often that was is bounded: a fifth, and ten a second for ten seconds.
        assert 1 <= stopped <= began - 600 <= 60 + 100
    assert ("freezing provider-1" in output) is bool(failure)


@pytest.mark.guarantee("G8")
@ONLY_FAILURE
def test_majordomo_answers_everything_although_a_worker_is_killed(failure: str) -> None:
    output = run_pattern("majordomo.py", *failure.split())
    assert output.startswith("no_responders: nobody offers 'echo'")
    assert "offered: {'arithmetic': 1, 'echo': 3}" in output
    assert "300 replies, as asked" in output
    workers = ["worker-1", "worker-3"] if failure else ["worker-1", "worker-2", "worker-3"]
    assert f"served by {', '.join(workers)}\n" in output
    assert "worker-4: ZeroDivisionError: float division by zero" in output
