"""Who has won: the rule that decides whether cells are worth building.

Arms are compared seed by seed: with one seed they begin with the same student and the same
problems. One is better *beyond the spread* if the lower end of the 95% interval of its mean
advantage over the seeds (one-sided, Student's t) is above 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.cells.distil import Outcome

# What the product does, or can do, without cells.
RIVALS = ("masked", "masked_chunks", "coarse", "coarse_chunks", "extra_rows")
CELLS = ("cells_alone", "cells_residual", "cells_path")
# Student's t by the number of seeds.
T_95 = {2: 6.314, 3: 2.920, 4: 2.353, 5: 2.132, 6: 2.015, 7: 1.943, 8: 1.895}


def beyond(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the values are greater than the others, seed by seed, beyond the spread."""
    advantages = [one - other for one, other in zip(values, others, strict=True)]
    count = len(advantages)
    error = statistics.stdev(advantages) / count**0.5
    return statistics.mean(advantages) > T_95[count] * error


def wins(cells: Sequence[Outcome], rival: Sequence[Outcome]) -> bool:
    """Better beyond the spread in accuracy, and not worse beyond it in bits per byte; both
    by seed, in the same order."""
    better = beyond([one.accuracy for one in cells], [one.accuracy for one in rival])
    worse = beyond([one.bits_per_byte for one in cells], [one.bits_per_byte for one in rival])
    return better and not worse


def verdict(by_arm: Mapping[str, Sequence[Outcome]]) -> dict[str, dict[str, bool]]:
    """For each form of cells, which rivals it wins against. It is worth building if it wins
    against all of them."""
    return {
        name: {rival: wins(by_arm[name], by_arm[rival]) for rival in RIVALS if rival in by_arm}
        for name in CELLS
        if name in by_arm
    }
