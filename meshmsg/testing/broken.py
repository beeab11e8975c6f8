"""What the cluster's books raise."""

from __future__ import annotations


class GuaranteeBroken(AssertionError):
    """A promise of ``docs/guarantees.md`` did not hold; ``number`` says which, as ``"G2"``."""

    def __init__(self, number: str, text: str) -> None:
        super().__init__(f"{number}: {text}")
        self.number = number
