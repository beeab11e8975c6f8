"""What options take that are numbers of seconds, or a rate."""

from __future__ import annotations

import math
from typing import Any

import click

from meshmsg.checks import MAX_NUMBER


class FiniteRange(click.FloatRange):
    """A range of numbers that a clock can reach: neither ``nan``, which is in any range, nor ``inf``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or wrong use."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number) or abs(number) > MAX_NUMBER:
            self.fail(f"{value} is not a number up to {MAX_NUMBER:,}.", param, ctx)
        return number


NOT_NEGATIVE = FiniteRange(min=0)
POSITIVE = FiniteRange(min=0, min_open=True)
