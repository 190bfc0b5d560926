"""Losses over the whole vocabulary against autograd on full logits in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from student_trainer.losses import Head, LossSettings
from tests.support.loss_reference import FUNCTIONS, full_rows, problem, with_batch

HEADS = [{}, {"bias": True, "scale": 2.0, "softcap": 4.0}, {"lora": True}]
NAMES = ["full_reverse_kl", "full_jsd"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_full_losses_equal_the_reference(name: str, beta: float, head: dict) -> None:
    case = problem(**head)
    settings = LossSettings(temperature=0.7, chunk_rows=4, beta=beta)
    result = FUNCTIONS[name](case.batch, case.head, settings)
    rows = full_rows(name, case.batch, case.head, 0.7, beta)
    torch.testing.assert_close(result.per_row, rows.detach(), rtol=1e-9, atol=1e-11)
    expected = torch.autograd.grad((rows * case.batch.weights).sum(), case.leaves)
    actual = torch.autograd.grad(result.total, case.leaves)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_and_head_stand_for_the_teachers_logits(name: str) -> None:
    case = problem()
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(13, 5, generator=g, dtype=torch.float64)
    head = Head(torch.randn(37, 5, generator=g, dtype=torch.float64), softcap=4.0)
    settings = LossSettings(chunk_rows=4)
    logits = 4 * torch.tanh(hidden @ head.weight.T / 4)
    by_logits = with_batch(case, teacher_logits=logits)
    by_head = with_batch(case, teacher_logits=None, teacher_hidden=hidden, teacher_head=head)
    torch.testing.assert_close(
        FUNCTIONS[name](by_head.batch, case.head, settings).per_row,
        FUNCTIONS[name](by_logits.batch, case.head, settings).per_row,
    )


@pytest.mark.parametrize("name", NAMES)
def test_student_equal_to_teacher_gives_no_loss_and_no_gradient(name: str) -> None:
    case = problem()
    same = with_batch(
        case, teacher_logits=None, teacher_hidden=case.batch.hidden, teacher_head=case.head
    )
    result = FUNCTIONS[name](same.batch, same.head, LossSettings())
    assert float(result.per_row.abs().max()) < 1e-13
    for grad in torch.autograd.grad(result.total, same.leaves):
        assert float(grad.abs().max()) < 1e-13


def test_a_missing_or_wider_teacher_is_refused() -> None:
    case = problem()
    with pytest.raises(ValueError, match="teacher in this process"):
        FUNCTIONS["full_jsd"](replace(case.batch, teacher_logits=None), case.head, LossSettings())
    wide = torch.zeros(13, 38, dtype=torch.float64)
    with pytest.raises(ValueError, match="38 ids and the student 37"):
        FUNCTIONS["full_jsd"](replace(case.batch, teacher_logits=wide), case.head, LossSettings())
