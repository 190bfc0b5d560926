"""Loops of a response: an n-gram that is written again and again, such as "wait, wait, wait"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A loop is at least so many copies of an n-gram of at most so many tokens, one right after the
# other, and at least so many tokens in all: three spaces, or "0.000", are none.
COPIES = 3
LONGEST_NGRAM = 128
LEAST_TOKENS = 6


@dataclass(frozen=True)
class Loops:
    """Attributes:
    tokens: of a response that lie in a loop.
    longest: tokens of its longest loop; 0 without one.
    """

    tokens: int
    longest: int


def loops_of(responses: Sequence[NDArray[Any]]) -> list[Loops]:
    """The loops of each response.

    With a period n, tokens a to b are a loop where each one from a + n on equals the one n places
    before it, and no longer stretch around them has this period.

    Args:
        responses: int [T] each, the token ids.
    """
    lengths = [len(ids) for ids in responses]
    if not sum(lengths):
        return [Loops(0, 0) for _ in responses]
    ids = np.concatenate(responses)
    owners = np.repeat(np.arange(len(responses)), lengths)
    inside = np.zeros(len(ids), np.bool_)
    longest = np.zeros(len(responses), np.int64)
    for period in range(1, min(LONGEST_NGRAM, max(lengths) // COPIES) + 1):
        least = max(COPIES * period, LEAST_TOKENS)
        again = (ids[period:] == ids[:-period]) & (owners[period:] == owners[:-period])
        edges = np.flatnonzero(np.diff(again, prepend=False, append=False))
        # The first token of each run, and the token after its last; a run is period tokens
        # shorter than its loop.
        first, after = edges[::2], edges[1::2] + period
        whole = after - first >= least
        for a, b in zip(first[whole].tolist(), after[whole].tolist(), strict=True):
            inside[a:b] = True
            longest[owners[a]] = max(longest[owners[a]], b - a)
    counts = np.bincount(owners[inside], minlength=len(responses))
    return [Loops(int(n), int(most)) for n, most in zip(counts, longest, strict=True)]
