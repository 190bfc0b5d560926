"""Whether the student leaves the support while its loss falls: a loss that is renormalised on the
support does not see the mass outside, and can fall while the student learns nothing. Runs of other
losses are not judged (``Loss.renormalised``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEYS = ("loss", "student_support_mass", "teacher_support_mass")
# In the lines of a policy gradient, whose loss is no divergence and says nothing when it falls.
POLICY = "advantage"


@dataclass(frozen=True)
class LeavingRule:
    """When it is said, of the first and the last ``window`` of the steps.

    Attributes:
        least_steps: fewer steps that have all values are not judged.
        window: share of the steps.
        loss: the recent loss is at most this part of the early one.
        outside: the student's recent mass outside the support is at least so many times its early
            one, and more than the teacher's.
        errors: it has risen by more than so many of its standard errors, which the spread of the
            steps in both windows gives. As many as this because a run is judged after every step,
            and because the error is that of independent steps: neighbours are alike in a run.
    """

    least_steps: int = 40
    window: float = 0.25
    loss: float = 0.9
    outside: float = 1.1
    errors: float = 7.0


RULE = LeavingRule()


def advice(*, own_ids: bool) -> str:
    """What mends it in a run of a renormalised loss, as a sentence without its end.

    Args:
        own_ids: whether the support holds the student's own likeliest ids.
    """
    union = "" if own_ids else 'loss.support = "union", '
    return (
        "a loss that is renormalised on the support does not see the mass outside: set "
        f'loss.tail = "bucket" (with the teacher\'s tokenizer), {union}or a larger loss.top_k'
    )


@dataclass(frozen=True)
class Leaving:
    """Means over the early and the recent steps.

    Attributes:
        steps: how many each of both is.
        early_loss, recent_loss: nats.
        early_mass, recent_mass: the student's mass on the support.
        teacher_mass: the teacher's, recently.
    """

    steps: int
    early_loss: float
    recent_loss: float
    early_mass: float
    recent_mass: float
    teacher_mass: float

    def __str__(self) -> str:
        """As a sentence without its end."""
        return (
            f"the student's mass outside the support has risen from {1 - self.early_mass:.2%} to "
            f"{1 - self.recent_mass:.2%} (the teacher's is {1 - self.teacher_mass:.2%}) while the "
            f"loss fell from {self.early_loss:.3g} to "
            f"{self.recent_loss:.3g} nats (means of the first and of the last {self.steps} steps)"
        )


def leaving_support(lines: Sequence[Mapping[str, Any]], rule: LeavingRule = RULE) -> Leaving | None:
    """What the steps so far show; None where the student does not leave the support by ``rule``,
    or where that cannot be told: too few steps, no mass measured, or a policy gradient.

    Args:
        lines: of metrics.jsonl, in order, of a run whose loss is renormalised.
    """
    sums = _Sums()
    for line in lines:
        sums.add(line)
    return sums.judged(rule)


class SupportWatch:
    """Tells once in a run when the student leaves the support while the loss falls."""

    def __init__(self, *, renormalised: bool, rule: LeavingRule = RULE) -> None:
        """
        Args:
            renormalised: whether the run's loss is; of another, nothing is told.
        """
        self._rule = rule
        self._sums = _Sums()
        self._silent = not renormalised

    def add(self, line: Mapping[str, Any]) -> Leaving | None:
        """Adds the metrics of a step; what is to be told now, or None."""
        if self._silent or not self._sums.add(line):
            return None
        found = self._sums.judged(self._rule)
        self._silent = found is not None
        return found


class _Sums:
    """Running sums over the steps that have all of ``KEYS``, so that the mean of any stretch of
    steps costs the same whatever its length."""

    def __init__(self) -> None:
        # Of n steps at place n: loss, the student's mass, its square, the teacher's mass. The
        # student's is counted from that of the first step, so that squares lose no digits.
        self._sums = [(0.0, 0.0, 0.0, 0.0)]
        self._origin = 0.0

    def add(self, line: Mapping[str, Any]) -> bool:
        """Adds a step; False where it lacks a value, or says nothing by them."""
        values = [line.get(key) for key in KEYS]
        if POLICY in line or not all(v is not None and math.isfinite(v) for v in values):
            return False
        loss, own, teacher = (float(line[key]) for key in KEYS)
        if len(self._sums) == 1:
            self._origin = own
        moved = own - self._origin
        step = (loss, moved, moved**2, teacher)
        a, b, c, d = self._sums[-1]
        self._sums.append((a + step[0], b + step[1], c + step[2], d + step[3]))
        return True

    def judged(self, rule: LeavingRule) -> Leaving | None:
        """What the steps so far show by ``rule``."""
        steps = len(self._sums) - 1
        if steps < rule.least_steps:
            return None
        count = max(2, int(steps * rule.window))
        loss, mass, variance, _ = self._over(0, count)
        last_loss, last_mass, last_variance, teacher = self._over(steps - count, steps)
        error = math.sqrt((variance + last_variance) / count)
        falls = loss > 0 and last_loss <= rule.loss * loss
        far = 1 - last_mass >= rule.outside * (1 - mass) and last_mass < teacher
        if not (falls and far and mass - last_mass > rule.errors * error):
            return None
        return Leaving(count, loss, last_loss, mass, last_mass, teacher)

    def _over(self, first: int, after: int) -> tuple[float, float, float, float]:
        """The mean loss, the mean and the variance of the student's mass, and the teacher's mean
        mass, over steps ``first`` to ``after`` - 1; at least two."""
        n = after - first
        loss, own, squares, teacher = (
            b - a for a, b in zip(self._sums[first], self._sums[after], strict=True)
        )
        # Rounding can put the variance of equal steps below 0.
        variance = max(0.0, (squares - own**2 / n) / (n - 1))
        return loss / n, self._origin + own / n, variance, teacher / n
