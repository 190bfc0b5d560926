"""Loops against their definition, token by token."""

from __future__ import annotations

import numpy as np
import pytest

from student_trainer.diagnostics.repetition import (
    COPIES,
    LEAST_TOKENS,
    LONGEST_NGRAM,
    Loops,
    loops_of,
)


def by_definition(ids: list[int]) -> Loops:
    """Every stretch a to b, whether it has a period."""
    inside: set[int] = set()
    longest = 0
    for a in range(len(ids)):
        for b in range(a + LEAST_TOKENS, len(ids) + 1):
            for n in range(1, min(LONGEST_NGRAM, (b - a) // COPIES) + 1):
                if ids[a + n : b] == ids[a : b - n]:
                    inside |= set(range(a, b))
                    longest = max(longest, b - a)
                    break
    return Loops(len(inside), longest)


@pytest.mark.parametrize(
    ("ids", "tokens", "longest"),
    [
        ([1, 2, 3, 4, 5, 6, 7], 0, 0),
        ([7, 7, 7, 7, 7], 0, 0),  # too few tokens
        ([7] * 6, 6, 6),
        ([9, 1, 2, 1, 2, 1, 2, 9], 6, 6),  # wait, wait, wait,
        ([9, 1, 2, 1, 2, 1, 9], 0, 0),  # the third copy is cut short
        ([9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 9], 10, 10),  # and part of a fourth
        ([5] * 7 + [1, 2, 3] + [4, 6] * 5, 17, 10),
        ([1], 0, 0),
    ],
)
def test_what_is_a_loop(ids: list[int], tokens: int, longest: int) -> None:
    assert loops_of([np.array(ids)]) == [Loops(tokens, longest)]
    assert by_definition(ids) == Loops(tokens, longest)


def test_equals_the_definition_of_each_response_by_itself() -> None:
    rng = np.random.default_rng(1)
    responses = [rng.integers(0, kinds, n) for kinds in (2, 3) for n in (1, 9, 30, 44)]
    responses.append(np.array([5] * 7 + [1, 2, 3] + [4, 6] * 5))
    responses += [np.array([3, 3, 3]), np.array([3, 3, 3])]  # no loop across responses
    wanted = [by_definition(ids.tolist()) for ids in responses]
    assert loops_of(responses) == wanted
    assert any(one.tokens for one in wanted)
    assert any(not one.tokens for one in wanted)
    assert any(one.longest < one.tokens for one in wanted)


def test_the_longest_ngram_and_one_beyond() -> None:
    for size, found in ((LONGEST_NGRAM, True), (LONGEST_NGRAM + 1, False)):
        ids = np.tile(np.arange(size), COPIES)
        assert bool(loops_of([ids])[0].tokens) is found


def test_nothing_written() -> None:
    assert loops_of([]) == []
