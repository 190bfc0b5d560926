"""The advantage of a response: its score beside the scores of the other responses to its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Scores are in [0, 1]: those that lie closer together differ by the rounding of their sums alone,
# and dividing by such a deviation would make advantages of size 1 out of it.
EQUAL_WITHIN = 1e-9


def group_advantages(
    scores: Sequence[float | None], normalise: Literal["mean", "deviation"]
) -> NDArray[np.float64]:
    """The advantage of each response of one group, float64 [G].

    Over the responses that have a score, s_i less the mean score, divided with ``deviation`` by
    the sample standard deviation (the root of Σ(s_i - mean)² / (n - 1)). A response without a
    score has 0, and so has each where fewer than two have one, or where the largest and the
    smallest lie less than 1e-9 apart: they count as equal.

    Args:
        scores: of the group's responses, in [0, 1]; None where one has none.
    """
    found = np.zeros(len(scores))
    known = [place for place, score in enumerate(scores) if score is not None]
    values = np.array([scores[place] for place in known], np.float64)
    if len(known) < 2 or values.max() - values.min() < EQUAL_WITHIN:
        return found
    apart = values - values.mean()
    if normalise == "deviation":
        apart /= values.std(ddof=1)
    found[known] = apart
    return found
