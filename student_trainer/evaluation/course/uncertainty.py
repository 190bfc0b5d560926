"""How sure a held-out result is: a bootstrap over prompts, always with the same draws.

A bootstrap of prompts that are all right, or all wrong, has no width. There the interval of a
share is the exact one of as many independent prompts (Clopper and Pearson). Other draws without a
width say nothing of how sure a value is. A change that is the same at every prompt is told by a
sign test: it needs ENOUGH prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from student_trainer.evaluation.course.values import PASS_AT, sums_of
from student_trainer.evaluation.results import ByPrompt, Evaluation

DRAWS = 2000
SEED = 20_000
# Of all draws; the rest is outside on both sides alike.
INSIDE = 0.95
# Prompts that all move to one side by chance in less than 1 - INSIDE of all cases, of both sides:
# 2 * 0.5**6 is 0.03.
ENOUGH = 6


@dataclass(frozen=True)
class Interval:
    """The middle 95% of a bootstrap's draws."""

    low: float
    high: float

    @property
    def without_width(self) -> bool:
        """Whether all draws are the same, but for rounding."""
        return math.isclose(self.low, self.high, rel_tol=1e-9, abs_tol=1e-12)


def interval(evaluation: Evaluation, key: str) -> Interval | None:
    """Of a value of ``curve_values``; None where its sums by prompt are not kept, are of a single
    prompt, or are the same for every prompt, but for shares of 0 and 1."""
    found = sums_of(evaluation, key)
    if found is None or len(found[0].prompts) < 2:
        return None
    sums, name = found
    if name.startswith(PASS_AT) and (exact := _exact(sums.sums[name])) is not None:
        return exact
    drawn = _inside(_means(sums, name, range(len(sums.prompts))))
    return None if drawn is None or drawn.without_width else drawn


def _exact(shares: Sequence[float]) -> Interval | None:
    """Of the share of prompts that are right, where all are or none is; None elsewhere."""
    edge = ((1 - INSIDE) / 2) ** (1 / len(shares))
    if all(share == 0 for share in shares):
        return Interval(0.0, 1 - edge)
    return Interval(edge, 1.0) if all(share == 1 for share in shares) else None


def change(before: Evaluation, after: Evaluation, key: str) -> Interval | None:
    """Of ``after`` minus ``before``. Both sides draw the same prompts, so that what makes a prompt
    hard is not in the interval; None where sums by prompt are not kept, and where the prompts that
    both have are a single one, or fewer than ENOUGH that all change by the same."""
    found = _change(before, after, key)
    return None if found is None or found[1] else found[0]


def _change(before: Evaluation, after: Evaluation, key: str) -> tuple[Interval, bool] | None:
    """The change, and whether it is the same at too few prompts to say anything."""
    first, second = sums_of(before, key), sums_of(after, key)
    if first is None or second is None:
        return None
    places = [{prompt: place for place, prompt in enumerate(s[0].prompts)} for s in (first, second)]
    both = [prompt for prompt in places[0] if prompt in places[1]]
    if len(both) < 2:
        return None
    old, new = (
        _means(sums, name, [where[prompt] for prompt in both])
        for (sums, name), where in zip((first, second), places, strict=True)
    )
    moved = _inside(new - old)
    return None if moved is None else (moved, moved.without_width and len(both) < ENOUGH)


def verdict(
    before: Evaluation, after: Evaluation, key: str, better: int
) -> Literal["better", "worse", "unclear", ""]:
    """Whether a value changed for the better: only where 0 is outside the change's interval, and
    there are prompts enough for one.

    Args:
        better: -1 when lower is better, 1 when higher is, 0 when neither: then it is "".
    """
    found = _change(before, after, key) if better else None
    if found is None:
        return ""
    moved, too_few = found
    if too_few or moved.low <= 0 <= moved.high:
        return "unclear"
    return "better" if moved.low * better > 0 else "worse"


def _means(sums: ByPrompt, name: str, places: Any) -> NDArray[np.float64]:
    """float64 [DRAWS]: the mean over prompts that are drawn with replacement. NaN in draws of
    prompts without anything to divide by."""
    chosen = list(places)
    count = len(chosen)
    drawn = np.random.default_rng(SEED).multinomial(count, [1 / count] * count, DRAWS)
    values, counts = np.array(sums.sums[name])[chosen], np.array(sums.counts)[chosen]
    total, divisor = drawn @ values, drawn @ counts
    means: NDArray[np.float64] = np.full(DRAWS, np.nan)
    np.divide(total, divisor, out=means, where=divisor > 0)
    return means


def _inside(draws: NDArray[np.float64]) -> Interval | None:
    known = draws[np.isfinite(draws)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - INSIDE) / 2, (1 + INSIDE) / 2])
    return Interval(float(low), float(high))
