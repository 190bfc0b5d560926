"""Whether the student leaves the support while its loss falls: a loss that is renormalised on the
support does not see the mass outside, and can fall while the student learns nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KEYS = ("loss", "student_support_mass", "teacher_support_mass")
# In the lines of a policy gradient, whose loss is no divergence and says nothing when it falls.
POLICY = "advantage"
Values = tuple[float, float, float]


@dataclass(frozen=True)
class LeavingRule:
    """When it is said, of the first and the last ``window`` of the steps.

    Attributes:
        least_steps: fewer steps that have all values are not judged.
        window: share of the steps.
        loss: the recent loss is at most this part of the early one.
        outside: the student's recent mass outside the support is at least so many times its early
            one, and more than the teacher's.
        errors: it has risen by at least so many of its standard errors, which the spread of the
            steps in both windows gives.
    """

    least_steps: int = 20
    window: float = 0.25
    loss: float = 0.9
    outside: float = 1.1
    errors: float = 3.0


RULE = LeavingRule()
ADVICE = (
    "a loss that is renormalised on the support does not see the mass outside: set "
    'loss.tail = "bucket" or loss.support = "union" where the loss has it, or raise loss.top_k'
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
        lines: of metrics.jsonl, in order.
    """
    return _judged([values for line in lines if (values := _values(line)) is not None], rule)


class SupportWatch:
    """Tells once in a run when the student leaves the support while the loss falls."""

    def __init__(self, rule: LeavingRule = RULE) -> None:
        self._rule = rule
        self._known: list[Values] = []
        self._told = False

    def add(self, line: Mapping[str, Any]) -> Leaving | None:
        """Adds the metrics of a step; what is to be told now, or None."""
        values = _values(line)
        if self._told or values is None:
            return None
        self._known.append(values)
        found = _judged(self._known, self._rule)
        self._told = found is not None
        return found


def _values(line: Mapping[str, Any]) -> Values | None:
    """Those of ``KEYS`` of a step; None where it lacks one, or says nothing by them."""
    loss, own, teacher = (line.get(key) for key in KEYS)
    if loss is None or own is None or teacher is None or POLICY in line:
        return None
    return float(loss), float(own), float(teacher)


def _judged(known: Sequence[Values], rule: LeavingRule) -> Leaving | None:
    if len(known) < rule.least_steps:
        return None
    count = max(2, int(len(known) * rule.window))
    early, recent = np.array(known[:count]), np.array(known[-count:])
    (loss, mass, _), (last_loss, last_mass, teacher) = (
        early.mean(0).tolist(),
        recent.mean(0).tolist(),
    )
    error = np.sqrt((early[:, 1].var(ddof=1) + recent[:, 1].var(ddof=1)) / count)
    falls = loss > 0 and last_loss <= rule.loss * loss
    rises = 1 - last_mass >= rule.outside * (1 - mass) and mass - last_mass > rule.errors * error
    if not (falls and rises and last_mass < teacher):
        return None
    return Leaving(count, loss, last_loss, mass, last_mass, teacher)
