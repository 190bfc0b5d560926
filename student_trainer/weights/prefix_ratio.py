"""IW-OPD: the more student and teacher have disagreed before a token, the less it weighs
(arXiv 2606.22600)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field
from teacher_proto.program.settings_types import NonNegative

from student_trainer.weights.base import Float64, ResponseRows, RowWeight, sum_before


class PrefixRatio(RowWeight):
    """From `first` at a response's first token down to `last`, in the measure in which student and
    teacher have disagreed before the token (IW-OPD, arXiv 2606.22600).

    With d_t = |log q(y_t) - log π_old(y_t)|, the sums over the response's scored tokens:

        w_t = last + (first - last) (1 - Σ_{k<t} d_k / Σ_k d_k)

    A token for which the teacher has no value adds nothing. Where no token has any disagreement
    every weight is ``first``.
    """

    kind: Literal["prefix_ratio"] = "prefix_ratio"
    first: NonNegative = Field(default=1.5, description="Weight of the first token.")
    last: NonNegative = Field(
        default=1.0, description="What the weight falls to once all disagreement lies before it."
    )

    def __call__(self, rows: ResponseRows) -> Float64:
        disagreed = np.abs(rows.log_ratio)
        total = np.nansum(disagreed)
        before = sum_before(disagreed) / total if total > 0 else np.zeros(len(disagreed))
        return self.last + (self.first - self.last) * (1 - before)
