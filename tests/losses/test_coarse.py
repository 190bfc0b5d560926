"""Coarse rows against a float64 reference over the whole vocabulary: certified ids, and the
rest of both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from student_trainer.losses import choose_support, lsm
from tests.support.coarse_losses import (
    COARSE,
    HEADS,
    NAMES,
    SETTINGS,
    SUPPORTS,
    K,
    T,
    V,
    certified,
    ids_of,
    reference,
    same,
)
from tests.support.loss_reference import (
    FUNCTIONS,
    Problem,
    full_logits,
    problem,
    support_rows,
    with_batch,
)


@pytest.mark.parametrize("undrawn", [None, (0, 17, 36)])
@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_coarse_row_compares_its_ids_and_all_the_rest(
    name: str, head: dict[str, Any], undrawn: tuple[int, ...] | None
) -> None:
    case = certified(problem(T, K, 8, V, **head))
    if undrawn is not None:
        case = Problem(case.batch, replace(case.head, undrawn=torch.tensor(undrawn)))
        case = Problem(
            choose_support(case.batch, "teacher", removed=torch.tensor(undrawn)), case.head
        )
    batch = case.batch
    result = FUNCTIONS[name](batch, case.head, SETTINGS)
    rows = reference(name, batch, case.head, ids_of(batch), COARSE)
    used = result.used
    assert int(used[COARSE].sum()) >= 3
    torch.testing.assert_close(result.per_row, rows.detach().where(used, 0), rtol=1e-9, atol=1e-12)
    same(result.total, (rows * batch.weights * used).sum(), case)


@pytest.mark.parametrize(
    ("support", "mass"), [*((s, None) for s in SUPPORTS), ("teacher+sampled", 0.6), ("union", 0.6)]
)
@pytest.mark.parametrize("name", NAMES)
def test_what_joins_or_leaves_the_support_changes_the_rest(
    name: str, support: str, mass: float | None
) -> None:
    """The rest is everything that is not compared, whichever support a row has."""
    case = certified(problem(T, K, 8, V))
    q = case.batch.teacher_logits
    assert q is not None
    own = full_logits(case.batch.hidden, case.head).detach().topk(K, -1).indices
    # Of coarse rows some of the student's ids and some sampled tokens are not certified.
    known = ~COARSE[:, None] | (torch.arange(K) % 2 == 0)
    sampled = q.gather(1, case.batch.sampled_ids[:, None])[:, 0]
    asked = replace(
        case.batch,
        explicit_ids=own,
        explicit_log_probs=q.gather(1, own).where(known, 0),
        explicit_valid=known,
        teacher_sampled=sampled.where(~COARSE | (torch.arange(T) % 2 == 0), torch.nan),
    )
    removed = torch.tensor([3, 11])
    batch = choose_support(asked, support, mass=mass, removed=removed)  # type: ignore[arg-type]
    case = Problem(batch, case.head)
    result = FUNCTIONS[name](batch, case.head, SETTINGS)
    assert result.dropped_non_finite == 0
    chosen = ids_of(batch)
    assert not any(ids & {3, 11} for ids in chosen)
    rows = reference(name, batch, case.head, chosen, COARSE)
    rows = rows.where(result.used, 0)
    assert bool(result.used[COARSE].all())
    same(result.total, (rows * batch.weights).sum(), case)


@pytest.mark.parametrize("name", NAMES)
def test_the_other_rows_follow_the_tail_that_is_set(name: str) -> None:
    case = certified(problem(T, K, 8, V))
    for tail in ("none", "bucket"):
        result = FUNCTIONS[name](case.batch, case.head, replace(SETTINGS, tail=tail))
        others = support_rows(name, case.batch, case.head, 0.7, tail=tail, beta=0.3)
        coarse = reference(name, case.batch, case.head, ids_of(case.batch), COARSE)
        same(result.total, (torch.where(COARSE, coarse, others) * case.batch.weights).sum(), case)


@pytest.mark.parametrize("name", NAMES)
def test_coarse_rows_and_others_together_are_what_they_are_apart(name: str) -> None:
    case = certified(problem(T, K, 8, V))
    whole = FUNCTIONS[name](case.batch, case.head, SETTINGS)
    weights = case.batch.weights

    def of(kept: Tensor) -> Tensor:
        part = with_batch(case, weights=weights.where(kept, 0))
        return FUNCTIONS[name](part.batch, part.head, SETTINGS).total

    same(of(COARSE) + of(~COARSE), whole.total, case)
    first = torch.arange(T) < 5
    same(of(first) + of(~first), whole.total, case)
    # A batch of coarse rows alone, as a micro-batch may be.
    rows = torch.nonzero(COARSE)[:, 0]
    part = {k: v[rows] for k, v in vars(case.batch).items() if v is not None}
    alone = FUNCTIONS[name](replace(case.batch, **part), case.head, SETTINGS).total
    same(alone, of(COARSE), case)


def test_a_batch_that_says_that_no_row_is_coarse_is_one_that_says_nothing() -> None:
    case = problem(T, K, 8, V, dtype=torch.float32)
    none = with_batch(case, coarse=torch.zeros(T, dtype=torch.bool))
    before, now = (lsm(c.batch, c.head, SETTINGS) for c in (case, none))
    assert torch.equal(before.total, now.total)
    assert before.metrics == now.metrics
    for a, b in zip(
        torch.autograd.grad(before.total, case.leaves),
        torch.autograd.grad(now.total, case.leaves),
        strict=True,
    ):
        assert torch.equal(a, b)
