"""Losses and gradients against the full-logits autograd reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student_trainer.losses import Head, LossSettings, lsm
from student_trainer.losses.parts.divergences import renormalise, reverse_kl
from tests.support.loss_reference import (
    FUNCTIONS,
    Problem,
    fixed_advantage_rows,
    full_logits,
    lsm_rows,
    problem,
    sampled_token_rows,
    support_rows,
    with_batch,
)

HEADS = [
    {},
    {"bias": True},
    {"scale": 0.25},
    {"softcap": 5.0},
    {"bias": True, "scale": 2.0, "softcap": 4.0},
    {"lora": True, "bias": True, "scale": 0.5, "softcap": 6.0},
]
SUPPORT_LOSSES = [
    "lsm",
    "topk_forward_kl",
    "topk_jsd",
    "unnormalised_reverse_kl",
    "generalised_reverse_kl",
    "entropy_switch",
]
SETTINGS = LossSettings(temperature=0.7, chunk_rows=4, study=True)


def gradients(total: torch.Tensor, case: Problem) -> list[torch.Tensor]:
    return list(torch.autograd.grad(total, case.leaves))


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_lsm_equals_the_full_logits_reference(head: dict, temperature: float) -> None:
    case = problem(**head)
    result = lsm(case.batch, case.head, LossSettings(temperature=temperature))
    rows = lsm_rows(case.batch, case.head, temperature)
    torch.testing.assert_close(result.per_row, rows.detach(), rtol=1e-10, atol=1e-12)
    assert_same(gradients(result.total, case), gradients((rows * case.batch.weights).sum(), case))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("tail", ["none", "bucket"])
@pytest.mark.parametrize("name", SUPPORT_LOSSES)
def test_support_losses_equal_the_full_logits_reference(name: str, tail: str, head: dict) -> None:
    case = problem(**head)
    chosen = replace(SETTINGS, tail=tail, beta=0.3)
    result = FUNCTIONS[name](case.batch, case.head, chosen)
    rows = support_rows(name, case.batch, case.head, 0.7, tail=tail, beta=0.3)
    torch.testing.assert_close(result.per_row, rows.detach(), rtol=1e-9, atol=1e-11)
    expected = gradients((rows * case.batch.weights).sum(), case)
    assert_same(gradients(result.total, case), expected)


def test_the_tail_bucket_moves_logits_outside_the_support() -> None:
    case = problem()
    head = Head(torch.eye(37, dtype=torch.float64))
    logits = torch.randn(13, 37, dtype=torch.float64).requires_grad_()
    batch = replace(case.batch, hidden=logits)
    for tail, moves in (("none", False), ("bucket", True)):
        total = lsm(batch, head, replace(SETTINGS, tail=tail)).total
        (grad,) = torch.autograd.grad(total, logits)
        slots = batch.support_ids.where(batch.support_valid, 37)
        inside = torch.zeros(13, 38, dtype=torch.bool).scatter_(1, slots, True)[:, :37]
        assert bool((grad[~inside] != 0).all()) is moves


def test_the_tail_is_left_out_where_nothing_is_outside() -> None:
    case = problem(support=37)
    valid = torch.ones(13, 37, dtype=torch.bool)
    batch = replace(
        case.batch,
        support_valid=valid,
        teacher_log_tail=torch.zeros(13, dtype=torch.float64),
        teacher_tail_valid=torch.zeros(13, dtype=torch.bool),
    )
    whole = Problem(batch, case.head)
    result = lsm(batch, case.head, replace(SETTINGS, tail="bucket"))
    rows = support_rows("lsm", batch, case.head, 0.7)
    torch.testing.assert_close(result.per_row, rows.detach(), rtol=1e-9, atol=1e-11)
    assert_same(gradients(result.total, whole), gradients((rows * batch.weights).sum(), whole))


def test_a_tail_that_is_not_finite_drops_its_row() -> None:
    case = problem()
    tail = case.batch.teacher_log_tail.clone()
    tail[3] = torch.nan
    bad = with_batch(case, teacher_log_tail=tail)
    result = lsm(bad.batch, bad.head, replace(SETTINGS, tail="bucket"))
    assert result.dropped_non_finite == 1
    assert not result.used[3]
    assert all(bool(g.isfinite().all()) for g in gradients(result.total, bad))


def test_the_tail_bucket_needs_the_services_tail() -> None:
    batch = replace(problem().batch, teacher_log_tail=None)
    with pytest.raises(ValueError, match="log_tail"):
        lsm(batch, problem().head, replace(SETTINGS, tail="bucket"))


def test_the_unnormalised_loss_needs_the_studys_switch() -> None:
    case = problem()
    with pytest.raises(ValueError, match=r"collapses.*study = true"):
        FUNCTIONS["unnormalised_reverse_kl"](case.batch, case.head, replace(SETTINGS, study=False))


def test_the_unnormalised_loss_is_least_at_q_over_e() -> None:
    """The collapse itself: the gradient vanishes at p = q / e on the support."""
    q = torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64)
    p = torch.cat([q / torch.e, 1 - q.sum()[None] / torch.e])
    batch = replace(
        problem().batch,
        hidden=p.log()[None].requires_grad_(),
        weights=torch.ones(1, dtype=torch.float64),
        support_ids=torch.arange(3)[None],
        support_log_probs=q.log()[None],
        support_valid=torch.ones(1, 3, dtype=torch.bool),
        sampled_ids=torch.zeros(1, dtype=torch.int64),
    )
    head = Head(torch.eye(4, dtype=torch.float64))
    chosen = LossSettings(study=True)
    unnormalised = FUNCTIONS["unnormalised_reverse_kl"](batch, head, chosen).total
    (grad,) = torch.autograd.grad(unnormalised, batch.hidden)
    assert float(grad.abs().max()) < 1e-12
    assert float(lsm(batch, head, chosen).total.detach()) < 1e-12


def test_a_row_at_the_clamp_has_its_value_and_no_gradient() -> None:
    case = problem()
    free = lsm(case.batch, case.head, SETTINGS)
    bound = float(free.per_row.median())
    result = lsm(case.batch, case.head, replace(SETTINGS, row_clamp=bound))
    torch.testing.assert_close(result.per_row, free.per_row.clamp_max(bound))
    above = free.per_row > bound
    assert result.metrics["row_clamped"] == int(above.sum())
    grad = gradients(result.total, case)[0]
    assert float(grad[above].abs().max()) == 0.0
    torch.testing.assert_close(grad[~above], gradients(free.total, case)[0][~above])


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, float("nan")])
def test_beta_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        FUNCTIONS["topk_jsd"](problem().batch, problem().head, replace(SETTINGS, beta=beta))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("name", "reference"),
    [("sampled_token", sampled_token_rows), ("fixed_advantage", fixed_advantage_rows)],
)
def test_policy_gradients_equal_the_full_logits_reference(
    name: str, reference: Callable[..., torch.Tensor], head: dict
) -> None:
    case = problem(**head)
    # One row far below the dual clip, one far above the trust region.
    old = case.batch.old_log_probs.clone()
    old[0] -= 3.0
    old[1] += 3.0
    case = with_batch(case, old_log_probs=old)
    result = FUNCTIONS[name](case.batch, case.head, SETTINGS)
    rows = reference(case.batch, case.head, 0.7, SETTINGS.clip, SETTINGS.dual_clip)
    assert bool((rows != 0).any())
    torch.testing.assert_close(result.per_row, rows.detach(), rtol=1e-10, atol=1e-12)
    assert_same(gradients(result.total, case), gradients((rows * case.batch.weights).sum(), case))


@pytest.mark.parametrize("head", HEADS)
def test_gradients_pass_gradcheck(head: dict) -> None:
    case = problem(rows=4, support=3, vocabulary=11, **head)
    bias = [] if case.head.bias is None else [case.head.bias]

    def loss(hidden: torch.Tensor, weight: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        built = replace(case.head, weight=weight, bias=rest[0] if rest else None)
        return lsm(replace(case.batch, hidden=hidden), built, SETTINGS).total

    assert torch.autograd.gradcheck(loss, (case.batch.hidden, case.head.weight, *bias))


@given(
    rows=st.integers(1, 9),
    support=st.integers(2, 7),
    vocabulary=st.integers(7, 40),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=40, deadline=None)
def test_lsm_holds_for_any_shape(rows: int, support: int, vocabulary: int, seed: int) -> None:
    case = problem(rows, support, 3, vocabulary, seed=seed)
    result = lsm(case.batch, case.head, SETTINGS)
    expected = (lsm_rows(case.batch, case.head, 0.7) * case.batch.weights).sum()
    torch.testing.assert_close(result.total, expected, rtol=1e-9, atol=1e-11)
    assert_same(gradients(result.total, case), gradients(expected, case))


def test_gradient_has_the_closed_form_and_is_zero_outside_the_support() -> None:
    case = problem()
    logits = full_logits(case.batch.hidden, case.head).detach().requires_grad_()
    ids, valid = case.batch.support_ids, case.batch.support_valid
    losses = reverse_kl(
        renormalise(logits.gather(1, ids), valid),
        renormalise(case.batch.support_log_probs, valid),
        valid,
    )
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    for t in range(ids.shape[0]):
        support = ids[t][valid[t]]
        p = torch.softmax(logits.detach()[t, support], -1)
        q = torch.softmax(case.batch.support_log_probs[t][valid[t]], -1)
        ratio = p.log() - q.log()
        expected = torch.zeros_like(grad[t])
        expected[support] = p * (ratio - (p * ratio).sum())
        torch.testing.assert_close(grad[t], expected, rtol=1e-10, atol=1e-12)


def test_student_equal_to_teacher_gives_no_loss_and_no_gradient() -> None:
    case = problem(dtype=torch.float32)
    with torch.no_grad():
        log_probs = torch.log_softmax(full_logits(case.batch.hidden, case.head), -1)
        top = log_probs.topk(5, -1)
    case = with_batch(
        case,
        support_ids=top.indices,
        support_log_probs=top.values,
        weights=case.batch.weights.float(),
    )
    result = lsm(case.batch, case.head, LossSettings())
    assert float(result.per_row.abs().max()) < 1e-6
    assert all(float(g.abs().max()) < 1e-6 for g in gradients(result.total, case))


def test_a_shifted_row_is_seen() -> None:
    """The off-by-one canary: equal rows give 0, rows shifted by one do not."""
    case = problem(dtype=torch.float32)
    with torch.no_grad():
        top = torch.log_softmax(full_logits(case.batch.hidden, case.head), -1).topk(5, -1)
    shifted = with_batch(
        case,
        support_ids=top.indices.roll(1, 0),
        support_log_probs=top.values.roll(1, 0),
        weights=case.batch.weights.float(),
    )
    assert float(lsm(shifted.batch, shifted.head, LossSettings()).per_row.min()) > 1e-2


def test_k_1_is_refused() -> None:
    case = problem()
    short = with_batch(
        case,
        support_ids=case.batch.support_ids[:, :1],
        support_log_probs=case.batch.support_log_probs[:, :1],
        support_valid=case.batch.support_valid[:, :1],
    )
    with pytest.raises(ValueError, match="at least 2 ids"):
        lsm(short.batch, short.head, LossSettings())


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_rows_of_weight_0_take_no_part(name: str) -> None:
    case = problem()
    weights = case.batch.weights.clone()
    weights[[0, 4, 12]] = 0
    masked = with_batch(case, weights=weights)
    result = FUNCTIONS[name](masked.batch, masked.head, SETTINGS)
    kept = [t for t in range(13) if t not in (0, 4, 12)]
    everything = FUNCTIONS[name](case.batch, case.head, SETTINGS)
    torch.testing.assert_close(
        result.total, (everything.per_row[kept] * case.batch.weights[kept]).sum()
    )
    assert result.used.tolist() == [t in kept for t in range(13)]
    assert result.dropped_non_finite == result.dropped_small_support == 0
    assert float(gradients(result.total, masked)[0][[0, 4, 12]].abs().max()) == 0.0


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_rows_that_are_not_finite_are_dropped_and_counted(
    name: str, value: float, side: str
) -> None:
    case = problem()
    clean = FUNCTIONS[name](with_batch(case, weights=_without(case, 3)).batch, case.head, SETTINGS)
    if side == "student":
        hidden = case.batch.hidden.detach().clone()
        hidden[3, 0] = value
        bad = with_batch(case, hidden=hidden.requires_grad_())
    else:
        support = case.batch.support_log_probs.clone()
        support[3, 0] = value
        sampled = case.batch.teacher_sampled.clone()
        sampled[3] = value
        logits = case.batch.teacher_logits.clone()
        logits[3, 0] = value
        bad = with_batch(
            case, support_log_probs=support, teacher_sampled=sampled, teacher_logits=logits
        )
    result = FUNCTIONS[name](bad.batch, bad.head, SETTINGS)
    torch.testing.assert_close(result.total, clean.total)
    assert result.dropped_non_finite == 1
    assert not result.used[3]
    for grad in gradients(result.total, bad):
        assert bool(grad.isfinite().all())


def _without(case: Problem, row: int) -> torch.Tensor:
    weights = case.batch.weights.clone()
    weights[row] = 0
    return weights


def test_rows_with_a_support_below_two_are_dropped_and_counted() -> None:
    case = problem()
    valid = case.batch.support_valid.clone()
    valid[2] = False
    valid[5] = False
    valid[5, 0] = True
    small = with_batch(case, support_valid=valid)
    result = lsm(small.batch, small.head, SETTINGS)
    assert result.dropped_small_support == 2
    assert result.used.tolist() == [t not in (2, 5) for t in range(13)]
    expected = (lsm_rows(small.batch, small.head, 0.7) * small.batch.weights).sum()
    assert_same(gradients(result.total, small), gradients(expected, small))


def test_all_rows_left_out_gives_zero_with_zero_gradient() -> None:
    case = with_batch(problem(), weights=torch.zeros(13, dtype=torch.float64))
    for loss in FUNCTIONS.values():
        result = loss(case.batch, case.head, SETTINGS)
        assert float(result.total.detach()) == 0.0
        assert not bool(result.used.any())
        assert all(float(g.abs().max()) == 0.0 for g in gradients(result.total, case))


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_in_place_accumulation_adds_the_same_gradient(name: str) -> None:
    case = problem()
    (expected,) = torch.autograd.grad(
        FUNCTIONS[name](case.batch, case.head, SETTINGS).total, [case.head.weight]
    )
    case.head.weight.grad = torch.ones_like(case.head.weight)
    buffer = case.head.weight.grad
    head = replace(case.head, accumulate_in_place=True)
    FUNCTIONS[name](case.batch, head, SETTINGS).total.backward()
    assert case.head.weight.grad is buffer
    torch.testing.assert_close(buffer, expected + 1, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_frozen_head_passes_gradient_to_hidden_alone(name: str) -> None:
    case = problem()
    (expected,) = torch.autograd.grad(
        FUNCTIONS[name](case.batch, case.head, SETTINGS).total, [case.batch.hidden]
    )
    frozen = replace(case.head, weight=case.head.weight.detach())
    (actual,) = torch.autograd.grad(
        FUNCTIONS[name](case.batch, frozen, SETTINGS).total, [case.batch.hidden]
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@pytest.mark.parametrize("cut", [1, 5, 12])
def test_the_sum_does_not_depend_on_the_cut_into_micro_batches(name: str, cut: int) -> None:
    case = problem()
    whole = FUNCTIONS[name](case.batch, case.head, SETTINGS).total
    parts = []
    for rows in (slice(0, cut), slice(cut, 13)):
        part = replace(
            case.batch,
            **{key: value[rows] for key, value in vars(case.batch).items() if value is not None},
        )
        parts.append(FUNCTIONS[name](part, case.head, SETTINGS).total)
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)
    assert_same(gradients(sum(parts), case), gradients(whole, case))


def test_support_metrics_are_sums_over_used_rows() -> None:
    case = problem()
    result = lsm(case.batch, case.head, SETTINGS)
    ids, valid = case.batch.support_ids, case.batch.support_valid
    inside = [
        int(case.batch.sampled_ids[t]) in ids[t][valid[t]].tolist() for t in range(ids.shape[0])
    ]
    assert result.metrics["sampled_in_support"] == sum(inside)
    mass = case.batch.support_log_probs.exp().where(valid, 0).sum()
    assert result.metrics["teacher_support_mass"] == pytest.approx(float(mass))
