"""The gathered product and what needs the whole normaliser, against full logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from student_trainer.losses import Head, LossSettings, lsm
from student_trainer.losses.parts import gathered as gathered_module
from student_trainer.losses.parts.gathered import gathered_logits
from student_trainer.losses.parts.normaliser import row_statistics, token_log_probs
from tests.losses.test_losses import SETTINGS, assert_same, gradients
from tests.support.loss_reference import full_logits, problem


def test_chunks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    case = problem(rows=29)
    whole = gradients(lsm(case.batch, case.head, SETTINGS).total, case)
    monkeypatch.setattr(gathered_module, "_CPU_ELEMENTS", 5 * 8 * 3)
    monkeypatch.setattr(gathered_module, "_GRADIENT_IDS", 4)
    assert_same(gradients(lsm(case.batch, case.head, SETTINGS).total, case), whole)


def test_gathered_logits_refuses_ids_outside_the_vocabulary() -> None:
    head = Head(torch.randn(10, 4))
    for bad in (-1, 10):
        with pytest.raises(ValueError, match="outside the student's vocabulary of 10"):
            gathered_logits(torch.randn(1, 4), head, torch.tensor([[0, bad]]))


def test_bf16_parameters_keep_float32_products() -> None:
    case = problem(rows=40, support=8, hidden=64, vocabulary=500, dtype=torch.bfloat16)
    weight = case.head.weight
    got = gathered_logits(case.batch.hidden, case.head, case.batch.support_ids)
    exact = full_logits(case.batch.hidden.detach().double(), Head(weight.detach().double())).gather(
        1, case.batch.support_ids
    )
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.detach().double(), exact, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    grad_hidden, grad_weight = torch.autograd.grad(got, [case.batch.hidden, weight], upstream)
    dense = torch.zeros(40, 500, dtype=torch.float64)
    dense.scatter_add_(1, case.batch.support_ids, upstream.double())
    for actual, expected in (
        (grad_hidden, dense @ weight.detach().double()),
        (grad_weight, dense.T @ case.batch.hidden.detach().double()),
    ):
        error = (actual.double() - expected).norm() / expected.norm()
        assert float(error) < 4e-3  # one rounding to bfloat16 is 2^-9


def test_nothing_of_size_rows_by_vocabulary_is_allocated() -> None:
    rows, vocabulary = 64, 50_000
    case = problem(rows, 4, 8, vocabulary, dtype=torch.float32)
    batch = replace(case.batch, weights=case.batch.weights.float())
    head = replace(case.head, weight=case.head.weight.detach())
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        lsm(batch, head, LossSettings()).total.backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < rows * vocabulary * 4 / 20
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as control:
        full_logits(batch.hidden, head)
    assert max(event.cpu_memory_usage for event in control.events()) >= rows * vocabulary * 4


def test_token_log_probs_and_statistics_equal_full_logits() -> None:
    case = problem(bias=True, softcap=6.0)
    log_pi = torch.log_softmax(full_logits(case.batch.hidden, case.head) / 0.7, -1)
    taken = log_pi[torch.arange(13), case.batch.sampled_ids]
    got = token_log_probs(case.batch.hidden, case.head, case.batch.sampled_ids, 0.7, 4)
    torch.testing.assert_close(got, taken)
    assert_same(gradients(got.sum(), case), gradients(taken.sum(), case))
    statistics = row_statistics(
        case.batch.hidden,
        case.head,
        case.batch.sampled_ids,
        0.7,
        4,
        case.batch.support_ids,
        case.batch.support_valid,
    )
    torch.testing.assert_close(statistics.entropy, -(log_pi.exp() * log_pi).sum(-1))
    torch.testing.assert_close(statistics.sampled_log_probs, taken)
    mass = log_pi.exp().gather(1, case.batch.support_ids).where(case.batch.support_valid, 0)
    torch.testing.assert_close(statistics.support_mass, mass.sum(-1))
    for row, valid in enumerate(case.batch.support_valid):
        theirs = set(case.batch.support_ids[row, valid].tolist())
        own = set(log_pi[row].topk(len(theirs)).indices.tolist())
        assert statistics.support_overlap is not None
        assert float(statistics.support_overlap[row]) == pytest.approx(
            len(own & theirs) / max(len(theirs), 1)
        )
