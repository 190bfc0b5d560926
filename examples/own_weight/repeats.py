"""A row weight of one's own: what repeats itself weighs less.

A teacher often finds the next token of a repetition likely, so that a student that has begun to
repeat itself is told to go on. `run.toml` beside this file names the class as
`repeats:Repeats`.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from student_trainer.weights import ResponseRows, RowWeight


class Repeats(RowWeight):
    """`weight` for a token that ends a run of `tokens` which the response has had before, 1 for
    the others."""

    tokens: Annotated[int, Field(ge=1)] = Field(default=4, description="Length of such a run.")
    weight: Annotated[float, Field(ge=0)] = Field(default=0.1, description="Weight of its end.")

    def __call__(self, rows: ResponseRows) -> np.ndarray:
        seen, weights = set(), np.ones(len(rows.token_ids))
        for end in range(self.tokens, len(rows.token_ids) + 1):
            run = tuple(rows.token_ids[end - self.tokens : end])
            if run in seen:
                weights[end - 1] = self.weight
            seen.add(run)
        return weights
