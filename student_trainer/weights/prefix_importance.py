"""The correction for prefixes that an older student wrote."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from teacher_proto.program.settings_types import Positive

from student_trainer.weights.base import Fact, Float64, ResponseRows, RowWeight, sum_before

# The smallest weight: one of 0 would leave the row out of the mean.
LEAST = 1e-30


class PrefixImportance(RowWeight):
    """How much more likely the student that is updated writes the prefix of a token than the one
    that drew it, at most `cap`.

    w_t = min(cap, Π_{k<t} π(y_k)/π_old(y_k)), and at least 1e-30. ``pipeline.importance_cap``
    corrects for the token itself; this corrects for how it was come to. At staleness 0 and with
    one update per batch every weight is 1, and so it is for answers of the data. Only at top_p 1
    is π_old what the tokens were drawn from.
    """

    needs: ClassVar[tuple[Fact, ...]] = ("moved",)

    kind: Literal["prefix_importance"] = "prefix_importance"
    cap: Positive = Field(default=2.0, description="Bound on the weight.")

    def __call__(self, rows: ResponseRows) -> Float64:
        weights: Float64 = np.exp(sum_before(rows.moved).clip(math.log(LEAST), math.log(self.cap)))
        return weights
