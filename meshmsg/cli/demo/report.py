"""The end of the demo: the ledger, the dead letters, and whether the totals are right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshmsg.cli.demo.files import Totals
from meshmsg.cli.demo.show import Outcome

INDENT = " " * 13


def describe(outcome: Outcome) -> list[str]:
    """For people, line by line."""
    return [*_ledger(outcome), *_letters(outcome), *_killed(outcome), *_totals(outcome), "", *_verdict(outcome)]


def _ledger(outcome: Outcome) -> Iterator[str]:
    books = outcome.show.ledger
    balanced = "balanced" if books.balanced else "NOT BALANCED"
    yield (
        f"ledger       accepted {books.accepted} = processed {books.processed} + dead {books.dead}"
        f" + pending {books.pending}: {balanced}; {books.redelivered} redeliveries"
    )


def _letters(outcome: Outcome) -> Iterator[str]:
    for letter in outcome.show.letters:
        name = letter["name"].decode(errors="replace")
        what = "no file, but a task the demo added" if letter["name"] == outcome.poison else "could not be read"
        yield f"dead letter  {name} ({what}); reason: {letter['reason']}"
        for number, (consumer, verdict, error) in enumerate(letter["attempts"], 1):
            yield f"{INDENT}attempt {number} at {consumer}: {verdict}, {error}"


def _killed(outcome: Outcome) -> Iterator[str]:
    kill = outcome.show.kill
    if kill is None:
        yield "killed       nobody"
        return
    noticed = "not noticed" if kill.noticed_after_ms is None else f"noticed after {kill.noticed_after_ms:.0f} ms"
    again = "none of its files came again"
    if kill.recovered_after_ms is not None:
        again = f"{kill.redelivered} files done by others, the first {kill.recovered_after_ms:.0f} ms after the kill"
    yield f"killed       {kill.worker} (pid {kill.pid}) at {kill.at_s:.2f} s: {noticed}; {again}"
    twice = outcome.show.twice
    names = ", ".join(name.decode(errors="replace") for name in twice[:3])
    yield (
        f"done twice   {len(twice)} ({names}): its result had arrived, its ack had not. At-least-once; "
        "the message id tells"
        if twice
        else "done twice   none"
    )


def _totals(outcome: Outcome) -> Iterator[str]:
    yield f"{'totals':<13}{'files':>8}{'bytes':>14}{'words':>12}  checksum"
    for label, totals in (("  the mesh", outcome.mesh_totals), ("  one process", outcome.alone_totals)):
        yield f"{label:<13}{totals.files:>8}{totals.size:>14}{totals.words:>12}  {totals.checksum[:32]}"


def _verdict(outcome: Outcome) -> Iterator[str]:
    problems = outcome.problems
    if problems:
        yield from (f"WRONG: {problem}" for problem in problems)
    else:
        yield f"The totals match, and every message is accounted for. {outcome.seconds:.1f} s."


def as_document(outcome: Outcome) -> dict[str, Any]:
    """The same for ``--json``."""
    show = outcome.show
    kill = show.kill
    return {
        "ok": not outcome.problems,
        "problems": outcome.problems,
        "seconds": round(outcome.seconds, 3),
        "ledger": {**show.ledger._asdict(), "balanced": show.ledger.balanced},
        "dead_letters": [
            {
                "id": letter["id"],
                "name": letter["name"].decode(errors="replace"),
                "reason": letter["reason"],
                "error": letter["error"],
                "attempts": [
                    {"consumer": consumer, "verdict": verdict, "error": error}
                    for consumer, verdict, error in letter["attempts"]
                ],
            }
            for letter in show.letters
        ],
        "killed": None
        if kill is None
        else {
            "worker": kill.worker,
            "pid": kill.pid,
            "at_s": kill.at_s,
            "noticed_after_ms": kill.noticed_after_ms,
            "redelivered": kill.redelivered,
            "recovered_after_ms": kill.recovered_after_ms,
        },
        "done_twice": [name.decode(errors="replace") for name in show.twice],
        "workers": [
            {"name": each.name, "pid": each.pid, "state": each.state, "done": each.done, "failed": each.failed}
            for each in show.workers.values()
        ],
        "totals": {"mesh": _as_dict(outcome.mesh_totals), "one_process": _as_dict(outcome.alone_totals)},
    }


def _as_dict(totals: Totals) -> dict[str, Any]:
    return {"files": totals.files, "bytes": totals.size, "words": totals.words, "checksum": totals.checksum}
