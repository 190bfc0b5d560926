"""Rows after a prefix that the teacher finds improbable weigh less, or are left out."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from teacher_proto.program.settings_types import NonNegative, Positive, Share

from student_trainer.weights.base import Fact, Float64, ResponseRows, RowWeight


class TeacherSurprise(RowWeight):
    """1 while the teacher is hardly more surprised by what was written than it expects to be, and
    down to `outside` after that.

    With e_t = -log q(y_t) - H_t, the surprise at a token beyond what the teacher expected
    (``ResponseRows.excess_surprise``), the measure before token t is a cumulative sum that does not
    fall below 0 (Page's CUSUM):

        D_1 = 0,   D_{t+1} = max(0, decay D_t + e_t - allowance)

    A row weighs 1 where D_t <= threshold. Above it the weight is ``outside``, or with ``fall``
    outside + (1 - outside) exp(-(D_t - threshold) / fall). With ``lasting`` the largest D so far
    takes the place of D_t. A token whose e_t is not known changes nothing.
    """

    needs: ClassVar[tuple[Fact, ...]] = ("excess_surprise",)

    kind: Literal["teacher_surprise"] = "teacher_surprise"
    threshold: Positive = Field(
        default=4.0,
        description="Surprise beyond the expected one, in nats, up to which a row weighs 1.",
    )
    allowance: NonNegative = Field(
        default=0.5,
        description="Surprise beyond the expected one that every token may have, in nats. The "
        "smaller a row's support, the more the teacher's own text needs.",
    )
    decay: Share = Field(
        default=1.0, description="What is left of the measure at each token; 1 forgets nothing."
    )
    outside: Share = Field(
        default=0.0, description="Weight above the threshold; 0 leaves these rows out."
    )
    fall: Positive | None = Field(
        default=None,
        description="Nats above the threshold in which the weight falls to 1/e of the way to "
        "`outside`; unset, it falls at once.",
    )
    lasting: bool = Field(
        default=False,
        description="Once the threshold is passed, count the largest measure so far for the rest "
        "of the response: rows do not come back.",
    )

    @model_validator(mode="after")
    def _weighs_something(self) -> TeacherSurprise:
        if self.outside == 1:
            raise ValueError("outside = 1 weighs every row 1: lower it, or leave the weight out")
        return self

    def __call__(self, rows: ResponseRows) -> Float64:
        measure = self._measure(rows.excess_surprise)
        if self.lasting:
            measure = np.maximum.accumulate(measure)
        above = measure - self.threshold
        left = (above <= 0).astype(np.float64)
        if self.fall is not None:
            left = np.exp(-np.maximum(above, 0) / self.fall)
        return self.outside + (1 - self.outside) * left

    def _measure(self, excess: Float64) -> Float64:
        """float64 [n]: D before each token."""
        found, so_far = np.zeros(len(excess)), 0.0
        for place, value in enumerate(excess.tolist()):
            found[place] = so_far
            if not math.isnan(value):
                left = self.decay * so_far if self.decay else 0.0  # also of an infinite one
                so_far = max(0.0, left + value - self.allowance)
        return found
