"""Who has won: the rule that decides whether cells are worth building."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cells.distil import Outcome

# What the product does, or can do, without cells.
RIVALS = ("masked", "masked_chunks", "coarse", "coarse_chunks")
CELLS = ("cells_residual", "cells_path")


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.mean(values), statistics.stdev(values))

    def beyond(self, other: Spread) -> bool:
        """Whether this mean is above the other by more than both deviations together."""
        return self.mean - other.mean > self.deviation + other.deviation

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.deviation:.3f}"


@dataclass(frozen=True)
class Summary:
    accuracy: Spread
    on_the_way: Spread
    bits_per_byte: Spread
    exact_kl: Spread

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Summary:
        return cls(
            Spread.of([one.accuracy for one in outcomes]),
            Spread.of([statistics.mean(one.curve) for one in outcomes]),
            Spread.of([one.bits_per_byte for one in outcomes]),
            Spread.of([one.exact_kl for one in outcomes]),
        )


def wins(cells: Summary, rival: Summary) -> bool:
    """Better beyond the spread in accuracy, and not worse beyond it in bits per byte."""
    worse = cells.bits_per_byte.beyond(rival.bits_per_byte)
    return cells.accuracy.beyond(rival.accuracy) and not worse


def verdict(summaries: Mapping[str, Summary]) -> dict[str, bool]:
    """For each form of cells whether it wins against every rival that was run."""
    rivals = [summaries[name] for name in RIVALS if name in summaries]
    return {
        name: all(wins(summaries[name], rival) for rival in rivals)
        for name in CELLS
        if name in summaries
    }
