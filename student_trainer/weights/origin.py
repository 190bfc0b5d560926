"""Rows by who wrote the response."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field
from teacher_proto.program.settings_types import NonNegative

from student_trainer.weights.base import Float64, ResponseRows, RowWeight


class Origin(RowWeight):
    """One weight for the responses that the student wrote, and one for answers of the data."""

    kind: Literal["origin"] = "origin"
    student: NonNegative = Field(
        default=1.0, description="Weight of rows of the student's responses."
    )
    data: NonNegative = Field(
        default=1.0, description="Weight of rows of answers of the data (`mixing`)."
    )

    def __call__(self, rows: ResponseRows) -> Float64:
        weight = self.student if rows.origin == "student" else self.data
        return np.full(len(rows.token_ids), weight)
