"""What a coarse row needs to be compared, how exact its rest is and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from student_trainer.losses import Head, lsm
from tests.support.coarse_losses import (
    COARSE,
    NAMES,
    SETTINGS,
    K,
    T,
    V,
    certified,
    same,
    two_sides,
)
from tests.support.loss_reference import FUNCTIONS, full_logits, problem, with_batch


def test_a_coarse_row_needs_two_outcomes() -> None:
    case = certified(problem(T, K, 8, V))
    valid = case.batch.support_valid.clone()  # type: ignore[union-attr]
    valid[0], valid[4], valid[7] = torch.arange(K) < 1, False, torch.arange(K) < 1
    known = torch.ones(T, dtype=torch.bool)
    known[7] = False
    small = with_batch(case, support_valid=valid, teacher_tail_valid=known)
    result = lsm(small.batch, small.head, SETTINGS)
    # One id of a row that is not coarse; a coarse row without ids; one without a rest.
    assert torch.nonzero(~result.used)[:, 0].tolist() == [0, 4, 7]
    assert (result.dropped_small_support, result.dropped_non_finite) == (3, 0)
    assert bool(result.used[1]), "a single certified id and the rest are enough"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_coarse_row_whose_rest_is_not_finite_is_dropped(value: float) -> None:
    case = certified(problem(T, K, 8, V))
    tail = case.batch.teacher_log_tail.clone()  # type: ignore[union-attr]
    tail[[0, 4]] = value  # of row 0, which is not coarse, nobody reads it
    bad = with_batch(case, teacher_log_tail=tail)
    result = lsm(bad.batch, bad.head, SETTINGS)
    assert torch.nonzero(~result.used)[:, 0].tolist() == [4]
    assert result.dropped_non_finite == 1
    for grad in torch.autograd.grad(result.total, bad.leaves):
        assert bool(grad.isfinite().all())


def test_a_single_id_and_its_rest_need_no_wider_support() -> None:
    case = certified(problem(T, K, 8, V))
    rows = torch.nonzero(COARSE)[:, 0]
    q = case.batch.teacher_logits[rows].exp()  # type: ignore[index]
    one = q.argsort(-1, descending=True)[:, 2:3]
    part = {k: v[rows] for k, v in vars(case.batch).items() if v is not None}
    batch = replace(
        replace(case.batch, **part),
        support_ids=one,
        support_log_probs=q.gather(1, one).log(),
        support_valid=torch.ones_like(one, dtype=torch.bool),
        teacher_log_tail=(1 - q.gather(1, one)[:, 0]).log(),
    )
    result = lsm(batch, case.head, SETTINGS)
    p = torch.softmax(full_logits(batch.hidden, case.head) / 0.7, -1).gather(1, one)[:, 0]
    at = q.gather(1, one)[:, 0]
    rows_loss = p * (p / at).log() + (1 - p) * ((1 - p) / (1 - at)).log()
    same(result.total, (rows_loss * batch.weights).sum(), case)


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_rest_keeps_its_gradient_in_float32(name: str) -> None:
    """Both sides' rests are a millionth: 1 minus a float32 sum would have lost them."""
    made = torch.Generator().manual_seed(5)
    logits = torch.randn(T, V, generator=made, dtype=torch.float64)
    logits[:, :K] += 14
    q = torch.softmax(logits + 0.3 * torch.randn(T, V, generator=made, dtype=torch.float64), -1)
    leaf = logits.clone().requires_grad_()
    narrow = logits.float().requires_grad_()
    ids = torch.arange(K).expand(T, K)
    base = problem(T, K, 8, V).batch
    batch = replace(
        base,
        hidden=narrow,
        weights=torch.ones(T),
        support_ids=ids,
        support_log_probs=q[:, :K].log().float(),
        support_valid=torch.ones(T, K, dtype=torch.bool),
        teacher_log_tail=q[:, K:].sum(-1).log().float(),
        coarse=torch.ones(T, dtype=torch.bool),
    )
    settings = replace(SETTINGS, temperature=1.0)
    total = FUNCTIONS[name](batch, Head(torch.eye(V)), settings).total
    p = torch.softmax(leaf, -1)
    rows = [
        two_sides(
            name,
            torch.cat([p[t, :K], p[t, K:].sum()[None]]),
            torch.cat([q[t, :K], q[t, K:].sum()[None]]),
        )
        for t in range(T)
    ]
    (ours,) = torch.autograd.grad(total, narrow)
    (theirs,) = torch.autograd.grad(torch.stack(rows).sum(), leaf)
    assert float(p.detach()[:, K:].sum(-1).max()) < 1e-4
    torch.testing.assert_close(ours[:, :K].double(), theirs[:, :K], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours[:, K:].double(), theirs[:, K:], rtol=1e-3, atol=1e-12)


@dataclass(frozen=True)
class CountingHead(Head):
    """A head that notes how many whole rows are computed at a time."""

    blocks: list[int] = field(default_factory=list)

    def finish_rows(self, projection: Tensor) -> Tensor:
        self.blocks.append(len(projection))
        return super().finish_rows(projection)


def test_only_coarse_rows_are_multiplied_with_the_whole_head() -> None:
    case = certified(problem(T, K, 8, V))
    head = CountingHead(case.head.weight)
    total = lsm(case.batch, head, replace(SETTINGS, chunk_rows=3)).total
    assert head.blocks == [3, 1], "the four coarse rows, three at a time"
    total.backward()  # type: ignore[no-untyped-call]
    assert head.blocks == [3, 1, 3, 1]


def test_a_student_that_is_the_teacher_has_no_loss_on_coarse_rows() -> None:
    case = problem(T, K, 8, V)
    own = torch.log_softmax(full_logits(case.batch.hidden, case.head).detach() / 0.7, -1)
    case = certified(with_batch(case, teacher_logits=own))
    for name in NAMES:
        result = FUNCTIONS[name](case.batch, case.head, SETTINGS)
        assert float(result.per_row.abs().max()) < 1e-12
        for grad in torch.autograd.grad(result.total, case.leaves):
            assert float(grad.abs().max()) < 1e-9


def test_the_figures_of_coarse_rows_are_apart() -> None:
    case = certified(problem(T, K, 8, V))
    free = lsm(case.batch, case.head, SETTINGS)
    bound = float(free.per_row.median())
    result = lsm(case.batch, case.head, replace(SETTINGS, row_clamp=bound))
    others = lsm(
        with_batch(case, weights=case.batch.weights.where(~COARSE, 0)).batch,
        case.head,
        replace(SETTINGS, row_clamp=bound),
    )
    assert result.metrics == others.metrics
    assert result.coarse_metrics == {
        "coarse_loss": pytest.approx(float(free.per_row[COARSE].clamp_max(bound).sum())),
        "row_clamped": int((free.per_row[COARSE] > bound).sum()),
    }
    assert lsm(problem().batch, problem().head, SETTINGS).coarse_metrics == {}


def test_what_coarse_rows_need_is_said() -> None:
    case = certified(problem(T, K, 8, V))
    with pytest.raises(ValueError, match="coarse rows need the teacher's log_tail"):
        lsm(replace(case.batch, teacher_log_tail=None), case.head, SETTINGS)
    study = replace(SETTINGS, study=True)
    with pytest.raises(ValueError, match="does not compare the rest of a coarse row"):
        FUNCTIONS["unnormalised_reverse_kl"](case.batch, case.head, study)
    without = with_batch(case, weights=case.batch.weights.where(~COARSE, 0))
    assert (
        int(FUNCTIONS["unnormalised_reverse_kl"](without.batch, case.head, study).used.sum()) == 9
    )
