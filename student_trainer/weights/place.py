"""Rows by their place in the response."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from teacher_proto.program.settings_types import NonNegative

from student_trainer.weights.base import Float64, ResponseRows, RowWeight


class Place(RowWeight):
    """From `first` at a response's first token to `last` at its last one, in equal steps.

    The last token is that of the whole response, also where only its first ones are scored. The
    token of a response of one has ``first``.
    """

    kind: Literal["place"] = "place"
    first: NonNegative = Field(default=1.0, description="Weight of the first token.")
    last: NonNegative = Field(default=0.0, description="Weight of the last token.")

    def __call__(self, rows: ResponseRows) -> Float64:
        part = rows.places / max(rows.length - 1, 1)
        return self.first * (1 - part) + self.last * part
