"""Only the positions are learnt from at which student and teacher can meet (TA-OPD, arXiv
2605.26844)."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from student_trainer.weights.base import Fact, Float64, ResponseRows, RowWeight


class Overlap(RowWeight):
    """Keeps the `share` of a response's rows with the highest score, and leaves out the others.

    ``by = "teachability"`` scores a row by D̃_t C̃_t, where D_t is KL(q̂‖π̂) on the row's support
    and C_t the teacher's probability of those ids of the support that are among as many most
    likely ids of the student; x̃ is x clipped to its 5% and 95% quantiles over the response's rows
    and scaled to [0, 1], and 0 where these are equal. ``by = "overlap"`` scores it by the share of
    the support's ids that are. Of the response's R rows in the loss ceil(share R) are kept, of
    equal scores the earlier ones.

    The paper's support is the student's own top-K, which is ``loss.support = "student"``, and it
    ranks all rows of a batch together: here a response's rows are ranked among themselves, so
    that the weight of a row does not depend on what else is in its batch.
    """

    needs: ClassVar[tuple[Fact, ...]] = ("overlap", "shared_mass", "disagreement")

    kind: Literal["overlap"] = "overlap"
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="Share of a response's rows that are kept, rounded up."
    )
    by: Literal["teachability", "overlap"] = Field(
        default="teachability",
        description="What rows are ranked by: disagreement on ids that both sides consider "
        "(`teachability`), or how many of their ids are the same (`overlap`).",
    )

    def __call__(self, rows: ResponseRows) -> Float64:
        there = np.flatnonzero(np.isfinite(rows.disagreement))
        if self.by == "overlap":
            scores = rows.overlap[there]
        else:
            scores = _scaled(rows.disagreement[there]) * _scaled(rows.shared_mass[there])
        count = math.ceil(Fraction(repr(self.share)) * len(there))
        kept = there[np.argsort(-scores, kind="stable")[:count]]
        weights = np.zeros(len(rows.token_ids))
        weights[kept] = 1.0
        return weights


def _scaled(values: Float64) -> Float64:
    if not len(values):
        return values
    low, high = np.quantile(values, [0.05, 0.95])
    if high == low:
        return np.zeros(len(values))
    shares: Float64 = ((values - low) / (high - low)).clip(0, 1)
    return shares
