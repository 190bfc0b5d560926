"""What generalised reverse KL, the entropy switch and the fixed advantage are for, in float64 over
the whole vocabulary; their values and gradients on any head are in test_losses.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from student_trainer.losses import (
    EntropySwitchLoss,
    FixedAdvantageLoss,
    GeneralisedReverseKlLoss,
    Head,
    LossBatch,
    LossSettings,
    generalised_reverse_kl,
    lsm,
    topk_forward_kl,
)
from tests.support.loss_reference import Problem, problem, with_batch

SETTINGS = LossSettings(temperature=0.7, chunk_rows=4)
Q = torch.tensor([0.4, 0.2, 0.1, 0.15, 0.1, 0.05], dtype=torch.float64)


def at_logits(logits: Tensor, support: int = 3) -> tuple[LossBatch, Head]:
    """Rows whose hidden states are the logits; the support is the first ids, with Q there."""
    rows = len(logits)
    batch = LossBatch(
        hidden=logits.requires_grad_(),
        sampled_ids=torch.zeros(rows, dtype=torch.int64),
        weights=torch.ones(rows, dtype=torch.float64),
        support_ids=torch.arange(support).repeat(rows, 1),
        support_log_probs=Q[:support].log().repeat(rows, 1),
        support_valid=torch.ones(rows, support, dtype=torch.bool),
    )
    return batch, Head(torch.eye(len(Q), dtype=torch.float64))


def test_it_is_least_at_p_equal_to_q_on_the_support() -> None:
    """Wherever the rest of the student's mass is, within the rest of the teacher's."""
    rest = torch.rand(20, 3, dtype=torch.float64)
    rest = rest / rest.sum(-1, keepdim=True) * (1 - Q[:3].sum())
    batch, head = at_logits(torch.cat([Q[:3].repeat(20, 1), rest], -1).log())
    result = GeneralisedReverseKlLoss()(batch, head)
    assert float(result.per_row.abs().max()) < 1e-12
    (grad,) = torch.autograd.grad(result.total, batch.hidden)
    assert float(grad.abs().max()) < 1e-12
    moved, head = at_logits(batch.hidden.detach() + 0.1 * torch.randn(20, 6, dtype=torch.float64))
    assert bool((GeneralisedReverseKlLoss()(moved, head).per_row > 0).all())


@pytest.mark.parametrize("outside", [0.05, 0.3, 0.6, 0.99])
def test_it_draws_mass_outside_the_support_to_the_teachers(outside: float) -> None:
    """With the ratios inside as the teacher's, lsm sees nothing; this loss has its least value
    where as much is outside as in the teacher, and a descent step goes there."""
    inside = Q[:3] / Q[:3].sum() * (1 - outside)
    logits = torch.cat([inside, torch.full((3,), outside / 3, dtype=torch.float64)]).log()[None]
    batch, head = at_logits(logits)
    assert float(lsm(batch, head, LossSettings()).total.detach().abs()) < 1e-12
    total = generalised_reverse_kl(batch, head, LossSettings()).total
    (grad,) = torch.autograd.grad(total, batch.hidden)
    after = torch.softmax(batch.hidden.detach() - 0.01 * grad, -1)[0, 3:].sum()
    teachers = 1 - Q[:3].sum()
    assert (float(after) < outside) == (outside > float(teachers))
    assert (
        abs(float(after) - float(teachers)) < abs(outside - float(teachers))
        or abs(outside - float(teachers)) < 1e-9
    )


def test_one_valid_id_is_enough_for_it_and_none_is_not() -> None:
    case = problem()
    valid = case.batch.support_valid.clone()
    valid[2], valid[5] = False, False
    valid[5, 0] = True
    small = with_batch(case, support_valid=valid)
    result = generalised_reverse_kl(small.batch, small.head, SETTINGS)
    assert (result.dropped_small_support, bool(result.used[5])) == (1, True)
    logits = small.batch.hidden @ small.head.weight.T
    log_p = torch.log_softmax(logits / 0.7, -1)[5, small.batch.support_ids[5, 0]]
    log_q = small.batch.support_log_probs[5, 0]
    expected = log_p.exp() * (log_p - log_q) - log_p.exp() + log_q.exp()
    torch.testing.assert_close(result.per_row[5], expected.detach())


def test_coarse_rows_are_computed_on_their_ids_and_counted_apart() -> None:
    case = problem()
    coarse = torch.arange(13) % 3 == 0
    without = generalised_reverse_kl(case.batch, case.head, SETTINGS)
    marked = replace(case.batch, coarse=coarse, teacher_log_tail=None)
    result = generalised_reverse_kl(marked, case.head, SETTINGS)
    assert torch.equal(result.per_row, without.per_row)
    assert result.coarse_metrics["coarse_loss"] == pytest.approx(
        float(without.per_row[coarse].sum())
    )
    assert result.metrics["sampled_in_support"] <= int((~coarse).sum())


def unsure_rows(batch: LossBatch, threshold: float) -> Tensor:
    found = []
    for log_q, valid in zip(batch.support_log_probs, batch.support_valid, strict=True):
        q = log_q[valid].exp() / log_q[valid].exp().sum()
        found.append(float(-(q * q.log()).sum()) > threshold)
    return torch.tensor(found)


@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.2, 5.0])
def test_forward_kl_is_added_where_the_teacher_is_unsure(threshold: float) -> None:
    case = problem()
    batch, head = case.batch, case.head
    loss = EntropySwitchLoss(
        temperature=0.7, chunk_rows=4, entropy_threshold=threshold, forward_weight=0.25
    )
    result = loss(batch, head)
    unsure = unsure_rows(batch, threshold)
    assert {0.0: 13, 5.0: 0}.get(threshold, int(unsure.sum())) == int(unsure.sum())
    assert 0 < int(unsure.sum()) < 13 or threshold in (0.0, 5.0)
    reverse = lsm(batch, head, SETTINGS).per_row
    forward = topk_forward_kl(batch, head, SETTINGS).per_row
    torch.testing.assert_close(result.per_row, reverse + 0.25 * forward.where(unsure, 0))
    assert result.metrics["entropy_switched"] == int(unsure.sum())


def test_the_entropy_is_that_of_the_support_without_the_rest() -> None:
    case = problem()
    unsure = unsure_rows(case.batch, 1.0)
    loss = EntropySwitchLoss(temperature=0.7, chunk_rows=4, tail="bucket", entropy_threshold=1.0)
    result = loss(case.batch, case.head)
    bucket = replace(SETTINGS, tail="bucket")
    reverse = lsm(case.batch, case.head, bucket).per_row
    forward = topk_forward_kl(case.batch, case.head, bucket).per_row
    torch.testing.assert_close(result.per_row, reverse + forward.where(unsure, 0))


def test_without_a_support_they_say_so() -> None:
    case = problem()
    bare = replace(case.batch, support_ids=None)
    for loss in (EntropySwitchLoss(), GeneralisedReverseKlLoss()):
        with pytest.raises(ValueError, match="needs a support"):
            loss(bare, case.head)


def test_a_row_that_is_left_out_is_not_counted_as_switched() -> None:
    case = problem()
    weights = case.batch.weights.clone()
    weights[unsure_rows(case.batch, 1.0)] = 0
    some = with_batch(case, weights=weights)
    loss = EntropySwitchLoss(temperature=0.7, entropy_threshold=1.0)
    assert loss(some.batch, some.head).metrics["entropy_switched"] == 0


def expected_gradient(case: Problem, loss: FixedAdvantageLoss) -> Tensor:
    """E over y ~ pi of the gradient at a row's logits, on tokens that the student itself draws,
    by enumeration: [V]."""
    logits = case.batch.hidden.detach()[0] @ case.head.weight.detach().T
    log_pi = torch.log_softmax(logits, -1)
    total = torch.zeros_like(log_pi)
    for y in range(len(log_pi)):
        leaf = logits.clone()[None].requires_grad_()
        batch = LossBatch(
            hidden=leaf,
            sampled_ids=torch.tensor([y]),
            weights=torch.ones(1, dtype=torch.float64),
            teacher_sampled=torch.zeros(1, dtype=torch.float64),
            old_log_probs=log_pi[y : y + 1],
        )
        result = loss(batch, Head(torch.eye(len(log_pi), dtype=torch.float64)))
        (grad,) = torch.autograd.grad(result.total, leaf)
        total += log_pi[y].exp() * grad[0]
    return total


def test_one_advantage_for_all_tokens_has_no_mean_gradient() -> None:
    loss = FixedAdvantageLoss(advantage=-2.0, study=True)
    assert float(expected_gradient(problem(), loss).abs().max()) < 1e-12


def test_with_a_bound_it_suppresses_improbable_tokens() -> None:
    case = problem()
    logits = case.batch.hidden.detach()[0] @ case.head.weight.detach().T
    log_pi = torch.log_softmax(logits, -1)
    bound = float(log_pi.median())
    loss = FixedAdvantageLoss(advantage=-2.0, max_log_prob=bound, study=True)
    found = expected_gradient(case, loss)
    low = log_pi <= bound
    # 2 grad of the probability of these tokens.
    expected = 2 * log_pi.exp() * (low.double() - log_pi.exp()[low].sum())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert bool((found[low] > 0).all()), "descent lowers their logits"


def test_the_control_is_refused_without_a_study() -> None:
    with pytest.raises(ValueError, match=r"learns nothing of the teacher.*study = true"):
        FixedAdvantageLoss()
