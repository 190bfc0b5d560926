"""Rows by how sure the teacher is."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from teacher_proto.program.settings_types import NonNegative

from student_trainer.weights.base import Fact, Float64, ResponseRows, RowWeight


class TeacherEntropy(RowWeight):
    """1 for rows whose teacher's entropy on the support is within bounds, `outside` for the others.

    The entropy is that of the teacher renormalised on the row's support, at most log K.
    """

    needs: ClassVar[tuple[Fact, ...]] = ("entropy",)

    kind: Literal["teacher_entropy"] = "teacher_entropy"
    at_least: NonNegative | None = Field(
        default=None, description="Lower bound on the entropy, nats; unset, none."
    )
    at_most: NonNegative | None = Field(
        default=None, description="Upper bound on the entropy, nats; unset, none."
    )
    outside: NonNegative = Field(
        default=0.0, description="Weight of the other rows; 0 leaves them out."
    )

    @model_validator(mode="after")
    def _bounds(self) -> TeacherEntropy:
        if self.at_least is None and self.at_most is None:
            raise ValueError("teacher_entropy needs at_least or at_most: without either it is 1")
        if None not in (self.at_least, self.at_most) and self.at_least > self.at_most:  # type: ignore[operator]
            raise ValueError(
                f"at_least ({self.at_least}) is above at_most ({self.at_most}): no row is within"
            )
        return self

    def __call__(self, rows: ResponseRows) -> Float64:
        low = -np.inf if self.at_least is None else self.at_least
        high = np.inf if self.at_most is None else self.at_most
        within = (rows.entropy >= low) & (rows.entropy <= high)
        return np.where(within, 1.0, self.outside)
