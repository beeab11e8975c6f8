"""What must hold at the end of every test, whatever was killed, frozen or cut on the way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tests.processes.crew import Entry, Journal, Member


def check_outcomes(
    journal: Journal, producers: Mapping[Member, Iterable[str]], *, max_attempts: int = 5, hostile: bool = False
) -> None:
    """Every accepted message is processed or dead, and the ledgers say so (G1, G4).

    ``producers`` are those that live, with the ids of what they accepted; nothing is pending any more. Unless a test
    is ``hostile``, all who spoke kept to the protocol.
    """
    finished = journal.ids("finish")
    for producer, accepted in producers.items():
        refused = [event for member in producer.crew.members for event in member.events("frame.refused")]
        assert hostile or not refused, refused
        ids = set(accepted)
        ledger = producer.ask("ledger")
        letters = producer.ask("dead")["letters"]
        dead = {letter["id"] for letter in letters}
        assert ledger["balanced"], ledger
        assert (ledger["accepted"], ledger["pending"]) == (len(ids), 0), ledger
        assert ledger["dead"] == len(dead) and dead <= ids, (ledger, letters)
        lost = ids - finished - dead
        assert not lost, f"{len(lost)} of {len(ids)} messages were lost, such as {sorted(lost)[:5]}; {ledger}"
        for letter in letters:
            if letter["reason"] == "attempts":
                assert len(letter["verdicts"]) == max_attempts, letter
    check_deliveries(journal, max_attempts=max_attempts)


def check_deliveries(journal: Journal, *, max_attempts: int = 5) -> None:
    """No delivery was seen twice, and a second one says that it is (G2, G4)."""
    starts: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in journal.of("start"):
        starts[entry.id].append(entry)
    for entries in starts.values():
        first_ones = [entry for entry in entries if not entry.redelivered]
        assert len(first_ones) <= 1, f"delivered twice without a word: {entries}"
        attempts = [entry.attempt for entry in entries]
        assert max(attempts) <= max_attempts, f"more than {max_attempts} attempts: {entries}"
        assert len(set(attempts)) == len(attempts), f"an attempt was made twice: {entries}"
        for entry in entries:
            assert entry.redelivered or entry.attempt == 1, f"a second attempt without a word: {entry}"


def accepted_ids(*answers: dict[str, Any]) -> list[str]:
    """The ids in the answers to several ``send`` or ``load`` commands."""
    return [message_id for answer in answers for message_id in answer["ids"]]
